//! Answers by request id: a client that repeats a mutation because it did not
//! see the answer gets the first answer again.
//!
//! Look up and record inside the transaction of the mutation itself. A service
//! that uses this puts [`SCHEMA`] into its first migration and calls [`forget`]
//! from its cleaning loop.

use crate::error::StoreError;
use crate::params;
use crate::sql::{Connection, OptionalExtension};

/// Table of remembered answers, for a service's migration.
pub const SCHEMA: &str = "
CREATE TABLE requests (
    account TEXT NOT NULL,
    method TEXT NOT NULL,
    request_id TEXT NOT NULL,
    answer BLOB NOT NULL,
    time INTEGER NOT NULL,
    PRIMARY KEY (account, method, request_id)
) WITHOUT ROWID;
CREATE INDEX requests_time ON requests (time);
";

/// How long answers are remembered, in microseconds: a day.
pub const KEEP_MICROS: i64 = 86_400_000_000;

/// The answer that was given to this request, if it was seen before. An empty
/// request id is never remembered.
///
/// # Errors
/// [`StoreError`] if the table of [`SCHEMA`] is missing.
pub fn lookup(
    connection: &Connection,
    account: &str,
    method: &str,
    request_id: &str,
) -> Result<Option<Vec<u8>>, StoreError> {
    if request_id.is_empty() {
        return Ok(None);
    }
    Ok(connection
        .prepare_cached("SELECT answer FROM requests WHERE account = ?1 AND method = ?2 AND request_id = ?3")?
        .query_row(params![account, method, request_id], |row| row.get(0))
        .optional()?)
}

/// Remembers the answer to a request.
///
/// # Errors
/// [`StoreError`] if it is remembered already or the table is missing.
pub fn record(
    connection: &Connection,
    account: &str,
    method: &str,
    request_id: &str,
    answer: &[u8],
    now_micros: i64,
) -> Result<(), StoreError> {
    if request_id.is_empty() {
        return Ok(());
    }
    connection
        .prepare_cached("INSERT INTO requests (account, method, request_id, answer, time) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![account, method, request_id, answer, now_micros])?;
    Ok(())
}

/// Forgets answers older than [`KEEP_MICROS`]; returns how many.
///
/// # Errors
/// [`StoreError`] if the table is missing.
pub fn forget(connection: &Connection, now_micros: i64) -> Result<usize, StoreError> {
    Ok(connection
        .prepare_cached("DELETE FROM requests WHERE time < ?1")?
        .execute([now_micros.saturating_sub(KEEP_MICROS)])?)
}
