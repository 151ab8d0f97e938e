//! What the statements of all subjects share.

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};
use kiln_proto::events::v1::{BlobChanged, event::Payload};
use kiln_store::outbox::{self, NewEvent};
use kiln_store::sql::{self, Connection, OptionalExtension, Row, params};
use kiln_store::{StoreError, requests};
use kiln_time::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::domain::StorageError;
use crate::domain::lease::Lease;
use crate::domain::model::{
    Address, Blob, BlobKind, ChosenTier, Container, Content, CopySource, Extent, ObjectKey, Piece, PublicAccess,
    SealedBytes,
};
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

/// Where a blob was copied from, as it is stored.
pub fn copy_text(copy: Option<&CopySource>) -> Outcome<Option<String>> {
    copy.map(to_json).transpose()
}

/// The last one is the moment of a snapshot.
pub const BLOB_COLUMNS: &str = "id, name, etag, created, modified, length, properties, metadata, copy, appended, tier, \
     lease, CAST(NULL AS INTEGER)";
/// The same of `snapshots`, which are never leased; the id is that of the content.
pub const SNAPSHOT_COLUMNS: &str = "content, name, etag, created, modified, length, properties, metadata, copy, appended, tier, \
     CAST(NULL AS TEXT), snapshot";

/// A row as SQLite gives it, before its JSON is read.
#[derive(Debug)]
pub struct RawBlob {
    id: i64,
    name: String,
    etag: String,
    created: i64,
    modified: i64,
    length: i64,
    properties: String,
    metadata: String,
    copy: Option<String>,
    appended: Option<i64>,
    tier: Option<String>,
    lease: Option<String>,
    snapshot: Option<i64>,
}

impl RawBlob {
    pub fn read(row: Row<'_>) -> Result<Self, sql::Error> {
        Ok(Self {
            id: row.get(0)?,
            name: row.get(1)?,
            etag: row.get(2)?,
            created: row.get(3)?,
            modified: row.get(4)?,
            length: row.get(5)?,
            properties: row.get(6)?,
            metadata: row.get(7)?,
            copy: row.get(8)?,
            appended: row.get(9)?,
            tier: row.get(10)?,
            lease: row.get(11)?,
            snapshot: row.get(12)?,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// If it is a snapshot.
    pub fn snapshot(&self) -> Option<i64> {
        self.snapshot
    }

    /// The blob, and the id of its content.
    pub fn into_blob(self, container: &str) -> Outcome<(i64, Blob)> {
        let blob = Blob {
            container: container.to_owned(),
            name: self.name,
            etag: self.etag,
            created: Timestamp::from_micros(self.created),
            last_modified: Timestamp::from_micros(self.modified),
            length: length(self.length),
            properties: from_json(&self.properties)?,
            metadata: from_json(&self.metadata)?,
            copy: self.copy.as_deref().map(from_json).transpose()?,
            kind: self.appended.map_or(BlobKind::Block, |blocks| BlobKind::Append { blocks: length(blocks) }),
            tier: self.tier.as_deref().map(from_json::<ChosenTier>).transpose()?,
            lease: lease(self.lease.as_deref())?,
            snapshot: self.snapshot.map(Timestamp::from_micros),
        };
        Ok((self.id, blob))
    }
}

/// [`Address`] on its way to the thread of the database.
#[derive(Debug, Clone)]
pub struct Key {
    pub account: String,
    pub container: String,
    pub name: String,
    pub snapshot: Option<Timestamp>,
}

impl Key {
    pub fn new(of: Address<'_>) -> Self {
        Self {
            account: of.account.to_owned(),
            container: of.container.to_owned(),
            name: of.name.to_owned(),
            snapshot: of.snapshot,
        }
    }

    /// The blob or snapshot, and the id of its content.
    pub fn get(&self, c: &Connection) -> Outcome<(i64, Blob)> {
        let (container_id, _) = container(c, &self.account, &self.container)?;
        let found = match self.snapshot {
            None => blob(c, container_id, &self.container, &self.name)?,
            Some(at) => snapshot(c, container_id, &self.container, &self.name, at)?,
        };
        found.ok_or(StorageError::BlobNotFound)
    }
}

/// What `blobs` keeps of a blob's kind.
fn appended(kind: BlobKind) -> Option<i64> {
    match kind {
        BlobKind::Block => None,
        BlobKind::Append { blocks } => Some(integer(blocks)),
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

pub fn snapshot(
    c: &Connection,
    container_id: i64,
    container: &str,
    name: &str,
    at: Timestamp,
) -> Outcome<Option<(i64, Blob)>> {
    let raw = c
        .prepare_cached(&format!(
            "SELECT {SNAPSHOT_COLUMNS} FROM snapshots WHERE container = ?1 AND name = ?2 AND snapshot = ?3"
        ))
        .sql()?
        .query_row(params![container_id, name, at.as_micros()], RawBlob::read)
        .optional()
        .sql()?;
    raw.map(|raw| raw.into_blob(container)).transpose()
}

/// The bytes of a blob or snapshot; `id` is that of the content.
pub fn content(c: &Connection, id: i64, blob: &Blob) -> Outcome<Content> {
    match blob.kind {
        BlobKind::Block => block_content(c, id),
        BlobKind::Append { .. } => pieces(c, id, blob.length),
    }
}

fn block_content(c: &Connection, blob: i64) -> Outcome<Content> {
    let small: Option<(Vec<u8>, Option<String>)> = c
        .prepare_cached("SELECT bytes, key FROM small WHERE blob = ?1")
        .sql()?
        .query_row([blob], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
        .sql()?;
    match small {
        Some((bytes, None)) => Ok(Content::Inline(Bytes::from(bytes))),
        Some((bytes, Some(key))) => Ok(Content::Sealed(SealedBytes { key, bytes: Bytes::from(bytes) })),
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

/// The first `length` bytes of an append blob: what was added behind a snapshot
/// is none of its business.
fn pieces(c: &Connection, blob: i64, mut left: u64) -> Outcome<Content> {
    let loose: Vec<(i64, Vec<u8>)> = c
        .prepare_cached("SELECT seq, bytes FROM pieces WHERE blob = ?1 ORDER BY seq")
        .sql()?
        .query_map([blob], |row| Ok((row.get(0)?, row.get(1)?)))
        .sql()?
        .collect::<Result<_, _>>()
        .sql()?;
    let objects: Vec<(i64, ObjectKey, u64)> = c
        .prepare_cached("SELECT seq, object, length FROM extents WHERE blob = ?1 ORDER BY seq")
        .sql()?
        .query_map([blob], |row| Ok((row.get(0)?, ObjectKey(row.get(1)?), length(row.get(2)?))))
        .sql()?
        .collect::<Result<_, _>>()
        .sql()?;
    let (mut loose, mut objects) = (loose.into_iter().peekable(), objects.into_iter().peekable());
    let mut pieces = Vec::new();
    // Neighbours become one piece.
    let mut bytes = BytesMut::new();
    loop {
        let next = loose.next_if(|(seq, _)| objects.peek().is_none_or(|(other, ..)| seq < other));
        match next {
            Some((_, more)) => {
                let taken = more.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                bytes.extend_from_slice(&more[..taken]);
                left -= taken as u64;
            }
            None => {
                if !bytes.is_empty() {
                    pieces.push(Piece::Bytes(bytes.split().freeze()));
                }
                let Some((_, key, length)) = objects.next() else { break };
                let taken = length.min(left);
                if taken > 0 {
                    pieces.push(Piece::Object { key, length: taken });
                }
                left -= taken;
            }
        }
    }
    if left > 0 {
        return Err(damaged(format!("{left} bytes of an append blob are missing")));
    }
    Ok(Content::Pieces(pieces))
}

/// Writes a blob's row and its content; the old row of this name must be gone.
pub fn insert_blob(c: &Connection, container_id: i64, blob: &Blob, content: &Content) -> Outcome<()> {
    let id: i64 = c
        .prepare_cached(
            "INSERT INTO blobs
                 (container, name, etag, created, modified, length, properties, metadata, copy, lease, appended, tier)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) RETURNING id",
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
                copy_text(blob.copy.as_ref())?,
                lease_text(&blob.lease)?,
                appended(blob.kind),
                blob.tier.as_ref().map(to_json).transpose()?,
            ],
            |row| row.get(0),
        )
        .sql()?;
    let small = |bytes: &Bytes, key: Option<&str>| {
        c.prepare_cached("INSERT INTO small (blob, bytes, key) VALUES (?1, ?2, ?3)")
            .sql()?
            .execute(params![id, &bytes[..], key])
            .sql()
    };
    match content {
        Content::Inline(bytes) => {
            small(bytes, None)?;
        }
        Content::Sealed(sealed) => {
            small(&sealed.bytes, Some(&sealed.key))?;
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
        Content::Pieces(pieces) => super::append::insert(c, id, pieces)?,
    }
    Ok(())
}

/// Removes a blob's row, and its content unless a snapshot needs it; gives the
/// objects that lost a row.
pub fn remove_blob(c: &Connection, id: i64) -> Outcome<Vec<ObjectKey>> {
    c.prepare_cached("DELETE FROM blobs WHERE id = ?1").sql()?.execute([id]).sql()?;
    remove_content(c, id)
}

/// Removes a content that neither a blob nor a snapshot has any more; gives the
/// objects that lost a row.
pub fn remove_content(c: &Connection, id: i64) -> Outcome<Vec<ObjectKey>> {
    let needed: bool = c
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM snapshots WHERE content = ?1) OR EXISTS (SELECT 1 FROM blobs WHERE id = ?1)",
        )
        .sql()?
        .query_row([id], |row| row.get(0))
        .sql()?;
    if needed {
        return Ok(Vec::new());
    }
    let objects = extents(c, id)?.into_iter().map(|extent| extent.object).collect();
    for statement in [
        "DELETE FROM small WHERE blob = ?1",
        "DELETE FROM extents WHERE blob = ?1",
        "DELETE FROM pieces WHERE blob = ?1",
    ] {
        c.prepare_cached(statement).sql()?.execute([id]).sql()?;
    }
    Ok(objects)
}

/// Those of `objects` that no row names any more are garbage from now on. To be
/// called behind the changes of rows: contents may share objects.
pub fn discard<'a>(c: &Connection, objects: impl IntoIterator<Item = &'a ObjectKey>, now: Timestamp) -> Outcome<()> {
    let objects: Vec<&ObjectKey> = objects.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    if objects.is_empty() {
        return Ok(());
    }
    let named = named(c, &objects)?;
    let mut insert =
        c.batch("INSERT INTO garbage (object, time) VALUES (?1, ?2) ON CONFLICT (object) DO NOTHING", 1).sql()?;
    for (object, _) in objects.iter().zip(named).filter(|(_, named)| !named) {
        insert.add(params![object.0, now.as_micros()]).sql()?;
    }
    insert.finish().sql()?;
    Ok(())
}

/// Whether a content or an uncommitted block has each of `objects`.
pub fn named(c: &Connection, objects: &[&ObjectKey]) -> Outcome<Vec<bool>> {
    let mut named = vec![false; objects.len()];
    for statement in ["SELECT object FROM extents WHERE object = ?1", "SELECT object FROM blocks WHERE object = ?1"] {
        c.each(statement, objects.iter().map(|object| [&object.0]), |at, _| {
            named[at] = true;
            Ok::<_, StoreError>(())
        })?;
    }
    Ok(named)
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
