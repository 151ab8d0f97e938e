//! One process from its directory to its end: what tasks and the start task
//! have in common.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

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

/// Makes the directory `dir` ready for a process. A retry keeps what the last
/// one left in the working directory.
///
/// # Errors
/// `ResourceDirectoryCreateFailed` or `DiskFull`.
pub async fn prepare(root: &Path, dir: PathBuf) -> Result<Place, Failure> {
    let root = root.to_owned();
    let work = move || {
        let working_dir = dir.join(kiln_node::WORKING_DIR);
        std::fs::create_dir_all(&working_dir)?;
        // A task of the same user might have put a link in the place.
        if !working_dir.canonicalize()?.starts_with(root.canonicalize()?) {
            return Err(std::io::Error::other("the working directory leads out of the node's directory"));
        }
        for old in ["fileuploadout.txt", "fileuploaderr.txt"] {
            match std::fs::remove_file(dir.join(old)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let output = Output::create(&dir)?;
        Ok(Place { dir, working_dir, output })
    };
    let result = tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other).and_then(|result| result);
    result.map_err(|error| match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Failure::server("DiskFull", "the node's disk is full")
        }
        _ => Failure::server("ResourceDirectoryCreateFailed", format!("the task's directory: {error}")),
    })
}

/// Starts a process.
///
/// # Errors
/// `CommandProgramNotFound` or `CommandLaunchFailed`.
pub async fn start(supervisor: &Arc<Supervisor>, launch: Launch, marker: String) -> Result<Running, Failure> {
    let supervisor = supervisor.clone();
    let work = move || {
        let mut command = launch.into_command()?;
        supervisor.spawn(&mut command, &marker).map_err(|error| launch_failure(&error))
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Failure::server("CommandLaunchFailed", error.to_string())),
    }
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
    let timer = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let early = tokio::select! {
        biased;
        result = running.wait() => Some(result),
        () = stop.cancelled() => None,
        () = timer => {
            on_limit();
            None
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
