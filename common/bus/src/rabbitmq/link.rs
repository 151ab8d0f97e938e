//! One supervised connection.
//!
//! [`Link::start`] spawns the supervisor; [`Link::session`] gives the connection
//! that is up, or says why there is none. Whoever notices that a [`Session`] is
//! of no use calls [`Session::fail`], and the supervisor makes a new one.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt;
use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection, ConnectionProperties, Event};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{Shared, topology};
use crate::BusError;

/// First and longest pause between two attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// A connection that lived this long was a good one: the pause begins anew.
const STABLE: Duration = Duration::from_secs(10);
/// How long a connection may take to close in good order.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Publish,
    Consume,
}

#[derive(Debug, Clone)]
enum State {
    /// An attempt is under way or about to begin.
    Connecting,
    Up(Arc<Session>),
    /// The last attempt failed; the next comes after a pause.
    Down(String),
    Closed,
}

impl State {
    /// A session that has failed is not up, also if the supervisor has not seen it yet.
    fn is_up(&self) -> bool {
        matches!(self, Self::Up(session) if !session.health.is_broken())
    }
}

/// Handle of one supervised connection.
#[derive(Debug, Clone)]
pub(super) struct Link {
    state: watch::Receiver<State>,
    answer_within: Duration,
}

impl Link {
    /// Begins to connect, until the bus is closed.
    pub(super) fn start(shared: Arc<Shared>, role: Role) -> Self {
        let (sender, state) = watch::channel(State::Connecting);
        let answer_within = shared.config.answer_within;
        kiln_telemetry::spawn(supervise(shared, role, sender));
        Self { state, answer_within }
    }

    /// The connection, for callers that rather hear "unavailable" than wait
    /// longer than one attempt.
    pub(super) async fn session(&self) -> Result<Arc<Session>, BusError> {
        let mut state = self.state.clone();
        let decided = state.wait_for(|state| state.is_up() || matches!(state, State::Down(_) | State::Closed));
        match timeout(self.answer_within, decided).await {
            Ok(Ok(state)) => match &*state {
                State::Up(session) => Ok(session.clone()),
                State::Down(why) => Err(BusError::Unavailable(why.clone())),
                State::Connecting | State::Closed => Err(BusError::Closed),
            },
            Ok(Err(_)) => Err(BusError::Closed),
            Err(_) => Err(BusError::Unavailable("the connection to the broker is being made".to_owned())),
        }
    }

    /// The connection, however long it takes; `None` when the bus is closed.
    pub(super) async fn session_in_time(&self) -> Option<Arc<Session>> {
        let mut state = self.state.clone();
        let decided = state.wait_for(|state| state.is_up() || matches!(state, State::Closed)).await.ok()?;
        match &*decided {
            State::Up(session) => Some(session.clone()),
            State::Connecting | State::Down(_) | State::Closed => None,
        }
    }
}

/// One connection as long as it is good.
#[derive(Debug)]
pub(super) struct Session {
    connection: Connection,
    /// In confirm mode on a publishing connection.
    pub(super) channel: OnceLock<Channel>,
    /// Places for unconfirmed messages.
    pub(super) window: Arc<Semaphore>,
    pub(super) health: Arc<Health>,
}

/// Whether a session is good; acknowledgements hold this and not the connection.
#[derive(Debug)]
pub(super) struct Health {
    broken: CancellationToken,
    reason: OnceLock<String>,
    answer_within: Duration,
}

impl Health {
    /// The connection is of no use any more; only the first reason counts.
    pub(super) fn fail(&self, reason: impl ToString) {
        self.reason.get_or_init(|| reason.to_string());
        self.broken.cancel();
    }

    /// Completes when the connection is of no use any more.
    pub(super) async fn broken(&self) {
        self.broken.cancelled().await;
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.is_cancelled()
    }

    fn unavailable(&self) -> BusError {
        BusError::Unavailable(self.reason.get().cloned().unwrap_or_else(|| "the connection is closing".to_owned()))
    }

    /// The broker's answer to one call. No answer in time, and every error that
    /// is not about this call alone, is the end of the connection.
    pub(super) async fn answer<T>(
        &self,
        call: &str,
        work: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, BusError> {
        let answered = tokio::select! {
            biased;
            () = self.broken.cancelled() => return Err(self.unavailable()),
            answered = timeout(self.answer_within, work) => answered,
        };
        match answered {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if error.is_amqp_soft_error() => Err(BusError::Refused(format!("{call}: {error}"))),
            Ok(Err(error)) => {
                self.fail(format!("{call}: {error}"));
                Err(self.unavailable())
            }
            Err(_) => {
                self.fail(format!("no answer to {call} within {:?}", self.answer_within));
                Err(self.unavailable())
            }
        }
    }
}

impl Session {
    /// See [`Health::answer`].
    pub(super) async fn answer<T>(
        &self,
        call: &str,
        work: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, BusError> {
        self.health.answer(call, work).await
    }

    /// A new channel; it closes when it is dropped.
    pub(super) async fn channel(&self) -> Result<Channel, BusError> {
        self.answer("channel.open", self.connection.create_channel()).await
    }

    async fn close(&self) {
        if let Ok(Err(error)) = timeout(FAREWELL, self.connection.close(200, "OK".into())).await {
            // It was closed already, mostly.
            tracing::debug!(%error, "the connection did not close in good order");
        }
    }
}

async fn supervise(shared: Arc<Shared>, role: Role, state: watch::Sender<State>) {
    let mut pause = PAUSE.0;
    loop {
        let opened = tokio::select! {
            () = shared.closed.cancelled() => break,
            opened = open(&shared, role) => opened,
        };
        match opened {
            Ok((session, mut events)) => {
                tracing::info!(?role, "connected to the broker");
                let since = Instant::now();
                state.send_replace(State::Up(session.clone()));
                let ended = tokio::select! {
                    () = shared.closed.cancelled() => true,
                    () = watch_over(&session, &mut events) => false,
                };
                if ended {
                    state.send_replace(State::Closed);
                    session.health.fail("the bus is closed");
                    session.close().await;
                    break;
                }
                state.send_replace(State::Connecting);
                tracing::warn!(?role, reason = session.health.reason.get(), "the connection to the broker is lost");
                kiln_telemetry::spawn(async move { session.close().await });
                if since.elapsed() > STABLE {
                    pause = PAUSE.0;
                }
            }
            Err(error) => {
                tracing::warn!(?role, %error, retry_in = ?pause, "the broker cannot be used");
                state.send_replace(State::Down(error.to_string()));
            }
        }
        tokio::select! {
            () = shared.closed.cancelled() => break,
            () = tokio::time::sleep(spread(pause)) => {}
        }
        pause = (pause * 2).min(PAUSE.1);
    }
    state.send_replace(State::Closed);
}

/// Between half and all of `pause`, so that many services do not come back at
/// the same moment.
fn spread(pause: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_bytes()[0];
    pause / 2 + pause * u32::from(random) / 512
}

type Events = std::pin::Pin<Box<dyn futures::Stream<Item = Event> + Send>>;

async fn open(shared: &Shared, role: Role) -> Result<(Arc<Session>, Events), BusError> {
    let config = &shared.config;
    let name = format!("{} {}", config.name, if role == Role::Publish { "publish" } else { "consume" });
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let connecting = timeout(config.answer_within, Connection::connect_uri(shared.uri.clone(), properties));
    let connection = connecting
        .await
        .map_err(|_| BusError::Unavailable(format!("no connection within {:?}", config.answer_within)))?
        .map_err(|error| BusError::Unavailable(error.to_string()))?;
    let events: Events = Box::pin(connection.events_listener());
    let session = Session {
        connection,
        channel: OnceLock::new(),
        window: Arc::new(Semaphore::new(config.window.max(1))),
        health: Arc::new(Health {
            broken: CancellationToken::new(),
            reason: OnceLock::new(),
            answer_within: config.answer_within,
        }),
    };
    let channel = session.channel().await?;
    topology::declare_exchanges(config, &session, &channel).await?;
    match role {
        Role::Publish => {
            session.answer("confirm.select", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        }
        Role::Consume => {
            let declared: Vec<_> = shared.declared().values().cloned().collect();
            for queue in &declared {
                match topology::declare_queue(config, &session, queue).await {
                    // One queue must not keep the others from working.
                    Err(BusError::Refused(why)) => tracing::error!(queue = queue.name, why, "the queue is refused"),
                    other => other?,
                }
            }
        }
    }
    session.channel.get_or_init(|| channel);
    Ok((Arc::new(session), events))
}

/// Returns when the session has failed.
async fn watch_over(session: &Session, events: &mut Events) {
    loop {
        let event = tokio::select! {
            () = session.health.broken() => return,
            event = events.next() => event,
        };
        match event {
            // About one channel; whoever uses that channel hears of it.
            Some(Event::Error(error)) if error.is_amqp_soft_error() => {}
            Some(Event::Error(error)) => session.health.fail(error),
            Some(Event::ConnectionBlocked(reason)) => {
                tracing::warn!(reason, "the broker takes no messages at the moment");
            }
            Some(_) => {}
            None => session.health.fail("the connection ended"),
        }
    }
}
