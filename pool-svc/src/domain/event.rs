//! What is announced about a change, committed together with it.

use kiln_ids::{AccountName, NodeId, PoolId};
use kiln_time::Timestamp;

use crate::domain::PoolName;
use crate::domain::node::{Node, NodeState};
use crate::domain::pool::{Pool, PoolState};

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// When.
    pub time: Timestamp,
    /// Owner of the pool.
    pub account: AccountName,
    /// The pool.
    pub pool: PoolId,
    /// What.
    pub fact: Fact,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// To the pool.
    Pool {
        /// The event's kind.
        what: PoolFact,
        /// State after it.
        state: PoolState,
        /// Name of the allocation state after it.
        allocation: &'static str,
        /// Targets after it.
        target_dedicated: u32,
        /// Targets after it.
        target_low_priority: u32,
        /// Nodes the pool has.
        current: u32,
        /// Why, or an error code.
        reason: String,
    },
    /// To what a job or schedule needs.
    AutoPool {
        /// The event's kind.
        what: AutoPoolFact,
        /// The job, or the schedule.
        owner: String,
    },
    /// To one of its nodes.
    Node {
        /// The event's kind.
        what: NodeFact,
        /// The node.
        node: NodeId,
        /// State before; absent for a new node.
        old: Option<NodeState>,
        /// State after; absent for a removed node.
        new: Option<NodeState>,
        /// Why.
        reason: String,
        /// Slots for tasks.
        slots: u32,
        /// Life of the agent.
        incarnation: String,
    },
}

/// Kinds of events of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolFact {
    /// It was made.
    Created,
    /// Its settings were changed.
    Updated,
    /// A resize began.
    ResizeStarted,
    /// A resize ended; the reason is empty or the first error's code.
    ResizeCompleted,
    /// Its deletion began.
    Deleting,
    /// It is gone.
    Deleted,
}

/// Answers to announcements of pools for jobs and schedules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AutoPoolFact {
    /// The pool was made.
    Made,
    /// The pool could not be made.
    Failed {
        /// Azure's word.
        code: String,
        /// For people.
        message: String,
    },
    /// The end of the owner is noted; the pool is being deleted, or its user's.
    Released,
}

/// Kinds of events of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeFact {
    /// Its record was made.
    Created,
    /// Its state changed.
    State,
    /// It is gone.
    Removed,
}

impl Event {
    /// About `pool` as it is now.
    pub fn pool(pool: &Pool, what: PoolFact, reason: impl Into<String>, now: Timestamp) -> Self {
        Self {
            time: now,
            account: pool.account.clone(),
            pool: pool.id.clone(),
            fact: Fact::Pool {
                what,
                state: pool.state,
                allocation: pool.allocation.name(),
                target_dedicated: pool.target.dedicated,
                target_low_priority: pool.target.low_priority,
                current: pool.current.total(),
                reason: reason.into(),
            },
        }
    }

    /// About the pool `name` of the job or schedule `owner`.
    pub fn auto_pool(name: &PoolName, owner: &str, what: AutoPoolFact, now: Timestamp) -> Self {
        Self {
            time: now,
            account: name.account.clone(),
            pool: name.pool.clone(),
            fact: Fact::AutoPool { what, owner: owner.to_owned() },
        }
    }

    /// About a node of `pool`.
    pub fn node(
        pool: &Pool,
        node: &Node,
        what: NodeFact,
        old: Option<NodeState>,
        reason: impl Into<String>,
        now: Timestamp,
    ) -> Self {
        Self {
            time: now,
            account: pool.account.clone(),
            pool: pool.id.clone(),
            fact: Fact::Node {
                what,
                node: node.id.clone(),
                old,
                new: (what != NodeFact::Removed).then_some(node.state),
                reason: reason.into(),
                slots: pool.task_slots,
                incarnation: node.incarnation.clone(),
            },
        }
    }
}
