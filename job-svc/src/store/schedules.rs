//! What is kept of job schedules.
//!
//! Everything a schedule does by itself is one call of
//! [`ScheduleStore::step_schedule`]: in one transaction the record and its
//! latest job are read, [`plan`](crate::domain::schedule::plan) is asked, and
//! what it says is written: the job together with the schedule's counter and
//! next due time. A crash neither loses nor doubles an occurrence, and two who
//! step at once do not create two jobs.
//!
//! `look_at` is when the next step may be due. The transaction that ends a job
//! of a schedule sets it, so the end of a job cannot be missed.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_etag::Conditions;
use kiln_ids::{AccountName, JobId, PoolId};
use kiln_proto::common::v1::NameValue;
use kiln_proto::job::v1::{JobScheduleSpec, JobSpec, Schedule};
use kiln_store::StoreError;
use kiln_time::Timestamp;
use prost::Message;
use tokio::sync::Notify;

use super::model::{Answered, JobRow, Request};
use crate::domain::Error;
use crate::domain::schedule::{ScheduleEvent, ScheduleId, ScheduleLife, ScheduleState, Timing};

/// A schedule as it is kept.
#[derive(Debug, Clone)]
pub struct ScheduleRow {
    /// Number of the row.
    pub row: u64,
    /// Owner.
    pub account: AccountName,
    /// Its id.
    pub id: ScheduleId,
    /// Its state, and what is due.
    pub life: ScheduleLife,
    /// Its times, out of the spec.
    pub timing: Timing,
    /// The pool that was made for it.
    pub pool: Option<PoolId>,
    /// Goes up with every change of the row.
    pub version: u64,
    /// When it was created.
    pub created: Timestamp,
    /// When a client wrote it last.
    pub last_modified: Timestamp,
    /// What its creator decided, with later updates.
    pub spec: Arc<JobScheduleSpec>,
}

impl ScheduleRow {
    /// The latest job it created.
    pub fn recent_job(&self) -> Option<JobId> {
        if self.life.created == 0 {
            return None;
        }
        self.id.job(self.life.created).ok()
    }
}

/// How an answer is remembered; the time is the one of the change.
pub type EncodeSchedule = fn(&ScheduleRow, Timestamp) -> Vec<u8>;

/// A schedule to be created.
#[derive(Debug, Clone)]
pub struct NewSchedule {
    /// Owner.
    pub account: AccountName,
    /// Its id.
    pub id: ScheduleId,
    /// Its times, out of the spec.
    pub timing: Timing,
    /// What its creator decided.
    pub spec: JobScheduleSpec,
    /// Now.
    pub now: Timestamp,
    /// How the answer is remembered.
    pub encode: EncodeSchedule,
}

/// A client's change of a schedule.
#[derive(Debug, Clone)]
pub struct ScheduleChange {
    /// What.
    pub what: ScheduleWhat,
    /// When its consequences are due.
    pub look_at: Timestamp,
    /// Conditions on the record.
    pub condition: Conditions,
    /// For repeated calls.
    pub request: Request,
    /// How the answer is remembered.
    pub encode: EncodeSchedule,
    /// Now.
    pub now: Timestamp,
}

/// See [`ScheduleChange`].
#[derive(Debug, Clone)]
pub enum ScheduleWhat {
    /// Enable, disable, terminate, delete.
    Event(ScheduleEvent),
    /// Other settings.
    Update(Box<ScheduleUpdate>),
}

/// Settings of a schedule that replace the present ones.
#[derive(Debug, Clone, Default)]
pub struct ScheduleUpdate {
    /// See [`JobScheduleSpec`]; with the times out of it.
    pub schedule: Option<(Schedule, Timing)>,
    /// See [`JobScheduleSpec`].
    pub job: Option<JobSpec>,
    /// See [`JobScheduleSpec`].
    pub metadata: Option<Vec<NameValue>>,
}

/// What one step did. Schedulers of the jobs have to be told.
#[derive(Debug, Clone, Default)]
pub struct Stepped {
    /// A job that was created or changed.
    pub jobs: Vec<JobRow>,
    /// The schedule afterwards; `None` if it is gone.
    pub schedule: Option<ScheduleRow>,
    /// There may be more to do at once.
    pub more: bool,
}

/// Schedules in the database of job-svc.
#[async_trait]
pub trait ScheduleStore: fmt::Debug + Send + Sync + 'static {
    /// Keeps a new schedule. A schedule or job in the same account with this id
    /// is an error.
    async fn create_schedule(&self, new: NewSchedule, request: Request) -> Result<Answered<ScheduleRow>, Error>;
    /// The schedule with this id.
    async fn schedule(&self, account: &AccountName, id: &ScheduleId) -> Result<ScheduleRow, Error>;
    /// Schedules of an account by key, after `after`.
    async fn list_schedules(
        &self,
        account: &AccountName,
        after: Option<String>,
        limit: u32,
    ) -> Result<Vec<ScheduleRow>, Error>;
    /// Changes a schedule as its state machine allows.
    async fn change_schedule(
        &self,
        account: &AccountName,
        id: &ScheduleId,
        change: ScheduleChange,
    ) -> Result<Answered<ScheduleRow>, Error>;
    /// Rows of schedules that are to be looked at, those that wait longest first.
    async fn due_schedules(&self, now: Timestamp, limit: u32) -> Result<Vec<u64>, Error>;
    /// When the next one is to be looked at.
    async fn next_look(&self) -> Result<Option<Timestamp>, Error>;
    /// Does one thing that is due, or notes when to look again.
    async fn step_schedule(&self, row: u64, now: Timestamp) -> Result<Stepped, Error>;
    /// Looks at a schedule later: what it needs cannot be done now.
    async fn postpone_schedule(&self, row: u64, until: Timestamp) -> Result<(), Error>;
    /// Told after each change that may bring the next look forward.
    fn schedules_changed(&self) -> Arc<Notify>;
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredLife {
    #[prost(uint32, tag = "1")]
    state: u32,
    #[prost(sfixed64, tag = "2")]
    since: i64,
    #[prost(uint32, tag = "3")]
    previous: u32,
    #[prost(sfixed64, tag = "4")]
    previous_since: i64,
    #[prost(sfixed64, optional, tag = "5")]
    end: Option<i64>,
    #[prost(sfixed64, optional, tag = "6")]
    next: Option<i64>,
    #[prost(sfixed64, optional, tag = "7")]
    last: Option<i64>,
    #[prost(uint64, tag = "8")]
    created: u64,
    #[prost(string, tag = "9")]
    pool: String,
}

/// The number under which a state is kept.
pub fn state_number(state: ScheduleState) -> u32 {
    match state {
        ScheduleState::Active => 1,
        ScheduleState::Completed => 2,
        ScheduleState::Disabled => 3,
        ScheduleState::Terminating => 4,
        ScheduleState::Deleting => 5,
    }
}

fn state(number: u32) -> Result<ScheduleState, StoreError> {
    Ok(match number {
        1 => ScheduleState::Active,
        2 => ScheduleState::Completed,
        3 => ScheduleState::Disabled,
        4 => ScheduleState::Terminating,
        5 => ScheduleState::Deleting,
        other => return Err(StoreError::Damaged(format!("job schedule state {other}"))),
    })
}

/// Packs what changes about a schedule.
pub fn encode_life(life: &ScheduleLife, pool: Option<&PoolId>) -> Vec<u8> {
    let micros = |at: Option<Timestamp>| at.map(Timestamp::as_micros);
    let stored = StoredLife {
        state: state_number(life.state),
        since: life.since.as_micros(),
        previous: life.previous.map_or(0, |(state, _)| state_number(state)),
        previous_since: life.previous.map_or(0, |(_, since)| since.as_micros()),
        end: micros(life.end),
        next: micros(life.next),
        last: micros(life.last),
        created: life.created,
        pool: pool.map(|pool| pool.as_str().to_owned()).unwrap_or_default(),
    };
    stored.encode_to_vec()
}

/// Unpacks what [`encode_life`] packed.
///
/// # Errors
/// [`StoreError::Damaged`] if it cannot be understood.
pub fn decode_life(bytes: &[u8]) -> Result<(ScheduleLife, Option<PoolId>), StoreError> {
    let damaged = |what: String| StoreError::Damaged(format!("job schedule: {what}"));
    let at = Timestamp::from_micros;
    let stored = StoredLife::decode(bytes).map_err(|error| damaged(error.to_string()))?;
    let previous = match stored.previous {
        0 => None,
        number => Some((state(number)?, at(stored.previous_since))),
    };
    let pool = match stored.pool.as_str() {
        "" => None,
        pool => Some(PoolId::parse(pool).map_err(|why| damaged(why.to_string()))?),
    };
    let life = ScheduleLife {
        state: state(stored.state)?,
        since: at(stored.since),
        previous,
        end: stored.end.map(at),
        next: stored.next.map(at),
        last: stored.last.map(at),
        created: stored.created,
    };
    Ok((life, pool))
}
