//! The life of one attempt.
//!
//! | state \ event | Started | PreFailed | Exited | Uploaded | Kept | UploadFailed | Interrupted | WallClock | Stop | Acknowledged |
//! |---|---|---|---|---|---|---|---|---|---|---|
//! | StagingIn | Running | Ended, report | - | - | - | - | Ended, report (1) | - | marked, kill (2) | - |
//! | Running | - | - | StagingOut, or Ended if stopped (3) | - | - | - | - | marked, kill (2) | marked, kill (2) | - |
//! | StagingOut | - | - | - | Ended, report | Ended, report (4) | Ended, report | Ended, report (1) | - | marked, kill (2) | - |
//! | Ended | - | - | - | - | - | - | - | - | report again | forgotten |
//!
//! `-` is rejected: the event does not belong to the state.
//! (1) Only after a stop; without one it is rejected. (2) A repeated stop
//! changes nothing, except that any other cause replaces the wall clock.
//! (3) A process that was killed because its time was over goes on to StagingOut: its
//! files may tell its author why it took so long. (4) Only after an exit code other than 0
//! within its time: only that is tried again.

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
    /// Its files are fetched; there is no process yet.
    StagingIn {
        /// When it began here.
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
}

/// What happens to an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Its process was started.
    Started,
    /// It could not be started.
    PreFailed(Failure),
    /// Its process ended.
    Exited {
        /// 128 + n for signal n.
        code: i32,
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
    /// Send the result to job-svc.
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

    /// Whether something of it still runs on the node.
    pub fn is_live(&self) -> bool {
        !matches!(self, Self::Ended(_))
    }

    /// When it began.
    pub fn start(&self) -> Timestamp {
        match self {
            Self::StagingIn { start, .. } | Self::Running { start, .. } | Self::StagingOut { start, .. } => *start,
            Self::Ended(ended) => ended.start,
        }
    }

    /// For logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::StagingIn { .. } => "staging in",
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
            Self::StagingIn { start, stopping } => match event {
                Event::Started => Ok(keep(Self::Running { start: *start, stopping: *stopping })),
                Event::PreFailed(failure) => Ok(ended(match stopping {
                    Stopping::Cause(cause) => stopped(*start, now, None, *cause),
                    Stopping::No | Stopping::WallClock => Ended {
                        start: *start,
                        end: now,
                        exit_code: None,
                        failure: Some(failure),
                        cause: Cause::PreProcessingError,
                        outputs_kept: false,
                    },
                })),
                Event::Interrupted => match stopping {
                    Stopping::Cause(cause) => Ok(ended(stopped(*start, now, None, *cause))),
                    Stopping::No | Stopping::WallClock => Err(rejected()),
                },
                Event::Stop(cause) => {
                    Ok(mark(*stopping, cause, |stopping| Self::StagingIn { start: *start, stopping }))
                }
                Event::Exited { .. }
                | Event::Uploaded
                | Event::Kept
                | Event::UploadFailed(_)
                | Event::WallClock
                | Event::Acknowledged => Err(rejected()),
            },
            Self::Running { start, stopping } => match event {
                Event::Exited { code } => match stopping {
                    Stopping::Cause(cause) => Ok(ended(stopped(*start, now, Some(code), *cause))),
                    Stopping::No | Stopping::WallClock => Ok(keep(Self::StagingOut {
                        start: *start,
                        exit_code: code,
                        expired: *stopping == Stopping::WallClock,
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
                Event::Started
                | Event::PreFailed(_)
                | Event::Uploaded
                | Event::Kept
                | Event::UploadFailed(_)
                | Event::Interrupted
                | Event::Acknowledged => Err(rejected()),
            },
            Self::StagingOut { start, exit_code, expired, stopping } => match event {
                Event::Uploaded => Ok(ended(finished(*start, now, *exit_code, *expired))),
                Event::Kept if !*expired && *exit_code != 0 => {
                    Ok(ended(Ended { outputs_kept: true, ..finished(*start, now, *exit_code, *expired) }))
                }
                Event::UploadFailed(failure) => Ok(ended(Ended {
                    start: *start,
                    end: now,
                    exit_code: Some(*exit_code),
                    failure: Some(failure),
                    cause: Cause::FileUploadError,
                    outputs_kept: false,
                })),
                Event::Interrupted => match stopping {
                    Stopping::Cause(cause) => Ok(ended(stopped(*start, now, Some(*exit_code), *cause))),
                    Stopping::No | Stopping::WallClock => Err(rejected()),
                },
                Event::Stop(cause) => Ok(mark(*stopping, cause, |stopping| Self::StagingOut {
                    start: *start,
                    exit_code: *exit_code,
                    expired: *expired,
                    stopping,
                })),
                Event::Started
                | Event::PreFailed(_)
                | Event::Exited { .. }
                | Event::Kept
                | Event::WallClock
                | Event::Acknowledged => Err(rejected()),
            },
            Self::Ended(_) => match event {
                Event::Stop(_) => Ok(Transition { next: Some(self.clone()), effect: Effect::Report }),
                Event::Acknowledged => Ok(Transition { next: None, effect: Effect::None }),
                Event::Started
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

fn ended(result: Ended) -> Transition {
    Transition { next: Some(Attempt::Ended(result)), effect: Effect::Report }
}

fn mark(current: Stopping, cause: StopCause, state: impl FnOnce(Stopping) -> Attempt) -> Transition {
    match current {
        Stopping::Cause(_) => keep(state(current)),
        Stopping::No | Stopping::WallClock => {
            Transition { next: Some(state(Stopping::Cause(cause))), effect: Effect::Kill }
        }
    }
}

/// The process ran to its end, or to the end of its time.
fn finished(start: Timestamp, end: Timestamp, exit_code: i32, expired: bool) -> Ended {
    let (failure, cause) = if expired {
        let message = "the process was killed because its maximum wall-clock time was over";
        (Some(Failure::user("TaskEnded", message)), Cause::WallClockExpired)
    } else {
        ((exit_code != 0).then(|| Failure::exit_code(exit_code)), Cause::Exited)
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
mod tests {
    use super::*;

    const T1: Timestamp = Timestamp::from_micros(1);
    const T2: Timestamp = Timestamp::from_micros(2);

    fn failure() -> Failure {
        Failure::user("BlobNotFound", "gone")
    }

    fn events() -> Vec<Event> {
        vec![
            Event::Started,
            Event::PreFailed(failure()),
            Event::Exited { code: 3 },
            Event::Uploaded,
            Event::Kept,
            Event::UploadFailed(failure()),
            Event::Interrupted,
            Event::WallClock,
            Event::Stop(StopCause::Requested),
            Event::Acknowledged,
        ]
    }

    fn staging_in(stopping: Stopping) -> Attempt {
        Attempt::StagingIn { start: T1, stopping }
    }
    fn running(stopping: Stopping) -> Attempt {
        Attempt::Running { start: T1, stopping }
    }
    fn staging_out(exit_code: i32, expired: bool, stopping: Stopping) -> Attempt {
        Attempt::StagingOut { start: T1, exit_code, expired, stopping }
    }

    /// One word for a cell: the state afterwards, the cause if it ended, the effect.
    fn cell(state: &Attempt, event: Event) -> String {
        match state.apply(event, T2) {
            Err(_) => "-".to_owned(),
            Ok(Transition { next: None, .. }) => "forgotten".to_owned(),
            Ok(Transition { next: Some(next), effect }) => {
                let name = match &next {
                    Attempt::Ended(ended) => format!("{:?}", ended.cause),
                    other => other.name().to_owned(),
                };
                match effect {
                    Effect::None => name,
                    Effect::Kill => format!("{name}!kill"),
                    Effect::Report => format!("{name}!report"),
                }
            }
        }
    }

    #[test]
    fn every_cell_of_the_table() {
        use Stopping::{No, WallClock};
        let asked = Stopping::Cause(StopCause::Requested);
        let ended = Attempt::Ended(finished(T1, T2, 0, false));
        let pre = "PreProcessingError!report";
        let table: Vec<(Attempt, [&str; 10])> = vec![
            (staging_in(No), ["running", pre, "-", "-", "-", "-", "-", "-", "staging in!kill", "-"]),
            (
                staging_in(asked),
                ["running", "Stopped!report", "-", "-", "-", "-", "Stopped!report", "-", "staging in", "-"],
            ),
            (running(No), ["-", "-", "staging out", "-", "-", "-", "-", "running!kill", "running!kill", "-"]),
            (running(WallClock), ["-", "-", "staging out", "-", "-", "-", "-", "running", "running!kill", "-"]),
            (running(asked), ["-", "-", "Stopped!report", "-", "-", "-", "-", "running", "running", "-"]),
            (
                staging_out(0, false, No),
                ["-", "-", "-", "Exited!report", "-", "FileUploadError!report", "-", "-", "staging out!kill", "-"],
            ),
            (
                staging_out(3, false, No),
                [
                    "-",
                    "-",
                    "-",
                    "Exited!report",
                    "Exited!report",
                    "FileUploadError!report",
                    "-",
                    "-",
                    "staging out!kill",
                    "-",
                ],
            ),
            (
                staging_out(137, true, No),
                [
                    "-",
                    "-",
                    "-",
                    "WallClockExpired!report",
                    "-",
                    "FileUploadError!report",
                    "-",
                    "-",
                    "staging out!kill",
                    "-",
                ],
            ),
            (
                staging_out(0, false, asked),
                [
                    "-",
                    "-",
                    "-",
                    "Exited!report",
                    "-",
                    "FileUploadError!report",
                    "Stopped!report",
                    "-",
                    "staging out",
                    "-",
                ],
            ),
            (ended, ["-", "-", "-", "-", "-", "-", "-", "-", "Exited!report", "forgotten"]),
        ];
        for (state, expected) in table {
            for (event, expected) in events().into_iter().zip(expected) {
                let name = event_name(&event);
                assert_eq!(cell(&state, event), expected, "{state:?} {name}");
            }
        }
    }

    #[test]
    fn results_say_what_happened() {
        let result = |state: Attempt, event| match state.apply(event, T2).unwrap().next {
            Some(Attempt::Ended(ended)) => ended,
            other => panic!("not ended: {other:?}"),
        };
        let ok = result(staging_out(0, false, Stopping::No), Event::Uploaded);
        assert_eq!((ok.exit_code, ok.failure, ok.start, ok.end), (Some(0), None, T1, T2));
        let failed = result(staging_out(3, false, Stopping::No), Event::Uploaded);
        assert_eq!(failed.failure.unwrap().code, "FailureExitCode");
        let kept = result(staging_out(3, false, Stopping::No), Event::Kept);
        assert!(kept.outputs_kept && kept.failure.is_some());
        let expired = result(staging_out(137, true, Stopping::No), Event::Uploaded);
        assert_eq!((expired.exit_code, expired.failure.unwrap().code), (Some(137), "TaskEnded"));
        let lost = result(running(Stopping::Cause(StopCause::LeaseLost)), Event::Exited { code: 137 });
        assert_eq!(
            (lost.cause, lost.failure.unwrap().category),
            (Cause::AgentFailure, super::super::failure::Category::Server)
        );
    }
}
