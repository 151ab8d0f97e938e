//! One agent per node directory.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Held while the agent lives; the kernel takes it back when the agent dies.
#[derive(Debug)]
pub struct NodeLock {
    _file: Flock<File>,
}

impl NodeLock {
    /// Locks the node directory and writes the agent's pid into the lock file.
    ///
    /// # Errors
    /// When another agent holds it, or the file cannot be written.
    pub fn take(node_dir: &Path) -> anyhow::Result<Self> {
        let path = node_dir.join(kiln_node::LOCK_FILE);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("lock file {}", path.display()))?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                // Only for the message.
                let _ = file.read_to_string(&mut pid);
                bail!("an agent (pid {}) already runs for the node directory {}", pid.trim(), node_dir.display());
            }
            Err((_, error)) => bail!("lock file {}: {error}", path.display()),
        };
        file.set_len(0)?;
        file.rewind()?;
        write!(file, "{}", std::process::id())?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_agent_is_told_who_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let first = NodeLock::take(dir.path()).unwrap();
        let pid = std::fs::read_to_string(dir.path().join(kiln_node::LOCK_FILE)).unwrap();
        assert_eq!(pid, std::process::id().to_string());
        let error = NodeLock::take(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&pid) && error.contains("already runs"), "{error}");
        drop(first);
        NodeLock::take(dir.path()).unwrap();
    }
}
