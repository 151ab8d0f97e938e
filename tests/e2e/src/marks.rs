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
