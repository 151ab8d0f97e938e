//! Snapshots: rows that say what a blob was, and share its content.

use kiln_store::sql::{Connection, params};
use kiln_time::Timestamp;

use super::applications;
use super::rows::{self, Outcome, Sql};
use crate::domain::StorageError;
use crate::domain::condition;
use crate::domain::lease::{Lease, Leased};
use crate::domain::model::{Blob, ObjectKey};
use crate::domain::names::Metadata;
use crate::store::{Guard, Stamp};

/// The moment that names the snapshot is the stamp's, unless a snapshot has it or a later one already: clocks go
/// back.
pub fn take(
    c: &Connection,
    stamp: &Stamp,
    container: &str,
    name: &str,
    guard: &Guard,
    metadata: Option<Metadata>,
) -> Outcome<Blob> {
    applications::check_change(container)?;
    let (container_id, _) = rows::container(c, &stamp.account, container)?;
    let Some((id, mut blob)) = rows::blob(c, container_id, container, name)? else {
        condition::check_write(&guard.conditions, None)?;
        return Err(StorageError::BlobNotFound);
    };
    condition::check_write(&guard.conditions, Some(blob.version()))?;
    blob.lease.check_read(Leased::Blob, guard.lease.as_deref(), stamp.now)?;
    let latest: Option<i64> = c
        .prepare_cached("SELECT MAX(snapshot) FROM snapshots WHERE container = ?1 AND name = ?2")
        .sql()?
        .query_row(params![container_id, name], |row| row.get(0))
        .sql()?;
    let at = latest.map_or(stamp.now.as_micros(), |latest| stamp.now.as_micros().max(latest + 1));
    if let Some(metadata) = metadata {
        blob.metadata = metadata;
        blob.etag.clone_from(&stamp.etag);
        blob.last_modified = stamp.now;
    }
    // Everything that both tables have is taken over as it is stored.
    c.prepare_cached(
        "INSERT INTO snapshots (container, name, snapshot, content, etag, created, modified, length, properties,
             metadata, copy, appended, tier)
         SELECT container, name, CAST(?2 AS INTEGER), id, CAST(?3 AS TEXT), created, CAST(?4 AS INTEGER), length,
             properties, CAST(?5 AS TEXT), copy, appended, tier
         FROM blobs WHERE id = ?1",
    )
    .sql()?
    .execute(params![id, at, blob.etag, blob.last_modified.as_micros(), rows::to_json(&blob.metadata)?])
    .sql()?;
    blob.lease = Lease::Available;
    blob.snapshot = Some(Timestamp::from_micros(at));
    Ok(blob)
}

pub fn exist(c: &Connection, container_id: i64, name: &str) -> Outcome<bool> {
    c.prepare_cached("SELECT 1 FROM snapshots WHERE container = ?1 AND name = ?2 LIMIT 1")
        .sql()?
        .exists(params![container_id, name])
        .sql()
}

/// Removes one snapshot, or all of a name, with the contents that nothing else has; gives the objects that lost a row.
pub fn remove(c: &Connection, container_id: i64, name: &str, at: Option<Timestamp>) -> Outcome<Vec<ObjectKey>> {
    let (first, last) = at.map_or((i64::MIN, i64::MAX), |at| (at.as_micros(), at.as_micros()));
    let mut contents: Vec<i64> = c
        .prepare_cached(
            "DELETE FROM snapshots WHERE container = ?1 AND name = ?2 AND snapshot BETWEEN ?3 AND ?4
             RETURNING content",
        )
        .sql()?
        .query_map(params![container_id, name, first, last], |row| row.get(0))
        .sql()?
        .collect::<Result<_, _>>()
        .sql()?;
    contents.sort_unstable();
    contents.dedup();
    let mut lost = Vec::new();
    for content in contents {
        lost.extend(rows::remove_content(c, content)?);
    }
    Ok(lost)
}
