//! What has to be done so that a pool becomes what was asked for.
//!
//! [`plan`] compares the records with what the provider and the control streams
//! show and says what to do; it changes nothing. Whoever carries the decisions
//! out does so in order, commits the records first, and plans again: the same
//! path serves creation, resize, deletion, lost agents and a restart of the
//! service. An empty plan means that the pool is where it should be.
//!
//! Nodes that joined are no provider's: nobody makes or takes them away, they
//! count for no target, and a resize neither waits for them nor chooses them.
//! They are seen off when they are drained, or have been gone for too long.
//!
//! Victims of a smaller target, first to last: broken nodes (unusable, start
//! task failed, unknown), nodes that are not ready yet, offline, idle, then
//! those with the fewest running tasks; among equals the youngest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kiln_ids::NodeId;
use kiln_time::Timestamp;

use crate::domain::node::{Node, NodeEvent, NodeState};
use crate::domain::pool::{Allocation, Pool, PoolState, ResizeError};

/// What is seen of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight {
    /// The provider has something of this name.
    pub exists: bool,
    /// And its agent lives.
    pub alive: bool,
    /// A control stream is open.
    pub connected: bool,
    /// Last sign of life, or the start of this service.
    pub last_contact: Timestamp,
}

/// Durations the plan works with.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Silence that makes a node unknown.
    pub silence: Duration,
    /// Time as unknown that makes it unusable.
    pub unusable_after: Duration,
    /// Time a new agent has to register.
    pub start_timeout: Duration,
    /// Time a node has to stop its tasks when it does not wait for them.
    pub drain_timeout: Duration,
    /// Nodes the provider is asked to make in one go.
    pub max_starts: usize,
    /// Records that are added in one go.
    pub max_additions: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(15),
            unusable_after: Duration::from_secs(600),
            start_timeout: Duration::from_secs(300),
            drain_timeout: Duration::from_secs(60),
            max_starts: 32,
            max_additions: 256,
        }
    }
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Make records of new nodes.
    Add {
        /// Of which kind.
        dedicated: bool,
        /// How many.
        count: u32,
    },
    /// Something happened to a node.
    Apply {
        /// The node.
        node: NodeId,
        /// What.
        event: NodeEvent,
        /// For the log and the event.
        reason: &'static str,
    },
    /// Ask the provider to make it.
    Start(NodeId),
    /// Tell its agent to go and ask the provider to take it away.
    TakeAway(NodeId),
    /// Nothing is left of it: remove its record.
    Forget(NodeId),
    /// It joined: remove its record, and tell its agent to go if it is there.
    SeeOff(NodeId),
    /// The resize has ended.
    EndResize(Vec<ResizeError>),
    /// Nothing is left of the pool: remove its record.
    ForgetPool,
}

/// See the module.
pub fn plan(
    pool: &Pool,
    nodes: &[Node],
    sights: &BTreeMap<NodeId, Sight>,
    now: Timestamp,
    limits: &Limits,
) -> Vec<Decision> {
    let mut decisions = Vec::new();
    let mut starts = 0;
    let gave_up = no_more_nodes(pool, nodes, now);
    let mut sizing = Vec::new();
    size(pool, nodes, now, limits, &mut sizing);
    let begin_to_leave: BTreeSet<NodeId> = sizing
        .iter()
        .filter_map(|decision| match decision {
            Decision::Apply { node, .. } => Some(node.clone()),
            _ => None,
        })
        .collect();
    for node in nodes.iter().filter(|node| !begin_to_leave.contains(&node.id)) {
        let sight = sights.get(&node.id).copied().unwrap_or(Sight {
            exists: false,
            alive: false,
            connected: false,
            last_contact: Timestamp::default(),
        });
        if node.state.is_leaving() {
            decisions.extend(leave(node, sight, now, limits));
        } else if node.joined {
            decisions.extend(tend_joined(node, sight, now, limits));
        } else if gave_up && !node.allocated && !sight.alive {
            // It was never made, and nobody waits for it any more.
            let remains = if sight.exists { Decision::TakeAway } else { Decision::Forget };
            decisions.push(remains(node.id.clone()));
        } else {
            for decision in tend(node, sight, now, limits) {
                if matches!(decision, Decision::Start(_)) {
                    if starts == limits.max_starts {
                        continue;
                    }
                    starts += 1;
                }
                decisions.push(decision);
            }
        }
    }
    decisions.extend(sizing);
    decisions
}

/// Whether nodes that were not made so far will not be made.
fn no_more_nodes(pool: &Pool, nodes: &[Node], now: Timestamp) -> bool {
    match (pool.state, pool.allocation) {
        // They leave like all others.
        (PoolState::Deleting, _) => false,
        (PoolState::Active, Allocation::Steady | Allocation::Stopping) => true,
        (PoolState::Active, Allocation::Resizing(resize)) => {
            !is_met(pool, nodes) && now.since(resize.started) >= resize.timeout
        }
    }
}

fn staying(nodes: &[Node], dedicated: bool) -> impl Iterator<Item = &Node> {
    nodes.iter().filter(move |node| node.dedicated == dedicated && !node.joined && !node.state.is_leaving())
}

fn is_met(pool: &Pool, nodes: &[Node]) -> bool {
    nodes.iter().all(|node| node.joined || !node.state.is_leaving() && node.allocated)
        && [true, false]
            .into_iter()
            .all(|dedicated| staying(nodes, dedicated).count() == pool.target.of(dedicated) as usize)
}

/// What a node on its way out needs.
fn leave(node: &Node, sight: Sight, now: Timestamp, limits: &Limits) -> Option<Decision> {
    let NodeState::LeavingPool { option, drained } = node.state else { return None };
    if !sight.exists && !node.joined {
        return Some(Decision::Forget(node.id.clone()));
    }
    let silent = !sight.connected && now.since(sight.last_contact) >= limits.silence;
    // An agent that has not registered has no tasks.
    let never_there = node.incarnation.is_empty() && !sight.connected;
    let too_slow = !option.waits_for_tasks() && now.since(node.state_since) >= limits.drain_timeout;
    if node.joined {
        return (drained || silent || never_there || too_slow).then(|| Decision::SeeOff(node.id.clone()));
    }
    (drained || !sight.alive || silent || never_there || too_slow).then(|| Decision::TakeAway(node.id.clone()))
}

/// What a node that joined, and stays, needs.
fn tend_joined(node: &Node, sight: Sight, now: Timestamp, limits: &Limits) -> Option<Decision> {
    let apply = |when: bool, event, reason| when.then(|| Decision::Apply { node: node.id.clone(), event, reason });
    let see_off = |gone: bool| gone.then(|| Decision::SeeOff(node.id.clone()));
    let silence = now.since(sight.last_contact);
    let waited = now.since(node.state_since);
    let back = sight.connected && silence < limits.silence;
    match node.state {
        // Nobody would start its agent again.
        NodeState::Creating => see_off(waited >= limits.start_timeout),
        NodeState::Starting if !sight.connected && waited < limits.start_timeout => None,
        NodeState::Starting
        | NodeState::WaitingForStartTask
        | NodeState::StartTaskFailed
        | NodeState::Idle
        | NodeState::Running
        | NodeState::Offline
        | NodeState::Rebooting => apply(silence >= limits.silence, NodeEvent::Silent, "no heartbeat"),
        NodeState::Unknown | NodeState::Unusable { .. } if back => {
            apply(can_be_heard(node), NodeEvent::Heard, "heartbeats again")
        }
        NodeState::Unknown => see_off(waited >= limits.unusable_after),
        NodeState::Unusable { .. } => see_off(!sight.connected && silence >= limits.unusable_after),
        NodeState::LeavingPool { .. } => None,
    }
}

/// What a node that stays needs.
fn tend(node: &Node, sight: Sight, now: Timestamp, limits: &Limits) -> Vec<Decision> {
    let apply = |event, reason| Decision::Apply { node: node.id.clone(), event, reason };
    let start = || (now >= node.next_start).then(|| Decision::Start(node.id.clone()));
    if !sight.alive {
        let lost = node.allocated && !matches!(node.state, NodeState::Creating | NodeState::Unknown);
        let lost = lost.then(|| apply(NodeEvent::AgentGone, "the agent is gone"));
        return lost.into_iter().chain(start()).collect();
    }
    if !node.allocated {
        // Made before the service could note it.
        return vec![apply(NodeEvent::Made { incarnation: node.incarnation.clone() }, "found at the provider")];
    }
    let silence = now.since(sight.last_contact);
    let decision = match node.state {
        NodeState::Creating if now.since(node.state_since) >= limits.start_timeout => {
            Some(apply(NodeEvent::StartTimedOut, "the agent did not register in time"))
        }
        NodeState::Starting if node.incarnation.is_empty() && now.since(node.state_since) >= limits.start_timeout => {
            Some(apply(NodeEvent::StartTimedOut, "the agent did not register in time"))
        }
        // An agent that was started again needs its time to register.
        NodeState::Starting if !sight.connected && now.since(node.state_since) < limits.start_timeout => None,
        NodeState::Rebooting if silence >= limits.silence => Some(Decision::TakeAway(node.id.clone())),
        NodeState::Starting
        | NodeState::WaitingForStartTask
        | NodeState::StartTaskFailed
        | NodeState::Idle
        | NodeState::Running
        | NodeState::Offline
            if silence >= limits.silence =>
        {
            Some(apply(NodeEvent::Silent, "no heartbeat"))
        }
        NodeState::Unknown | NodeState::Unusable { .. }
            if sight.connected && silence < limits.silence && can_be_heard(node) =>
        {
            Some(apply(NodeEvent::Heard, "heartbeats again"))
        }
        NodeState::Unknown if now.since(node.state_since) >= limits.unusable_after => {
            Some(apply(NodeEvent::SilentTooLong, "no heartbeat for a long time"))
        }
        NodeState::Creating
        | NodeState::Starting
        | NodeState::WaitingForStartTask
        | NodeState::StartTaskFailed
        | NodeState::Idle
        | NodeState::Running
        | NodeState::Offline
        | NodeState::Rebooting
        | NodeState::Unknown
        | NodeState::Unusable { .. }
        | NodeState::LeavingPool { .. } => None,
    };
    decision.into_iter().collect()
}

/// Whether hearing of it again would change its state.
fn can_be_heard(node: &Node) -> bool {
    use crate::domain::agent::Phase;
    use crate::domain::node::Cause;
    match node.state {
        NodeState::Unusable { cause: Cause::Agent } => false,
        // A connected agent that reports "unusable" would alternate otherwise.
        NodeState::Unusable { .. } => node.view.phase != Phase::Unusable,
        _ => true,
    }
}

/// More or fewer nodes, and the end of a resize.
fn size(pool: &Pool, nodes: &[Node], now: Timestamp, limits: &Limits, decisions: &mut Vec<Decision>) {
    match (pool.state, pool.allocation) {
        (PoolState::Deleting, _) => {
            if nodes.is_empty() {
                decisions.push(Decision::ForgetPool);
            }
            // Nodes that were waiting for their tasks do not wait any longer.
            let all = nodes.iter().filter(|node| match node.state {
                NodeState::LeavingPool { option, drained } => option.waits_for_tasks() && !drained,
                _ => true,
            });
            decisions.extend(all.map(|node| removal(node, pool, "the pool is being deleted")));
        }
        (PoolState::Active, Allocation::Steady) => {}
        (PoolState::Active, Allocation::Stopping) => {
            let error = ResizeError::new("ResizeStopped", "the resize was stopped; nodes that were made stay");
            decisions.push(Decision::EndResize(vec![error]));
        }
        (PoolState::Active, Allocation::Resizing(resize)) => {
            if is_met(pool, nodes) {
                decisions.push(Decision::EndResize(Vec::new()));
            } else if now.since(resize.started) >= resize.timeout {
                decisions.push(Decision::EndResize(timeout_errors(pool, nodes)));
            } else {
                for dedicated in [true, false] {
                    let have = u32::try_from(staying(nodes, dedicated).count()).unwrap_or(u32::MAX);
                    let want = pool.target.of(dedicated);
                    if have < want {
                        decisions.push(Decision::Add { dedicated, count: (want - have).min(limits.max_additions) });
                    } else if have > want {
                        let chosen = victims(nodes, dedicated, (have - want) as usize);
                        decisions.extend(chosen.into_iter().map(|node| removal(node, pool, "the pool shrinks")));
                    }
                }
            }
        }
    }
}

fn removal(node: &Node, pool: &Pool, reason: &'static str) -> Decision {
    let option = match pool.allocation {
        Allocation::Resizing(resize) => resize.option,
        Allocation::Steady | Allocation::Stopping => Default::default(),
    };
    Decision::Apply { node: node.id.clone(), event: NodeEvent::RemovalRequested(option), reason }
}

fn timeout_errors(pool: &Pool, nodes: &[Node]) -> Vec<ResizeError> {
    let mut errors = Vec::new();
    let own = || nodes.iter().filter(|node| !node.joined);
    let made = own().filter(|node| node.allocated && !node.state.is_leaving()).count();
    if made < pool.target.total() as usize {
        errors.push(ResizeError::new(
            "AllocationTimedout",
            format!("{made} of {} nodes were made within the resize timeout", pool.target.total()),
        ));
    }
    let leaving = own().filter(|node| node.state.is_leaving()).count();
    if leaving > 0 {
        errors.push(ResizeError::new(
            "RemoveNodesFailed",
            format!("{leaving} nodes have not left within the resize timeout; they leave when their tasks have ended"),
        ));
    }
    if errors.is_empty() {
        errors.push(ResizeError::new("AllocationTimedout", "the target was not met within the resize timeout"));
    }
    errors
}

/// The nodes that have to go first.
pub fn victims(nodes: &[Node], dedicated: bool, count: usize) -> Vec<&Node> {
    let mut candidates: Vec<&Node> = staying(nodes, dedicated).collect();
    candidates.sort_by_key(|node| {
        let (rank, tasks) = match node.state {
            NodeState::Unusable { .. } | NodeState::StartTaskFailed | NodeState::Unknown => (0, 0),
            NodeState::Creating | NodeState::Starting | NodeState::WaitingForStartTask | NodeState::Rebooting => (1, 0),
            NodeState::Offline => (2, 0),
            NodeState::Idle => (3, 0),
            NodeState::Running | NodeState::LeavingPool { .. } => (4, node.view.running_tasks),
        };
        (rank, tasks, std::cmp::Reverse((node.allocation_time, number(&node.id))))
    });
    candidates.truncate(count);
    candidates
}

/// The number at the end of a node id.
fn number(id: &NodeId) -> u64 {
    id.as_str().rsplit_once('-').and_then(|(_, number)| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
