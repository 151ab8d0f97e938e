//! Subscriptions.
//!
//! Each has a task of its own that opens a channel, consumes, hands
//! deliveries over, and begins again on the next connection when this one is
//! lost. What was delivered over a lost connection comes again, and can no
//! longer be acknowledged.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use lapin::Acker as LapinAcker;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::link::{Health, Link, Session};
use super::wire::{message, short};
use super::{Inner, RabbitBus, RabbitConfig, topology};
use crate::{Acker, BusError, Delivery, QueueSpec, Subscription};

/// First and longest pause after the broker refused to let us consume.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// One consumer of a queue.
#[derive(Debug)]
pub(super) struct RabbitSubscription {
    deliveries: mpsc::Receiver<Delivery>,
    /// Keeps the connections open.
    _bus: Arc<Inner>,
}

impl RabbitSubscription {
    pub(super) fn start(bus: &RabbitBus, queue: QueueSpec) -> Self {
        // No more can come than the prefetch; so consumers find at once what is
        // there, and can take it as a batch.
        let (sender, deliveries) = mpsc::channel(usize::from(queue.prefetch.max(1)));
        let link = bus.consuming().clone();
        let shared = bus.inner.shared.clone();
        kiln_telemetry::spawn(async move {
            consume(&shared.config, &link, &queue, &sender, &shared.closed).await;
        });
        Self { deliveries, _bus: bus.inner.clone() }
    }
}

#[async_trait]
impl Subscription for RabbitSubscription {
    async fn next(&mut self) -> Result<Delivery, BusError> {
        self.deliveries.recv().await.ok_or(BusError::Closed)
    }
}

/// Why consuming over one channel ended.
enum Ended {
    /// Nobody wants deliveries any more.
    Unwanted,
    /// The connection is lost; the supervisor makes the next.
    Connection,
    /// Only this channel or this queue: refused, or deleted under us.
    Channel(String),
}

async fn consume(
    config: &RabbitConfig,
    link: &Link,
    queue: &QueueSpec,
    sender: &mpsc::Sender<Delivery>,
    closed: &CancellationToken,
) {
    let mut pause = PAUSE.0;
    loop {
        let session = tokio::select! {
            () = sender.closed() => return,
            () = closed.cancelled() => return,
            session = link.session_in_time() => session,
        };
        let Some(session) = session else { return };
        match consume_over(config, &session, queue, sender).await {
            Ended::Unwanted => return,
            Ended::Connection => pause = PAUSE.0,
            Ended::Channel(reason) => {
                tracing::warn!(queue = queue.name, reason, retry_in = ?pause, "the queue cannot be consumed");
                tokio::select! {
                    () = sender.closed() => return,
                    () = closed.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

async fn consume_over(
    config: &RabbitConfig,
    session: &Session,
    queue: &QueueSpec,
    sender: &mpsc::Sender<Delivery>,
) -> Ended {
    // The channel closes when this function ends, and what it delivered
    // unacknowledged goes back to the queue.
    let (_channel, mut deliveries) = match begin(config, session, queue).await {
        Ok(begun) => begun,
        Err(BusError::Refused(why)) => return Ended::Channel(why),
        Err(BusError::Unavailable(_) | BusError::Closed) => return Ended::Connection,
    };
    loop {
        let next = tokio::select! {
            biased;
            () = session.health.broken() => return Ended::Connection,
            () = sender.closed() => return Ended::Unwanted,
            next = deliveries.next() => next,
        };
        let mut delivery = match next {
            Some(Ok(delivery)) => delivery,
            Some(Err(error)) if error.is_amqp_soft_error() => return Ended::Channel(error.to_string()),
            Some(Err(error)) => {
                session.health.fail(error);
                return Ended::Connection;
            }
            None => return Ended::Channel("the broker ended the consumer".to_owned()),
        };
        let delivery = Delivery {
            message: message(&mut delivery),
            redelivered: delivery.redelivered,
            acker: Box::new(RabbitAcker { acker: delivery.acker, health: session.health.clone(), settled: false }),
        };
        tokio::select! {
            biased;
            () = session.health.broken() => return Ended::Connection,
            sent = sender.send(delivery) => if sent.is_err() {
                return Ended::Unwanted;
            },
        }
    }
}

async fn begin(
    config: &RabbitConfig,
    session: &Session,
    queue: &QueueSpec,
) -> Result<(lapin::Channel, lapin::Consumer), BusError> {
    topology::declare_queue(config, session, queue).await?;
    let channel = session.channel().await?;
    let prefetch = channel.basic_qos(queue.prefetch.max(1), BasicQosOptions::default());
    session.answer("basic.qos", prefetch).await?;
    let consume = channel.basic_consume(
        short("queue name", &topology::queue_name(config, &queue.name))?,
        "".into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let consumer = session.answer("basic.consume", consume).await?;
    Ok((channel, consumer))
}

struct RabbitAcker {
    acker: LapinAcker,
    health: Arc<Health>,
    settled: bool,
}

impl std::fmt::Debug for RabbitAcker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RabbitAcker").field("settled", &self.settled).finish_non_exhaustive()
    }
}

#[async_trait]
impl Acker for RabbitAcker {
    async fn ack(mut self: Box<Self>) -> Result<(), BusError> {
        self.settled = true;
        // `false` means that the channel it came over is gone.
        if self.health.answer("basic.ack", self.acker.ack(BasicAckOptions::default())).await? {
            return Ok(());
        }
        Err(BusError::Unavailable("the message came over a connection that is lost; it will come again".to_owned()))
    }
}

impl Drop for RabbitAcker {
    fn drop(&mut self) {
        if !self.settled {
            // The first poll hands the frame to the connection; its fate does
            // not matter, since a lost connection gives the message back too.
            let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
            let _ = self.acker.nack(options).now_or_never();
        }
    }
}
