//! The record of what ran here, for whoever wants to hold the service against it (`record_file`, off by default); what is
//! in it says [`kiln_node::record`].
//!
//! An attempt that cannot be recorded is not run: a line of `Starting` is in the file before the first process of the
//! attempt, also before an instance's coordination command. When the agent is killed its guard writes the end of its life.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use kiln_node::JoinConfig;
use kiln_node::record::{AttemptName, Event, Line};
use kiln_time::Timestamp;

use crate::domain::failure::Failure;
use crate::domain::ledger::Key;

/// Tell the guard of the file and of the node.
const FILE: &str = "KILN_RECORD_FILE";
const NODE: &str = "KILN_RECORD_NODE";

/// The record of one life of the agent; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Record(Option<Arc<Opened>>);

#[derive(Debug)]
struct Opened {
    file: File,
    path: PathBuf,
    node: String,
    incarnation: String,
}

impl Record {
    /// Opens the file, if one is set, and writes that the life begins. Call it when nothing of earlier ones runs. Blocks
    /// for as long as the system takes.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn begin(path: Option<&Path>, join: &JoinConfig, incarnation: &str) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let node = format!("{}/{}/{}", join.account, join.pool_id, join.node_id);
        let open = Opened::new(path, node, incarnation).with_context(|| format!("record_file {}", path.display()))?;
        open.write(Event::LifeBegan { pid: std::process::id() })
            .with_context(|| format!("record_file {}", path.display()))?;
        Ok(Self(Some(Arc::new(open))))
    }

    /// What the guard has to be told.
    pub fn for_guard(&self) -> Vec<(String, String)> {
        let Some(open) = &self.0 else { return Vec::new() };
        let path = open.path.to_string_lossy().into_owned();
        vec![(FILE.to_owned(), path), (NODE.to_owned(), open.node.clone())]
    }

    /// The first process of the attempt is about to be started. Blocks for a moment if there is a record.
    ///
    /// # Errors
    /// `RecordFailed`: then it must not be.
    pub fn starting(&self, key: &Key) -> Result<Recorded, Failure> {
        let Some(open) = &self.0 else { return Ok(Recorded(None)) };
        let attempt = name(key);
        open.write(Event::Starting { attempt: attempt.clone() }).map_err(|error| {
            Failure::server("RecordFailed", format!("the node's record of attempts cannot be written: {error}"))
        })?;
        Ok(Recorded(Some(Begun { open: open.clone(), attempt, exit_code: None })))
    }
}

/// The guard's part: writes that nothing of the life runs any more, if there is a record.
///
/// # Errors
/// The file cannot be written.
pub fn life_over(incarnation: &str) -> anyhow::Result<()> {
    by_guard(incarnation, Event::LifeOver)
}

/// The guard's part: writes that nothing runs any more of what was started before, if there is a record.
///
/// # Errors
/// The file cannot be written.
pub fn lease_over(incarnation: &str) -> anyhow::Result<()> {
    by_guard(incarnation, Event::LeaseOver)
}

fn by_guard(incarnation: &str, event: Event) -> anyhow::Result<()> {
    let (Some(path), Ok(node)) = (std::env::var_os(FILE), std::env::var(NODE)) else { return Ok(()) };
    let path = PathBuf::from(path);
    let written = Opened::new(&path, node, incarnation).and_then(|open| open.write(event));
    written.with_context(|| format!("record_file {}", path.display()))
}

/// An attempt of which the record says that it started. When this is dropped the record says that it has ended, so
/// drop it after the last process.
#[derive(Debug)]
pub struct Recorded(Option<Begun>);

#[derive(Debug)]
struct Begun {
    open: Arc<Opened>,
    attempt: AttemptName,
    exit_code: Option<i32>,
}

impl Recorded {
    /// The task's own process has this id.
    pub fn running(&self, pid: i32) {
        if let (Some(begun), Ok(pid)) = (&self.0, u32::try_from(pid)) {
            begun.note(Event::Running { attempt: begun.attempt.clone(), pid });
        }
    }

    /// The task's own process ended so, and nothing of it is left.
    pub fn ended(mut self, exit_code: i32) {
        if let Some(begun) = &mut self.0 {
            begun.exit_code = Some(exit_code);
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        // After a panic nobody knows what runs; the end of the agent's life tells then.
        if !std::thread::panicking() {
            self.note(Event::Ended { attempt: self.attempt.clone(), exit_code: self.exit_code });
        }
    }
}

impl Begun {
    /// What comes after the start cannot be taken back; whoever reads the record sees that it ends too early.
    fn note(&self, event: Event) {
        if let Err(error) = self.open.write(event) {
            tracing::error!(path = %self.open.path.display(), %error, "the record of attempts cannot be written");
        }
    }
}

impl Opened {
    fn new(path: &Path, node: String, incarnation: &str) -> std::io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        Ok(Self { file, path: path.to_owned(), node, incarnation: incarnation.to_owned() })
    }

    /// One line is one write: it is there whole when this process is killed afterwards, and between the lines of others.
    fn write(&self, event: Event) -> std::io::Result<()> {
        let time = u64::try_from(Timestamp::now().as_micros()).unwrap_or(0);
        let line = Line { time, node: self.node.clone(), incarnation: self.incarnation.clone(), event };
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        (&self.file).write_all(&text)
    }
}

fn name(key: &Key) -> AttemptName {
    AttemptName {
        job: key.job.to_string(),
        task: key.task.to_string(),
        number: key.number,
        attempt: key.attempt,
        instance: key.instance,
    }
}
