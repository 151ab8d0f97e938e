//! `runtime.json`: where the running server of a data directory is.

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::dir::{is_locked, write_atomic};
use crate::failure::Outcome;

const FILE: &str = "runtime.json";

/// A running server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Process that serves.
    pub pid: u32,
    /// Front door: gRPC and REST.
    pub endpoint: String,
    /// Blob data plane, without account.
    pub blob_endpoint: String,
    /// The services, where they are processes of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<Process>,
}

/// One replica of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// For example `job-svc`.
    pub service: String,
    /// Counted from 1.
    pub replica: usize,
    /// Absent while it is started again.
    pub pid: Option<u32>,
    /// Its main port, on this machine.
    pub port: u16,
    /// Its data plane, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob_port: Option<u16>,
    /// Whether it takes work.
    pub ready: bool,
    /// How often it was started.
    pub starts: u32,
}

impl Running {
    /// Tells other commands where this server is.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn announce(&self, data: &Path) -> Outcome {
        let path = data.join(FILE);
        let text = serde_json::to_vec_pretty(self).context("runtime file")?;
        write_atomic(&path, &text).with_context(|| path.display().to_string())?;
        Ok(())
    }

    /// Takes it back.
    pub fn withdraw(data: &Path) {
        // A file that stays is harmless: nobody holds the lock.
        let _ = std::fs::remove_file(data.join(FILE));
    }

    /// The server that runs on `data`, if one does.
    pub fn find(data: &Path) -> Option<Self> {
        let text = std::fs::read(data.join(FILE)).ok()?;
        if !is_locked(data) {
            return None;
        }
        serde_json::from_slice(&text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::dir::DataDir;
    use super::*;

    #[test]
    fn only_a_server_that_lives_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (endpoint, blob_endpoint) = ("http://a".to_owned(), "http://b".to_owned());
        let running = Running { pid: 1, endpoint, blob_endpoint, processes: Vec::new() };
        running.announce(dir.path()).unwrap();
        assert_eq!(Running::find(dir.path()), None);
        let held = DataDir::lock(dir.path()).unwrap();
        assert_eq!(Running::find(dir.path()), Some(running));
        Running::withdraw(dir.path());
        assert_eq!(Running::find(dir.path()), None);
        drop(held);
    }
}
