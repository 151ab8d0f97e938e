//! What the statements of all subjects share.

use bytes::Bytes;
use kiln_proto::events::v1::{BlobChanged, event::Payload};
use kiln_store::outbox::{self, NewEvent};
use kiln_store::sql::{self, Connection, OptionalExtension, Row, params};
use kiln_store::{StoreError, requests};
use kiln_time::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::domain::StorageError;
use crate::domain::lease::Lease;
use crate::domain::model::{Blob, Container, Content, Extent, ObjectKey, PublicAccess};
use crate::store::{Once, Stamp};

pub type Outcome<T> = Result<T, StorageError>;

/// SQLite's errors and damaged values, on their way to a [`StorageError`].
pub trait Sql<T> {
    fn sql(self) -> Outcome<T>;
}

impl<T> Sql<T> for Result<T, sql::Error> {
    fn sql(self) -> Outcome<T> {
        self.map_err(|error| StoreError::from(error).into())
    }
}

pub fn damaged(what: impl std::fmt::Display) -> StorageError {
    StoreError::Damaged(what.to_string()).into()
}

pub fn to_json<T: Serialize>(value: &T) -> Outcome<String> {
    serde_json::to_string(value).map_err(damaged)
}

pub fn from_json<T: DeserializeOwned>(text: &str) -> Outcome<T> {
    serde_json::from_str(text).map_err(damaged)
}

pub fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub fn length(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

// --- containers

pub const CONTAINER_COLUMNS: &str = "id, name, etag, modified, metadata, public_access, policies, lease";

/// A row as SQLite gives it, before its JSON is read.
pub struct RawContainer(i64, String, String, i64, String, i64, String, Option<String>);

impl RawContainer {
    pub fn read(row: Row<'_>) -> Result<Self, sql::Error> {
        Ok(Self(row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?, row.get(7)?))
    }

    pub fn into_container(self) -> Outcome<(i64, Container)> {
        let public_access = match self.5 {
            0 => PublicAccess::Private,
            1 => PublicAccess::Blob,
            2 => PublicAccess::Container,
            other => return Err(damaged(format!("public access {other}"))),
        };
        let container = Container {
            name: self.1,
            etag: self.2,
            last_modified: Timestamp::from_micros(self.3),
            metadata: from_json(&self.4)?,
            public_access,
            policies: from_json(&self.6)?,
            lease: lease(self.7.as_deref())?,
        };
        Ok((self.0, container))
    }
}

pub fn public_access_number(access: PublicAccess) -> i64 {
    match access {
        PublicAccess::Private => 0,
        PublicAccess::Blob => 1,
        PublicAccess::Container => 2,
    }
}

pub fn find_container(c: &Connection, account: &str, name: &str) -> Outcome<Option<(i64, Container)>> {
    let raw = c
        .prepare_cached(&format!("SELECT {CONTAINER_COLUMNS} FROM containers WHERE account = ?1 AND name = ?2"))
        .sql()?
        .query_row(params![account.to_ascii_lowercase(), name], RawContainer::read)
        .optional()
        .sql()?;
    raw.map(RawContainer::into_container).transpose()
}

pub fn container(c: &Connection, account: &str, name: &str) -> Outcome<(i64, Container)> {
    find_container(c, account, name)?.ok_or(StorageError::ContainerNotFound)
}

/// A lease as it is stored.
pub fn lease_text(lease: &Lease) -> Outcome<Option<String>> {
    match lease {
        Lease::Available => Ok(None),
        other => to_json(other).map(Some),
    }
}

fn lease(text: Option<&str>) -> Outcome<Lease> {
    text.map_or(Ok(Lease::Available), from_json)
}

// --- blobs

pub const BLOB_COLUMNS: &str = "id, name, etag, created, modified, length, properties, metadata, copy, lease";

/// A row as SQLite gives it, before its JSON is read.
pub struct RawBlob(i64, String, String, i64, i64, i64, String, String, Option<String>, Option<String>);

impl RawBlob {
    pub fn read(row: Row<'_>) -> Result<Self, sql::Error> {
        Ok(Self(
            row.get(0)?,
            row.get(1)?,
            row.get(2)?,
            row.get(3)?,
            row.get(4)?,
            row.get(5)?,
            row.get(6)?,
            row.get(7)?,
            row.get(8)?,
            row.get(9)?,
        ))
    }

    pub fn name(&self) -> &str {
        &self.1
    }

    pub fn into_blob(self, container: &str) -> Outcome<(i64, Blob)> {
        let blob = Blob {
            container: container.to_owned(),
            name: self.1,
            etag: self.2,
            created: Timestamp::from_micros(self.3),
            last_modified: Timestamp::from_micros(self.4),
            length: length(self.5),
            properties: from_json(&self.6)?,
            metadata: from_json(&self.7)?,
            copy: self.8.as_deref().map(from_json).transpose()?,
            lease: lease(self.9.as_deref())?,
        };
        Ok((self.0, blob))
    }
}

pub fn blob(c: &Connection, container_id: i64, container: &str, name: &str) -> Outcome<Option<(i64, Blob)>> {
    let raw = c
        .prepare_cached(&format!("SELECT {BLOB_COLUMNS} FROM blobs WHERE container = ?1 AND name = ?2"))
        .sql()?
        .query_row(params![container_id, name], RawBlob::read)
        .optional()
        .sql()?;
    raw.map(|raw| raw.into_blob(container)).transpose()
}

pub fn content(c: &Connection, blob: i64) -> Outcome<Content> {
    let small: Option<Vec<u8>> = c
        .prepare_cached("SELECT bytes FROM small WHERE blob = ?1")
        .sql()?
        .query_row([blob], |row| row.get(0))
        .optional()
        .sql()?;
    match small {
        Some(bytes) => Ok(Content::Inline(Bytes::from(bytes))),
        None => Ok(Content::Objects(extents(c, blob)?)),
    }
}

pub fn extents(c: &Connection, blob: i64) -> Outcome<Vec<Extent>> {
    c.prepare_cached("SELECT block, object, length FROM extents WHERE blob = ?1 ORDER BY seq")
        .sql()?
        .query_map([blob], |row| {
            Ok(Extent { block_id: row.get(0)?, object: ObjectKey(row.get(1)?), length: length(row.get(2)?) })
        })
        .sql()?
        .collect::<Result<_, _>>()
        .sql()
}

/// Writes a blob's row and its content; the old row of this name must be gone.
pub fn insert_blob(c: &Connection, container_id: i64, blob: &Blob, content: &Content) -> Outcome<()> {
    let id: i64 = c
        .prepare_cached(
            "INSERT INTO blobs (container, name, etag, created, modified, length, properties, metadata, copy, lease)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) RETURNING id",
        )
        .sql()?
        .query_row(
            params![
                container_id,
                blob.name,
                blob.etag,
                blob.created.as_micros(),
                blob.last_modified.as_micros(),
                integer(blob.length),
                to_json(&blob.properties)?,
                to_json(&blob.metadata)?,
                blob.copy.as_ref().map(to_json).transpose()?,
                lease_text(&blob.lease)?,
            ],
            |row| row.get(0),
        )
        .sql()?;
    match content {
        Content::Inline(bytes) => {
            c.prepare_cached("INSERT INTO small (blob, bytes) VALUES (?1, ?2)")
                .sql()?
                .execute(params![id, &bytes[..]])
                .sql()?;
        }
        Content::Objects(extents) => {
            let mut insert = c
                .batch("INSERT INTO extents (blob, seq, block, object, length) VALUES (?1, ?2, ?3, ?4, ?5)", 0)
                .sql()?;
            for (seq, extent) in extents.iter().enumerate() {
                let seq = integer(seq as u64);
                insert.add(params![id, seq, extent.block_id, extent.object.0, integer(extent.length)]).sql()?;
            }
            insert.finish().sql()?;
        }
    }
    Ok(())
}

/// Removes a blob's row and content rows; gives the objects it had.
pub fn remove_blob(c: &Connection, id: i64) -> Outcome<Vec<ObjectKey>> {
    let objects = extents(c, id)?.into_iter().map(|extent| extent.object).collect();
    for statement in
        ["DELETE FROM blobs WHERE id = ?1", "DELETE FROM small WHERE blob = ?1", "DELETE FROM extents WHERE blob = ?1"]
    {
        c.prepare_cached(statement).sql()?.execute([id]).sql()?;
    }
    Ok(objects)
}

/// Objects without a row from now on.
pub fn discard<'a>(c: &Connection, objects: impl IntoIterator<Item = &'a ObjectKey>, now: Timestamp) -> Outcome<()> {
    // The same object may be named twice: a block list can repeat a block.
    let mut insert =
        c.batch("INSERT INTO garbage (object, time) VALUES (?1, ?2) ON CONFLICT (object) DO NOTHING", 1).sql()?;
    for object in objects {
        insert.add(params![object.0, now.as_micros()]).sql()?;
    }
    insert.finish().sql()?;
    Ok(())
}

/// Uncommitted blocks of a blob.
pub fn staged(c: &Connection, container_id: i64, blob: &str) -> Outcome<Vec<Extent>> {
    c.prepare_cached("SELECT block, object, length FROM blocks WHERE container = ?1 AND blob = ?2 ORDER BY block")
        .sql()?
        .query_map(params![container_id, blob], |row| {
            Ok(Extent { block_id: row.get(0)?, object: ObjectKey(row.get(1)?), length: length(row.get(2)?) })
        })
        .sql()?
        .collect::<Result<_, _>>()
        .sql()
}

/// Removes the rows of uncommitted blocks; gives what they were.
pub fn remove_staged(c: &Connection, container_id: i64, blob: &str) -> Outcome<Vec<Extent>> {
    let removed = c
        .prepare_cached("DELETE FROM staged WHERE container = ?1 AND blob = ?2")
        .sql()?
        .execute(params![container_id, blob])
        .sql()?;
    if removed == 0 {
        return Ok(Vec::new());
    }
    let extents = staged(c, container_id, blob)?;
    c.prepare_cached("DELETE FROM blocks WHERE container = ?1 AND blob = ?2")
        .sql()?
        .execute(params![container_id, blob])
        .sql()?;
    Ok(extents)
}

// --- around every write

/// Announces a change of `blob`.
pub fn announce(c: &Connection, stamp: &Stamp, event_type: &'static str, blob: &Blob) -> Outcome<()> {
    let event = NewEvent {
        time_micros: stamp.now.as_micros(),
        account: stamp.account.clone(),
        subject: format!("containers/{}/blobs/{}", blob.container, blob.name),
        event_type,
        traceparent: stamp.traceparent.clone(),
        payload: Payload::Blob(BlobChanged {
            container: blob.container.clone(),
            name: blob.name.clone(),
            content_length: blob.length,
            etag: blob.etag.clone(),
        }),
    };
    Ok(outbox::append(c, "storage-svc", vec![event])?)
}

/// Does `work`, unless this request did it before.
pub fn once<T: Serialize + DeserializeOwned>(
    c: &Connection,
    stamp: &Stamp,
    method: &str,
    work: impl FnOnce() -> Outcome<T>,
) -> Outcome<Once<T>> {
    let account = stamp.account.to_ascii_lowercase();
    if let Some(answer) = requests::lookup(c, &account, method, &stamp.request_id)? {
        let answer = serde_json::from_slice(&answer).map_err(damaged)?;
        return Ok(Once { answer, repeated: true });
    }
    let answer = work()?;
    if !stamp.request_id.is_empty() {
        let json = serde_json::to_vec(&answer).map_err(damaged)?;
        requests::record(c, &account, method, &stamp.request_id, &json, stamp.now.as_micros())?;
    }
    Ok(Once { answer, repeated: false })
}
