//! The [`Store`] in SQL, whichever database is behind it.
//!
//! [`jobs`] and [`tasks`] are the API's half, [`schedule`] the scheduler's;
//! [`job_schedules`] are the schedules that create jobs, [`auto_pools`] the
//! pools that jobs bring along, [`depends`] is about tasks that wait for others;
//! [`leases`] are about which replica schedules a pool, [`changes`] what others
//! tell it.
//! Every function here takes the connection of a transaction; [`SqlStore`]
//! puts them into one.

mod auto_pools;
mod changes;
mod depends;
mod job_schedules;
mod jobs;
mod leases;
mod nodes;
mod schedule;
mod tasks;

use std::sync::Arc;

use async_trait::async_trait;
use kiln_etag::Conditions;
use kiln_ids::{AccountName, JobId, PoolId, TaskId};
use kiln_store::sql::{Connection, OptionalExtension, params};
use kiln_store::{Database, Durability, Migration, StoreConfig, StoreError, outbox, requests};
use kiln_time::Timestamp;
use tokio::sync::Notify;

use super::Store;
use super::leases::Change;
use super::model::*;
use crate::domain::Error;
use crate::domain::dependencies::ParentState;
use crate::domain::subtask::Subtask;
use crate::domain::task::AttemptRecord;

/// Name under which events are announced.
const SERVICE: &str = "job-svc";

const MIGRATIONS: &[Migration] = &[
    Migration::new(1, outbox::SCHEMA),
    Migration::new(2, requests::SCHEMA),
    Migration::new(3, include_str!("../schema.sql")),
    Migration::new(4, include_str!("../needs.sql")),
    Migration::new(5, include_str!("../depends.sql")),
    Migration::new(6, include_str!("../job_nodes.sql")),
    Migration::new(7, include_str!("../schedules.sql")),
    Migration::new(8, include_str!("../leases.sql")),
];

/// See the module.
#[derive(Debug, Clone)]
pub struct SqlStore {
    database: Database,
    /// Something about a schedule may be due sooner than thought.
    schedules: Arc<Notify>,
    /// This life of the process.
    replica: Arc<str>,
    /// There may be other replicas on the database.
    shared: bool,
    log: changes::Log,
}

impl SqlStore {
    /// Opens the database, making it if needed.
    ///
    /// # Errors
    /// [`StoreError`] if that fails.
    pub async fn open(config: impl Into<StoreConfig>) -> Result<Self, StoreError> {
        let config = config.into();
        let shared = matches!(config, StoreConfig::Postgres(_));
        let database = Database::open(config, Durability::PowerLoss, MIGRATIONS).await?;
        let replica: Arc<str> = uuid::Uuid::new_v4().to_string().into();
        let log = changes::Log::new(shared.then(|| replica.clone()));
        Ok(Self { database, schedules: Arc::default(), replica, shared, log })
    }

    /// For the outbox relay.
    pub fn database(&self) -> &Database {
        &self.database
    }
}

/// Numbers in the file are signed.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn db(error: kiln_store::sql::Error) -> Error {
    Error::Store(error.into())
}

fn damaged(what: impl std::fmt::Display) -> StoreError {
    StoreError::Damaged(what.to_string())
}

/// Looks up the answer to a request; `None` if it is new.
fn before(connection: &Connection, account: &AccountName, request: &Request) -> Result<Option<Vec<u8>>, Error> {
    Ok(requests::lookup(connection, &account.key(), request.method, &request.id)?)
}

fn remember(
    connection: &Connection,
    account: &AccountName,
    request: &Request,
    answer: &[u8],
    now: Timestamp,
) -> Result<(), Error> {
    Ok(requests::record(connection, &account.key(), request.method, &request.id, answer, now.as_micros())?)
}

#[async_trait]
impl Store for SqlStore {
    async fn create_job(&self, job: NewJob, request: Request) -> Result<Answered<JobRow>, Error> {
        let log = self.log.clone();
        self.database
            .write(move |connection| {
                let answered = jobs::create(connection, &job, &request)?;
                if let Answered::New(row) = &answered {
                    log.job(connection, row)?;
                }
                Ok(answered)
            })
            .await
    }

    async fn job(&self, account: &AccountName, job: &JobId) -> Result<JobRow, Error> {
        let (account, job) = (account.clone(), job.clone());
        self.database.read(move |connection| jobs::get(connection, &account, &job)).await
    }

    async fn job_by_row(&self, row: u64) -> Result<Option<JobRow>, Error> {
        self.database.read(move |connection| Ok(jobs::by_row(connection, row)?)).await
    }

    async fn list_jobs(&self, account: &AccountName, after: Option<String>, limit: u32) -> Result<Vec<JobRow>, Error> {
        let account = account.clone();
        self.database.read(move |connection| Ok(jobs::list(connection, &account, after.as_deref(), limit)?)).await
    }

    async fn change_job(
        &self,
        account: &AccountName,
        job: &JobId,
        change: JobChange,
        condition: Conditions,
        request: Request,
        now: Timestamp,
    ) -> Result<Answered<JobRow>, Error> {
        let (account, job, log) = (account.clone(), job.clone(), self.log.clone());
        let moves = matches!(&change, JobChange::Update(update, _) if update.pool.is_some());
        self.database
            .write(move |connection| {
                let answered = jobs::change(connection, &account, &job, change, &condition, &request, now)?;
                match &answered {
                    // The pool that it leaves hears of it, too.
                    Answered::New(row) if moves => log.add(connection, &account, None, &Change::Job(row.row))?,
                    Answered::New(row) => log.job(connection, row)?,
                    Answered::Before(_) => {}
                }
                Ok(answered)
            })
            .await
    }

    async fn counts(&self, account: &AccountName, job: &JobId) -> Result<Counts, Error> {
        let (account, job) = (account.clone(), job.clone());
        self.database
            .read(move |connection| {
                let row = jobs::get(connection, &account, &job)?;
                Ok(jobs::counts(connection, row.row)?)
            })
            .await
    }

    async fn add_tasks(&self, add: AddTasks) -> Result<Answered<Added>, Error> {
        let log = self.log.clone();
        self.database
            .write(move |connection| {
                let account = add.account.clone();
                let answered = tasks::add(connection, add)?;
                if let Answered::New(added) = &answered {
                    let new = |result: &AddResult| Some(result.outcome.as_ref().ok()?.new.as_ref()?.row);
                    let rows = || added.results.iter().filter_map(new);
                    if let (Some(first), Some(last)) = (rows().min(), rows().max()) {
                        let change = Change::Added { job: added.job, first, last };
                        log.add(connection, &account, Some(&added.pool), &change)?;
                    }
                }
                Ok(answered)
            })
            .await
    }

    async fn task(&self, account: &AccountName, job: &JobId, task: &TaskId) -> Result<(JobRow, TaskRow), Error> {
        let (account, job, task) = (account.clone(), job.clone(), task.clone());
        self.database.read(move |connection| tasks::get(connection, &account, &job, &task)).await
    }

    async fn list_tasks(&self, job: u64, after: Option<String>, limit: u32) -> Result<Vec<TaskRow>, Error> {
        self.database.read(move |connection| Ok(tasks::list(connection, job, after.as_deref(), limit)?)).await
    }

    async fn update_task(
        &self,
        account: &AccountName,
        job: &JobId,
        task: &TaskId,
        update: TaskUpdate,
    ) -> Result<Answered<TaskRow>, Error> {
        let (account, job, task) = (account.clone(), job.clone(), task.clone());
        let log = self.log.clone();
        self.database
            .write(move |connection| {
                let answered = tasks::update(connection, &account, &job, &task, &update)?;
                if let Answered::New(row) = &answered {
                    let change = Change::Constraints { job: row.job, row: row.row };
                    log.add(connection, &account, None, &change)?;
                }
                Ok(answered)
            })
            .await
    }

    async fn reactivate_task(
        &self,
        account: &AccountName,
        job: &JobId,
        task: &TaskId,
        condition: Conditions,
        request: Request,
        now: Timestamp,
    ) -> Result<Answered<TaskRow>, Error> {
        let (account, job, task) = (account.clone(), job.clone(), task.clone());
        let log = self.log.clone();
        self.database
            .write(move |connection| {
                let answered = tasks::reactivate(connection, &account, &job, &task, &condition, &request, now)?;
                if let Answered::New(row) = &answered {
                    let change = Change::Reactivated { job: row.job, row: row.row };
                    log.add(connection, &account, None, &change)?;
                }
                Ok(answered)
            })
            .await
    }

    async fn delete_completed_task(
        &self,
        account: &AccountName,
        job: &JobId,
        task: &TaskId,
        condition: Conditions,
        request: Request,
        now: Timestamp,
    ) -> Result<Answered<Deleted>, Error> {
        let (account, job, task) = (account.clone(), job.clone(), task.clone());
        let log = self.log.clone();
        self.database
            .write(move |connection| {
                let answered = tasks::delete_completed(connection, &account, &job, &task, &condition, &request, now)?;
                if let Answered::New(Deleted::Gone(job, task)) = &answered
                    && job.spec.uses_task_dependencies
                {
                    let change = Change::Deleted { job: job.row, row: task.row, key: task.id.key().into_owned() };
                    log.add(connection, &account, Some(&job.pool), &change)?;
                }
                Ok(answered)
            })
            .await
    }

    async fn attempts(&self, task: u64, after: u32, limit: u32) -> Result<Vec<AttemptRecord>, Error> {
        self.database.read(move |connection| Ok(tasks::attempts(connection, task, after, limit)?)).await
    }

    async fn subtasks(&self, task: u64) -> Result<Vec<Subtask>, Error> {
        self.database.read(move |connection| Ok(tasks::subtasks(connection, task)?)).await
    }

    async fn answer(&self, account: &AccountName, request: &Request) -> Result<Option<Vec<u8>>, Error> {
        let (account, request) = (account.clone(), request.clone());
        self.database.read(move |connection| before(connection, &account, &request)).await
    }

    async fn pools(&self) -> Result<Vec<(AccountName, PoolId)>, Error> {
        self.database.read(|connection| Ok(schedule::pools(connection)?)).await
    }

    async fn pool_jobs(&self, account: &AccountName, pool: &PoolId) -> Result<Vec<JobRow>, Error> {
        let (account, pool) = (account.clone(), pool.clone());
        self.database.read(move |connection| Ok(schedule::jobs(connection, &account, &pool)?)).await
    }

    async fn open_tasks(&self, job: u64, after: u64, limit: u32) -> Result<Vec<OpenTask>, Error> {
        self.database.read(move |connection| Ok(schedule::open_tasks(connection, job, after, limit)?)).await
    }

    async fn old_tasks(&self, before: Timestamp, after: u64, limit: u32) -> Result<Vec<OldTask>, Error> {
        self.database.read(move |connection| Ok(schedule::old_tasks(connection, before, after, limit)?)).await
    }

    async fn dependants(&self, job: u64, after: u64, limit: u32) -> Result<Vec<StoredDependant>, Error> {
        self.database.read(move |connection| Ok(depends::dependants(connection, job, after, limit)?)).await
    }

    async fn parents(&self, job: u64, keys: Vec<String>) -> Result<Vec<(u64, ParentState)>, Error> {
        self.database.read(move |connection| Ok(depends::parents(connection, job, &keys)?)).await
    }

    async fn numbers(&self, job: u64, ranges: Vec<(i32, i32)>) -> Result<Vec<Numbers>, Error> {
        self.database.read(move |connection| Ok(depends::numbers(connection, job, &ranges)?)).await
    }

    async fn missing_numbers(&self, job: u64, numbers: Vec<i32>) -> Result<Vec<i32>, Error> {
        self.database.read(move |connection| Ok(depends::missing(connection, job, &numbers)?)).await
    }

    async fn load_tasks(&self, rows: Vec<u64>) -> Result<Vec<TaskRow>, Error> {
        self.database.read(move |connection| Ok(tasks::by_rows(connection, &rows)?)).await
    }

    async fn job_nodes(&self, job: u64, after: Option<(String, String)>, limit: u32) -> Result<Vec<JobNodeRow>, Error> {
        self.database.read(move |connection| Ok(nodes::list(connection, job, after.as_ref(), limit)?)).await
    }

    async fn commit(&self, commit: Commit) -> Result<Vec<JobFate>, CommitError> {
        let fates = self.database.write(move |connection| schedule::commit(connection, commit)).await?;
        if fates.iter().any(JobFate::ends_job_of_schedule) {
            self.schedules.notify_one();
        }
        Ok(fates)
    }

    async fn purge_tasks(&self, job: u64, limit: u32) -> Result<usize, Error> {
        self.database.write(move |connection| Ok(schedule::purge(connection, job, limit)?)).await
    }

    async fn remove_job(&self, job: u64, now: Timestamp) -> Result<(), Error> {
        let removed = self.database.write(move |connection| Ok(schedule::remove_job(connection, job, now)?)).await;
        self.schedules.notify_one();
        removed
    }

    async fn forget(&self, now: Timestamp) -> Result<usize, Error> {
        self.database.write(move |connection| Ok(requests::forget(connection, now.as_micros())?)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_upgrade_leads_to_the_same_schema() {
        kiln_store::testing::check_migrations(MIGRATIONS).await;
    }
}
