//! What happens behind the callers' backs.

use std::collections::HashSet;

use kiln_store::sql::{Connection, OptionalExtension, params};
use kiln_store::{StoreError, requests};
use kiln_time::Timestamp;

use super::blobs::DELETED;
use super::rows::{self, Outcome, RawBlob, Sql};
use super::snapshots;
use crate::domain::model::{BLOCK_LIFE, ObjectKey};
use crate::store::Stamp;

/// Blobs of deleted containers that one transaction removes: callers wait for it.
const DOOMED_BATCH: usize = 500;
/// Blobs whose uncommitted blocks one transaction expires.
const EXPIRED_BATCH: usize = 50;

pub fn garbage(c: &Connection, before: Timestamp, limit: usize) -> Outcome<Vec<ObjectKey>> {
    c.prepare_cached("SELECT object FROM garbage WHERE time < ?1 ORDER BY time LIMIT ?2")
        .sql()?
        .query_map(params![before.as_micros(), rows::integer(limit as u64)], |row| Ok(ObjectKey(row.get(0)?)))
        .sql()?
        .collect::<Result<_, _>>()
        .sql()
}

pub fn forget(c: &Connection, objects: &[ObjectKey]) -> Outcome<()> {
    let mut delete = c.batch("DELETE FROM garbage WHERE object = ?1", 1).sql()?;
    for object in objects {
        delete.add([&object.0]).sql()?;
    }
    delete.finish().sql()?;
    Ok(())
}

pub fn known(c: &Connection, objects: Vec<ObjectKey>) -> Outcome<HashSet<ObjectKey>> {
    let mut known = rows::named(c, &objects.iter().collect::<Vec<_>>())?;
    c.each("SELECT object FROM garbage WHERE object = ?1", objects.iter().map(|object| [&object.0]), |at, _| {
        known[at] = true;
        Ok::<_, StoreError>(())
    })?;
    Ok(objects.into_iter().zip(known).filter(|(_, known)| *known).map(|(object, _)| object).collect())
}

pub fn tidy(c: &Connection, now: Timestamp) -> Outcome<bool> {
    requests::forget(c, now.as_micros())?;
    let expired = expire_blocks(c, now)?;
    let doomed = empty_doomed(c, now)?;
    Ok(expired || doomed)
}

fn expire_blocks(c: &Connection, now: Timestamp) -> Outcome<bool> {
    let old: Vec<(i64, String)> = c
        .prepare_cached("SELECT container, blob FROM staged WHERE time < ?1 ORDER BY time LIMIT ?2")
        .sql()?
        .query_map(params![now.minus(BLOCK_LIFE).as_micros(), rows::integer(EXPIRED_BATCH as u64)], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .sql()?
        .collect::<Result<_, _>>()
        .sql()?;
    for (container, blob) in &old {
        let lost = rows::remove_staged(c, *container, blob)?;
        rows::discard(c, lost.iter().map(|extent| &extent.object), now)?;
    }
    Ok(old.len() == EXPIRED_BATCH)
}

fn empty_doomed(c: &Connection, now: Timestamp) -> Outcome<bool> {
    let doomed: Option<(i64, String, String)> = c
        .prepare_cached("SELECT container, account, name FROM doomed ORDER BY container LIMIT 1")
        .sql()?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()
        .sql()?;
    let Some((container, account, name)) = doomed else { return Ok(false) };
    let stamp = Stamp { account, now, etag: String::new(), traceparent: String::new(), request_id: String::new() };
    let raws: Vec<RawBlob> = c
        .prepare_cached(&format!("SELECT {} FROM blobs WHERE container = ?1 LIMIT ?2", rows::BLOB_COLUMNS))
        .sql()?
        .query_map(params![container, rows::integer(DOOMED_BATCH as u64)], RawBlob::read)
        .sql()?
        .collect::<Result<_, _>>()
        .sql()?;
    for raw in raws {
        let (id, blob) = raw.into_blob(&name)?;
        let mut lost = snapshots::remove(c, container, &blob.name, None)?;
        lost.extend(rows::remove_blob(c, id)?);
        rows::discard(c, &lost, now)?;
        rows::announce(c, &stamp, DELETED, &blob)?;
    }
    let staged: Vec<String> = c
        .prepare_cached("SELECT blob FROM staged WHERE container = ?1 LIMIT ?2")
        .sql()?
        .query_map(params![container, rows::integer(EXPIRED_BATCH as u64)], |row| row.get(0))
        .sql()?
        .collect::<Result<_, _>>()
        .sql()?;
    for blob in &staged {
        let lost = rows::remove_staged(c, container, blob)?;
        rows::discard(c, lost.iter().map(|extent| &extent.object), now)?;
    }
    let left: bool = c
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM blobs WHERE container = ?1)
                 OR EXISTS (SELECT 1 FROM staged WHERE container = ?1)",
        )
        .sql()?
        .query_row([container], |row| row.get(0))
        .sql()?;
    if !left {
        c.prepare_cached("DELETE FROM doomed WHERE container = ?1").sql()?.execute([container]).sql()?;
    }
    Ok(true)
}
