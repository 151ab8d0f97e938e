//! What job-svc keeps, in its own words.
//!
//! [`Store`], [`ScheduleStore`], [`AutoPoolStore`] and [`LeaseStore`] have one implementation, [`sql`];
//! `conformance` checks what every implementation has to do. Who writes what:
//! - adding tasks, creating and changing jobs, and changes of completed tasks
//!   are transactions of the API handlers;
//! - everything about tasks that wait or run is written by the scheduler of
//!   their pool, one [`Commit`] after the other;
//! - what schedules do by themselves is written by the ticker, see [`schedules`].
//!
//! A commit carries who owns the pool in which epoch, see [`leases`]: after another
//! replica has taken it, it fails as [`CommitError::Fenced`].
//! Rows of tasks are guarded by (phase, attempt), so that a scheduler with a
//! wrong picture cannot write over the truth: its whole commit fails as
//! [`CommitError::Stale`], and it reads everything again. Rows of jobs are only
//! changed through [`JobLife::apply`](crate::domain::job::JobLife::apply) inside
//! the transaction.

pub mod auto_pools;
pub mod codec;
pub mod events;
pub mod leases;
pub mod model;
pub mod schedules;
pub mod sql;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod lease_conformance;
#[cfg(test)]
mod schedule_conformance;

use std::fmt;

use async_trait::async_trait;
use kiln_etag::Conditions;
use kiln_ids::{AccountName, JobId, PoolId, TaskId};
use kiln_time::Timestamp;

use crate::domain::Error;
use crate::domain::dependencies::ParentState;
use crate::domain::subtask::Subtask;
pub use auto_pools::AutoPoolStore;
pub use leases::LeaseStore;
pub use model::*;
pub use schedules::ScheduleStore;

/// The database of job-svc.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Keeps a new job. A job in the same account with this id is an error.
    async fn create_job(&self, job: NewJob, request: Request) -> Result<Answered<JobRow>, Error>;
    /// The job with this id.
    async fn job(&self, account: &AccountName, job: &JobId) -> Result<JobRow, Error>;
    /// The job with this row id, if it is still there.
    async fn job_by_row(&self, row: u64) -> Result<Option<JobRow>, Error>;
    /// Jobs of an account by key, after `after`.
    async fn list_jobs(&self, account: &AccountName, after: Option<String>, limit: u32) -> Result<Vec<JobRow>, Error>;
    /// Changes a job as its state machine allows.
    async fn change_job(
        &self,
        account: &AccountName,
        job: &JobId,
        change: JobChange,
        condition: Conditions,
        request: Request,
        now: Timestamp,
    ) -> Result<Answered<JobRow>, Error>;
    /// Exact counts of a job's tasks.
    async fn counts(&self, account: &AccountName, job: &JobId) -> Result<Counts, Error>;

    /// Adds tasks, each by itself; one transaction.
    async fn add_tasks(&self, add: AddTasks) -> Result<Answered<Added>, Error>;
    /// The task with this id, with its job.
    async fn task(&self, account: &AccountName, job: &JobId, task: &TaskId) -> Result<(JobRow, TaskRow), Error>;
    /// Tasks of a job by key, after `after`.
    async fn list_tasks(&self, job: u64, after: Option<String>, limit: u32) -> Result<Vec<TaskRow>, Error>;
    /// Replaces the constraints in a task's spec.
    async fn update_task(
        &self,
        account: &AccountName,
        job: &JobId,
        task: &TaskId,
        update: TaskUpdate,
    ) -> Result<Answered<TaskRow>, Error>;
    /// Makes a failed task active again.
    async fn reactivate_task(
        &self,
        account: &AccountName,
        job: &JobId,
        task: &TaskId,
        condition: Conditions,
        request: Request,
        now: Timestamp,
    ) -> Result<Answered<TaskRow>, Error>;
    /// Removes a task if it has completed; `Live` leaves it to the scheduler.
    async fn delete_completed_task(
        &self,
        account: &AccountName,
        job: &JobId,
        task: &TaskId,
        condition: Conditions,
        request: Request,
        now: Timestamp,
    ) -> Result<Answered<Deleted>, Error>;
    /// Attempts of a task that are history, by number, after `after`.
    async fn attempts(
        &self,
        task: u64,
        after: u32,
        limit: u32,
    ) -> Result<Vec<crate::domain::task::AttemptRecord>, Error>;
    /// Instances of a multi-instance task in its latest attempt, by their numbers.
    async fn subtasks(&self, task: u64) -> Result<Vec<Subtask>, Error>;
    /// The answer this request got, if it was seen.
    async fn answer(&self, account: &AccountName, request: &Request) -> Result<Option<Vec<u8>>, Error>;

    /// Pools with jobs that are not completed.
    async fn pools(&self) -> Result<Vec<(AccountName, PoolId)>, Error>;
    /// Jobs of a pool that are not completed.
    async fn pool_jobs(&self, account: &AccountName, pool: &PoolId) -> Result<Vec<JobRow>, Error>;
    /// Tasks of a job that wait or run, by row id, after `after`.
    async fn open_tasks(&self, job: u64, after: u64, limit: u32) -> Result<Vec<OpenTask>, Error>;
    /// Tasks that wait or run in jobs that have not begun to end, added before
    /// `before`, by row id, after `after`.
    async fn old_tasks(&self, before: Timestamp, after: u64, limit: u32) -> Result<Vec<OldTask>, Error>;
    /// Tasks of a job that wait for others and have never started, by row id,
    /// after `after`.
    async fn dependants(&self, job: u64, after: u64, limit: u32) -> Result<Vec<StoredDependant>, Error>;
    /// Where ids stand for the tasks that wait for them, and which row has or
    /// had each (0 if none), in the order of the keys.
    async fn parents(&self, job: u64, keys: Vec<String>) -> Result<Vec<(u64, ParentState)>, Error>;
    /// What is known of the numbers of each of these ranges, both ends included.
    async fn numbers(&self, job: u64, ranges: Vec<(i32, i32)>) -> Result<Vec<Numbers>, Error>;
    /// Those of some numbers that no task has.
    async fn missing_numbers(&self, job: u64, numbers: Vec<i32>) -> Result<Vec<i32>, Error>;
    /// Whole tasks by row id; those that are gone are left out.
    async fn load_tasks(&self, rows: Vec<u64>) -> Result<Vec<TaskRow>, Error>;
    /// Nodes of a job by (node key, pool key), after `after`.
    async fn job_nodes(&self, job: u64, after: Option<(String, String)>, limit: u32) -> Result<Vec<JobNodeRow>, Error>;
    /// Everything a scheduler decided, in one transaction.
    async fn commit(&self, commit: Commit) -> Result<Vec<JobFate>, CommitError>;
    /// Removes up to `limit` tasks of a job that is being deleted; returns how many.
    async fn purge_tasks(&self, job: u64, limit: u32) -> Result<usize, Error>;
    /// Removes the row of a job that is being deleted and has no tasks left.
    async fn remove_job(&self, job: u64, now: Timestamp) -> Result<(), Error>;
    /// Forgets old answers to requests.
    async fn forget(&self, now: Timestamp) -> Result<usize, Error>;
}
