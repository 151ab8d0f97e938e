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
mod setback;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use kiln_bus::{Bus, BusError, Message};
use kiln_proto::events::v1::{Event, event::Payload};
use kiln_telemetry::prometheus::{self, IntCounterVec, IntGauge, Opts};
use prost::Message as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::database::Database;
use crate::error::StoreError;
use crate::params;
use crate::sql::{Connection, OptionalExtension};
use setback::Setback;

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
/// After so many bytes of events more will follow: they gather until so long after the last look. What comes
/// one by one is published at once.
const BUSY_BYTES: usize = 4096;
const PACE: Duration = Duration::from_millis(15);
/// Published rows are deleted when there are so many, or when nothing has come for so long.
const DELETE_ROWS: usize = 512;
const CALM: Duration = Duration::from_millis(50);
/// Rows are looked for this often even if no commit was noticed.
const SCAN: Duration = Duration::from_secs(5);

/// Failures of all relays of this process, by what failed.
static FAILURES: LazyLock<Option<IntCounterVec>> = LazyLock::new(|| {
    let about = Opts::new("kiln_outbox_failures_total", "Attempts of the outbox relay that failed, by step");
    let counter = IntCounterVec::new(about, &["step"]).ok()?;
    prometheus::register(Box::new(counter.clone())).ok()?;
    Some(counter)
});

fn count_failure(step: &str) {
    if let Some(failures) = &*FAILURES {
        failures.with_label_values(&[step]).inc();
    }
}

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
    let mut insert = connection.batch("INSERT INTO outbox (events) VALUES (?1)", 0)?;
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
        insert.add([&message[..]])?;
    }
    insert.finish()?;
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
/// `lag` shows the rows that wait. Of several replicas one publishes, so that
/// messages keep their order; when it is gone, another does.
pub async fn relay(database: Database, bus: Arc<dyn Bus>, lag: IntGauge, shutdown: CancellationToken) {
    let mut turn = database.turn();
    loop {
        tokio::select! {
            () = turn.mine() => {}
            () = shutdown.cancelled() => return,
        }
        tokio::select! {
            () = publish(&database, &bus, &lag, &shutdown) => return,
            () = turn.lost() => tracing::warn!("another replica publishes events from here on"),
        }
        lag.set(0);
    }
}

async fn publish(database: &Database, bus: &Arc<dyn Bus>, lag: &IntGauge, shutdown: &CancellationToken) {
    let mut relay = Relay {
        database: database.clone(),
        bus: bus.clone(),
        lag: lag.clone(),
        confirmed: 0,
        undeleted: 0,
        setback: Setback::default(),
    };
    let mut wait = RETRY.0;
    while !shutdown.is_cancelled() {
        let waiter = relay.database.clone();
        // Created before looking: it also completes for a commit that happens
        // while we look, so none is missed.
        let committed = waiter.committed();
        let began = Instant::now();
        // Publishing waits until the message is safe with its consumers, who may
        // have stopped already; rows that were not deleted are published again.
        let published = tokio::select! {
            published = relay.publish_some() => published,
            () = shutdown.cancelled() => break,
        };
        match published {
            Ok(0) => {
                wait = RETRY.0;
                let pause = if relay.undeleted > 0 { CALM.max(relay.setback.left(Instant::now())) } else { SCAN };
                tokio::select! {
                    () = committed => {}
                    () = tokio::time::sleep(pause) => relay.delete_or_tell().await,
                    () = shutdown.cancelled() => break,
                }
            }
            Ok(bytes) => {
                wait = RETRY.0;
                if relay.undeleted >= DELETE_ROWS {
                    relay.delete_or_tell().await;
                }
                if bytes >= BUSY_BYTES {
                    tokio::select! {
                        () = tokio::time::sleep_until(began + PACE) => {}
                        () = shutdown.cancelled() => break,
                    }
                }
            }
            Err(error) => {
                count_failure("publish");
                tracing::warn!(%error, retry_in = ?wait, "events could not be published; they stay in the outbox");
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = shutdown.cancelled() => break,
                }
                wait = (wait * 2).min(RETRY.1);
            }
        }
    }
    // The last chance: after it the messages are published again.
    relay.setback = Setback::default();
    relay.delete_or_tell().await;
}

#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// What one relay has done.
struct Relay {
    database: Database,
    bus: Arc<dyn Bus>,
    lag: IntGauge,
    /// The last row whose message is confirmed.
    confirmed: i64,
    /// Rows up to there that are still stored. They go together, because each deletion is a
    /// commit; after a crash their messages are published again.
    undeleted: usize,
    /// That they could not be deleted.
    setback: Setback,
}

impl Relay {
    /// Publishes one read's worth of rows; gives their size in bytes.
    async fn publish_some(&mut self) -> Result<usize, RelayError> {
        let after = self.confirmed;
        let (rows, waiting) = self.database.read(move |connection| read_rows(connection, after)).await?;
        self.lag.set(waiting);
        let Some(last) = rows.last().map(|(id, _)| *id) else { return Ok(0) };
        let count = rows.len();
        let messages: Vec<Message> = rows.into_iter().map(|(_, message)| message).collect();
        let bytes = messages.iter().map(|message| message.body.len()).sum();
        self.bus.publish_all(messages).await?;
        self.confirmed = last;
        self.undeleted += count;
        self.lag.set(waiting - i64::try_from(count).unwrap_or(waiting));
        Ok(bytes)
    }

    async fn delete_or_tell(&mut self) {
        if self.undeleted == 0 || !self.setback.left(Instant::now()).is_zero() {
            return;
        }
        let last = self.confirmed;
        let deleted = self.database.write::<_, StoreError, _>(move |connection| {
            Ok(connection.prepare_cached("DELETE FROM outbox WHERE id <= ?1")?.execute([last])?)
        });
        match deleted.await {
            Ok(_) => {
                self.undeleted = 0;
                let failures = self.setback.over();
                if failures > 0 {
                    tracing::info!(failures, "published events are removed from the outbox again");
                }
            }
            Err(error) => {
                count_failure("delete");
                let now = Instant::now();
                if self.setback.failed(now) {
                    let (rows, retry_in) = (self.undeleted, self.setback.left(now));
                    tracing::warn!(%error, rows, ?retry_in, "published events could not be removed from the outbox");
                }
            }
        }
    }
}

/// The next messages after row `after`, and how many rows wait in all.
fn read_rows(connection: &Connection, after: i64) -> Result<(Vec<(i64, Message)>, i64), StoreError> {
    let mut statement =
        connection.prepare_cached("SELECT id, events FROM outbox WHERE id > ?1 ORDER BY id LIMIT ?2")?;
    let mut rows = statement.query([after, READ_ROWS])?;
    let (mut messages, mut size) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let bytes = row.get_ref(1)?.as_blob()?;
        size += bytes.len();
        messages.push((row.get(0)?, message(bytes)?));
        if size >= READ_BYTES {
            break;
        }
    }
    drop(rows);
    let waiting =
        connection.prepare_cached("SELECT count(*) FROM outbox WHERE id > ?1")?.query_row([after], |row| row.get(0))?;
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
    use crate::testing::TestStore;
    use crate::{Durability, Migration};
    use kiln_proto::events::v1::{BlobChanged, EventBatch};

    const MIGRATIONS: &[Migration] = &[Migration::new(1, SCHEMA)];

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
        for store in TestStore::each() {
            let database = Database::open(store.config(), Durability::PowerLoss, MIGRATIONS).await.unwrap();
            for types in [vec!["a.b.c", "a.b.c"], vec!["a.b.c", "a.b.d", "a.b.c"]] {
                let events = types.into_iter().map(event).collect();
                database.write::<_, StoreError, _>(move |c| append(c, "test", events)).await.unwrap();
            }
            let (rows, waiting) = database.read(|connection| read_rows(connection, 0)).await.unwrap();
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
    }

    #[tokio::test]
    async fn rows_that_cannot_be_deleted_go_when_they_can() {
        let place = TestStore::sqlite();
        let database = Database::open(place.config(), Durability::PowerLoss, MIGRATIONS).await.unwrap();
        let run = |sql: &'static str| {
            let database = database.clone();
            async move { database.write::<_, StoreError, _>(move |c| Ok(c.execute(sql, [])?)).await.unwrap() }
        };
        run("CREATE TRIGGER held BEFORE DELETE ON outbox BEGIN SELECT RAISE(ABORT, 'held'); END").await;
        let events = vec![event("a.b.c")];
        database.write::<_, StoreError, _>(move |c| append(c, "test", events)).await.unwrap();
        let (lag, shutdown) = (IntGauge::new("lag", "lag").unwrap(), CancellationToken::new());
        let bus = Arc::new(kiln_bus::MemoryBus::new());
        let running = kiln_telemetry::spawn(relay(database.clone(), bus, lag, shutdown.clone()));
        let failures = FAILURES.as_ref().unwrap().with_label_values(&["delete"]);
        kiln_testkit::eventually("it fails", || async { (failures.get() >= 3).then_some(()) }).await;
        run("DROP TRIGGER held").await;
        kiln_testkit::eventually("the rows are gone", || async {
            let (rows, _) = database.read(|connection| read_rows(connection, 0)).await.unwrap();
            rows.is_empty().then_some(())
        })
        .await;
        shutdown.cancel();
        running.await.unwrap();
    }

    #[test]
    fn ids_are_uuids_of_version_7() {
        let mut ids = Ids::new();
        for _ in 0..3 {
            assert_eq!(uuid::Uuid::parse_str(&ids.next()).unwrap().get_version_num(), 7);
        }
    }
}
