//! Finds the actor of a pool, here or at another replica.
//!
//! An actor runs only for pools that this replica owns: it is started when a
//! pool was claimed, and ends when the pool is lost. With SQLite there is one
//! replica, which owns everything. With PostgreSQL [`keep`](Registry::keep) renews
//! the leases and claims pools that nobody has, each replica about its share, and
//! [`follow`](Registry::follow) tells the actors here what clients changed through
//! other replicas.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_ids::{AccountName, PoolId};
use kiln_store::pace::Pace;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::actor::{Actor, Context};
use super::core::Conn;
use super::note::Note;
use super::tenure::{Grant, Tenure};
use crate::domain::Error;
use crate::store::leases::{ChangeRow, Claim, Fence, LeaseStore, Owner, PoolKey, Presence, Standing};

/// Notes that may wait for an actor; whoever has more waits.
const INBOX: usize = 4096;
/// Leases are renewed this often while they go on.
const RENEWALS: u32 = 3;
/// Changes of other replicas that are read at once, how often they are looked for at
/// most (so many times at once, then one in each of these times), and at least.
const CHANGES: u32 = 500;
const FOLLOW: (u32, Duration) = (8, Duration::from_millis(5));
const UNHEARD: Duration = Duration::from_secs(1);
/// A lease is given back within this time, or runs out.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// Where the scheduler of a pool is.
#[derive(Debug)]
pub enum Place {
    /// Here: the inbox of its actor.
    Here(mpsc::Sender<Note>),
    /// At another replica.
    There(Owner),
}

/// What a start has begun.
#[derive(Debug)]
pub struct Recovery {
    /// The change from which on [`Registry::follow`] has to go.
    pub after: u64,
    loading: Vec<oneshot::Receiver<()>>,
}

impl Recovery {
    /// Waits until the actors have loaded; returns their number.
    pub async fn loaded(self) -> usize {
        let count = self.loading.len();
        for wait in self.loading {
            // An actor that ended early has lost its pool, or the service stops.
            let _ = wait.await;
        }
        count
    }
}

#[derive(Debug, Default)]
struct Claimed {
    loading: Vec<oneshot::Receiver<()>>,
    others: Vec<Owner>,
}

/// A pool of this replica.
#[derive(Debug)]
struct Entry {
    inbox: mpsc::Sender<Note>,
    epoch: u64,
    grant: Grant,
}

type Entries = Arc<Mutex<HashMap<PoolKey, Entry>>>;

/// See the module.
#[derive(Debug)]
pub struct Registry {
    context: Context,
    leases: Arc<dyn LeaseStore>,
    presence: Presence,
    entries: Entries,
    /// One claim at a time: the second would raise the epoch of the first.
    claiming: tokio::sync::Mutex<()>,
    next_conn: AtomicU64,
    shutdown: CancellationToken,
}

fn locked(entries: &Entries) -> MutexGuard<'_, HashMap<PoolKey, Entry>> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// No actors yet. They stop at `shutdown`.
    pub fn new(context: Context, leases: Arc<dyn LeaseStore>, presence: Presence, shutdown: CancellationToken) -> Self {
        Self {
            context,
            leases,
            presence,
            entries: Entries::default(),
            claiming: tokio::sync::Mutex::default(),
            next_conn: AtomicU64::new(1),
            shutdown,
        }
    }

    /// Starts the actors of the pools that have something to do and are not
    /// another's; [`keep`](Self::keep) and [`follow`](Self::follow) have to go on
    /// from there.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn recover(&self) -> Result<Recovery, Error> {
        // Before the first claim: what comes later is not loaded for certain.
        let after = self.leases.last_change().await?;
        if self.leases.is_shared() {
            self.leases.renew_pools(&self.presence).await?;
        }
        let standing = self.leases.standing().await?;
        let share = if self.leases.is_shared() { share(&standing) } else { standing.free.len() };
        let free = standing.free.into_iter().take(share).collect();
        let loading = self.claim(free).await?.loading;
        Ok(Recovery { after, loading })
    }

    /// The number of a new stream.
    pub fn new_conn(&self) -> Conn {
        self.next_conn.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether other replicas may have pools.
    pub fn is_shared(&self) -> bool {
        self.leases.is_shared()
    }

    /// The inbox of a pool's actor, if it is here.
    pub fn here(&self, account: &AccountName, pool: &PoolId) -> Option<mpsc::Sender<Note>> {
        let entries = locked(&self.entries);
        let entry = entries.get(&(account.clone(), pool.clone()))?;
        Some(entry.inbox.clone())
    }

    /// Where the scheduler of a pool is. If nobody has the pool, it is here.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn find(&self, account: &AccountName, pool: &PoolId) -> Result<Place, Error> {
        if let Some(inbox) = self.here(account, pool) {
            return Ok(Place::Here(inbox));
        }
        if self.leases.is_shared()
            && let Some(owner) = self.leases.owner_of(account, pool).await?
            && *owner.id != *self.leases.replica()
        {
            return Ok(Place::There(owner));
        }
        let mut claimed = self.claim(vec![(account.clone(), pool.clone())]).await?;
        match (self.here(account, pool), claimed.others.pop()) {
            (Some(inbox), _) => Ok(Place::Here(inbox)),
            (None, Some(owner)) => Ok(Place::There(owner)),
            (None, None) => Err(Error::Unavailable("the pool has just been given up; repeat the call")),
        }
    }

    /// Tells a pool's actor something. If it is at another replica, that one
    /// finds changes of jobs and tasks by itself; commands are not for it, and
    /// who waits for an answer hears that there is none.
    pub async fn tell(&self, account: &AccountName, pool: &PoolId, note: Note) {
        let inbox = match self.here(account, pool) {
            Some(inbox) => Some(inbox),
            // What is new may be the first that its pool has to do.
            None if !self.leases.is_shared() || matches!(note, Note::JobChanged(_)) => {
                match self.find(account, pool).await {
                    Ok(Place::Here(inbox)) => Some(inbox),
                    Ok(Place::There(_)) => None,
                    Err(error) => {
                        tracing::warn!(%account, pool.id = %pool, %error, "the scheduler of a pool was not found");
                        None
                    }
                }
            }
            None => None,
        };
        if let Some(inbox) = inbox {
            // It is gone only when the pool is lost or the service stops; whoever
            // has the pool next reads the store.
            let _ = inbox.send(note).await;
        }
    }

    /// Claims pools and starts the actors of those that are ours now.
    async fn claim(&self, mut pools: Vec<PoolKey>) -> Result<Claimed, Error> {
        let mut claimed = Claimed::default();
        let _one = self.claiming.lock().await;
        pools.retain(|(account, pool)| self.here(account, pool).is_none());
        if pools.is_empty() {
            return Ok(claimed);
        }
        let until = Instant::now() + self.presence.lease;
        let claims = self.leases.claim_pools(&self.presence, pools.clone()).await?;
        for (key, claim) in pools.into_iter().zip(claims) {
            match claim {
                Claim::Ours(epoch) => claimed.loading.push(self.start(key, epoch, until)),
                Claim::Other(owner) => claimed.others.push(owner),
            }
        }
        Ok(claimed)
    }

    fn start(&self, key: PoolKey, epoch: u64, until: Instant) -> oneshot::Receiver<()> {
        let (inbox, notes) = mpsc::channel(INBOX);
        let (ready, wait) = oneshot::channel();
        let fence = Fence { pool: key.1.clone(), owner: self.leases.replica(), epoch };
        let shared = self.leases.is_shared();
        let (grant, tenure) = Tenure::new(fence, shared.then_some(until));
        let actor = Actor::new(key.0.clone(), key.1.clone(), self.context.clone(), tenure);
        if shared {
            tracing::info!(account = %key.0, pool.id = %key.1, epoch, "this replica schedules the pool from here on");
        }
        let running = actor.run(notes, ready, self.shutdown.clone());
        let (entries, of) = (Arc::downgrade(&self.entries), key.clone());
        locked(&self.entries).insert(key, Entry { inbox, epoch, grant });
        kiln_telemetry::spawn(async move {
            running.await;
            if let Some(entries) = entries.upgrade() {
                let mut entries = locked(&entries);
                if entries.get(&of).is_some_and(|entry| entry.epoch == epoch) {
                    entries.remove(&of);
                }
            }
        });
        wait
    }

    /// Renews the leases and claims pools that nobody has, until `shutdown`; then
    /// gives all back.
    pub async fn keep(&self, shutdown: CancellationToken) {
        let mut tick = interval((self.presence.lease / RENEWALS).max(Duration::from_millis(1)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut left_over = HashSet::new();
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = shutdown.cancelled() => break,
            }
            let looked = tokio::select! {
                looked = self.renew_and_claim(&mut left_over) => looked,
                () = shutdown.cancelled() => break,
            };
            if let Err(error) = looked {
                tracing::warn!(%error, "leases of pools could not be renewed; without that they run out");
            }
        }
        locked(&self.entries).clear();
        match tokio::time::timeout(GIVE_BACK, self.leases.release_pools()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "pools were not given back; their leases run out"),
            Err(_) => tracing::warn!("pools were not given back in time; their leases run out"),
        }
    }

    async fn renew_and_claim(&self, left_over: &mut HashSet<PoolKey>) -> Result<(), Error> {
        let mut forgotten = Vec::new();
        {
            let _one = self.claiming.lock().await;
            let until = Instant::now() + self.presence.lease;
            let held = self.leases.renew_pools(&self.presence).await?;
            let held: HashMap<PoolKey, u64> =
                held.into_iter().map(|held| ((held.account, held.pool), held.epoch)).collect();
            let mut entries = locked(&self.entries);
            entries.retain(|key, entry| {
                let ours = held.get(key) == Some(&entry.epoch);
                if ours {
                    entry.grant.extend(until);
                } else {
                    tracing::warn!(account = %key.0, pool.id = %key.1, "the pool belongs to another replica now");
                }
                ours
            });
            // The lease had run out here, and nobody took the pool.
            forgotten.extend(held.into_keys().filter(|key| !entries.contains_key(key)));
        }
        let standing = self.leases.standing().await?;
        let share = share(&standing);
        // What nobody took within a whole round is taken by whoever sees it first.
        let was_free = std::mem::take(left_over);
        let (mut wanted, mut taken) = (forgotten, 0);
        for key in standing.free {
            if taken < share || was_free.contains(&key) {
                taken += 1;
                wanted.push(key);
            } else {
                left_over.insert(key);
            }
        }
        self.claim(wanted).await?;
        Ok(())
    }

    /// Tells the actors here what was changed through other replicas after the
    /// change `after`, until `shutdown`.
    pub async fn follow(&self, mut after: u64, shutdown: CancellationToken) {
        let mut pace = Pace::new(FOLLOW.0, FOLLOW.1);
        loop {
            // Before the look, so that nothing falls between look and wait.
            let committed = self.leases.committed_elsewhere();
            pace.done();
            let changes = tokio::select! {
                changes = self.leases.changes(after, CHANGES) => changes,
                () = shutdown.cancelled() => return,
            };
            match changes {
                Ok(changes) if !changes.is_empty() => {
                    for row in changes {
                        after = row.id;
                        self.pass_on(row).await;
                    }
                    continue;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "changes made through other replicas could not be read; trying again");
                    pace.wait(UNHEARD);
                }
            }
            tokio::select! {
                () = committed => {}
                () = tokio::time::sleep(UNHEARD) => {}
                () = shutdown.cancelled() => return,
            }
            tokio::select! {
                () = tokio::time::sleep_until(pace.ready_at()) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn pass_on(&self, row: ChangeRow) {
        if row.own {
            return;
        }
        let inboxes: Vec<mpsc::Sender<Note>> = match &row.pool {
            Some(pool) => self.here(&row.account, pool).into_iter().collect(),
            None => {
                let entries = locked(&self.entries);
                let of_account = entries.iter().filter(|((account, _), _)| *account == row.account);
                of_account.map(|(_, entry)| entry.inbox.clone()).collect()
            }
        };
        for inbox in inboxes {
            // As in `tell`.
            let _ = inbox.send(Note::Elsewhere(row.change.clone())).await;
        }
    }
}

/// How many of the free pools a replica takes at once.
fn share(standing: &Standing) -> usize {
    standing.all.div_ceil(standing.replicas.max(1)).saturating_sub(standing.ours)
}
