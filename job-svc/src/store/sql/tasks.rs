//! Rows of tasks, as the API adds and changes them.

use bytes::Bytes;
use kiln_proto::job::v1::TaskSpec;
use kiln_store::sql::Row;
use prost::Message;

use super::*;
use crate::domain::etag;
use crate::domain::needs::Needs;
use crate::domain::spec::TaskFacts;
use crate::domain::subtask::Subtask;
use crate::domain::task::{AttemptRecord, Phase, Task, TaskEvent};
use crate::store::{codec, events};

const COLUMNS: &str = "t.id, t.job, t.task_key, t.task_id, t.slots, t.max_retries, t.affinity, t.needs, t.created,
    t.modified, t.record, s.spec, s.traceparent FROM tasks t JOIN task_specs s ON s.id = t.id";

pub(super) fn facts(row: Row<'_>, at: usize) -> Result<TaskFacts, StoreError> {
    let slots: u16 = row.get(at)?;
    let needs = match row.get_ref(at + 3)?.as_blob_or_null().map_err(damaged)? {
        None => Needs::slots(slots),
        Some(bytes) => codec::decode_needs(slots, bytes)?,
    };
    Ok(TaskFacts { needs, max_retries: row.get(at + 1)?, affinity: row.get(at + 2)? })
}

fn read(row: Row<'_>) -> Result<TaskRow, StoreError> {
    let id: Option<String> = row.get(3)?;
    let id = match id {
        Some(id) => id,
        None => row.get(2)?,
    };
    let blob = |at| row.get_ref(at)?.as_blob().map_err(damaged);
    Ok(TaskRow {
        row: unsigned(row.get(0)?),
        job: unsigned(row.get(1)?),
        id: TaskId::parse(&id).map_err(damaged)?,
        facts: facts(row, 4)?,
        created: Timestamp::from_micros(row.get(8)?),
        last_modified: Timestamp::from_micros(row.get(9)?),
        task: codec::decode_task(blob(10)?)?,
        spec: Bytes::copy_from_slice(blob(11)?),
        traceparent: row.get::<String>(12)?.into(),
    })
}

fn names<'a>(job: &'a JobRow, task: &'a TaskRow) -> events::TaskNames<'a> {
    events::TaskNames {
        account: &job.account,
        pool: &job.pool,
        job: &job.job,
        task: &task.id,
        slots: task.facts.needs.slots,
        traceparent: &task.traceparent,
    }
}

pub(super) fn add(connection: &Connection, add: AddTasks) -> Result<Answered<Added>, Error> {
    if let Some(answer) = before(connection, &add.account, &add.request)? {
        return Ok(Answered::Before(answer));
    }
    let found = connection
        .prepare_cached(
            "SELECT id, pool_id, state, exit_actions, job_id, preparation_key, release_key, dependencies
             FROM jobs
             WHERE account = ?1 AND job_key = ?2",
        )
        .map_err(db)?
        .query_row(params![add.account.key(), add.job.key()], |row| {
            Ok((
                row.get::<i64>(0)?,
                row.get::<String>(1)?,
                row.get::<u32>(2)?,
                row.get::<bool>(3)?,
                row.get::<String>(4)?,
                [row.get::<Option<String>>(5)?, row.get(6)?],
                row.get::<bool>(7)?,
            ))
        })
        .optional()
        .map_err(db)?;
    let (job, pool, state, exit_actions, job_id, reserved, dependencies) =
        found.ok_or_else(|| Error::JobNotFound(add.job.as_str().to_owned()))?;
    codec::job_state(state)?.check_add()?;
    let pool = PoolId::parse(&pool).map_err(damaged)?;
    let job_id = JobId::parse(&job_id).map_err(damaged)?;
    let mut next: i64 = connection
        .prepare_cached("SELECT id FROM next_task")
        .map_err(db)?
        .query_row([], |row| row.get(0))
        .map_err(db)?;
    let mut delta = CountsDelta::default();
    let mut announced = Vec::with_capacity(add.tasks.len());
    let mut results = Vec::with_capacity(add.tasks.len());
    // What the job does not allow, with the id.
    let check = |task: NewTask| {
        let id = task.id.as_str();
        let refused = if task.names_job_action && !exit_actions {
            let why = "needs a job whose onTaskFailure is performExitOptionsJobAction";
            Error::invalid("exitConditions.jobAction", id, why)
        } else if task.depends.is_some() && !dependencies {
            Error::NoDependencies(id.to_owned())
        } else if let Some(at) = reserved.iter().position(|reserved| reserved.as_deref() == Some(&*task.id.key())) {
            let (what, reason) =
                [("preparation", "TaskIdSameAsJobPreparationTask"), ("release", "TaskIdSameAsJobReleaseTask")][at];
            Error::TaskIdReserved { id: id.to_owned(), what, reason }
        } else {
            return Ok(task);
        };
        Err((id.to_owned(), refused))
    };
    let fresh = Task::new(add.now);
    let record = codec::encode_task(&fresh);
    let mut insert = connection
        .batch(
            "INSERT INTO tasks (id, job, task_key, task_id, open, phase, attempt, retries, slots, max_retries, affinity,
             created, modified, record, needs) VALUES (?1, ?2, ?3, ?4, 1, 1, 0, 0, ?5, ?6, ?7, ?8, ?8, ?9, ?10)
             ON CONFLICT (job, task_key) DO NOTHING",
            0,
        )
        .map_err(db)?;
    // The place of each result whose task was given a row.
    let mut candidates = Vec::with_capacity(add.tasks.len());
    for task in add.tasks {
        let (id, task) = match task.map_err(|error| (String::new(), error)).and_then(&check) {
            Ok(task) => (task.id.as_str().to_owned(), task),
            Err((id, error)) => {
                results.push(AddResult { id, outcome: Err(error) });
                continue;
            }
        };
        let key = task.id.key();
        let written = if *key == id { None } else { Some(id.as_str()) };
        insert
            .add(params![
                next,
                job,
                key,
                written,
                task.facts.needs.slots,
                task.facts.max_retries,
                task.facts.affinity,
                add.now.as_micros(),
                record,
                codec::encode_needs(&task.facts.needs)
            ])
            .map_err(db)?;
        candidates.push((results.len(), next, task));
        next += 1;
        // Until it is known better.
        results.push(AddResult { outcome: Err(Error::TaskExists(id.clone())), id });
    }
    let missed = insert.finish().map_err(db)?;
    let mut rest = missed.iter().peekable();
    let mut is_new = |at: usize| rest.next_if(|missed| **missed == at).is_none();
    let (new, old): (Vec<_>, Vec<_>) = candidates.into_iter().enumerate().partition(|(at, _)| is_new(*at));
    let mut insert_spec =
        connection.batch("INSERT INTO task_specs (id, spec, traceparent) VALUES (?1, ?2, ?3)", 0).map_err(db)?;
    for (_, (_, row, task)) in &new {
        insert_spec.add(params![row, &task.spec[..], &*add.traceparent]).map_err(db)?;
    }
    insert_spec.finish().map_err(db)?;
    if dependencies {
        let keys: Vec<_> = new.iter().map(|(_, (_, row, task))| (*row, task.id.key(), task.depends.as_ref())).collect();
        depends::added(connection, job, keys.iter().map(|(row, key, on)| (*row, &**key, *on)))?;
    }
    // Also those that came twice in this call: the first one is there now.
    for (_, (at, _, task)) in old {
        results[at].outcome = existing(connection, job, &task.id.key(), &task, add.same_is_added)?;
    }
    let any = !new.is_empty();
    for (_, (at, number, task)) in new {
        let row = TaskRow {
            row: unsigned(number),
            job: unsigned(job),
            id: task.id,
            facts: task.facts,
            created: add.now,
            last_modified: add.now,
            task: fresh.clone(),
            spec: task.spec,
            traceparent: add.traceparent.clone(),
        };
        delta.moved(None, Some(Bucket::Active), row.facts.needs.slots);
        let names = events::TaskNames {
            account: &add.account,
            pool: &pool,
            job: &job_id,
            task: &row.id,
            slots: row.facts.needs.slots,
            traceparent: &row.traceparent,
        };
        announced.push(events::task(names, "job.task.added", None, &row.task, None, "", add.now));
        results[at].outcome = Ok(AddedTask { last_modified: add.now, new: Some(row) });
    }
    if any {
        connection.prepare_cached("UPDATE next_task SET id = ?1").map_err(db)?.execute([next]).map_err(db)?;
        jobs::add_counts(connection, unsigned(job), &delta)?;
        outbox::append(connection, SERVICE, announced)?;
    }
    let added = Added { job: unsigned(job), pool, results };
    // A call that added nothing changed nothing: it is judged anew.
    if any {
        remember(connection, &add.account, &add.request, &(add.encode)(&added), add.now)?;
    }
    Ok(Answered::New(added))
}

/// A task with this id is there already.
fn existing(
    connection: &Connection,
    job: i64,
    key: &str,
    task: &NewTask,
    same_is_added: bool,
) -> Result<Result<AddedTask, Error>, Error> {
    if same_is_added {
        let (modified, same) = connection
            .prepare_cached(
                "SELECT t.modified, s.spec = ?3 FROM tasks t JOIN task_specs s ON s.id = t.id
                 WHERE t.job = ?1 AND t.task_key = ?2",
            )
            .map_err(db)?
            .query_row(params![job, key, &task.spec[..]], |row| Ok((row.get::<i64>(0)?, row.get::<bool>(1)?)))
            .map_err(db)?;
        if same {
            return Ok(Ok(AddedTask { new: None, last_modified: Timestamp::from_micros(modified) }));
        }
    }
    Ok(Err(Error::TaskExists(task.id.as_str().to_owned())))
}

pub(super) fn get(
    connection: &Connection,
    account: &AccountName,
    job: &JobId,
    task: &TaskId,
) -> Result<(JobRow, TaskRow), Error> {
    let job = jobs::get(connection, account, job)?;
    let found = connection
        .prepare_cached(&format!("SELECT {COLUMNS} WHERE t.job = ?1 AND t.task_key = ?2"))
        .map_err(db)?
        .query_row(params![signed(job.row), task.key()], |row| Ok(read(row)))
        .optional()
        .map_err(db)?;
    match found {
        Some(found) => {
            let found = found?;
            Ok((job, found))
        }
        None => Err(Error::TaskNotFound { job: job.job.as_str().to_owned(), task: task.as_str().to_owned() }),
    }
}

pub(super) fn list(
    connection: &Connection,
    job: u64,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<TaskRow>, StoreError> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} WHERE t.job = ?1 AND t.task_key > ?2 ORDER BY t.task_key LIMIT ?3"
    ))?;
    let mut rows = statement.query(params![signed(job), after.unwrap_or_default(), limit])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(found)
}

pub(super) fn by_rows(connection: &Connection, rows: &[u64]) -> Result<Vec<TaskRow>, StoreError> {
    let mut found = Vec::with_capacity(rows.len());
    let keys = rows.iter().map(|row| [signed(*row)]);
    connection.each(&format!("SELECT {COLUMNS} WHERE t.id = ?1"), keys, |_, row| {
        found.push(read(row)?);
        Ok::<_, StoreError>(())
    })?;
    Ok(found)
}

pub(super) fn update(
    connection: &Connection,
    account: &AccountName,
    job: &JobId,
    task: &TaskId,
    update: &TaskUpdate,
) -> Result<Answered<TaskRow>, Error> {
    if let Some(answer) = before(connection, account, &update.request)? {
        return Ok(Answered::Before(answer));
    }
    let (job, mut row) = get(connection, account, job, task)?;
    etag::check(&update.condition, row.last_modified)?;
    job.life.state.check_update()?;
    if row.task.state.phase() == Phase::Completed {
        return Err(Error::TaskCompleted);
    }
    let mut spec = TaskSpec::decode(row.spec.clone()).map_err(damaged)?;
    spec.constraints.clone_from(&update.constraints);
    row.spec = spec.encode_to_vec().into();
    row.facts.max_retries = update.max_retries;
    row.last_modified = etag::next(row.last_modified, update.now);
    connection
        .prepare_cached("UPDATE tasks SET max_retries = ?2, modified = ?3 WHERE id = ?1")
        .map_err(db)?
        .execute(params![signed(row.row), row.facts.max_retries, row.last_modified.as_micros()])
        .map_err(db)?;
    connection
        .prepare_cached("UPDATE task_specs SET spec = ?2 WHERE id = ?1")
        .map_err(db)?
        .execute(params![signed(row.row), &row.spec[..]])
        .map_err(db)?;
    remember(connection, account, &update.request, &(update.encode)(&job, &row), update.now)?;
    Ok(Answered::New(row))
}

pub(super) fn reactivate(
    connection: &Connection,
    account: &AccountName,
    job: &JobId,
    task: &TaskId,
    condition: &Conditions,
    request: &Request,
    now: Timestamp,
) -> Result<Answered<TaskRow>, Error> {
    if let Some(answer) = before(connection, account, request)? {
        return Ok(Answered::Before(answer));
    }
    let (job, mut row) = get(connection, account, job, task)?;
    etag::check(condition, row.last_modified)?;
    job.life.state.check_add()?;
    let (phase, bucket) = (row.task.state.phase(), Bucket::of(&row.task));
    let transition = row.task.apply(TaskEvent::Reactivate, now)?;
    row.task = transition.task;
    row.last_modified = etag::next(row.last_modified, now);
    if let Some(attempt) = &transition.history {
        insert_attempts(connection, &[(row.row, attempt.clone())])?;
    }
    connection
        .prepare_cached("UPDATE tasks SET open = 1, phase = 1, retries = 0, modified = ?2, record = ?3 WHERE id = ?1")
        .map_err(db)?
        .execute(params![signed(row.row), row.last_modified.as_micros(), codec::encode_task(&row.task)])
        .map_err(db)?;
    let mut delta = CountsDelta::default();
    delta.moved(Some(bucket), Some(Bucket::Active), row.facts.needs.slots);
    jobs::add_counts(connection, job.row, &delta)?;
    if job.spec.uses_task_dependencies {
        depends::reactivated(connection, &row)?;
    }
    let event = events::task(names(&job, &row), "job.task.requeued", Some(phase), &row.task, None, "Reactivated", now);
    outbox::append(connection, SERVICE, vec![event])?;
    remember(connection, account, request, &[], now)?;
    Ok(Answered::New(row))
}

pub(super) fn delete_completed(
    connection: &Connection,
    account: &AccountName,
    job: &JobId,
    task: &TaskId,
    condition: &Conditions,
    request: &Request,
    now: Timestamp,
) -> Result<Answered<Deleted>, Error> {
    if let Some(answer) = before(connection, account, request)? {
        return Ok(Answered::Before(answer));
    }
    let (job, row) = get(connection, account, job, task)?;
    etag::check(condition, row.last_modified)?;
    if job.life.state == crate::domain::job::JobState::Deleting {
        return Err(Error::JobBeingDeleted);
    }
    let phase = row.task.state.phase();
    if phase != Phase::Completed {
        return Ok(Answered::New(Deleted::Live(job, row)));
    }
    if job.spec.uses_task_dependencies {
        depends::removed(connection, &[row.row])?;
    }
    remove(connection, &[row.row])?;
    let mut delta = CountsDelta::default();
    delta.moved(Some(Bucket::of(&row.task)), None, row.facts.needs.slots);
    jobs::add_counts(connection, job.row, &delta)?;
    let event = events::task(names(&job, &row), "job.task.deleted", Some(phase), &row.task, None, "", now);
    outbox::append(connection, SERVICE, vec![event])?;
    remember(connection, account, request, &[], now)?;
    Ok(Answered::New(Deleted::Gone(job, row)))
}

/// Removes everything about tasks.
pub(super) fn remove(connection: &Connection, rows: &[u64]) -> Result<(), StoreError> {
    for statement in [
        "DELETE FROM tasks WHERE id = ?1",
        "DELETE FROM task_specs WHERE id = ?1",
        "DELETE FROM attempts WHERE task = ?1",
        "DELETE FROM subtasks WHERE task = ?1",
    ] {
        let mut delete = connection.batch(statement, 0)?;
        for row in rows {
            delete.add([signed(*row)])?;
        }
        delete.finish()?;
    }
    Ok(())
}

/// Attempts that became history, with their tasks.
pub(super) fn insert_attempts(connection: &Connection, attempts: &[(u64, AttemptRecord)]) -> Result<(), StoreError> {
    if attempts.is_empty() {
        return Ok(());
    }
    let mut insert = connection.batch(
        "INSERT INTO attempts (task, number, record) VALUES (?1, ?2, ?3)
         ON CONFLICT (task, number) DO UPDATE SET record = excluded.record",
        2,
    )?;
    for (task, attempt) in attempts {
        insert.add(params![signed(*task), attempt.number, codec::encode_attempt(attempt)])?;
    }
    insert.finish()?;
    Ok(())
}

pub(super) fn attempts(
    connection: &Connection,
    task: u64,
    after: u32,
    limit: u32,
) -> Result<Vec<AttemptRecord>, StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT record FROM attempts WHERE task = ?1 AND number > ?2 ORDER BY number LIMIT ?3")?;
    let mut rows = statement.query(params![signed(task), after, limit])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(codec::decode_attempt(row.get_ref(0)?.as_blob().map_err(damaged)?)?);
    }
    Ok(found)
}

/// Instances as they are now, with their tasks.
pub(super) fn put_subtasks(connection: &Connection, subtasks: &[(u64, Subtask)]) -> Result<(), StoreError> {
    if subtasks.is_empty() {
        return Ok(());
    }
    let mut put = connection.batch(
        "INSERT INTO subtasks (task, instance, record) VALUES (?1, ?2, ?3)
         ON CONFLICT (task, instance) DO UPDATE SET record = excluded.record",
        2,
    )?;
    for (task, subtask) in subtasks {
        put.add(params![signed(*task), subtask.instance, codec::encode_subtask(subtask)])?;
    }
    put.finish()?;
    Ok(())
}

pub(super) fn subtasks(connection: &Connection, task: u64) -> Result<Vec<Subtask>, StoreError> {
    let mut statement =
        connection.prepare_cached("SELECT instance, record FROM subtasks WHERE task = ?1 ORDER BY instance")?;
    let mut rows = statement.query([signed(task)])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(codec::decode_subtask(row.get(0)?, row.get_ref(1)?.as_blob().map_err(damaged)?)?);
    }
    Ok(found)
}
