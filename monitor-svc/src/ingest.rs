//! From the bus into the log.
//!
//! Everything that waits is stored in one transaction and acknowledged after
//! its commit. If the store fails, the deliveries are held and tried again:
//! giving them back would only bring them here once more, and in the end to the
//! dead letters. Repetitions are recognised by (source, sequence).

mod convert;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use kiln_bus::{Bus, BusError, Delivery, QueueSpec, Subscription};
use kiln_time::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::domain::fact::Fact;
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::store::{Appended, Store};

/// The queue that receives every event of the deployment.
pub const QUEUE: &str = "monitor.events";
/// Events of one transaction at most, as soon as one message has them.
const BATCH_EVENTS: usize = 20_000;
/// First and longest pause after bus or store failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Takes events from the bus and stores them.
#[derive(Debug)]
pub struct Ingest {
    /// Where events come from.
    pub bus: Arc<dyn Bus>,
    /// Where they go.
    pub store: Arc<dyn Store>,
    /// Who is told.
    pub hub: Hub,
    /// What is counted.
    pub metrics: Metrics,
    /// Messages held at once.
    pub prefetch: u16,
}

impl Ingest {
    /// Declares the queue, so that nothing that is published from now on is
    /// missed. Retried until `shutdown`; `None` means that it came first.
    pub async fn subscribe(&self, shutdown: &CancellationToken) -> Option<Box<dyn Subscription>> {
        let queue = QueueSpec { name: QUEUE.to_owned(), bindings: vec!["#".to_owned()], prefetch: self.prefetch };
        let mut pause = RETRY.0;
        loop {
            let error = tokio::select! {
                () = shutdown.cancelled() => return None,
                subscribed = self.bus.subscribe(&queue) => match subscribed {
                    Ok(subscription) => return Some(subscription),
                    Err(error) => error,
                },
            };
            tracing::warn!(%error, retry_in = ?pause, "events cannot be received");
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Stores what comes until `shutdown` or until the bus is closed.
    pub async fn run(self, mut subscription: Box<dyn Subscription>, shutdown: CancellationToken) {
        loop {
            let first = tokio::select! {
                () = shutdown.cancelled() => return,
                next = subscription.next() => next,
            };
            let Some(deliveries) = self.take(first, &mut *subscription) else {
                tracing::info!("the bus is closed; no more events are received");
                return;
            };
            if !self.keep(deliveries, &shutdown).await {
                return;
            }
        }
    }

    /// `first` and what else is there already.
    fn take(
        &self,
        first: Result<Delivery, BusError>,
        subscription: &mut dyn Subscription,
    ) -> Option<Vec<(Delivery, Vec<Fact>)>> {
        let mut taken = Vec::new();
        let mut events = 0;
        let mut next = Some(first);
        while let Some(delivery) = next {
            match delivery {
                Ok(delivery) => {
                    let facts = self.facts(&delivery);
                    events += facts.len();
                    taken.push((delivery, facts));
                }
                // Only "closed" ends a subscription; what was taken still counts.
                Err(error) => {
                    tracing::debug!(%error, "the subscription ended");
                    return (!taken.is_empty()).then_some(taken);
                }
            }
            if taken.len() >= usize::from(self.prefetch) || events >= BATCH_EVENTS {
                break;
            }
            next = subscription.next().now_or_never();
        }
        Some(taken)
    }

    /// The usable events of a message. Others would never become usable: they
    /// are counted, told, and acknowledged with the rest.
    fn facts(&self, delivery: &Delivery) -> Vec<Fact> {
        let unusable = |count: u64, why: &str| {
            self.metrics.events.with_label_values(&["unusable"]).inc_by(count);
            let message = &delivery.message;
            tracing::error!(message.id, message.routing_key, message.source, why, "an event cannot be used");
        };
        let events = match convert::events(&delivery.message.body) {
            Ok(events) => events,
            Err(error) => {
                unusable(1, &error.to_string());
                return Vec::new();
            }
        };
        let mut facts = Vec::with_capacity(events.len());
        for (event, bytes) in events {
            match convert::fact(event, bytes) {
                Ok(fact) => facts.push(fact),
                Err(why) => unusable(1, why),
            }
        }
        facts
    }

    /// Stores and acknowledges; `false` if `shutdown` came first (the bus then
    /// delivers again).
    async fn keep(&self, taken: Vec<(Delivery, Vec<Fact>)>, shutdown: &CancellationToken) -> bool {
        let (deliveries, facts): (Vec<Delivery>, Vec<Vec<Fact>>) = taken.into_iter().unzip();
        let facts: Arc<Vec<Fact>> = Arc::new(facts.into_iter().flatten().collect());
        let total = facts.len();
        let newest = facts.iter().map(|fact| fact.time_micros).max();
        let mut pause = RETRY.0;
        let appended = loop {
            let now = Timestamp::now();
            match self.store.append(facts.clone(), now.as_micros()).await {
                Ok(appended) => break appended,
                Err(error) => {
                    tracing::error!(%error, retry_in = ?pause, "events could not be stored; they are held");
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return false,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(RETRY.1);
        };
        self.tell(&appended, total, newest);
        for error in join_all(deliveries.into_iter().map(Delivery::ack)).await.into_iter().filter_map(Result::err) {
            tracing::debug!(%error, "an acknowledgement was lost; the events will come again and be recognised");
        }
        true
    }

    fn tell(&self, appended: &Appended, total: usize, newest: Option<i64>) {
        self.hub.wake(&appended.topics);
        self.metrics.events.with_label_values(&["new"]).inc_by(appended.new as u64);
        self.metrics.events.with_label_values(&["duplicate"]).inc_by((total - appended.new) as u64);
        self.metrics.log_events.add(i64::try_from(appended.new).unwrap_or(0));
        if let Some(newest) = newest {
            self.metrics.lag_seconds.set(Timestamp::now().since(Timestamp::from_micros(newest)).as_secs_f64());
        }
    }
}
