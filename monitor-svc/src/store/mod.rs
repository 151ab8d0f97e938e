//! What the service keeps: the event log and counters over time.
//!
//! [`Store`] is the contract; [`sql::SqlStore`] keeps it in one file.
//! `conformance` checks every implementation.

#[cfg(test)]
pub mod conformance;
mod retention;
pub mod sql;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_store::StoreError;

use crate::domain::counts::{Changes, Span};
use crate::domain::fact::{Fact, Logged};

/// What [`Store::append`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Appended {
    /// (account, topic) of the events that were new, each once.
    pub topics: Vec<(String, String)>,
    /// How many were new; the others were known.
    pub new: usize,
}

/// The log as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogState {
    /// Tells this log from any other.
    pub id: String,
    /// Events it has.
    pub events: i64,
    /// Everything up to this position was deleted.
    pub floor: i64,
    /// No event has a higher position yet.
    pub last: i64,
}

/// Which events [`Store::list`] gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Lower case.
    pub subject_prefix: String,
    /// As it is.
    pub type_prefix: String,
}

/// A page of [`Store::list`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// Oldest first.
    pub events: Vec<Logged>,
    /// Everything up to here was looked at; `None` at the end of the log. A
    /// page may be short, or empty, although there is more.
    pub next: Option<i64>,
}

/// The events of some tasks of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskEvents {
    /// (task key, its events), in order of keys.
    pub tasks: Vec<(String, Vec<Logged>)>,
    /// There are further tasks.
    pub more: bool,
}

/// A source with events that are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Which store announced them.
    pub source: String,
    /// The first sequence that is missing.
    pub first_missing: i64,
    /// The highest sequence that came.
    pub newest: i64,
    /// Since when it is missing.
    pub since_micros: i64,
}

/// What [`Store::prune`] leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Events since then, and counters by second and minute.
    pub since_micros: i64,
    /// Events at most.
    pub max_events: u64,
    /// Counters of jobs and pools in which nothing changed since then, although
    /// they have tasks or nodes.
    pub idle_since_micros: i64,
}

/// What [`Store::prune`] deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Events.
    pub events: usize,
    /// Rows of counters.
    pub counters: usize,
    /// There may be more to delete: call again.
    pub more: bool,
}

/// The contract. Every read is limited to one account.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Stores the events that are not in the log yet, with what they add to
    /// counters, in one transaction that is durable when this answers.
    async fn append(&self, facts: Arc<Vec<Fact>>, now_micros: i64) -> Result<Appended, StoreError>;

    /// The log as a whole.
    async fn log(&self) -> Result<LogState, StoreError>;

    /// Events of one topic behind `after`, in order.
    async fn topic(&self, account: &str, topic: &str, after: i64, limit: u32) -> Result<Vec<Logged>, StoreError>;

    /// Events of the account behind `after`, in order.
    async fn list(&self, account: &str, filter: Filter, after: i64, limit: u32) -> Result<Listed, StoreError>;

    /// The last event whose subject is exactly `subject` and whose type is one
    /// of `types` (any, if there are none).
    async fn last_of(&self, account: &str, subject: &str, types: &[&str]) -> Result<Option<Logged>, StoreError>;

    /// Events of the job's tasks with keys behind `after_task`, by task.
    async fn tasks(
        &self,
        account: &str,
        job: &str,
        after_task: Option<String>,
        limit: u32,
    ) -> Result<TaskEvents, StoreError>;

    /// What changed counters of `scope` during `span`, not counting what was
    /// before `since_micros`.
    async fn changes(
        &self,
        account: &str,
        scope: &str,
        span: Span,
        since_micros: Option<i64>,
    ) -> Result<Changes, StoreError>;

    /// The first second in which a counter of `scope` changed.
    async fn first_change(&self, account: &str, scope: &str) -> Result<Option<i64>, StoreError>;

    /// Sources that miss events.
    async fn gaps(&self) -> Result<Vec<Gap>, StoreError>;

    /// Stops to wait for what is missing since before `before_micros`.
    async fn accept_gaps(&self, before_micros: i64) -> Result<usize, StoreError>;

    /// Deletes a bounded number of rows: events and counters that are not to be
    /// kept.
    async fn prune(&self, keep: Keep) -> Result<Pruned, StoreError>;
}
