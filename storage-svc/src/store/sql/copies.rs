//! Copies of blobs that are in the catalogue: the copy names the same objects, so no byte is moved.
//!
//! Source and copy are read and written in one transaction, so the copy is of one moment, and an object that it
//! names cannot become garbage in between.

use kiln_store::sql::Connection;

use super::applications;
use super::blobs::{CREATED, check_guard};
use super::rows::{self, Key, Outcome};
use crate::domain::StorageError;
use crate::domain::condition;
use crate::domain::model::{Blob, ChosenTier, Content};
use crate::store::{CopyFrom, CopyInto, Guard, Stamp};

pub fn copy(c: &Connection, stamp: &Stamp, from: &CopyFrom, into: CopyInto, guard: &Guard) -> Outcome<Blob> {
    applications::check_put(c, &stamp.account, &into.container, &into.name)?;
    let (container_id, _) = rows::container(c, &stamp.account, &into.container)?;
    let current = rows::blob(c, container_id, &into.container, &into.name)?;
    let lease = check_guard(guard, current.as_ref().map(|(_, blob)| blob), stamp)?;
    let (source, mut content) = read(c, from)?;
    if let (false, Content::Objects(extents)) = (into.keep_blocks, &mut content) {
        extents.iter_mut().for_each(|extent| extent.block_id = None);
    }
    let mut lost: Vec<_> =
        rows::remove_staged(c, container_id, &into.name)?.into_iter().map(|extent| extent.object).collect();
    let created = current.as_ref().map_or(stamp.now, |(_, blob)| blob.created);
    if let Some((id, _)) = current {
        lost.extend(rows::remove_blob(c, id)?);
    }
    let blob = Blob {
        container: into.container,
        name: into.name,
        etag: stamp.etag.clone(),
        created,
        last_modified: stamp.now,
        length: content.length(),
        properties: into.properties.unwrap_or(source.properties),
        metadata: into.metadata.unwrap_or(source.metadata),
        copy: into.copy,
        lease,
        kind: source.kind,
        tier: into.tier.map(|tier| ChosenTier { tier, since: stamp.now }),
        snapshot: None,
    };
    rows::insert_blob(c, container_id, &blob, &content)?;
    // Last, because the copy may need what its name had before.
    rows::discard(c, &lost, stamp.now)?;
    rows::announce(c, stamp, CREATED, &blob)?;
    Ok(blob)
}

fn read(c: &Connection, from: &CopyFrom) -> Outcome<(Blob, Content)> {
    let key = Key::new(from.address());
    let (id, blob) = key.get(c).map_err(|error| match error {
        // Which part of a source is missing is its owner's business.
        StorageError::ContainerNotFound => StorageError::BlobNotFound,
        other => other,
    })?;
    condition::check_source(&from.conditions, blob.version())?;
    if from.etag.as_ref().is_some_and(|etag| *etag != blob.etag) {
        return Err(StorageError::SourceConditionNotMet);
    }
    if blob.is_archived() {
        return Err(StorageError::BlobArchived);
    }
    let content = rows::content(c, id, &blob)?;
    Ok((blob, content))
}
