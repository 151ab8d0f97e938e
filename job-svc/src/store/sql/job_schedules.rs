//! Rows of job schedules.

use std::sync::Arc;

use kiln_proto::job::v1::{JobScheduleSpec, JobSpec};
use kiln_store::sql::Row;
use prost::Message;
use tokio::sync::Notify;

use super::*;
use crate::domain::auto_pool::{self, is_of_schedule};
use crate::domain::job::{JobEvent, JobState};
use crate::domain::schedule::{self, Act, Jobs, REASON_SCHEDULE, ScheduleEvent, ScheduleId, ScheduleState};
use crate::domain::{etag, schedule_spec};
use crate::store::events;
use crate::store::schedules::{
    NewSchedule, ScheduleChange, ScheduleRow, ScheduleStore, ScheduleUpdate, ScheduleWhat, Stepped, decode_life,
    encode_life,
};

const COLUMNS: &str = "id, account, schedule_id, version, created, modified, life, spec";
/// Jobs of a deleted schedule that one step has deleted.
const DELETED_AT_ONCE: u32 = 50;

fn read(row: Row<'_>) -> Result<ScheduleRow, StoreError> {
    let text = |at| row.get::<String>(at);
    let blob = |at| row.get_ref(at)?.as_blob().map_err(damaged);
    let id = text(2)?;
    let (life, pool) = decode_life(blob(6)?)?;
    let spec = JobScheduleSpec::decode(blob(7)?).map_err(damaged)?;
    let timing = spec.schedule.as_ref().map(schedule_spec::timing).transpose().map_err(damaged)?.unwrap_or_default();
    Ok(ScheduleRow {
        row: unsigned(row.get(0)?),
        account: AccountName::parse(&text(1)?).map_err(damaged)?,
        id: ScheduleId::parse(&id).map_err(|_| damaged(format!("the schedule id {id:?}")))?,
        life,
        timing,
        pool,
        version: unsigned(row.get(3)?),
        created: Timestamp::from_micros(row.get(4)?),
        last_modified: Timestamp::from_micros(row.get(5)?),
        spec: Arc::new(spec),
    })
}

/// Whether a schedule has the id of a job that is to be.
pub(super) fn has_id(connection: &Connection, account: &AccountName, key: &str) -> Result<bool, StoreError> {
    Ok(connection
        .prepare_cached("SELECT 1 FROM job_schedules WHERE account = ?1 AND schedule_key = ?2")?
        .exists(params![account.key(), key])?)
}

/// A job has ended or is gone: if it is a schedule's, that is to be looked at.
pub(super) fn job_ended(connection: &Connection, account: &AccountName, job: &JobId) -> Result<(), StoreError> {
    if let Some(id) = ScheduleId::of_job(job) {
        connection
            .prepare_cached("UPDATE job_schedules SET look_at = 0 WHERE account = ?1 AND schedule_key = ?2")?
            .execute(params![account.key(), id.key()])?;
    }
    Ok(())
}

fn create(connection: &Connection, new: &NewSchedule, request: &Request) -> Result<Answered<ScheduleRow>, Error> {
    if let Some(answer) = before(connection, &new.account, request)? {
        return Ok(Answered::Before(answer));
    }
    let job_of_that_id = connection
        .prepare_cached("SELECT 1 FROM jobs WHERE account = ?1 AND job_key = ?2")
        .map_err(db)?
        .exists(params![new.account.key(), new.id.key()])
        .map_err(db)?;
    if job_of_that_id {
        return Err(Error::JobWithSameIdExists(new.id.as_str().to_owned()));
    }
    let life = schedule::ScheduleLife::new(&new.timing, new.now);
    let inserted: Option<i64> = connection
        .prepare_cached(
            "INSERT INTO job_schedules (account, schedule_key, schedule_id, version, created, modified, life, spec,
             look_at) VALUES (?1, ?2, ?3, 1, ?4, ?4, ?5, ?6, ?4) ON CONFLICT (account, schedule_key) DO NOTHING
             RETURNING id",
        )
        .map_err(db)?
        .query_row(
            params![
                new.account.key(),
                new.id.key(),
                new.id.as_str(),
                new.now.as_micros(),
                encode_life(&life, None),
                new.spec.encode_to_vec(),
            ],
            |row| row.get(0),
        )
        .optional()
        .map_err(db)?;
    let Some(number) = inserted else {
        return Err(match get(connection, &new.account, &new.id)?.life.state {
            ScheduleState::Deleting => Error::JobScheduleBeingDeleted,
            _ => Error::JobScheduleExists(new.id.as_str().to_owned()),
        });
    };
    let row = ScheduleRow {
        row: unsigned(number),
        account: new.account.clone(),
        id: new.id.clone(),
        life,
        timing: new.timing,
        pool: None,
        version: 1,
        created: new.now,
        last_modified: new.now,
        spec: Arc::new(new.spec.clone()),
    };
    outbox::append(connection, SERVICE, vec![events::schedule(&row, "job.schedule.created", None, new.now)])?;
    remember(connection, &new.account, request, &(new.encode)(&row, new.now), new.now)?;
    Ok(Answered::New(row))
}

fn find(connection: &Connection, account: &AccountName, id: &ScheduleId) -> Result<Option<ScheduleRow>, StoreError> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM job_schedules WHERE account = ?1 AND schedule_key = ?2"))?
        .query_row(params![account.key(), id.key()], |row| Ok(read(row)))
        .optional()?
        .transpose()
}

fn get(connection: &Connection, account: &AccountName, id: &ScheduleId) -> Result<ScheduleRow, Error> {
    find(connection, account, id)?.ok_or_else(|| Error::JobScheduleNotFound(id.as_str().to_owned()))
}

fn list(
    connection: &Connection,
    account: &AccountName,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<ScheduleRow>, StoreError> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM job_schedules WHERE account = ?1 AND schedule_key > ?2 ORDER BY schedule_key LIMIT ?3"
    ))?;
    let mut rows = statement.query(params![account.key(), after.unwrap_or_default(), limit])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(found)
}

fn change(
    connection: &Connection,
    account: &AccountName,
    id: &ScheduleId,
    change: ScheduleChange,
) -> Result<Answered<ScheduleRow>, Error> {
    if let Some(answer) = before(connection, account, &change.request)? {
        return Ok(Answered::Before(answer));
    }
    let mut row = get(connection, account, id)?;
    etag::check(&change.condition, row.last_modified)?;
    let (old, now) = (row.life.state, change.now);
    row.last_modified = etag::next(row.last_modified, now);
    let event_type = match change.what {
        ScheduleWhat::Event(event) => {
            row.life = row.life.apply(&row.timing, event, now)?;
            "job.schedule.state"
        }
        ScheduleWhat::Update(update) => {
            apply_update(&mut row, *update, now)?;
            "job.schedule.updated"
        }
    };
    write(connection, &mut row, Some(change.look_at))?;
    outbox::append(connection, SERVICE, vec![events::schedule(&row, event_type, Some(old), now)])?;
    remember(connection, account, &change.request, &(change.encode)(&row, now), now)?;
    Ok(Answered::New(row))
}

fn apply_update(row: &mut ScheduleRow, update: ScheduleUpdate, now: Timestamp) -> Result<(), Error> {
    row.life.check_update()?;
    let mut spec = (*row.spec).clone();
    if let Some((schedule, timing)) = update.schedule {
        row.life = row.life.retimed(&row.timing, &timing, now);
        row.timing = timing;
        spec.schedule = Some(schedule);
    }
    if let Some(job) = update.job {
        spec.job = Some(job);
    }
    if let Some(metadata) = update.metadata {
        spec.metadata = metadata;
    }
    schedule_spec::check_size(&spec)?;
    row.spec = Arc::new(spec);
    Ok(())
}

fn write(connection: &Connection, row: &mut ScheduleRow, look_at: Option<Timestamp>) -> Result<(), StoreError> {
    row.version += 1;
    connection
        .prepare_cached(
            "UPDATE job_schedules SET version = ?2, modified = ?3, life = ?4, spec = ?5, look_at = ?6 WHERE id = ?1",
        )?
        .execute(params![
            signed(row.row),
            signed(row.version),
            row.last_modified.as_micros(),
            encode_life(&row.life, row.pool.as_ref()),
            row.spec.encode_to_vec(),
            look_at.map(Timestamp::as_micros),
        ])?;
    Ok(())
}

fn set_look_at(connection: &Connection, row: u64, look_at: Option<Timestamp>) -> Result<(), StoreError> {
    connection
        .prepare_cached("UPDATE job_schedules SET look_at = ?2 WHERE id = ?1")?
        .execute(params![signed(row), look_at.map(Timestamp::as_micros)])?;
    Ok(())
}

/// The latest job if it has not completed.
fn active_job(connection: &Connection, row: &ScheduleRow) -> Result<Option<JobRow>, StoreError> {
    let Some(job) = row.recent_job() else { return Ok(None) };
    let found = super::jobs::find(connection, &row.account, &job)?;
    Ok(found.filter(|job| job.life.state != JobState::Completed))
}

/// Jobs of the schedule that nobody has deleted yet, some of them, and whether
/// it has any at all.
fn jobs_to_delete(connection: &Connection, row: &ScheduleRow) -> Result<(Vec<JobRow>, bool), StoreError> {
    // The character after the colon bounds the range.
    let (first, last) = (row.id.job_prefix(), format!("{};", row.id.key()));
    let any = connection
        .prepare_cached("SELECT 1 FROM jobs WHERE account = ?1 AND job_key > ?2 AND job_key < ?3")?
        .exists(params![row.account.key(), first, last])?;
    let rows = super::jobs::in_range(connection, &row.account, &first, &last, DELETED_AT_ONCE)?;
    Ok((rows, any))
}

fn by_row(connection: &Connection, row: u64) -> Result<Option<ScheduleRow>, StoreError> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM job_schedules WHERE id = ?1"))?
        .query_row([signed(row)], |row| Ok(read(row)))
        .optional()?
        .transpose()
}

fn step(connection: &Connection, row: u64, now: Timestamp) -> Result<Stepped, Error> {
    let Some(mut row) = by_row(connection, row)? else { return Ok(Stepped::default()) };
    let active = active_job(connection, &row)?;
    let (to_delete, any) = match row.life.state {
        ScheduleState::Deleting => jobs_to_delete(connection, &row)?,
        _ => (Vec::new(), false),
    };
    let plan = schedule::plan(&row.life, &row.timing, Jobs { active: active.is_some(), any }, now);
    let mut stepped = Stepped::default();
    match plan.act {
        None => set_look_at(connection, row.row, plan.look_at)?,
        Some(Act::Create(due)) => {
            stepped.jobs.push(create_job(connection, &mut row, due, now)?);
            stepped.more = true;
        }
        Some(Act::EndJob) => {
            let end = JobEvent::Terminate(REASON_SCHEDULE.to_owned());
            stepped.jobs.extend(
                active
                    .into_iter()
                    .filter_map(|job| change_job(connection, job, &end, now))
                    .collect::<Result<Vec<_>, _>>()?,
            );
            set_look_at(connection, row.row, None)?;
        }
        Some(Act::DeleteJobs) => {
            stepped.more = to_delete.len() == DELETED_AT_ONCE as usize;
            stepped.jobs.extend(
                to_delete
                    .into_iter()
                    .filter_map(|job| change_job(connection, job, &JobEvent::Delete, now))
                    .collect::<Result<Vec<_>, _>>()?,
            );
            set_look_at(connection, row.row, stepped.more.then_some(now))?;
        }
        Some(Act::Complete) => {
            let old = row.life.state;
            row.life = row.life.apply(&row.timing, ScheduleEvent::Ended, now)?;
            write(connection, &mut row, None)?;
            auto_pools::schedule_ended(connection, &row, now)?;
            outbox::append(connection, SERVICE, vec![events::schedule(&row, "job.schedule.state", Some(old), now)])?;
        }
        Some(Act::Remove) => {
            auto_pools::schedule_ended(connection, &row, now)?;
            connection
                .prepare_cached("DELETE FROM job_schedules WHERE id = ?1")
                .map_err(db)?
                .execute([signed(row.row)])
                .map_err(db)?;
            let gone = events::schedule(&row, "job.schedule.deleted", Some(row.life.state), now);
            outbox::append(connection, SERVICE, vec![gone])?;
            return Ok(stepped);
        }
    }
    stepped.schedule = Some(row);
    Ok(stepped)
}

fn create_job(connection: &Connection, row: &mut ScheduleRow, due: Timestamp, now: Timestamp) -> Result<JobRow, Error> {
    row.life = row.life.apply(&row.timing, ScheduleEvent::Created(due), now)?;
    let spec = row.spec.job.clone().unwrap_or_default();
    let new = NewJob {
        account: row.account.clone(),
        job: row.id.job(row.life.created).map_err(damaged)?,
        pool: pool_of_next_job(row, &spec)?,
        spec,
        traceparent: String::new(),
        now,
        encode: |_| Vec::new(),
    };
    let job = super::jobs::insert(connection, &new)?;
    write(connection, row, Some(now))?;
    Ok(job)
}

/// The schedule's own pool is chosen with its first job, one of a job with each.
fn pool_of_next_job(row: &mut ScheduleRow, spec: &JobSpec) -> Result<PoolId, Error> {
    let of_schedule = spec.auto_pool.as_ref().is_some_and(is_of_schedule);
    if of_schedule && let Some(pool) = &row.pool {
        return Ok(pool.clone());
    }
    let pool = auto_pool::choice(spec)?.resolve(&uuid::Uuid::new_v4().to_string()).map_err(damaged)?;
    if of_schedule {
        row.pool = Some(pool.clone());
    }
    Ok(pool)
}

/// The schedule's pool could not be made: its next job gets another one.
/// Returns the job that waits for it.
pub(super) fn pool_failed(
    connection: &Connection,
    account: &AccountName,
    schedule: &str,
    pool: &PoolId,
) -> Result<Option<JobRow>, StoreError> {
    let id = ScheduleId::parse(schedule).map_err(|_| damaged(format!("the schedule id {schedule:?}")))?;
    let Some(row) = find(connection, account, &id)? else { return Ok(None) };
    if row.pool.as_ref() == Some(pool) {
        connection
            .prepare_cached("UPDATE job_schedules SET version = version + 1, life = ?2 WHERE id = ?1")?
            .execute(params![signed(row.row), encode_life(&row.life, None)])?;
    }
    active_job(connection, &row)
}

/// Applies what the schedule does to one of its jobs; `None` if the job's state
/// does not know it any more.
fn change_job(
    connection: &Connection,
    mut job: JobRow,
    event: &JobEvent,
    now: Timestamp,
) -> Option<Result<JobRow, StoreError>> {
    let old = job.life.state;
    job.life = job.life.apply(event, now).ok()?;
    let written = super::jobs::write(connection, &mut job).and_then(|()| {
        outbox::append(connection, SERVICE, vec![events::job(&job, "job.job.state", Some(old), now, "")])
    });
    Some(written.map(|()| job))
}

#[async_trait]
impl ScheduleStore for SqlStore {
    async fn create_schedule(&self, new: NewSchedule, request: Request) -> Result<Answered<ScheduleRow>, Error> {
        let created = self.database.write(move |connection| create(connection, &new, &request)).await;
        self.schedules.notify_one();
        created
    }

    async fn schedule(&self, account: &AccountName, id: &ScheduleId) -> Result<ScheduleRow, Error> {
        let (account, id) = (account.clone(), id.clone());
        self.database.read(move |connection| get(connection, &account, &id)).await
    }

    async fn list_schedules(
        &self,
        account: &AccountName,
        after: Option<String>,
        limit: u32,
    ) -> Result<Vec<ScheduleRow>, Error> {
        let account = account.clone();
        self.database.read(move |connection| Ok(list(connection, &account, after.as_deref(), limit)?)).await
    }

    async fn change_schedule(
        &self,
        account: &AccountName,
        id: &ScheduleId,
        what: ScheduleChange,
    ) -> Result<Answered<ScheduleRow>, Error> {
        let (account, id) = (account.clone(), id.clone());
        let changed = self.database.write(move |connection| change(connection, &account, &id, what)).await;
        self.schedules.notify_one();
        changed
    }

    async fn due_schedules(&self, now: Timestamp, limit: u32) -> Result<Vec<u64>, Error> {
        let due = move |connection: &Connection| -> Result<Vec<u64>, StoreError> {
            let mut statement = connection
                .prepare_cached("SELECT id FROM job_schedules WHERE look_at <= ?1 ORDER BY look_at LIMIT ?2")?;
            let rows = statement.query_map(params![now.as_micros(), limit], |row| row.get(0).map(unsigned))?;
            Ok(rows.collect::<Result<_, _>>()?)
        };
        self.database.read(move |connection| Ok(due(connection)?)).await
    }

    async fn next_look(&self) -> Result<Option<Timestamp>, Error> {
        self.database
            .read(|connection| {
                connection
                    .prepare_cached("SELECT min(look_at) FROM job_schedules WHERE look_at IS NOT NULL")
                    .and_then(|mut statement| statement.query_row([], |row| row.get::<Option<i64>>(0)))
                    .map(|at| at.map(Timestamp::from_micros))
                    .map_err(db)
            })
            .await
    }

    async fn step_schedule(&self, row: u64, now: Timestamp) -> Result<Stepped, Error> {
        let log = self.log.clone();
        self.database
            .write(move |connection| {
                let stepped = step(connection, row, now)?;
                for job in &stepped.jobs {
                    log.job(connection, job)?;
                }
                Ok(stepped)
            })
            .await
    }

    async fn postpone_schedule(&self, row: u64, until: Timestamp) -> Result<(), Error> {
        self.database.write(move |connection| Ok(set_look_at(connection, row, Some(until))?)).await
    }

    fn schedules_changed(&self) -> Arc<Notify> {
        self.schedules.clone()
    }
}
