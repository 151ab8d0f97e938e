//! A workflow after everything about it was checked: variables expanded, files
//! found, names resolved to positions.

use std::path::PathBuf;
use std::time::Duration;

use kiln_proto::common::v1::{ApplicationPackageReference, Resources};

/// A workflow that can be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workflow {
    /// Id of this run; the default id of its job.
    pub run: String,
    /// Limit of the whole run.
    pub timeout: Option<Duration>,
    /// Groups of files to stage.
    pub inputs: Vec<Input>,
    /// The nodes.
    pub pool: PoolPart,
    /// The job.
    pub job: JobPart,
    /// Its tasks, templates expanded.
    pub tasks: Vec<TaskPart>,
    /// Where the files of tasks go.
    pub outputs: Vec<Output>,
}

/// A container, and whether it is the user's or made for the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// The user named it: it stays.
    pub keep: bool,
}

/// Files that are staged together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Name in the workflow file.
    pub name: String,
    /// Where the files go.
    pub container: Container,
    /// The files.
    pub files: Vec<InputFile>,
}

/// One file to stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputFile {
    /// Where it is.
    pub local: PathBuf,
    /// Name of its blob, and its path in the working directory of tasks.
    pub blob: String,
    /// Bytes.
    pub size: u64,
}

/// Where files of tasks go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Name in the workflow file.
    pub name: String,
    /// Container that receives them.
    pub container: Container,
    /// Local directory that receives them at the end.
    pub fetch: Option<PathBuf>,
}

/// The nodes of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolPart {
    /// Id of the pool.
    pub id: String,
    /// The user named it: it is used if it exists, and stays.
    pub keep: bool,
    /// Number of nodes.
    pub nodes: i32,
    /// Slots of each.
    pub slots: i32,
    /// Fill one node before the next.
    pub pack: bool,
    /// Size in the provider's words.
    pub vm_size: String,
    /// Application packages that every node installs.
    pub packages: Vec<ApplicationPackageReference>,
    /// What runs when a node joins.
    pub start: Option<StartPart>,
}

/// Start task of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartPart {
    /// Command line as the agent takes it.
    pub command_line: String,
    /// Files in its working directory.
    pub resources: Vec<Resource>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Retries; -1 without end.
    pub retries: i32,
    /// Tasks wait for its success.
    pub wait: bool,
}

/// Settings of the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobPart {
    /// Id of the job.
    pub id: String,
    /// -1000 to 1000.
    pub priority: i32,
    /// Tasks that may run at once.
    pub max_parallel: Option<i32>,
    /// Limit from the creation of the job.
    pub timeout: Option<Duration>,
    /// Retries of tasks; -1 without end.
    pub retries: i32,
    /// Environment of every task.
    pub env: Vec<(String, String)>,
    /// What runs on a node before the first task there.
    pub prepare: Option<NodeTaskPart>,
    /// What runs on those nodes when the job has ended.
    pub release: Option<NodeTaskPart>,
}

/// Preparation or release of a job on its nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTaskPart {
    /// Command line as the agent takes it.
    pub command_line: String,
    /// Files in its working directory.
    pub resources: Vec<Resource>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Limit of one run.
    pub timeout: Option<Duration>,
    /// Retries; -1 without end; none of a release.
    pub retries: Option<i32>,
    /// Tasks wait for the success of the preparation.
    pub wait: bool,
}

/// What a process gets in its working directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
    /// All files of an input (position), below a directory.
    Input {
        /// Position in [`Workflow::inputs`].
        input: usize,
        /// Directory; empty for the working directory itself.
        path: String,
    },
    /// One file of an input, under its own name.
    File {
        /// Position in [`Workflow::inputs`].
        input: usize,
        /// Position in [`Input::files`].
        file: usize,
    },
    /// A file from anywhere.
    Url {
        /// http(s) URL.
        url: String,
        /// Path in the working directory.
        path: String,
        /// Octal mode; empty for the default.
        mode: String,
    },
    /// Blobs of a container of the account.
    Container {
        /// Its name.
        container: String,
        /// Beginning of the blob names.
        prefix: String,
        /// Directory; empty for the working directory itself.
        path: String,
    },
}

/// When output files are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Exit code 0.
    Success,
    /// Any other.
    Failure,
    /// Either.
    Always,
}

/// Files of one task that are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskOutput {
    /// Pattern relative to the working directory.
    pub files: String,
    /// Position in [`Workflow::outputs`].
    pub output: usize,
    /// Blob name or directory prefix.
    pub path: String,
    /// Condition.
    pub when: When,
}

/// One task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskPart {
    /// Its id.
    pub id: String,
    /// Command line as the agent takes it.
    pub command_line: String,
    /// Files in its working directory.
    pub resources: Vec<Resource>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Application packages that its node installs.
    pub packages: Vec<ApplicationPackageReference>,
    /// Positions of tasks that have to succeed before.
    pub depends_on: Vec<usize>,
    /// Slots it needs.
    pub slots: i32,
    /// What it needs beside slots.
    pub needs: Option<Resources>,
    /// Limit of one run.
    pub timeout: Option<Duration>,
    /// Retries; absent: the job's.
    pub retries: Option<i32>,
    /// Files to keep.
    pub outputs: Vec<TaskOutput>,
}
