//! What only PostgreSQL can do to a store, and what several processes can do to
//! each other. The suites that both databases pass are beside their subjects.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use kiln_bus::{Bus, BusError, MemoryBus, Message, QueueSpec, Subscription};
use kiln_proto::events::v1::event::Payload;
use kiln_proto::events::v1::{BlobChanged, EventBatch};
use kiln_testkit::eventually;
use prost::Message as _;
use tokio_util::sync::CancellationToken;

use crate::outbox::{self, NewEvent};
use crate::sql::{Connection, OptionalExtension};
use crate::testing::TestStore;
use crate::{Database, Durability, Migration, PostgresConfig, StoreConfig, StoreError, params};

const SCHEMA: &[Migration] = &[
    Migration::new(1, outbox::SCHEMA),
    Migration::new(2, "CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT NOT NULL) WITHOUT ROWID; -- a table"),
];

async fn open(store: &TestStore) -> Database {
    Database::open(store.config(), Durability::PowerLoss, SCHEMA).await.unwrap()
}

fn insert(connection: &Connection, k: i64) -> Result<usize, StoreError> {
    Ok(connection.execute("INSERT INTO t (k, v) VALUES (?1, 'x')", [k])?)
}

async fn write(database: &Database, k: i64) -> Result<usize, StoreError> {
    database.write(move |connection| insert(connection, k)).await
}

async fn count(database: &Database) -> i64 {
    let count = |c: &Connection| Ok(c.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?);
    database.read::<_, StoreError, _>(count).await.unwrap()
}

/// Ends the connection from within.
fn kill(connection: &Connection) -> Result<(), StoreError> {
    let killed = connection.query_row("SELECT 1 WHERE pg_terminate_backend(pg_backend_pid())", [], |_| Ok(()));
    assert!(killed.is_err_and(|error| error.to_string().contains("57P01")));
    Ok(())
}

#[tokio::test]
async fn a_connection_that_is_lost_in_a_write_undoes_it_and_the_next_one_works() {
    let store = TestStore::postgres();
    let database = open(&store).await;
    let lost = database
        .write::<_, StoreError, _>(|c| {
            insert(c, 1)?;
            kill(c)
        })
        .await;
    assert!(matches!(lost, Err(StoreError::Unavailable(_))), "{lost:?}");
    write(&database, 2).await.unwrap();
    assert_eq!(count(&database).await, 1);
}

#[tokio::test]
async fn a_connection_that_is_lost_in_the_commit_leaves_the_caller_in_doubt() {
    let store = TestStore::postgres();
    let database = open(&store).await;
    // The commit itself ends the connection.
    let deferred = "CREATE FUNCTION kill() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(60); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER kill AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW WHEN (NEW.k = 7) EXECUTE FUNCTION kill()";
    store.run_beside(deferred);
    let (doubt, other) = tokio::join!(write(&database, 7), write(&database, 8));
    assert!(matches!(doubt, Err(StoreError::InDoubt(_))), "{doubt:?}");
    // In the same commit or in another one.
    assert!(matches!(other, Err(StoreError::InDoubt(_)) | Ok(1)), "{other:?}");
    let told = kiln_error::Error::from(doubt.unwrap_err());
    assert_eq!(told.kind(), kiln_error::Kind::Unavailable);
    assert!(told.to_string().contains("request id"), "{told}");
    write(&database, 9).await.unwrap();
}

#[tokio::test]
async fn a_commit_that_is_refused_did_not_happen() {
    let store = TestStore::postgres();
    let database = open(&store).await;
    store.run_beside(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW WHEN (NEW.k = 7) EXECUTE FUNCTION refuse()",
    );
    let refused = write(&database, 7).await;
    assert!(matches!(refused, Err(StoreError::Commit(_))), "{refused:?}");
    write(&database, 8).await.unwrap();
    assert_eq!(count(&database).await, 1);
}

#[tokio::test]
async fn statements_that_take_too_long_are_given_up() {
    let store = TestStore::postgres();
    let StoreConfig::Postgres(config) = store.config() else { unreachable!() };
    let short = Duration::from_millis(200);
    let config = (**config).clone().with_timeouts(short, short);
    let database = Database::open(config, Durability::PowerLoss, SCHEMA).await.unwrap();
    let slow = |c: &Connection| Ok(c.query_row("SELECT 1 FROM pg_sleep(60)", [], |row| row.get::<i64>(0))?);
    let read = database.read::<_, StoreError, _>(slow).await;
    let written = database.write::<_, StoreError, _>(slow).await;
    for late in [read, written] {
        assert!(matches!(late, Err(StoreError::Unavailable(_))), "{late:?}");
    }
    // Another process that does not end its transaction.
    let other = open(&store).await;
    let (begun, end) = (Arc::new(tokio::sync::Notify::new()), Arc::new(std::sync::Barrier::new(2)));
    let (told, waits) = (begun.clone(), end.clone());
    let holding = kiln_telemetry::spawn(async move {
        other
            .write::<_, StoreError, _>(move |c| {
                let done = insert(c, 1);
                told.notify_one();
                waits.wait();
                done
            })
            .await
    });
    begun.notified().await;
    let late = write(&database, 2).await;
    assert!(matches!(late, Err(StoreError::Unavailable(_))), "{late:?}");
    end.wait();
    assert_eq!(holding.await.unwrap().unwrap(), 1);
    write(&database, 2).await.unwrap();
    assert_eq!(count(&database).await, 2);
}

#[tokio::test]
async fn a_broken_connection_of_a_reader_is_replaced() {
    let store = TestStore::postgres();
    let database = open(&store).await;
    assert_eq!(count(&database).await, 0);
    database.read::<_, StoreError, _>(kill).await.unwrap();
    assert_eq!(count(&database).await, 0);
    // While it lies there.
    store.run_beside(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE application_name = current_setting('application_name') AND pid <> pg_backend_pid()",
    );
    assert_eq!(count(&database).await, 0);
    write(&database, 1).await.unwrap();
}

#[tokio::test]
async fn a_server_that_cannot_prove_its_name_is_refused() {
    let store = TestStore::postgres();
    open(&store).await;
    // Certificates are for names; and a server may have none at all.
    let url = TestStore::url();
    let (url, _) = url.split_once('?').unwrap_or((&url, ""));
    let config = PostgresConfig::new(&format!("{url}?sslmode=require"), store.postgres_config().schema()).unwrap();
    let refused = Database::open(config, Durability::PowerLoss, SCHEMA).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused:?}");
    let told = refused.to_string().to_lowercase();
    assert!(told.contains("tls") || told.contains("certificate"), "{told}");
}

#[tokio::test]
async fn a_write_that_ignores_a_failed_statement_is_not_kept() {
    let store = TestStore::postgres();
    let database = open(&store).await;
    write(&database, 1).await.unwrap();
    let bold = |k: i64| {
        database.write::<_, StoreError, _>(move |c| {
            insert(c, k)?;
            let _ = insert(c, 1);
            Ok(())
        })
    };
    let outcomes = futures::future::join_all([bold(2), bold(3), bold(4)]).await;
    assert!(outcomes.iter().all(Result::is_err), "{outcomes:?}");
    assert_eq!(count(&database).await, 1);
}

#[tokio::test]
async fn two_processes_write_at_once_and_neither_loses_the_others_changes() {
    let store = TestStore::postgres();
    let (one, two) = tokio::join!(open(&store), open(&store));
    write(&one, 0).await.unwrap();
    // Reads a number and writes the next one: a race, if there could be one.
    let add = |database: Database| async move {
        database
            .write::<_, StoreError, _>(|c| {
                let last: i64 = c.query_row("SELECT max(k) FROM t", [], |row| row.get(0))?;
                insert(c, last + 1)
            })
            .await
            .unwrap()
    };
    let writes = (0..200).map(|at| add(if at % 2 == 0 { one.clone() } else { two.clone() }));
    futures::future::join_all(writes).await;
    assert_eq!((count(&one).await, count(&two).await), (201, 201));
}

#[tokio::test]
async fn a_writer_that_stands_still_keeps_nobody_from_writing_and_its_write_is_undone() {
    let store = TestStore::postgres();
    let (one, two) = tokio::join!(open(&store), open(&store));
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let (inside, begun) = tokio::sync::oneshot::channel();
    let still = kiln_telemetry::spawn(async move {
        one.write::<_, StoreError, _>(move |c| {
            insert(c, 1)?;
            let _ = inside.send(());
            let _ = wait.recv();
            insert(c, 2)
        })
        .await
    });
    begun.await.unwrap();
    // Waits for the lock that the other holds, and gets it.
    write(&two, 3).await.unwrap();
    go_on.send(()).unwrap();
    let undone = still.await.unwrap();
    assert!(matches!(undone, Err(StoreError::Unavailable(_))), "{undone:?}");
    assert_eq!(count(&two).await, 1);
}

#[tokio::test]
async fn commits_of_another_process_are_heard_of() {
    let store = TestStore::postgres();
    let (one, two) = tokio::join!(open(&store), open(&store));
    eventually("a commit is heard of", || async {
        let committed = two.committed();
        let mut committed = std::pin::pin!(committed);
        // The first ones may come before the other listens.
        let _ = futures::poll!(committed.as_mut());
        let k: i64 = count(&one).await;
        write(&one, k).await.unwrap();
        tokio::time::timeout(Duration::from_millis(500), committed).await.ok()
    })
    .await;
}

#[tokio::test]
async fn two_that_start_at_once_migrate_once_and_other_steps_are_refused() {
    let store = TestStore::postgres();
    let databases = futures::future::join_all((0..4).map(|_| open(&store))).await;
    let applied = |c: &Connection| Ok(c.query_row("SELECT count(*) FROM kiln_migrations", [], |row| row.get(0))?);
    assert_eq!(databases[0].read::<i64, StoreError, _>(applied).await.unwrap(), 2);

    const OTHER: &[Migration] =
        &[Migration::new(1, outbox::SCHEMA), Migration::new(2, "CREATE TABLE t (k INTEGER PRIMARY KEY)")];
    const OLDER: &[Migration] = &[Migration::new(1, outbox::SCHEMA)];
    const SAME: &[Migration] = &[
        Migration::new(1, outbox::SCHEMA),
        Migration::new(2, "CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT NOT NULL) WITHOUT ROWID; -- more words"),
    ];
    const BROKEN: &[Migration] = &[SCHEMA[0], SCHEMA[1], Migration::new(3, "CREATE TABLE u (k INTEGER); NONSENSE")];
    let open = |migrations| Database::open(store.config(), Durability::PowerLoss, migrations);
    assert!(matches!(open(OTHER).await.unwrap_err(), StoreError::OtherMigration { version: 2 }));
    assert!(matches!(open(OLDER).await.unwrap_err(), StoreError::TooNew { found: 2, known: 1 }));
    assert!(open(BROKEN).await.is_err());
    open(SAME).await.unwrap();
}

/// A bus that remembers what was published.
#[derive(Debug)]
struct Recording {
    inner: MemoryBus,
    seen: Arc<Mutex<Vec<u64>>>,
}

#[async_trait]
impl Bus for Recording {
    async fn publish(&self, message: Message) -> Result<(), BusError> {
        self.publish_all(vec![message]).await
    }

    async fn publish_all(&self, messages: Vec<Message>) -> Result<(), BusError> {
        for message in messages {
            let batch = EventBatch::decode(message.body).unwrap();
            self.seen.lock().unwrap().extend(batch.events.iter().map(|event| event.sequence));
        }
        Ok(())
    }

    async fn declare(&self, queue: &QueueSpec) -> Result<(), BusError> {
        self.inner.declare(queue).await
    }

    async fn subscribe(&self, queue: &QueueSpec) -> Result<Box<dyn Subscription>, BusError> {
        self.inner.subscribe(queue).await
    }
}

fn event() -> NewEvent {
    NewEvent {
        time_micros: 1,
        account: "a".into(),
        subject: "containers/c/blobs/b".into(),
        event_type: "storage.blob.created",
        traceparent: String::new(),
        payload: Payload::Blob(BlobChanged::default()),
    }
}

#[tokio::test]
async fn of_two_relays_one_publishes_and_the_other_takes_over() {
    let store = TestStore::postgres();
    let (one, two) = tokio::join!(open(&store), open(&store));
    let seen = Arc::<Mutex<Vec<u64>>>::default();
    let relay = |database: &Database, name: &str| {
        let bus = Arc::new(Recording { inner: MemoryBus::new(), seen: seen.clone() });
        let lag = kiln_telemetry::prometheus::IntGauge::new(name, name).unwrap();
        let shutdown = CancellationToken::new();
        let running = kiln_telemetry::spawn(outbox::relay(database.clone(), bus, lag, shutdown.clone()));
        (running, shutdown)
    };
    let (first, second) = (relay(&one, "one"), relay(&two, "two"));
    let announce = |database: &Database| {
        let database = database.clone();
        async move {
            database.write::<_, StoreError, _>(|c| outbox::append(c, "test", vec![event()])).await.unwrap();
        }
    };
    let published = |wanted: usize| {
        let seen = seen.clone();
        eventually("all events are published", move || {
            let all = seen.lock().unwrap().len() >= wanted;
            async move { all.then_some(()) }
        })
    };
    for at in 0..40 {
        announce(if at % 2 == 0 { &one } else { &two }).await;
    }
    published(40).await;
    // Whoever it was, the other one goes on.
    first.1.cancel();
    first.0.await.unwrap();
    drop(one);
    for _ in 0..20 {
        announce(&two).await;
    }
    published(60).await;
    second.1.cancel();
    second.0.await.unwrap();
    assert_eq!(*seen.lock().unwrap(), (1..=60).collect::<Vec<u64>>());
}

#[tokio::test]
async fn rows_of_a_batch_go_together_and_those_missed_are_named() {
    for store in TestStore::each() {
        let database = open(&store).await;
        let inserted = database
            .write::<_, StoreError, _>(|c| {
                let mut batch = c.batch("INSERT INTO t (k, v) VALUES (?1, lower(?2)) ON CONFLICT (k) DO NOTHING", 1)?;
                for k in [5, 1, 5, 2_i64] {
                    batch.add(params![k, format!("V{k}")])?;
                }
                Ok(batch.finish()?)
            })
            .await
            .unwrap();
        assert_eq!(inserted, [2], "{}", store.config());
        let updated = database
            .write::<_, StoreError, _>(|c| {
                let mut batch = c.batch("UPDATE t SET v = ?2 WHERE k = ?1 AND v <> ?2", 1)?;
                // The same row twice: one after the other.
                for (k, v) in [(1_i64, "a"), (9, "b"), (1, "c"), (1, "c"), (2, "d")] {
                    batch.add(params![k, v])?;
                }
                Ok(batch.finish()?)
            })
            .await
            .unwrap();
        assert_eq!(updated, [1, 3], "{}", store.config());
        let found = database
            .read::<_, StoreError, _>(|c| {
                let mut found = Vec::new();
                c.each("SELECT v FROM t WHERE k = ?1", [2_i64, 7, 1, 5].map(|k| [k]), |at, row| {
                    found.push((at, row.get::<String>(0)?));
                    Ok::<_, StoreError>(())
                })?;
                Ok(found)
            })
            .await
            .unwrap();
        assert_eq!(found, [(0, "d".into()), (2, "c".into()), (3, "v5".into())], "{}", store.config());
        let deleted = database
            .write::<_, StoreError, _>(|c| {
                let mut batch = c.batch("DELETE FROM t WHERE k = ?1", 1)?;
                for k in 0..20_000_i64 {
                    batch.add([k])?;
                }
                Ok(batch.finish()?.len())
            })
            .await
            .unwrap();
        assert_eq!((deleted, count(&database).await), (19_997, 0), "{}", store.config());
    }
}

#[tokio::test]
async fn values_come_back_as_they_went_and_keys_sort_by_their_bytes() {
    const WIDE: &[Migration] =
        &[Migration::new(1, "CREATE TABLE w (k TEXT PRIMARY KEY, n INTEGER, b BLOB, flag INTEGER NOT NULL)")];
    for store in TestStore::each() {
        let database = Database::open(store.config(), Durability::PowerLoss, WIDE).await.unwrap();
        let keys = ["b", "a", "B", "é", "_", "aa", "\u{10ffff}"];
        database
            .write::<_, StoreError, _>(move |c| {
                for (at, key) in keys.iter().enumerate() {
                    let bytes = (at > 1).then(|| vec![0_u8, 255]);
                    c.execute(
                        "INSERT INTO w (k, n, b, flag) VALUES (?1, ?2, ?3, ?4)",
                        params![key, (at > 0).then_some(i64::MIN), bytes, at % 2 == 0],
                    )?;
                }
                Ok(())
            })
            .await
            .unwrap();
        let rows = database
            .read::<_, StoreError, _>(|c| {
                let mut statement = c.prepare_cached("SELECT k, n, b, flag FROM w ORDER BY k")?;
                let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
                Ok(rows.collect::<Result<Vec<(String, Option<i64>, Option<Vec<u8>>, bool)>, _>>()?)
            })
            .await
            .unwrap();
        let found: Vec<&str> = rows.iter().map(|row| &*row.0).collect();
        assert_eq!(found, ["B", "_", "a", "aa", "b", "é", "\u{10ffff}"], "{}", store.config());
        assert_eq!(rows[0], ("B".into(), Some(i64::MIN), Some(vec![0, 255]), true));
        assert_eq!(rows[4], ("b".into(), None, None, true));
        let none = database
            .read::<_, StoreError, _>(|c| {
                Ok(c.query_row("SELECT k FROM w WHERE k = ?1", ["none"], |row| row.get::<String>(0)).optional()?)
            })
            .await
            .unwrap();
        assert_eq!(none, None);
    }
    let store = TestStore::postgres();
    let database = open(&store).await;
    let nul = database.write::<_, StoreError, _>(|c| Ok(c.execute("INSERT INTO t (k, v) VALUES (1, ?1)", ["a\0"])?));
    let told = kiln_error::Error::from(nul.await.unwrap_err());
    assert_eq!(told.kind(), kiln_error::Kind::InvalidArgument);
    write(&database, 1).await.unwrap();
}
