//! The contract of [`Bus`], as one suite that every implementation passes.
//!
//! [`suite`] panics with what does not hold. The bus must be empty of queues
//! whose names begin with `prefix`.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::{Bus, BusError, Delivery, Message, QueueSpec, Subscription};

/// How long something that must happen may take before the suite gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it is looked that something does not happen.
const QUIET: Duration = Duration::from_millis(200);

/// A message with `id` as its id and body.
pub fn message(routing_key: &str, id: impl ToString) -> Message {
    let id = id.to_string();
    Message {
        routing_key: routing_key.to_owned(),
        source: "conformance/1".to_owned(),
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
        body: Bytes::from(id.clone()),
        id,
    }
}

/// Checks everything the contract promises.
pub async fn suite(bus: Arc<dyn Bus>, prefix: &str) {
    let case = |name: &str, bindings: &[&str], prefetch| QueueSpec {
        name: format!("{prefix}{name}"),
        // Keys of one case begin with its name, so that cases do not meet.
        bindings: bindings.iter().map(|binding| format!("{name}.{binding}")).collect(),
        prefetch,
    };
    a_message_nobody_wants_is_accepted(&*bus).await;
    a_message_arrives_as_it_was_sent(bus.clone(), case("whole", &["#"], 10)).await;
    bindings_decide(bus.clone(), case("topic", &["task.*", "*.state", "deep.#"], 10)).await;
    bindings_add_up(bus.clone(), case("add", &["a"], 10), case("add", &["b"], 10)).await;
    a_declared_queue_keeps_messages(bus.clone(), case("kept", &["#"], 10)).await;
    every_queue_gets_its_copy(bus.clone(), case("copy1", &["#"], 10), case("copy2", &["#"], 10)).await;
    order_is_kept(bus.clone(), case("order", &["#"], 50)).await;
    dropped_deliveries_come_again(bus.clone(), case("again", &["#"], 10)).await;
    what_a_dead_consumer_had_comes_again(bus.clone(), case("dead", &["#"], 10)).await;
    one_consumer_gets_all_until_it_is_gone(bus.clone(), case("active", &["#"], 5)).await;
    prefetch_bounds_what_is_unacknowledged(bus, case("prefetch", &["#"], 2)).await;
}

async fn a_message_nobody_wants_is_accepted(bus: &dyn Bus) {
    within("publish without a queue", bus.publish(message("nobody.wants.this", 1))).await.unwrap();
}

async fn a_message_arrives_as_it_was_sent(bus: Arc<dyn Bus>, queue: QueueSpec) {
    let mut subscription = bus.subscribe(&queue).await.unwrap();
    let mut sent = message("whole.a.b", "äöü-1");
    sent.body = Bytes::from([0, 255, 7].repeat(100_000));
    let publishing = publish(&bus, vec![sent.clone()]);
    let delivery = next(&mut *subscription).await;
    assert_eq!(delivery.message, sent);
    assert!(!delivery.redelivered);
    delivery.ack().await.unwrap();
    publishing.await.unwrap().unwrap();
}

async fn bindings_decide(bus: Arc<dyn Bus>, queue: QueueSpec) {
    let mut subscription = bus.subscribe(&queue).await.unwrap();
    let keys = ["topic.task.added", "topic.job.added", "topic.job.state", "topic.task", "topic.deep", "topic.deep.a.b"];
    let publishing = publish(&bus, keys.iter().map(|key| message(key, key)).collect());
    let got = take(&mut *subscription, 4).await;
    assert_eq!(got, ["topic.task.added", "topic.job.state", "topic.deep", "topic.deep.a.b"]);
    publishing.await.unwrap().unwrap();
    nothing_comes(&mut *subscription).await;
}

async fn bindings_add_up(bus: Arc<dyn Bus>, first: QueueSpec, second: QueueSpec) {
    bus.declare(&first).await.unwrap();
    let mut subscription = bus.subscribe(&second).await.unwrap();
    let publishing = publish(&bus, vec![message("add.a", 1), message("add.b", 2), message("add.c", 3)]);
    assert_eq!(take(&mut *subscription, 2).await, ["1", "2"]);
    publishing.await.unwrap().unwrap();
}

async fn a_declared_queue_keeps_messages(bus: Arc<dyn Bus>, queue: QueueSpec) {
    bus.declare(&queue).await.unwrap();
    let publishing = publish(&bus, (0..100).map(|n| message("kept.x", n)).collect());
    // An implementation may wait with its answer for a consumer, or not.
    let mut subscription = bus.subscribe(&queue).await.unwrap();
    let expected: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    assert_eq!(take(&mut *subscription, 100).await, expected);
    publishing.await.unwrap().unwrap();
}

async fn every_queue_gets_its_copy(bus: Arc<dyn Bus>, first: QueueSpec, second: QueueSpec) {
    let second = QueueSpec { bindings: first.bindings.clone(), ..second };
    let mut subscriptions = [bus.subscribe(&first).await.unwrap(), bus.subscribe(&second).await.unwrap()];
    let publishing = publish(&bus, vec![message("copy1.x", 1), message("copy1.x", 2)]);
    for subscription in &mut subscriptions {
        assert_eq!(take(&mut **subscription, 2).await, ["1", "2"]);
    }
    publishing.await.unwrap().unwrap();
}

async fn order_is_kept(bus: Arc<dyn Bus>, queue: QueueSpec) {
    const MESSAGES: usize = 3000;
    let mut subscription = bus.subscribe(&queue).await.unwrap();
    let publisher = bus.clone();
    let publishing = kiln_telemetry::spawn(async move {
        let mut numbers = 0..MESSAGES;
        // One by one, and many at once.
        for size in [1, 1, 1, 1000, 1, MESSAGES] {
            let batch: Vec<Message> = numbers.by_ref().take(size).map(|n| message("order.x", n)).collect();
            publisher.publish_all(batch).await?;
        }
        Ok::<(), BusError>(())
    });
    let expected: Vec<String> = (0..MESSAGES).map(|n| n.to_string()).collect();
    assert_eq!(take(&mut *subscription, MESSAGES).await, expected);
    publishing.await.unwrap().unwrap();
}

async fn dropped_deliveries_come_again(bus: Arc<dyn Bus>, queue: QueueSpec) {
    let mut subscription = bus.subscribe(&queue).await.unwrap();
    let publishing = publish(&bus, (0..3).map(|n| message("again.x", n)).collect());
    let first = next(&mut *subscription).await;
    assert_eq!((first.message.id.as_str(), first.redelivered), ("0", false));
    drop(first);
    let mut seen = HashSet::new();
    while seen.len() < 3 {
        let delivery = next(&mut *subscription).await;
        assert_eq!(delivery.redelivered, delivery.message.id == "0", "{delivery:?}");
        seen.insert(delivery.message.id.clone());
        delivery.ack().await.unwrap();
    }
    publishing.await.unwrap().unwrap();
    nothing_comes(&mut *subscription).await;
}

async fn what_a_dead_consumer_had_comes_again(bus: Arc<dyn Bus>, queue: QueueSpec) {
    let mut subscription = bus.subscribe(&queue).await.unwrap();
    let publishing = publish(&bus, (0..5).map(|n| message("dead.x", n)).collect());
    let held = [next(&mut *subscription).await, next(&mut *subscription).await];
    drop(subscription);
    drop(held);
    let mut subscription = bus.subscribe(&queue).await.unwrap();
    let mut got = take(&mut *subscription, 5).await;
    got.sort();
    assert_eq!(got, ["0", "1", "2", "3", "4"]);
    publishing.await.unwrap().unwrap();
}

async fn one_consumer_gets_all_until_it_is_gone(bus: Arc<dyn Bus>, queue: QueueSpec) {
    let mut one = bus.subscribe(&queue).await.unwrap();
    let mut two = bus.subscribe(&queue).await.unwrap();
    let publishing = publish(&bus, (0..20).map(|n| message("active.x", n)).collect());
    // Which of them it is is for the bus to decide.
    let (first, one_is_active) = tokio::select! {
        delivery = next(&mut *one) => (delivery, true),
        delivery = next(&mut *two) => (delivery, false),
    };
    let (mut active, mut standby) = if one_is_active { (one, two) } else { (two, one) };
    assert_eq!(first.message.id, "0");
    first.ack().await.unwrap();
    let expected = |from: usize, to: usize| (from..to).map(|n| n.to_string()).collect::<Vec<_>>();
    assert_eq!(take(&mut *active, 9).await, expected(1, 10));
    nothing_comes(&mut *standby).await;
    // It has some when it goes: they are delivered again, so out of order.
    let held = next(&mut *active).await;
    drop(active);
    drop(held);
    let mut rest = take(&mut *standby, 10).await;
    rest.sort();
    assert_eq!(rest, expected(10, 20));
    publishing.await.unwrap().unwrap();
}

async fn prefetch_bounds_what_is_unacknowledged(bus: Arc<dyn Bus>, queue: QueueSpec) {
    let mut subscription = bus.subscribe(&queue).await.unwrap();
    let publishing = publish(&bus, (0..4).map(|n| message("prefetch.x", n)).collect());
    let first = next(&mut *subscription).await;
    let second = next(&mut *subscription).await;
    nothing_comes(&mut *subscription).await;
    second.ack().await.unwrap();
    let third = next(&mut *subscription).await;
    assert_eq!(third.message.id, "2");
    nothing_comes(&mut *subscription).await;
    first.ack().await.unwrap();
    third.ack().await.unwrap();
    assert_eq!(take(&mut *subscription, 1).await, ["3"]);
    publishing.await.unwrap().unwrap();
}

fn publish(bus: &Arc<dyn Bus>, messages: Vec<Message>) -> tokio::task::JoinHandle<Result<(), BusError>> {
    let bus = bus.clone();
    kiln_telemetry::spawn(async move { bus.publish_all(messages).await })
}

/// Takes and acknowledges; returns the ids.
async fn take(subscription: &mut dyn Subscription, count: usize) -> Vec<String> {
    let mut ids = Vec::with_capacity(count);
    while ids.len() < count {
        let delivery = next(subscription).await;
        ids.push(delivery.message.id.clone());
        delivery.ack().await.unwrap();
    }
    ids
}

async fn next(subscription: &mut dyn Subscription) -> Delivery {
    within("the next delivery", subscription.next()).await.unwrap()
}

async fn nothing_comes(subscription: &mut dyn Subscription) {
    if let Ok(delivery) = tokio::time::timeout(QUIET, subscription.next()).await {
        panic!("nothing should come, but {delivery:?} did");
    }
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what} did not happen within {PATIENCE:?}"))
}
