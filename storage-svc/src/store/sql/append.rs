//! Append blobs: their pieces, in the catalogue first, and in objects later.
//!
//! A piece has a place (`seq`), the number of pieces before it. Places of pieces
//! in the catalogue (`pieces`) and of those in objects (`extents`) are in one
//! order; an object that takes the place of several has that of the first.

use kiln_store::sql::{Connection, params};

use super::blobs;
use super::rows::{self, Key, Outcome, Sql};
use crate::domain::append::{self, Loose};
use crate::domain::model::{BlobKind, ObjectKey, Piece};
use crate::store::{Appended, Guard, LooseRun, NewPiece, Stamp};

pub fn add(c: &Connection, stamp: &Stamp, new: NewPiece, guard: &Guard) -> Outcome<Appended> {
    let (id, mut blob) = blobs::writable(c, stamp, &new.container, &new.blob, guard)?;
    let added = new.piece.length();
    let blocks = append::check(&blob, added, new.position)?;
    let loose = insert_piece(c, id, blocks, &new.piece)?;
    let offset = blob.length;
    blob.etag.clone_from(&stamp.etag);
    blob.last_modified = stamp.now;
    blob.length += added;
    blob.kind = BlobKind::Append { blocks: blocks + 1 };
    // It was the checksum of what the blob was before.
    blob.properties.content_md5 = None;
    let (pieces, bytes) = c
        .prepare_cached(
            "UPDATE blobs SET etag = ?2, modified = ?3, length = ?4, properties = ?5, appended = ?6,
                 loose = loose + ?7, loose_bytes = loose_bytes + ?8, lease = ?9
             WHERE id = ?1 RETURNING loose, loose_bytes",
        )
        .sql()?
        .query_row(
            params![
                id,
                blob.etag,
                blob.last_modified.as_micros(),
                rows::integer(blob.length),
                rows::to_json(&blob.properties)?,
                rows::integer(blocks + 1),
                rows::integer(loose.pieces),
                rows::integer(loose.bytes),
                rows::lease_text(&blob.lease)?,
            ],
            |row| Ok((row.get::<i64>(0)?, row.get::<i64>(1)?)),
        )
        .sql()?;
    let loose = Loose { pieces: rows::length(pieces), bytes: rows::length(bytes) };
    Ok(Appended { blob, offset, loose })
}

/// Writes the pieces of a new blob.
pub fn insert(c: &Connection, id: i64, pieces: &[Piece]) -> Outcome<()> {
    let mut loose = Loose::default();
    for (seq, piece) in (0..).zip(pieces) {
        let added = insert_piece(c, id, seq, piece)?;
        loose.pieces += added.pieces;
        loose.bytes += added.bytes;
    }
    c.prepare_cached("UPDATE blobs SET loose = ?2, loose_bytes = ?3 WHERE id = ?1")
        .sql()?
        .execute(params![id, rows::integer(loose.pieces), rows::integer(loose.bytes)])
        .sql()?;
    Ok(())
}

/// Gives what is loose of it.
fn insert_piece(c: &Connection, id: i64, seq: u64, piece: &Piece) -> Outcome<Loose> {
    let seq = rows::integer(seq);
    match piece {
        Piece::Bytes(bytes) => {
            c.prepare_cached("INSERT INTO pieces (blob, seq, bytes) VALUES (?1, ?2, ?3)")
                .sql()?
                .execute(params![id, seq, &bytes[..]])
                .sql()?;
            Ok(Loose { pieces: 1, bytes: bytes.len() as u64 })
        }
        Piece::Object { key, length } => {
            insert_object(c, id, seq, key, *length)?;
            Ok(Loose::default())
        }
    }
}

fn insert_object(c: &Connection, id: i64, seq: i64, key: &ObjectKey, length: u64) -> Outcome<()> {
    c.prepare_cached("INSERT INTO extents (blob, seq, block, object, length) VALUES (?1, ?2, NULL, ?3, ?4)")
        .sql()?
        .execute(params![id, seq, key.0, rows::integer(length)])
        .sql()?;
    Ok(())
}

pub fn loose(c: &Connection, of: &Key) -> Outcome<Vec<LooseRun>> {
    let (content, _) = of.get(c)?;
    let pieces: Vec<(u64, Vec<u8>)> = c
        .prepare_cached("SELECT seq, bytes FROM pieces WHERE blob = ?1 ORDER BY seq")
        .sql()?
        .query_map([content], |row| Ok((rows::length(row.get(0)?), row.get(1)?)))
        .sql()?
        .collect::<Result<_, _>>()
        .sql()?;
    let runs = append::runs(pieces.iter().map(|(seq, _)| *seq));
    let mut pieces = pieces.into_iter().peekable();
    let run = |(first, last)| {
        let mut bytes = bytes::BytesMut::new();
        while let Some((_, more)) = pieces.next_if(|(seq, _)| *seq <= last) {
            bytes.extend_from_slice(&more);
        }
        LooseRun { content, first, last, bytes: bytes.freeze() }
    };
    Ok(runs.into_iter().map(run).collect())
}

pub fn merge(c: &Connection, run: &LooseRun, object: &ObjectKey) -> Outcome<bool> {
    let (first, last) = (rows::integer(run.first), rows::integer(run.last));
    let (pieces, bytes) = c
        .prepare_cached(
            "SELECT CAST(COUNT(*) AS INTEGER), CAST(COALESCE(SUM(LENGTH(bytes)), 0) AS INTEGER)
             FROM pieces WHERE blob = ?1 AND seq BETWEEN ?2 AND ?3",
        )
        .sql()?
        .query_row(params![run.content, first, last], |row| Ok((row.get::<i64>(0)?, row.get::<i64>(1)?)))
        .sql()?;
    // Somebody else was faster, or the blob is gone.
    if pieces != last - first + 1 || bytes != rows::integer(run.bytes.len() as u64) {
        return Ok(false);
    }
    c.prepare_cached("DELETE FROM pieces WHERE blob = ?1 AND seq BETWEEN ?2 AND ?3")
        .sql()?
        .execute(params![run.content, first, last])
        .sql()?;
    insert_object(c, run.content, first, object, run.bytes.len() as u64)?;
    // If only snapshots have the content, there is no such row.
    c.prepare_cached("UPDATE blobs SET loose = loose - ?2, loose_bytes = loose_bytes - ?3 WHERE id = ?1")
        .sql()?
        .execute(params![run.content, pieces, bytes])
        .sql()?;
    Ok(true)
}
