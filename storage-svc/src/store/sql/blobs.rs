//! Blobs: write, change, delete.

use kiln_store::sql::{Connection, params};
use kiln_time::Timestamp;

use super::applications;
use super::rows::{self, Key, Outcome, Sql};
use super::snapshots;
use crate::domain::StorageError;
use crate::domain::condition;
use crate::domain::lease::{Lease, Leased};
use crate::domain::model::{Blob, BlobKind, ChosenTier, Content, Tier};
use crate::store::{BlobChange, Deletion, Guard, NewBlob, Once, Stamp};

pub const CREATED: &str = "storage.blob.created";
pub const DELETED: &str = "storage.blob.deleted";

pub fn with_content(c: &Connection, of: &Key) -> Outcome<(Blob, Content)> {
    let (id, blob) = of.get(c)?;
    let content = rows::content(c, id, &blob)?;
    Ok((blob, content))
}

pub fn put(c: &Connection, stamp: &Stamp, new: NewBlob, guard: &Guard) -> Outcome<Once<Blob>> {
    rows::once(c, stamp, "PutBlob", || {
        applications::check_put(c, &stamp.account, &new.container, &new.name)?;
        let (container_id, _) = rows::container(c, &stamp.account, &new.container)?;
        let current = rows::blob(c, container_id, &new.container, &new.name)?;
        let lease = check_guard(guard, current.as_ref().map(|(_, blob)| blob), stamp)?;
        let mut lost: Vec<_> =
            rows::remove_staged(c, container_id, &new.name)?.into_iter().map(|extent| extent.object).collect();
        let created = current.as_ref().map_or(stamp.now, |(_, blob)| blob.created);
        if let Some((id, _)) = current {
            lost.extend(rows::remove_blob(c, id)?);
        }
        let blob = Blob {
            container: new.container,
            name: new.name,
            etag: stamp.etag.clone(),
            created,
            last_modified: stamp.now,
            length: new.content.length(),
            properties: new.properties,
            metadata: new.metadata,
            copy: new.copy,
            lease,
            kind: new.kind,
            tier: new.tier,
            snapshot: None,
        };
        rows::insert_blob(c, container_id, &blob, &new.content)?;
        rows::discard(c, &lost, stamp.now)?;
        rows::announce(c, stamp, CREATED, &blob)?;
        Ok(blob)
    })
}

/// Whether a blob may be made or replaced; gives the lease it has then.
pub fn check_guard(guard: &Guard, current: Option<&Blob>, stamp: &Stamp) -> Outcome<Lease> {
    condition::check_create(&guard.conditions, current.map(Blob::version))?;
    if guard.only_new && current.is_some() {
        return Err(StorageError::AuthorizationPermissionMismatch);
    }
    check_lease(guard, current, stamp)
}

/// Whether the lease of a blob lets it be written; gives the lease it has then. A blob that does not exist has none.
pub fn check_lease(guard: &Guard, current: Option<&Blob>, stamp: &Stamp) -> Outcome<Lease> {
    let lease = current.map_or(&Lease::Available, |blob| &blob.lease);
    lease.check_write(Leased::Blob, guard.lease.as_deref(), stamp.now)?;
    Ok(lease.after_write(stamp.now))
}

/// Whether an existing blob may be written or deleted; gives it with the lease it has then.
pub fn writable(c: &Connection, stamp: &Stamp, container: &str, name: &str, guard: &Guard) -> Outcome<(i64, Blob)> {
    applications::check_change(container)?;
    let (container_id, _) = rows::container(c, &stamp.account, container)?;
    let Some((id, mut blob)) = rows::blob(c, container_id, container, name)? else {
        condition::check_write(&guard.conditions, None)?;
        return Err(StorageError::BlobNotFound);
    };
    condition::check_write(&guard.conditions, Some(blob.version()))?;
    blob.lease = check_lease(guard, Some(&blob), stamp)?;
    Ok((id, blob))
}

pub fn change(
    c: &Connection,
    stamp: &Stamp,
    container: &str,
    name: &str,
    guard: &Guard,
    change: BlobChange,
) -> Outcome<Blob> {
    let (id, mut blob) = writable(c, stamp, container, name, guard)?;
    match change {
        BlobChange::Metadata(metadata) => blob.metadata = metadata,
        BlobChange::Properties(properties) => {
            blob.properties = properties;
            // As in Azure: from now on it is not what it was copied from.
            blob.copy = None;
        }
    }
    blob.etag.clone_from(&stamp.etag);
    blob.last_modified = stamp.now;
    c.prepare_cached(
        "UPDATE blobs SET etag = ?2, modified = ?3, properties = ?4, metadata = ?5, lease = ?6, copy = ?7
         WHERE id = ?1",
    )
    .sql()?
    .execute(params![
        id,
        blob.etag,
        blob.last_modified.as_micros(),
        rows::to_json(&blob.properties)?,
        rows::to_json(&blob.metadata)?,
        rows::lease_text(&blob.lease)?,
        rows::copy_text(blob.copy.as_ref())?,
    ])
    .sql()?;
    Ok(blob)
}

/// Chooses a tier; neither ETag nor time of the blob change.
pub fn set_tier(c: &Connection, of: &Key, now: Timestamp, tier: Tier, lease: Option<&str>) -> Outcome<()> {
    applications::check_change(&of.container)?;
    let (container_id, _) = rows::container(c, &of.account, &of.container)?;
    let (_, blob) = of.get(c)?;
    blob.lease.check_read(Leased::Blob, lease, now)?;
    if blob.kind != BlobKind::Block {
        return Err(StorageError::InvalidBlobType);
    }
    let chosen = rows::to_json(&ChosenTier { tier, since: now })?;
    match of.snapshot {
        None => c
            .prepare_cached("UPDATE blobs SET tier = ?3 WHERE container = ?1 AND name = ?2")
            .sql()?
            .execute(params![container_id, of.name, chosen]),
        Some(at) => c
            .prepare_cached("UPDATE snapshots SET tier = ?4 WHERE container = ?1 AND name = ?2 AND snapshot = ?3")
            .sql()?
            .execute(params![container_id, of.name, at.as_micros(), chosen]),
    }
    .sql()?;
    Ok(())
}

pub fn delete(
    c: &Connection,
    stamp: &Stamp,
    container: &str,
    name: &str,
    guard: &Guard,
    what: Deletion,
) -> Outcome<()> {
    rows::once(c, stamp, "DeleteBlob", || {
        applications::check_change(container)?;
        let (container_id, _) = rows::container(c, &stamp.account, container)?;
        let found = match what {
            Deletion::Blob | Deletion::WithSnapshots => Some(writable(c, stamp, container, name, guard)?),
            Deletion::Snapshot(at) => rows::snapshot(c, container_id, container, name, at)?,
            Deletion::Snapshots => rows::blob(c, container_id, container, name)?,
        };
        let Some((id, blob)) = found else {
            condition::check_write(&guard.conditions, None)?;
            return Err(StorageError::BlobNotFound);
        };
        if matches!(what, Deletion::Snapshot(_) | Deletion::Snapshots) {
            // They are not leased themselves.
            condition::check_write(&guard.conditions, Some(blob.version()))?;
            blob.lease.check_read(Leased::Blob, guard.lease.as_deref(), stamp.now)?;
        }
        let mut lost = match what {
            Deletion::Snapshot(at) => snapshots::remove(c, container_id, name, Some(at))?,
            Deletion::WithSnapshots | Deletion::Snapshots => snapshots::remove(c, container_id, name, None)?,
            Deletion::Blob if snapshots::exist(c, container_id, name)? => return Err(StorageError::SnapshotsPresent),
            Deletion::Blob => Vec::new(),
        };
        match what {
            Deletion::Snapshot(_) | Deletion::Snapshots => rows::discard(c, &lost, stamp.now),
            Deletion::Blob | Deletion::WithSnapshots => {
                lost.extend(rows::remove_blob(c, id)?);
                lost.extend(rows::remove_staged(c, container_id, name)?.into_iter().map(|extent| extent.object));
                rows::discard(c, &lost, stamp.now)?;
                rows::announce(c, stamp, DELETED, &blob)
            }
        }
    })?;
    Ok(())
}
