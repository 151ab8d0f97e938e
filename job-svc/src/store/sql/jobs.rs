//! Rows of jobs.

use std::sync::Arc;

use kiln_proto::job::v1::{JobSpec, OnAllTasksComplete, OnTaskFailure};
use kiln_store::sql::Row;
use prost::Message;

use super::*;
use crate::domain::auto_pool::is_of_schedule;
use crate::domain::etag;
use crate::domain::job::{JobEvent, JobLife, JobState};
use crate::domain::{job_manager, job_tasks};
use crate::store::{codec, events};

const COLUMNS: &str = "id, account, job_id, pool_id, version, created, modified, life, spec";

fn read(row: Row<'_>) -> Result<JobRow, StoreError> {
    let text = |at| row.get::<String>(at);
    let account = AccountName::parse(&text(1)?).map_err(damaged)?;
    let job = JobId::parse(&text(2)?).map_err(damaged)?;
    let pool = PoolId::parse(&text(3)?).map_err(damaged)?;
    let blob = |at| row.get_ref(at)?.as_blob().map_err(damaged);
    Ok(JobRow {
        row: unsigned(row.get(0)?),
        account,
        job,
        pool,
        version: unsigned(row.get(4)?),
        created: Timestamp::from_micros(row.get(5)?),
        last_modified: Timestamp::from_micros(row.get(6)?),
        life: codec::decode_life(blob(7)?)?,
        spec: Arc::new(JobSpec::decode(blob(8)?).map_err(damaged)?),
    })
}

fn read_all(mut rows: kiln_store::sql::Rows<'_>) -> Result<Vec<JobRow>, StoreError> {
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(found)
}

fn exit_actions(spec: &JobSpec) -> bool {
    spec.on_task_failure() == OnTaskFailure::PerformExitOptionsJobAction
}

pub(super) fn create(connection: &Connection, new: &NewJob, request: &Request) -> Result<Answered<JobRow>, Error> {
    if let Some(answer) = before(connection, &new.account, request)? {
        return Ok(Answered::Before(answer));
    }
    if job_schedules::has_id(connection, &new.account, &new.job.key())? {
        return Err(Error::JobScheduleWithSameIdExists(new.job.as_str().to_owned()));
    }
    let row = insert(connection, new)?;
    remember(connection, &new.account, request, &(new.encode)(&row), new.now)?;
    Ok(Answered::New(row))
}

/// A new job with everything that is made with it.
pub(super) fn insert(connection: &Connection, new: &NewJob) -> Result<JobRow, Error> {
    let life = JobLife::new(new.now);
    let mut spec = new.spec.clone();
    job_tasks::fill_in(&mut spec);
    let [preparation, release] = job_tasks::reserved(&spec).map(|id| id.map(|id| id.key().into_owned()));
    let inserted: Option<i64> = connection
        .prepare_cached(
            "INSERT INTO jobs (account, job_key, job_id, pool_key, pool_id, state, exit_actions, version, created,
             modified, life, spec, preparation_key, release_key, dependencies)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 1, ?8, ?8, ?9, ?10, ?11, ?12, ?13)
             ON CONFLICT (account, job_key) DO NOTHING RETURNING id",
        )
        .map_err(db)?
        .query_row(
            params![
                new.account.key(),
                new.job.key(),
                new.job.as_str(),
                new.pool.key(),
                new.pool.as_str(),
                codec::job_state_number(life.state),
                exit_actions(&spec),
                new.now.as_micros(),
                codec::encode_life(&life),
                spec.encode_to_vec(),
                preparation,
                release,
                spec.uses_task_dependencies,
            ],
            |row| row.get(0),
        )
        .optional()
        .map_err(db)?;
    let Some(number) = inserted else {
        return Err(match get(connection, &new.account, &new.job)?.life.state {
            JobState::Deleting => Error::JobBeingDeleted,
            _ => Error::JobExists(new.job.as_str().to_owned()),
        });
    };
    let row = JobRow {
        row: unsigned(number),
        account: new.account.clone(),
        job: new.job.clone(),
        pool: new.pool.clone(),
        life,
        version: 1,
        created: new.now,
        last_modified: new.now,
        spec: Arc::new(spec),
    };
    connection
        .prepare_cached("INSERT INTO counts (job) VALUES (?1)")
        .map_err(db)?
        .execute([signed(row.row)])
        .map_err(db)?;
    auto_pools::wanted(connection, &row, new.now)?;
    outbox::append(connection, SERVICE, vec![events::job(&row, "job.job.created", None, new.now, &new.traceparent)])?;
    add_manager(connection, &row, new)?;
    Ok(row)
}

fn add_manager(connection: &Connection, row: &JobRow, new: &NewJob) -> Result<(), Error> {
    let Some((id, facts, spec)) = job_manager::task_of(&row.spec)? else { return Ok(()) };
    let task = NewTask { id, facts, spec: spec.encode_to_vec().into(), names_job_action: false, depends: None };
    let add = AddTasks {
        account: new.account.clone(),
        job: new.job.clone(),
        tasks: vec![Ok(task)],
        same_is_added: false,
        request: Request::default(),
        encode: |_| Vec::new(),
        traceparent: new.traceparent.as_str().into(),
        now: new.now,
    };
    if let Answered::New(added) = tasks::add(connection, add)? {
        for result in added.results {
            result.outcome?;
        }
    }
    Ok(())
}

pub(super) fn get(connection: &Connection, account: &AccountName, job: &JobId) -> Result<JobRow, Error> {
    find(connection, account, job)?.ok_or_else(|| Error::JobNotFound(job.as_str().to_owned()))
}

pub(super) fn find(connection: &Connection, account: &AccountName, job: &JobId) -> Result<Option<JobRow>, StoreError> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM jobs WHERE account = ?1 AND job_key = ?2"))?
        .query_row(params![account.key(), job.key()], |row| Ok(read(row)))
        .optional()?
        .transpose()
}

/// Jobs with keys between `first` and `last` that nobody has deleted yet.
pub(super) fn in_range(
    connection: &Connection,
    account: &AccountName,
    first: &str,
    last: &str,
    limit: u32,
) -> Result<Vec<JobRow>, StoreError> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM jobs WHERE account = ?1 AND job_key > ?2 AND job_key < ?3 AND state <> ?4 LIMIT ?5"
    ))?;
    let deleting = codec::job_state_number(JobState::Deleting);
    read_all(statement.query(params![account.key(), first, last, deleting, limit])?)
}

pub(super) fn by_row(connection: &Connection, row: u64) -> Result<Option<JobRow>, StoreError> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1"))?
        .query_row([signed(row)], |row| Ok(read(row)))
        .optional()?
        .transpose()
}

pub(super) fn list(
    connection: &Connection,
    account: &AccountName,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<JobRow>, StoreError> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM jobs WHERE account = ?1 AND job_key > ?2 ORDER BY job_key LIMIT ?3"
    ))?;
    read_all(statement.query(params![account.key(), after.unwrap_or_default(), limit])?)
}

pub(super) fn of_pool(
    connection: &Connection,
    account: &AccountName,
    pool: &PoolId,
) -> Result<Vec<JobRow>, StoreError> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM jobs WHERE account = ?1 AND pool_key = ?2 AND state <> 6 ORDER BY id"
    ))?;
    read_all(statement.query(params![account.key(), pool.key()])?)
}

pub(super) fn counts(connection: &Connection, job: u64) -> Result<Counts, StoreError> {
    let mut counts = Counts::default();
    connection
        .prepare_cached(
            "SELECT active, running, succeeded, failed, active_slots, running_slots, succeeded_slots, failed_slots
             FROM counts WHERE job = ?1",
        )?
        .query_row([signed(job)], |row| {
            for at in 0..4 {
                counts.tasks[at] = row.get(at)?;
                counts.slots[at] = row.get(at + 4)?;
            }
            Ok(())
        })
        .optional()?;
    Ok(counts)
}

pub(super) fn add_counts(connection: &Connection, job: u64, delta: &CountsDelta) -> Result<(), StoreError> {
    if delta.is_zero() {
        return Ok(());
    }
    let [active, running, succeeded, failed] = delta.tasks;
    let [active_slots, running_slots, succeeded_slots, failed_slots] = delta.slots;
    connection
        .prepare_cached(
            "UPDATE counts SET active = active + ?2, running = running + ?3, succeeded = succeeded + ?4,
             failed = failed + ?5, active_slots = active_slots + ?6, running_slots = running_slots + ?7,
             succeeded_slots = succeeded_slots + ?8, failed_slots = failed_slots + ?9 WHERE job = ?1",
        )?
        .execute(params![
            signed(job),
            active,
            running,
            succeeded,
            failed,
            active_slots,
            running_slots,
            succeeded_slots,
            failed_slots
        ])?;
    Ok(())
}

pub(super) fn change(
    connection: &Connection,
    account: &AccountName,
    job: &JobId,
    change: JobChange,
    condition: &Conditions,
    request: &Request,
    now: Timestamp,
) -> Result<Answered<JobRow>, Error> {
    if let Some(answer) = before(connection, account, request)? {
        return Ok(Answered::Before(answer));
    }
    let mut row = get(connection, account, job)?;
    etag::check(condition, row.last_modified)?;
    let old = row.life.state;
    row.last_modified = etag::next(row.last_modified, now);
    let (event_type, encode) = match change {
        JobChange::Event(event, encode) => {
            row.life = row.life.apply(&event, now)?;
            ("job.job.state", encode)
        }
        JobChange::Update(update, encode) => {
            apply_update(&mut row, *update)?;
            ("job.job.updated", encode)
        }
    };
    write(connection, &mut row)?;
    outbox::append(connection, SERVICE, vec![events::job(&row, event_type, Some(old), now, "")])?;
    remember(connection, account, request, &encode(&row), now)?;
    Ok(Answered::New(row))
}

fn apply_update(row: &mut JobRow, update: JobUpdate) -> Result<(), Error> {
    row.life.state.check_update()?;
    let mut spec = (*row.spec).clone();
    if let Some(priority) = update.priority {
        spec.priority = priority;
    }
    if let Some(max) = update.max_parallel_tasks {
        spec.max_parallel_tasks = Some(max);
    }
    if let Some(allowed) = update.allow_task_preemption {
        spec.allow_task_preemption = allowed;
    }
    if let Some(constraints) = update.constraints {
        spec.constraints = Some(constraints);
    }
    if let Some(metadata) = update.metadata {
        spec.metadata = metadata;
    }
    if let Some(action) = update.on_all_tasks_complete {
        let was = spec.on_all_tasks_complete();
        if was == OnAllTasksComplete::TerminateJob && action != OnAllTasksComplete::TerminateJob {
            return Err(Error::invalid(
                "onAllTasksComplete",
                "noaction",
                "cannot go back once the job is set to terminate when all tasks are complete",
            ));
        }
        spec.on_all_tasks_complete = action.into();
    }
    if let Some(keep_alive) = update.keep_alive {
        let own = spec.auto_pool.as_mut().filter(|auto| !is_of_schedule(auto));
        own.ok_or_else(|| {
            let field = "poolInfo.autoPoolSpecification.keepAlive";
            Error::invalid(field, keep_alive, "can be changed if the pool was made for this job alone")
        })?
        .keep_alive = keep_alive;
    }
    if let Some(pool) = update.pool
        && pool != row.pool
    {
        if spec.auto_pool.is_some() {
            let why = "the pool was made for the job, which stays on it";
            return Err(Error::invalid("poolInfo.poolId", pool, why));
        }
        if row.life.state != JobState::Disabled {
            return Err(Error::JobState {
                state: row.life.state.name(),
                need: "its pool can be changed when it is disabled",
            });
        }
        spec.pool_id = pool.as_str().to_owned();
        row.pool = pool;
    }
    row.spec = Arc::new(spec);
    Ok(())
}

pub(super) fn write(connection: &Connection, row: &mut JobRow) -> Result<(), StoreError> {
    row.version += 1;
    connection
        .prepare_cached(
            "UPDATE jobs SET pool_key = ?2, pool_id = ?3, state = ?4, version = ?5, modified = ?6, life = ?7, spec = ?8
             WHERE id = ?1",
        )?
        .execute(params![
            signed(row.row),
            row.pool.key(),
            row.pool.as_str(),
            codec::job_state_number(row.life.state),
            signed(row.version),
            row.last_modified.as_micros(),
            codec::encode_life(&row.life),
            row.spec.encode_to_vec(),
        ])?;
    Ok(())
}

/// What the scheduler decided about a job. Events that the state does not know
/// any more are dropped: the scheduler gets the row as it is and thinks again.
pub(super) fn system_change(connection: &Connection, write_: &JobWrite, now: Timestamp) -> Result<JobFate, StoreError> {
    let Some(mut row) = by_row(connection, write_.job)? else { return Ok(JobFate::Gone(write_.job)) };
    let still = match write_.only_if_open {
        None => true,
        Some(open) => counts(connection, row.row)?.open() == i64::try_from(open).unwrap_or(i64::MAX),
    };
    let old = row.life.state;
    // A job that the service disables or ends must be one that is at work.
    let at_work = old == JobState::Active || write_.event == JobEvent::Drained || old == JobState::Enabling;
    let may = at_work || matches!(write_.event, JobEvent::Terminate(_));
    if still
        && may
        && let Ok(life) = row.life.apply(&write_.event, now)
    {
        row.life = life;
        write(connection, &mut row)?;
        outbox::append(connection, SERVICE, vec![events::job(&row, "job.job.state", Some(old), now, "")])?;
        if row.life.state == JobState::Completed {
            auto_pools::job_ended(connection, &row, now)?;
            job_schedules::job_ended(connection, &row.account, &row.job)?;
        }
    }
    Ok(JobFate::Row(Box::new(row)))
}
