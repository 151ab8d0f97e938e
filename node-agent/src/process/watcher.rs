//! Watches over the limits that the kernel does not: the size of a task's
//! directory, and its memory where there are no control groups.
//!
//! It looks from time to time, so what is used for a moment only may be missed.
//! Memory is the resident memory of the process, of its group and of everything below it; what
//! several of its processes share is counted for each of them.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::table;
use crate::domain::limits::{Broken, Limits};

/// Between two looks at memory.
const MEMORY_PAUSE: Duration = Duration::from_millis(100);
/// Between two looks at a directory, which take longer the more is in it.
const DISK_PAUSE: Duration = Duration::from_millis(500);
/// The part of the time that looking at directories may take is one of so many.
const DISK_SHARE: u32 = 20;

/// What to watch.
#[derive(Debug, Clone)]
pub struct Watched {
    /// First of its process group.
    pub pid: i32,
    /// The task's directory.
    pub dir: PathBuf,
    /// 0 for what somebody else watches.
    pub limits: Limits,
}

/// Completes when a limit is broken; never, if there is nothing to watch.
pub async fn watch(watched: Watched) -> Broken {
    let Limits { memory_bytes, disk_bytes, .. } = watched.limits;
    let memory = async {
        if memory_bytes == 0 {
            return std::future::pending().await;
        }
        loop {
            let pid = watched.pid;
            let used = tokio::task::spawn_blocking(move || memory_of(pid)).await.unwrap_or(0);
            if used > memory_bytes {
                return Broken::Memory { limit: memory_bytes, peak: used };
            }
            tokio::time::sleep(MEMORY_PAUSE).await;
        }
    };
    let disk = async {
        if disk_bytes == 0 {
            return std::future::pending().await;
        }
        loop {
            let (dir, begin) = (watched.dir.clone(), Instant::now());
            let used = tokio::task::spawn_blocking(move || size_of(&dir)).await.unwrap_or(0);
            if used > disk_bytes {
                return Broken::Disk { limit: disk_bytes, peak: used };
            }
            tokio::time::sleep(DISK_PAUSE.max(begin.elapsed() * DISK_SHARE)).await;
        }
    };
    tokio::select! {
        broken = memory => broken,
        broken = disk => broken,
    }
}

/// Resident memory of a process tree. Blocks.
pub fn memory_of(pid: i32) -> u64 {
    let processes = table::scan();
    let mut roots: HashSet<i32> =
        processes.iter().filter(|process| process.group == pid).map(|process| process.pid).collect();
    roots.insert(pid);
    let pages: u64 = table::with_descendants(&processes, &roots).into_iter().filter_map(resident_pages).sum();
    pages.saturating_mul(page_size())
}

fn resident_pages(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096)
}

/// Bytes that everything below a directory takes on the disk. Links are not
/// followed; what has several names counts once. Blocks.
pub fn size_of(dir: &Path) -> u64 {
    let mut seen = HashSet::new();
    let mut open = vec![dir.to_owned()];
    let mut bytes = 0u64;
    while let Some(dir) = open.pop() {
        // What goes meanwhile does not count.
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.nlink() > 1 && !metadata.is_dir() && !seen.insert((metadata.dev(), metadata.ino())) {
                continue;
            }
            bytes = bytes.saturating_add(metadata.blocks().saturating_mul(512));
            if metadata.is_dir() {
                open.push(entry.path());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_as_large_as_its_files() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("d")).unwrap();
        std::fs::write(temp.path().join("d/f"), vec![1; 1 << 20]).unwrap();
        std::fs::hard_link(temp.path().join("d/f"), temp.path().join("same")).unwrap();
        std::os::unix::fs::symlink("/usr", temp.path().join("elsewhere")).unwrap();
        let size = size_of(temp.path());
        assert!(((1 << 20)..(2 << 20)).contains(&size), "{size}");
    }

    #[test]
    fn a_process_uses_memory() {
        let used = memory_of(std::process::id() as i32);
        assert!(used > 1 << 20, "{used}");
        assert_eq!(memory_of(i32::MAX), 0);
    }
}
