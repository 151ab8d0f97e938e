//! The state machine of one instance of a multi-instance task, in one attempt.
//!
//! | state \ event | start | ready | end | lose |
//! |---|---|---|---|---|
//! | preparing | running | running, ready | completed | completed |
//! | running | - | running, ready | completed | completed |
//! | completed | - | - | - | - |
//!
//! `-` changes nothing: agents say things again after a reconnect.

use std::sync::Arc;

use kiln_ids::NodeId;
use kiln_proto::common::v1::{ErrorCategory, FailureInfo};
use kiln_time::Timestamp;

use super::task::{AttemptEnd, EndCause, TaskState, failure_of};

/// One instance.
#[derive(Debug, Clone, PartialEq)]
pub struct Subtask {
    /// 0 is the primary.
    pub instance: u32,
    /// Attempt of its task.
    pub attempt: u32,
    /// Where it runs.
    pub node: Arc<NodeId>,
    /// Where it stands.
    pub state: SubtaskState,
    /// Since when.
    pub since: Timestamp,
    /// The state before, and since when it was in that.
    pub previous: Option<(SubtaskPhase, Timestamp)>,
}

/// Where an instance stands.
#[derive(Debug, Clone, PartialEq)]
pub enum SubtaskState {
    /// Assigned; its agent has not begun.
    Preparing,
    /// Its agent has begun.
    Running {
        /// When.
        started: Timestamp,
        /// Its coordination command has ended well.
        ready: bool,
    },
    /// Nothing of it runs any more.
    Completed {
        /// When its agent began, if it did.
        started: Option<Timestamp>,
        /// When it ended.
        end: Timestamp,
        /// Exit code of its coordination command; of the primary, of the task.
        exit_code: Option<i32>,
        /// Present exactly if it failed.
        failure: Option<FailureInfo>,
    },
}

/// The name of a state alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubtaskPhase {
    /// See [`SubtaskState::Preparing`].
    Preparing,
    /// See [`SubtaskState::Running`].
    Running,
    /// See [`SubtaskState::Completed`].
    Completed,
}

/// What happens to an instance.
#[derive(Debug, Clone, PartialEq)]
pub enum SubtaskEvent {
    /// Its agent began.
    Start(Timestamp),
    /// Its coordination command ended well.
    Ready,
    /// Its agent says that it is over.
    End(AttemptEnd),
    /// Its node was lost.
    Lose,
}

impl Subtask {
    /// An instance that was just assigned.
    pub fn new(instance: u32, attempt: u32, node: Arc<NodeId>, now: Timestamp) -> Self {
        Self { instance, attempt, node, state: SubtaskState::Preparing, since: now, previous: None }
    }

    /// Whether something of it may still run.
    pub fn is_open(&self) -> bool {
        match self.state {
            SubtaskState::Preparing | SubtaskState::Running { .. } => true,
            SubtaskState::Completed { .. } => false,
        }
    }

    /// The instance after `event`; `None` if that changes nothing.
    pub fn apply(&self, event: SubtaskEvent, now: Timestamp) -> Option<Self> {
        let state = match (&self.state, event) {
            (SubtaskState::Preparing, SubtaskEvent::Start(started)) => SubtaskState::Running { started, ready: false },
            (SubtaskState::Preparing, SubtaskEvent::Ready) => SubtaskState::Running { started: now, ready: true },
            (SubtaskState::Running { started, ready: false }, SubtaskEvent::Ready) => {
                SubtaskState::Running { started: *started, ready: true }
            }
            (SubtaskState::Preparing, SubtaskEvent::End(end)) => over(end.start, false, self.instance, &end),
            (SubtaskState::Running { started, ready }, SubtaskEvent::End(end)) => {
                over(Some(*started), *ready, self.instance, &end)
            }
            (SubtaskState::Preparing, SubtaskEvent::Lose) => lost(None, now),
            (SubtaskState::Running { started, .. }, SubtaskEvent::Lose) => lost(Some(*started), now),
            (SubtaskState::Running { .. }, SubtaskEvent::Start(_))
            | (SubtaskState::Running { ready: true, .. }, SubtaskEvent::Ready)
            | (
                SubtaskState::Completed { .. },
                SubtaskEvent::Start(_) | SubtaskEvent::Ready | SubtaskEvent::End(_) | SubtaskEvent::Lose,
            ) => return None,
        };
        let moved = state.phase() != self.state.phase();
        let (since, previous) =
            if moved { (now, Some((self.state.phase(), self.since))) } else { (self.since, self.previous) };
        Some(Self { state, since, previous, ..self.clone() })
    }
}

impl SubtaskState {
    /// The name of the state.
    pub fn phase(&self) -> SubtaskPhase {
        match self {
            Self::Preparing => SubtaskPhase::Preparing,
            Self::Running { .. } => SubtaskPhase::Running,
            Self::Completed { .. } => SubtaskPhase::Completed,
        }
    }
}

fn over(started: Option<Timestamp>, ready: bool, instance: u32, end: &AttemptEnd) -> SubtaskState {
    // An instance besides the primary is stopped when the primary has ended:
    // what counts then is how its coordination command ended.
    if instance > 0 && ready && end.cause == EndCause::Stopped {
        return SubtaskState::Completed { started, end: end.end, exit_code: Some(0), failure: None };
    }
    SubtaskState::Completed { started, end: end.end, exit_code: end.exit_code, failure: failure_of(end) }
}

fn lost(started: Option<Timestamp>, now: Timestamp) -> SubtaskState {
    let failure = FailureInfo {
        category: ErrorCategory::Server.into(),
        code: "NodeLost".to_owned(),
        message: "The node was lost, or began a new life, while the instance ran".to_owned(),
        details: Vec::new(),
    };
    SubtaskState::Completed { started, end: now, exit_code: None, failure: Some(failure) }
}

/// Where the latest attempt of a completed task left its directories.
pub fn ran_on(state: &TaskState, subtasks: &[Subtask]) -> Vec<(u32, Arc<NodeId>)> {
    if !subtasks.is_empty() {
        return subtasks.iter().map(|subtask| (subtask.instance, subtask.node.clone())).collect();
    }
    match state {
        TaskState::Completed { run: Some(run), .. } => vec![(0, run.node.clone())],
        TaskState::Completed { run: None, .. } | TaskState::Active | TaskState::Running { .. } => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(cause: EndCause, code: i32) -> SubtaskEvent {
        let (end, exit_code) = (Timestamp::from_micros(90), Some(code));
        SubtaskEvent::End(AttemptEnd { start: None, end, exit_code, failure: None, cause, outputs_kept: false })
    }

    #[test]
    fn every_cell_of_the_table() {
        let at = Timestamp::from_micros;
        let node = Arc::new(NodeId::parse("n").unwrap());
        let preparing = Subtask::new(1, 2, node, at(1));
        let running = preparing.apply(SubtaskEvent::Start(at(5)), at(6)).unwrap();
        assert_eq!(running.state, SubtaskState::Running { started: at(5), ready: false });
        assert_eq!((running.since, running.previous), (at(6), Some((SubtaskPhase::Preparing, at(1)))));
        let ready = running.apply(SubtaskEvent::Ready, at(7)).unwrap();
        assert_eq!((ready.since, ready.previous), (running.since, running.previous), "the state is the same");
        assert_eq!(ready.apply(SubtaskEvent::Ready, at(8)), None);
        assert_eq!(running.apply(SubtaskEvent::Start(at(8)), at(8)), None);
        assert!(matches!(
            preparing.apply(SubtaskEvent::Ready, at(7)).unwrap().state,
            SubtaskState::Running { ready: true, .. }
        ));
        for (from, event, code, fails) in [
            (&preparing, end(EndCause::Exited, 0), Some(0), false),
            (&preparing, SubtaskEvent::Lose, None, true),
            (&running, end(EndCause::Exited, 3), Some(3), true),
            (&running, end(EndCause::Stopped, 137), Some(137), true),
            (&ready, end(EndCause::Stopped, 137), Some(0), false),
            (&ready, SubtaskEvent::Lose, None, true),
        ] {
            let over = from.apply(event.clone(), at(100)).unwrap();
            let SubtaskState::Completed { exit_code, failure, .. } = &over.state else { panic!("{over:?}") };
            assert_eq!((*exit_code, failure.is_some()), (code, fails), "{from:?} {event:?}");
            assert!(!over.is_open());
            for again in [SubtaskEvent::Start(at(5)), SubtaskEvent::Ready, end(EndCause::Exited, 0), SubtaskEvent::Lose]
            {
                assert_eq!(over.apply(again, at(101)), None);
            }
        }
    }
}
