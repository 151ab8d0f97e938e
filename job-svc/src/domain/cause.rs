//! Why an attempt is given back or given up, in the words of records and events.

use kiln_proto::common::v1::{ErrorCategory, FailureInfo};

use super::task::{MAX_INTERNAL_RETRIES, Outcome};

/// Why a task goes back to the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequeueCause {
    /// The job was disabled.
    JobDisabled,
    /// The node is taken away or stopped, tasks to be requeued.
    NodeAction,
    /// The node was not heard of for its lease, or began a new life.
    NodeLost,
    /// The agent could not run it.
    AgentFailure,
    /// The job's preparation task failed on the node.
    PreparationFailed,
    /// Something more urgent needed its place.
    Preempted,
    /// It was assigned ahead of a free slot and had not begun after a moment.
    NotStarted,
}

/// Why a task is not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUpCause {
    /// See [`MAX_INTERNAL_RETRIES`].
    TooManyInternalRetries,
    /// What the store has of it cannot be read.
    UnreadableSpec,
}

impl GiveUpCause {
    pub(super) fn failure(self) -> FailureInfo {
        let (category, code, message) = match self {
            Self::TooManyInternalRetries => (
                ErrorCategory::User,
                "MaxInternalRetryCountReached",
                format!(
                    "The task was given back by lost or failing nodes more than {MAX_INTERNAL_RETRIES} times; see \
                     its attempts, and reactivate it when it does not harm its nodes any more"
                ),
            ),
            Self::UnreadableSpec => (
                ErrorCategory::Server,
                "Unknown",
                "The stored description of the task cannot be read; delete the task and add it again".to_owned(),
            ),
        };
        FailureInfo { category: category.into(), code: code.to_owned(), message, details: Vec::new() }
    }
}

impl RequeueCause {
    /// Whether it is counted as a requeue: somebody wanted it.
    pub fn is_wanted(self) -> bool {
        matches!(self, Self::JobDisabled | Self::NodeAction | Self::Preempted)
    }

    /// Whether it is counted among those that [`MAX_INTERNAL_RETRIES`] limits.
    pub fn is_internal(self) -> bool {
        matches!(self, Self::NodeLost | Self::AgentFailure)
    }

    pub(super) fn outcome(self) -> Outcome {
        match self {
            Self::JobDisabled | Self::NodeAction | Self::PreparationFailed | Self::NotStarted => Outcome::Requeued,
            Self::NodeLost | Self::AgentFailure => Outcome::NodeLost,
            Self::Preempted => Outcome::Preempted,
        }
    }

    /// The word events give as reason.
    pub fn reason(self) -> &'static str {
        match self {
            Self::JobDisabled => "JobDisabled",
            Self::NodeAction => "NodeAction",
            Self::NodeLost => "NodeLost",
            Self::AgentFailure => "AgentFailure",
            Self::PreparationFailed => "PreparationFailed",
            Self::Preempted => "Preempted",
            Self::NotStarted => "NotStarted",
        }
    }
}
