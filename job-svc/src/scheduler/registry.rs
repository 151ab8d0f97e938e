//! Finds the actor of a pool, and starts it when it is needed first.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use kiln_ids::{AccountName, PoolId};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::actor::{Actor, Context};
use super::core::Conn;
use super::note::Note;
use crate::domain::Error;

/// Notes that may wait for an actor; whoever has more waits.
const INBOX: usize = 4096;

/// See the module.
#[derive(Debug)]
pub struct Registry {
    context: Context,
    actors: Mutex<HashMap<(AccountName, PoolId), mpsc::Sender<Note>>>,
    next_conn: AtomicU64,
    shutdown: CancellationToken,
}

impl Registry {
    /// No actors yet. They stop at `shutdown`.
    pub fn new(context: Context, shutdown: CancellationToken) -> Self {
        Self { context, actors: Mutex::default(), next_conn: AtomicU64::new(1), shutdown }
    }

    /// Starts the actors of all pools that have something to do, and waits until
    /// they have loaded it.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn recover(&self) -> Result<usize, Error> {
        let pools = self.context.store.pools().await?;
        let waits: Vec<oneshot::Receiver<()>> =
            pools.into_iter().filter_map(|(account, pool)| self.find(&account, &pool).1).collect();
        let count = waits.len();
        for wait in waits {
            // An actor that ended early does so only because of the shutdown.
            let _ = wait.await;
        }
        Ok(count)
    }

    /// The number of a new stream.
    pub fn new_conn(&self) -> Conn {
        self.next_conn.fetch_add(1, Ordering::Relaxed)
    }

    /// The inbox of a pool's actor.
    pub fn actor(&self, account: &AccountName, pool: &PoolId) -> mpsc::Sender<Note> {
        self.find(account, pool).0
    }

    /// Tells a pool's actor something.
    pub async fn tell(&self, account: &AccountName, pool: &PoolId, note: Note) {
        // It is gone only when the service stops; the next start reads the store.
        let _ = self.actor(account, pool).send(note).await;
    }

    fn find(&self, account: &AccountName, pool: &PoolId) -> (mpsc::Sender<Note>, Option<oneshot::Receiver<()>>) {
        let mut actors = self.actors.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (account.clone(), pool.clone());
        if let Some(actor) = actors.get(&key) {
            return (actor.clone(), None);
        }
        let (sender, inbox) = mpsc::channel(INBOX);
        let (ready, wait) = oneshot::channel();
        let actor = Actor::new(account.clone(), pool.clone(), self.context.clone());
        kiln_telemetry::spawn(actor.run(inbox, ready, self.shutdown.clone()));
        actors.insert(key, sender.clone());
        (sender, Some(wait))
    }
}
