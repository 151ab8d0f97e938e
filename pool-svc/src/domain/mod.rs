//! The rules of pools and nodes: no I/O, no clock, no wire types.
//!
//! - [`pool`]: a pool's record and its two state machines;
//! - [`node`]: a node's record and its state machine;
//! - [`auto_pool`]: pools that belong to a job or a schedule;
//! - [`agent`]: what passes between the service and a node's agent;
//! - [`plan`]: what has to be done so that a pool becomes what was asked for;
//! - [`event`]: what is announced about a change;
//! - [`error`]: why something is refused.

pub mod agent;
pub mod auto_pool;
pub mod error;
pub mod event;
pub mod node;
pub mod plan;
pub mod pool;

pub use error::Refused;
pub use event::{Event, Fact};
pub use node::{Node, NodeState};
pub use pool::{Pool, PoolState};

use kiln_ids::{AccountName, NodeId, PoolId};
use serde::{Deserialize, Serialize};

/// What names a pool everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolName {
    /// Owner.
    pub account: AccountName,
    /// The pool.
    pub pool: PoolId,
}

/// What names a node everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName {
    /// Owner.
    pub account: AccountName,
    /// Its pool.
    pub pool: PoolId,
    /// The node.
    pub node: NodeId,
}

impl NodeName {
    /// The pool of the node.
    pub fn pool_name(&self) -> PoolName {
        PoolName { account: self.account.clone(), pool: self.pool.clone() }
    }
}

impl PoolName {
    /// A node of the pool.
    pub fn node(&self, node: &NodeId) -> NodeName {
        NodeName { account: self.account.clone(), pool: self.pool.clone(), node: node.clone() }
    }
}

/// What happens to the tasks of a node that is taken away or stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum DeallocationOption {
    /// Killed and queued again.
    #[default]
    Requeue,
    /// Killed and completed as failed.
    Terminate,
    /// They finish first.
    TaskCompletion,
    /// They finish first, and their files stay until their retention ends.
    RetainedData,
}

impl DeallocationOption {
    /// Whether the node waits for its tasks to end by themselves.
    pub fn waits_for_tasks(self) -> bool {
        matches!(self, Self::TaskCompletion | Self::RetainedData)
    }
}
