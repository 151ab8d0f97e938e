//! One `kiln up --cluster-dev`: replicas as processes, on the PostgreSQL and the RabbitMQ of the tests.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use kiln_client::Client;
use kiln_store::testing::TestStore;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::processes::{amqp_url, remove_queues};
use crate::server::{exports, processes_of};
use crate::{LONG, programs, until};

/// How long it may take on a busy machine until all processes are ready.
const START: Duration = Duration::from_secs(120);

/// A running deployment of processes, with a directory of its own.
#[derive(Debug)]
pub struct Cluster {
    dir: tempfile::TempDir,
    child: Child,
    variables: BTreeMap<String, String>,
}

/// One replica, as `runtime.json` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Service and number, such as `job-svc-1`.
    pub name: String,
    /// Absent while there is none.
    pub pid: Option<Pid>,
    /// Whether it takes work.
    pub ready: bool,
    /// How often it was started.
    pub starts: u64,
}

impl Cluster {
    /// Starts with an empty data directory on free ports.
    pub async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::Builder::new().prefix("kiln-e2e-").tempdir().unwrap();
        let child = spawn(dir.path());
        let mut cluster = Self { dir, child, variables: BTreeMap::new() };
        cluster.until_ready().await;
        let env = cluster.kiln(&["env"]).await;
        cluster.variables = exports(&String::from_utf8(env.stdout).unwrap());
        cluster
    }

    /// Starts again on the same data; it must have ended.
    pub async fn restart(&mut self) {
        self.child = spawn(self.dir.path());
        self.until_ready().await;
    }

    /// Waits until every replica takes work.
    pub async fn until_ready(&mut self) {
        let (child, dir) = (&mut self.child, self.dir.path());
        until("all processes are ready", START, async || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("kiln up --cluster-dev ended with {status}:\n{}", log_tail(&dir.join("up.log")));
            }
            // Of an earlier one that was killed, the file may still be there.
            let processes = child.id().map(|pid| processes(dir, pid)).unwrap_or_default();
            (!processes.is_empty() && processes.iter().all(|process| process.ready)).then_some(())
        })
        .await;
    }

    /// All replicas.
    pub fn processes(&self) -> Vec<Process> {
        self.child.id().map(|pid| processes(self.dir.path(), pid)).unwrap_or_default()
    }

    /// Sends a signal to a replica, and waits until another process has its place and takes work.
    pub async fn replace(&self, name: &str, signal: Signal) {
        let find = || self.processes().into_iter().find(|process| process.name == name).unwrap();
        let before = find();
        kill(before.pid.expect("it runs"), signal).unwrap();
        let what = format!("{name} is replaced");
        until(&what, START, async || {
            let now = find();
            (now.starts > before.starts && now.ready && now.pid != before.pid).then_some(())
        })
        .await;
    }

    /// A gRPC client of the account.
    pub fn client(&self) -> Client {
        let variable = |name: &str| self.variables[name].as_str();
        Client::connect(variable("KILN_ENDPOINT"), variable("KILN_ACCOUNT"), variable("KILN_ACCOUNT_KEY")).unwrap()
    }

    /// A command with the variables that `kiln env` prints, in the repository.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = programs::command(program);
        command.envs(&self.variables).current_dir(programs::root());
        command
    }

    /// Runs `kiln` on the data directory; it must succeed.
    pub async fn kiln(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(&programs::kiln());
        let output = command.args(arguments).arg("--data").arg(data(self.dir.path())).output().await.unwrap();
        assert!(output.status.success(), "kiln {arguments:?}: {}", programs::text(&output));
        output
    }

    /// Directory of this test.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Kills the process that keeps the others running.
    pub async fn kill_9(&mut self) {
        self.child.start_kill().unwrap();
        self.child.wait().await.unwrap();
    }

    /// Asks it to end, and waits for it.
    pub async fn terminate(&mut self) -> ExitStatus {
        kill(Pid::from_raw(self.child.id().expect("it runs").cast_signed()), Signal::SIGTERM).unwrap();
        tokio::time::timeout(LONG, self.child.wait()).await.expect("it ends").unwrap()
    }

    /// Ends it in order and checks that nothing of it is left running; then takes away what it had on the servers.
    pub async fn stop(mut self) {
        let status = self.terminate().await;
        assert!(status.success(), "kiln up ended with {status}\n{}", log_tail(&self.dir.path().join("up.log")));
        let left = processes_of(self.dir.path());
        assert!(left.is_empty(), "left running: {left:?}");
        remove_queues(&amqp_url(), &format!("{}.", name(self.dir.path()).unwrap())).await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let dir = self.dir.path();
        if std::thread::panicking() {
            for log in std::fs::read_dir(data(dir).join("cluster")).into_iter().flatten().flatten() {
                if log.path().extension().is_some_and(|extension| extension == "log") {
                    eprintln!("--- end of {}\n{}", log.path().display(), log_tail(&log.path()));
                }
            }
            eprintln!("--- end of the log of kiln up\n{}", log_tail(&dir.join("up.log")));
        }
        let _ = self.child.start_kill();
        for _ in 0..100 {
            let left = processes_of(dir);
            if left.is_empty() {
                break;
            }
            for (pid, _) in left {
                let _ = kill(pid, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if let Some(name) = name(dir)
            && !std::thread::panicking()
        {
            for service in crate::processes::SERVICES {
                let schema = format!("{name}_{}", service.replace('-', "_"));
                TestStore::postgres().run_beside(&format!("DROP SCHEMA IF EXISTS \"{schema}\" CASCADE"));
            }
        }
    }
}

fn data(dir: &Path) -> PathBuf {
    dir.join("data")
}

fn spawn(dir: &Path) -> Child {
    let log = File::options().create(true).append(true).open(dir.join("up.log")).unwrap();
    programs::command(&programs::kiln())
        .args(["up", "--cluster-dev", "--listen", "127.0.0.1:0", "--blob-listen", "127.0.0.1:0", "--data"])
        .arg(data(dir))
        .args(["--database-url", &TestStore::url(), "--amqp-url", &amqp_url()])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// The deployment's name on the servers.
fn name(dir: &Path) -> Option<String> {
    let text = std::fs::read(data(dir).join("cluster.json")).ok()?;
    let record: serde_json::Value = serde_json::from_slice(&text).unwrap();
    Some(record["name"].as_str().unwrap().to_owned())
}

/// The replicas of the server whose process is `pid`.
fn processes(dir: &Path, pid: u32) -> Vec<Process> {
    let Ok(text) = std::fs::read(data(dir).join("runtime.json")) else { return Vec::new() };
    let running: serde_json::Value = serde_json::from_slice(&text).unwrap();
    if running["pid"] != pid {
        return Vec::new();
    }
    let processes = running["processes"].as_array().unwrap().iter().map(|process| Process {
        name: format!("{}-{}", process["service"].as_str().unwrap(), process["replica"]),
        pid: process["pid"].as_i64().map(|pid| Pid::from_raw(pid.try_into().unwrap())),
        ready: process["ready"].as_bool().unwrap(),
        starts: process["starts"].as_u64().unwrap(),
    });
    processes.collect()
}

fn log_tail(path: &Path) -> String {
    let log = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
