//! The deployment that is measured: a `kiln up` of its own in a directory that
//! vanishes, or the one that the connection flags name.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use kiln_auth::SecretKey;
use kiln_client::Client;

use super::usage::Usage;
use crate::connect::{ConnectArgs, Target};
use crate::failure::{Failure, Outcome};
use crate::up::deployment::Deployment;
use crate::up::running::Running;

const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);

/// See the module.
#[derive(Debug)]
pub struct Server {
    target: Target,
    /// Its process, if it runs on this machine.
    pid: Option<u32>,
    data: Option<PathBuf>,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    child: Child,
    directory: tempfile::TempDir,
}

/// What only somebody who reads the data directory knows.
#[derive(Debug, Clone)]
pub struct Inside {
    /// The account.
    pub account: String,
    /// Signs tokens of nodes.
    pub cluster_key: Arc<SecretKey>,
    /// URLs of job-svc and of pool-svc, of all replicas.
    pub job: Vec<String>,
    /// See `job`.
    pub pool: Vec<String>,
}

impl Server {
    /// The server that the flags name, or a new one.
    ///
    /// # Errors
    /// If it does not start, or needs credentials that are not there.
    pub async fn new(connect: &ConnectArgs) -> Outcome<Self> {
        // A server that merely runs in the usual place is not meant.
        if connect.endpoint.is_none() && connect.data.is_none() {
            return Self::start().await;
        }
        let target = connect.require()?;
        let data = connect.data_dir()?;
        let running = Running::find(&data).filter(|running| running.endpoint == target.endpoint);
        let data = running.as_ref().map(|_| data);
        // Of services that are processes of their own it would be the cost of what starts them.
        let pid = running.filter(|running| running.processes.is_empty()).map(|running| running.pid);
        Ok(Self { target, data, pid, own: None })
    }

    /// Whether each round can have a new server.
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    async fn start() -> Outcome<Self> {
        let directory = tempfile::Builder::new().prefix("kiln-bench-").tempdir().context("temporary directory")?;
        let data = directory.path().join("data");
        let log = File::create(directory.path().join("server.log")).context("log of the server")?;
        let mut command = Command::new(std::env::current_exe().context("the path of this program is not known")?);
        command
            .args(["up", "--listen", "127.0.0.1:0", "--blob-listen", "127.0.0.1:0", "--data"])
            .arg(&data)
            .env_remove("KILN_ACCOUNT")
            .env_remove("KILN_ACCOUNT_KEY")
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("log of the server")?)
            .stderr(log);
        let mut child = command.spawn().context("starting the server")?;
        let pid = child.id();
        let began = Instant::now();
        let running = loop {
            if let Some(running) = Running::find(&data) {
                break running;
            }
            let ended = child.try_wait().context("the server")?;
            if ended.is_some() || began.elapsed() > START {
                // Nothing more can be done for it.
                let _ = child.kill();
                return Err(anyhow::anyhow!("the server did not start: {}", log_tail(directory.path())).into());
            }
            tokio::time::sleep(PAUSE).await;
        };
        let deployment = Deployment::read(&data)?.context("the server left no deployment.json")?;
        let target =
            Target { endpoint: running.endpoint, account: deployment.account, key: deployment.key1, authority: None };
        Ok(Self { target, pid: Some(pid), data: Some(data), own: Some(Own { child, directory }) })
    }

    /// A client of the account.
    ///
    /// # Errors
    /// If endpoint or key are malformed.
    pub fn client(&self) -> Outcome<Client> {
        self.target.client()
    }

    /// What simulated nodes need.
    ///
    /// # Errors
    /// If the server's data directory is not at hand.
    pub fn inside(&self) -> Outcome<Inside> {
        let Some(data) = &self.data else {
            return Err(Failure::Usage(
                "simulated nodes need the key in the server's data directory: give it with --data".to_owned(),
            ));
        };
        let deployment = Deployment::read(data)?.context("there is no deployment.json")?;
        let processes = Running::find(data).context("the server has ended")?.processes;
        let urls = |service: &str, port: u16| -> Vec<String> {
            if processes.is_empty() {
                return vec![crate::up::local(port)];
            }
            let of = processes.iter().filter(|process| process.service == service);
            of.map(|process| crate::up::local(process.port)).collect()
        };
        Ok(Inside {
            cluster_key: Arc::new(deployment.cluster_key()?),
            job: urls("job-svc", deployment.ports.job),
            pool: urls("pool-svc", deployment.ports.pool),
            account: deployment.account,
        })
    }

    /// The server's process, if it runs here.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// CPU time so far.
    pub fn usage(&self) -> Option<Usage> {
        Usage::of(self.pid?)
    }

    /// Directory for files that go with the server's, on the same disk.
    pub fn scratch(&self) -> PathBuf {
        self.own.as_ref().map_or_else(std::env::temp_dir, |own| own.directory.path().to_owned())
    }

    /// Ends an own server in order and removes its directory.
    ///
    /// # Errors
    /// If it had ended before, or does not end.
    pub async fn stop(self) -> Outcome {
        let Some(mut own) = self.own else { return Ok(()) };
        let (child, directory) = (&mut own.child, &own.directory);
        if let Some(status) = child.try_wait().context("the server")? {
            return Err(anyhow::anyhow!("the server has ended ({status}): {}", log_tail(directory.path())).into());
        }
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).context("stopping the server")?;
        let began = Instant::now();
        while child.try_wait().context("the server")?.is_none() {
            if began.elapsed() > STOP {
                child.kill().context("killing the server")?;
                return Err(anyhow::anyhow!("the server did not stop within {STOP:?}").into());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // Of a benchmark that failed; one that was stopped is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log_tail(directory: &Path) -> String {
    let text = std::fs::read_to_string(directory.join("server.log")).unwrap_or_default();
    text.lines().rev().take(5).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
}
