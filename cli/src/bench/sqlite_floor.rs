//! What the disk and SQLite allow: the rows of tasks and nothing else.
//!
//! One insert for every task (id, name, command line), one update when it is
//! given to a node and one when it has ended, in transactions of a thousand,
//! each as durable as Kiln's. No events, no network, no second table.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use kiln_store::rusqlite::{Connection, params};

use crate::failure::Outcome;

const GROUP: usize = 1_000;

/// How long the lives of `count` tasks take.
///
/// # Errors
/// If the database fails.
pub fn lives(directory: &Path, count: usize) -> Outcome<Duration> {
    with_database(directory, |connection| {
        insert(connection, count)?;
        for phase in [2, 3] {
            in_groups(connection, count, |connection, number| {
                connection.prepare_cached("UPDATE tasks SET phase = ?2, record = ?3 WHERE id = ?1")?.execute(params![
                    number as i64,
                    phase,
                    [0u8; 48]
                ])
            })?;
        }
        Ok(())
    })
}

/// How long the insertion of `count` tasks takes.
///
/// # Errors
/// If the database fails.
pub fn inserts(directory: &Path, count: usize) -> Outcome<Duration> {
    with_database(directory, |connection| insert(connection, count))
}

type Done = Result<(), kiln_store::rusqlite::Error>;

fn insert(connection: &Connection, count: usize) -> Done {
    in_groups(connection, count, |connection, number| {
        connection
            .prepare_cached("INSERT INTO tasks (job, name, phase, record, spec) VALUES (1, ?1, 1, ?2, ?3)")?
            .execute(params![format!("t{number}"), [0u8; 16], format!("t{number} true").as_bytes()])
    })
}

fn in_groups(
    connection: &Connection,
    count: usize,
    step: impl Fn(&Connection, usize) -> Result<usize, kiln_store::rusqlite::Error>,
) -> Done {
    for first in (1..=count).step_by(GROUP) {
        connection.execute_batch("BEGIN IMMEDIATE")?;
        for number in first..=count.min(first + GROUP - 1) {
            step(connection, number)?;
        }
        connection.execute_batch("COMMIT")?;
    }
    Ok(())
}

fn with_database(directory: &Path, work: impl FnOnce(&Connection) -> Done) -> Outcome<Duration> {
    let directory = tempfile::tempdir_in(directory).context("directory of the floor")?;
    let measured = || -> Result<Duration, kiln_store::rusqlite::Error> {
        let connection = Connection::open(directory.path().join("floor.db"))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.execute_batch(
            "CREATE TABLE tasks (id INTEGER PRIMARY KEY, job INTEGER NOT NULL, name TEXT NOT NULL,
             phase INTEGER NOT NULL, record BLOB NOT NULL, spec BLOB NOT NULL);
             CREATE UNIQUE INDEX tasks_by_name ON tasks (job, name);",
        )?;
        let began = Instant::now();
        work(&connection)?;
        Ok(began.elapsed())
    };
    Ok(measured().context("database of the floor")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_takes_time_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(lives(dir.path(), 1500).unwrap() > inserts(dir.path(), 1).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
