//! The life of one attempt.
//!
//! | state \ event | GivenBack | Begin | BeginFailed | Coordinated | Started | PreFailed | Exited | Uploaded | Kept | UploadFailed | Interrupted | WallClock | Stop | Acknowledged |
//! |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
//! | Waiting | Ended, report | StagingIn, report | Ended, report | - | - | - | - | - | - | - | Ended, report (1) | - | marked, kill (2) | - |
//! | StagingIn | - | - | - | Ready, report (5) | Running | Ended, report | - | - | - | - | Ended, report (1) | - | marked, kill (2) | - |
//! | Ready | - | - | - | - | Running | Ended, report | - | - | - | - | Ended, report (1) | - | marked, kill (2) | - |
//! | Running | - | - | - | - | - | - | StagingOut, or Ended if stopped (3) | - | - | - | - | marked, kill (2) | marked, kill (2) | - |
//! | StagingOut | - | - | - | - | - | - | - | Ended, report | Ended, report (4) | Ended, report | Ended, report (1) | - | marked, kill (2) | - |
//! | Ended | - | - | - | - | - | - | - | - | - | - | - | - | report again | forgotten |
//!
//! `-` is rejected: the event does not belong to the state. Waiting is for a
//! free slot or for the job's preparation task; Ready is an instance of a multi-instance task that
//! holds its place.
//! (1) Only after a stop; without one it is rejected. (2) A repeated stop
//! changes nothing, except that any other cause replaces the wall clock.
//! (3) A process that was killed because its time was over or because it broke a
//! limit goes on to StagingOut: its files may tell its author why. (4) Only after an exit
//! code other than 0 within its time: only that is tried again. (5) Ended if the
//! coordination command failed, or if the attempt was stopped meanwhile.

use kiln_time::Timestamp;

use super::failure::Failure;

/// Why an attempt is stopped from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopCause {
    /// job-svc asked for it.
    Requested,
    /// The lease is over; job-svc may give the task to another node.
    LeaseLost,
    /// The agent ends in order.
    Shutdown,
}

/// A stop that has been asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopping {
    /// The process may go on.
    No,
    /// Its maximum wall-clock time is over.
    WallClock,
    /// See [`StopCause`].
    Cause(StopCause),
}

/// Where an attempt stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    /// It has no slot yet, or the job's preparation task has not ended here.
    Waiting {
        /// When it arrived here.
        since: Timestamp,
        /// Whether it has to end early.
        stopping: Stopping,
    },
    /// Its files are fetched; there is no process yet.
    StagingIn {
        /// When it began here.
        start: Timestamp,
        /// Whether it has to end early.
        stopping: Stopping,
    },
    /// An instance of a multi-instance task: its coordination command has ended
    /// well. The primary waits for all others, these wait for its end.
    Ready {
        /// When the attempt began here.
        start: Timestamp,
        /// Whether it has to end early.
        stopping: Stopping,
    },
    /// Its process runs.
    Running {
        /// When the attempt began here.
        start: Timestamp,
        /// Whether it has to end early.
        stopping: Stopping,
    },
    /// Its process has ended; output files are uploaded.
    StagingOut {
        /// When the attempt began here.
        start: Timestamp,
        /// How the process ended.
        exit_code: i32,
        /// Killed because its time was over.
        expired: bool,
        /// The limit of the task that it broke.
        broken: Option<Failure>,
        /// Whether it has to end early.
        stopping: Stopping,
    },
    /// Over; kept until job-svc has acknowledged the result.
    Ended(Ended),
}

/// The result of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// When the attempt began here.
    pub start: Timestamp,
    /// When it was over.
    pub end: Timestamp,
    /// Of the process, if one ended.
    pub exit_code: Option<i32>,
    /// Present exactly if the attempt failed.
    pub failure: Option<Failure>,
    /// What ended it.
    pub cause: Cause,
    /// Its output files wait for the last try.
    pub outputs_kept: bool,
}

/// What ended an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The process ended by itself.
    Exited,
    /// There was no process: files, directory or launch failed.
    PreProcessingError,
    /// The process ended, its files could not be uploaded.
    FileUploadError,
    /// Killed because its time was over.
    WallClockExpired,
    /// Stopped as job-svc asked.
    Stopped,
    /// Not the task's fault.
    AgentFailure,
    /// The job's preparation task failed here.
    PreparationFailed,
    /// Given back before it began.
    NotStarted,
}

/// What happens to an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It shall not begin here.
    GivenBack,
    /// It does not wait any more.
    Begin,
    /// The job's preparation task failed.
    BeginFailed(Failure),
    /// The coordination command of an instance ended.
    Coordinated {
        /// 128 + n for signal n.
        code: i32,
        /// Killed because its time was over.
        expired: bool,
    },
    /// Its process was started.
    Started,
    /// It could not be started.
    PreFailed(Failure),
    /// Its process ended.
    Exited {
        /// 128 + n for signal n.
        code: i32,
        /// The limit of the task that it broke.
        broken: Option<Failure>,
    },
    /// All output files are where they belong.
    Uploaded,
    /// A retry follows: its output files are uploaded after the last one.
    Kept,
    /// An output file could not be uploaded.
    UploadFailed(Failure),
    /// Fetching or uploading ended because of a stop.
    Interrupted,
    /// Its maximum wall-clock time is over.
    WallClock,
    /// It has to end.
    Stop(StopCause),
    /// job-svc has the result.
    Acknowledged,
}

/// What has to be done because of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Kill the process or end the transfer.
    Kill,
    /// Tell job-svc the new state.
    Report,
}

/// Outcome of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The state from now on; `None` when the attempt is forgotten.
    pub next: Option<Attempt>,
    /// What has to be done.
    pub effect: Effect,
}

/// The event does not belong to the state; nothing changes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event} does not happen to an attempt that is {state}")]
pub struct Rejected {
    /// Name of the state.
    pub state: &'static str,
    /// Name of the event.
    pub event: &'static str,
}

impl Attempt {
    /// A new attempt begins.
    pub fn begin(now: Timestamp) -> Self {
        Self::StagingIn { start: now, stopping: Stopping::No }
    }

    /// A new attempt waits for the job's preparation task.
    pub fn wait(now: Timestamp) -> Self {
        Self::Waiting { since: now, stopping: Stopping::No }
    }

    /// Whether something of it still runs on the node.
    pub fn is_live(&self) -> bool {
        !matches!(self, Self::Ended(_))
    }

    /// When it began.
    pub fn start(&self) -> Timestamp {
        match self {
            Self::Waiting { since, .. } => *since,
            Self::StagingIn { start, .. }
            | Self::Ready { start, .. }
            | Self::Running { start, .. }
            | Self::StagingOut { start, .. } => *start,
            Self::Ended(ended) => ended.start,
        }
    }

    /// For logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Waiting { .. } => "waiting",
            Self::StagingIn { .. } => "staging in",
            Self::Ready { .. } => "ready",
            Self::Running { .. } => "running",
            Self::StagingOut { .. } => "staging out",
            Self::Ended(_) => "ended",
        }
    }

    /// What `event` makes of the attempt.
    ///
    /// # Errors
    /// [`Rejected`] if the event does not belong to the state.
    pub fn apply(&self, event: Event, now: Timestamp) -> Result<Transition, Rejected> {
        let rejected = || Rejected { state: self.name(), event: event_name(&event) };
        match self {
            Self::Waiting { since, stopping } => match event {
                Event::GivenBack => {
                    let failure = Failure::server("Unknown", "the node gave the task back before it began");
                    // Whatever the reason: nothing has happened.
                    Ok(ended(not_started(*since, now, failure, Stopping::No, Cause::NotStarted)))
                }
                Event::Begin => Ok(tell(Self::StagingIn { start: now, stopping: *stopping })),
                Event::BeginFailed(failure) => {
                    Ok(ended(not_started(*since, now, failure, *stopping, Cause::PreparationFailed)))
                }
                Event::Interrupted => interrupted(*since, now, None, *stopping).ok_or_else(rejected),
                Event::Stop(cause) => Ok(mark(*stopping, cause, |stopping| Self::Waiting { since: *since, stopping })),
                Event::Coordinated { .. }
                | Event::Started
                | Event::PreFailed(_)
                | Event::Exited { .. }
                | Event::Uploaded
                | Event::Kept
                | Event::UploadFailed(_)
                | Event::WallClock
                | Event::Acknowledged => Err(rejected()),
            },
            Self::StagingIn { start, stopping } => match event {
                Event::Coordinated { code, expired } => Ok(match stopping {
                    Stopping::Cause(cause) => ended(stopped(*start, now, Some(code), *cause)),
                    Stopping::No | Stopping::WallClock if code == 0 && !expired => {
                        tell(Self::Ready { start: *start, stopping: *stopping })
                    }
                    Stopping::No | Stopping::WallClock => ended(uncoordinated(*start, now, code, expired)),
                }),
                Event::Started => Ok(keep(Self::Running { start: *start, stopping: *stopping })),
                Event::PreFailed(failure) => {
                    Ok(ended(not_started(*start, now, failure, *stopping, Cause::PreProcessingError)))
                }
                Event::Interrupted => interrupted(*start, now, None, *stopping).ok_or_else(rejected),
                Event::Stop(cause) => {
                    Ok(mark(*stopping, cause, |stopping| Self::StagingIn { start: *start, stopping }))
                }
                Event::GivenBack
                | Event::Begin
                | Event::BeginFailed(_)
                | Event::Exited { .. }
                | Event::Uploaded
                | Event::Kept
                | Event::UploadFailed(_)
                | Event::WallClock
                | Event::Acknowledged => Err(rejected()),
            },
            Self::Ready { start, stopping } => match event {
                Event::Started => Ok(keep(Self::Running { start: *start, stopping: *stopping })),
                Event::PreFailed(failure) => {
                    Ok(ended(not_started(*start, now, failure, *stopping, Cause::PreProcessingError)))
                }
                Event::Interrupted => interrupted(*start, now, None, *stopping).ok_or_else(rejected),
                Event::Stop(cause) => Ok(mark(*stopping, cause, |stopping| Self::Ready { start: *start, stopping })),
                Event::GivenBack
                | Event::Begin
                | Event::BeginFailed(_)
                | Event::Coordinated { .. }
                | Event::Exited { .. }
                | Event::Uploaded
                | Event::Kept
                | Event::UploadFailed(_)
                | Event::WallClock
                | Event::Acknowledged => Err(rejected()),
            },
            Self::Running { start, stopping } => match event {
                Event::Exited { code, broken } => match stopping {
                    Stopping::Cause(cause) => Ok(ended(stopped(*start, now, Some(code), *cause))),
                    Stopping::No | Stopping::WallClock => Ok(keep(Self::StagingOut {
                        start: *start,
                        exit_code: code,
                        expired: *stopping == Stopping::WallClock,
                        broken,
                        stopping: Stopping::No,
                    })),
                },
                Event::WallClock => Ok(match stopping {
                    Stopping::No => Transition {
                        next: Some(Self::Running { start: *start, stopping: Stopping::WallClock }),
                        effect: Effect::Kill,
                    },
                    Stopping::WallClock | Stopping::Cause(_) => keep(self.clone()),
                }),
                Event::Stop(cause) => Ok(mark(*stopping, cause, |stopping| Self::Running { start: *start, stopping })),
                Event::GivenBack
                | Event::Begin
                | Event::BeginFailed(_)
                | Event::Coordinated { .. }
                | Event::Started
                | Event::PreFailed(_)
                | Event::Uploaded
                | Event::Kept
                | Event::UploadFailed(_)
                | Event::Interrupted
                | Event::Acknowledged => Err(rejected()),
            },
            Self::StagingOut { start, exit_code, expired, broken, stopping } => match event {
                Event::Uploaded => Ok(ended(finished(*start, now, *exit_code, *expired, broken.clone()))),
                Event::Kept if !*expired && *exit_code != 0 => Ok(ended(Ended {
                    outputs_kept: true,
                    ..finished(*start, now, *exit_code, *expired, broken.clone())
                })),
                Event::UploadFailed(failure) => Ok(ended(Ended {
                    start: *start,
                    end: now,
                    exit_code: Some(*exit_code),
                    failure: Some(failure),
                    cause: Cause::FileUploadError,
                    outputs_kept: false,
                })),
                Event::Interrupted => interrupted(*start, now, Some(*exit_code), *stopping).ok_or_else(rejected),
                Event::Stop(cause) => Ok(mark(*stopping, cause, |stopping| Self::StagingOut {
                    start: *start,
                    exit_code: *exit_code,
                    expired: *expired,
                    broken: broken.clone(),
                    stopping,
                })),
                Event::GivenBack
                | Event::Begin
                | Event::BeginFailed(_)
                | Event::Coordinated { .. }
                | Event::Started
                | Event::PreFailed(_)
                | Event::Exited { .. }
                | Event::Kept
                | Event::WallClock
                | Event::Acknowledged => Err(rejected()),
            },
            Self::Ended(_) => match event {
                Event::Stop(_) => Ok(tell(self.clone())),
                Event::Acknowledged => Ok(Transition { next: None, effect: Effect::None }),
                Event::GivenBack
                | Event::Begin
                | Event::BeginFailed(_)
                | Event::Coordinated { .. }
                | Event::Started
                | Event::PreFailed(_)
                | Event::Exited { .. }
                | Event::Uploaded
                | Event::Kept
                | Event::UploadFailed(_)
                | Event::Interrupted
                | Event::WallClock => Err(rejected()),
            },
        }
    }
}

fn keep(next: Attempt) -> Transition {
    Transition { next: Some(next), effect: Effect::None }
}

fn tell(next: Attempt) -> Transition {
    Transition { next: Some(next), effect: Effect::Report }
}

fn ended(result: Ended) -> Transition {
    tell(Attempt::Ended(result))
}

/// A stop broke off what was under way; `None` if there was no stop.
fn interrupted(start: Timestamp, now: Timestamp, exit_code: Option<i32>, stopping: Stopping) -> Option<Transition> {
    match stopping {
        Stopping::Cause(cause) => Some(ended(stopped(start, now, exit_code, cause))),
        Stopping::No | Stopping::WallClock => None,
    }
}

/// It failed before its process could be started.
fn not_started(start: Timestamp, end: Timestamp, failure: Failure, stopping: Stopping, cause: Cause) -> Ended {
    match stopping {
        Stopping::Cause(cause) => stopped(start, end, None, cause),
        Stopping::No | Stopping::WallClock => {
            Ended { start, end, exit_code: None, failure: Some(failure), cause, outputs_kept: false }
        }
    }
}

/// The coordination command of an instance failed: so has the instance.
fn uncoordinated(start: Timestamp, end: Timestamp, exit_code: i32, expired: bool) -> Ended {
    let mut ended = finished(start, end, exit_code, expired, None);
    if let Some(failure) = &mut ended.failure {
        failure.message = format!("the coordination command: {}", failure.message);
    }
    ended
}

fn mark(current: Stopping, cause: StopCause, state: impl FnOnce(Stopping) -> Attempt) -> Transition {
    match current {
        Stopping::Cause(_) => keep(state(current)),
        Stopping::No | Stopping::WallClock => {
            Transition { next: Some(state(Stopping::Cause(cause))), effect: Effect::Kill }
        }
    }
}

/// The process ran to its end, or to the end of its time or its limits.
fn finished(start: Timestamp, end: Timestamp, exit_code: i32, expired: bool, broken: Option<Failure>) -> Ended {
    let (failure, cause) = if expired {
        let message = "the process was killed because its maximum wall-clock time was over";
        (Some(Failure::user("TaskEnded", message)), Cause::WallClockExpired)
    } else {
        ((exit_code != 0).then(|| broken.unwrap_or_else(|| Failure::exit_code(exit_code))), Cause::Exited)
    };
    Ended { start, end, exit_code: Some(exit_code), failure, cause, outputs_kept: false }
}

/// Stopped from outside.
fn stopped(start: Timestamp, end: Timestamp, exit_code: Option<i32>, cause: StopCause) -> Ended {
    let (failure, cause) = match cause {
        StopCause::Requested => (Failure::user("TaskEnded", "the task was stopped on request"), Cause::Stopped),
        StopCause::LeaseLost => {
            let message = "the node could not reach the service and stopped its tasks when its lease was over";
            (Failure::server("Unknown", message), Cause::AgentFailure)
        }
        StopCause::Shutdown => (Failure::server("Unknown", "the node's agent was stopped"), Cause::AgentFailure),
    };
    Ended { start, end, exit_code, failure: Some(failure), cause, outputs_kept: false }
}

fn event_name(event: &Event) -> &'static str {
    match event {
        Event::GivenBack => "GivenBack",
        Event::Begin => "Begin",
        Event::BeginFailed(_) => "BeginFailed",
        Event::Coordinated { .. } => "Coordinated",
        Event::Started => "Started",
        Event::PreFailed(_) => "PreFailed",
        Event::Exited { .. } => "Exited",
        Event::Uploaded => "Uploaded",
        Event::Kept => "Kept",
        Event::UploadFailed(_) => "UploadFailed",
        Event::Interrupted => "Interrupted",
        Event::WallClock => "WallClock",
        Event::Stop(_) => "Stop",
        Event::Acknowledged => "Acknowledged",
    }
}

#[cfg(test)]
mod tests;
