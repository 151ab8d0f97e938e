//! Between the records and the wire.

use std::time::Duration;

use kiln_error::Error;
use kiln_filter::Value;
use kiln_ids::{AccountName, InvalidId, NodeId, PoolId};
use kiln_proto::pool::v1 as wire;
use kiln_time::Timestamp;
use prost::Message;

use crate::domain::agent::{AgentFacts, Phase, View};
use crate::domain::pool::Allocation;
use crate::domain::{Node, Pool, PoolName, PoolState};
use crate::store::{StateCounts, node_state, pool_state};

/// An instant on the wire.
pub fn time(time: Timestamp) -> Option<prost_types::Timestamp> {
    Some(kiln_proto::time::timestamp(time.as_micros()))
}

fn from_wire(time: &prost_types::Timestamp) -> Timestamp {
    Timestamp::from_micros(kiln_proto::time::micros(time))
}

fn count(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn invalid(name: &str, text: &str, error: &InvalidId) -> Error {
    if text.is_empty() {
        return Error::missing_property(name);
    }
    Error::invalid_property(name, text.chars().take(128).collect::<String>(), error.to_string())
}

/// The pool a call names.
///
/// # Errors
/// If account or pool are no ids.
pub fn pool_name(account: &str, field: &str, pool: &str) -> Result<PoolName, Error> {
    Ok(PoolName { account: account_name(account)?, pool: PoolId::parse(pool).map_err(|e| invalid(field, pool, &e))? })
}

/// The account a call is about.
///
/// # Errors
/// If it is no account name.
pub fn account_name(account: &str) -> Result<AccountName, Error> {
    AccountName::parse(account).map_err(|error| invalid("account", account, &error))
}

/// The node a call names.
///
/// # Errors
/// If it is no id.
pub fn node_id(field: &str, node: &str) -> Result<NodeId, Error> {
    NodeId::parse(node).map_err(|error| invalid(field, node, &error))
}

/// What clients set and nodes receive.
///
/// # Errors
/// If the record is damaged.
pub fn settings(pool: &Pool) -> Result<wire::PoolSpec, Error> {
    wire::PoolSpec::decode(pool.settings.as_slice())
        .map_err(|_| Error::internal(format!("the settings of pool {} cannot be read", pool.id)))
}

/// The pool as clients see it.
///
/// # Errors
/// If the record is damaged.
pub fn pool(pool: &Pool) -> Result<wire::Pool, Error> {
    let spec = wire::PoolSpec {
        target_dedicated_nodes: count(pool.target.dedicated),
        target_low_priority_nodes: count(pool.target.low_priority),
        resize_timeout: Some(kiln_proto::time::duration(pool.resize_timeout)),
        ..settings(pool)?
    };
    Ok(wire::Pool {
        id: pool.id.as_str().to_owned(),
        spec: Some(without_secrets(spec)),
        state: pool_state(pool.state) as i32,
        state_transition_time: time(pool.state_since),
        allocation_state: match pool.allocation {
            Allocation::Steady => wire::AllocationState::Steady,
            Allocation::Resizing(_) => wire::AllocationState::Resizing,
            Allocation::Stopping => wire::AllocationState::Stopping,
        } as i32,
        allocation_state_transition_time: time(pool.allocation_since),
        etag: pool.etag_text(),
        creation_time: time(pool.created),
        last_modified: time(pool.modified),
        current_dedicated_nodes: count(pool.current.dedicated),
        current_low_priority_nodes: count(pool.current.low_priority),
        resize_errors: pool
            .resize_errors
            .iter()
            .map(|error| wire::ResizeError {
                code: error.code.clone(),
                message: error.message.clone(),
                values: error.values.iter().map(|(name, value)| name_value(name, value)).collect(),
            })
            .collect(),
        auto_scale_run: None,
    })
}

/// Passwords go to nodes, never back to clients.
fn without_secrets(mut spec: wire::PoolSpec) -> wire::PoolSpec {
    for user in &mut spec.user_accounts {
        user.password.clear();
    }
    spec
}

fn name_value(name: &str, value: &str) -> kiln_proto::common::v1::NameValue {
    kiln_proto::common::v1::NameValue { name: name.to_owned(), value: value.to_owned() }
}

/// The node as clients see it; `last_contact` comes from its control stream.
///
/// # Errors
/// If the record is damaged.
pub fn node(pool: &Pool, node: &Node, vm_size: &str, last_contact: Option<Timestamp>) -> Result<wire::Node, Error> {
    let damaged = || Error::internal(format!("the record of node {} cannot be read", node.id));
    let report = wire::NodeReport::decode(node.report.as_slice()).map_err(|_| damaged())?;
    let start_task = match node.start_task.as_slice() {
        [] => None,
        bytes => Some(wire::StartTask::decode(bytes).map_err(|_| damaged())?),
    };
    let scheduling =
        if node.scheduling_disabled { wire::SchedulingState::Disabled } else { wire::SchedulingState::Enabled };
    Ok(wire::Node {
        pool_id: pool.id.as_str().to_owned(),
        id: node.id.as_str().to_owned(),
        state: node_state(node.state) as i32,
        scheduling_state: scheduling as i32,
        state_transition_time: time(node.state_since),
        allocation_time: time(node.allocation_time),
        last_boot_time: node.view.boot_time.and_then(time),
        ip_address: node.facts.ip_address.clone(),
        vm_size: vm_size.to_owned(),
        is_dedicated: node.dedicated,
        task_slots: count(pool.task_slots),
        running_tasks: count(node.view.running_tasks),
        running_task_slots: count(node.view.running_slots),
        total_tasks_run: count(node.view.total_run),
        total_tasks_succeeded: count(node.view.total_succeeded),
        recent_tasks: report.recent_tasks,
        start_task,
        start_task_info: report.start_task_info,
        errors: report.errors,
        agent_version: node.facts.version.clone(),
        agent_last_contact: last_contact.and_then(time),
    })
}

/// What a report says to the rules.
///
/// # Errors
/// If it has no phase this service knows.
pub fn view(report: &wire::NodeReport) -> Result<View, Error> {
    let phase = match wire::AgentPhase::try_from(report.phase) {
        Ok(wire::AgentPhase::Starting) => Phase::Starting,
        Ok(wire::AgentPhase::WaitingForStartTask) => Phase::WaitingForStartTask,
        Ok(wire::AgentPhase::StartTaskFailed) => Phase::StartTaskFailed,
        Ok(wire::AgentPhase::Ready) => Phase::Ready,
        Ok(wire::AgentPhase::Drained) => Phase::Drained,
        Ok(wire::AgentPhase::Unusable) => Phase::Unusable,
        Ok(wire::AgentPhase::Unspecified) | Err(_) => {
            return Err(Error::invalid_property("phase", report.phase, "is not a phase this service knows"));
        }
    };
    let number = |value: i32| u32::try_from(value).unwrap_or(0);
    Ok(View {
        phase,
        scheduling_disabled: report.scheduling_state == wire::SchedulingState::Disabled as i32,
        running_tasks: number(report.running_tasks),
        running_slots: number(report.running_task_slots),
        total_run: number(report.total_tasks_run),
        total_succeeded: number(report.total_tasks_succeeded),
        boot_time: report.boot_time.as_ref().map(from_wire),
        done_command: report.done_command_id,
    })
}

/// What an agent says of itself when it registers.
pub fn facts(request: &wire::RegisterRequest) -> AgentFacts {
    let short = |text: &str| text.chars().take(1024).collect();
    AgentFacts {
        version: short(&request.agent_version),
        ip_address: short(&request.ip_address),
        cpus: request.cpus,
        memory_bytes: request.memory_bytes,
        root_dir: request.root_dir.chars().take(4096).collect(),
    }
}

/// What of its pool a node has to know.
pub fn node_settings(spec: wire::PoolSpec, node: &Node, task_slots: u32) -> wire::NodeSettings {
    wire::NodeSettings {
        task_slots: count(task_slots),
        node_fill_type: spec.node_fill_type,
        job_default_order: spec.job_default_order,
        is_dedicated: node.dedicated,
        start_task: spec.start_task,
        user_accounts: spec.user_accounts,
        application_packages: spec.application_packages,
        enable_inter_node_communication: spec.enable_inter_node_communication,
        vm_size: spec.vm_size,
    }
}

/// States with their numbers.
pub fn counts(counts: &StateCounts) -> wire::NodeCounts {
    wire::NodeCounts {
        total: count(counts.values().sum()),
        by_state: counts.iter().map(|(state, number)| (state.clone(), count(*number))).collect(),
    }
}

/// A duration on the wire.
pub fn duration(duration: Duration) -> Option<prost_types::Duration> {
    Some(kiln_proto::time::duration(duration))
}

/// Properties of pools that filters may name.
pub const POOL_PROPERTIES: &[&str] = &[
    "id",
    "state",
    "stateTransitionTime",
    "allocationState",
    "allocationStateTransitionTime",
    "creationTime",
    "lastModified",
    "enableAutoScale",
    "vmSize",
    "enableInterNodeCommunication",
];

/// A property of a pool.
pub fn pool_property(pool: &Pool, spec: &wire::PoolSpec, property: &str) -> Option<Value> {
    Some(match property {
        "id" => Value::Text(pool.id.as_str().to_owned()),
        "state" => Value::Text(
            match pool.state {
                PoolState::Active => "active",
                PoolState::Deleting => "deleting",
            }
            .to_owned(),
        ),
        "stateTransitionTime" => Value::Time(pool.state_since),
        "allocationState" => Value::Text(pool.allocation.name().to_owned()),
        "allocationStateTransitionTime" => Value::Time(pool.allocation_since),
        "creationTime" => Value::Time(pool.created),
        "lastModified" => Value::Time(pool.modified),
        "enableAutoScale" => Value::Bool(spec.enable_auto_scale),
        "vmSize" => Value::Text(spec.vm_size.clone()),
        "enableInterNodeCommunication" => Value::Bool(spec.enable_inter_node_communication),
        _ => return None,
    })
}

/// Properties of nodes that filters may name.
pub const NODE_PROPERTIES: &[&str] = &[
    "id",
    "state",
    "stateTransitionTime",
    "lastBootTime",
    "allocationTime",
    "startTaskInfo/state",
    "startTaskInfo/result",
    "startTaskInfo/exitCode",
    "startTaskInfo/startTime",
    "startTaskInfo/endTime",
];

/// A property of a node.
pub fn node_property(node: &Node, info: Option<&wire::StartTaskInfo>, property: &str) -> Option<Value> {
    let text = |text: &str| Value::Text(text.to_owned());
    Some(match property {
        "id" => text(node.id.as_str()),
        "state" => text(node.state.name()),
        "stateTransitionTime" => Value::Time(node.state_since),
        "lastBootTime" => Value::Time(node.view.boot_time?),
        "allocationTime" => Value::Time(node.allocation_time),
        "startTaskInfo/state" => match info?.state() {
            wire::StartTaskState::Running => text("running"),
            wire::StartTaskState::Completed => text("completed"),
            wire::StartTaskState::Unspecified => return None,
        },
        "startTaskInfo/result" => match info?.result() {
            kiln_proto::common::v1::ExecutionResult::Success => text("success"),
            kiln_proto::common::v1::ExecutionResult::Failure => text("failure"),
            kiln_proto::common::v1::ExecutionResult::Unspecified => return None,
        },
        "startTaskInfo/exitCode" => Value::Number(f64::from(info?.exit_code?)),
        "startTaskInfo/startTime" => Value::Time(from_wire(info?.start_time.as_ref()?)),
        "startTaskInfo/endTime" => Value::Time(from_wire(info?.end_time.as_ref()?)),
        _ => return None,
    })
}
