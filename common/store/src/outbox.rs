//! Events that are committed together with the change they announce.
//!
//! [`append`] numbers the events of a transaction and stores them as messages:
//! one row for each, with events of one type. [`relay`] publishes rows in order
//! and as they are, with confirms, and deletes them when the bus has them; after
//! a crash it publishes the same messages again. Consumers drop repetitions by
//! (source, sequence).
//!
//! A service that uses the outbox puts [`SCHEMA`] into its first migration.

mod group;

use std::time::Duration;

use bytes::Bytes;
use kiln_bus::{Bus, BusError, Message};
use kiln_proto::events::v1::{Event, event::Payload};
use kiln_telemetry::prometheus::IntGauge;
use prost::Message as _;
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

use crate::sqlite::{Database, StoreError};

/// Tables of the outbox, for a service's migration.
pub const SCHEMA: &str = "
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    events BLOB NOT NULL
);
CREATE TABLE outbox_state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    source TEXT NOT NULL,
    next_sequence INTEGER NOT NULL
);
";

/// Messages the relay reads and publishes at once, and when it stops reading.
const READ_ROWS: i64 = 256;
const READ_BYTES: usize = 4 * 1024 * 1024;
/// First and longest wait after the bus refused.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Rows are looked for this often even if no commit was noticed.
const SCAN: Duration = Duration::from_secs(5);

/// An event that has no number yet.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// Microseconds since the Unix epoch.
    pub time_micros: i64,
    /// Owner of the thing that changed.
    pub account: String,
    /// For example `jobs/j1/tasks/t7`.
    pub subject: String,
    /// For example `job.task.finished`.
    pub event_type: &'static str,
    /// Trace context of the cause, or empty.
    pub traceparent: String,
    /// What happened.
    pub payload: Payload,
}

/// Adds `events` to the transaction of `connection`. `service` names the source
/// the first time: `<service>/<random id>`, one per database.
///
/// # Errors
/// [`StoreError`] if the tables of [`SCHEMA`] are missing or damaged.
pub fn append(connection: &Connection, service: &str, events: Vec<NewEvent>) -> Result<(), StoreError> {
    if events.is_empty() {
        return Ok(());
    }
    let (source, mut next) = state(connection, service)?;
    let mut ids = Ids::new();
    let mut insert = connection.prepare_cached("INSERT INTO outbox (events) VALUES (?1)")?;
    let mut message = Vec::new();
    for group in group::by_type(events) {
        message.clear();
        for event in group {
            let event = Event {
                id: ids.next(),
                time: Some(kiln_proto::time::timestamp(event.time_micros)),
                source: source.clone(),
                sequence: next.unsigned_abs(),
                account: event.account,
                subject: event.subject,
                r#type: event.event_type.to_owned(),
                traceparent: event.traceparent,
                payload: Some(event.payload),
            };
            next += 1;
            // Field 1 of `EventBatch`.
            prost::encoding::message::encode(1, &event, &mut message);
        }
        insert.execute([&message[..]])?;
    }
    connection.prepare_cached("UPDATE outbox_state SET next_sequence = ?1")?.execute([next])?;
    Ok(())
}

/// Ids of the events of one transaction: UUIDs of version 7 that differ in
/// their last bits, so that not each needs the system's random numbers.
struct Ids(u128);

impl Ids {
    fn new() -> Self {
        // Room to count: the last 32 bits begin at 0.
        Self(uuid::Uuid::now_v7().as_u128() & !0xffff_ffff)
    }

    fn next(&mut self) -> String {
        let id = uuid::Uuid::from_u128(self.0);
        self.0 += 1;
        id.to_string()
    }
}

fn state(connection: &Connection, service: &str) -> Result<(String, i64), StoreError> {
    let found = connection
        .prepare_cached("SELECT source, next_sequence FROM outbox_state")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    if let Some(found) = found {
        return Ok(found);
    }
    let source = format!("{service}/{}", uuid::Uuid::new_v4());
    connection.execute("INSERT INTO outbox_state VALUES (1, ?1, 1)", params![source])?;
    Ok((source, 1))
}

/// Publishes what is in the outbox until `shutdown`. Failures of bus or store
/// are retried with backoff; rows stay until their messages are confirmed.
/// `lag` shows the rows that wait.
pub async fn relay(database: Database, bus: Arc<dyn Bus>, lag: IntGauge, shutdown: CancellationToken) {
    let mut wait = RETRY.0;
    loop {
        // Created before looking: it also completes for a commit that happens
        // while we look, so none is missed.
        let committed = database.committed();
        // Publishing waits until the message is safe with its consumers, who may
        // have stopped already; rows that were not deleted are published again.
        let published = tokio::select! {
            published = publish_some(&database, &*bus, &lag) => published,
            () = shutdown.cancelled() => return,
        };
        match published {
            Ok(0) => {
                wait = RETRY.0;
                tokio::select! {
                    () = committed => {}
                    () = tokio::time::sleep(SCAN) => {}
                    () = shutdown.cancelled() => return,
                }
            }
            Ok(_) => {
                wait = RETRY.0;
                if shutdown.is_cancelled() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, retry_in = ?wait, "events could not be published; they stay in the outbox");
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = shutdown.cancelled() => return,
                }
                wait = (wait * 2).min(RETRY.1);
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// Publishes one read's worth of rows; returns how many there were.
async fn publish_some(database: &Database, bus: &dyn Bus, lag: &IntGauge) -> Result<usize, RelayError> {
    let (rows, waiting) = database.read(read_rows).await?;
    lag.set(waiting);
    let Some(last) = rows.last().map(|(id, _)| *id) else { return Ok(0) };
    let count = rows.len();
    bus.publish_all(rows.into_iter().map(|(_, message)| message).collect()).await?;
    database
        .write::<_, StoreError, _>(move |connection| {
            Ok(connection.prepare_cached("DELETE FROM outbox WHERE id <= ?1")?.execute([last])?)
        })
        .await?;
    Ok(count)
}

fn read_rows(connection: &Connection) -> Result<(Vec<(i64, Message)>, i64), StoreError> {
    let mut statement = connection.prepare_cached("SELECT id, events FROM outbox ORDER BY id LIMIT ?1")?;
    let mut rows = statement.query([READ_ROWS])?;
    let (mut messages, mut size) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let bytes = row.get_ref(1)?.as_blob().map_err(|error| StoreError::Damaged(error.to_string()))?;
        size += bytes.len();
        messages.push((row.get(0)?, message(bytes)?));
        if size >= READ_BYTES {
            break;
        }
    }
    drop(rows);
    let waiting = connection.prepare_cached("SELECT count(*) FROM outbox")?.query_row([], |row| row.get(0))?;
    Ok((messages, waiting))
}

/// A row as a message. Only its first event is read: all have its type, source
/// and cause, or begin with them.
fn message(batch: &[u8]) -> Result<Message, StoreError> {
    let damaged = |why: String| StoreError::Damaged(format!("outbox: {why}"));
    let mut rest = batch;
    let tag = prost::encoding::decode_key(&mut rest).map_err(|error| damaged(error.to_string()))?;
    if tag != (1, prost::encoding::WireType::LengthDelimited) {
        return Err(damaged("a row does not begin with an event".to_owned()));
    }
    let first = Event::decode_length_delimited(rest).map_err(|error| damaged(error.to_string()))?;
    Ok(Message {
        id: first.id,
        routing_key: first.r#type,
        source: first.source,
        traceparent: first.traceparent,
        body: Bytes::copy_from_slice(batch),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::{Durability, Migration};
    use kiln_proto::events::v1::{BlobChanged, EventBatch};

    const MIGRATIONS: &[Migration] = &[Migration { version: 1, sql: SCHEMA }];

    fn event(event_type: &'static str) -> NewEvent {
        NewEvent {
            time_micros: 1,
            account: "a".into(),
            subject: "containers/c/blobs/b".into(),
            event_type,
            traceparent: String::new(),
            payload: Payload::Blob(BlobChanged::default()),
        }
    }

    #[tokio::test]
    async fn events_are_numbered_without_holes_and_grouped_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("o.db"), Durability::PowerLoss, MIGRATIONS).await.unwrap();
        for types in [vec!["a.b.c", "a.b.c"], vec!["a.b.c", "a.b.d", "a.b.c"]] {
            let events = types.into_iter().map(event).collect();
            database.write::<_, StoreError, _>(move |c| append(c, "test", events)).await.unwrap();
        }
        let (rows, waiting) = database.read(read_rows).await.unwrap();
        let batches: Vec<(String, EventBatch)> = rows
            .into_iter()
            .map(|(_, message)| (message.routing_key, EventBatch::decode(message.body).unwrap()))
            .collect();
        let sequences: Vec<u64> = batches.iter().flat_map(|(_, b)| b.events.iter().map(|e| e.sequence)).collect();
        assert_eq!(sequences, [1, 2, 3, 4, 5]);
        let sizes: Vec<(String, usize)> =
            batches.iter().map(|(key, batch)| (key.clone(), batch.events.len())).collect();
        assert_eq!(sizes, [("a.b.c".into(), 2), ("a.b.c".into(), 1), ("a.b.d".into(), 1), ("a.b.c".into(), 1)]);
        assert_eq!(waiting, 4);
        let ids: std::collections::BTreeSet<&str> =
            batches.iter().flat_map(|(_, batch)| batch.events.iter().map(|event| &*event.id)).collect();
        assert_eq!(ids.len(), 5);
    }

    #[test]
    fn ids_are_uuids_of_version_7() {
        let mut ids = Ids::new();
        for _ in 0..3 {
            assert_eq!(uuid::Uuid::parse_str(&ids.next()).unwrap().get_version_num(), 7);
        }
    }
}
