//! Whether the agent has children that it did not start.
//!
//! The agent is a subreaper: whatever outlives the process that started it, and has left
//! its group, becomes a child of the agent's main thread, which starts none itself. The kernel lists
//! the children of one thread in a file. As long as that names only processes that are
//! known, nothing was left behind, and the search of the whole process table can be
//! spared.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// A longer list is left to the full search.
const LIST: usize = 512;

/// See the module.
#[derive(Debug)]
pub struct Orphans {
    /// Absent where the kernel does not offer it (`CONFIG_PROC_CHILDREN`).
    children: Option<File>,
}

impl Orphans {
    /// Of this process.
    pub fn open() -> Self {
        let own = std::process::id();
        Self { children: File::open(format!("/proc/{own}/task/{own}/children")).ok() }
    }

    /// True only if there is none for sure.
    pub fn none(&self, is_known: impl Fn(i32) -> bool) -> bool {
        self.listed().is_some_and(|pids| pids.into_iter().all(is_known))
    }

    /// The children of the main thread; `None` if they cannot be told.
    pub fn listed(&self) -> Option<Vec<i32>> {
        let mut list = [0; LIST];
        let length = self.children.as_ref()?.read_at(&mut list, 0).ok()?;
        if length == list.len() {
            return None;
        }
        std::str::from_utf8(&list[..length]).ok()?.split_ascii_whitespace().map(|pid| pid.parse().ok()).collect()
    }
}
