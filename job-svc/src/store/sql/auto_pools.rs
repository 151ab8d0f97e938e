//! Rows of pools that jobs and schedules bring along.

use std::time::Duration;

use kiln_proto::common::v1::FailureInfo;
use kiln_proto::events::v1::event::Payload;
use kiln_proto::events::v1::{JobChanged, JobScheduleChanged};
use kiln_proto::job::v1::{AutoPool, JobScheduleState, JobState as WireState};
use kiln_store::outbox::NewEvent;
use prost::Message;

use super::*;
use crate::domain::auto_pool::{is_of_schedule, without_passwords};
use crate::domain::schedule::ScheduleId;
use crate::store::auto_pools::{AutoPoolStore, PoolAnswer};
use crate::store::events;
use crate::store::schedules::ScheduleRow;

/// First and longest wait before something is announced again.
const AGAIN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(3600));

fn wait(tries: u32) -> Duration {
    AGAIN.0.saturating_mul(1 << tries.min(16)).min(AGAIN.1)
}

/// A job was created that brings a pool along. Later jobs of a schedule find
/// the schedule's pool noted already.
pub(super) fn wanted(connection: &Connection, job: &JobRow, now: Timestamp) -> Result<(), StoreError> {
    let Some(auto) = &job.spec.auto_pool else { return Ok(()) };
    let schedule = ScheduleId::of_job(&job.job).filter(|_| is_of_schedule(auto));
    connection
        .prepare_cached(
            "INSERT INTO auto_pools (account, pool_key, pool_id, job_id, schedule_id, keep_alive, spec, over,
             announce_at, tries) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, ?8, 0)
             ON CONFLICT (account, pool_key) DO NOTHING",
        )?
        .execute(params![
            job.account.key(),
            job.pool.key(),
            job.pool.as_str(),
            job.job.as_str(),
            schedule.as_ref().map(ScheduleId::as_str),
            auto.keep_alive,
            auto.encode_to_vec(),
            now.plus(wait(0)).as_micros(),
        ])?;
    Ok(())
}

/// A job has ended: so has its own pool.
pub(super) fn job_ended(connection: &Connection, job: &JobRow, now: Timestamp) -> Result<(), StoreError> {
    match job.spec.auto_pool.as_ref().filter(|auto| !is_of_schedule(auto)) {
        Some(auto) => over(connection, &job.account, &job.pool, auto.keep_alive, now),
        None => Ok(()),
    }
}

/// A schedule has ended: so has its pool.
pub(super) fn schedule_ended(connection: &Connection, row: &ScheduleRow, now: Timestamp) -> Result<(), StoreError> {
    match &row.pool {
        Some(pool) => over(connection, &row.account, pool, events::keeps_pool(row), now),
        None => Ok(()),
    }
}

fn over(
    connection: &Connection,
    account: &AccountName,
    pool: &PoolId,
    keep_alive: bool,
    now: Timestamp,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "UPDATE auto_pools SET over = 1, keep_alive = ?3, announce_at = ?4, tries = 0
             WHERE account = ?1 AND pool_key = ?2 AND over = 0",
        )?
        .execute(params![account.key(), pool.key(), keep_alive, now.plus(wait(0)).as_micros()])?;
    Ok(())
}

struct Known {
    account: String,
    pool_key: String,
    pool_id: String,
    job_id: String,
    schedule_id: Option<String>,
    keep_alive: bool,
    spec: AutoPool,
    over: bool,
    tries: u32,
}

const COLUMNS: &str = "account, pool_key, pool_id, job_id, schedule_id, keep_alive, spec, over, tries";

fn read(row: kiln_store::sql::Row<'_>) -> Result<Known, StoreError> {
    Ok(Known {
        account: row.get(0)?,
        pool_key: row.get(1)?,
        pool_id: row.get(2)?,
        job_id: row.get(3)?,
        schedule_id: row.get(4)?,
        keep_alive: row.get(5)?,
        spec: AutoPool::decode(row.get_ref(6)?.as_blob().map_err(damaged)?).map_err(damaged)?,
        over: row.get(7)?,
        tries: row.get(8)?,
    })
}

fn announce(connection: &Connection, now: Timestamp, limit: u32) -> Result<usize, StoreError> {
    let mut due = Vec::new();
    {
        let mut statement = connection.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM auto_pools WHERE announce_at <= ?1 ORDER BY announce_at LIMIT ?2"
        ))?;
        let mut rows = statement.query(params![now.as_micros(), limit])?;
        while let Some(row) = rows.next()? {
            due.push(read(row)?);
        }
    }
    for known in &due {
        let next = now.plus(wait(known.tries + 1)).as_micros();
        connection
            .prepare_cached(
                "UPDATE auto_pools SET announce_at = ?3, tries = tries + 1 WHERE account = ?1 AND pool_key = ?2",
            )?
            .execute(params![known.account, known.pool_key, next])?;
    }
    let count = due.len();
    outbox::append(connection, SERVICE, due.into_iter().map(|known| again(known, now)).collect())?;
    Ok(count)
}

/// The announcement once more, in the form of the events that made it first.
fn again(known: Known, now: Timestamp) -> NewEvent {
    let event_type = if known.over { "job.auto_pool.over" } else { "job.auto_pool.wanted" };
    let (subject, payload) = match known.schedule_id {
        Some(schedule) if known.over => (
            format!("jobschedules/{schedule}"),
            Payload::JobSchedule(JobScheduleChanged {
                job_schedule_id: schedule,
                new_state: JobScheduleState::Completed.into(),
                pool_id: known.pool_id,
                keep_alive: known.keep_alive,
                ..JobScheduleChanged::default()
            }),
        ),
        schedule => (
            format!("jobs/{}", known.job_id),
            Payload::Job(JobChanged {
                job_id: known.job_id,
                pool_id: known.pool_id,
                new_state: if known.over { WireState::Completed } else { WireState::Active }.into(),
                auto_pool: Some(without_passwords(AutoPool {
                    keep_alive: known.keep_alive,
                    pool: known.spec.pool.filter(|_| !known.over),
                    ..known.spec
                })),
                job_schedule_id: schedule.unwrap_or_default(),
                ..JobChanged::default()
            }),
        ),
    };
    let traceparent = String::new();
    NewEvent { time_micros: now.as_micros(), account: known.account, subject, event_type, traceparent, payload }
}

fn answered(
    connection: &Connection,
    account: &AccountName,
    pool: &PoolId,
    answer: PoolAnswer,
    now: Timestamp,
) -> Result<Option<JobRow>, StoreError> {
    let known = connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM auto_pools WHERE account = ?1 AND pool_key = ?2"))?
        .query_row(params![account.key(), pool.key()], |row| Ok(read(row)))
        .optional()?
        .transpose()?;
    let Some(known) = known else { return Ok(None) };
    let forget = || -> Result<(), StoreError> {
        connection
            .prepare_cached("DELETE FROM auto_pools WHERE account = ?1 AND pool_key = ?2")?
            .execute(params![account.key(), pool.key()])?;
        Ok(())
    };
    match (answer, known.over) {
        // An answer to what was announced before the end, or of no interest.
        (PoolAnswer::Made | PoolAnswer::Failed(_), true) | (PoolAnswer::Released, false) => Ok(None),
        (PoolAnswer::Made, false) => {
            connection
                .prepare_cached("UPDATE auto_pools SET announce_at = NULL WHERE account = ?1 AND pool_key = ?2")?
                .execute(params![account.key(), pool.key()])?;
            Ok(None)
        }
        (PoolAnswer::Released, true) => forget().map(|()| None),
        (PoolAnswer::Failed(failure), false) => {
            forget()?;
            let job = match &known.schedule_id {
                // The job that waits for it now; the next one gets another pool.
                Some(schedule) => job_schedules::pool_failed(connection, account, schedule, pool)?,
                None => super::jobs::find(connection, account, &JobId::parse(&known.job_id).map_err(damaged)?)?,
            };
            match job.filter(|job| job.pool == *pool) {
                Some(job) => fail_job(connection, job, failure, now),
                None => Ok(None),
            }
        }
    }
}

fn fail_job(
    connection: &Connection,
    mut job: JobRow,
    failure: FailureInfo,
    now: Timestamp,
) -> Result<Option<JobRow>, StoreError> {
    let old = job.life.state;
    // A job that is ending anyway ends as it would.
    let Ok(life) = job.life.fail(failure, now) else { return Ok(None) };
    job.life = life;
    super::jobs::write(connection, &mut job)?;
    outbox::append(connection, SERVICE, vec![events::job(&job, "job.job.state", Some(old), now, "")])?;
    Ok(Some(job))
}

#[async_trait]
impl AutoPoolStore for SqlStore {
    async fn announce_auto_pools(&self, now: Timestamp, limit: u32) -> Result<usize, Error> {
        self.database.write(move |connection| Ok(announce(connection, now, limit)?)).await
    }

    async fn next_announcement(&self) -> Result<Option<Timestamp>, Error> {
        self.database
            .read(|connection| {
                connection
                    .prepare_cached("SELECT min(announce_at) FROM auto_pools WHERE announce_at IS NOT NULL")
                    .and_then(|mut statement| statement.query_row([], |row| row.get::<Option<i64>>(0)))
                    .map(|at| at.map(Timestamp::from_micros))
                    .map_err(db)
            })
            .await
    }

    async fn auto_pool_answered(
        &self,
        account: &AccountName,
        pool: &PoolId,
        answer: PoolAnswer,
        now: Timestamp,
    ) -> Result<Option<JobRow>, Error> {
        let (account, pool, log) = (account.clone(), pool.clone(), self.log.clone());
        self.database
            .write(move |connection| {
                let ended = answered(connection, &account, &pool, answer, now)?;
                if let Some(job) = &ended {
                    log.job(connection, job)?;
                }
                Ok(ended)
            })
            .await
    }
}
