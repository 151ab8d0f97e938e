//! Blocks: staged one by one, committed by a list.

use std::collections::{HashMap, HashSet};

use kiln_store::sql::{Connection, OptionalExtension, params};

use super::applications;
use super::blobs::{CREATED, check_guard, check_lease};
use super::rows::{self, Key, Outcome, Sql};
use crate::domain::StorageError;
use crate::domain::model::{
    Blob, BlobKind, BlockInfo, BlockSource, Content, Extent, MAX_BLOCKS, MAX_UNCOMMITTED, ObjectKey,
};
use crate::domain::names;
use crate::store::{BlockList, Blocks, Guard, NewBlock, Stamp};

pub fn put(c: &Connection, stamp: &Stamp, block: &NewBlock, guard: &Guard) -> Outcome<()> {
    applications::check_put(c, &stamp.account, &block.container, &block.blob)?;
    let (container_id, _) = rows::container(c, &stamp.account, &block.container)?;
    let current = rows::blob(c, container_id, &block.container, &block.blob)?.map(|(_, blob)| blob);
    if let Some(blob) = &current {
        if guard.only_new {
            return Err(StorageError::AuthorizationPermissionMismatch);
        }
        check_kind(blob)?;
    }
    // The blob itself does not change: a lease that is over stays what it is.
    check_lease(guard, current.as_ref(), stamp)?;
    let id_length = rows::integer(names::check_block_id(&block.id)? as u64);
    let key = params![container_id, block.blob];
    let staged: Option<(i64, i64)> = c
        .prepare_cached("SELECT count, id_length FROM staged WHERE container = ?1 AND blob = ?2")
        .sql()?
        .query_row(key, |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
        .sql()?;
    let (count, known_length) = staged.unwrap_or((0, id_length));
    if known_length != id_length {
        return Err(StorageError::InvalidBlobOrBlock);
    }
    let replaced: Option<String> = c
        .prepare_cached("SELECT object FROM blocks WHERE container = ?1 AND blob = ?2 AND block = ?3")
        .sql()?
        .query_row(params![container_id, block.blob, block.id], |row| row.get(0))
        .optional()
        .sql()?;
    let count = match replaced {
        Some(_) => count,
        None if rows::length(count) >= MAX_UNCOMMITTED => {
            return Err(StorageError::BlockCountExceedsLimit(MAX_UNCOMMITTED));
        }
        None => count + 1,
    };
    c.prepare_cached(
        "INSERT INTO blocks (container, blob, block, object, length) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (container, blob, block) DO UPDATE SET object = excluded.object, length = excluded.length",
    )
    .sql()?
    .execute(params![container_id, block.blob, block.id, block.object.0, rows::integer(block.length)])
    .sql()?;
    c.prepare_cached(
        "INSERT INTO staged (container, blob, count, id_length, time) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (container, blob) DO UPDATE SET count = excluded.count, time = excluded.time",
    )
    .sql()?
    .execute(params![container_id, block.blob, count, id_length, stamp.now.as_micros()])
    .sql()?;
    rows::discard(c, replaced.map(ObjectKey).as_ref(), stamp.now)
}

fn check_kind(blob: &Blob) -> Outcome<()> {
    match blob.kind {
        BlobKind::Block => Ok(()),
        BlobKind::Append { .. } => Err(StorageError::InvalidBlobType),
    }
}

pub fn commit(c: &Connection, stamp: &Stamp, list: BlockList, guard: &Guard) -> Outcome<Blob> {
    if list.blocks.len() > MAX_BLOCKS {
        return Err(StorageError::BlockListTooLong(MAX_BLOCKS));
    }
    applications::check_put(c, &stamp.account, &list.container, &list.name)?;
    let (container_id, _) = rows::container(c, &stamp.account, &list.container)?;
    let current = rows::blob(c, container_id, &list.container, &list.name)?;
    let lease = check_guard(guard, current.as_ref().map(|(_, blob)| blob), stamp)?;
    let committed = match &current {
        Some((id, blob)) => {
            check_kind(blob)?;
            rows::extents(c, *id)?
        }
        None => Vec::new(),
    };
    let uncommitted = rows::remove_staged(c, container_id, &list.name)?;
    let extents = resolve(&list.blocks, &committed, &uncommitted)?;
    let kept: HashSet<ObjectKey> = extents.iter().map(|extent| extent.object.clone()).collect();
    let created = current.as_ref().map_or(stamp.now, |(_, blob)| blob.created);
    if let Some((id, _)) = current {
        rows::remove_blob(c, id)?;
    }
    let content = Content::Objects(extents);
    let blob = Blob {
        container: list.container,
        name: list.name,
        etag: stamp.etag.clone(),
        created,
        last_modified: stamp.now,
        length: content.length(),
        properties: list.properties,
        metadata: list.metadata,
        copy: None,
        lease,
        kind: BlobKind::Block,
        tier: list.tier,
        snapshot: None,
    };
    rows::insert_blob(c, container_id, &blob, &content)?;
    let lost = committed.iter().chain(&uncommitted).map(|extent| &extent.object).filter(|key| !kept.contains(*key));
    rows::discard(c, lost, stamp.now)?;
    rows::announce(c, stamp, CREATED, &blob)?;
    Ok(blob)
}

/// Finds the blocks of a list; a block may be used several times.
fn resolve(list: &[(BlockSource, String)], committed: &[Extent], uncommitted: &[Extent]) -> Outcome<Vec<Extent>> {
    let by_id = |extents: &'_ [Extent]| -> HashMap<String, Extent> {
        extents.iter().filter_map(|e| Some((e.block_id.clone()?, e.clone()))).collect()
    };
    let (committed, uncommitted) = (by_id(committed), by_id(uncommitted));
    list.iter()
        .map(|(source, id)| {
            let found = match source {
                BlockSource::Committed => committed.get(id),
                BlockSource::Uncommitted => uncommitted.get(id),
                BlockSource::Latest => uncommitted.get(id).or_else(|| committed.get(id)),
            };
            found.cloned().ok_or_else(|| StorageError::InvalidBlockList(id.clone()))
        })
        .collect()
}

pub fn of_blob(c: &Connection, of: &Key) -> Outcome<Blocks> {
    let (current, uncommitted) = match of.snapshot {
        Some(_) => (Some(of.get(c)?), Vec::new()),
        None => {
            let (container_id, _) = rows::container(c, &of.account, &of.container)?;
            let current = rows::blob(c, container_id, &of.container, &of.name)?;
            (current, rows::staged(c, container_id, &of.name)?)
        }
    };
    let committed = match &current {
        Some((id, blob)) => {
            check_kind(blob)?;
            rows::extents(c, *id)?
        }
        None if uncommitted.is_empty() => return Err(StorageError::BlobNotFound),
        None => Vec::new(),
    };
    let infos = |extents: Vec<Extent>| -> Vec<BlockInfo> {
        extents.into_iter().filter_map(|e| Some(BlockInfo { id: e.block_id?, length: e.length })).collect()
    };
    Ok(Blocks { blob: current.map(|(_, blob)| blob), committed: infos(committed), uncommitted: infos(uncommitted) })
}
