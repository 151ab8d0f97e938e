//! A PostgreSQL that nobody else uses, so that it may be killed.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use tokio::process::{Child, Command};

use super::disk::Disk;
use crate::until;

const PORT: u16 = 7477;
/// The server refuses to run as root; then it runs as this user, whom packages make.
const USER: &str = "postgres";

/// The server's process, with its data in a directory of its own.
#[derive(Debug)]
pub struct Database {
    host: String,
    child: Child,
    /// Small, if it may be filled; gone before its directory.
    disk: Option<Disk>,
    dir: tempfile::TempDir,
}

impl Database {
    /// Makes an empty one and starts it on a loopback address; `small`: on a disk that can be filled, if that can be had.
    pub async fn start(host: &str, small: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("kiln-database-").tempdir().unwrap();
        let disk = small
            .then(|| Disk::mount(dir.path()))
            .and_then(|disk| disk.inspect_err(|why| eprintln!("no disk will be full: {why}")).ok());
        if let Some(user) = other_user() {
            std::os::unix::fs::chown(dir.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
        let data = dir.path().join("data");
        let made = command("initdb")
            .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-instructions", "-D"])
            .arg(&data)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let mut database = Self { host: host.to_owned(), child: spawn(host, dir.path()), disk, dir };
        database.until_open().await;
        database
    }

    /// As the services use it.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}:{PORT}/postgres?sslmode=disable", self.host)
    }

    /// Kills the server with -9, or has it end at once but in order, and starts it again on its data.
    pub async fn restart(&mut self, by_force: bool, away: Duration) {
        match self.child.id() {
            Some(pid) if !by_force => kill(Pid::from_raw(pid.cast_signed()), Signal::SIGINT).unwrap(),
            _ => self.child.start_kill().unwrap(),
        }
        self.child.wait().await.unwrap();
        tokio::time::sleep(away).await;
        self.child = spawn(&self.host, self.dir.path());
        self.until_open().await;
    }

    /// Whether its disk can be filled.
    pub fn has_own_disk(&self) -> bool {
        self.disk.is_some()
    }

    /// Its disk is full for a while. The server may give up; then it is started again when there is room.
    pub async fn without_room(&mut self, away: Duration) {
        let Some(disk) = &self.disk else { return };
        let bytes = disk.fill();
        eprintln!("the disk is full: {bytes} bytes were free");
        tokio::time::sleep(away).await;
        disk.free();
        self.until_open().await;
    }

    /// What a query answers: lines with the columns between bars. Nothing if the server is away.
    pub fn ask(&self, sql: &str) -> Option<String> {
        let port = PORT.to_string();
        let mut query = command("psql");
        query.args(["-XAtq", "-U", "postgres", "-h", &self.host, "-p", &port, "-d", "postgres", "-c", sql]);
        let answer = query.stdin(Stdio::null()).output().unwrap();
        answer.status.success().then(|| String::from_utf8_lossy(&answer.stdout).trim().to_owned())
    }

    /// Ends it; nothing of it is needed any more.
    pub async fn stop(mut self) {
        if let Some(pid) = self.child.id() {
            // Immediate: its processes end at once.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGQUIT);
        }
        self.child.wait().await.unwrap();
    }

    async fn until_open(&mut self) {
        until("PostgreSQL is open", Duration::from_secs(120), async || {
            // The processes of a server that was killed end a moment later; until then a new one does not start.
            if self.child.try_wait().unwrap().is_some() {
                self.child = spawn(&self.host, self.dir.path());
            }
            let ready = command("pg_isready").args(["-q", "-h", &self.host, "-p", &PORT.to_string()]).status().unwrap();
            ready.success().then_some(())
        })
        .await;
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Some(pid) = self.child.id() {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGQUIT);
        }
    }
}

fn spawn(host: &str, dir: &Path) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("out.log")).unwrap();
    let mut server = command("postgres");
    server.arg("-D").arg(dir.join("data"));
    for setting in [
        format!("listen_addresses={host}"),
        format!("port={PORT}"),
        "unix_socket_directories=".to_owned(),
        "max_connections=200".to_owned(),
    ] {
        server.args(["-c", &setting]);
    }
    server.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    Command::from(server).spawn().unwrap()
}

/// One of the server's programs, as a user who may run it.
fn command(program: &str) -> std::process::Command {
    let mut command = std::process::Command::new(find(program));
    if let Some(user) = other_user() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    // Where it may be, whoever started this.
    command.current_dir("/");
    command
}

fn other_user() -> Option<User> {
    let is_root = nix::unistd::geteuid().is_root();
    is_root.then(|| User::from_name(USER).unwrap().expect("root cannot run PostgreSQL, and there is no user postgres"))
}

/// Where packages put it, else in the path.
fn find(program: &str) -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<_> =
        installed.map(|entry| entry.path().join("bin").join(program)).filter(|path| path.exists()).collect();
    found.sort();
    found.pop().unwrap_or_else(|| PathBuf::from(program))
}
