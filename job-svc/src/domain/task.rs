//! The state machine of a task.
//!
//! | state \ event | assign | start | finish | retry | requeue | give up | terminate | reactivate |
//! |---|---|---|---|---|---|---|---|---|
//! | active | preparing or running, attempt + 1 | - | - | - | - | - | completed | `TaskNotCompleted` |
//! | preparing | - | running | completed | active, retries + 1 | active | completed | completed | `TaskNotCompleted` |
//! | running | - | running | completed | active, retries + 1 | active | completed | completed | `TaskNotCompleted` |
//! | completed | - | - | - | - | - | - | `TaskCompleted` | active if failed, else `TaskSucceeded` |
//!
//! *Preparing* is a running task that waits for its job's preparation on its
//! node ([`TaskState::Running`] has both: an attempt is bound to a node).
//!
//! `-` is refused as [`Rejected::Impossible`]: the scheduler never asks for it
//! unless its picture is wrong. Events that speak of an attempt are refused as
//! [`Rejected::Stale`] when it is not the current one.
//!
//! What one attempt did is in the task until the next begins; [`Transition`]
//! hands it out at that moment, to be kept as history.

use std::sync::Arc;
use std::time::Duration;

use kiln_ids::NodeId;
use kiln_proto::common::v1::{ErrorCategory, FailureInfo, NameValue};
use kiln_time::Timestamp;

pub use super::cause::{GiveUpCause, RequeueCause};

/// Failure code of tasks that were ended by request or by their wall clock.
pub const TASK_ENDED: &str = "TaskEnded";
/// Failure code of tasks whose process ended with a code other than 0.
pub const FAILURE_EXIT_CODE: &str = "FailureExitCode";
/// Requeues that the service decides for one task at most. A task that takes
/// its nodes down with it has to end some day; one that meets this many losses
/// without being their cause is a matter for people, too.
pub const MAX_INTERNAL_RETRIES: u32 = 50;

/// A task that is older than this ends, whatever it does.
pub const MAX_LIFE: Duration = Duration::from_secs(180 * 24 * 60 * 60);

/// Tasks that were added before this are too old.
pub fn oldest(now: Timestamp) -> Timestamp {
    now.minus(MAX_LIFE)
}

/// What changes about a task as it is run.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Where it stands.
    pub state: TaskState,
    /// Since when.
    pub since: Timestamp,
    /// The state before, and since when it was in that.
    pub previous: Option<(Phase, Timestamp)>,
    /// Number of the latest attempt; 0 before the first.
    pub attempt: u32,
    /// Retries after exit codes other than 0.
    pub retry_count: u32,
    /// When the latest of them was decided.
    pub last_retry: Option<Timestamp>,
    /// Requeues that a user caused.
    pub requeue_count: u32,
    /// When the latest of them happened.
    pub last_requeue: Option<Timestamp>,
    /// Requeues that the service decided.
    pub internal_retry_count: u32,
}

/// Where a task stands, with the data of that state.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskState {
    /// Waits for a node.
    Active,
    /// Bound to a node.
    Running {
        /// Which.
        node: Arc<NodeId>,
        /// When it was bound.
        assigned: Timestamp,
        /// When the agent began; absent until it said so.
        started: Option<Timestamp>,
        /// It waits for the preparation of its job on this node.
        preparing: bool,
    },
    /// Over.
    Completed {
        /// When.
        end: Timestamp,
        /// How.
        outcome: Outcome,
        /// Where it ran last; absent if it never ran.
        run: Option<Run>,
        /// Exit code of the process, if one ended.
        exit_code: Option<i32>,
        /// Why it failed; present exactly if it did.
        failure: Option<FailureInfo>,
    },
}

/// The name of a state alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// See [`TaskState::Active`].
    Active,
    /// [`TaskState::Running`], before its job's preparation is done there.
    Preparing,
    /// See [`TaskState::Running`].
    Running,
    /// See [`TaskState::Completed`].
    Completed,
}

/// The place and the times of an attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Node it was bound to.
    pub node: Arc<NodeId>,
    /// When it was bound.
    pub assigned: Timestamp,
    /// When the agent began.
    pub started: Option<Timestamp>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0, everything uploaded.
    Succeeded,
    /// Anything else that the task itself did.
    Failed,
    /// Ended by request.
    Terminated,
    /// Given back because a user wanted it (disable, node action).
    Requeued,
    /// Given back because its node was lost.
    NodeLost,
    /// Given back to make room for something more urgent.
    Preempted,
}

/// What ended an attempt, as its agent saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndCause {
    /// The process ended.
    Exited,
    /// Resource files, directory or launch failed.
    PreProcessingError,
    /// The process ended, but its files could not be uploaded.
    FileUploadError,
    /// The task's wall clock ran out.
    WallClockExpired,
    /// Stopped as we asked.
    Stopped,
    /// The agent's fault.
    AgentFailure,
    /// The job's preparation task failed on this node.
    PreparationFailed,
    /// It was assigned ahead of a free slot and given back before it began.
    NotStarted,
}

impl EndCause {
    /// Whether the attempt began before it ended, for sure.
    pub fn has_begun(self) -> bool {
        match self {
            Self::Exited | Self::PreProcessingError | Self::FileUploadError | Self::WallClockExpired => true,
            Self::Stopped | Self::AgentFailure | Self::PreparationFailed | Self::NotStarted => false,
        }
    }
}

/// The agent's report of an end.
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptEnd {
    /// When the attempt began, by the agent's clock.
    pub start: Option<Timestamp>,
    /// When it ended.
    pub end: Timestamp,
    /// Exit code, if a process ended.
    pub exit_code: Option<i32>,
    /// Why it failed.
    pub failure: Option<FailureInfo>,
    /// What ended it.
    pub cause: EndCause,
    /// Its output files were not uploaded because a retry was announced.
    pub outputs_kept: bool,
}

/// One attempt that is over.
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptRecord {
    /// Its number.
    pub number: u32,
    /// Where and when it ran.
    pub run: Run,
    /// When it ended.
    pub end: Timestamp,
    /// Exit code, if a process ended.
    pub exit_code: Option<i32>,
    /// Why it failed.
    pub failure: Option<FailureInfo>,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it was given back; absent if it was not.
    pub requeued: Option<RequeueCause>,
}

/// What happens to a task.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskEvent {
    /// Bind it to a node: the next attempt begins.
    Assign {
        /// Which.
        node: Arc<NodeId>,
        /// The job's preparation has to end well there first.
        preparing: bool,
    },
    /// The agent began with the attempt.
    Start {
        /// Attempt that was reported.
        attempt: u32,
        /// When, by the agent's clock.
        at: Timestamp,
    },
    /// The attempt ended and the task with it.
    Finish {
        /// Attempt that was reported.
        attempt: u32,
        /// What was reported.
        end: AttemptEnd,
    },
    /// The attempt ended with an exit code that is tried again.
    Retry {
        /// Attempt that was reported.
        attempt: u32,
        /// What was reported.
        end: AttemptEnd,
    },
    /// The attempt is over without being the task's fault.
    Requeue {
        /// Attempt that is over.
        attempt: u32,
        /// Whose wish it was.
        cause: RequeueCause,
    },
    /// The attempt is over, and there will be no other.
    GiveUp {
        /// Attempt that is over.
        attempt: u32,
        /// Why.
        cause: GiveUpCause,
    },
    /// A user, the job or a node action ends the task.
    Terminate,
    /// A user wants a failed task to run again.
    Reactivate,
}

/// A task after an event.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// The task as it is now.
    pub task: Task,
    /// An attempt that moved into history.
    pub history: Option<AttemptRecord>,
}

/// Why an event does not apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// It speaks of another attempt than the current one.
    #[error("the attempt is not the current one")]
    Stale,
    /// The state knows no such event.
    #[error("the state does not know this event")]
    Impossible,
    /// See [`super::Error::TaskCompleted`].
    #[error("the task has completed")]
    TaskCompleted,
    /// See [`super::Error::TaskNotCompleted`].
    #[error("the task has not completed")]
    TaskNotCompleted,
    /// See [`super::Error::TaskSucceeded`].
    #[error("the task succeeded")]
    TaskSucceeded,
}

impl From<Rejected> for super::Error {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::TaskCompleted => Self::TaskCompleted,
            Rejected::TaskSucceeded => Self::TaskSucceeded,
            Rejected::TaskNotCompleted | Rejected::Stale | Rejected::Impossible => Self::TaskNotCompleted,
        }
    }
}

/// What becomes of a task whose attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The task is over.
    Finish,
    /// The next attempt, counted as a retry.
    Retry,
    /// The next attempt, not counted against the task.
    Requeue,
}

/// The rule of retries: only exit codes other than 0 are tried again, `max`
/// times, or without end if it is -1. A retry that was announced to the agent
/// is due in any case: the task's output files still wait for the last try.
pub fn judge(end: &AttemptEnd, retry_count: u32, max: i32) -> Verdict {
    match end.cause {
        EndCause::Exited if end.exit_code.is_some_and(|code| code != 0) => {
            if end.outputs_kept || retry_follows(retry_count, max) { Verdict::Retry } else { Verdict::Finish }
        }
        EndCause::Exited | EndCause::PreProcessingError | EndCause::FileUploadError | EndCause::WallClockExpired => {
            Verdict::Finish
        }
        EndCause::Stopped | EndCause::AgentFailure | EndCause::PreparationFailed | EndCause::NotStarted => {
            Verdict::Requeue
        }
    }
}

/// Whether an exit code other than 0 of the present try leads to the next.
pub fn retry_follows(retry_count: u32, max: i32) -> bool {
    max < 0 || i64::from(retry_count) < i64::from(max)
}

impl TaskState {
    /// The name of the state.
    pub fn phase(&self) -> Phase {
        match self {
            Self::Active => Phase::Active,
            Self::Running { preparing: true, .. } => Phase::Preparing,
            Self::Running { preparing: false, .. } => Phase::Running,
            Self::Completed { .. } => Phase::Completed,
        }
    }
}

impl Task {
    /// A task that was just added.
    pub fn new(now: Timestamp) -> Self {
        Self {
            state: TaskState::Active,
            since: now,
            previous: None,
            attempt: 0,
            retry_count: 0,
            last_retry: None,
            requeue_count: 0,
            last_requeue: None,
            internal_retry_count: 0,
        }
    }

    /// The task after `event`.
    ///
    /// # Errors
    /// [`Rejected`] if the event does not apply; nothing has changed then.
    pub fn apply(&self, event: TaskEvent, now: Timestamp) -> Result<Transition, Rejected> {
        match (&self.state, event) {
            (TaskState::Active, TaskEvent::Assign { node, preparing }) => {
                let state = TaskState::Running { node, assigned: now, started: None, preparing };
                let mut task = self.moved(state, now);
                task.attempt += 1;
                Ok(Transition { task, history: None })
            }
            (TaskState::Active, TaskEvent::Terminate) => {
                let state = TaskState::Completed {
                    end: now,
                    outcome: Outcome::Terminated,
                    run: None,
                    exit_code: None,
                    failure: Some(ended_failure()),
                };
                Ok(Transition { task: self.moved(state, now), history: None })
            }
            (TaskState::Running { node, assigned, preparing, .. }, TaskEvent::Start { attempt, at }) => {
                self.expect(attempt)?;
                let state =
                    TaskState::Running { node: node.clone(), assigned: *assigned, started: Some(at), preparing: false };
                // Without preparation it has been in this state since it was bound.
                let task = if *preparing { self.moved(state, now) } else { Self { state, ..self.clone() } };
                Ok(Transition { task, history: None })
            }
            (TaskState::Running { node, assigned, started, .. }, TaskEvent::Finish { attempt, end }) => {
                self.expect(attempt)?;
                let run = Run { node: node.clone(), assigned: *assigned, started: started.or(end.start) };
                let failure = failure_of(&end);
                let outcome = if failure.is_some() { Outcome::Failed } else { Outcome::Succeeded };
                let state =
                    TaskState::Completed { end: end.end, outcome, run: Some(run), exit_code: end.exit_code, failure };
                Ok(Transition { task: self.moved(state, now), history: None })
            }
            (TaskState::Running { node, assigned, started, .. }, TaskEvent::Retry { attempt, end }) => {
                self.expect(attempt)?;
                let history = AttemptRecord {
                    number: attempt,
                    run: Run { node: node.clone(), assigned: *assigned, started: started.or(end.start) },
                    end: end.end,
                    exit_code: end.exit_code,
                    failure: failure_of(&end),
                    outcome: Outcome::Failed,
                    requeued: None,
                };
                let mut task = self.moved(TaskState::Active, now);
                task.retry_count += 1;
                task.last_retry = Some(now);
                Ok(Transition { task, history: Some(history) })
            }
            (TaskState::Running { node, assigned, started, .. }, TaskEvent::Requeue { attempt, cause }) => {
                self.expect(attempt)?;
                let history = AttemptRecord {
                    number: attempt,
                    run: Run { node: node.clone(), assigned: *assigned, started: *started },
                    end: now,
                    exit_code: None,
                    failure: None,
                    outcome: cause.outcome(),
                    requeued: Some(cause),
                };
                let mut task = self.moved(TaskState::Active, now);
                if cause.is_wanted() {
                    task.requeue_count += 1;
                    task.last_requeue = Some(now);
                }
                task.internal_retry_count += u32::from(cause.is_internal());
                Ok(Transition { task, history: Some(history) })
            }
            (TaskState::Running { node, assigned, started, .. }, TaskEvent::GiveUp { attempt, cause }) => {
                self.expect(attempt)?;
                let state = TaskState::Completed {
                    end: now,
                    outcome: Outcome::Failed,
                    run: Some(Run { node: node.clone(), assigned: *assigned, started: *started }),
                    exit_code: None,
                    failure: Some(cause.failure()),
                };
                Ok(Transition { task: self.moved(state, now), history: None })
            }
            (TaskState::Running { node, assigned, started, .. }, TaskEvent::Terminate) => {
                let state = TaskState::Completed {
                    end: now,
                    outcome: Outcome::Terminated,
                    run: Some(Run { node: node.clone(), assigned: *assigned, started: *started }),
                    exit_code: None,
                    failure: Some(ended_failure()),
                };
                Ok(Transition { task: self.moved(state, now), history: None })
            }
            (TaskState::Completed { outcome: Outcome::Succeeded, .. }, TaskEvent::Reactivate) => {
                Err(Rejected::TaskSucceeded)
            }
            (TaskState::Completed { end, outcome, run, exit_code, failure }, TaskEvent::Reactivate) => {
                let history = run.as_ref().map(|run| AttemptRecord {
                    number: self.attempt,
                    run: run.clone(),
                    end: *end,
                    exit_code: *exit_code,
                    failure: failure.clone(),
                    outcome: *outcome,
                    requeued: None,
                });
                let mut task = self.moved(TaskState::Active, now);
                task.retry_count = 0;
                task.last_retry = None;
                task.internal_retry_count = 0;
                Ok(Transition { task, history })
            }
            (TaskState::Completed { .. }, TaskEvent::Terminate) => Err(Rejected::TaskCompleted),
            (TaskState::Active | TaskState::Running { .. }, TaskEvent::Reactivate) => Err(Rejected::TaskNotCompleted),
            (
                TaskState::Active,
                TaskEvent::Start { .. }
                | TaskEvent::Finish { .. }
                | TaskEvent::Retry { .. }
                | TaskEvent::Requeue { .. }
                | TaskEvent::GiveUp { .. },
            )
            | (TaskState::Running { .. }, TaskEvent::Assign { .. })
            | (
                TaskState::Completed { .. },
                TaskEvent::Assign { .. }
                | TaskEvent::Start { .. }
                | TaskEvent::Finish { .. }
                | TaskEvent::Retry { .. }
                | TaskEvent::Requeue { .. }
                | TaskEvent::GiveUp { .. },
            ) => Err(Rejected::Impossible),
        }
    }

    /// The latest attempt as history would show it; absent before the first and
    /// while the task waits for the next (history has it then).
    pub fn latest_attempt(&self) -> Option<LatestAttempt> {
        match &self.state {
            TaskState::Active => None,
            TaskState::Running { node, assigned, started, .. } => Some(LatestAttempt::Running {
                number: self.attempt,
                run: Run { node: node.clone(), assigned: *assigned, started: *started },
            }),
            TaskState::Completed { end, outcome, run, exit_code, failure } => run.as_ref().map(|run| {
                LatestAttempt::Over(AttemptRecord {
                    number: self.attempt,
                    run: run.clone(),
                    end: *end,
                    exit_code: *exit_code,
                    failure: failure.clone(),
                    outcome: *outcome,
                    requeued: None,
                })
            }),
        }
    }

    fn expect(&self, attempt: u32) -> Result<(), Rejected> {
        if attempt == self.attempt { Ok(()) } else { Err(Rejected::Stale) }
    }

    fn moved(&self, state: TaskState, now: Timestamp) -> Self {
        Self { state, since: now, previous: Some((self.state.phase(), self.since)), ..self.clone() }
    }
}

/// See [`Task::latest_attempt`].
#[derive(Debug, Clone, PartialEq)]
pub enum LatestAttempt {
    /// It runs.
    Running {
        /// Its number.
        number: u32,
        /// Where and since when.
        run: Run,
    },
    /// It ended and the task with it.
    Over(AttemptRecord),
}

/// The failure of an end, made up where the agent gave none.
pub(super) fn failure_of(end: &AttemptEnd) -> Option<FailureInfo> {
    if end.failure.is_some() {
        return end.failure.clone();
    }
    match end.cause {
        EndCause::Exited => match end.exit_code {
            Some(0) => None,
            code => Some(FailureInfo {
                category: ErrorCategory::User.into(),
                code: FAILURE_EXIT_CODE.to_owned(),
                message: "The task process exited with an unexpected exit code".to_owned(),
                details: code
                    .map(|code| NameValue { name: "ExitCode".to_owned(), value: code.to_string() })
                    .into_iter()
                    .collect(),
            }),
        },
        EndCause::WallClockExpired | EndCause::Stopped => Some(ended_failure()),
        EndCause::PreProcessingError
        | EndCause::FileUploadError
        | EndCause::AgentFailure
        | EndCause::PreparationFailed
        | EndCause::NotStarted => Some(FailureInfo {
            category: ErrorCategory::Server.into(),
            code: "Unknown".to_owned(),
            message: "The node gave no reason for the failure".to_owned(),
            details: Vec::new(),
        }),
    }
}

fn ended_failure() -> FailureInfo {
    FailureInfo {
        category: ErrorCategory::User.into(),
        code: TASK_ENDED.to_owned(),
        message: "The task was ended by request".to_owned(),
        details: Vec::new(),
    }
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
