//! Events of the domain in the form that goes over the bus.

use kiln_proto::common::v1::{ErrorCategory, FailureInfo};
use kiln_proto::events::v1::event::Payload;
use kiln_proto::events::v1::{AutoPoolFailed, NodeChanged, PoolChanged};
use kiln_proto::pool::v1 as wire;
use kiln_store::outbox::NewEvent;

use crate::domain::event::{AutoPoolFact, Event, Fact, NodeFact, PoolFact};
use crate::domain::{NodeState, PoolState};

/// The event as the outbox keeps it.
pub fn to_outbox(event: Event, traceparent: &str) -> NewEvent {
    let pool = event.pool.as_str();
    let (subject, event_type, payload) = match event.fact {
        Fact::Pool { what, state, allocation, target_dedicated, target_low_priority, current, reason } => (
            format!("pools/{pool}"),
            match what {
                PoolFact::Created => "pool.pool.created",
                PoolFact::Updated => "pool.pool.updated",
                PoolFact::ResizeStarted => "pool.pool.resize_started",
                PoolFact::ResizeCompleted => "pool.pool.resize_completed",
                PoolFact::Deleting => "pool.pool.deleting",
                PoolFact::Deleted => "pool.pool.deleted",
            },
            Payload::Pool(PoolChanged {
                pool_id: pool.to_owned(),
                state: pool_state(state) as i32,
                allocation_state: match allocation {
                    "resizing" => wire::AllocationState::Resizing,
                    "stopping" => wire::AllocationState::Stopping,
                    _ => wire::AllocationState::Steady,
                } as i32,
                target_dedicated_nodes: count(target_dedicated),
                target_low_priority_nodes: count(target_low_priority),
                current_nodes: count(current),
                reason,
            }),
        ),
        Fact::AutoPool { what, owner } => {
            let known = |reason: &str| {
                Payload::Pool(PoolChanged {
                    pool_id: pool.to_owned(),
                    reason: reason.to_owned(),
                    ..PoolChanged::default()
                })
            };
            let (event_type, payload) = match what {
                AutoPoolFact::Made => ("pool.auto_pool.made", known("")),
                AutoPoolFact::Released => ("pool.auto_pool.released", known("its owner has ended")),
                AutoPoolFact::Failed { code, message } => {
                    let category = ErrorCategory::User.into();
                    let failure = Some(FailureInfo { category, code, message, details: Vec::new() });
                    let failed = AutoPoolFailed { pool_id: pool.to_owned(), job_id: owner, failure };
                    ("pool.auto_pool.failed", Payload::AutoPoolFailed(failed))
                }
            };
            (format!("pools/{pool}"), event_type, payload)
        }
        Fact::Node { what, node, old, new, reason, slots, incarnation } => (
            format!("pools/{pool}/nodes/{node}"),
            match what {
                NodeFact::Created => "pool.node.created",
                NodeFact::State => "pool.node.state",
                NodeFact::Removed => "pool.node.removed",
            },
            Payload::Node(NodeChanged {
                pool_id: pool.to_owned(),
                node_id: node.as_str().to_owned(),
                old_state: old.map_or(wire::NodeState::Unspecified, node_state) as i32,
                new_state: new.map_or(wire::NodeState::Unspecified, node_state) as i32,
                reason,
                task_slots: count(slots),
                incarnation,
            }),
        ),
    };
    NewEvent {
        time_micros: event.time.as_micros(),
        account: event.account.as_str().to_owned(),
        subject,
        event_type,
        traceparent: traceparent.to_owned(),
        payload,
    }
}

fn count(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// A pool's state on the wire.
pub fn pool_state(state: PoolState) -> wire::PoolState {
    match state {
        PoolState::Active => wire::PoolState::Active,
        PoolState::Deleting => wire::PoolState::Deleting,
    }
}

/// A node's state on the wire.
pub fn node_state(state: NodeState) -> wire::NodeState {
    match state {
        NodeState::Creating => wire::NodeState::Creating,
        NodeState::Starting => wire::NodeState::Starting,
        NodeState::WaitingForStartTask => wire::NodeState::WaitingForStartTask,
        NodeState::StartTaskFailed => wire::NodeState::StartTaskFailed,
        NodeState::Idle => wire::NodeState::Idle,
        NodeState::Running => wire::NodeState::Running,
        NodeState::Offline => wire::NodeState::Offline,
        NodeState::Rebooting => wire::NodeState::Rebooting,
        NodeState::Unknown => wire::NodeState::Unknown,
        NodeState::Unusable { .. } => wire::NodeState::Unusable,
        NodeState::LeavingPool { .. } => wire::NodeState::LeavingPool,
    }
}
