//! One process from its directory to its end: what tasks and the start task
//! have in common.
//!
//! All of it runs on a thread of its own ([`on_own_thread`]), where what takes the system
//! a moment is simply done: a task that lives for a millisecond must not wait for threads that
//! wake each other.

use std::fs::{DirBuilder, File};
use std::future::Future;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::domain::failure::Failure;
use crate::process::launch::{Launch, Output, exit_code, launch_failure};
use crate::process::supervisor::{Running, Supervisor};

/// The directory of a process.
#[derive(Debug)]
pub struct Place {
    /// With stdout.txt and stderr.txt.
    pub dir: PathBuf,
    /// The current directory of the process.
    pub working_dir: PathBuf,
    /// Open for writing, empty.
    pub output: Output,
}

/// Runs `work` on a thread that it may block. There is one for each process at most, as
/// many as the node has slots.
///
/// # Errors
/// When `work` has panicked.
pub async fn on_own_thread<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    let (runtime, work) = (tokio::runtime::Handle::current(), work.in_current_span());
    tokio::task::spawn_blocking(move || runtime.block_on(work)).await
}

/// Makes the directory `dir` ready for a process. A retry keeps what the last
/// one left in the working directory. Blocks for as long as the system takes.
///
/// # Errors
/// `ResourceDirectoryCreateFailed` or `DiskFull`.
pub fn prepare(root: &Path, dir: PathBuf) -> Result<Place, Failure> {
    make_place(root, dir).map_err(|error| match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Failure::server("DiskFull", "the node's disk is full"),
        _ => Failure::server("ResourceDirectoryCreateFailed", format!("the task's directory: {error}")),
    })
}

fn make_place(root: &Path, dir: PathBuf) -> std::io::Result<Place> {
    let working_dir = dir.join(kiln_node::WORKING_DIR);
    let is_new = match make_dir(&dir) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            std::fs::create_dir_all(&dir)?;
            true
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
        Err(error) => return Err(error),
    };
    match make_dir(&working_dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // A task of the same user might have put a link in the place.
    if !is_below(root, &working_dir)? {
        return Err(Error::other("the working directory leads out of the node's directory"));
    }
    if is_new {
        let output = Output::create(&dir)?;
        return Ok(Place { dir, working_dir, output });
    }
    for old in ["fileuploadout.txt", "fileuploaderr.txt"] {
        match std::fs::remove_file(dir.join(old)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let output = Output::replace(&dir)?;
    Ok(Place { dir, working_dir, output })
}

fn make_dir(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().mode(0o777).create(path)
}

/// Whether a directory is really below `root`, wherever links lead.
fn is_below(root: &Path, dir: &Path) -> std::io::Result<bool> {
    // The usual case, with one question: no link is on the way.
    if let Ok(relative) = dir.strip_prefix(root) {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        if openat2(File::open(root)?, relative, flags, Mode::empty(), resolve).is_ok() {
            return Ok(true);
        }
    }
    Ok(dir.canonicalize()?.starts_with(root.canonicalize()?))
}

/// Starts a process. Blocks for as long as the system takes.
///
/// # Errors
/// `CommandProgramNotFound` or `CommandLaunchFailed`.
pub fn start(supervisor: &Arc<Supervisor>, launch: Launch, marker: &str) -> Result<Running, Failure> {
    let mut command = launch.into_command()?;
    supervisor.spawn(&mut command, marker).map_err(|error| launch_failure(&error))
}

/// Waits for the end of a process and of everything it started; gives its exit
/// code. Kills it when `stop` is cancelled or `limit` is over; then
/// `on_limit` is called once.
pub async fn wait(
    mut running: Running,
    stop: &CancellationToken,
    limit: Option<Duration>,
    on_limit: impl FnOnce(),
) -> i32 {
    let early = match running.wait_briefly(Duration::ZERO) {
        Some(result) => Some(result),
        None => {
            let rest = limit.map(|limit| limit.saturating_sub(running.age()));
            let timer = async {
                match rest {
                    Some(rest) => tokio::time::sleep(rest).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                result = running.wait() => Some(result),
                () = stop.cancelled() => None,
                () = timer => {
                    on_limit();
                    None
                }
            }
        }
    };
    let result = match early {
        Some(result) => result,
        None => {
            running.kill().await;
            running.wait().await
        }
    };
    running.clean_up().await;
    match result {
        Ok(status) => exit_code(status),
        Err(error) => {
            tracing::error!(%error, "the result of a process is lost");
            -1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_made_once_and_found_again() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("workitems/j/job-1/t");
        let place = prepare(root.path(), dir.clone()).unwrap();
        std::fs::write(place.working_dir.join("kept"), "x").unwrap();
        for name in ["fileuploadout.txt", "stdout.txt"] {
            std::fs::write(dir.join(name), "of the last try").unwrap();
        }
        let again = prepare(root.path(), dir.clone()).unwrap();
        assert!(again.working_dir.join("kept").exists());
        assert!(!dir.join("fileuploadout.txt").exists());
        assert_eq!(std::fs::read(dir.join("stdout.txt")).unwrap(), b"");
    }

    #[test]
    fn a_place_behind_a_link_is_used_only_below_the_root() {
        let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let jobs = root.path().join("workitems");
        std::fs::create_dir(&jobs).unwrap();
        std::os::unix::fs::symlink(other.path(), jobs.join("out")).unwrap();
        std::os::unix::fs::symlink(root.path(), jobs.join("in")).unwrap();
        assert_eq!(prepare(root.path(), jobs.join("out/t")).unwrap_err().code, "ResourceDirectoryCreateFailed");
        assert!(!other.path().join("t/stdout.txt").exists());
        assert!(prepare(root.path(), jobs.join("in/t")).is_ok());
    }
}
