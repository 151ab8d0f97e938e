//! The connection of a process that belongs to no caller.
//!
//! It hears of the commits of other replicas (LISTEN) and tells them of ours
//! (NOTIFY, after the commit and not within it: a transaction that notifies
//! makes all others that do wait for its flush). It also holds the lock of the
//! replica whose turn it is to do what only one may do, which is to publish
//! events: the lock is the session's, so a turn ends with the connection.
//! What is missed while it is away is found by the scans of the loops.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_postgres::{AsyncMessage, Client};
use tokio_util::sync::CancellationToken;

use super::config::PostgresConfig;
use super::connect::{Driver, connect, drive};
use super::lock_number;
use super::wire::Read;
use crate::pace::Pace;
use crate::sql::Error;

/// First and longest pause before connecting again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Commits are told at most so many at once, then one in each of these times; the last of several is always told.
const TELL: (u32, Duration) = (8, Duration::from_millis(5));
/// A turn that another has is asked for this often; the server is asked whether
/// it is still there, too.
const LOOK: Duration = Duration::from_secs(1);
/// The server ends the connection of a process that is silent for so long, though nothing
/// of the network says that it is gone (it stands still): so its turn ends, too. Well above
/// [`LOOK`], which is how often we speak.
const SILENCE: Duration = Duration::from_secs(5);
/// The server must answer within this time.
const ANSWER: Duration = Duration::from_secs(10);

/// The end of a database handle; the session ends with it.
#[derive(Debug)]
pub(crate) struct Session {
    shared: Arc<Shared>,
    turn: watch::Receiver<bool>,
    end: CancellationToken,
}

#[derive(Debug, Default)]
struct Shared {
    /// This process has committed.
    ours: Notify,
    /// Who waits for a turn or has it.
    wanted: AtomicUsize,
    /// `wanted` has changed.
    asked: Notify,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl Session {
    /// Begins; `committed` is called when somebody else has, or may have.
    pub(crate) fn start(config: PostgresConfig, committed: impl Fn() + Send + Sync + 'static) -> Self {
        let (set_turn, turn) = watch::channel(false);
        let (shared, end) = (Arc::<Shared>::default(), CancellationToken::new());
        let run = run(config, Arc::downgrade(&shared), set_turn, committed, end.clone());
        kiln_telemetry::spawn(run);
        Self { shared, turn, end }
    }

    /// To be called when this process has committed.
    pub(crate) fn committed(&self) {
        self.shared.ours.notify_one();
    }

    /// Asks for a turn, for as long as the returned value lives.
    pub(crate) fn turn(&self) -> Turn {
        self.shared.wanted.fetch_add(1, Ordering::AcqRel);
        self.shared.asked.notify_one();
        Turn { shared: self.shared.clone(), turn: self.turn.clone() }
    }
}

/// A wish to have the turn.
#[derive(Debug)]
pub(crate) struct Turn {
    shared: Arc<Shared>,
    turn: watch::Receiver<bool>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.shared.wanted.fetch_sub(1, Ordering::AcqRel);
        self.shared.asked.notify_one();
    }
}

impl Turn {
    /// Completes when this process has the turn (`true`) or has lost it. Never
    /// if the database was closed.
    pub(crate) async fn is(&mut self, mine: bool) {
        if self.turn.wait_for(|now| *now == mine).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn run(
    config: PostgresConfig,
    shared: Weak<Shared>,
    turn: watch::Sender<bool>,
    committed: impl Fn() + Send + Sync,
    end: CancellationToken,
) {
    let mut pause = RETRY.0;
    loop {
        let started = Instant::now();
        let outcome = tokio::select! {
            outcome = one(&config, &shared, &turn, &committed) => outcome,
            () = end.cancelled() => return,
        };
        turn.send_replace(false);
        let Err(error) = outcome else { return };
        if started.elapsed() > RETRY.1 {
            pause = RETRY.0;
        }
        tracing::warn!(%error, retry_in = ?pause, "commits of other replicas are not heard of at the moment");
        tokio::select! {
            () = sleep(pause) => {}
            () = end.cancelled() => return,
        }
        pause = (pause * 2).min(RETRY.1);
    }
}

/// One connection and what is done with it.
struct Link<'l> {
    client: Client,
    driver: Option<Driver>,
    /// Number of our connection on the server.
    id: i32,
    committed: &'l (dyn Fn() + Sync + 'l),
}

impl Link<'_> {
    /// Runs a statement that answers with one number or nothing.
    async fn ask(&mut self, sql: &str) -> Result<Option<i64>, Error> {
        let (id, committed) = (self.id, self.committed);
        let statement = self.client.query(sql, &[]);
        let rows = timeout(ANSWER, drive(&mut self.driver, statement, |message| hear(&message, id, committed)))
            .await
            .map_err(|_| Error::Unreachable(format!("PostgreSQL did not answer within {ANSWER:?}")))??;
        rows.first().map(|row| row.try_get::<_, Read<'_>>(0)?.0.as_i64()).transpose()
    }
}

fn hear(message: &AsyncMessage, id: i32, committed: &(dyn Fn() + Sync)) {
    match message {
        AsyncMessage::Notification(told) if told.process_id() != id => committed(),
        AsyncMessage::Notification(_) => {}
        other => tracing::debug!(message = ?other, "PostgreSQL says"),
    }
}

/// Until the connection ends (`Err`) or nobody needs it any more.
async fn one(
    config: &PostgresConfig,
    shared: &Weak<Shared>,
    turn: &watch::Sender<bool>,
    committed: &(impl Fn() + Send + Sync),
) -> Result<(), Error> {
    let (client, driver) = timeout(ANSWER, connect(config))
        .await
        .map_err(|_| Error::Unreachable(format!("PostgreSQL did not answer within {ANSWER:?}")))??;
    let mut link = Link { client, driver: Some(driver), id: 0, committed };
    let id = link.ask("SELECT pg_backend_pid()").await?;
    link.id = id.and_then(|id| i32::try_from(id).ok()).unwrap_or_default();
    link.ask(&format!("SET idle_session_timeout = {}", SILENCE.as_millis())).await?;
    // The channel is named after the schema, which needs no quotes.
    let tell = format!("NOTIFY kiln_{}", config.schema);
    link.ask(&format!("LISTEN kiln_{}", config.schema)).await?;
    // What was committed while nobody listened.
    committed();
    let lock = lock_number(&config.schema, "turn");
    let (take, give) = (
        format!("SELECT CASE WHEN pg_try_advisory_lock({lock}) THEN 1 ELSE 0 END"),
        format!("SELECT CASE WHEN pg_advisory_unlock({lock}) THEN 1 ELSE 0 END"),
    );
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pace = Pace::new(TELL.0, TELL.1);
    let mut untold = false;
    let mut mine = false;
    loop {
        let Some(shared) = shared.upgrade() else { return Ok(()) };
        let Some(connection) = &mut link.driver else {
            return Err(Error::Unreachable("the connection was closed".to_owned()));
        };
        tokio::select! {
            message = futures::StreamExt::next(connection) => match message {
                Some(message) => hear(&message?, link.id, committed),
                None => link.driver = None,
            },
            () = shared.ours.notified(), if !untold => untold = true,
            () = tokio::time::sleep_until(pace.ready_at()), if untold => {
                untold = false;
                pace.done();
                link.ask(&tell).await?;
            }
            _ = look.tick() => {
                link.ask("SELECT 1").await?;
                settle(&mut link, &shared, &mut mine, (&take, &give), turn).await?;
            }
            () = shared.asked.notified() => settle(&mut link, &shared, &mut mine, (&take, &give), turn).await?,
        }
    }
}

/// Takes the turn if it is wanted, gives it back if it is not.
async fn settle(
    link: &mut Link<'_>,
    shared: &Shared,
    mine: &mut bool,
    (take, give): (&str, &str),
    turn: &watch::Sender<bool>,
) -> Result<(), Error> {
    let wanted = shared.wanted.load(Ordering::Acquire) > 0;
    if wanted == *mine {
        return Ok(());
    }
    if wanted {
        *mine = link.ask(take).await? == Some(1);
    } else {
        // First nobody believes to have it, then others may.
        turn.send_replace(false);
        link.ask(give).await?;
        *mine = false;
    }
    turn.send_replace(*mine);
    Ok(())
}
