//! One agent per node directory.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// pool-svc probes the lock with a shared lock for a moment; an agent that
/// starts in just that moment tries again.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// Held while the agent lives; the kernel takes it back when the agent dies.
#[derive(Debug)]
pub struct NodeLock {
    _file: Flock<File>,
}

impl NodeLock {
    /// Locks the node directory and writes the agent's pid into the lock file.
    ///
    /// # Errors
    /// When another agent holds it, or the file cannot be written. Blocks for a
    /// fraction of a second before it gives up.
    pub fn take(node_dir: &Path) -> anyhow::Result<Self> {
        let path = node_dir.join(kiln_node::LOCK_FILE);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("lock file {}", path.display()))?;
        let mut tries = 1;
        let mut file = file;
        let mut file = loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => break file,
                Err((back, Errno::EWOULDBLOCK)) if tries < TRIES => {
                    tries += 1;
                    file = back;
                    std::thread::sleep(PAUSE);
                }
                Err((mut file, Errno::EWOULDBLOCK)) => {
                    let mut pid = String::new();
                    // Only for the message.
                    let _ = file.read_to_string(&mut pid);
                    bail!("an agent (pid {}) already runs for the node directory {}", pid.trim(), node_dir.display());
                }
                Err((_, error)) => bail!("lock file {}: {error}", path.display()),
            }
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

    #[test]
    fn a_probe_of_the_lock_does_not_stop_an_agent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(kiln_node::LOCK_FILE);
        let file = File::create(&path).unwrap();
        let probe = Flock::lock(file, FlockArg::LockSharedNonblock).unwrap();
        let prober = std::thread::spawn(move || {
            std::thread::sleep(3 * PAUSE);
            drop(probe);
        });
        NodeLock::take(dir.path()).unwrap();
        prober.join().unwrap();
    }
}
