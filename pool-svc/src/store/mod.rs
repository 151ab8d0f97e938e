//! Where pools and nodes are kept.
//!
//! [`Store`] speaks of pools and nodes. A [`Change`] is written whole or not at
//! all, together with its events and the remembered answer to the request that
//! caused it, and only if every record it replaces still has the revision that
//! was read: whoever lost a race reads again and decides again. `conformance`
//! holds what every implementation must do.

#[cfg(test)]
mod conformance;
mod events;
mod sql;

use std::collections::BTreeMap;

use async_trait::async_trait;
use kiln_ids::{AccountName, NodeId, PoolId};
use kiln_time::Timestamp;

use crate::domain::auto_pool::{AutoPool, AutoPoolState};
use crate::domain::{Event, Node, NodeName, Pool, PoolName};

pub use events::{node_state, pool_state};
pub use sql::SqlStore;

/// Why the store did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A record was changed, made or removed since it was read: read again.
    #[error("a record was changed by somebody else")]
    Conflict,
    /// The pool that was to be made exists.
    #[error("the pool exists already")]
    PoolExists,
    /// The database failed.
    #[error(transparent)]
    Failed(#[from] kiln_store::StoreError),
}

/// What is done to a pool's record. Replacing compares `revision`.
#[derive(Debug, Clone)]
pub enum PoolWrite {
    /// A new one.
    Insert(Pool),
    /// Replaces the one with the same revision.
    Update(Pool),
    /// Removes the one with the same revision.
    Delete(Pool),
}

/// What is done to a node's record. Replacing compares `revision`.
#[derive(Debug, Clone)]
pub enum NodeWrite {
    /// A new one.
    Insert(Node),
    /// Replaces the one with the same revision.
    Update(Node),
    /// Removes it.
    Delete(NodeId),
}

/// What is done to the record of a pool that belongs to a job or a schedule.
#[derive(Debug, Clone)]
pub enum AutoPoolWrite {
    /// A new one.
    Insert(AutoPool),
    /// Replaces the one in that state.
    Replace {
        /// State it must have.
        expected: AutoPoolState,
        /// What it is from now on.
        with: AutoPool,
    },
}

/// A client's request, so that its repetition gets the same answer.
#[derive(Debug, Clone)]
pub struct Request {
    /// Name of the call.
    pub method: &'static str,
    /// Chosen by the client; empty means that repetitions are not recognized.
    pub id: String,
    /// The answer to give again, encoded.
    pub answer: Vec<u8>,
}

/// A transaction over one pool.
#[derive(Debug, Clone)]
pub struct Change {
    /// The pool it is about.
    pub pool: PoolName,
    /// Its cause, if a client's.
    pub request: Option<Request>,
    /// What happens to the pool's record.
    pub pool_write: Option<PoolWrite>,
    /// What happens to records of its nodes.
    pub node_writes: Vec<NodeWrite>,
    /// What happens to the record that says whose pool it is.
    pub auto_pool: Option<AutoPoolWrite>,
    /// What is announced.
    pub events: Vec<Event>,
    /// When.
    pub now: Timestamp,
}

impl Change {
    /// A change of nothing yet.
    pub fn new(pool: PoolName, now: Timestamp) -> Self {
        Self {
            pool,
            request: None,
            pool_write: None,
            node_writes: Vec::new(),
            auto_pool: None,
            events: Vec::new(),
            now,
        }
    }

    /// Whether nothing would be written.
    pub fn is_empty(&self) -> bool {
        self.request.is_none()
            && self.pool_write.is_none()
            && self.node_writes.is_empty()
            && self.auto_pool.is_none()
            && self.events.is_empty()
    }
}

/// What became of a [`Change`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable.
    Written,
    /// The request was seen before; nothing was written. This was the answer.
    Repeated(Vec<u8>),
}

/// Number of nodes of one kind by the name of their state.
pub type StateCounts = BTreeMap<String, u32>;

/// States of a pool's nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// Of those that stay.
    pub dedicated: StateCounts,
    /// Of those that may be taken away.
    pub low_priority: StateCounts,
}

/// A replica of the service: one life of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Generated.
    pub id: String,
    /// Where other replicas reach it.
    pub endpoint: String,
}

/// Pools and nodes of all accounts.
#[async_trait]
pub trait Store: std::fmt::Debug + Send + Sync + 'static {
    /// One pool.
    async fn pool(&self, name: &PoolName) -> Result<Option<Pool>, StoreError>;

    /// Pools of an account whose key is greater than `after`, by key.
    async fn pools(&self, account: &AccountName, after: Option<&str>, limit: u32) -> Result<Vec<Pool>, StoreError>;

    /// Names of the pools of all accounts, after `after`, by account and key.
    async fn pool_names(&self, after: Option<&PoolName>, limit: u32) -> Result<Vec<PoolName>, StoreError>;

    /// One node.
    async fn node(&self, name: &NodeName) -> Result<Option<Node>, StoreError>;

    /// Nodes of a pool whose key is greater than `after`, by key.
    async fn nodes(&self, pool: &PoolName, after: Option<&str>, limit: u32) -> Result<Vec<Node>, StoreError>;

    /// A pool with all its nodes, as of one moment.
    async fn pool_with_nodes(&self, name: &PoolName) -> Result<Option<(Pool, Vec<Node>)>, StoreError>;

    /// States of the nodes of up to `limit` pools of an account, by pool key.
    async fn node_counts(
        &self,
        account: &AccountName,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<(PoolId, PoolCounts)>, StoreError>;

    /// States of the nodes of one pool.
    async fn pool_counts(&self, name: &PoolName) -> Result<PoolCounts, StoreError>;

    /// Nodes of all accounts by the name of their state.
    async fn total_counts(&self) -> Result<StateCounts, StoreError>;

    /// The answer that was given to a request, if it was seen before.
    async fn answer(&self, account: &AccountName, method: &str, id: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// Writes a change, whole or not at all.
    async fn commit(&self, change: Change) -> Result<Outcome, StoreError>;

    /// What is known of a pool that belongs to a job or a schedule.
    async fn auto_pool(&self, name: &PoolName) -> Result<Option<AutoPool>, StoreError>;

    /// Forgets such pools that were over or failed before `before`.
    async fn forget_auto_pools(&self, before: Timestamp) -> Result<usize, StoreError>;

    /// Forgets answers to old requests; returns how many.
    async fn forget_requests(&self, now: Timestamp) -> Result<usize, StoreError>;

    /// The replica that serves, as it has said itself.
    async fn serving(&self) -> Result<Option<Replica>, StoreError>;

    /// This replica serves from now on.
    async fn announce(&self, replica: &Replica) -> Result<(), StoreError>;
}

impl From<StoreError> for kiln_error::Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict => Self::new(
                kiln_error::Kind::Aborted,
                "Conflict",
                "the record is changed by others at the moment; repeat",
            ),
            StoreError::PoolExists => {
                Self::new(kiln_error::Kind::AlreadyExists, "PoolExists", "the pool exists already")
            }
            StoreError::Failed(error) => error.into(),
        }
    }
}
