//! What the witnesses say. Each kind is a file of JSON lines; a directory holds any number of each kind, told apart by how
//! their names begin: `clients`, `nodes`, `final`, `events`, `watchers` (and end in `.jsonl`).

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use kiln_node::record::Line;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Everything that was said.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// What clients were told.
    pub clients: Vec<Said>,
    /// What agents wrote down.
    pub nodes: Vec<Line>,
    /// What the server says of each task when all is over.
    pub finals: Vec<Final>,
    /// The event log, in its order.
    pub events: Vec<Logged>,
    /// What watchers saw, each in its order.
    pub watched: Vec<Watched>,
}

/// A task. Histories use a name once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskName {
    /// Its job.
    pub job: String,
    /// Its own id.
    pub task: String,
}

impl TaskName {
    /// As events name it.
    pub fn subject(&self) -> String {
        format!("jobs/{}/tasks/{}", self.job, self.task)
    }

    /// From the subject of an event about a task.
    pub fn of_subject(subject: &str) -> Option<Self> {
        let (job, task) = subject.strip_prefix("jobs/")?.split_once("/tasks/")?;
        Some(Self { job: job.to_owned(), task: task.to_owned() })
    }
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.job, self.task)
    }
}

/// What a client asked for, and whether it was acknowledged. A client that got no answer says so: then both outcomes
/// are right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "snake_case")]
pub enum Said {
    /// A task was added.
    Added {
        /// Which.
        #[serde(flatten)]
        name: TaskName,
        /// When the answer came, in microseconds since 1970.
        time: u64,
        /// Whether it came.
        acknowledged: bool,
        /// How the task's command ends, if the client knows.
        exit_code: Option<i32>,
    },
    /// A task was deleted.
    Deleted {
        /// Which.
        #[serde(flatten)]
        name: TaskName,
        /// When the answer came, or when it was given up.
        time: u64,
        /// Whether it came.
        acknowledged: bool,
    },
}

/// The server's word on a task that it still has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Final {
    /// Which.
    #[serde(flatten)]
    pub name: TaskName,
    /// `completed`, or what it is instead.
    pub state: String,
    /// Of its last attempt.
    pub exit_code: Option<i32>,
    /// All that there were.
    pub attempts: Vec<FinalAttempt>,
}

/// The server's word on an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalAttempt {
    /// From 1.
    pub attempt: u32,
    /// If its process ended and the server heard so.
    pub exit_code: Option<i32>,
}

/// An event as monitor-svc has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logged {
    /// Which store announced it.
    pub source: String,
    /// From 1, without holes within a source.
    pub sequence: u64,
    /// For example `job.task.finished`.
    #[serde(rename = "type")]
    pub kind: String,
    /// For example `jobs/j1/tasks/t7`.
    pub subject: String,
    /// Of events about an attempt.
    pub attempt: Option<u32>,
    /// Of completions.
    pub exit_code: Option<i32>,
}

impl Logged {
    /// Whether it tells that a task has completed.
    pub fn is_completion(&self) -> bool {
        self.kind == "job.task.finished"
    }
}

/// What a watcher tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "watch", rename_all = "snake_case")]
pub enum Watched {
    /// It watched this job from its first event to its end, over however many connections.
    Job {
        /// Names the watcher.
        watcher: String,
        /// The job.
        job: String,
    },
    /// It saw this event.
    Saw {
        /// Names the watcher.
        watcher: String,
        /// The event.
        #[serde(flatten)]
        event: Logged,
    },
}

/// Why histories cannot be read.
#[derive(Debug)]
pub struct Unreadable {
    /// The file, or the directory.
    pub path: PathBuf,
    /// From 1; 0 if it is about the file.
    pub line: usize,
    /// What is wrong.
    pub why: String,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.why)
    }
}

impl std::error::Error for Unreadable {}

impl History {
    /// Reads all histories of a directory.
    ///
    /// # Errors
    /// The file and line that cannot be read; a file with a name of no kind; a directory in which no client says anything,
    /// since nothing was promised then.
    pub fn read(directory: &Path) -> Result<Self, Unreadable> {
        let of_directory = |why: String| Unreadable { path: directory.to_owned(), line: 0, why };
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(|error| of_directory(error.to_string()))? {
            let path = entry.map_err(|error| of_directory(error.to_string()))?.path();
            if path.extension().is_some_and(|extension| extension == "jsonl") {
                paths.push(path);
            }
        }
        paths.sort();
        let mut history = Self::default();
        for path in paths {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            match name.split(['-', '.']).next() {
                Some("clients") => lines(&path, &mut history.clients)?,
                Some("nodes") => lines(&path, &mut history.nodes)?,
                Some("final") => lines(&path, &mut history.finals)?,
                Some("events") => lines(&path, &mut history.events)?,
                Some("watchers") => lines(&path, &mut history.watched)?,
                _ => {
                    let why = "its name begins with none of clients, nodes, final, events, watchers".to_owned();
                    return Err(Unreadable { path, line: 0, why });
                }
            }
        }
        if !history.clients.iter().any(|said| matches!(said, Said::Added { acknowledged: true, .. })) {
            return Err(of_directory("no client was acknowledged anything: there is nothing to check".to_owned()));
        }
        Ok(history)
    }
}

fn lines<T: DeserializeOwned>(path: &Path, into: &mut Vec<T>) -> Result<(), Unreadable> {
    let wrong = |line, why| Unreadable { path: path.to_owned(), line, why };
    let file = File::open(path).map_err(|error| wrong(0, error.to_string()))?;
    for (number, line) in (1..).zip(BufReader::new(file).lines()) {
        let line = line.map_err(|error| wrong(number, error.to_string()))?;
        if !line.trim().is_empty() {
            into.push(serde_json::from_str(&line).map_err(|error| wrong(number, error.to_string()))?);
        }
    }
    Ok(())
}
