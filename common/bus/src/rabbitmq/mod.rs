//! The bus over RabbitMQ.
//!
//! One durable topic exchange; durable quorum queues bound to it; persistent
//! messages with publisher confirms; manual acknowledgements. What a queue
//! could not deliver after many tries goes to the dead-letter queue, where an
//! operator finds it.
//!
//! The client library's own recovery can hang for good, so it is not used. Two
//! connections, one to publish and one to consume (a broker that is short of
//! memory blocks publishers; acknowledgements must still get through), each
//! under a supervisor ([`link`]): it connects, declares, and on any error, or
//! when a call gets no answer for [`RabbitConfig::answer_within`], drops the
//! connection and starts again with a growing pause. Publishers get
//! [`BusError::Unavailable`] meanwhile and keep their messages in the outbox;
//! subscriptions go on with the next connection.
//!
//! - [`wire`]: messages as AMQP properties and headers (CloudEvents names);
//! - [`topology`]: exchanges, queues, bindings;
//! - [`publish`]: the window of unconfirmed messages;
//! - [`consume`]: subscriptions and acknowledgements;
//! - [`dead`]: what an operator does about dead letters.

mod consume;
pub mod dead;
mod link;
mod publish;
mod topology;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use lapin::uri::AMQPUri;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{Bus, BusError, EXCHANGE, Message, QueueSpec, Subscription};
use link::{Link, Role};

/// Bytes of a frame. The client library keeps two buffers of 32 frames for each connection, and
/// touches all of them: with the broker's usual 128 KiB that is 8 MB of a process that does nothing.
/// Larger messages go in several frames.
const FRAME: u32 = 16 * 1024;

/// How to use the broker.
#[derive(Clone)]
pub struct RabbitConfig {
    /// `amqp://user:password@host:port/vhost`; `%2f` is the virtual host "/".
    pub url: String,
    /// Shown in the broker's list of connections.
    pub name: String,
    /// The topic exchange.
    pub exchange: String,
    /// Put before the names of queues; tests use it to keep apart.
    pub queue_prefix: String,
    /// Published messages that may be unconfirmed at once.
    pub window: usize,
    /// A call without an answer for this long means that the connection is dead.
    pub answer_within: Duration,
    /// Deliveries of one message before it goes to the dead-letter queue. Every
    /// lost connection of a consumer counts as one.
    pub delivery_limit: u32,
    /// A queue with this many messages refuses more; publishers then keep theirs.
    pub max_queue_messages: u32,
}

impl RabbitConfig {
    /// The usual settings for a broker at `url`; `name` is the service's.
    pub fn new(url: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            name: name.into(),
            exchange: EXCHANGE.to_owned(),
            queue_prefix: String::new(),
            window: 500,
            answer_within: Duration::from_secs(5),
            delivery_limit: 100,
            max_queue_messages: 1_000_000,
        }
    }

    /// Puts `prefix` before the names of the exchange and of all queues, so that
    /// several deployments can share a broker.
    #[must_use]
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        self.exchange = format!("{prefix}{EXCHANGE}");
        self.queue_prefix = prefix.to_owned();
        self
    }
}

impl fmt::Debug for RabbitConfig {
    /// Without the URL, which holds a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitConfig")
            .field("name", &self.name)
            .field("exchange", &self.exchange)
            .finish_non_exhaustive()
    }
}

/// A bus over RabbitMQ. Clones share the connections, which end with the last
/// clone and the last subscription.
#[derive(Debug, Clone)]
pub struct RabbitBus {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    publishing: OnceLock<Link>,
    consuming: OnceLock<Link>,
    _closes: DropGuard,
}

/// What the supervisors need too; it does not keep the connections open.
#[derive(Debug)]
struct Shared {
    config: RabbitConfig,
    uri: AMQPUri,
    /// Queues that were declared here, to be declared again after a reconnect:
    /// the broker may have been replaced by an empty one.
    declared: Mutex<BTreeMap<String, QueueSpec>>,
    closed: CancellationToken,
}

impl RabbitBus {
    /// Prepares the bus; connections are made when they are first needed.
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`BusError::Refused`] if the URL cannot be understood.
    pub fn new(config: RabbitConfig) -> Result<Self, BusError> {
        let mut uri: AMQPUri =
            config.url.parse().map_err(|error| BusError::Refused(format!("the broker's URL: {error}")))?;
        // Half-dead connections of idle consumers are found by this alone.
        uri.query.heartbeat.get_or_insert(10);
        uri.query.frame_max.get_or_insert(FRAME);
        let closed = CancellationToken::new();
        let _closes = closed.clone().drop_guard();
        let shared = Arc::new(Shared { config, uri, declared: Mutex::default(), closed });
        Ok(Self { inner: Arc::new(Inner { shared, publishing: OnceLock::new(), consuming: OnceLock::new(), _closes }) })
    }

    /// Waits until the broker can be published to; for the start of a process
    /// that wants to report why it is not ready.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] with the cause if the connection that is being
    /// tried failed.
    pub async fn connected(&self) -> Result<(), BusError> {
        self.publishing().session().await.map(drop)
    }

    /// Closes the connections; all calls, now and later, give [`BusError::Closed`].
    pub fn close(&self) {
        self.inner.shared.closed.cancel();
    }

    fn publishing(&self) -> &Link {
        self.inner.publishing.get_or_init(|| Link::start(self.inner.shared.clone(), Role::Publish))
    }

    fn consuming(&self) -> &Link {
        self.inner.consuming.get_or_init(|| Link::start(self.inner.shared.clone(), Role::Consume))
    }

    /// Deletes the exchanges and the queues that were declared here, with what
    /// is in them; for the end of tests.
    ///
    /// # Errors
    /// [`BusError`] if the broker did not do it.
    #[cfg(any(test, feature = "conformance"))]
    pub async fn remove_everything(&self) -> Result<(), BusError> {
        let queues: Vec<String> = self.inner.shared.declared().keys().cloned().collect();
        self.inner.shared.declared().clear();
        let session = self.consuming().session().await?;
        topology::remove(&self.inner.shared.config, &session, &queues).await
    }
}

impl Shared {
    fn declared(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, QueueSpec>> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers the queue, its bindings added to those it had.
    fn remember(&self, queue: &QueueSpec) {
        let mut declared = self.declared();
        let known =
            declared.entry(queue.name.clone()).or_insert_with(|| QueueSpec { bindings: Vec::new(), ..queue.clone() });
        for binding in &queue.bindings {
            if !known.bindings.contains(binding) {
                known.bindings.push(binding.clone());
            }
        }
    }
}

#[async_trait]
impl Bus for RabbitBus {
    async fn publish(&self, message: Message) -> Result<(), BusError> {
        self.publish_all(vec![message]).await
    }

    async fn publish_all(&self, messages: Vec<Message>) -> Result<(), BusError> {
        let session = self.publishing().session().await?;
        publish::publish_all(&self.inner.shared.config, &session, messages).await
    }

    async fn declare(&self, queue: &QueueSpec) -> Result<(), BusError> {
        let session = self.consuming().session().await?;
        topology::declare_queue(&self.inner.shared.config, &session, queue).await?;
        self.inner.shared.remember(queue);
        Ok(())
    }

    async fn subscribe(&self, queue: &QueueSpec) -> Result<Box<dyn Subscription>, BusError> {
        self.declare(queue).await?;
        Ok(Box::new(consume::RabbitSubscription::start(self, queue.clone())))
    }
}

#[cfg(test)]
mod tests;
