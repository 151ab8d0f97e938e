//! Events of other services, taken from the bus one by one.
//!
//! The other end of [`outbox`](crate::outbox): a message is acknowledged when
//! the handler has dealt with all of its events. If it fails, the message is
//! held and tried again, so events of one source are handled in their order.
//! Repetitions do come; a handler must be such that they change nothing.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kiln_bus::{Bus, Delivery, QueueSpec, Subscription};
use kiln_proto::events::v1::{Event, EventBatch};
use prost::Message as _;
use tokio_util::sync::CancellationToken;

/// First and longest pause after bus or handler failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Deals with events.
#[async_trait]
pub trait Handler: Send + Sync {
    /// Why an event could not be dealt with now.
    type Error: Display + Send;

    /// Deals with one event. An error means that it is tried again; an event
    /// that can never be used is told and passed over.
    ///
    /// # Errors
    /// What stands in the way for the moment.
    async fn take(&self, event: Event) -> Result<(), Self::Error>;
}

/// Subscribes and hands over what comes until `shutdown`, or until the bus is
/// closed.
pub async fn consume(bus: Arc<dyn Bus>, queue: QueueSpec, handler: impl Handler, shutdown: CancellationToken) {
    let Some(mut subscription) = subscribe(&*bus, &queue, &shutdown).await else { return };
    loop {
        let delivery = tokio::select! {
            () = shutdown.cancelled() => return,
            next = subscription.next() => next,
        };
        let Ok(delivery) = delivery else {
            tracing::info!(queue = queue.name, "the bus is closed; no more events are received");
            return;
        };
        if !deal_with(delivery, &queue, &handler, &shutdown).await {
            return;
        }
    }
}

async fn subscribe(bus: &dyn Bus, queue: &QueueSpec, shutdown: &CancellationToken) -> Option<Box<dyn Subscription>> {
    let mut pause = RETRY.0;
    loop {
        let error = tokio::select! {
            () = shutdown.cancelled() => return None,
            subscribed = bus.subscribe(queue) => match subscribed {
                Ok(subscription) => return Some(subscription),
                Err(error) => error,
            },
        };
        tracing::warn!(queue = queue.name, %error, retry_in = ?pause, "events cannot be received");
        tokio::select! {
            () = shutdown.cancelled() => return None,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(RETRY.1);
    }
}

/// `false` if `shutdown` came first: the bus then delivers again.
async fn deal_with(
    delivery: Delivery,
    queue: &QueueSpec,
    handler: &impl Handler,
    shutdown: &CancellationToken,
) -> bool {
    let message = &delivery.message;
    let events = match EventBatch::decode(message.body.clone()) {
        Ok(batch) => batch.events,
        Err(error) => {
            // It would never become readable.
            tracing::error!(queue = queue.name, message.id, message.routing_key, %error, "a message cannot be read");
            Vec::new()
        }
    };
    for event in events {
        let mut pause = RETRY.0;
        while let Err(error) = handler.take(event.clone()).await {
            tracing::warn!(
                queue = queue.name, event.id, event.r#type, event.subject, %error, retry_in = ?pause,
                "an event could not be dealt with; it is held"
            );
            tokio::select! {
                () = shutdown.cancelled() => return false,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(RETRY.1);
        }
    }
    if let Err(error) = delivery.ack().await {
        tracing::debug!(queue = queue.name, %error, "an acknowledgement was lost; the events will come again");
    }
    true
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use kiln_bus::{MemoryBus, Message};

    use super::*;

    /// Fails once at each event.
    #[derive(Default)]
    struct Reluctant {
        seen: Arc<Mutex<Vec<String>>>,
    }

    #[async_trait]
    impl Handler for Reluctant {
        type Error = &'static str;

        async fn take(&self, event: Event) -> Result<(), &'static str> {
            let mut seen = self.seen.lock().unwrap();
            seen.push(event.id.clone());
            let times = seen.iter().filter(|id| **id == event.id).count();
            if times < 2 { Err("not now") } else { Ok(()) }
        }
    }

    #[tokio::test]
    async fn events_are_held_in_their_order_until_they_are_dealt_with() {
        let bus = MemoryBus::new();
        let queue = QueueSpec { name: "q".into(), bindings: vec!["a.#".into()], prefetch: 8 };
        bus.declare(&queue).await.unwrap();
        let handler = Reluctant::default();
        let (seen, shutdown) = (handler.seen.clone(), CancellationToken::new());
        let consuming = kiln_telemetry::spawn(consume(Arc::new(bus.clone()), queue, handler, shutdown.clone()));
        let event = |id: &str| Event { id: id.into(), ..Event::default() };
        let message = |id: &str, body: Vec<u8>| Message {
            id: id.into(),
            routing_key: "a.b".into(),
            source: "s".into(),
            traceparent: String::new(),
            body: Bytes::from(body),
        };
        let batch = EventBatch { events: vec![event("1"), event("2")] };
        // Published means acknowledged by the consumer.
        bus.publish(message("m1", batch.encode_to_vec())).await.unwrap();
        bus.publish(message("m2", vec![0xff])).await.unwrap();
        bus.publish(message("m3", EventBatch { events: vec![event("3")] }.encode_to_vec())).await.unwrap();
        assert_eq!(*seen.lock().unwrap(), ["1", "1", "2", "2", "3", "3"]);
        shutdown.cancel();
        consuming.await.unwrap();
    }
}
