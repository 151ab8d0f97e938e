//! Mostly with SQLite; what PostgreSQL does on its own is in `postgres/tests.rs`.

use super::*;
use crate::testing::TestStore;

const SCHEMA: &[Migration] = &[Migration::new(1, "CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT NOT NULL)")];

#[tokio::test]
async fn only_the_owner_can_read_the_file_also_one_made_by_an_older_kiln() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, database) = database().await;
    database.write::<_, StoreError, _>(|c| Ok(c.execute("INSERT INTO t VALUES (1, 'key')", [])?)).await.unwrap();
    let modes = || -> Vec<(String, u32)> {
        let mut modes: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().permissions().mode()))
            .map(|(name, mode)| (name, mode & 0o777))
            .collect();
        modes.sort();
        modes
    };
    let names = ["t.db", "t.db-shm", "t.db-wal"];
    let private: Vec<_> = names.map(|name| (name.to_owned(), 0o600)).into();
    assert_eq!(modes(), private);
    for name in names {
        std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    let _again = Database::open(dir.path().join("t.db"), Durability::PowerLoss, SCHEMA).await.unwrap();
    assert_eq!(modes(), private);
}

async fn database() -> (tempfile::TempDir, Database) {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::open(dir.path().join("t.db"), Durability::PowerLoss, SCHEMA).await.unwrap();
    (dir, database)
}

async fn count(database: &Database) -> i64 {
    database
        .read::<_, StoreError, _>(|c| Ok(c.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?))
        .await
        .unwrap()
}

#[tokio::test]
async fn concurrent_writes_are_all_kept_and_failed_ones_leave_nothing() {
    for store in TestStore::each() {
        let database = Database::open(store.config(), Durability::PowerLoss, SCHEMA).await.unwrap();
        let writes = (0..200).map(|k| {
            let database = database.clone();
            async move {
                database
                    .write::<_, StoreError, _>(move |c| {
                        // One that does nothing, with its savepoint.
                        if k % 13 == 5 {
                            return Ok(k);
                        }
                        c.execute("INSERT INTO t VALUES (?1, 'x')", [k])?;
                        if k % 10 == 0 {
                            return Err(StoreError::Damaged("on purpose".into()));
                        }
                        if k % 10 == 7 {
                            // The database itself refuses.
                            c.execute("INSERT INTO t VALUES (?1, 'x')", [k])?;
                        }
                        assert!(k % 17 != 3, "panic on purpose");
                        Ok(k)
                    })
                    .await
                    .is_ok()
            }
        });
        let kept = futures::future::join_all(writes).await.into_iter().filter(|ok| *ok).count();
        let idle = |k: &i64| k % 13 == 5;
        let good = |k: &i64| idle(k) || (k % 10 != 0 && k % 10 != 7 && k % 17 != 3);
        let expected = (0..200).filter(good).count();
        let rows = (0..200).filter(|k| good(k) && !idle(k)).count();
        assert_eq!((kept, count(&database).await), (expected, rows as i64), "{}", store.config());
    }
}

#[tokio::test]
async fn a_transaction_that_cannot_begin_is_told_as_that_and_the_next_one_works() {
    let (dir, database) = database().await;
    let other = rusqlite::Connection::open(dir.path().join("t.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let write =
        |k: i64| database.write::<_, StoreError, _>(move |c| Ok(c.execute("INSERT INTO t VALUES (?1, 'x')", [k])?));
    for result in futures::future::join_all([write(1), write(2)]).await {
        assert!(matches!(result, Err(StoreError::Commit(_))), "{result:?}");
    }
    other.execute_batch("ROLLBACK").unwrap();
    write(3).await.unwrap();
    assert_eq!(count(&database).await, 1);
}

#[tokio::test]
async fn a_write_is_there_after_reopening() {
    let (dir, database) = database().await;
    database.write::<_, StoreError, _>(|c| Ok(c.execute("INSERT INTO t VALUES (1, 'x')", [])?)).await.unwrap();
    drop(database);
    let again = Database::open(dir.path().join("t.db"), Durability::PowerLoss, SCHEMA).await.unwrap();
    assert_eq!(count(&again).await, 1);
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let (dir, database) = database().await;
    drop(database);
    let error = Database::open(dir.path().join("t.db"), Durability::PowerLoss, &[]).await.unwrap_err();
    assert!(matches!(error, StoreError::TooNew { found: 1, known: 0 }));
}

#[tokio::test]
async fn waiting_for_a_commit_sees_it() {
    let (_dir, database) = database().await;
    let waiter = database.clone();
    let committed = waiter.committed();
    let (_, written) = tokio::join!(committed, async {
        database.write::<_, StoreError, _>(|c| Ok(c.execute("INSERT INTO t VALUES (1, 'x')", [])?)).await
    });
    assert_eq!(written.unwrap(), 1);
}
