//! One replica: a process that is started again when it ends, until it is asked
//! to stop.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::super::running;
use super::super::services::is_ready;
use super::settings::Member;

/// First and longest pause before a process is started again.
const RESTART: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A process that ran so long has not failed at its start.
const CALM: Duration = Duration::from_secs(10);
/// How long a process may take to end in order: calls under way have ten seconds.
const STOP_LIMIT: Duration = Duration::from_secs(25);
/// Pauses between two looks at a process that is not ready yet, and at one that was.
const LOOK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// A process that does not answer for so long is not ready.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// Lines of a log that are shown when a process cannot be started.
const TAIL: usize = 15;

/// What others may know about a replica.
#[derive(Debug)]
pub struct Replica {
    /// Service and ports.
    pub member: Member,
    /// Its log, to which all lives of it append.
    pub log: PathBuf,
    /// 0 while there is no process.
    pid: AtomicU32,
    ready: AtomicBool,
    was_ready: AtomicBool,
    starts: AtomicU32,
    /// How its last life ended.
    ended: Mutex<Option<ExitStatus>>,
    /// Told at every change of what is shown.
    changed: Arc<Notify>,
}

impl Replica {
    /// For `runtime.json`.
    pub fn shown(&self) -> running::Process {
        let pid = self.pid.load(Ordering::Relaxed);
        running::Process {
            service: self.member.service.name().to_owned(),
            replica: self.member.replica,
            pid: (pid != 0).then_some(pid),
            port: self.member.port,
            blob_port: self.member.blob_port,
            ready: self.is_ready(),
            starts: self.starts.load(Ordering::Relaxed),
        }
    }

    /// Whether it takes work.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Whether it ever did.
    pub fn was_ready(&self) -> bool {
        self.was_ready.load(Ordering::Relaxed)
    }

    /// How often it was started.
    pub fn starts(&self) -> u32 {
        self.starts.load(Ordering::Relaxed)
    }

    /// How its last life ended, with the end of its log.
    pub fn last_words(&self) -> String {
        let ended = *self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let status = ended.map_or_else(|| "it does not answer".to_owned(), |status| status.to_string());
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        format!("{status}\n{}", lines[lines.len().saturating_sub(TAIL)..].join("\n"))
    }

    fn set_ready(&self, ready: bool) {
        if self.ready.swap(ready, Ordering::Relaxed) != ready {
            self.was_ready.fetch_or(ready, Ordering::Relaxed);
            self.changed.notify_one();
        }
    }
}

/// A replica that is kept running.
#[derive(Debug)]
pub struct Supervised {
    /// What is known about it.
    pub replica: Arc<Replica>,
    stop: CancellationToken,
    handle: JoinHandle<()>,
}

impl Supervised {
    /// Starts `program` with the settings in `config`, and keeps it running.
    pub fn start(member: Member, program: String, config: PathBuf, log: PathBuf, changed: Arc<Notify>) -> Self {
        let replica = Arc::new(Replica {
            member,
            log,
            pid: AtomicU32::new(0),
            ready: AtomicBool::new(false),
            was_ready: AtomicBool::new(false),
            starts: AtomicU32::new(0),
            ended: Mutex::default(),
            changed,
        });
        let stop = CancellationToken::new();
        let handle = kiln_telemetry::spawn(keep(replica.clone(), program, config, stop.clone()));
        Self { replica, stop, handle }
    }

    /// Asks it to end, and waits until it has.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.handle.await {
            tracing::error!(process = self.replica.member.name(), %error, "its supervision has failed");
        }
    }
}

async fn keep(replica: Arc<Replica>, program: String, config: PathBuf, stop: CancellationToken) {
    let name = replica.member.name();
    let mut pause = RESTART.0;
    loop {
        let begin = Instant::now();
        replica.starts.fetch_add(1, Ordering::Relaxed);
        match spawn(&replica, &program, &config) {
            Ok(mut child) => {
                // Out of its hands, for waiting would close it: see `--with-parent`.
                let _open = child.stdin.take();
                replica.pid.store(child.id().unwrap_or(0), Ordering::Relaxed);
                replica.changed.notify_one();
                let ended = tokio::select! {
                    ended = child.wait() => Some(ended),
                    () = look(&replica) => None,
                    () = stop.cancelled() => None,
                };
                let was_asked = ended.is_none();
                let ended = match ended {
                    Some(ended) => ended,
                    None => end(&name, &mut child).await,
                };
                replica.set_ready(false);
                replica.pid.store(0, Ordering::Relaxed);
                replica.changed.notify_one();
                match ended {
                    Ok(status) => {
                        *replica.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
                        if was_asked {
                            tracing::debug!(process = name, %status, "stopped");
                        } else {
                            tracing::warn!(process = name, %status, restart_in = ?pause, "a process has ended");
                        }
                    }
                    Err(error) => tracing::error!(process = name, %error, "a process cannot be waited for"),
                }
            }
            Err(error) => tracing::error!(process = name, %error, restart_in = ?pause, "a process cannot be started"),
        }
        if stop.is_cancelled() {
            return;
        }
        if begin.elapsed() > CALM {
            pause = RESTART.0;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        pause = (pause * 2).min(RESTART.1);
    }
}

fn spawn(replica: &Replica, program: &str, config: &Path) -> std::io::Result<Child> {
    let log = File::options().create(true).append(true).open(&replica.log)?;
    Command::new(program)
        .arg("service")
        .arg(replica.member.service.name())
        .arg("--with-parent")
        .arg("--config")
        .arg(config)
        // Open for as long as this process lives: see `--with-parent`.
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C is for this process, which stops the others one after the other.
        .process_group(0)
        .spawn()
}

/// Keeps an eye on whether it is ready; never ends.
async fn look(replica: &Replica) {
    loop {
        let answer = tokio::time::timeout(LOOK_LIMIT, is_ready(replica.member.port)).await;
        let ready = matches!(answer, Ok(Ok(true)));
        replica.set_ready(ready);
        tokio::time::sleep(if ready { LOOK.1 } else { LOOK.0 }).await;
    }
}

async fn end(name: &str, child: &mut Child) -> std::io::Result<ExitStatus> {
    if let Some(pid) = child.id() {
        // It may have ended just now.
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
    }
    match tokio::time::timeout(STOP_LIMIT, child.wait()).await {
        Ok(ended) => ended,
        Err(_) => {
            tracing::error!(process = name, "did not stop within {STOP_LIMIT:?}; it is killed");
            child.start_kill()?;
            child.wait().await
        }
    }
}
