//! Blobs: write, change, delete.

use kiln_store::sql::{Connection, params};

use super::rows::{self, Outcome, Sql};
use crate::domain::StorageError;
use crate::domain::condition;
use crate::domain::lease::{Lease, Leased};
use crate::domain::model::{Blob, Content};
use crate::store::{BlobChange, Guard, NewBlob, Once, Stamp};

pub const CREATED: &str = "storage.blob.created";
pub const DELETED: &str = "storage.blob.deleted";

pub fn with_content(c: &Connection, account: &str, container: &str, name: &str) -> Outcome<(Blob, Content)> {
    let (container_id, _) = rows::container(c, account, container)?;
    let (id, blob) = rows::blob(c, container_id, container, name)?.ok_or(StorageError::BlobNotFound)?;
    Ok((blob, rows::content(c, id)?))
}

pub fn put(c: &Connection, stamp: &Stamp, new: NewBlob, guard: &Guard) -> Outcome<Once<Blob>> {
    rows::once(c, stamp, "PutBlob", || {
        let (container_id, _) = rows::container(c, &stamp.account, &new.container)?;
        let current = rows::blob(c, container_id, &new.container, &new.name)?;
        let lease = check_guard(guard, current.as_ref().map(|(_, blob)| blob), stamp)?;
        let mut lost: Vec<_> =
            rows::remove_staged(c, container_id, &new.name)?.into_iter().map(|extent| extent.object).collect();
        let created = current.as_ref().map_or(stamp.now, |(_, blob)| blob.created);
        if let Some((id, _)) = current {
            lost.extend(rows::remove_blob(c, id)?);
        }
        rows::discard(c, &lost, stamp.now)?;
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
        };
        rows::insert_blob(c, container_id, &blob, &new.content)?;
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
fn writable(c: &Connection, stamp: &Stamp, container: &str, name: &str, guard: &Guard) -> Outcome<(i64, Blob)> {
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
        BlobChange::Properties(properties) => blob.properties = properties,
    }
    blob.etag.clone_from(&stamp.etag);
    blob.last_modified = stamp.now;
    c.prepare_cached(
        "UPDATE blobs SET etag = ?2, modified = ?3, properties = ?4, metadata = ?5, lease = ?6 WHERE id = ?1",
    )
    .sql()?
    .execute(params![
        id,
        blob.etag,
        blob.last_modified.as_micros(),
        rows::to_json(&blob.properties)?,
        rows::to_json(&blob.metadata)?,
        rows::lease_text(&blob.lease)?,
    ])
    .sql()?;
    Ok(blob)
}

pub fn delete(c: &Connection, stamp: &Stamp, container: &str, name: &str, guard: &Guard) -> Outcome<()> {
    rows::once(c, stamp, "DeleteBlob", || {
        let (container_id, _) = rows::container(c, &stamp.account, container)?;
        let (id, blob) = writable(c, stamp, container, name, guard)?;
        let mut lost = rows::remove_blob(c, id)?;
        lost.extend(rows::remove_staged(c, container_id, name)?.into_iter().map(|extent| extent.object));
        rows::discard(c, &lost, stamp.now)?;
        rows::announce(c, stamp, DELETED, &blob)
    })?;
    Ok(())
}
