//! A SQLite file with group commit.
//!
//! One thread owns the only writing connection. It takes every write that is
//! queued, runs each in its own savepoint, commits once, and only then answers
//! all of them: an answered write survives power loss, and a hundred callers
//! pay one flush. Readers use their own connections and never wait for writers
//! (WAL).

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::checkpoint::Checkpoints;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

/// Writes of one transaction at most: bounds its memory and the wait of the first.
const MAX_GROUP: usize = 1024;
/// Writes that may queue; further callers wait for a place.
const WRITE_QUEUE: usize = 4096;
/// Reads at once.
const READERS: usize = 4;
/// How long to wait for the file's lock, which only another process could hold.
const BUSY_TIMEOUT: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(5) };

/// Why the store did not do it. Nothing of a failed write is kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database refused a statement.
    #[error("database: {0}")]
    Database(Arc<rusqlite::Error>),
    /// The group's commit failed (disk full, I/O error): the write did not happen.
    #[error("the transaction could not be committed: {0}")]
    Commit(Arc<rusqlite::Error>),
    /// A stored value cannot be understood.
    #[error("stored data is damaged: {0}")]
    Damaged(String),
    /// A write panicked; it was rolled back.
    #[error("a write failed unexpectedly: {0}")]
    Panicked(String),
    /// The file was written by a newer Kiln.
    #[error("the database has schema version {found}; this program knows up to {known}")]
    TooNew {
        /// Version in the file.
        found: i64,
        /// Newest version this program has.
        known: i64,
    },
    /// The database is closing.
    #[error("the database is closed")]
    Closed,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(Arc::new(error))
    }
}

impl From<StoreError> for kiln_error::Error {
    /// What callers see: the cause is logged here, once, and not sent out.
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the store failed");
        match error {
            StoreError::Commit(_) | StoreError::Closed => {
                Self::unavailable("the store cannot write at the moment; nothing was changed")
            }
            _ => Self::internal("the store failed"),
        }
    }
}

/// What a commit survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Power loss: every commit is flushed (`synchronous=FULL`).
    #[default]
    PowerLoss,
    /// The death of the process, not of the machine (`synchronous=NORMAL`). For
    /// records that can be rebuilt; give the reason where it is chosen.
    ProcessDeath,
}

/// One step of the schema. Steps run in order, once, each in a transaction.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// 1, 2, 3, ...
    pub version: i64,
    /// Statements, separated by semicolons.
    pub sql: &'static str,
}

/// Runs a write, or takes note that it cannot be run.
type Work = Box<dyn FnOnce(Result<&Connection, StoreError>) -> Box<dyn Answer> + Send>;

/// Finishes one write when the fate of its transaction is known.
trait Answer: Send {
    fn succeeded(&self) -> bool;
    fn send(self: Box<Self>, committed: Result<(), StoreError>);
}

struct Pending<T, E> {
    result: Result<T, E>,
    reply: oneshot::Sender<Result<T, E>>,
}

impl<T: Send, E: From<StoreError> + Send> Answer for Pending<T, E> {
    fn succeeded(&self) -> bool {
        self.result.is_ok()
    }

    fn send(self: Box<Self>, committed: Result<(), StoreError>) {
        let result = match (self.result, committed) {
            (Ok(_), Err(error)) => Err(E::from(error)),
            (result, _) => result,
        };
        // The caller may have gone; the write stands all the same.
        let _ = self.reply.send(result);
    }
}

/// A handle; clones share the file.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    writer: mpsc::Sender<Work>,
    readers: Mutex<Vec<Connection>>,
    read_permits: Semaphore,
    committed: Notify,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl Database {
    /// Opens the file, making it if needed, and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError`] if the file cannot be opened or is too new.
    pub async fn open(
        path: &Path,
        durability: Durability,
        migrations: &'static [Migration],
    ) -> Result<Self, StoreError> {
        let path = path.to_owned();
        blocking(move || Self::open_blocking(&path, durability, migrations)).await
    }

    fn open_blocking(
        path: &Path,
        durability: Durability,
        migrations: &'static [Migration],
    ) -> Result<Self, StoreError> {
        keep_private(path)
            .map_err(|error| StoreError::Damaged(format!("{} cannot be kept private: {error}", path.display())))?;
        let mut connection = Connection::open(path)?;
        configure(&connection)?;
        let synchronous = match durability {
            Durability::PowerLoss => "FULL",
            Durability::ProcessDeath => "NORMAL",
        };
        connection.pragma_update(None, "synchronous", synchronous)?;
        migrate(&mut connection, migrations)?;
        let name = path.file_stem().map_or_else(|| "store".to_owned(), |stem| stem.to_string_lossy().into_owned());
        let no_thread = |error: std::io::Error| StoreError::Damaged(format!("no thread for the database: {error}"));
        let copier = Connection::open(path)?;
        configure(&copier)?;
        copier.pragma_update(None, "synchronous", synchronous)?;
        let checkpoints = Checkpoints::start(&name, copier).map_err(no_thread)?;
        let (writer, queue) = mpsc::channel(WRITE_QUEUE);
        let inner = Arc::new(Inner {
            path: path.to_owned(),
            writer,
            readers: Mutex::new(Vec::new()),
            read_permits: Semaphore::new(READERS),
            committed: Notify::new(),
        });
        let weak = Arc::downgrade(&inner);
        std::thread::Builder::new()
            .name(format!("write-{name}"))
            .spawn(move || {
                let committed = || {
                    if let Some(inner) = weak.upgrade() {
                        inner.committed.notify_waiters();
                    }
                };
                write_loop(&connection, queue, committed, || checkpoints.after_commit(&connection));
            })
            .map_err(no_thread)?;
        Ok(Self { inner })
    }

    /// Runs `work` in a transaction and answers when it is durable. If `work`
    /// returns an error, everything it wrote is undone.
    ///
    /// # Errors
    /// What `work` returned, or a [`StoreError`] converted to `E`.
    pub async fn write<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let boxed: Work = Box::new(move |connection| {
            let result = match connection {
                Ok(connection) => catch_unwind(AssertUnwindSafe(|| work(connection)))
                    .unwrap_or_else(|panic| Err(E::from(StoreError::Panicked(panic_text(&panic))))),
                Err(error) => Err(E::from(error)),
            };
            Box::new(Pending { result, reply })
        });
        if self.inner.writer.send(boxed).await.is_err() {
            return Err(E::from(StoreError::Closed));
        }
        answer.await.unwrap_or_else(|_| Err(E::from(StoreError::Closed)))
    }

    /// Runs `work` on a reading connection: a consistent view of what was
    /// committed before.
    ///
    /// # Errors
    /// What `work` returned, or a [`StoreError`] converted to `E`.
    pub async fn read<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        let _permit = self.inner.read_permits.acquire().await.map_err(|_| E::from(StoreError::Closed))?;
        let inner = self.inner.clone();
        let outcome = tokio::task::spawn_blocking(move || {
            let pooled = inner.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = match pooled {
                Some(connection) => connection,
                None => open_reader(&inner.path).map_err(E::from)?,
            };
            let result = in_read_transaction(&connection, work);
            inner.readers.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            result
        })
        .await;
        outcome.unwrap_or_else(|error| Err(E::from(StoreError::Panicked(error.to_string()))))
    }

    /// Completes after the next commit; for loops that look for new rows. Create
    /// the future before looking, so that no commit is missed.
    pub fn committed(&self) -> impl Future<Output = ()> + '_ {
        self.inner.committed.notified()
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }
}

fn in_read_transaction<T, E, F>(connection: &Connection, work: F) -> Result<T, E>
where
    E: From<StoreError>,
    F: FnOnce(&Connection) -> Result<T, E>,
{
    connection.execute_batch("BEGIN").map_err(StoreError::from)?;
    let result = work(connection);
    connection.execute_batch("COMMIT").map_err(StoreError::from)?;
    result
}

fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Specifications, keys and signatures are in the file: nobody but its owner may
/// read it. It is made before SQLite does, which gives its side files the same
/// mode; those of an older Kiln may be open to all.
fn keep_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let file = PathBuf::from(name);
        match std::fs::metadata(&file) {
            Ok(found) if found.permissions().mode() & 0o077 != 0 => {
                std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn configure(connection: &Connection) -> Result<(), StoreError> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cache_size", -16_000)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.set_prepared_statement_cache_capacity(128);
    Ok(())
}

fn migrate(connection: &mut Connection, migrations: &[Migration]) -> Result<(), StoreError> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = migrations.last().map_or(0, |migration| migration.version);
    if found > known {
        return Err(StoreError::TooNew { found, known });
    }
    for migration in migrations.iter().filter(|migration| migration.version > found) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(migration.sql)?;
        transaction.pragma_update(None, "user_version", migration.version)?;
        transaction.commit()?;
    }
    Ok(())
}

/// `committed` is called when a commit is durable, `answered` when its callers
/// know it.
fn write_loop(connection: &Connection, mut queue: mpsc::Receiver<Work>, committed: impl Fn(), answered: impl Fn()) {
    let mut group = Vec::with_capacity(MAX_GROUP);
    while queue.blocking_recv_many(&mut group, MAX_GROUP) > 0 {
        let mut answers = Vec::with_capacity(group.len());
        let outcome = run_group(connection, &mut group, &mut answers);
        if let Err(error) = &outcome {
            // Those that were not run any more.
            answers.extend(group.drain(..).map(|work| work(Err(error.clone()))));
        }
        if outcome.is_ok() {
            committed();
        }
        for answer in answers {
            answer.send(outcome.clone());
        }
        answered();
    }
}

fn run_group(
    connection: &Connection,
    group: &mut Vec<Work>,
    answers: &mut Vec<Box<dyn Answer>>,
) -> Result<(), StoreError> {
    let failed = |error| StoreError::Commit(Arc::new(error));
    connection.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
    // A write alone needs no savepoint: undoing it undoes the transaction.
    let alone = group.len() == 1;
    group.reverse();
    while let Some(work) = group.pop() {
        if !alone && let Err(error) = connection.prepare_cached("SAVEPOINT w").and_then(|mut s| s.execute([])) {
            group.push(work);
            roll_back(connection);
            return Err(failed(error));
        }
        let answer = work(Ok(connection));
        let settled = match (alone, answer.succeeded()) {
            (true, true) => Ok(()),
            (true, false) => {
                answers.push(answer);
                roll_back(connection);
                return Ok(());
            }
            (false, true) => connection.prepare_cached("RELEASE w").and_then(|mut s| s.execute([])).map(drop),
            (false, false) => connection.execute_batch("ROLLBACK TO w; RELEASE w"),
        };
        answers.push(answer);
        if let Err(error) = settled {
            roll_back(connection);
            return Err(failed(error));
        }
    }
    connection.execute_batch("COMMIT").map_err(|error| {
        roll_back(connection);
        failed(error)
    })
}

fn roll_back(connection: &Connection) {
    if !connection.is_autocommit()
        && let Err(error) = connection.execute_batch("ROLLBACK")
    {
        tracing::error!(%error, "a transaction could not be rolled back");
    }
}

fn panic_text(panic: &Box<dyn Any + Send>) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic".to_owned())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(StoreError::Panicked(error.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &[Migration] =
        &[Migration { version: 1, sql: "CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT NOT NULL)" }];

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
        let _again = Database::open(&dir.path().join("t.db"), Durability::PowerLoss, SCHEMA).await.unwrap();
        assert_eq!(modes(), private);
    }

    async fn database() -> (tempfile::TempDir, Database) {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(&dir.path().join("t.db"), Durability::PowerLoss, SCHEMA).await.unwrap();
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
        let (_dir, database) = database().await;
        let writes = (0..200).map(|k| {
            let database = database.clone();
            async move {
                database
                    .write::<_, StoreError, _>(move |c| {
                        c.execute("INSERT INTO t VALUES (?1, 'x')", [k])?;
                        if k % 10 == 0 {
                            return Err(StoreError::Damaged("on purpose".into()));
                        }
                        assert!(k % 17 != 3, "panic on purpose");
                        Ok(k)
                    })
                    .await
                    .is_ok()
            }
        });
        let kept = futures::future::join_all(writes).await.into_iter().filter(|ok| *ok).count();
        let expected = (0..200).filter(|k| k % 10 != 0 && k % 17 != 3).count();
        assert_eq!((kept, count(&database).await), (expected, expected as i64));
    }

    #[tokio::test]
    async fn a_transaction_that_cannot_begin_is_told_as_that_and_the_next_one_works() {
        let (dir, database) = database().await;
        let other = Connection::open(dir.path().join("t.db")).unwrap();
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
        let again = Database::open(&dir.path().join("t.db"), Durability::PowerLoss, SCHEMA).await.unwrap();
        assert_eq!(count(&again).await, 1);
    }

    #[tokio::test]
    async fn a_newer_schema_is_refused() {
        let (dir, database) = database().await;
        drop(database);
        let error = Database::open(&dir.path().join("t.db"), Durability::PowerLoss, &[]).await.unwrap_err();
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
}
