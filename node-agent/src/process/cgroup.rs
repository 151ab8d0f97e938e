//! Control groups: the kernel keeps a task within its limits.
//!
//! Version 2 is used where the agent may make groups with the controllers for
//! memory and processors (a container, or a systemd unit with `Delegate=yes`); else
//! version 1, each controller for itself; else there is none, and a watcher takes
//! their place ([`super::watcher`]).
//!
//! All groups of a node are below one directory that is named after the node's
//! root, so that a new life of the agent removes what an earlier one left.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::shim;
use crate::domain::limits::{Limits, cgroup_mount, cgroup_path, counter, cpu_quota};

/// Removing a group that was just killed is tried this often.
const REMOVALS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(10);

/// What the machine offers; directories of this node in each hierarchy.
#[derive(Debug, PartialEq, Eq)]
pub struct Cgroups {
    version: u8,
    memory: Option<PathBuf>,
    /// The same directory as `memory` in version 2.
    cpu: Option<PathBuf>,
}

/// The group of one process tree.
#[derive(Debug)]
pub struct Cgroup {
    version: u8,
    memory: Option<PathBuf>,
    cpu: Option<PathBuf>,
}

impl Cgroups {
    /// Looks at what the agent may use, for the node called `name`. Blocks.
    pub fn find(name: &str) -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let place = |controller: &str| {
            let (mount, path) = (cgroup_mount(&mounts, controller)?, cgroup_path(&own, controller)?);
            Some(Path::new(mount).join(path.trim_start_matches('/')))
        };
        if let Some(dir) = place("")
            && let Some(found) = unified(&dir, name)
        {
            return found;
        }
        let separate = |controller: &str| {
            let dir = place(controller)?.join(name);
            make(&dir).inspect_err(|error| tracing::debug!(controller, %error, "no control groups")).ok()?;
            Some(dir)
        };
        let found = Self { version: 1, memory: separate("memory"), cpu: separate("cpu") };
        tracing::debug!(?found, "control groups");
        found
    }

    /// Whether the kernel watches over memory.
    pub fn limits_memory(&self) -> bool {
        self.memory.is_some()
    }

    /// Makes a group with these limits; `None` if no group would hold any. Blocks.
    ///
    /// # Errors
    /// As the system says.
    pub fn create(&self, name: &str, limits: &Limits) -> io::Result<Option<Cgroup>> {
        let wanted =
            |base: &Option<PathBuf>, amount: u64| base.as_ref().filter(|_| amount > 0).map(|dir| dir.join(name));
        let group = Cgroup {
            version: self.version,
            memory: wanted(&self.memory, limits.memory_bytes),
            cpu: wanted(&self.cpu, limits.cpu_millis),
        };
        if group.memory.is_none() && group.cpu.is_none() {
            return Ok(None);
        }
        match group.fill(limits) {
            Ok(()) => Ok(Some(group)),
            Err(error) => {
                group.remove();
                Err(error)
            }
        }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for dir in self.memory.iter().chain(&self.cpu) {
            // Of both versions only empty ones go; what is left is for the next life.
            let _ = std::fs::remove_dir(dir);
        }
    }
}

/// Version 2 below `dir`, if the controllers are there.
fn unified(dir: &Path, name: &str) -> Option<Cgroups> {
    let offered = std::fs::read_to_string(dir.join("cgroup.controllers")).ok()?;
    let has = |controller: &str| offered.split_ascii_whitespace().any(|word| word == controller);
    if !has("memory") {
        return None;
    }
    let enable = |dir: &Path| {
        let wanted = if has("cpu") { "+memory +cpu" } else { "+memory" };
        std::fs::write(dir.join("cgroup.subtree_control"), wanted)
    };
    let make_node = || {
        if enable(dir).is_err() {
            // A group with processes cannot have groups with limits: the agent makes room.
            let leaf = dir.join(format!("{name}-agent"));
            make(&leaf)?;
            std::fs::write(leaf.join("cgroup.procs"), "0")?;
            enable(dir)?;
        }
        let node = dir.join(name);
        make(&node)?;
        enable(&node)?;
        Ok::<_, io::Error>(node)
    };
    match make_node() {
        Ok(node) => Some(Cgroups { version: 2, cpu: has("cpu").then(|| node.clone()), memory: Some(node) }),
        Err(error) => {
            tracing::debug!(dir = %dir.display(), %error, "no control groups of version 2");
            None
        }
    }
}

/// Makes the directory of a node, or clears what an earlier life left in it.
fn make(dir: &Path) -> io::Result<()> {
    match std::fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other,
    }
    for entry in std::fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // Its processes were killed when this life began.
            let _ = std::fs::remove_dir(entry.path());
        }
    }
    Ok(())
}

impl Cgroup {
    fn fill(&self, limits: &Limits) -> io::Result<()> {
        let (quota, period) = cpu_quota(limits.cpu_millis);
        let memory = limits.memory_bytes.to_string();
        for dir in self.dirs() {
            std::fs::create_dir(dir)?;
        }
        if let Some(dir) = &self.memory {
            if self.version == 2 {
                std::fs::write(dir.join("memory.max"), &memory)?;
                // What is swapped is used, too. Absent without swap.
                write_if_there(&dir.join("memory.swap.max"), "0")?;
                write_if_there(&dir.join("memory.oom.group"), "1")?;
            } else {
                std::fs::write(dir.join("memory.limit_in_bytes"), &memory)?;
                write_if_there(&dir.join("memory.memsw.limit_in_bytes"), &memory)?;
            }
        }
        if let Some(dir) = &self.cpu {
            if self.version == 2 {
                std::fs::write(dir.join("cpu.max"), format!("{quota} {period}"))?;
            } else {
                std::fs::write(dir.join("cpu.cfs_period_us"), period.to_string())?;
                std::fs::write(dir.join("cpu.cfs_quota_us"), quota.to_string())?;
            }
        }
        Ok(())
    }

    fn dirs(&self) -> impl Iterator<Item = &PathBuf> {
        let cpu = self.cpu.iter().filter(|cpu| self.memory.as_ref() != Some(*cpu));
        self.memory.iter().chain(cpu)
    }

    /// What a process has to be told to join.
    pub fn join(&self, place: &mut shim::Place) {
        place.cgroups.extend(self.dirs().map(|dir| dir.join("cgroup.procs")));
    }

    /// The most memory that was used, if the kernel had to kill something for it.
    /// Blocks for a moment.
    pub fn memory_broken(&self) -> Option<u64> {
        let dir = self.memory.as_ref()?;
        let (events, peak) = match self.version {
            2 => ("memory.events", "memory.peak"),
            _ => ("memory.oom_control", "memory.max_usage_in_bytes"),
        };
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        let killed = counter(&read(events), "oom_kill").unwrap_or(0) > 0;
        killed.then(|| read(peak).trim().parse().unwrap_or(0))
    }

    /// Kills whatever is left in the group and removes it. Blocks.
    pub fn remove(self) {
        for dir in self.dirs() {
            if self.version == 2 {
                // Absent before Linux 5.14; then its processes were found in the process table.
                let _ = std::fs::write(dir.join("cgroup.kill"), "1");
            }
            for round in 0..REMOVALS {
                match std::fs::remove_dir(dir) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound && round + 1 < REMOVALS => {
                        std::thread::sleep(PAUSE);
                    }
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        tracing::warn!(dir = %dir.display(), %error, "a control group could not be removed");
                    }
                    _ => break,
                }
            }
        }
    }
}

fn write_if_there(path: &Path, value: &str) -> io::Result<()> {
    if path.exists() { std::fs::write(path, value) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { cpu_millis: 500, memory_bytes: 1 << 20, disk_bytes: 0 };

    /// A directory is no control group, but takes the same words.
    fn fake(version: u8, dir: &Path) -> Cgroups {
        Cgroups { version, memory: Some(dir.join("m")), cpu: Some(dir.join(if version == 2 { "m" } else { "c" })) }
    }

    #[test]
    fn each_version_is_told_in_its_own_words() {
        for (version, files) in [
            (2, [("m/t/memory.max", "1048576"), ("m/t/cpu.max", "50000 100000")]),
            (1, [("m/t/memory.limit_in_bytes", "1048576"), ("c/t/cpu.cfs_quota_us", "50000")]),
        ] {
            let temp = tempfile::tempdir().unwrap();
            for name in ["m", "c"] {
                std::fs::create_dir(temp.path().join(name)).unwrap();
            }
            let cgroups = fake(version, temp.path());
            let group = cgroups.create("t", &LIMITS).unwrap().unwrap();
            for (file, text) in files {
                assert_eq!(std::fs::read_to_string(temp.path().join(file)).unwrap(), text, "{file}");
            }
            let mut place = shim::Place::default();
            group.join(&mut place);
            assert_eq!(place.cgroups.len(), if version == 2 { 1 } else { 2 });
            assert_eq!(group.memory_broken(), None);
            let (events, peak) = if version == 2 {
                ("memory.events", "memory.peak")
            } else {
                ("memory.oom_control", "memory.max_usage_in_bytes")
            };
            std::fs::write(temp.path().join("m/t").join(events), "oom 1\noom_kill 1\n").unwrap();
            std::fs::write(temp.path().join("m/t").join(peak), "1048000\n").unwrap();
            assert_eq!(group.memory_broken(), Some(1_048_000));
            let nothing = Limits { disk_bytes: 5, ..Limits::default() };
            assert!(cgroups.create("u", &nothing).unwrap().is_none());
        }
    }

    #[test]
    fn version_2_without_controllers_is_not_used() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("cgroup.controllers"), "\n").unwrap();
        assert_eq!(unified(temp.path(), "n"), None);
        std::fs::write(temp.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        let found = unified(temp.path(), "n").unwrap();
        assert_eq!((found.version, &found.cpu), (2, &found.memory));
        let enabled = |dir: &Path| std::fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap();
        assert_eq!(enabled(&temp.path().join("n")), "+memory +cpu");
    }
}
