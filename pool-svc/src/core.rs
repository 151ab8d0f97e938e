//! What the calls, the control streams and the reconciler share.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_auth::SecretKey;
use kiln_error::Error;
use kiln_ids::NodeId;
use kiln_time::Timestamp;
use tokio::sync::{Notify, watch};

use crate::api::Peer;
use crate::config::Config;
use crate::domain::event::{Fact, NodeFact};
use crate::domain::node::NodeEvent;
use crate::domain::{Event, Node, NodeName, NodeState, Pool, PoolName, Refused};
use crate::metrics::Metrics;
use crate::provider::Provider;
use crate::sessions::Sessions;
use crate::store::{Change, NodeWrite, Outcome, Replica, Request, Store, StoreError};
use crate::transfers::Transfers;

/// Writers that keep losing races give up after so many tries.
const MAX_TRIES: usize = 20;

/// See the module.
#[derive(Debug)]
pub struct Core {
    /// Settings.
    pub config: Config,
    /// Pools and nodes.
    pub store: Arc<dyn Store>,
    /// Makes nodes, if this service does.
    pub provider: Option<Arc<dyn Provider>>,
    /// Control streams.
    pub sessions: Arc<Sessions>,
    /// File questions.
    pub transfers: Arc<Transfers>,
    /// Pools that need a look.
    pub wakeups: Wakeups,
    /// Counters.
    pub metrics: Metrics,
    /// Signs node tokens.
    pub cluster_key: Arc<SecretKey>,
    /// Whether it is this replica's turn.
    pub duty: Duty,
    /// This replica.
    pub replica: Replica,
    /// The one that serves, while it is another.
    pub peer: Peer,
}

/// Control streams and questions about files live in one process, so of several
/// replicas one serves; the others pass calls on. At first it is another's turn.
#[derive(Debug, Default)]
pub struct Duty(watch::Sender<Option<Timestamp>>);

impl Duty {
    /// It begins.
    pub fn begin(&self, now: Timestamp) {
        self.0.send_replace(Some(now));
    }

    /// It is another's turn, or nobody's.
    pub fn end(&self) {
        self.0.send_replace(None);
    }

    /// Since when it is ours; nodes are not silent before.
    pub fn since(&self) -> Option<Timestamp> {
        *self.0.borrow()
    }

    /// Completes when a turn begins or ends.
    pub async fn changed(&self) {
        // The sender lives in `self`, so the channel is open.
        let _ = self.0.subscribe().changed().await;
    }
}

/// Pools the reconciler has to look at.
#[derive(Debug, Default)]
pub struct Wakeups {
    pools: Mutex<BTreeSet<PoolName>>,
    notify: Notify,
}

impl Wakeups {
    /// This pool may not be where it should be.
    pub fn wake(&self, pool: PoolName) {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).insert(pool);
        self.notify.notify_one();
    }

    /// The pools to look at; empties the set.
    pub fn take(&self) -> BTreeSet<PoolName> {
        std::mem::take(&mut *self.pools.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Completes when there is something to take.
    pub async fn wait(&self) {
        self.notify.notified().await;
    }
}

/// Puts a node's event into a change: the record, and what is announced.
///
/// # Errors
/// If the node's state does not allow it.
pub fn apply_node(
    change: &mut Change,
    pool: &Pool,
    node: &mut Node,
    event: NodeEvent,
    reason: &str,
    now: Timestamp,
) -> Result<Option<NodeState>, Refused> {
    let before = node.clone();
    let old = node.apply(event, now)?;
    if let Some(old) = old {
        change.events.push(Event::node(pool, node, NodeFact::State, Some(old), reason, now));
    }
    if *node != before {
        change.node_writes.retain(|write| !matches!(write, NodeWrite::Update(other) if other.id == node.id));
        change.node_writes.push(NodeWrite::Update(node.clone()));
    }
    Ok(old)
}

impl Core {
    /// Writes a change and logs what it announces.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub async fn commit(&self, change: Change) -> Result<Outcome, StoreError> {
        if change.is_empty() {
            return Ok(Outcome::Written);
        }
        let events = change.events.clone();
        let outcome = self.store.commit(change).await?;
        if outcome == Outcome::Written {
            events.iter().for_each(log);
        }
        Ok(outcome)
    }

    /// The pool.
    ///
    /// # Errors
    /// [`Refused::PoolNotFound`].
    pub async fn pool(&self, name: &PoolName) -> Result<Pool, Error> {
        Ok(self.store.pool(name).await?.ok_or_else(|| Refused::PoolNotFound(name.pool.clone()))?)
    }

    /// The pool and some of its nodes, in the order of `ids`.
    ///
    /// # Errors
    /// If one of them does not exist.
    pub async fn pool_and_nodes(&self, name: &PoolName, ids: &[NodeId]) -> Result<(Pool, Vec<Node>), Error> {
        let pool = self.pool(name).await?;
        let mut nodes = Vec::with_capacity(ids.len());
        for id in ids {
            let missing = || Refused::NodeNotFound { pool: pool.id.clone(), node: id.clone() };
            nodes.push(self.store.node(&name.node(id)).await?.ok_or_else(missing)?);
        }
        Ok((pool, nodes))
    }

    /// Carries out a client's change of an existing pool or of its nodes.
    /// `decide` gets the present records and says what to write and answer; it
    /// is asked again if somebody else was faster.
    ///
    /// # Errors
    /// What `decide` says, a missing pool or node, or a failing store.
    pub async fn mutate<R, F>(
        &self,
        name: &PoolName,
        method: &'static str,
        request_id: &str,
        nodes: &[NodeId],
        decide: F,
    ) -> Result<R, Error>
    where
        R: prost::Message + Default,
        F: Fn(Pool, Vec<Node>, &mut Change, Timestamp) -> Result<R, Error> + Send + Sync,
    {
        if let Some(answer) = self.store.answer(&name.account, method, request_id).await? {
            return repeated(&answer);
        }
        for _ in 0..MAX_TRIES {
            let (pool, records) = self.pool_and_nodes(name, nodes).await?;
            let now = Timestamp::now();
            let mut change = Change::new(name.clone(), now);
            let answer = decide(pool, records, &mut change, now)?;
            change.request = Some(Request { method, id: request_id.to_owned(), answer: answer.encode_to_vec() });
            let orders: Vec<_> = change
                .node_writes
                .iter()
                .filter_map(|write| match write {
                    NodeWrite::Update(node) => node.command.map(|command| (name.node(&node.id), command)),
                    NodeWrite::Insert(_) | NodeWrite::Delete(_) => None,
                })
                .collect();
            match self.commit(change).await {
                Ok(Outcome::Written) => {
                    for (node, command) in orders {
                        self.sessions.deliver(&node, command);
                    }
                    self.wakeups.wake(name.clone());
                    return Ok(answer);
                }
                Ok(Outcome::Repeated(answer)) => return repeated(&answer),
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Conflict.into())
    }

    /// Something happened to a node: writes it, tells the agent what it has to
    /// do, and has the pool looked at if the state changed. `None` if the node
    /// does not exist any more.
    ///
    /// # Errors
    /// If the state does not allow it, or the store fails.
    pub async fn node_event(
        &self,
        name: &NodeName,
        event: NodeEvent,
        reason: &str,
    ) -> Result<Option<(Pool, Node)>, Error> {
        for _ in 0..MAX_TRIES {
            let Some(pool) = self.store.pool(&name.pool_name()).await? else { return Ok(None) };
            let Some(mut node) = self.store.node(name).await? else { return Ok(None) };
            let before = node.state;
            let now = Timestamp::now();
            let mut change = Change::new(name.pool_name(), now);
            apply_node(&mut change, &pool, &mut node, event.clone(), reason, now)?;
            match self.commit(change).await {
                Ok(_) => {
                    if let Some(command) = node.command {
                        self.sessions.deliver(name, command);
                    }
                    if node.state != before {
                        self.wakeups.wake(name.pool_name());
                    }
                    return Ok(Some((pool, node)));
                }
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Conflict.into())
    }
}

/// The answer that was given the first time.
///
/// # Errors
/// If it cannot be read any more.
pub fn repeated<R: prost::Message + Default>(answer: &[u8]) -> Result<R, Error> {
    R::decode(answer).map_err(|_| Error::internal("the answer to the earlier request cannot be read"))
}

fn log(event: &Event) {
    let (account, pool) = (&event.account, &event.pool);
    match &event.fact {
        Fact::Pool { what, allocation, target_dedicated, target_low_priority, current, reason, .. } => {
            tracing::info!(%account, pool.id = %pool, allocation, target_dedicated, target_low_priority, current,
                reason, "pool {what:?}");
        }
        // Told where it was decided.
        Fact::AutoPool { .. } => {}
        Fact::Node { what, node, old, new, reason, .. } => {
            let name = |state: &Option<NodeState>| state.as_ref().map_or("-", NodeState::name);
            // Between these two a node moves with every task.
            let busy = |state: &Option<NodeState>| matches!(state, Some(NodeState::Idle | NodeState::Running));
            if busy(old) && busy(new) {
                tracing::debug!(%account, pool.id = %pool, node.id = %node, old = name(old), new = name(new), "node");
            } else {
                tracing::info!(%account, pool.id = %pool, node.id = %node, old = name(old), new = name(new), reason,
                    "node {what:?}");
            }
        }
    }
}
