//! What a task may use of its node, and how it is told that it used more.

use super::failure::Failure;

/// What a task asked for; 0 means that it did not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a processor.
    pub cpu_millis: u64,
    /// Main memory of all its processes together.
    pub memory_bytes: u64,
    /// Below its directory.
    pub disk_bytes: u64,
}

impl Limits {
    /// Whether there is anything to watch over.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// What of its limits a task has broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// More memory than asked for.
    Memory {
        /// What was asked for.
        limit: u64,
        /// The most that was seen.
        peak: u64,
    },
    /// More bytes below its directory than asked for.
    Disk {
        /// What was asked for.
        limit: u64,
        /// The most that was seen.
        peak: u64,
    },
}

impl Broken {
    /// As it is reported.
    pub fn failure(self) -> Failure {
        let (code, what, limit, peak) = match self {
            Self::Memory { limit, peak } => ("MemoryLimitExceeded", "memory", limit, peak),
            Self::Disk { limit, peak } => ("DiskLimitExceeded", "disk", limit, peak),
        };
        let message = format!(
            "the task used more {what} than it asked for ({limit} bytes) and was killed; the most seen was {peak} bytes"
        );
        Failure::user(code, message).with("Limit", limit.to_string()).with("Peak", peak.to_string())
    }
}

/// Exit code of what was killed for its limits: that of SIGKILL.
pub const KILLED: i32 = 128 + 9;

/// The values for a control group that may use `cpu_millis`: microseconds of
/// processor time in each period.
pub fn cpu_quota(cpu_millis: u64) -> (u64, u64) {
    const PERIOD: u64 = 100_000;
    // The kernel takes no less than a millisecond.
    ((cpu_millis * (PERIOD / 1000)).max(1000), PERIOD)
}

/// The number beside `name` in lines of `name number`.
pub fn counter(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The path of a process in a hierarchy, from the text of `/proc/<pid>/cgroup`:
/// the one with `controller`, or (empty) the unified one.
pub fn cgroup_path<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let found = if controller.is_empty() {
            controllers.is_empty()
        } else {
            controllers.split(',').any(|name| name == controller)
        };
        found.then_some(path)
    })
}

/// Where a hierarchy is mounted, from the text of `/proc/mounts`.
pub fn cgroup_mount<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (path, kind, options) = (words.next()?, words.next()?, words.next()?);
        let found = match controller {
            "" => kind == "cgroup2",
            _ => kind == "cgroup" && options.split(',').any(|option| option == controller),
        };
        found.then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_limit_says_which_and_how_much() {
        let failure = Broken::Memory { limit: 10, peak: 12 }.failure();
        assert_eq!(failure.code, "MemoryLimitExceeded");
        assert_eq!(failure.details, [("Limit", "10".to_owned()), ("Peak", "12".to_owned())]);
        assert_eq!(Broken::Disk { limit: 10, peak: 12 }.failure().code, "DiskLimitExceeded");
        assert!(Limits::default().is_none() && !Limits { disk_bytes: 1, ..Limits::default() }.is_none());
    }

    #[test]
    fn processor_time_is_counted_in_periods() {
        assert_eq!(cpu_quota(1500), (150_000, 100_000));
        assert_eq!(cpu_quota(1), (1000, 100_000));
    }

    #[test]
    fn texts_of_the_kernel_are_read() {
        assert_eq!(counter("low 0\noom 2\noom_kill 1\n", "oom_kill"), Some(1));
        assert_eq!(counter("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), Some(3));
        assert_eq!(counter("", "oom_kill"), None);
        let own = "5:cpu,cpuacct:/a\n3:memory:/b:c\n0::/u\n";
        assert_eq!(cgroup_path(own, "cpu"), Some("/a"));
        assert_eq!(cgroup_path(own, "memory"), Some("/b:c"));
        assert_eq!(cgroup_path(own, ""), Some("/u"));
        assert_eq!(cgroup_path(own, "pids"), None);
        let mounts =
            "cgroup /c/cpu cgroup rw,relatime,cpu 0 0\ncgroup /c/acct cgroup rw,cpuacct 0 0\nx /u cgroup2 rw 0 0\n";
        assert_eq!(cgroup_mount(mounts, "cpu"), Some("/c/cpu"));
        assert_eq!(cgroup_mount(mounts, ""), Some("/u"));
        assert_eq!(cgroup_mount(mounts, "memory"), None);
    }
}
