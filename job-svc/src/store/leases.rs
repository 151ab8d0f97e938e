//! Who schedules a pool, when several replicas of the service share a database.
//!
//! A pool is leased to one replica. Whoever takes it gets the next epoch, and
//! every commit of its scheduler carries owner and epoch ([`Fence`]): one who
//! lost the pool and does not know it yet writes nothing. Times are those of the
//! database, so clocks of replicas do not matter.
//!
//! Calls of clients may come to any replica. What they change is written
//! together with a [`Change`], which the owner of the pool reads.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use kiln_ids::{AccountName, PoolId};

use crate::domain::Error;

/// A pool of an account.
pub type PoolKey = (AccountName, PoolId);

/// How a replica claims pools.
#[derive(Debug, Clone)]
pub struct Presence {
    /// Where agents and other replicas reach it.
    pub endpoint: Arc<str>,
    /// How long it may be silent before others take its pools.
    pub lease: Duration,
}

/// What a commit must find to be true: this replica owns the pool, in this epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The pool.
    pub pool: PoolId,
    /// Id of the replica.
    pub owner: Arc<str>,
    /// Number of the claim.
    pub epoch: u64,
}

/// The replica that schedules a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its id.
    pub id: String,
    /// Where it is reached.
    pub endpoint: String,
}

/// What became of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The pool is ours, in this epoch.
    Ours(u64),
    /// Somebody who lives has it.
    Other(Owner),
}

/// A pool that is still ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Owner of the pool.
    pub account: AccountName,
    /// The pool.
    pub pool: PoolId,
    /// Number of the claim.
    pub epoch: u64,
}

/// How pools and replicas stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Pools with jobs that are not completed, and no owner that lives.
    pub free: Vec<PoolKey>,
    /// Pools with such jobs that are ours.
    pub ours: usize,
    /// Pools with such jobs.
    pub all: usize,
    /// Replicas that live, this one among them.
    pub replicas: usize,
}

/// What a client changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A job was created or changed.
    Job(u64),
    /// Tasks were added to a job: all that were added with rows from the first to the last.
    Added {
        /// Their job.
        job: u64,
        /// Row of the first.
        first: u64,
        /// Row of the last.
        last: u64,
    },
    /// A task was activated again.
    Reactivated {
        /// Its job.
        job: u64,
        /// Its row.
        row: u64,
    },
    /// A task's constraints were changed.
    Constraints {
        /// Its job.
        job: u64,
        /// Its row.
        row: u64,
    },
    /// A completed task was removed.
    Deleted {
        /// Its job.
        job: u64,
        /// Its row.
        row: u64,
        /// Key of its id.
        key: String,
    },
}

/// A change as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeRow {
    /// Grows with every change, in the order in which they become visible.
    pub id: u64,
    /// Whether this replica wrote it, and has told its schedulers.
    pub own: bool,
    /// Owner of the pool.
    pub account: AccountName,
    /// The pool; absent if more than one is concerned.
    pub pool: Option<PoolId>,
    /// What.
    pub change: Change,
}

/// The leases of pools.
#[async_trait]
pub trait LeaseStore: fmt::Debug + Send + Sync + 'static {
    /// Id of this replica: of this life of the process.
    fn replica(&self) -> Arc<str>;
    /// Whether other replicas may share the database. If not, every claim wins.
    fn is_shared(&self) -> bool;
    /// Claims pools that nobody has whose lease goes on, and renews nothing;
    /// answers in the order of `pools`.
    async fn claim_pools(&self, presence: &Presence, pools: Vec<PoolKey>) -> Result<Vec<Claim>, Error>;
    /// Renews all leases of this replica and says that it lives; returns the
    /// pools that are still its own.
    async fn renew_pools(&self, presence: &Presence) -> Result<Vec<Held>, Error>;
    /// Gives all pools of this replica back, so that others need not wait.
    async fn release_pools(&self) -> Result<(), Error>;
    /// The owner of a pool whose lease goes on.
    async fn owner_of(&self, account: &AccountName, pool: &PoolId) -> Result<Option<Owner>, Error>;
    /// Which pools are free, and this replica's share.
    async fn standing(&self) -> Result<Standing, Error>;
    /// The latest change there is.
    async fn last_change(&self) -> Result<u64, Error>;
    /// Changes after that one, in order.
    async fn changes(&self, after: u64, limit: u32) -> Result<Vec<ChangeRow>, Error>;
    /// Forgets old changes, and leases and replicas that are long over.
    async fn forget_leases(&self) -> Result<usize, Error>;
    /// Completes after the next commit of another replica from now on; one may go unheard.
    fn committed_elsewhere(&self) -> BoxFuture<'_, ()>;
}
