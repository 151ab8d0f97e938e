//! Why something is refused, in the words of Azure Batch.

use kiln_error::{Error, Kind};
use kiln_ids::{NodeId, PoolId};

use crate::domain::node::NodeState;
use crate::domain::pool::MAX_JOIN_TOKENS;

/// A rule of pools or nodes does not allow it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such pool.
    #[error("there is no pool {0}; list the pools to see which exist")]
    PoolNotFound(PoolId),
    /// The id is taken.
    #[error("a pool {0} exists already; choose another id or delete that pool first")]
    PoolExists(PoolId),
    /// The pool is on its way out.
    #[error("pool {0} is being deleted; wait until it is gone")]
    PoolBeingDeleted(PoolId),
    /// One resize at a time.
    #[error("pool {0} is being resized; wait until its allocation state is steady, or stop the resize")]
    PoolBeingResized(PoolId),
    /// There is nothing to stop.
    #[error("pool {0} is not being resized, so there is nothing to stop")]
    NotResizing(PoolId),
    /// A machine wants to join with a token that has no uses left.
    #[error(
        "this join token of pool {0} is used up; make another one with `kiln node token` (--uses says for how many)"
    )]
    JoinTokenUsedUp(PoolId),
    /// A machine wants to join with a token that is too old, or of an earlier pool of that id.
    #[error("this join token of pool {0} has expired; make another one with `kiln node token`")]
    JoinTokenExpired(PoolId),
    /// Join tokens are bounded.
    #[error("pool {0} has {MAX_JOIN_TOKENS} join tokens; wait until some have expired, or give one more uses")]
    TooManyJoinTokens(PoolId),
    /// Only nodes that joined leave.
    #[error("node {0} was made by a provider, which takes it away when the pool does not want it any more")]
    NotJoined(NodeId),
    /// No such node.
    #[error("there is no node {node} in pool {pool}")]
    NodeNotFound {
        /// The pool, which exists.
        pool: PoolId,
        /// The node that does not.
        node: NodeId,
    },
    /// The node's state does not allow it.
    #[error("node {node} is {}: {what} is not possible now", state.name())]
    NodeState {
        /// The node.
        node: NodeId,
        /// Its state.
        state: NodeState,
        /// What was asked for.
        what: &'static str,
    },
    /// The node's agent cannot be reached at the moment.
    #[error("node {node} is {} and cannot be reached at the moment", state.name())]
    NodeUnreachable {
        /// The node.
        node: NodeId,
        /// Its state.
        state: NodeState,
    },
    /// Scheduling is already so.
    #[error("scheduling on node {0} is already so")]
    AlreadyInSchedulingState(NodeId),
    /// The agent that speaks is not the one this node has now.
    #[error("node {0} has a newer agent; this one has to stop")]
    StaleIncarnation(NodeId),
}

impl Refused {
    fn reason(&self) -> &'static str {
        match self {
            Self::PoolNotFound(_) => "PoolNotFound",
            Self::PoolExists(_) => "PoolExists",
            Self::PoolBeingDeleted(_) => "PoolBeingDeleted",
            Self::PoolBeingResized(_) => "PoolBeingResized",
            Self::NotResizing(_) => "OperationInvalidForCurrentState",
            Self::NodeNotFound { .. } => "NodeNotFound",
            Self::NodeState { state, .. } | Self::NodeUnreachable { state, .. } => match state {
                NodeState::Creating => "NodeBeingCreated",
                NodeState::Starting | NodeState::WaitingForStartTask => "NodeBeingStarted",
                NodeState::Rebooting => "NodeBeingRebooted",
                NodeState::Unknown | NodeState::Unusable { .. } | NodeState::StartTaskFailed => "NodeStateUnusable",
                NodeState::Idle | NodeState::Running | NodeState::Offline | NodeState::LeavingPool { .. } => {
                    "OperationNotValidOnNode"
                }
            },
            Self::JoinTokenUsedUp(_) => "JoinTokenUsedUp",
            Self::JoinTokenExpired(_) => "JoinTokenExpired",
            Self::TooManyJoinTokens(_) => "TooManyJoinTokens",
            Self::NotJoined(_) => "OperationNotValidOnNode",
            Self::AlreadyInSchedulingState(_) => "NodeAlreadyInTargetSchedulingState",
            Self::StaleIncarnation(_) => "StaleIncarnation",
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::PoolNotFound(_) | Self::NodeNotFound { .. } => Kind::NotFound,
            Self::PoolExists(_) => Kind::AlreadyExists,
            Self::TooManyJoinTokens(_) => Kind::ResourceExhausted,
            Self::PoolBeingDeleted(_)
            | Self::PoolBeingResized(_)
            | Self::NotResizing(_)
            | Self::NodeState { .. }
            | Self::NodeUnreachable { .. }
            | Self::JoinTokenUsedUp(_)
            | Self::JoinTokenExpired(_)
            | Self::NotJoined(_)
            | Self::AlreadyInSchedulingState(_)
            | Self::StaleIncarnation(_) => Kind::FailedPrecondition,
        }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        let error = Self::new(refused.kind(), refused.reason(), refused.to_string());
        match &refused {
            Refused::NodeState { state, .. } | Refused::NodeUnreachable { state, .. } => {
                error.with_detail("NodeState", state.name())
            }
            _ => error,
        }
    }
}
