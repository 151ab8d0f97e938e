//! The shim: a process that puts itself into its place before it becomes a
//! task's.
//!
//! Joining a control group and changing the user have to happen inside of the new
//! process, and doing that from the agent would fork the whole of it. So tasks that need it (and
//! only these) are started as this program with a hidden argument. It reads what to
//! do from the socket that is its standard input, does it, and executes the task's
//! program. The socket closes by that; if it cannot be done the reason comes back instead.
//!
//! The task's environment comes through the socket, too: what a user sets there (`LD_PRELOAD`)
//! must not reach this program while it is somebody else.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use serde::{Deserialize, Serialize};

use super::launch::{Launch, launch_failure};
use super::supervisor::{Running, Supervisor};
use crate::domain::environment::{MARKER, ROOT_VARIABLE};
use crate::domain::failure::Failure;

/// A shim that has not done its work after this time never will.
const LIMIT: Duration = Duration::from_secs(60);
/// Arguments and environment together; the kernel takes less.
const MAX_ORDER: u64 = 16 << 20;

/// As whom a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Its user.
    pub uid: u32,
    /// Its only group.
    pub gid: u32,
}

/// Where a process belongs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Files of the control groups to join.
    pub cgroups: Vec<PathBuf>,
    /// Absent: the agent's own.
    pub user: Option<User>,
}

#[derive(Serialize, Deserialize)]
struct Order {
    cgroups: Vec<PathBuf>,
    user: Option<User>,
    program: PathBuf,
    words: Vec<String>,
    environment: BTreeMap<String, String>,
}

/// Why the shim gave up.
#[derive(Serialize, Deserialize)]
struct Refusal {
    /// As the system numbers it, if the program itself could not be executed.
    exec: Option<i32>,
    message: String,
}

/// Runs as the shim.
///
/// # Errors
/// When nobody hears why it gave up.
pub fn run_shim() -> anyhow::Result<()> {
    // Closed by the kernel when the program is executed.
    let mut socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let refusal = match obey(&mut socket) {
        Ok(refusal) => refusal,
        Err(error) => Refusal { exec: None, message: format!("{error:#}") },
    };
    serde_json::to_writer(&mut socket, &refusal).context("the agent is gone")?;
    Ok(())
}

/// Comes back only if the program could not be executed.
fn obey(socket: &mut UnixStream) -> anyhow::Result<Refusal> {
    let mut text = Vec::new();
    socket.take(MAX_ORDER).read_to_end(&mut text).context("the order")?;
    let order: Order = serde_json::from_slice(&text).context("the order")?;
    nix::unistd::dup2_stdin(File::open("/dev/null").context("/dev/null")?)?;
    for file in &order.cgroups {
        // 0 is the writer itself.
        std::fs::write(file, "0").with_context(|| format!("joining {}", file.display()))?;
    }
    if let Some(user) = order.user {
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        setgroups(&[gid]).and_then(|()| setgid(gid)).and_then(|()| setuid(uid)).context("becoming the task's user")?;
    }
    let (name, arguments) = order.words.split_first().context("the command line is empty")?;
    let error = Command::new(&order.program).arg0(name).args(arguments).env_clear().envs(order.environment).exec();
    Ok(Refusal { exec: error.raw_os_error(), message: error.to_string() })
}

/// Starts a process in its place by way of `shim` (program and arguments). Blocks until
/// the task's program has taken over.
///
/// # Errors
/// As for a process that is started without.
pub fn start(
    supervisor: &Arc<Supervisor>,
    shim: &[String],
    launch: Launch,
    place: &Place,
    marker: &str,
) -> Result<Running, Failure> {
    let refused = |message: String| Failure::server("CommandLaunchFailed", message);
    let Some((own, arguments)) = shim.split_first() else {
        return Err(refused("this agent has no way to confine processes".to_owned()));
    };
    let (program, words) = launch.resolve()?;
    let order =
        Order { cgroups: place.cgroups.clone(), user: place.user, program, words, environment: launch.environment };
    let (mut ours, theirs) = UnixStream::pair().map_err(|error| refused(error.to_string()))?;
    let mut command = Command::new(own);
    command
        .args(arguments)
        .env_clear()
        // By these it is found if the agent is killed now.
        .envs([MARKER, ROOT_VARIABLE].iter().filter_map(|name| Some((name, order.environment.get(*name)?))))
        .current_dir(&launch.working_dir)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(launch.output.stdout)
        .stderr(launch.output.stderr)
        .process_group(0);
    let running = supervisor.spawn(&mut command, marker).map_err(|error| launch_failure(&error))?;
    // It holds the other end of the socket.
    drop(command);
    let answer = instruct(&mut ours, &order);
    match answer {
        Ok(None) => Ok(running),
        Ok(Some(Refusal { exec: Some(code), .. })) => {
            running.release();
            Err(launch_failure(&std::io::Error::from_raw_os_error(code)))
        }
        Ok(Some(Refusal { exec: None, message })) => {
            running.release();
            Err(refused(message))
        }
        Err(error) => {
            super::table::kill_group(running.pid());
            running.release();
            Err(refused(format!("the process cannot be put into its place: {error}")))
        }
    }
}

/// Tells the shim what to do; gives its answer, `None` if the program runs.
fn instruct(socket: &mut UnixStream, order: &Order) -> std::io::Result<Option<Refusal>> {
    socket.set_read_timeout(Some(LIMIT))?;
    socket.set_write_timeout(Some(LIMIT))?;
    socket.write_all(&serde_json::to_vec(order)?)?;
    socket.shutdown(std::net::Shutdown::Write)?;
    let mut answer = Vec::new();
    socket.take(MAX_ORDER).read_to_end(&mut answer)?;
    if answer.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&answer)?))
}
