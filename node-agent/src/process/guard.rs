//! The guard: kills an agent's tasks when the agent itself is killed, and when it cannot do it.
//!
//! It is the same program with a hidden argument, in a session of its own, and
//! holds the reading end of a pipe. When the pipe ends, the agent is gone: the guard
//! kills the process groups that stand in the agent's [table](super::groups) and every
//! process that carries the marker of its incarnation, and ends. An agent that is there but stands still
//! (stopped by a signal, starved) does not see that its lease is over and that its tasks are
//! given to other nodes: what still runs [`LATE`] after that is killed by the guard.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::groups;
use super::supervisor::{Running, Supervisor};
use super::table::{self, Process};
use crate::clock;
use crate::domain::environment::{MARKER, ROOT_VARIABLE};

/// The agent's own time to end its tasks when the lease is over; less than the margin that job-svc adds.
const LATE: Duration = Duration::from_secs(1);
/// The lease is looked at so often, or when it may be over: it begins at some time, and is renewed.
const LOOK: Duration = Duration::from_secs(5);
/// How often the guard looks again until nothing is found twice in a row.
const MAX_ROUNDS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(25);
/// A guard that was killed is started again after this time.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
const READY: &[u8] = b"ready\n";
/// Tells the guard where the table of groups is.
const GROUPS: &str = "KILN_GROUPS";

/// Runs as the guard of the agent with this incarnation.
///
/// # Errors
/// When the agent cannot be told that the guard is ready, and when the record cannot be written.
pub fn run_guard(incarnation: &str) -> anyhow::Result<()> {
    // Fails only for the leader of a group, which then has a session already.
    let _ = nix::unistd::setsid();
    // Held open: the agent's own descriptor ends with the agent.
    let table = std::env::var_os(GROUPS).map(File::open).transpose().context("the table of process groups")?;
    let mut stdout = std::io::stdout();
    stdout.write_all(READY).and_then(|()| stdout.flush()).context("the agent is gone")?;
    // Whatever cannot be read is found by its marker.
    let told = || table.as_ref().and_then(|table| groups::read(table).ok()).unwrap_or_default();
    let (mut pause, mut done) = (LOOK, None);
    while !agent_ends_within(pause) {
        let told = told();
        let rest = told.lease_end.map(|end| (end + LATE).saturating_sub(clock::since_boot()));
        let is_over = rest.is_some_and(|rest| rest.is_zero());
        if is_over && done != told.lease_end && kill_tasks(incarnation, told.groups) {
            done = told.lease_end;
            // The guard has to stay for the end of the agent.
            if let Err(error) = crate::record::lease_over(incarnation) {
                eprintln!("the record of attempts cannot be written: {error:#}");
            }
        }
        pause = rest.filter(|_| !is_over).map_or(LATE, |rest| rest.min(LOOK));
    }
    if kill_tasks(incarnation, told().groups) { crate::record::life_over(incarnation) } else { Ok(()) }
}

/// Waits for the end of the pipe from the agent, into which nothing is ever written.
fn agent_ends_within(time: Duration) -> bool {
    let stdin = std::io::stdin();
    let mut pipe = [PollFd::new(&stdin, PollFlags::IN)];
    match poll(&mut pipe, Timespec::try_from(time).ok().as_ref()) {
        Ok(0) | Err(Errno::INTR) => false,
        Ok(_) => true,
        // Without it nothing is known: rather too early than never.
        Err(_) => true,
    }
}

/// Kills these groups and whatever carries the marker of this life; false if there is no end of it.
fn kill_tasks(incarnation: &str, mut groups: HashSet<i32>) -> bool {
    groups.remove(&(std::process::id() as i32));
    for group in &groups {
        table::kill_group(*group);
    }
    let prefix = format!("{incarnation}/");
    kill_until_gone(|processes| {
        carriers(processes, MARKER, |marker| marker.starts_with(&prefix))
            .into_iter()
            .chain(processes.iter().filter(|process| groups.contains(&process.group)).map(|process| process.pid))
            .collect()
    })
}

/// Kills what earlier incarnations of the agent of this node left running. The
/// caller holds the node's lock, so there is no other agent whose tasks these
/// could be. Blocks.
pub fn kill_earlier(root_dir: &Path) {
    let root = root_dir.to_string_lossy().into_owned();
    let own = std::process::id() as i32;
    let _ = kill_until_gone(|processes| {
        let mut found = carriers(processes, ROOT_VARIABLE, |value| value == root);
        // An agent that somebody started inside of a task carries these, too.
        found.retain(|pid| *pid != own && table::environment_value(*pid, MARKER).is_some());
        found
    });
}

fn carriers(processes: &[Process], name: &str, is_ours: impl Fn(&str) -> bool) -> HashSet<i32> {
    let own = std::process::id() as i32;
    processes
        .iter()
        .filter(|process| !process.zombie && process.pid != own)
        .filter(|process| table::environment_value(process.pid, name).is_some_and(|value| is_ours(&value)))
        .map(|process| process.pid)
        .collect()
}

/// Kills what `find` finds, with everything below, until it finds nothing; false if there is no end of it.
fn kill_until_gone(find: impl Fn(&[Process]) -> HashSet<i32>) -> bool {
    let own = std::process::id() as i32;
    let mut calm = 0;
    for _ in 0..MAX_ROUNDS {
        let processes = table::scan();
        let running: HashSet<i32> =
            processes.iter().filter(|process| !process.zombie).map(|process| process.pid).collect();
        let mut victims = table::with_descendants(&processes, &find(&processes));
        victims.retain(|pid| *pid != own && running.contains(pid));
        calm = if victims.is_empty() { calm + 1 } else { 0 };
        // Twice, because a process that was being started during the first scan may be missed.
        if calm == 2 {
            return true;
        }
        for pid in victims {
            table::kill_process(pid);
        }
        std::thread::sleep(if calm > 0 { Duration::from_millis(2) } else { PAUSE });
    }
    false
}

/// Starts the guard and keeps one alive until `shutdown`.
///
/// # Errors
/// When the first guard cannot be started: then no task should be.
pub async fn keep_guard(
    command: Vec<String>,
    incarnation: String,
    record: Vec<(String, String)>,
    supervisor: Arc<Supervisor>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut guard = start(command.clone(), &incarnation, &record, &supervisor)
        .await
        .context("the guard process cannot be started")?;
    kiln_telemetry::spawn(async move {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => {
                    // Its pipe ends here, and the guard with it.
                    guard.process.release();
                    return;
                }
                _ = guard.process.wait() => {
                    tracing::warn!("the guard process has ended; it is started again");
                    guard.process.release();
                }
            }
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(RESTART_PAUSE) => {}
                }
                match start(command.clone(), &incarnation, &record, &supervisor).await {
                    Ok(next) => {
                        guard = next;
                        tracing::info!("the guard process was replaced");
                        break;
                    }
                    Err(error) => tracing::warn!(error = format!("{error:#}"), "the guard cannot be started"),
                }
            }
        }
    });
    Ok(())
}

struct Guard {
    process: Running,
    /// Ends with the agent.
    _stdin: ChildStdin,
}

async fn start(
    command: Vec<String>,
    incarnation: &str,
    record: &[(String, String)],
    supervisor: &Arc<Supervisor>,
) -> anyhow::Result<Guard> {
    let (incarnation, record, supervisor) = (incarnation.to_owned(), record.to_vec(), supervisor.clone());
    let work = move || {
        let (program, arguments) = command.split_first().context("the guard command is empty")?;
        let mut process = supervisor.spawn(
            Command::new(program)
                .args(arguments)
                .arg(incarnation)
                .env_clear()
                .envs(supervisor.groups_path().map(|path| (GROUPS, path)))
                .envs(record)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::inherit()),
            "",
        )?;
        let stdin = process.child().stdin.take().context("the guard has no stdin")?;
        let mut stdout = process.child().stdout.take().context("the guard has no stdout")?;
        let mut ready = [0; READY.len()];
        stdout.read_exact(&mut ready).context("the guard did not become ready")?;
        Ok(Guard { process, _stdin: stdin })
    };
    tokio::task::spawn_blocking(work).await?
}
