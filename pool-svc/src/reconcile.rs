//! Makes pools become what was asked for.
//!
//! One loop looks at every pool that was touched (by a client, an agent's
//! report, an agent's end) and at all pools from time to time. A look reads the
//! records and what the provider shows, plans (`domain::plan`), commits what was
//! decided, then acts, and looks again until nothing is left to do. Whoever is
//! killed between two steps leaves records from which the next look goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kiln_auth::token::{self, Claims, Principal};
use kiln_error::Error;
use kiln_grpc::caller::now_seconds;
use kiln_ids::NodeId;
use kiln_node::JoinConfig;
use kiln_proto::pool::v1::control_down::Message;
use kiln_proto::pool::v1::{Leave, PoolSpec};
use kiln_time::Timestamp;
use prost::Message as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::core::{Core, apply_node};
use crate::domain::event::{NodeFact, PoolFact};
use crate::domain::node::NodeEvent;
use crate::domain::plan::{Decision, Limits, Sight, plan};
use crate::domain::pool::{Allocation, PoolState, ResizeError};
use crate::domain::{Event, Node, NodeName, Pool, PoolName};
use crate::provider::{NodePlan, ObservedNode, Provider, ProviderError};
use crate::store::{Change, NodeWrite, PoolWrite, StoreError};

/// All pools are looked at this often, whatever happened.
const SCAN: Duration = Duration::from_secs(5);
/// Looks at one pool in a row; then others have their turn.
const MAX_LOOKS: usize = 16;
/// Pools read at once by a scan.
const PAGE: u32 = 500;
/// A join token of a node is valid this long: an agent registers with it again
/// after a reboot of its node. It opens nothing else, and nothing at all when the
/// node's record is gone. The file that holds it can be read by the agent only.
const JOIN_TOKEN_SECONDS: i64 = 365 * 86_400;
/// Old answers to requests are forgotten this often.
const FORGET: Duration = Duration::from_secs(600);

/// The end of an auto pool is remembered this long: an announcement that is
/// older cannot come any more.
const AUTO_POOL_KEPT: Duration = Duration::from_secs(30 * 86_400);

/// Runs until `shutdown`.
pub async fn run(core: Arc<Core>, shutdown: CancellationToken) {
    let check = (core.config.silence_limit() / 4).clamp(Duration::from_millis(20), Duration::from_secs(1));
    let mut next_scan = Instant::now();
    let mut next_forget = Instant::now() + FORGET;
    let never = Arc::new(tokio::sync::Notify::new());
    let changed = core.provider.as_ref().map_or(never, |provider| provider.changed());
    loop {
        if Instant::now() >= next_scan {
            if let Err(error) = scan(&core).await {
                tracing::warn!(%error, "the pools could not be read; they are looked at later");
            }
            next_scan = Instant::now() + SCAN;
        }
        if Instant::now() >= next_forget {
            if let Err(error) = forget(&core, Timestamp::now()).await {
                tracing::warn!(%error, "old requests could not be forgotten");
            }
            next_forget = Instant::now() + FORGET;
        }
        let limit = Timestamp::now().minus(core.config.silence_limit());
        for node in core.sessions.silent_since(limit) {
            core.wakeups.wake(node.pool_name());
        }
        for pool in core.wakeups.take() {
            if shutdown.is_cancelled() {
                return;
            }
            let _timer = core.metrics.reconcile_seconds.start_timer();
            if let Err(error) = reconcile(&core, &pool).await {
                core.metrics.reconcile_errors.inc();
                tracing::warn!(account = %pool.account, pool.id = %pool.pool, %error,
                    "the pool could not be reconciled; it is tried again");
            }
        }
        core.metrics.agents_connected.set(i64::try_from(core.sessions.connected()).unwrap_or(i64::MAX));
        core.metrics.transfers.set(i64::try_from(core.transfers.count()).unwrap_or(i64::MAX));
        tokio::select! {
            () = core.wakeups.wait() => {}
            // A process of the provider has ended: one of any pool.
            () = changed.notified() => next_scan = Instant::now(),
            () = tokio::time::sleep(check) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn forget(core: &Core, now: Timestamp) -> Result<(), StoreError> {
    core.store.forget_requests(now).await?;
    core.store.forget_auto_pools(now.minus(AUTO_POOL_KEPT)).await?;
    Ok(())
}

/// Has all pools looked at, and takes away what belongs to none.
async fn scan(core: &Core) -> Result<(), Error> {
    let mut after: Option<PoolName> = None;
    let mut known = std::collections::BTreeSet::new();
    loop {
        let page = core.store.pool_names(after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.clone());
        for name in page {
            known.insert(name.clone());
            core.wakeups.wake(name);
        }
    }
    core.metrics.show_nodes(&core.store.total_counts().await?);
    let Some(provider) = &core.provider else { return Ok(()) };
    match provider.observe(None).await {
        Ok(observed) => {
            for node in observed.into_iter().filter(|node| !known.contains(&node.name.pool_name())) {
                // The pool may be newer than the list above.
                if core.store.pool(&node.name.pool_name()).await?.is_none() {
                    take_away(core, &**provider, &node.name, "its pool does not exist").await;
                }
            }
        }
        Err(error) => provider_failed(core, "observe", &error),
    }
    Ok(())
}

fn provider_failed(core: &Core, call: &str, error: &ProviderError) {
    core.metrics.provider_errors.with_label_values(&[call]).inc();
    tracing::warn!(call, %error, "the provider failed");
}

/// Looks at one pool until nothing is left to do.
async fn reconcile(core: &Core, name: &PoolName) -> Result<(), Error> {
    for _ in 0..MAX_LOOKS {
        if !look(core, name).await? {
            return Ok(());
        }
    }
    // Others first, then this one again.
    core.wakeups.wake(name.clone());
    Ok(())
}

/// One look; returns whether another one may find more to do.
async fn look(core: &Core, name: &PoolName) -> Result<bool, Error> {
    let Some((mut pool, mut nodes)) = core.store.pool_with_nodes(name).await? else { return Ok(false) };
    let observed = match &core.provider {
        Some(provider) => match provider.observe(Some(name)).await {
            Ok(observed) => Some(observed),
            Err(error) => {
                // What is not seen must not be taken for gone.
                provider_failed(core, "observe", &error);
                return Ok(false);
            }
        },
        None => None,
    };
    if let (Some(observed), Some(provider)) = (&observed, &core.provider) {
        for stray in observed.iter().filter(|seen| nodes.iter().all(|node| node.id != seen.name.node)) {
            if core.store.node(&stray.name).await?.is_none() {
                take_away(core, &**provider, &stray.name, "the pool does not have it").await;
            }
        }
    }
    let now = Timestamp::now();
    let sights = sights(core, name, &nodes, observed.as_deref());
    let limits = Limits {
        silence: core.config.silence_limit(),
        unusable_after: core.config.unusable_after,
        start_timeout: core.config.start_timeout,
        ..Limits::default()
    };
    let decisions = plan(&pool, &nodes, &sights, now, &limits);
    if decisions.is_empty() {
        return Ok(false);
    }
    let mut work = Work::new(name.clone(), &pool, now);
    for decision in decisions {
        work.take_in(&mut pool, &mut nodes, decision, now)?;
    }
    let Work { mut change, starts, away, gone, pool_gone, .. } = work;
    let current = current(&nodes, &gone);
    if !pool_gone && (pool != work.before || pool.current != current) {
        pool.current = current;
        change.pool_write = Some(PoolWrite::Update(pool.clone()));
    }
    match core.commit(change).await {
        Ok(_) => {}
        Err(StoreError::Conflict) => return Ok(true),
        Err(error) => return Err(error.into()),
    }
    for id in &gone {
        // Of those that joined, the agent may still be there.
        let leave = Message::Leave(Leave { reason: "the pool does not have this node any more".to_owned() });
        if core.sessions.send(&name.node(id), leave).is_ok() {
            tracing::debug!(account = %name.account, pool.id = %name.pool, node.id = %id, "told to leave");
        }
        core.sessions.forget(&name.node(id));
    }
    for node in &nodes {
        if let Some(command) = node.command {
            core.sessions.deliver(&name.node(&node.id), command);
        }
    }
    let Some(provider) = &core.provider else {
        if !starts.is_empty() {
            no_provider(core, name).await?;
        }
        return Ok(true);
    };
    for id in &away {
        take_away(core, &**provider, &name.node(id), "it has left").await;
    }
    let acted = !starts.is_empty();
    start(core, &**provider, &pool, &nodes, starts).await?;
    // What is being taken away is seen when it is gone.
    Ok(acted || away.is_empty())
}

/// Decisions, collected for one commit and what follows it.
struct Work {
    before: Pool,
    change: Change,
    starts: Vec<NodeId>,
    away: Vec<NodeId>,
    gone: Vec<NodeId>,
    pool_gone: bool,
}

impl Work {
    fn new(name: PoolName, pool: &Pool, now: Timestamp) -> Self {
        Self {
            before: pool.clone(),
            change: Change::new(name, now),
            starts: Vec::new(),
            away: Vec::new(),
            gone: Vec::new(),
            pool_gone: false,
        }
    }

    fn take_in(
        &mut self,
        pool: &mut Pool,
        nodes: &mut Vec<Node>,
        decision: Decision,
        now: Timestamp,
    ) -> Result<(), Error> {
        match decision {
            Decision::Add { dedicated, count } => {
                for _ in 0..count {
                    let node = Node::create(pool.take_node_id(), dedicated, now);
                    self.change.events.push(Event::node(pool, &node, NodeFact::Created, None, "", now));
                    self.change.node_writes.push(NodeWrite::Insert(node.clone()));
                    nodes.push(node);
                }
            }
            Decision::Apply { node, event, reason } => {
                if let Some(record) = nodes.iter_mut().find(|record| record.id == node) {
                    apply_node(&mut self.change, pool, record, event, reason, now)?;
                }
            }
            Decision::Start(id) => self.starts.push(id),
            Decision::TakeAway(id) => self.away.push(id),
            Decision::Forget(id) | Decision::SeeOff(id) => {
                if let Some(record) = nodes.iter().find(|record| record.id == id) {
                    let old = Some(record.state);
                    self.change.events.push(Event::node(pool, record, NodeFact::Removed, old, "", now));
                }
                self.change.node_writes.push(NodeWrite::Delete(id.clone()));
                self.gone.push(id);
            }
            Decision::EndResize(errors) => {
                let reason = errors.first().map(|error| error.code.clone()).unwrap_or_default();
                pool.end_resize(errors, now);
                pool.current = current(nodes, &self.gone);
                self.change.events.push(Event::pool(pool, PoolFact::ResizeCompleted, reason, now));
            }
            Decision::ForgetPool => {
                self.pool_gone = true;
                self.change.events.push(Event::pool(pool, PoolFact::Deleted, "", now));
                self.change.pool_write = Some(PoolWrite::Delete(pool.clone()));
            }
        }
        Ok(())
    }
}

/// Nodes the provider has made and that are not gone.
fn current(nodes: &[Node], gone: &[NodeId]) -> crate::domain::pool::Counts {
    let mut counts = crate::domain::pool::Counts::default();
    for node in nodes.iter().filter(|node| node.allocated && !gone.contains(&node.id)) {
        *counts.of_mut(node.dedicated) += 1;
    }
    counts
}

fn sights(core: &Core, name: &PoolName, nodes: &[Node], observed: Option<&[ObservedNode]>) -> BTreeMap<NodeId, Sight> {
    let seen: Option<BTreeMap<&NodeId, bool>> =
        observed.map(|observed| observed.iter().map(|node| (&node.name.node, node.alive)).collect());
    nodes
        .iter()
        .map(|node| {
            let contact = core.sessions.contact(&name.node(&node.id));
            let (connected, last_contact) =
                contact.unwrap_or((false, core.duty.since().unwrap_or_else(Timestamp::now)));
            // Without a provider, and of those that joined, only the streams tell what exists.
            let (exists, alive) = match &seen {
                Some(seen) if !node.joined => match seen.get(&node.id) {
                    Some(alive) => (true, *alive),
                    None => (false, false),
                },
                _ => (node.allocated, node.allocated),
            };
            // A node that was started after this service has not been silent longer than that.
            let last_contact = last_contact.max(node.allocation_time);
            (node.id.clone(), Sight { exists, alive, connected, last_contact })
        })
        .collect()
}

async fn take_away(core: &Core, provider: &dyn Provider, name: &NodeName, reason: &str) {
    let leave = Message::Leave(Leave { reason: reason.to_owned() });
    // Without a stream the provider's signal has to do.
    if core.sessions.send(name, leave).is_err() {
        tracing::debug!(account = %name.account, pool.id = %name.pool, node.id = %name.node,
            "the agent of a leaving node is not connected");
    }
    if let Err(error) = provider.delete(name).await {
        provider_failed(core, "delete", &error);
    }
}

/// Asks the provider for nodes, then notes which it made.
async fn start(
    core: &Core,
    provider: &dyn Provider,
    pool: &Pool,
    nodes: &[Node],
    ids: Vec<NodeId>,
) -> Result<(), Error> {
    if ids.is_empty() {
        return Ok(());
    }
    let name = PoolName { account: pool.account.clone(), pool: pool.id.clone() };
    let vm_size = PoolSpec::decode(pool.settings.as_slice()).map(|spec| spec.vm_size).unwrap_or_default();
    let chosen: Vec<&Node> = nodes.iter().filter(|node| ids.contains(&node.id)).collect();
    let ca_pem = authority(core).await?;
    let plan = |node: &&Node| node_plan(core, &name, pool, node, &vm_size, ca_pem.as_deref());
    let plans: Vec<NodePlan> = chosen.iter().map(plan).collect();
    let made = futures::future::join_all(plans.iter().map(|plan| provider.create(plan))).await;
    for ((plan, node), result) in plans.iter().zip(chosen).zip(made) {
        match result {
            Ok(()) => {
                let event = NodeEvent::Made { incarnation: node.incarnation.clone() };
                core.node_event(&plan.name, event, "started").await?;
            }
            Err(error) => {
                core.node_event(&plan.name, NodeEvent::NotMade, "the provider failed").await?;
                provider_failed(core, "create", &error);
                if let ProviderError::Refused(why) = error {
                    allocation_failed(core, &name, &why).await?;
                }
            }
        }
    }
    Ok(())
}

/// With this a node registers.
pub(crate) fn join_token(core: &Core, pool: &PoolName, node: &Node) -> String {
    let principal = Principal::Join {
        account: pool.account.as_str().to_owned(),
        pool: pool.pool.as_str().to_owned(),
        node: node.id.as_str().to_owned(),
        made_micros: node.allocation_time.as_micros(),
    };
    token::mint(&core.cluster_key, &Claims { principal, expires: now_seconds() + JOIN_TOKEN_SECONDS })
}

/// What agents have to trust.
pub(crate) async fn authority(core: &Core) -> Result<Option<String>, Error> {
    let Some(file) = &core.config.authority else { return Ok(None) };
    let pem = tokio::fs::read_to_string(file).await;
    pem.map(Some).map_err(|error| Error::internal(format!("tls_ca_file {}: {error}", file.display())))
}

fn node_plan(core: &Core, name: &PoolName, pool: &Pool, node: &Node, vm_size: &str, ca_pem: Option<&str>) -> NodePlan {
    let text = |id: &dyn AsRef<str>| id.as_ref().to_owned();
    NodePlan {
        name: name.node(&node.id),
        vm_size: vm_size.to_owned(),
        join: JoinConfig {
            control_endpoint: core.config.control_endpoint.clone(),
            account: text(&pool.account),
            pool_id: text(&pool.id),
            node_id: text(&node.id),
            join_token: join_token(core, name, node),
            ca_pem: ca_pem.map(str::to_owned),
            node_dir: std::path::PathBuf::new(),
        },
    }
}

async fn no_provider(core: &Core, name: &PoolName) -> Result<(), Error> {
    allocation_failed(core, name, "this deployment has no provider that makes nodes").await
}

/// The provider refuses for good: a resize that runs ends with that error.
async fn allocation_failed(core: &Core, name: &PoolName, why: &str) -> Result<(), Error> {
    let Some((mut pool, nodes)) = core.store.pool_with_nodes(name).await? else { return Ok(()) };
    if pool.state != PoolState::Active || !matches!(pool.allocation, Allocation::Resizing(_)) {
        return Ok(());
    }
    let now = Timestamp::now();
    let mut error = ResizeError::new("AllocationFailed", "nodes could not be made");
    error.values.push(("Reason".to_owned(), why.to_owned()));
    let mut change = Change::new(name.clone(), now);
    pool.current = current(&nodes, &[]);
    pool.end_resize(vec![error], now);
    change.events.push(Event::pool(&pool, PoolFact::ResizeCompleted, "AllocationFailed", now));
    change.pool_write = Some(PoolWrite::Update(pool));
    match core.commit(change).await {
        // A lost race is seen by the next look.
        Ok(_) | Err(StoreError::Conflict) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
