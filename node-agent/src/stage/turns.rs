//! One after the other, by name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::MutexGuard;

/// A lock per name, with something in it for the next one who has it. Names exist
/// as long as somebody holds a [`Turn`] of them.
#[derive(Debug, Default)]
pub struct Turns<T> {
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<T>>>>,
}

/// A place in the line for one name.
#[derive(Debug)]
pub struct Turn<'a, T> {
    turns: &'a Turns<T>,
    name: String,
    /// Only absent while it is dropped.
    lock: Option<Arc<tokio::sync::Mutex<T>>>,
}

impl<T: Default> Turns<T> {
    /// A place in the line for `name`.
    pub fn of(&self, name: String) -> Turn<'_, T> {
        let lock = self.lock().entry(name.clone()).or_default().clone();
        Turn { turns: self, name, lock: Some(lock) }
    }
}

impl<T> Turns<T> {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<T>>>> {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Turn<'_, T> {
    /// Waits until it is this one's turn.
    pub async fn wait(&self) -> Option<MutexGuard<'_, T>> {
        match &self.lock {
            Some(lock) => Some(lock.lock().await),
            None => None,
        }
    }

    /// If it is this one's turn at once.
    pub fn now(&self) -> Option<MutexGuard<'_, T>> {
        self.lock.as_ref()?.try_lock().ok()
    }
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        let mut locks = self.turns.lock();
        self.lock.take();
        if locks.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_are_forgotten_with_their_last_turn() {
        let turns = Turns::<u32>::default();
        let (first, second, other) = (turns.of("a".into()), turns.of("a".into()), turns.of("b".into()));
        let mut held = first.wait().await.unwrap();
        *held += 1;
        assert!(futures::poll!(std::pin::pin!(second.wait())).is_pending() && second.now().is_none());
        assert!(futures::poll!(std::pin::pin!(other.wait())).is_ready());
        drop(held);
        drop((first, other));
        assert_eq!(*second.wait().await.unwrap(), 1, "what the first one left");
        assert_eq!(turns.lock().len(), 1);
        drop(second);
        assert!(turns.lock().is_empty());
    }
}
