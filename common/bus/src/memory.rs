//! The bus inside one process, for `kiln up`.
//!
//! Nothing is written to disk here, so a message is safe only when whoever
//! wanted it has dealt with it: [`MemoryBus::publish`] answers when every queue
//! whose binding fits has had the message acknowledged. Until then the
//! publisher's outbox keeps it, and a process that dies publishes it again.
//!
//! Queues are bounded by [`QUEUE_MESSAGES`]: a publisher waits for a place. What
//! was delivered and dropped goes back to its old place in the queue.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{Acker, Bus, BusError, Delivery, Message, QueueSpec, Subscription, topic};

/// Messages a queue holds before publishers wait.
pub const QUEUE_MESSAGES: usize = 4096;

/// A bus for the services of one process. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryBus {
    queues: Arc<Mutex<HashMap<String, Arc<Queue>>>>,
    closed: CancellationToken,
}

impl MemoryBus {
    /// A bus without queues.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends all waiting calls, now and later, with [`BusError::Closed`].
    pub fn close(&self) {
        self.closed.cancel();
    }

    fn queue(&self, spec: &QueueSpec) -> Arc<Queue> {
        let queue = locked(&self.queues).entry(spec.name.clone()).or_default().clone();
        let mut state = locked(&queue.state);
        for binding in &spec.bindings {
            if !state.bindings.contains(binding) {
                state.bindings.push(binding.clone());
            }
        }
        drop(state);
        queue
    }

    fn interested(&self, routing_key: &str) -> Vec<Arc<Queue>> {
        let wants = |queue: &&Arc<Queue>| {
            locked(&queue.state).bindings.iter().any(|binding| topic::matches(binding, routing_key))
        };
        locked(&self.queues).values().filter(wants).cloned().collect()
    }

    /// Puts the message into every queue that wants it; the ticket tells when
    /// all of them are done with it.
    async fn hand_over(&self, message: Message) -> Result<Arc<Ticket>, BusError> {
        if self.closed.is_cancelled() {
            return Err(BusError::Closed);
        }
        let queues = self.interested(&message.routing_key);
        let ticket = Arc::new(Ticket { open: AtomicUsize::new(queues.len()), done: Notify::new() });
        for queue in queues {
            let entry = Entry { message: message.clone(), redelivered: false, ticket: ticket.clone() };
            self.unless_closed(queue.push(entry)).await?;
        }
        Ok(ticket)
    }

    async fn unless_closed<T>(&self, work: impl Future<Output = T>) -> Result<T, BusError> {
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(BusError::Closed),
            value = work => Ok(value),
        }
    }
}

#[async_trait]
impl Bus for MemoryBus {
    async fn publish(&self, message: Message) -> Result<(), BusError> {
        let ticket = self.hand_over(message).await?;
        self.unless_closed(ticket.settled()).await
    }

    async fn publish_all(&self, messages: Vec<Message>) -> Result<(), BusError> {
        // All are on their way before the first is waited for; the queues'
        // bound limits how many that are.
        let mut tickets = Vec::with_capacity(messages.len());
        for message in messages {
            tickets.push(self.hand_over(message).await?);
        }
        for ticket in tickets {
            self.unless_closed(ticket.settled()).await?;
        }
        Ok(())
    }

    async fn declare(&self, queue: &QueueSpec) -> Result<(), BusError> {
        if self.closed.is_cancelled() {
            return Err(BusError::Closed);
        }
        self.queue(queue);
        Ok(())
    }

    async fn subscribe(&self, queue: &QueueSpec) -> Result<Box<dyn Subscription>, BusError> {
        self.declare(queue).await?;
        let prefetch = if queue.prefetch == 0 { QUEUE_MESSAGES } else { usize::from(queue.prefetch) };
        let queue = self.queue(queue);
        let number = queue.enter();
        Ok(Box::new(Consumer { bus: self.clone(), queue, number, permits: Arc::new(Semaphore::new(prefetch)) }))
    }
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<QueueState>,
    /// A message became ready.
    ready: Notify,
    /// A place became free.
    space: Notify,
}

#[derive(Debug, Default)]
struct QueueState {
    bindings: Vec<String>,
    /// By place: what is given back goes where it was.
    ready: BTreeMap<u64, Entry>,
    next_place: u64,
    /// In the order in which they came; the first gets the messages.
    consumers: VecDeque<u64>,
    next_consumer: u64,
}

#[derive(Debug, Clone)]
struct Entry {
    message: Message,
    redelivered: bool,
    ticket: Arc<Ticket>,
}

impl Queue {
    async fn push(&self, entry: Entry) {
        loop {
            let space = self.space.notified();
            tokio::pin!(space);
            // Registered before looking, so that no wake-up is missed.
            space.as_mut().enable();
            {
                let mut state = locked(&self.state);
                if state.ready.len() < QUEUE_MESSAGES {
                    let place = state.next_place;
                    state.next_place += 1;
                    state.ready.insert(place, entry);
                    drop(state);
                    self.ready.notify_waiters();
                    return;
                }
            }
            space.await;
        }
    }

    fn enter(&self) -> u64 {
        let mut state = locked(&self.state);
        let number = state.next_consumer;
        state.next_consumer += 1;
        state.consumers.push_back(number);
        number
    }

    fn leave(&self, consumer: u64) {
        locked(&self.state).consumers.retain(|other| *other != consumer);
        // The next may have its turn.
        self.ready.notify_waiters();
    }

    async fn pop(&self, consumer: u64) -> (u64, Entry) {
        loop {
            let ready = self.ready.notified();
            tokio::pin!(ready);
            ready.as_mut().enable();
            let first = {
                let mut state = locked(&self.state);
                if state.consumers.front() == Some(&consumer) { state.ready.pop_first() } else { None }
            };
            if let Some(found) = first {
                self.space.notify_waiters();
                return found;
            }
            ready.await;
        }
    }

    fn give_back(&self, place: u64, mut entry: Entry) {
        entry.redelivered = true;
        locked(&self.state).ready.insert(place, entry);
        self.ready.notify_waiters();
    }
}

/// Counts the queues that are not done with a message.
#[derive(Debug)]
struct Ticket {
    open: AtomicUsize,
    done: Notify,
}

impl Ticket {
    fn acknowledged(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_waiters();
        }
    }

    async fn settled(&self) {
        let done = self.done.notified();
        tokio::pin!(done);
        done.as_mut().enable();
        if self.open.load(Ordering::Acquire) > 0 {
            done.await;
        }
    }
}

#[derive(Debug)]
struct Consumer {
    bus: MemoryBus,
    queue: Arc<Queue>,
    number: u64,
    /// Deliveries that may be unacknowledged at once.
    permits: Arc<Semaphore>,
}

#[async_trait]
impl Subscription for Consumer {
    async fn next(&mut self) -> Result<Delivery, BusError> {
        let permit = self.permits.clone().acquire_owned();
        let permit = self.bus.unless_closed(permit).await?.map_err(|_| BusError::Closed)?;
        // Nothing waits between taking the entry and returning it: a caller
        // that gives up loses no message.
        let (place, entry) = self.bus.unless_closed(self.queue.pop(self.number)).await?;
        Ok(Delivery {
            message: entry.message.clone(),
            redelivered: entry.redelivered,
            acker: Box::new(MemoryAcker {
                queue: self.queue.clone(),
                unsettled: Some((place, entry)),
                _permit: permit,
            }),
        })
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.queue.leave(self.number);
    }
}

#[derive(Debug)]
struct MemoryAcker {
    queue: Arc<Queue>,
    unsettled: Option<(u64, Entry)>,
    _permit: OwnedSemaphorePermit,
}

#[async_trait]
impl Acker for MemoryAcker {
    async fn ack(mut self: Box<Self>) -> Result<(), BusError> {
        if let Some((_, entry)) = self.unsettled.take() {
            entry.ticket.acknowledged();
        }
        Ok(())
    }
}

impl Drop for MemoryAcker {
    fn drop(&mut self) {
        if let Some((place, entry)) = self.unsettled.take() {
            self.queue.give_back(place, entry);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;

    use super::*;
    use crate::conformance::{message, suite};

    fn queue(prefetch: u16) -> QueueSpec {
        QueueSpec { name: "q".into(), bindings: vec!["a.#".into()], prefetch }
    }

    #[tokio::test]
    async fn it_keeps_the_contract() {
        suite(Arc::new(MemoryBus::new()), "").await;
    }

    #[tokio::test]
    async fn a_message_is_published_when_it_is_acknowledged_and_not_before() {
        let bus = MemoryBus::new();
        let mut subscription = bus.subscribe(&queue(10)).await.unwrap();
        let mut publishing = std::pin::pin!(bus.publish(message("a.b", 1)));
        assert!(publishing.as_mut().now_or_never().is_none());
        let delivery = subscription.next().await.unwrap();
        assert!(publishing.as_mut().now_or_never().is_none());
        drop(delivery);
        let again = subscription.next().await.unwrap();
        assert!(again.redelivered && publishing.as_mut().now_or_never().is_none());
        again.ack().await.unwrap();
        publishing.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_given_back_goes_to_its_old_place() {
        let bus = MemoryBus::new();
        let mut subscription = bus.subscribe(&queue(10)).await.unwrap();
        let publishing = (0..5).map(|n| message("a.b", n)).collect();
        let mut publishing = std::pin::pin!(bus.publish_all(publishing));
        assert!(publishing.as_mut().now_or_never().is_none());
        let held = [subscription.next().await.unwrap(), subscription.next().await.unwrap()];
        drop(held);
        for n in 0..5 {
            let delivery = subscription.next().await.unwrap();
            assert_eq!((delivery.message.id.clone(), delivery.redelivered), (n.to_string(), n < 2));
            delivery.ack().await.unwrap();
        }
        publishing.await.unwrap();
    }

    #[tokio::test]
    async fn a_full_queue_makes_publishers_wait() {
        let bus = MemoryBus::new();
        bus.declare(&queue(10)).await.unwrap();
        let all: Vec<Message> = (0..QUEUE_MESSAGES + 1).map(|n| message("a.b", n)).collect();
        let mut publishing = std::pin::pin!(bus.publish_all(all));
        assert!(publishing.as_mut().now_or_never().is_none());
        let ready = || locked(&bus.queue(&queue(10)).state).ready.len();
        assert_eq!(ready(), QUEUE_MESSAGES);
        let mut subscription = bus.subscribe(&queue(10)).await.unwrap();
        subscription.next().await.unwrap().ack().await.unwrap();
        assert!(publishing.as_mut().now_or_never().is_none());
        assert_eq!(ready(), QUEUE_MESSAGES);
    }

    #[tokio::test]
    async fn closing_ends_everything_that_waits() {
        let bus = MemoryBus::new();
        let mut subscription = bus.subscribe(&queue(10)).await.unwrap();
        bus.declare(&QueueSpec { name: "unread".into(), ..queue(10) }).await.unwrap();
        let mut publishing = std::pin::pin!(bus.publish(message("a.b", 1)));
        assert!(publishing.as_mut().now_or_never().is_none());
        subscription.next().await.unwrap().ack().await.unwrap();
        bus.close();
        assert!(matches!(publishing.await, Err(BusError::Closed)));
        assert!(matches!(subscription.next().await, Err(BusError::Closed)));
        assert!(matches!(bus.declare(&queue(1)).await, Err(BusError::Closed)));
    }
}
