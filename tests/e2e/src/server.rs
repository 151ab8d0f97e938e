//! One `kiln up` as a process.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use kiln_client::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;

use crate::{LONG, programs, until};

/// How long a server may take to start on a busy machine.
const START: Duration = Duration::from_secs(60);

/// A running deployment in one process, with a directory of its own.
#[derive(Debug)]
pub struct Server {
    dir: tempfile::TempDir,
    child: Child,
    listen: String,
    blob_listen: String,
    environment: Vec<(String, String)>,
    variables: BTreeMap<String, String>,
}

impl Server {
    /// Starts with an empty data directory on free ports.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// As [`Server::start`], with more environment variables.
    pub async fn start_with(environment: &[(&str, &str)]) -> Self {
        // Subscribers of TLS defaults: reqwest and tonic need one provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::Builder::new().prefix("kiln-e2e-").tempdir().unwrap();
        let environment: Vec<_> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let (listen, blob_listen) = ("127.0.0.1:0".to_owned(), "127.0.0.1:0".to_owned());
        let child = spawn(dir.path(), &listen, &blob_listen, &environment);
        let mut server = Self { dir, child, listen, blob_listen, environment, variables: BTreeMap::new() };
        server.wait_until_ready().await;
        // A restart takes the same ports, as a deployment with fixed ports would.
        server.listen = authority(server.variable("KILN_ENDPOINT"));
        let storage = server.variable("AZURE_STORAGE_CONNECTION_STRING").to_owned();
        let blob = storage.split(';').find_map(|part| part.strip_prefix("BlobEndpoint=")).unwrap();
        server.blob_listen = authority(blob);
        server
    }

    /// Ends the process without any warning.
    pub async fn kill_9(&mut self) {
        self.child.start_kill().unwrap();
        self.child.wait().await.unwrap();
    }

    /// Starts again on the same data and ports; the process must have ended.
    pub async fn restart(&mut self) {
        self.child = spawn(self.dir.path(), &self.listen, &self.blob_listen, &self.environment);
        self.wait_until_ready().await;
    }

    /// Asks the process to end, as Ctrl-C does, and waits for it.
    pub async fn interrupt(&mut self) -> ExitStatus {
        let pid = self.child.id().expect("the server runs");
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGINT).unwrap();
        tokio::time::timeout(LONG, self.child.wait()).await.expect("the server ends").unwrap()
    }

    /// Ends the process in order and checks that nothing of it is left running.
    pub async fn stop(mut self) {
        let status = self.interrupt().await;
        assert!(status.success(), "kiln up ended with {status}\n{}", self.log_tail());
        let left = processes_of(self.dir.path());
        assert!(left.is_empty(), "left running: {left:?}");
    }

    /// The variables that `kiln env` prints.
    pub fn variables(&self) -> &BTreeMap<String, String> {
        &self.variables
    }

    /// One of them.
    pub fn variable(&self, name: &str) -> &str {
        self.variables.get(name).unwrap_or_else(|| panic!("kiln env prints no {name}: {:?}", self.variables.keys()))
    }

    /// A gRPC client of the account.
    pub fn client(&self) -> Client {
        self.client_with_key(self.variable("AZURE_BATCH_ACCESS_KEY"))
    }

    /// A gRPC client of the account with a key that may be wrong.
    pub fn client_with_key(&self, key: &str) -> Client {
        Client::connect(self.variable("KILN_ENDPOINT"), self.variable("AZURE_BATCH_ACCOUNT"), key).unwrap()
    }

    /// Directory of this test.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Directory given to `--data`.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Process ids of the agents, by the lock files that they hold.
    pub fn agents(&self) -> BTreeMap<String, Pid> {
        agents_below(&self.data())
    }

    /// The last lines the server logged.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("up.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    async fn wait_until_ready(&mut self) {
        let http = reqwest::Client::new();
        let data = self.data();
        let child = &mut self.child;
        let dir = self.dir.path();
        self.variables = until("kiln up is ready", START, async || {
            if let Some(status) = child.try_wait().unwrap() {
                let log = std::fs::read_to_string(dir.join("up.log")).unwrap_or_default();
                panic!("kiln up ended with {status}:\n{log}");
            }
            let variables = kiln_env(&data).await?;
            let ready = http.get(format!("{}/readyz", variables.get("KILN_ENDPOINT")?)).send().await.ok()?;
            ready.status().is_success().then_some(variables)
        })
        .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- end of the server's log\n{}", self.log_tail());
        }
        let _ = self.child.start_kill();
        // The server first, so that it starts no new agents meanwhile.
        let _ = self.child.try_wait();
        for _ in 0..100 {
            let left = processes_of(self.dir.path());
            if left.is_empty() {
                return;
            }
            for (pid, _) in left {
                let _ = kill(pid, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn spawn(dir: &Path, listen: &str, blob_listen: &str, environment: &[(String, String)]) -> Child {
    let log = File::options().create(true).append(true).open(dir.join("up.log")).unwrap();
    programs::command(&programs::kiln())
        .args(["up", "--listen", listen, "--blob-listen", blob_listen, "--data"])
        .arg(dir.join("data"))
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// What `kiln env` prints, or `None` while there is nothing to print.
async fn kiln_env(data: &Path) -> Option<BTreeMap<String, String>> {
    let output = programs::command(&programs::kiln()).arg("env").arg("--data").arg(data).output().await.unwrap();
    if !output.status.success() {
        return None;
    }
    Some(exports(&String::from_utf8(output.stdout).unwrap()))
}

/// Names and values of shell exports, as `kiln env` prints them.
pub fn exports(text: &str) -> BTreeMap<String, String> {
    let variables = text.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
    variables.map(|(name, value)| (name.to_owned(), value.trim_matches(['\'', '"']).to_owned())).collect()
}

/// `host:port` of a URL.
fn authority(url: &str) -> String {
    url.trim_start_matches("http://").split('/').next().unwrap().to_owned()
}

/// Process ids of the agents of nodes below `dir`, by the lock files that they hold.
pub fn agents_below(dir: &Path) -> BTreeMap<String, Pid> {
    let mut agents = BTreeMap::new();
    for lock in find_files(dir, "agent.lock") {
        let pid = std::fs::read_to_string(&lock).ok().and_then(|text| text.trim().parse().ok());
        let node = lock.parent().and_then(Path::file_name).unwrap().to_string_lossy().into_owned();
        if let Some(pid) = pid
            && Path::new(&format!("/proc/{pid}")).exists()
        {
            agents.insert(node, Pid::from_raw(pid));
        }
    }
    agents
}

/// Processes whose command line or environment names `dir`: the server, its agents, their tasks.
pub fn processes_of(dir: &Path) -> Vec<(Pid, String)> {
    let name = dir.to_str().unwrap().as_bytes();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let command = read("cmdline");
        let names = |text: &[u8]| text.windows(name.len()).any(|window| window == name);
        if names(&command) || names(&read("environ")) {
            found.push((Pid::from_raw(pid), String::from_utf8_lossy(&command).replace('\0', " ")));
        }
    }
    found
}

/// All files called `name` below `dir`.
pub fn find_files(dir: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(_) if entry.file_name() == name => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    found
}
