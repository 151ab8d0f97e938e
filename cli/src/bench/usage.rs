//! What a process has cost so far, as Linux tells it.
//!
//! Threads are told apart by name: every service of `kiln up` has threads of
//! its own, and every database a writer (`write-<file>`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// CPU time of a process and of its threads.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// All of it, with threads that have ended.
    pub cpu: Duration,
    /// Of the living threads, summed by name.
    pub by_thread: BTreeMap<String, Duration>,
}

impl Usage {
    /// As of now; `None` if the process is gone.
    pub fn of(pid: u32) -> Option<Self> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let mut by_thread: BTreeMap<String, Duration> = BTreeMap::new();
        for thread in fs::read_dir(process.join("task")).ok()?.flatten() {
            // A thread may end between two looks.
            if let (Some(name), Some(cpu)) = (name(&thread.path()), on_cpu(&thread.path())) {
                *by_thread.entry(name).or_default() += cpu;
            }
        }
        let known: Duration = by_thread.values().sum();
        Some(Self { cpu: ticks(&process)?.max(known), by_thread })
    }

    /// What was spent since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let spent = |(name, cpu): (&String, &Duration)| {
            (name.clone(), cpu.saturating_sub(before.by_thread.get(name).copied().unwrap_or_default()))
        };
        Self { cpu: self.cpu.saturating_sub(before.cpu), by_thread: self.by_thread.iter().map(spent).collect() }
    }

    /// Of threads whose names begin with one of these.
    pub fn of_threads(&self, prefixes: &[&str]) -> Duration {
        let wanted = |name: &String| prefixes.iter().any(|prefix| name.starts_with(prefix));
        self.by_thread.iter().filter(|(name, _)| wanted(name)).map(|(_, cpu)| *cpu).sum()
    }
}

fn name(thread: &Path) -> Option<String> {
    Some(fs::read_to_string(thread.join("comm")).ok()?.trim_end().to_owned())
}

/// Nanoseconds on a processor: the first number of `schedstat`.
fn on_cpu(thread: &Path) -> Option<Duration> {
    let text = fs::read_to_string(thread.join("schedstat")).ok()?;
    Some(Duration::from_nanos(text.split_whitespace().next()?.parse().ok()?))
}

/// User and system time of the whole process, in hundredths of a second.
fn ticks(process: &Path) -> Option<Duration> {
    let text = fs::read_to_string(process.join("stat")).ok()?;
    // The name may have spaces; numbers begin behind its parenthesis.
    let numbers: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = numbers.get(11)?.parse::<u64>().ok()? + numbers.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}

/// Resident memory of a process in bytes, now and at most since [`forget_peak`].
pub fn memory(pid: u32) -> Option<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    };
    Some((field("VmRSS:")?, field("VmHWM:")?))
}

/// The peak of [`memory`] begins anew. Where the kernel does not allow that, the
/// peak is that of the whole life, which is larger.
pub fn forget_peak(pid: u32) {
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_this_process_is_seen() {
        let pid = std::process::id();
        let before = Usage::of(pid).unwrap();
        let mut sum = 0u64;
        let spent = loop {
            sum = (0..1_000_000u64).fold(sum, |sum, n| sum.wrapping_mul(31).wrapping_add(n));
            let spent = Usage::of(pid).unwrap().since(&before);
            if spent.by_thread.values().sum::<Duration>() > Duration::from_millis(5) {
                break spent;
            }
        };
        assert!(sum != 1 && spent.of_threads(&["no such thread"]) == Duration::ZERO);
        let (now, peak) = memory(pid).unwrap();
        assert!(now > 1_000_000 && peak >= now / 2);
        assert!(Usage::of(u32::MAX).is_none() && memory(u32::MAX).is_none());
    }
}
