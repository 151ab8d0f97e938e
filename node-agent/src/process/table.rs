//! The process table of the machine.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Looking at more ids one by one costs more than the whole table.
const MAX_RECENT: i32 = 512;

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// Has ended, but its parent has not asked for the result.
    pub zombie: bool,
}

/// All processes that can be seen. Processes that come and go during the scan
/// may be missing: who kills has to look again until nothing is left.
pub fn scan() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut buffer = [0; 1024];
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| read(pid, &mut buffer))
        .collect()
}

/// The processes that were started after process `first`, if that was a short
/// time ago: reads only what the counter of process ids has handed out since,
/// instead of everything. `None` if these are too many to be sure.
pub fn scan_since(first: i32) -> Option<Vec<Process>> {
    let last: i32 = std::fs::read_to_string("/proc/loadavg").ok()?.split_ascii_whitespace().last()?.parse().ok()?;
    // Smaller when the counter has begun again: left to the full search.
    let count = last.checked_sub(first)?;
    if !(0..=MAX_RECENT).contains(&count) {
        return None;
    }
    let mut buffer = [0; 1024];
    Some((first..=last).filter_map(|pid| read(pid, &mut buffer)).collect())
}

fn read(pid: i32, buffer: &mut [u8]) -> Option<Process> {
    let length = File::open(format!("/proc/{pid}/stat")).ok()?.read(buffer).ok()?;
    parse(pid, &buffer[..length])
}

/// `pid (name) state parent group ...`; the name may contain anything.
fn parse(pid: i32, stat: &[u8]) -> Option<Process> {
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = std::str::from_utf8(&stat[after_name..]).ok()?.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    Some(Process { pid, parent, group, zombie: matches!(state, "Z" | "X") })
}

/// The value of `name` in the environment that the process was started with.
/// `None` also if it may not be read.
pub fn environment_value(pid: i32, name: &str) -> Option<String> {
    let mut bytes = Vec::new();
    // Environments are limited by the kernel to a few megabytes.
    File::open(format!("/proc/{pid}/environ")).ok()?.read_to_end(&mut bytes).ok()?;
    bytes
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
        .map(|value| String::from_utf8_lossy(value).into_owned())
}

/// `roots` and everything below them.
pub fn with_descendants(processes: &[Process], roots: &HashSet<i32>) -> HashSet<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for process in processes {
        children.entry(process.parent).or_default().push(process.pid);
    }
    let mut found = HashSet::new();
    let mut open: Vec<i32> = roots.iter().copied().collect();
    while let Some(pid) = open.pop() {
        if found.insert(pid)
            && let Some(below) = children.get(&pid)
        {
            open.extend(below);
        }
    }
    found
}

/// Kills one process. Errors mean that it is gone already.
pub fn kill_process(pid: i32) {
    if pid > 1 {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Keeps one process from doing anything until it is killed.
pub fn stop_process(pid: i32) {
    if pid > 1 {
        // An error means that it is gone already.
        let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
    }
}

/// Kills a process group. False if nobody is in it.
pub fn kill_group(group: i32) -> bool {
    group > 1 && kill(Pid::from_raw(-group), Signal::SIGKILL) != Err(nix::errno::Errno::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_brackets_and_spaces_do_not_confuse() {
        let process = parse(7, b"7 (a) b (c)) S 3 7 7 0 -1").unwrap();
        assert_eq!(process, Process { pid: 7, parent: 3, group: 7, zombie: false });
        assert!(parse(7, b"7 (x) Z 1 2 3").unwrap().zombie);
        assert_eq!(parse(7, b"nonsense"), None);
    }

    #[test]
    fn this_process_is_in_the_table() {
        let own = std::process::id() as i32;
        assert!(scan().iter().any(|process| process.pid == own && !process.zombie));
        assert_eq!(environment_value(own, "PATH"), std::env::var("PATH").ok());
    }

    #[test]
    fn young_processes_are_found_without_the_whole_table() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id() as i32;
        if let Some(recent) = scan_since(pid) {
            assert!(recent.iter().any(|process| process.pid == pid));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(scan_since(i32::MAX), None);
        assert_eq!(scan_since(-MAX_RECENT - 1), None);
    }

    #[test]
    fn descendants_are_found_at_any_depth() {
        let process = |pid, parent| Process { pid, parent, group: pid, zombie: false };
        let table = [process(2, 1), process(3, 2), process(4, 3), process(5, 1)];
        assert_eq!(with_descendants(&table, &HashSet::from([2])), HashSet::from([2, 3, 4]));
    }
}
