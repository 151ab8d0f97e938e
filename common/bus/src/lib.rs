//! The event bus.
//!
//! Services publish what happened; whoever wants to know declares a queue with
//! the routing keys it is interested in. Two implementations with one contract:
//! - [`memory::MemoryBus`]: inside one process, for `kiln up`;
//! - [`rabbitmq::RabbitBus`]: RabbitMQ, one topic exchange, quorum queues.
//!
//! The contract, which `conformance` checks for both:
//! - a published message that was confirmed reaches every queue that was
//!   declared, and bound to its key, before it was published: at least once;
//! - messages of one publisher reach a queue in the order of their confirms,
//!   except those that are delivered again;
//! - a delivery that was not acknowledged (error, crash, dropped) comes again;
//! - of several consumers of one queue one gets its messages, so that they are
//!   dealt with in order; when it is gone, the next does.
//!
//! Consumers must therefore accept repetition. Messages are facts about the
//! past and hints to look; the truth is in the owner's store.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod memory;
pub mod rabbitmq;
pub mod topic;

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

pub use memory::MemoryBus;
pub use rabbitmq::{RabbitBus, RabbitConfig};

/// Name of the topic exchange all events go through.
pub const EXCHANGE: &str = "kiln.events";

/// One message: a batch of events of one type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Unique for the message; the same when it is published again.
    pub id: String,
    /// `<service>.<entity>.<what>`, for example `job.task.finished`.
    pub routing_key: String,
    /// Which store announced it (CloudEvents `source`).
    pub source: String,
    /// W3C trace context of the cause, or empty.
    pub traceparent: String,
    /// Encoded `kiln.events.v1.EventBatch`.
    pub body: Bytes,
}

/// A queue and what goes into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSpec {
    /// For example `monitor.events`.
    pub name: String,
    /// Topic patterns: `*` is one word, `#` any number of words.
    pub bindings: Vec<String>,
    /// Deliveries that may be unacknowledged at once.
    pub prefetch: u16,
}

/// Why the bus did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BusError {
    /// Not reachable, not answering, or closing: try again later.
    #[error("the event bus is not available: {0}")]
    Unavailable(String),
    /// The broker refuses: a queue with other settings, no permission, ...
    #[error("the event bus refuses: {0}")]
    Refused(String),
    /// The bus was shut down.
    #[error("the event bus is closed")]
    Closed,
}

/// Publishes and subscribes.
#[async_trait]
pub trait Bus: fmt::Debug + Send + Sync + 'static {
    /// Hands a message over. `Ok` means that it cannot be lost any more.
    async fn publish(&self, message: Message) -> Result<(), BusError>;

    /// Hands over several in order; `Ok` means that none can be lost. On an
    /// error any number of them may have been handed over.
    async fn publish_all(&self, messages: Vec<Message>) -> Result<(), BusError> {
        for message in messages {
            self.publish(message).await?;
        }
        Ok(())
    }

    /// Makes the queue and its bindings if they do not exist. Messages that are
    /// published from now on are kept for it, whether or not somebody consumes.
    async fn declare(&self, queue: &QueueSpec) -> Result<(), BusError>;

    /// Declares the queue and begins to consume from it. The subscription
    /// survives reconnects; it ends with [`BusError::Closed`] only.
    async fn subscribe(&self, queue: &QueueSpec) -> Result<Box<dyn Subscription>, BusError>;
}

/// A consumer of one queue.
#[async_trait]
pub trait Subscription: fmt::Debug + Send {
    /// The next message. Dropping the [`Delivery`] without acknowledging gives
    /// the message back to the queue.
    async fn next(&mut self) -> Result<Delivery, BusError>;
}

/// One message with the duty to acknowledge it.
#[derive(Debug)]
pub struct Delivery {
    /// What was published.
    pub message: Message,
    /// It may have been delivered before.
    pub redelivered: bool,
    /// How to acknowledge; consumed by [`Delivery::ack`].
    pub acker: Box<dyn Acker>,
}

impl Delivery {
    /// Tells the bus that the message has been dealt with (its effects are
    /// committed). An error means that it will come again.
    ///
    /// # Errors
    /// [`BusError`] if the acknowledgement did not reach the queue.
    pub async fn ack(self) -> Result<(), BusError> {
        self.acker.ack().await
    }
}

/// Acknowledges one delivery.
#[async_trait]
pub trait Acker: fmt::Debug + Send + Sync {
    /// See [`Delivery::ack`].
    async fn ack(self: Box<Self>) -> Result<(), BusError>;
}
