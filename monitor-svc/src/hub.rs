//! Wakes the watchers of what has changed, and only those.
//!
//! A watcher registers for its topic, then reads the store, then waits: an
//! event that is committed after its read wakes it. Of what another replica has
//! committed no topics are known: then all look.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

type Topic = (String, String);

/// Who waits for which (account, topic).
#[derive(Debug, Clone, Default)]
pub struct Hub {
    topics: Arc<Mutex<HashMap<Topic, watch::Sender<()>>>>,
}

/// One watcher's interest; ends when it is dropped.
#[derive(Debug)]
pub struct Interest {
    hub: Hub,
    topic: Topic,
    news: Option<watch::Receiver<()>>,
}

impl Hub {
    /// From now on, commits that touch the topic are noticed.
    pub fn watch(&self, account: &str, topic: &str) -> Interest {
        let topic = (account.to_owned(), topic.to_owned());
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        let news = topics.entry(topic.clone()).or_insert_with(|| watch::channel(()).0).subscribe();
        Interest { hub: self.clone(), topic, news: Some(news) }
    }

    /// Wakes the watchers of these topics.
    pub fn wake(&self, changed: &[Topic]) {
        let topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if topics.is_empty() {
            return;
        }
        for topic in changed {
            if let Some(sender) = topics.get(topic) {
                sender.send_replace(());
            }
        }
    }
}

impl Hub {
    /// Wakes all watchers; gives the number of topics they wait for.
    pub fn wake_all(&self) -> usize {
        let topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        for sender in topics.values() {
            sender.send_replace(());
        }
        topics.len()
    }
}

impl Interest {
    /// Completes when something was committed since the last time.
    pub async fn changed(&mut self) {
        if let Some(news) = &mut self.news {
            // The sender lives as long as this interest.
            let _ = news.changed().await;
        }
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        self.news = None;
        let mut topics = self.hub.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if topics.get(&self.topic).is_some_and(|sender| sender.receiver_count() == 0) {
            topics.remove(&self.topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn only_the_topic_that_changed_wakes_and_nothing_stays_behind() {
        let hub = Hub::default();
        let mut one = hub.watch("a", "jobs/1");
        let mut two = hub.watch("a", "jobs/2");
        let mut other = hub.watch("b", "jobs/1");
        hub.wake(&[("a".into(), "jobs/1".into()), ("a".into(), "jobs/3".into())]);
        assert!(one.changed().now_or_never().is_some());
        assert!(one.changed().now_or_never().is_none());
        assert!(two.changed().now_or_never().is_none() && other.changed().now_or_never().is_none());
        hub.wake_all();
        assert!(two.changed().now_or_never().is_some() && other.changed().now_or_never().is_some());
        drop((one, two, other));
        assert!(hub.topics.lock().unwrap().is_empty());
    }
}
