//! A RabbitMQ that nobody else uses, so that it may be killed.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::until;

const PORT: u16 = 7475;
/// It may take so long to end in order.
const IN_ORDER: Duration = Duration::from_secs(15);

/// The broker's process, with its data in a directory of its own.
#[derive(Debug)]
pub struct Broker {
    host: String,
    dir: tempfile::TempDir,
    child: Child,
}

impl Broker {
    /// Starts it on a loopback address.
    pub async fn start(host: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("kiln-broker-").tempdir().unwrap();
        let mut broker = Self { host: host.to_owned(), child: spawn(host, &dir), dir };
        broker.until_open().await;
        broker
    }

    /// As AMQP clients use it.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@{}:{PORT}/%2f", self.host)
    }

    /// Kills it with -9, or asks it to end, and starts it again on its data.
    pub async fn restart(&mut self, by_force: bool, away: Duration) {
        if !by_force && let Some(pid) = self.child.id() {
            let _ = nix::sys::signal::kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
            // One that does not end in order is killed; this is not a test of it.
            let _ = tokio::time::timeout(IN_ORDER, self.child.wait()).await;
        }
        self.kill().await;
        tokio::time::sleep(away).await;
        self.child = spawn(&self.host, &self.dir);
        self.until_open().await;
    }

    /// Ends it; nothing of it is needed any more.
    pub async fn stop(mut self) {
        self.kill().await;
    }

    async fn kill(&mut self) {
        // The virtual machine and its helpers are one group.
        if let Some(pid) = self.child.id() {
            let _ = killpg(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        self.child.wait().await.unwrap();
    }

    async fn until_open(&mut self) {
        let (child, host, dir) = (&mut self.child, &self.host, self.dir.path());
        until("the broker is open", Duration::from_secs(300), async || {
            if let Some(status) = child.try_wait().unwrap() {
                let log = std::fs::read_to_string(dir.join("out.log")).unwrap_or_default();
                panic!("RabbitMQ ended with {status}:\n{log}");
            }
            TcpStream::connect((host.as_str(), PORT)).await.ok()
        })
        .await;
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(pid) = self.child.id() {
            let _ = killpg(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }
}

fn spawn(host: &str, dir: &tempfile::TempDir) -> Child {
    let dir = dir.path();
    let config = dir.join("rabbitmq.conf");
    // Guests may come from loopback addresses alone, and this is one.
    let text = format!("listeners.tcp.1 = {host}:{PORT}\nloopback_users = none\ndisk_free_limit.absolute = 50MB\n");
    std::fs::write(&config, text).unwrap();
    std::fs::write(dir.join("plugins"), "[].\n").unwrap();
    let log = std::fs::File::options().create(true).append(true).open(dir.join("out.log")).unwrap();
    let mut command = std::process::Command::new(program());
    command
        .env("RABBITMQ_NODENAME", format!("chaos-{}@localhost", std::process::id()))
        .env("RABBITMQ_DIST_PORT", "7476")
        .env("RABBITMQ_MNESIA_BASE", dir.join("data"))
        .env("RABBITMQ_LOG_BASE", dir.join("log"))
        .env("RABBITMQ_CONFIG_FILE", &config)
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", dir.join("plugins"))
        .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+sbwt none +sbwtdcpu none +sbwtdio none")
        .env("HOME", dir)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    Command::from(command).spawn().unwrap()
}

/// The server itself, not the distribution's wrapper, which changes the user and the directories.
fn program() -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/rabbitmq/lib").into_iter().flatten().flatten();
    let mut servers: Vec<_> =
        installed.map(|entry| entry.path().join("sbin/rabbitmq-server")).filter(|path| path.exists()).collect();
    servers.sort();
    servers.pop().unwrap_or_else(|| PathBuf::from("rabbitmq-server"))
}
