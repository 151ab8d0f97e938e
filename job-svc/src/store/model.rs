//! Rows and writes of the [`Store`](super::Store).

use std::sync::Arc;

use bytes::Bytes;
use kiln_etag::Conditions;
use kiln_ids::{AccountName, JobId, NodeId, PoolId, TaskId};
use kiln_proto::common::v1::NameValue;
use kiln_proto::job::v1::{JobConstraints, JobSpec, NodeTaskInfo, OnAllTasksComplete, TaskConstraints};
use kiln_store::StoreError;
use kiln_store::outbox::NewEvent;
use kiln_time::Timestamp;

use super::leases::Fence;
use crate::domain::Error;
use crate::domain::dependencies::Dependencies;
use crate::domain::job::{JobEvent, JobLife, JobState};
use crate::domain::schedule::ScheduleId;
use crate::domain::spec::TaskFacts;
use crate::domain::subtask::Subtask;
use crate::domain::task::{AttemptRecord, Outcome, Phase, Task, TaskState};

/// A request that is answered once, however often it is sent.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Name of the RPC.
    pub method: &'static str,
    /// Chosen by the caller; empty for none.
    pub id: String,
}

/// The outcome of a request, or the answer it got before.
#[derive(Debug, Clone)]
pub enum Answered<T> {
    /// It was done now.
    New(T),
    /// It was done before; the encoded answer.
    Before(Vec<u8>),
}

/// A job as it is kept.
#[derive(Debug, Clone)]
pub struct JobRow {
    /// Number of the row.
    pub row: u64,
    /// Owner.
    pub account: AccountName,
    /// Its id.
    pub job: JobId,
    /// Pool of its tasks.
    pub pool: PoolId,
    /// Its state and what led there.
    pub life: JobLife,
    /// Goes up with every change of the row.
    pub version: u64,
    /// When it was created.
    pub created: Timestamp,
    /// When a client wrote it last.
    pub last_modified: Timestamp,
    /// What its creator decided, with later updates.
    pub spec: Arc<JobSpec>,
}

/// A job to be created.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Owner.
    pub account: AccountName,
    /// Its id.
    pub job: JobId,
    /// Pool of its tasks.
    pub pool: PoolId,
    /// What its creator decided.
    pub spec: JobSpec,
    /// Trace context of the caller.
    pub traceparent: String,
    /// Now.
    pub now: Timestamp,
    /// How the answer is remembered.
    pub encode: fn(&JobRow) -> Vec<u8>,
}

/// A client's change of a job.
#[derive(Debug, Clone)]
pub enum JobChange {
    /// Disable, enable, terminate, delete.
    Event(JobEvent, fn(&JobRow) -> Vec<u8>),
    /// Other settings.
    Update(Box<JobUpdate>, fn(&JobRow) -> Vec<u8>),
}

/// Settings of a job that replace the present ones.
#[derive(Debug, Clone, Default)]
pub struct JobUpdate {
    /// See [`JobSpec`].
    pub priority: Option<i32>,
    /// See [`JobSpec`].
    pub max_parallel_tasks: Option<i32>,
    /// See [`JobSpec`].
    pub allow_task_preemption: Option<bool>,
    /// See [`JobSpec`].
    pub constraints: Option<JobConstraints>,
    /// Only while the job is disabled.
    pub pool: Option<PoolId>,
    /// Cannot go back to "no action".
    pub on_all_tasks_complete: Option<OnAllTasksComplete>,
    /// See [`JobSpec`].
    pub metadata: Option<Vec<NameValue>>,
    /// Whether the pool made for the job stays after its end.
    pub keep_alive: Option<bool>,
}

/// A task as it is kept.
#[derive(Debug, Clone)]
pub struct TaskRow {
    /// Number of the row; grows with age, never used twice.
    pub row: u64,
    /// Row of its job.
    pub job: u64,
    /// Its id.
    pub id: TaskId,
    /// What the scheduler needs of its spec.
    pub facts: TaskFacts,
    /// When it was added.
    pub created: Timestamp,
    /// When a client wrote it last.
    pub last_modified: Timestamp,
    /// What changes as it runs.
    pub task: Task,
    /// Its encoded spec.
    pub spec: Bytes,
    /// Trace context of its submission.
    pub traceparent: Arc<str>,
}

/// A task to be added.
#[derive(Debug, Clone)]
pub struct NewTask {
    /// Its id.
    pub id: TaskId,
    /// What the scheduler needs of its spec.
    pub facts: TaskFacts,
    /// Its encoded spec.
    pub spec: Bytes,
    /// It needs a job that performs the job actions of exit conditions.
    pub names_job_action: bool,
    /// What it waits for, in a job that uses dependencies.
    pub depends: Option<Dependencies>,
}

/// Tasks to be added to one job.
#[derive(Debug, Clone)]
pub struct AddTasks {
    /// Owner.
    pub account: AccountName,
    /// Their job.
    pub job: JobId,
    /// The tasks, or why one is refused already.
    pub tasks: Vec<Result<NewTask, Error>>,
    /// A task with the same id and the same spec counts as added.
    pub same_is_added: bool,
    /// For repeated calls.
    pub request: Request,
    /// How the answer is remembered.
    pub encode: fn(&Added) -> Vec<u8>,
    /// Trace context of the caller.
    pub traceparent: Arc<str>,
    /// Now.
    pub now: Timestamp,
}

/// What became of [`AddTasks`].
#[derive(Debug, Clone)]
pub struct Added {
    /// Row of the job.
    pub job: u64,
    /// Pool of the job.
    pub pool: PoolId,
    /// In the order of the request.
    pub results: Vec<AddResult>,
}

/// What became of one task.
#[derive(Debug, Clone)]
pub struct AddResult {
    /// Id as given.
    pub id: String,
    /// The new row, or why there is none.
    pub outcome: Result<AddedTask, Error>,
}

/// A task that is there now.
#[derive(Debug, Clone)]
pub struct AddedTask {
    /// The row; absent if the same task was there before.
    pub new: Option<TaskRow>,
    /// When a client wrote it last.
    pub last_modified: Timestamp,
}

/// New constraints of a task.
#[derive(Debug, Clone)]
pub struct TaskUpdate {
    /// Replace those in the spec.
    pub constraints: Option<TaskConstraints>,
    /// Out of them.
    pub max_retries: i32,
    /// Conditions on the record.
    pub condition: Conditions,
    /// For repeated calls.
    pub request: Request,
    /// How the answer is remembered; the job is given for its id.
    pub encode: fn(&JobRow, &TaskRow) -> Vec<u8>,
    /// Now.
    pub now: Timestamp,
}

/// What became of a deletion.
#[derive(Debug, Clone)]
pub enum Deleted {
    /// The row is gone.
    Gone(JobRow, TaskRow),
    /// It waits or runs: the scheduler has to end it first.
    Live(JobRow, TaskRow),
}

/// A task that waits or runs, as the scheduler loads it.
#[derive(Debug, Clone)]
pub struct OpenTask {
    /// Number of the row.
    pub row: u64,
    /// What the scheduler needs of its spec.
    pub facts: TaskFacts,
    /// Number of the latest attempt.
    pub attempt: u32,
    /// Retries so far.
    pub retry_count: u32,
    /// Requeues that the service decided so far.
    pub internal_retries: u32,
    /// It waits because a user activated it again.
    pub reactivated: bool,
    /// Node it runs on.
    pub node: Option<Arc<NodeId>>,
}

/// A task that may have become too old.
#[derive(Debug, Clone)]
pub struct OldTask {
    /// Owner.
    pub account: AccountName,
    /// Pool of its job.
    pub pool: PoolId,
    /// Row of its job.
    pub job: u64,
    /// Number of its row.
    pub row: u64,
    /// What the scheduler needs of its spec.
    pub facts: TaskFacts,
}

/// A task that waits for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDependant {
    /// Number of its row.
    pub row: u64,
    /// Key of its id.
    pub key: String,
    /// What it waits for.
    pub on: Dependencies,
}

/// What is known of the numbers of a range of ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Those that are satisfied, as ranges, both ends included.
    pub satisfied: Vec<(i32, i32)>,
    /// Those whose tasks have all completed without that.
    pub blocks: Vec<i32>,
}

/// The end of a task that others may wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentWrite {
    /// Row of its job.
    pub job: u64,
    /// Key of its id.
    pub key: String,
    /// Number of its row.
    pub row: u64,
    /// They may run.
    pub satisfies: bool,
}

/// A change of one task by the scheduler.
#[derive(Debug, Clone)]
pub struct TaskWrite {
    /// Number of the row.
    pub row: u64,
    /// Phase and attempt the row must have.
    pub expect: (Phase, u32),
    /// The task from now on.
    pub task: Task,
}

/// Preparation and release of a job on one node.
#[derive(Debug, Clone, PartialEq)]
pub struct JobNodeRow {
    /// Pool of the node.
    pub pool: PoolId,
    /// The node.
    pub node: NodeId,
    /// Life of the agent that said the latest about the preparation.
    pub incarnation: String,
    /// Life of the agent in which the preparation failed while tasks waited.
    pub barred: Option<String>,
    /// A task of the job has begun there.
    pub ran: bool,
    /// The latest word about the preparation.
    pub preparation: Option<NodeTaskInfo>,
    /// The latest word about the release.
    pub release: Option<NodeTaskInfo>,
}

/// News about a job on one node; what is absent stays as it is.
#[derive(Debug, Clone)]
pub struct JobNodeWrite {
    /// Row of the job.
    pub job: u64,
    /// Pool of the node.
    pub pool: PoolId,
    /// The node.
    pub node: Arc<NodeId>,
    /// Life of its agent.
    pub incarnation: String,
    /// The preparation failed in this life while tasks waited for it.
    pub barred: Option<String>,
    /// A task of the job has begun there.
    pub ran: bool,
    /// A word about the preparation.
    pub preparation: Option<NodeTaskInfo>,
    /// A word about the release.
    pub release: Option<NodeTaskInfo>,
}

/// Something that happens to a job, decided by the scheduler.
#[derive(Debug, Clone)]
pub struct JobWrite {
    /// Row of the job.
    pub job: u64,
    /// What happens. An event the state does not know any more is dropped.
    pub event: JobEvent,
    /// Only if exactly so many tasks wait or run: those of which the scheduler
    /// knows that they never will.
    pub only_if_open: Option<usize>,
}

/// An answer to remember.
#[derive(Debug, Clone)]
pub struct NewAnswer {
    /// The request.
    pub request: Request,
    /// Its encoded answer.
    pub answer: Vec<u8>,
}

/// Everything a scheduler decided in one step.
#[derive(Debug, Clone)]
pub struct Commit {
    /// Owner of the pool.
    pub account: AccountName,
    /// Which replica must still have the pool; nothing is written otherwise.
    /// Schedulers always say it.
    pub fence: Option<Fence>,
    /// Tasks that changed; every row at most once.
    pub tasks: Vec<TaskWrite>,
    /// Of these, the ends of tasks in jobs that use dependencies.
    pub parents: Vec<ParentWrite>,
    /// Instances of multi-instance tasks, as they are now.
    pub subtasks: Vec<(u64, Subtask)>,
    /// Attempts that became history.
    pub history: Vec<(u64, AttemptRecord)>,
    /// Tasks that are removed (after [`Commit::tasks`] was written).
    pub deleted: Vec<u64>,
    /// Changes of the counts of jobs.
    pub counts: Vec<(u64, CountsDelta)>,
    /// What happens to jobs.
    pub jobs: Vec<JobWrite>,
    /// News about jobs on nodes, in order.
    pub job_nodes: Vec<JobNodeWrite>,
    /// Announcements.
    pub events: Vec<NewEvent>,
    /// Answers to remember.
    pub answers: Vec<NewAnswer>,
    /// Now.
    pub now: Timestamp,
    /// Counts the commits of one scheduler.
    pub number: u64,
}

/// A job of [`Commit::jobs`] after the commit.
#[derive(Debug, Clone)]
pub enum JobFate {
    /// Its row, changed or not.
    Row(Box<JobRow>),
    /// It is gone.
    Gone(u64),
}

impl JobFate {
    /// Whether the schedule of a job may have something to do now.
    pub fn ends_job_of_schedule(&self) -> bool {
        match self {
            Self::Row(row) => row.life.state == JobState::Completed && ScheduleId::of_job(&row.job).is_some(),
            Self::Gone(_) => false,
        }
    }
}

/// Why a commit did not happen. Nothing of it was written.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A task is not in the state the scheduler thought it was in.
    #[error("task row {row} is not in the expected state")]
    Stale {
        /// Which.
        row: u64,
    },
    /// The pool belongs to somebody else now.
    #[error("pool {pool} is not owned in epoch {epoch} any more")]
    Fenced {
        /// Which.
        pool: PoolId,
        /// In which the scheduler thought to own it.
        epoch: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Which number of a job's counts a task belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bucket {
    /// Waits.
    Active,
    /// Runs.
    Running,
    /// Completed well.
    Succeeded,
    /// Completed otherwise.
    Failed,
}

impl Bucket {
    /// Where a task is counted.
    pub fn of(task: &Task) -> Self {
        match &task.state {
            TaskState::Active => Self::Active,
            TaskState::Running { .. } => Self::Running,
            TaskState::Completed { outcome: Outcome::Succeeded, .. } => Self::Succeeded,
            TaskState::Completed { .. } => Self::Failed,
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Active => 0,
            Self::Running => 1,
            Self::Succeeded => 2,
            Self::Failed => 3,
        }
    }
}

/// A change of a job's counts: tasks, then slots, by [`Bucket`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CountsDelta {
    /// Tasks in each bucket.
    pub tasks: [i64; 4],
    /// Their slots.
    pub slots: [i64; 4],
}

/// A job's counts.
pub type Counts = CountsDelta;

impl CountsDelta {
    /// A task of `slots` leaves one bucket and enters another.
    pub fn moved(&mut self, from: Option<Bucket>, to: Option<Bucket>, slots: u16) {
        for (bucket, sign) in [(from, -1), (to, 1)] {
            if let Some(bucket) = bucket {
                self.tasks[bucket.index()] += sign;
                self.slots[bucket.index()] += sign * i64::from(slots);
            }
        }
    }

    /// Whether it changes nothing.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// Tasks that wait or run.
    pub fn open(&self) -> i64 {
        self.tasks[0] + self.tasks[1]
    }
}
