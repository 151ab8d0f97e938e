//! A database with group commit.
//!
//! One thread owns the only writing connection. It takes every write that is
//! queued, runs each in its own savepoint, commits once, and only then answers
//! all of them: an answered write survives power loss, and a hundred callers
//! pay one flush. Readers use their own connections and never wait for writers.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::checkpoint::Checkpoints;

use crate::config::StoreConfig;
use crate::error::StoreError;
use crate::migration::Migration;
use crate::pace::Pace;
use crate::postgres::{self, PostgresConfig, session};
use crate::sql::{Connection, Engine};
use crate::sqlite;

/// Writes of one transaction at most: bounds its memory and the wait of the first.
const MAX_GROUP: usize = 1024;
/// The same with PostgreSQL, which shows readers 64 savepoints of a transaction
/// at no cost, and makes them look for each one beyond.
const MAX_GROUP_POSTGRES: usize = 64;
/// Writes that may queue; further callers wait for a place.
const WRITE_QUEUE: usize = 4096;

/// A commit of another replica may go unheard for this long.
const UNHEARD: Duration = Duration::from_secs(1);

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

/// Runs a write, or takes note that it cannot be run.
type Work = Box<dyn FnOnce(Result<&Connection, StoreError>) -> Box<dyn Answer> + Send>;

/// Finishes one write when the fate of its transaction is known.
trait Answer: Send {
    fn succeeded(&self) -> bool;
    /// The work thinks that it succeeded, but it did not.
    fn fail(&mut self, error: StoreError);
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

    fn fail(&mut self, error: StoreError) {
        self.result = Err(E::from(error));
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

/// A handle; clones share the database.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

struct Inner {
    config: StoreConfig,
    writer: mpsc::Sender<Work>,
    readers: Mutex<Vec<Connection>>,
    read_permits: Semaphore,
    committed: Notify,
    /// Of another replica.
    committed_elsewhere: Notify,
    /// Between the replicas of a PostgreSQL schema.
    session: Option<session::Session>,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl Database {
    /// Opens the database, making it if needed, and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be opened or is too new.
    pub async fn open(
        config: impl Into<StoreConfig>,
        durability: Durability,
        migrations: &'static [Migration],
    ) -> Result<Self, StoreError> {
        let config = config.into();
        let name = config.name();
        let of_writer = config.clone();
        let writer = blocking(move || Writer::open(&of_writer, durability, migrations)).await?;
        let (sender, queue) = mpsc::channel(WRITE_QUEUE);
        let inner = Arc::new_cyclic(|inner: &Weak<Inner>| Inner {
            session: match &config {
                StoreConfig::Sqlite(_) => None,
                StoreConfig::Postgres(config) => {
                    let inner = inner.clone();
                    Some(session::Session::start((**config).clone(), move || {
                        if let Some(inner) = inner.upgrade() {
                            inner.committed.notify_waiters();
                            inner.committed_elsewhere.notify_waiters();
                        }
                    }))
                }
            },
            read_permits: Semaphore::new(match &config {
                StoreConfig::Sqlite(_) => sqlite::READERS,
                StoreConfig::Postgres(config) => config.readers(),
            }),
            config,
            writer: sender,
            readers: Mutex::new(Vec::new()),
            committed: Notify::new(),
            committed_elsewhere: Notify::new(),
        });
        let weak = Arc::downgrade(&inner);
        let committed = move || {
            if let Some(inner) = weak.upgrade() {
                inner.committed.notify_waiters();
                if let Some(session) = &inner.session {
                    session.committed();
                }
            }
        };
        std::thread::Builder::new()
            .name(format!("write-{name}"))
            .spawn(move || write_loop(writer, queue, committed))
            .map_err(sqlite::no_thread)?;
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
            let connection = inner.reader()?;
            let result = catch_unwind(AssertUnwindSafe(|| work(&connection)))
                .unwrap_or_else(|panic| Err(E::from(StoreError::Panicked(panic_text(&panic)))));
            match connection.end_read() {
                Ok(()) => inner.readers.lock().unwrap_or_else(PoisonError::into_inner).push(connection),
                // It is not given out again. What was read is still true.
                Err(error) => tracing::warn!(%error, "a connection of a reader was given up"),
            }
            result
        })
        .await;
        outcome.unwrap_or_else(|error| Err(E::from(StoreError::Panicked(error.to_string()))))
    }

    /// Whether other processes may use it, too.
    pub fn is_shared(&self) -> bool {
        self.inner.session.is_some()
    }

    /// Completes after the next commit, also of another replica; for loops that
    /// look for new rows. Create the future before looking, so that no commit
    /// is missed. One of another replica may be, so look from time to time.
    pub fn committed(&self) -> impl Future<Output = ()> + '_ {
        self.inner.committed.notified()
    }

    /// Does `work` while it is this replica's turn (see [`turn`](Self::turn)), again
    /// whenever it comes back; until `work` ends by itself, or `shutdown`. When the
    /// turn is lost, `work` is dropped in the middle.
    pub async fn in_turn<W: Future<Output = ()>>(&self, shutdown: &CancellationToken, work: impl Fn() -> W) {
        let mut turn = self.turn();
        loop {
            tokio::select! {
                () = turn.mine() => {}
                () = shutdown.cancelled() => return,
            }
            tokio::select! {
                () = work() => return,
                () = turn.lost() => {}
            }
        }
    }

    /// Completes after the next commit of another replica; see [`committed`](Self::committed).
    pub fn committed_elsewhere(&self) -> impl Future<Output = ()> + '_ {
        self.inner.committed_elsewhere.notified()
    }

    /// Calls `then` now and after commits of other replicas, as often as `pace` allows (`then` may
    /// change that), and at least every second: one may go unheard. Never ends; does nothing if there can be
    /// no others.
    pub async fn each_commit_elsewhere(&self, mut pace: Pace, then: impl Fn(&mut Pace)) {
        if !self.is_shared() {
            return std::future::pending().await;
        }
        loop {
            let committed = self.inner.committed_elsewhere.notified();
            pace.done();
            then(&mut pace);
            // Unheard or heard: it is looked again.
            let _ = tokio::time::timeout(UNHEARD, committed).await;
            tokio::time::sleep_until(pace.ready_at()).await;
        }
    }

    /// Asks to be the one of all replicas that does what only one may do; for
    /// as long as the returned value lives.
    pub fn turn(&self) -> Turn {
        Turn(self.inner.session.as_ref().map(session::Session::turn))
    }
}

/// Whether it is this replica's turn. With SQLite it always is.
#[derive(Debug)]
pub struct Turn(Option<session::Turn>);

impl Turn {
    /// Completes when it is this replica's turn.
    pub async fn mine(&mut self) {
        if let Some(turn) = &mut self.0 {
            turn.is(true).await;
        }
    }

    /// Completes when the turn is lost: somebody else may have it now.
    pub async fn lost(&mut self) {
        match &mut self.0 {
            Some(turn) => turn.is(false).await,
            None => std::future::pending().await,
        }
    }
}

impl Inner {
    /// A connection with a transaction that reads.
    fn reader(&self) -> Result<Connection, StoreError> {
        let pooled = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(connection) = pooled {
            match connection.begin_read() {
                Ok(()) => return Ok(connection),
                // Its server was started anew, perhaps; the others are no better.
                Err(_) if connection.lost() => self.readers.lock().unwrap_or_else(PoisonError::into_inner).clear(),
                Err(error) => return Err(error.into()),
            }
        }
        let connection = match &self.config {
            StoreConfig::Sqlite(path) => sqlite::open_reader(path)?,
            StoreConfig::Postgres(config) => open_postgres(config, false)?,
        };
        connection.begin_read()?;
        Ok(connection)
    }
}

fn open_postgres(config: &PostgresConfig, writes: bool) -> Result<Connection, StoreError> {
    Ok(Connection(Engine::Postgres(Box::new(postgres::connection::Connection::open(config, writes)?))))
}

/// The writing connection.
enum Writer {
    Sqlite(Connection, Checkpoints),
    /// `None` after it was lost.
    Postgres(Box<PostgresConfig>, Option<Connection>),
}

impl Writer {
    /// Connects and brings the schema up to date; blocks.
    fn open(config: &StoreConfig, durability: Durability, migrations: &[Migration]) -> Result<Self, StoreError> {
        match config {
            StoreConfig::Sqlite(path) => {
                let (connection, checkpoints) = sqlite::open(path, durability, migrations)?;
                Ok(Self::Sqlite(connection, checkpoints))
            }
            StoreConfig::Postgres(config) => {
                postgres::migrate::migrate(config, migrations)?;
                Ok(Self::Postgres(config.clone(), Some(open_postgres(config, true)?)))
            }
        }
    }

    fn max_group(&self) -> usize {
        match self {
            Self::Sqlite(..) => MAX_GROUP,
            Self::Postgres(..) => MAX_GROUP_POSTGRES,
        }
    }

    /// Begins a transaction. Nothing has run in it, so with a new connection it
    /// is simply begun again.
    fn begin(&mut self) -> Result<&Connection, StoreError> {
        match self {
            Self::Sqlite(connection, _) => {
                connection.begin_write().map_err(|error| StoreError::Commit(Arc::new(error)))?;
                Ok(connection)
            }
            Self::Postgres(config, connection) => {
                if let Some(open) = connection.take() {
                    match open.begin_write() {
                        Ok(()) => return Ok(connection.insert(open)),
                        Err(error) if open.lost() => tracing::info!(%error, "connects to PostgreSQL again"),
                        Err(error) => {
                            open.roll_back();
                            *connection = Some(open);
                            return Err(error.into());
                        }
                    }
                }
                let open = open_postgres(config, true)?;
                open.begin_write()?;
                Ok(connection.insert(open))
            }
        }
    }

    /// After the callers of a transaction were answered.
    fn answered(&mut self) {
        match self {
            Self::Sqlite(Connection(Engine::Sqlite(connection)), checkpoints) => checkpoints.after_commit(connection),
            Self::Sqlite(..) => {}
            Self::Postgres(_, connection) => {
                connection.take_if(|connection| connection.lost());
            }
        }
    }
}

/// `committed` is called when a commit is durable, or may be.
fn write_loop(mut writer: Writer, mut queue: mpsc::Receiver<Work>, committed: impl Fn()) {
    let most = writer.max_group();
    let mut group = Vec::with_capacity(most);
    while queue.blocking_recv_many(&mut group, most) > 0 {
        let mut answers = Vec::with_capacity(group.len());
        let outcome = run_group(&mut writer, &mut group, &mut answers);
        if let Err(error) = &outcome {
            // Those that were not run any more. Of them it is certain.
            let error = match error {
                StoreError::InDoubt(cause) => StoreError::Unavailable(cause.clone()),
                other => other.clone(),
            };
            answers.extend(group.drain(..).map(|work| work(Err(error.clone()))));
        }
        if matches!(outcome, Ok(()) | Err(StoreError::InDoubt(_))) {
            committed();
        }
        for answer in answers {
            answer.send(outcome.clone());
        }
        writer.answered();
    }
}

fn run_group(writer: &mut Writer, group: &mut Vec<Work>, answers: &mut Vec<Box<dyn Answer>>) -> Result<(), StoreError> {
    let connection = writer.begin()?;
    let not_done = |error: crate::sql::Error| {
        connection.roll_back();
        if error.passes() { StoreError::Unavailable(Arc::new(error)) } else { StoreError::Commit(Arc::new(error)) }
    };
    // A write alone needs no savepoint: undoing it undoes the transaction.
    let alone = group.len() == 1;
    group.reverse();
    while let Some(work) = group.pop() {
        if !alone && let Err(error) = connection.savepoint() {
            group.push(work);
            return Err(not_done(error));
        }
        let mut answer = work(Ok(connection));
        if answer.succeeded() && connection.failed() && !connection.lost() {
            answer.fail(StoreError::Damaged("a write went on after one of its statements had failed".to_owned()));
        }
        let succeeded = answer.succeeded();
        answers.push(answer);
        if connection.lost() {
            let why = "the connection was lost before the commit".to_owned();
            return Err(StoreError::Unavailable(Arc::new(crate::sql::Error::Unreachable(why))));
        }
        let settled = match (alone, succeeded) {
            (true, true) => Ok(()),
            (true, false) => {
                connection.roll_back();
                return Ok(());
            }
            (false, true) => connection.release(),
            (false, false) => connection.roll_back_to(),
        };
        settled.map_err(not_done)?;
    }
    connection.commit()
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
mod tests;
