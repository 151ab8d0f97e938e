//! Tasks that wait for others, and what is known of those.
//!
//! Only for jobs that use dependencies.

use kiln_proto::job::v1::{TaskDependencies, TaskIdRange, TaskSpec};
use kiln_store::sql::Value;
use prost::Message;

use super::*;
use crate::domain::dependencies::{Dependencies, ParentState, number_of};

fn state_number(state: ParentState) -> u32 {
    match state {
        ParentState::Missing | ParentState::Open => 0,
        ParentState::Satisfied => 1,
        ParentState::Blocks => 2,
    }
}

fn state(number: u32) -> Result<ParentState, StoreError> {
    Ok(match number {
        0 => ParentState::Open,
        1 => ParentState::Satisfied,
        2 => ParentState::Blocks,
        other => return Err(damaged(format!("state {other} of a parent"))),
    })
}

fn encode(on: &Dependencies) -> Vec<u8> {
    let ranges = on.ranges.iter().map(|(start, end)| TaskIdRange { start: *start, end: *end });
    TaskDependencies { task_ids: on.ids.clone(), task_id_ranges: ranges.collect() }.encode_to_vec()
}

/// New tasks, each with its row, its key and what it waits for. Whoever had its
/// id before is forgotten.
pub(super) fn added<'t>(
    connection: &Connection,
    job: i64,
    tasks: impl Iterator<Item = (i64, &'t str, Option<&'t Dependencies>)> + Clone,
) -> Result<(), StoreError> {
    let mut parents = connection.batch(
        "INSERT INTO parents (job, task_key, task, number, state) VALUES (?1, ?2, ?3, ?4, 0)
         ON CONFLICT (job, task_key) DO UPDATE SET task = excluded.task, number = excluded.number, state = 0",
        0,
    )?;
    for (row, key, _) in tasks.clone() {
        parents.add(params![job, key, row, number_of(key)])?;
    }
    parents.finish()?;
    insert_dependants(connection, job, tasks.filter_map(|(row, _, on)| Some((row, on?))))
}

fn insert_dependants<'t>(
    connection: &Connection,
    job: i64,
    tasks: impl Iterator<Item = (i64, &'t Dependencies)>,
) -> Result<(), StoreError> {
    let mut insert = connection.batch(
        "INSERT INTO dependants (job, task, depends) VALUES (?1, ?2, ?3)
         ON CONFLICT (job, task) DO UPDATE SET depends = excluded.depends",
        0,
    )?;
    for (row, on) in tasks {
        insert.add(params![job, row, encode(on)])?;
    }
    insert.finish()?;
    Ok(())
}

/// Tasks have completed.
pub(super) fn ended(connection: &Connection, ends: &[ParentWrite]) -> Result<(), StoreError> {
    if ends.is_empty() {
        return Ok(());
    }
    let mut parents =
        connection.batch("UPDATE parents SET state = ?4 WHERE job = ?1 AND task_key = ?2 AND task = ?3", 3)?;
    for end in ends {
        let state = if end.satisfies { ParentState::Satisfied } else { ParentState::Blocks };
        parents.add(params![signed(end.job), end.key, signed(end.row), state_number(state)])?;
    }
    parents.finish()?;
    let mut dependants = connection.batch("DELETE FROM dependants WHERE job = ?1 AND task = ?2", 2)?;
    for end in ends {
        dependants.add([signed(end.job), signed(end.row)])?;
    }
    dependants.finish()?;
    Ok(())
}

/// A completed task is active again; one that never ran waits for its parents again.
pub(super) fn reactivated(connection: &Connection, row: &TaskRow) -> Result<(), StoreError> {
    connection
        .prepare_cached("UPDATE parents SET state = 0 WHERE job = ?1 AND task_key = ?2 AND task = ?3")?
        .execute(params![signed(row.job), row.id.key(), signed(row.row)])?;
    if row.task.attempt == 0 {
        let spec = TaskSpec::decode(row.spec.clone()).map_err(damaged)?;
        if let Some(on) = spec.depends_on.as_ref().and_then(Dependencies::of) {
            insert_dependants(connection, signed(row.job), std::iter::once((signed(row.row), &on)))?;
        }
    }
    Ok(())
}

/// Tasks are about to be removed. That they were satisfied stays.
pub(super) fn removed(connection: &Connection, rows: &[u64]) -> Result<(), StoreError> {
    let mut keys: Vec<(i64, String, i64)> = Vec::with_capacity(rows.len());
    let ids = rows.iter().map(|row| [signed(*row)]);
    connection.each("SELECT t.job, t.task_key, t.id FROM tasks t WHERE t.id = ?1", ids, |_, row| {
        keys.push((row.get(0)?, row.get(1)?, row.get(2)?));
        Ok::<_, StoreError>(())
    })?;
    let mut parents =
        connection.batch("DELETE FROM parents WHERE job = ?1 AND task_key = ?2 AND task = ?3 AND state <> 1", 0)?;
    for (job, key, row) in &keys {
        parents.add(params![job, key, row])?;
    }
    parents.finish()?;
    let mut dependants = connection.batch("DELETE FROM dependants WHERE job = ?1 AND task = ?2", 0)?;
    for (job, _, row) in &keys {
        dependants.add([job, row])?;
    }
    dependants.finish()?;
    Ok(())
}

/// Removes up to `limit` rows of a job whose tasks are gone.
pub(super) fn purge(connection: &Connection, job: u64, limit: u32) -> Result<usize, StoreError> {
    let limited = |table: &str, column: &str| {
        format!(
            "DELETE FROM {table} WHERE job = ?1 AND {column} IN
             (SELECT {column} FROM {table} WHERE job = ?1 LIMIT ?2)"
        )
    };
    let parents = connection.prepare_cached(&limited("parents", "task_key"))?.execute(params![signed(job), limit])?;
    let rest = connection.prepare_cached(&limited("dependants", "task"))?.execute(params![signed(job), limit])?;
    Ok(parents + rest)
}

/// Tasks of a job that wait for others and have never started, by row.
pub(super) fn dependants(
    connection: &Connection,
    job: u64,
    after: u64,
    limit: u32,
) -> Result<Vec<StoredDependant>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT d.task, t.task_key, d.depends FROM dependants d JOIN tasks t ON t.id = d.task
         WHERE d.job = ?1 AND d.task > ?2 AND t.open = 1 AND t.attempt = 0 ORDER BY d.task LIMIT ?3",
    )?;
    let mut rows = statement.query(params![signed(job), signed(after), limit])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let on = TaskDependencies::decode(row.get_ref(2)?.as_blob().map_err(damaged)?).map_err(damaged)?;
        found.push(StoredDependant {
            row: unsigned(row.get(0)?),
            key: row.get(1)?,
            on: Dependencies::of(&on).unwrap_or_default(),
        });
    }
    Ok(found)
}

/// Where these ids stand, and which row has them; in the order of the keys.
pub(super) fn parents(
    connection: &Connection,
    job: u64,
    keys: &[String],
) -> Result<Vec<(u64, ParentState)>, StoreError> {
    let mut found = vec![(0, ParentState::Missing); keys.len()];
    let job = Value::Integer(signed(job));
    let keys = keys.iter().map(|key| [job, Value::Text(key)]);
    connection.each("SELECT task, state FROM parents WHERE job = ?1 AND task_key = ?2", keys, |at, row| {
        found[at] = (unsigned(row.get(0)?), state(row.get(1)?)?);
        Ok::<_, StoreError>(())
    })?;
    Ok(found)
}

/// What is known of the numbers of ranges.
pub(super) fn numbers(connection: &Connection, job: u64, ranges: &[(i32, i32)]) -> Result<Vec<Numbers>, StoreError> {
    ranges.iter().map(|range| numbers_of(connection, job, *range)).collect()
}

fn numbers_of(connection: &Connection, job: u64, (start, end): (i32, i32)) -> Result<Numbers, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT number, max(CASE WHEN state = 1 THEN 1 ELSE 0 END), min(state) FROM parents
         WHERE job = ?1 AND number BETWEEN ?2 AND ?3 GROUP BY number ORDER BY number",
    )?;
    let mut rows = statement.query(params![signed(job), start, end])?;
    let mut found = Numbers::default();
    while let Some(row) = rows.next()? {
        let number: i32 = row.get(0)?;
        let (satisfied, least): (bool, u32) = (row.get(1)?, row.get(2)?);
        if satisfied {
            match found.satisfied.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
                Some(_) | None => found.satisfied.push((number, number)),
            }
        } else if least == state_number(ParentState::Blocks) {
            found.blocks.push(number);
        }
    }
    Ok(found)
}

/// Those of some numbers that no task has.
pub(super) fn missing(connection: &Connection, job: u64, numbers: &[i32]) -> Result<Vec<i32>, StoreError> {
    let mut there = vec![false; numbers.len()];
    let keys = numbers.iter().map(|number| [signed(job), i64::from(*number)]);
    connection.each("SELECT task FROM parents WHERE job = ?1 AND number = ?2", keys, |at, _| {
        there[at] = true;
        Ok::<_, StoreError>(())
    })?;
    Ok(numbers.iter().zip(there).filter(|(_, there)| !there).map(|(number, _)| *number).collect())
}
