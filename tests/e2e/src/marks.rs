//! Tasks that write down when they run.
//!
//! Each task has a file of its own, outside of all nodes. At its start a try writes `start <pid>`, and `overlap <pid>` for
//! every earlier try whose process still lives; at its end it writes `end <pid>`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_proto::job::v1::TaskSpec;

/// The directory of the files.
#[derive(Debug)]
pub struct Marks(PathBuf);

/// What one task's file says.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tries {
    /// How many tries began.
    pub starts: usize,
    /// How many came to their end.
    pub ends: usize,
    /// How often a try found an earlier one alive.
    pub overlaps: usize,
}

impl Marks {
    /// Makes the directory `dir/marks`.
    pub fn new(dir: &Path) -> Self {
        let path = dir.join("marks");
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// The variable that tasks need, for the environment of the job.
    pub fn environment(&self) -> (&str, &str) {
        ("MARKS", self.0.to_str().unwrap())
    }

    /// A task that runs for `seconds` and leaves marks.
    pub fn task(id: &str, seconds: &str) -> TaskSpec {
        // A process that has ended but was not waited for still has a number: its state tells.
        let script = format!(
            "f=\"$MARKS/$AZ_BATCH_TASK_ID\"; \
             if [ -f \"$f\" ]; then while read w p; do \
               if [ \"$w\" = start ]; then \
                 state=$(sed -n \"s/^State:[^A-Z]*//p\" /proc/$p/status 2>/dev/null); \
                 case \"$state\" in \"\"|[ZX]*) ;; *) echo \"overlap $p\" >> \"$f\" ;; esac; fi; \
             done < \"$f\"; fi; \
             echo \"start $$\" >> \"$f\"; sleep {seconds}; echo \"end $$\" >> \"$f\""
        );
        crate::work::shell_task(id, &script)
    }

    /// What the files say, by task.
    pub fn read(&self) -> BTreeMap<String, Tries> {
        let mut tries: BTreeMap<String, Tries> = BTreeMap::new();
        for entry in std::fs::read_dir(&self.0).unwrap().flatten() {
            let of_task = tries.entry(entry.file_name().to_string_lossy().into_owned()).or_default();
            for line in std::fs::read_to_string(entry.path()).unwrap().lines() {
                match line.split_once(' ').map(|(what, _)| what) {
                    Some("start") => of_task.starts += 1,
                    Some("end") => of_task.ends += 1,
                    Some("overlap") => of_task.overlaps += 1,
                    _ => panic!("{line:?} in the marks of {:?}", entry.file_name()),
                }
            }
        }
        tries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the script of a task after its file has this content; gives what the file says then.
    fn run_after(earlier: &str) -> Tries {
        let dir = tempfile::tempdir().unwrap();
        let marks = Marks::new(dir.path());
        std::fs::write(marks.0.join("t"), earlier).unwrap();
        let command = Marks::task("t", "0").command_line;
        let status = std::process::Command::new("/bin/sh")
            .args(["-c", command.strip_prefix("/bin/sh -c '").unwrap().strip_suffix('\'').unwrap()])
            .envs([marks.environment(), ("AZ_BATCH_TASK_ID", "t")])
            .status();
        assert!(status.unwrap().success());
        marks.read()["t"].clone()
    }

    #[test]
    fn an_earlier_try_that_lives_is_seen() {
        assert_eq!(run_after(""), Tries { starts: 1, ends: 1, overlaps: 0 });
        let alive = format!("start {}\n", std::process::id());
        assert_eq!(run_after(&alive), Tries { starts: 2, ends: 1, overlaps: 1 });
        // Ended, but nobody has waited for it yet.
        let mut zombie = std::process::Command::new("true").spawn().unwrap();
        while !std::fs::read_to_string(format!("/proc/{}/stat", zombie.id())).unwrap().contains(") Z") {
            std::thread::yield_now();
        }
        assert_eq!(run_after(&format!("start {}\n", zombie.id())), Tries { starts: 2, ends: 1, overlaps: 0 });
        zombie.wait().unwrap();
    }
}
