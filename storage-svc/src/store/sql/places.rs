//! What the catalogue remembers about the place of its objects: whose they are,
//! which keys they are encrypted with, which uploads in parts were begun.

use kiln_store::sql::{Connection, params};
use kiln_time::Timestamp;

use super::rows::{self, Outcome, Sql};
use crate::domain::model::{ObjectKey, OpenUpload};

pub fn identity(c: &Connection, new: &str) -> Outcome<String> {
    c.prepare_cached("INSERT INTO identity (one, name) VALUES (1, ?1) ON CONFLICT (one) DO NOTHING")
        .sql()?
        .execute([new])
        .sql()?;
    c.prepare_cached("SELECT name FROM identity WHERE one = 1").sql()?.query_row([], |row| row.get(0)).sql()
}

pub fn keys(c: &Connection) -> Outcome<Vec<(String, String)>> {
    c.prepare_cached("SELECT id, proof FROM encryption_keys ORDER BY id")
        .sql()?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .sql()?
        .collect::<Result<_, _>>()
        .sql()
}

pub fn add_key(c: &Connection, id: &str, proof: &str) -> Outcome<()> {
    c.prepare_cached("INSERT INTO encryption_keys (id, proof) VALUES (?1, ?2) ON CONFLICT (id) DO NOTHING")
        .sql()?
        .execute([id, proof])
        .sql()?;
    Ok(())
}

pub fn key_in_use(c: &Connection, id: &str) -> Outcome<bool> {
    c.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM small WHERE key = ?1)
             OR EXISTS (SELECT 1 FROM extents WHERE object LIKE ?2)
             OR EXISTS (SELECT 1 FROM blocks WHERE object LIKE ?2)",
    )
    .sql()?
    .query_row([id, &format!("%.{id}")], |row| row.get(0))
    .sql()
}

pub fn forget_key(c: &Connection, id: &str) -> Outcome<()> {
    c.prepare_cached("DELETE FROM encryption_keys WHERE id = ?1").sql()?.execute([id]).sql()?;
    Ok(())
}

pub fn note_upload(c: &Connection, upload: &OpenUpload, now: Timestamp) -> Outcome<()> {
    c.prepare_cached(
        "INSERT INTO uploads (object, id, time) VALUES (?1, ?2, ?3)
         ON CONFLICT (object) DO UPDATE SET time = excluded.time",
    )
    .sql()?
    .execute(params![upload.object.0, upload.id, now.as_micros()])
    .sql()?;
    Ok(())
}

pub fn forget_upload(c: &Connection, object: &ObjectKey) -> Outcome<()> {
    c.prepare_cached("DELETE FROM uploads WHERE object = ?1").sql()?.execute([&object.0]).sql()?;
    Ok(())
}

pub fn open_uploads(c: &Connection, before: Timestamp, limit: usize) -> Outcome<Vec<OpenUpload>> {
    c.prepare_cached("SELECT object, id FROM uploads WHERE time < ?1 ORDER BY time LIMIT ?2")
        .sql()?
        .query_map(params![before.as_micros(), rows::integer(limit as u64)], |row| {
            Ok(OpenUpload { object: ObjectKey(row.get(0)?), id: row.get(1)? })
        })
        .sql()?
        .collect::<Result<_, _>>()
        .sql()
}
