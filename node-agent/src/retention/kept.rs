//! Until when directories of tasks are kept, where their tasks say so: across
//! restarts of the agent, too.
//!
//! One small file for each such directory, below the agent's state. Tasks that
//! do not say (almost all) cost nothing: the last change of their output and the
//! usual time tell enough. The files are not flushed to disk: what a power loss takes is
//! only the wish of the task, and the usual time applies.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use kiln_time::Timestamp;

/// In the state directory of the node.
const DIR: &str = "retention";
/// Parts of a directory's path are joined by this in the name of its file; ids
/// cannot have it.
const SEPARATOR: &str = ",";

/// See the module.
#[derive(Debug)]
pub struct Kept {
    root: PathBuf,
    files: PathBuf,
    until: Mutex<HashMap<PathBuf, Until>>,
}

#[derive(Debug, Clone, Copy)]
struct Until {
    time: Timestamp,
    recorded: bool,
}

impl Kept {
    /// Reads what earlier lives have recorded below `state`. Blocks.
    pub fn load(root: &Path, state: &Path) -> Self {
        let files = state.join(DIR);
        let mut until = HashMap::new();
        for entry in std::fs::read_dir(&files).into_iter().flatten().flatten() {
            let dir = entry.file_name().to_str().map(|name| root.join(name.replace(SEPARATOR, "/")));
            let time = std::fs::read_to_string(entry.path()).ok().and_then(|text| text.trim().parse().ok());
            match (dir, time) {
                (Some(dir), Some(micros)) if dir.exists() => {
                    until.insert(dir, Until { time: Timestamp::from_micros(micros), recorded: true });
                }
                // Of a directory that is gone, or not whole.
                _ => remove_file(&entry.path()),
            }
        }
        Self { root: root.to_owned(), files, until: Mutex::new(until) }
    }

    /// The directory (absolute) may go at `time`. With `record` that outlives
    /// this life of the agent; then it blocks for a moment.
    pub fn keep(&self, dir: PathBuf, time: Timestamp, record: bool) {
        let file = self.file(&dir);
        let before = self.lock().insert(dir, Until { time, recorded: record });
        if record {
            let write = || {
                std::fs::create_dir_all(&self.files)?;
                std::fs::write(&file, time.as_micros().to_string())
            };
            if let Err(error) = write() {
                tracing::warn!(%error, "the retention time of a task will be forgotten when the agent is restarted");
            }
        } else if before.is_some_and(|before| before.recorded) {
            remove_file(&file);
        }
    }

    /// When the directory may go, if that is known.
    pub fn until(&self, dir: &Path) -> Option<Timestamp> {
        self.lock().get(dir).map(|until| until.time)
    }

    /// The directory, with all that is in it, is gone. Blocks for a moment if
    /// something was recorded.
    pub fn gone(&self, dir: &Path) {
        let gone: Vec<(PathBuf, Until)> = {
            let mut until = self.lock();
            match until.remove_entry(dir) {
                Some(task) => vec![task],
                // A whole job: seldom.
                None => until.extract_if(|kept, _| kept.starts_with(dir)).collect(),
            }
        };
        for (dir, _) in gone.iter().filter(|(_, until)| until.recorded) {
            remove_file(&self.file(dir));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, Until>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, dir: &Path) -> PathBuf {
        let relative = dir.strip_prefix(&self.root).unwrap_or(dir);
        self.files.join(relative.to_string_lossy().replace('/', SEPARATOR))
    }
}

fn remove_file(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "an old record could not be removed");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tasks_say_is_known_in_the_next_life() {
        let temp = tempfile::tempdir().unwrap();
        let (root, state) = (temp.path().join("root"), temp.path().join("state"));
        let task = |name: &str| root.join("workitems/j:1/job-1").join(name);
        for name in ["said", "usual", "changed", "gone", "removed"] {
            std::fs::create_dir_all(task(name)).unwrap();
        }
        let at = Timestamp::from_micros;
        let kept = Kept::load(&root, &state);
        kept.keep(task("said"), at(5), true);
        kept.keep(task("usual"), at(6), false);
        kept.keep(task("changed"), at(7), true);
        kept.keep(task("changed"), at(8), false);
        kept.keep(task("gone"), at(9), true);
        kept.keep(task("removed"), at(9), true);
        kept.gone(&task("removed"));
        assert_eq!(kept.until(&task("usual")), Some(at(6)));
        std::fs::remove_dir(task("gone")).unwrap();
        let next = Kept::load(&root, &state);
        let known: Vec<_> = ["said", "usual", "changed", "gone", "removed"].map(|name| next.until(&task(name))).into();
        assert_eq!(known, [Some(at(5)), None, None, None, None]);
        // The whole job goes.
        next.gone(&root.join("workitems/j:1"));
        assert_eq!(std::fs::read_dir(state.join(DIR)).unwrap().count(), 0);
    }
}
