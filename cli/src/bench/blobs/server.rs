//! The servers that are measured: storage-svc as `kiln up` has it, in a process
//! and a directory of its own; Azurite on the same disk; or one that runs.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use kiln_auth::SecretKey;
use kiln_grpc::ServiceAuth;
use kiln_proto::storage::v1::PutAccountRequest;
use kiln_proto::storage::v1::storage_admin_service_client::StorageAdminServiceClient;

use super::client::Place;
use crate::bench::usage;
use crate::failure::{Failure, Outcome};

const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);
/// Azurite's account and key, which are the same everywhere.
const EMULATOR: (&str, &str) =
    ("devstoreaccount1", "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==");
/// Account of an own server.
const ACCOUNT: &str = "bench";

/// A server, and how to reach it.
#[derive(Debug)]
pub struct Server {
    place: Place,
    own: Option<Own>,
}

/// A server that the benchmark started.
#[derive(Debug)]
struct Own {
    child: Child,
    log: PathBuf,
    /// To start storage-svc again.
    settings: Option<Settings>,
}

#[derive(Debug)]
struct Settings {
    file: PathBuf,
    log: PathBuf,
    key: SecretKey,
    cluster_key: Arc<SecretKey>,
    grpc: u16,
}

impl Server {
    /// One that runs.
    pub fn external(place: Place) -> Self {
        Self { place, own: None }
    }

    /// storage-svc with an empty directory below `directory`, which also takes its log.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn kiln(directory: &Path) -> Outcome<Self> {
        let (grpc, blob) = (free_port()?, free_port()?);
        let (key, cluster_key) = (SecretKey::generate(), Arc::new(SecretKey::generate()));
        let cluster_key_file = directory.join("cluster.key");
        write_private(&cluster_key_file, &cluster_key.to_base64())?;
        // JSON's strings are strings of TOML, too.
        let text = |value: &Path| serde_json::Value::from(value.to_string_lossy()).to_string();
        let lines = [
            format!("listen = \"127.0.0.1:{grpc}\""),
            format!("blob_listen = \"127.0.0.1:{blob}\""),
            format!("data_dir = {}", text(&directory.join("storage"))),
            format!("cluster_key_file = {}", text(&cluster_key_file)),
            "amqp_url = \"memory\"".to_owned(),
            "log_format = \"plain\"".to_owned(),
        ];
        let (file, log) = (directory.join("storage-svc.toml"), directory.join("storage-svc.log"));
        fs::write(&file, lines.join("\n") + "\n").context("settings of the server")?;
        let settings = Settings { file, log: log.clone(), key, cluster_key, grpc };
        let place = Place::new(&format!("http://127.0.0.1:{blob}"), ACCOUNT, &settings.key.to_base64())?;
        let child = settings.spawn()?;
        let mut server = Self { place, own: Some(Own { child, log, settings: Some(settings) }) };
        server.until_ready().await?;
        Ok(server)
    }

    /// Azurite with an empty directory below `directory`. `program` is its
    /// `azurite-blob`, or `npx`, which fetches it.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn azurite(directory: &Path, program: &Path) -> Outcome<Self> {
        let port = free_port()?;
        let (location, log) = (directory.join("azurite"), directory.join("azurite.log"));
        fs::create_dir_all(&location).context("directory of Azurite")?;
        let mut command = Command::new(program);
        if program.file_name().is_some_and(|name| name == "npx") {
            command.args(["--yes", "--package=azurite", "azurite-blob"]);
        }
        command
            .args(["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--blobHost", "127.0.0.1"])
            .args(["--blobPort", &port.to_string(), "--location"])
            .arg(&location)
            .current_dir(directory);
        let child = spawn(&mut command, &log, Stdio::null())
            .with_context(|| format!("Azurite: {} cannot be started", program.display()))?;
        let place = Place::new(&format!("http://127.0.0.1:{port}"), EMULATOR.0, EMULATOR.1)?;
        let mut server = Self { place, own: Some(Own { child, log, settings: None }) };
        server.until_ready().await?;
        Ok(server)
    }

    /// How to reach it.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The most resident memory it has had since it began, if it runs here.
    pub fn peak_memory(&self) -> Option<u64> {
        let own = self.own.as_ref()?;
        // npx starts the server as a child of its own.
        descendants(own.child.id()).into_iter().filter_map(usage::memory).map(|(_, peak)| peak).max()
    }

    /// The memory that it has now.
    pub fn memory(&self) -> Option<u64> {
        let own = self.own.as_ref()?;
        descendants(own.child.id()).into_iter().filter_map(usage::memory).map(|(now, _)| now).max()
    }

    /// Ends storage-svc without any warning and starts it again on the same files.
    ///
    /// # Errors
    /// If it does not start, or is not ours.
    pub async fn crash(&mut self) -> Outcome {
        let own = self.own.as_mut().context("only an own server can be killed")?;
        own.child.kill().context("killing the server")?;
        own.child.wait().context("the server")?;
        own.child = own.settings.as_ref().context("only storage-svc is started again")?.spawn()?;
        self.until_ready().await
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// If it had ended before, or does not end.
    pub async fn stop(mut self) -> Outcome {
        let Some(own) = &mut self.own else { return Ok(()) };
        if let Some(status) = own.child.try_wait().context("the server")? {
            return Err(anyhow!("the server has ended ({status}): {}", own.log_tail()).into());
        }
        for pid in descendants(own.child.id()) {
            // Some may end by themselves meanwhile.
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid.cast_signed()),
                nix::sys::signal::Signal::SIGTERM,
            );
        }
        let began = Instant::now();
        while own.child.try_wait().context("the server")?.is_none() {
            if began.elapsed() > STOP {
                own.child.kill().context("killing the server")?;
                return Err(anyhow!("the server did not stop within {STOP:?}").into());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Waits until it answers a signed request.
    async fn until_ready(&mut self) -> Outcome {
        let began = Instant::now();
        let Some(own) = &mut self.own else { return Ok(()) };
        loop {
            let failed = match try_once(&self.place, own.settings.as_ref()).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            let ended = own.child.try_wait().context("the server")?;
            if ended.is_some() || began.elapsed() > START {
                // Nothing more can be done for it.
                let _ = own.child.kill();
                let why = format!("the server did not start: {failed:?}\n{}", own.log_tail());
                return Err(Failure::Other(anyhow!(why)));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn try_once(place: &Place, settings: Option<&Settings>) -> Outcome {
    if let Some(settings) = settings {
        settings.put_account().await?;
    }
    place.connect().await?.fetch(("GET", "?comp=list", &[]), bytes::Bytes::new(), 200).await?;
    Ok(())
}

impl Settings {
    fn spawn(&self) -> Outcome<Child> {
        let mut command = Command::new(std::env::current_exe().context("the path of this program is not known")?);
        command.args(["service", "storage-svc", "--with-parent", "--config"]).arg(&self.file);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("KILN_STORAGE_")) {
                command.env_remove(name);
            }
        }
        Ok(spawn(&mut command, &self.log, Stdio::piped()).context("starting storage-svc")?)
    }

    async fn put_account(&self) -> Outcome {
        let channel = ServiceAuth::new("kiln-bench", self.cluster_key.clone())
            .connect(&format!("http://127.0.0.1:{}", self.grpc))?;
        let key = self.key.to_base64();
        let account = PutAccountRequest { account: ACCOUNT.to_owned(), key1: key.clone(), key2: key };
        StorageAdminServiceClient::new(channel).put_account(account).await?;
        Ok(())
    }
}

impl Own {
    fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().rev().take(5).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // Of a benchmark that failed; one that was stopped is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(command: &mut Command, log: &Path, stdin: Stdio) -> std::io::Result<Child> {
    let log = File::options().create(true).append(true).open(log)?;
    command.stdin(stdin).stdout(log.try_clone()?).stderr(log).spawn()
}

/// A port that nobody has now. Somebody may take it until it is used; then the
/// server says so and does not start.
fn free_port() -> Outcome<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a free port")?;
    Ok(listener.local_addr().context("a free port")?.port())
}

fn write_private(file: &Path, text: &str) -> Outcome {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let opened = File::options().create_new(true).write(true).mode(0o600).open(file);
    opened.and_then(|mut file| file.write_all(text.as_bytes())).context("key of the server")?;
    Ok(())
}

/// A process and all that come from it.
fn descendants(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // Behind the name, which may hold anything: state, then the parent.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_of_children_are_found() {
        let mut child = Command::new("sh").args(["-c", "sleep 60 & wait"]).spawn().unwrap();
        let own = std::process::id();
        let began = Instant::now();
        let found = loop {
            let found = descendants(own);
            if descendants(child.id()).len() == 2 || began.elapsed() > Duration::from_secs(30) {
                break found;
            }
        };
        assert!(found.contains(&child.id()) && descendants(child.id()).len() == 2, "{found:?}");
        for pid in descendants(child.id()) {
            let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        child.wait().unwrap();
    }
}
