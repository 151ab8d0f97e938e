//! What the scheduler reads at its start and writes with each step.

use super::*;
use crate::domain::job::JobState;
use crate::domain::task::{Phase, TaskState};
use crate::store::{codec, events};

pub(super) fn pools(connection: &Connection) -> Result<Vec<(AccountName, PoolId)>, StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT account, min(pool_id) FROM jobs WHERE state <> 6 GROUP BY account, pool_key")?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let account = AccountName::parse(&row.get::<String>(0)?).map_err(damaged)?;
        let pool = PoolId::parse(&row.get::<String>(1)?).map_err(damaged)?;
        found.push((account, pool));
    }
    Ok(found)
}

pub(super) fn jobs(connection: &Connection, account: &AccountName, pool: &PoolId) -> Result<Vec<JobRow>, StoreError> {
    super::jobs::of_pool(connection, account, pool)
}

pub(super) fn open_tasks(
    connection: &Connection,
    job: u64,
    after: u64,
    limit: u32,
) -> Result<Vec<OpenTask>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT id, slots, max_retries, affinity, needs, attempt, retries, phase, record FROM tasks
         WHERE job = ?1 AND id > ?2 AND open = 1 ORDER BY id LIMIT ?3",
    )?;
    let mut rows = statement.query(params![signed(job), signed(after), limit])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let attempt: u32 = row.get(5)?;
        let mut open = OpenTask {
            row: unsigned(row.get(0)?),
            facts: tasks::facts(row, 1)?,
            attempt,
            retry_count: row.get(6)?,
            internal_retries: 0,
            reactivated: false,
            node: None,
        };
        // Of a task that never ran the columns say everything.
        if attempt > 0 || row.get::<u32>(7)? != codec::phase_number(Phase::Active) {
            let task = codec::decode_task(row.get_ref(8)?.as_blob().map_err(damaged)?)?;
            open.internal_retries = task.internal_retry_count;
            open.reactivated = matches!(task.previous, Some((Phase::Completed, _)));
            open.node = match task.state {
                TaskState::Running { node, .. } => Some(node),
                TaskState::Active | TaskState::Completed { .. } => None,
            };
        }
        found.push(open);
    }
    Ok(found)
}

/// Tasks are not older than their job, so young jobs are not looked into.
pub(super) fn old_tasks(
    connection: &Connection,
    before: Timestamp,
    after: u64,
    limit: u32,
) -> Result<Vec<OldTask>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT j.account, j.pool_id, t.job, t.id, t.slots, t.max_retries, t.affinity, t.needs
         FROM jobs j JOIN tasks t ON t.job = j.id
         WHERE j.state NOT IN (5, 6, 7) AND j.created < ?1 AND t.open = 1 AND t.created < ?1 AND t.id > ?2
         ORDER BY t.id LIMIT ?3",
    )?;
    let mut rows = statement.query(params![before.as_micros(), signed(after), limit])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(OldTask {
            account: AccountName::parse(&row.get::<String>(0)?).map_err(damaged)?,
            pool: PoolId::parse(&row.get::<String>(1)?).map_err(damaged)?,
            job: unsigned(row.get(2)?),
            row: unsigned(row.get(3)?),
            facts: tasks::facts(row, 4)?,
        });
    }
    Ok(found)
}

pub(super) fn commit(connection: &Connection, commit: Commit) -> Result<Vec<JobFate>, CommitError> {
    if let Some(fence) = &commit.fence
        && !leases::holds(connection, &commit.account, fence)?
    {
        return Err(CommitError::Fenced { pool: fence.pool.clone(), epoch: fence.epoch });
    }
    write(connection, commit)
}

fn sql(error: kiln_store::sql::Error) -> CommitError {
    CommitError::Store(error.into())
}

fn write_tasks(connection: &Connection, changes: &[TaskWrite]) -> Result<(), CommitError> {
    let mut step = connection
        .batch(
            "UPDATE tasks SET phase = ?4, attempt = ?5, retries = ?6, record = ?7
             WHERE id = ?1 AND phase = ?2 AND attempt = ?3",
            0,
        )
        .map_err(sql)?;
    // Apart, so that the index of open tasks is only touched at the end.
    let mut finish = connection
        .batch(
            "UPDATE tasks SET phase = ?4, attempt = ?5, retries = ?6, record = ?7, open = NULL
             WHERE id = ?1 AND phase = ?2 AND attempt = ?3",
            0,
        )
        .map_err(sql)?;
    let ends = |change: &&TaskWrite| change.task.state.phase() == Phase::Completed;
    for change in changes {
        let batch = if ends(&change) { &mut finish } else { &mut step };
        batch
            .add(params![
                signed(change.row),
                codec::phase_number(change.expect.0),
                change.expect.1,
                codec::phase_number(change.task.state.phase()),
                change.task.attempt,
                change.task.retry_count,
                codec::encode_task(&change.task),
            ])
            .map_err(sql)?;
    }
    let stale =
        |change: Option<&TaskWrite>| change.map_or(Ok(()), |change| Err(CommitError::Stale { row: change.row }));
    if let Some(at) = step.finish().map_err(sql)?.first() {
        stale(changes.iter().filter(|change| !ends(change)).nth(*at))?;
    }
    if let Some(at) = finish.finish().map_err(sql)?.first() {
        stale(changes.iter().filter(ends).nth(*at))?;
    }
    Ok(())
}

fn write(connection: &Connection, commit: Commit) -> Result<Vec<JobFate>, CommitError> {
    write_tasks(connection, &commit.tasks)?;
    depends::ended(connection, &commit.parents)?;
    tasks::insert_attempts(connection, &commit.history)?;
    tasks::put_subtasks(connection, &commit.subtasks)?;
    if !commit.deleted.is_empty() {
        depends::removed(connection, &commit.deleted)?;
        tasks::remove(connection, &commit.deleted)?;
    }
    for (job, delta) in &commit.counts {
        super::jobs::add_counts(connection, *job, delta)?;
    }
    outbox::append(connection, SERVICE, commit.events)?;
    for write in &commit.job_nodes {
        nodes::write(connection, &commit.account, write)?;
    }
    let mut fates = Vec::with_capacity(commit.jobs.len());
    for job in &commit.jobs {
        fates.push(super::jobs::system_change(connection, job, commit.now)?);
    }
    for answer in &commit.answers {
        let account = commit.account.key();
        if requests::lookup(connection, &account, answer.request.method, &answer.request.id)?.is_some() {
            continue;
        }
        requests::record(
            connection,
            &account,
            answer.request.method,
            &answer.request.id,
            &answer.answer,
            commit.now.as_micros(),
        )?;
    }
    Ok(fates)
}

pub(super) fn purge(connection: &Connection, job: u64, limit: u32) -> Result<usize, StoreError> {
    let Some(row) = super::jobs::by_row(connection, job)? else { return Ok(0) };
    if row.life.state != JobState::Deleting {
        return Ok(0);
    }
    let mut statement = connection.prepare_cached("SELECT id FROM tasks WHERE job = ?1 LIMIT ?2")?;
    let rows: Vec<u64> =
        statement.query_map(params![signed(job), limit], |row| row.get(0).map(unsigned))?.collect::<Result<_, _>>()?;
    tasks::remove(connection, &rows)?;
    if rows.is_empty() {
        return Ok(nodes::purge(connection, job, limit)? + depends::purge(connection, job, limit)?);
    }
    Ok(rows.len())
}

pub(super) fn remove_job(connection: &Connection, job: u64, now: Timestamp) -> Result<(), StoreError> {
    let Some(row) = super::jobs::by_row(connection, job)? else { return Ok(()) };
    if row.life.state != JobState::Deleting {
        return Ok(());
    }
    connection.prepare_cached("DELETE FROM jobs WHERE id = ?1")?.execute([signed(job)])?;
    connection.prepare_cached("DELETE FROM counts WHERE job = ?1")?.execute([signed(job)])?;
    auto_pools::job_ended(connection, &row, now)?;
    job_schedules::job_ended(connection, &row.account, &row.job)?;
    outbox::append(connection, SERVICE, vec![events::job(&row, "job.job.deleted", Some(row.life.state), now, "")])
}
