//! What is kept of pools that jobs and schedules bring along.
//!
//! pool-svc is told by the events of the job itself. What it has not answered
//! is announced again from time to time: the bus may have lost it, or pool-svc
//! may not have listened yet. A record is made with the job, changes with the
//! end of the job or schedule, in the same transactions, and goes when pool-svc
//! has answered that end.

use std::fmt;

use async_trait::async_trait;
use kiln_ids::{AccountName, PoolId};
use kiln_proto::common::v1::FailureInfo;
use kiln_time::Timestamp;

use super::model::JobRow;
use crate::domain::Error;

/// What pool-svc says about a pool.
#[derive(Debug, Clone, PartialEq)]
pub enum PoolAnswer {
    /// It was made.
    Made,
    /// It could not be made.
    Failed(FailureInfo),
    /// The end of its owner is known.
    Released,
}

/// Pools of jobs and schedules in the database of job-svc.
#[async_trait]
pub trait AutoPoolStore: fmt::Debug + Send + Sync + 'static {
    /// Announces up to `limit` pools again whose time has come; returns how many.
    async fn announce_auto_pools(&self, now: Timestamp, limit: u32) -> Result<usize, Error>;
    /// When the next one is to be announced again.
    async fn next_announcement(&self) -> Result<Option<Timestamp>, Error>;
    /// Takes an answer in. The job that it ends is returned.
    async fn auto_pool_answered(
        &self,
        account: &AccountName,
        pool: &PoolId,
        answer: PoolAnswer,
        now: Timestamp,
    ) -> Result<Option<JobRow>, Error>;
}
