//! The data directory: who may use it, and who does.
//!
//! ```text
//! <data>/
//!   server.lock      held with flock while a server runs; contains its pid
//!   deployment.json  keys, account and ports (mode 0600)
//!   runtime.json     endpoints of the running server
//!   cluster.json     name and ports of a deployment of processes; its files are in cluster/
//!   storage/ pool/ job/ monitor/ gateway/   one directory per service
//!   nodes/           the local provider's nodes
//! ```

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::failure::{Failure, Outcome};

const LOCK: &str = "server.lock";
/// A command that only looks whether a server runs holds the lock for some
/// microseconds; a server that meets it tries again this often.
const LOCK_TRIES: u32 = 20;

/// `$KILN_DATA`, else `$XDG_DATA_HOME/kiln`, else `~/.local/share/kiln`.
pub fn default_path() -> Outcome<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = set("KILN_DATA") {
        return Ok(path);
    }
    set("XDG_DATA_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/share")))
        .map(|base| base.join("kiln"))
        .ok_or_else(|| Failure::Usage("no data directory: set KILN_DATA or give --data DIR".to_owned()))
}

/// A data directory that this process alone uses.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Closing it gives the lock back.
    _lock: File,
}

impl DataDir {
    /// Makes the directory if need be and takes its lock.
    ///
    /// # Errors
    /// [`Failure::Running`] with the pid of the process that has it.
    pub fn lock(path: &Path) -> Outcome<Self> {
        // Its files are the owner's alone. Tasks with users of their own, which only root can
        // give, pass through it to their nodes.
        let mode = if nix::unistd::geteuid().is_root() { 0o711 } else { 0o700 };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .with_context(|| format!("data directory {}", path.display()))?;
        // Absolute, because agents are told paths below it.
        let path = path.canonicalize().with_context(|| format!("data directory {}", path.display()))?;
        let file_path = path.join(LOCK);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&file_path)
            .with_context(|| format!("lock {}", file_path.display()))?;
        for attempt in 1.. {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if attempt < LOCK_TRIES => std::thread::sleep(Duration::from_millis(2)),
                Err(TryLockError::WouldBlock) => return Err(Failure::Running(in_use(&path, &mut file))),
                Err(TryLockError::Error(error)) => {
                    return Err(anyhow::Error::new(error).context(format!("lock {}", file_path.display())).into());
                }
            }
        }
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self { path, _lock: file })
    }

    /// The directory, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn in_use(path: &Path, file: &mut File) -> String {
    let mut pid = String::new();
    // Without a pid the message is still true.
    let _ = file.take(32).read_to_string(&mut pid);
    let who = match pid.trim() {
        "" => "another process".to_owned(),
        pid => format!("process {pid}"),
    };
    format!(
        "a server already runs on {} ({who}); stop it, or give this one another directory with --data",
        path.display()
    )
}

/// Whether a server holds the directory's lock.
pub fn is_locked(path: &Path) -> bool {
    let Ok(file) = File::open(path.join(LOCK)) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Replaces a file with all of `content` or leaves the old one: whoever reads
/// it, also after a power failure, sees one of the two.
///
/// # Errors
/// If it cannot be written.
pub fn write_atomic(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let parent = path.parent().unwrap_or_else(|| Path::new("."));
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_second_server_learns_who_has_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a/b");
        assert!(!is_locked(&data));
        let held = DataDir::lock(&data).unwrap();
        assert!(is_locked(&data));
        let failure = DataDir::lock(&data).unwrap_err();
        assert_eq!(failure.exit_code(), 4);
        assert!(failure.to_string().contains(&format!("process {}", std::process::id())), "{failure}");
        drop(held);
        assert!(!is_locked(&data));
        DataDir::lock(&data).unwrap();
    }

    #[test]
    fn files_are_replaced_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
