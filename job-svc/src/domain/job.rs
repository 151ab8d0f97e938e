//! The state machine of a job.
//!
//! | state \ event | disable | enable | terminate | delete | drained |
//! |---|---|---|---|---|---|
//! | active | disabling | 409 | terminating | deleting | - |
//! | disabling | disabling | 409 | terminating | deleting | disabled |
//! | disabled | disabling | enabling | terminating | deleting | - |
//! | enabling | 409 | 409 | terminating | deleting | active |
//! | terminating | `JobBeingTerminated` | same | same | deleting | completed |
//! | completed | `JobCompleted` | same | same | deleting | - |
//! | deleting | `JobBeingDeleted` | same | same | same | - |
//!
//! The service itself disables and terminates, too: when the wall clock runs
//! out, when all tasks are complete, when a failed task says so. `drained`
//! means that nothing of the job runs any more. All changes of a job's row are
//! made by [`JobState::apply`] inside the transaction, so callers and the
//! scheduler cannot overwrite each other.

use kiln_proto::common::v1::FailureInfo;
use kiln_time::Timestamp;

use super::Error;

/// What happens to running tasks of a job that is disabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DisableTasks {
    /// Stopped, and run again after the job is enabled.
    Requeue,
    /// Stopped for good.
    Terminate,
    /// Run to their end.
    Wait,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    /// Tasks are placed.
    Active,
    /// No new tasks; the running ones are dealt with.
    Disabling(DisableTasks),
    /// No tasks run.
    Disabled,
    /// On the way back to active.
    Enabling,
    /// Running tasks are stopped.
    Terminating,
    /// Over.
    Completed,
    /// The record is being removed.
    Deleting,
}

/// What happens to a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEvent {
    /// Stop placing tasks.
    Disable(DisableTasks),
    /// Place tasks again.
    Enable,
    /// End it, for this reason.
    Terminate(String),
    /// Remove it.
    Delete,
    /// Nothing of it runs any more.
    Drained,
}

/// Reason of a job that ended because its time was over.
pub const REASON_WALL_CLOCK: &str = "MaxWallClockTimeExpiry";
/// Reason of a job that ended because all its tasks had.
pub const REASON_ALL_COMPLETE: &str = "AllTasksComplete";
/// Reason of a job that its manager's end ended.
pub const REASON_MANAGER: &str = "JMComplete";
/// Reason of a job that a failed task ended.
pub const REASON_TASK_FAILED: &str = "TaskFailed";
/// Reason of a job that a user ended without giving one.
pub const REASON_USER: &str = "UserTerminate";

impl JobState {
    /// The state's name on the wire of Azure Batch.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabling(_) => "disabling",
            Self::Disabled => "disabled",
            Self::Enabling => "enabling",
            Self::Terminating => "terminating",
            Self::Completed => "completed",
            Self::Deleting => "deleting",
        }
    }

    /// Whether tasks may be added.
    ///
    /// # Errors
    /// Why not.
    pub fn check_add(self) -> Result<(), Error> {
        match self {
            Self::Active | Self::Disabling(_) | Self::Disabled | Self::Enabling => Ok(()),
            Self::Terminating | Self::Completed | Self::Deleting => Err(self.over()),
        }
    }

    /// Whether the job's settings may be changed.
    ///
    /// # Errors
    /// Why not.
    pub fn check_update(self) -> Result<(), Error> {
        self.check_add()
    }

    /// Whether it is a state between two others.
    pub fn is_transitional(self) -> bool {
        matches!(self, Self::Disabling(_) | Self::Enabling | Self::Terminating | Self::Deleting)
    }

    fn over(self) -> Error {
        match self {
            Self::Terminating => Error::JobBeingTerminated,
            Self::Completed => Error::JobCompleted,
            Self::Deleting => Error::JobBeingDeleted,
            Self::Active | Self::Disabling(_) | Self::Disabled | Self::Enabling => {
                Error::JobState { state: self.name(), need: "this needs another state" }
            }
        }
    }

    /// The state after `event`.
    ///
    /// # Errors
    /// Why the event does not apply.
    pub fn apply(self, event: &JobEvent) -> Result<Self, Error> {
        use JobState as S;
        match (self, event) {
            (S::Deleting, _) => Err(Error::JobBeingDeleted),
            (
                S::Active | S::Disabling(_) | S::Disabled | S::Enabling | S::Terminating | S::Completed,
                JobEvent::Delete,
            ) => Ok(S::Deleting),
            (S::Active | S::Disabling(_) | S::Disabled, JobEvent::Disable(tasks)) => Ok(S::Disabling(*tasks)),
            (S::Enabling, JobEvent::Disable(_)) => {
                Err(Error::JobState { state: self.name(), need: "it can be disabled when it is active" })
            }
            (S::Disabled, JobEvent::Enable) => Ok(S::Enabling),
            (S::Active | S::Disabling(_) | S::Enabling, JobEvent::Enable) => {
                Err(Error::JobState { state: self.name(), need: "it can be enabled when it is disabled" })
            }
            (S::Active | S::Disabling(_) | S::Disabled | S::Enabling, JobEvent::Terminate(_)) => Ok(S::Terminating),
            (S::Terminating | S::Completed, JobEvent::Disable(_) | JobEvent::Enable | JobEvent::Terminate(_)) => {
                Err(self.over())
            }
            (S::Disabling(_), JobEvent::Drained) => Ok(S::Disabled),
            (S::Enabling, JobEvent::Drained) => Ok(S::Active),
            (S::Terminating, JobEvent::Drained) => Ok(S::Completed),
            (S::Active | S::Disabled | S::Completed, JobEvent::Drained) => {
                Err(Error::JobState { state: self.name(), need: "there is nothing to wait for" })
            }
        }
    }
}

/// The history of a job's state, as its record shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct JobLife {
    /// Where it stands.
    pub state: JobState,
    /// Since when.
    pub since: Timestamp,
    /// The state before, and since when it was in that.
    pub previous: Option<(JobState, Timestamp)>,
    /// When it ended.
    pub end: Option<Timestamp>,
    /// Why it ended; empty before.
    pub terminate_reason: String,
    /// Why it could not be scheduled: its pool was not made.
    pub scheduling_error: Option<FailureInfo>,
}

impl JobLife {
    /// A job that was just created.
    pub fn new(now: Timestamp) -> Self {
        Self {
            state: JobState::Active,
            since: now,
            previous: None,
            end: None,
            terminate_reason: String::new(),
            scheduling_error: None,
        }
    }

    /// The job after it turned out that it can never run.
    ///
    /// # Errors
    /// If it is ending already.
    pub fn fail(&self, error: FailureInfo, now: Timestamp) -> Result<Self, Error> {
        let life = self.apply(&JobEvent::Terminate(String::new()), now)?;
        Ok(Self { scheduling_error: Some(error), ..life })
    }

    /// The job after `event`.
    ///
    /// # Errors
    /// As [`JobState::apply`].
    pub fn apply(&self, event: &JobEvent, now: Timestamp) -> Result<Self, Error> {
        let state = self.state.apply(event)?;
        let mut life = Self { state, since: now, previous: Some((self.state, self.since)), ..self.clone() };
        if let JobEvent::Terminate(reason) = event {
            life.terminate_reason.clone_from(reason);
        }
        if state == JobState::Completed {
            life.end = Some(now);
        }
        Ok(life)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_of_the_table() {
        use JobState as S;
        let requeue = DisableTasks::Requeue;
        let events = [
            JobEvent::Disable(requeue),
            JobEvent::Enable,
            JobEvent::Terminate("why".into()),
            JobEvent::Delete,
            JobEvent::Drained,
        ];
        let disabling = Ok(S::Disabling(requeue));
        let conflict = Err("OperationInvalidForCurrentState");
        let (ending, over, going) = (Err("JobBeingTerminated"), Err("JobCompleted"), Err("JobBeingDeleted"));
        let table = [
            (S::Active, [disabling, conflict, Ok(S::Terminating), Ok(S::Deleting), conflict]),
            (
                S::Disabling(DisableTasks::Wait),
                [disabling, conflict, Ok(S::Terminating), Ok(S::Deleting), Ok(S::Disabled)],
            ),
            (S::Disabled, [disabling, Ok(S::Enabling), Ok(S::Terminating), Ok(S::Deleting), conflict]),
            (S::Enabling, [conflict, conflict, Ok(S::Terminating), Ok(S::Deleting), Ok(S::Active)]),
            (S::Terminating, [ending, ending, ending, Ok(S::Deleting), Ok(S::Completed)]),
            (S::Completed, [over, over, over, Ok(S::Deleting), conflict]),
            (S::Deleting, [going; 5]),
        ];
        for (state, cells) in table {
            for (event, cell) in events.iter().zip(cells) {
                let got = state.apply(event).map_err(|error| kiln_error::Error::from(error).reason().to_owned());
                assert_eq!(got, cell.map_err(str::to_owned), "{event:?} in {state:?}");
            }
        }
    }

    #[test]
    fn the_record_remembers_reason_end_and_previous_state() {
        let at = Timestamp::from_micros;
        let life = JobLife::new(at(1));
        let ending = life.apply(&JobEvent::Terminate("enough".into()), at(2)).unwrap();
        let over = ending.apply(&JobEvent::Drained, at(3)).unwrap();
        assert_eq!(over.previous, Some((JobState::Terminating, at(2))));
        assert_eq!((over.end, over.terminate_reason.as_str()), (Some(at(3)), "enough"));
    }
}
