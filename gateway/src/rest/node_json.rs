//! JSON of nodes and their counts.

use kiln_proto::common::v1::FileEntry;
use kiln_proto::pool::v1::{
    Node, NodeCounts, NodeState, PoolNodeCounts, SchedulingState, StartTaskInfo, StartTaskState,
};
use serde_json::{Map, Value, json};

use super::common::{put_failure, write_name_values, write_result};
use super::json::{Out, word};
use super::pool_json::write_start_task;
use super::version::Version;
use super::view::View;

const STATES: &[(&str, NodeState)] = &[
    ("creating", NodeState::Creating),
    ("starting", NodeState::Starting),
    ("waitingforstarttask", NodeState::WaitingForStartTask),
    ("starttaskfailed", NodeState::StartTaskFailed),
    ("idle", NodeState::Idle),
    ("running", NodeState::Running),
    ("offline", NodeState::Offline),
    ("rebooting", NodeState::Rebooting),
    ("reimaging", NodeState::Reimaging),
    ("leavingpool", NodeState::LeavingPool),
    ("unknown", NodeState::Unknown),
    ("unusable", NodeState::Unusable),
    ("preempted", NodeState::Preempted),
    ("deallocating", NodeState::Deallocating),
    ("deallocated", NodeState::Deallocated),
    ("upgradingos", NodeState::UpgradingOs),
];

/// Names of the counts, and the states they count (in letters only).
const COUNTS: [&str; 16] = [
    "creating",
    "idle",
    "offline",
    "preempted",
    "rebooting",
    "reimaging",
    "running",
    "starting",
    "startTaskFailed",
    "leavingPool",
    "unknown",
    "unusable",
    "waitingForStartTask",
    "deallocated",
    "deallocating",
    "upgradingOS",
];

/// A node as GET answers it.
pub fn write(node: &Node, view: View<'_>) -> Value {
    let mut out = Out::new();
    out.put("id", node.id.as_str())
        .put("url", view.url(&["pools", &node.pool_id, "nodes", &node.id]))
        .put("state", word(STATES, node.state()).unwrap_or("unknown"))
        .put(
            "schedulingState",
            if node.scheduling_state() == SchedulingState::Disabled { "disabled" } else { "enabled" },
        )
        .put_time("stateTransitionTime", node.state_transition_time.as_ref())
        .put_time("lastBootTime", node.last_boot_time.as_ref())
        .put_time("allocationTime", node.allocation_time.as_ref())
        .put_text("ipAddress", &node.ip_address)
        .put("affinityId", affinity_id(&node.id))
        .put("vmSize", node.vm_size.to_lowercase())
        .put("totalTasksRun", node.total_tasks_run)
        .put("runningTasksCount", node.running_tasks)
        .put("runningTaskSlotsCount", node.running_task_slots)
        .put("totalTasksSucceeded", node.total_tasks_succeeded);
    let recent = node.recent_tasks.iter().map(|task| {
        let mut info = Out::new();
        let mut execution = Out::new();
        execution
            .put_time("startTime", task.start_time.as_ref())
            .put_time("endTime", task.end_time.as_ref())
            .put_some("exitCode", task.exit_code)
            .put("retryCount", 0)
            .put("requeueCount", 0)
            .put_some("result", write_result(task.result()));
        info.put("taskUrl", view.url(&["jobs", &task.job_id, "tasks", &task.task_id]))
            .put("jobId", task.job_id.as_str())
            .put("taskId", task.task_id.as_str())
            .put("taskState", task.state.to_lowercase())
            .put("executionInfo", execution.done());
        info.done()
    });
    out.put_list("recentTasks", recent.collect())
        .put_some("startTask", node.start_task.as_ref().map(|task| write_start_task(task, view.version)))
        .put_some("startTaskInfo", node.start_task_info.as_ref().map(|info| write_start_task_info(info, view.version)));
    let errors = node.errors.iter().map(|error| {
        let mut out = Out::new();
        out.put("code", error.code.as_str())
            .put("message", error.message.as_str())
            .put_list("errorDetails", write_name_values(&error.details));
        out.done()
    });
    out.put_list("errors", errors.collect()).put("isDedicated", node.is_dedicated);
    if !node.agent_version.is_empty() {
        let mut agent = Out::new();
        agent.put("version", node.agent_version.as_str()).put_time("lastUpdateTime", node.agent_last_contact.as_ref());
        out.put("nodeAgentInfo", agent.done());
    }
    out.put("virtualMachineInfo", json!({"imageReference": {}}));
    out.done()
}

/// How tasks say that they would like to run on this node.
pub fn affinity_id(node_id: &str) -> String {
    format!("TVM:{node_id}")
}

fn write_start_task_info(info: &StartTaskInfo, version: Version) -> Value {
    let state = if info.state() == StartTaskState::Completed { "completed" } else { "running" };
    let mut out = Out::new();
    out.put("state", state)
        .put_time("startTime", info.start_time.as_ref())
        .put_time("endTime", info.end_time.as_ref())
        .put_some("exitCode", info.exit_code);
    put_failure(&mut out, info.failure.as_ref(), version);
    out.put("retryCount", info.retry_count)
        .put_time("lastRetryTime", info.last_retry_time.as_ref())
        .put_some("result", write_result(info.result()));
    out.done()
}

/// Node counts of one pool.
pub fn write_counts(counts: &PoolNodeCounts) -> Value {
    json!({
        "poolId": counts.pool_id,
        "dedicated": write_kind(counts.dedicated.as_ref()),
        "lowPriority": write_kind(counts.low_priority.as_ref()),
    })
}

fn write_kind(counts: Option<&NodeCounts>) -> Value {
    let mut map: Map<String, Value> = COUNTS.iter().map(|name| ((*name).to_owned(), Value::from(0))).collect();
    let Some(counts) = counts else {
        map.insert("total".to_owned(), 0.into());
        return Value::Object(map);
    };
    for (state, count) in &counts.by_state {
        let letters: String = state.chars().filter(char::is_ascii_alphanumeric).collect();
        if let Some(name) = COUNTS.iter().find(|name| name.eq_ignore_ascii_case(&letters)) {
            map.insert((*name).to_owned(), (*count).into());
        }
    }
    map.insert("total".to_owned(), counts.total.into());
    Value::Object(map)
}

/// A row of a file listing.
pub fn write_file(file: &FileEntry, url: String) -> Value {
    let mut out = Out::new();
    out.put("name", file.name.as_str()).put("url", url).put("isDirectory", file.is_directory);
    if !file.is_directory {
        let mut properties = Out::new();
        properties
            .put_time("lastModified", file.last_modified.as_ref())
            .put("contentLength", file.content_length.to_string())
            .put("contentType", content_type(file))
            .put("fileMode", file_mode(file));
        out.put("properties", properties.done());
    }
    out.done()
}

/// The content type, a plain one if the agent had no guess.
pub fn content_type(file: &FileEntry) -> &str {
    if file.content_type.is_empty() { "application/octet-stream" } else { &file.content_type }
}

/// Octal with Python's prefix, as clients know it.
pub fn file_mode(file: &FileEntry) -> String {
    format!("0o{:o}", file.mode)
}

#[cfg(test)]
mod tests {
    use kiln_proto::pool::v1::{NodeError, StartTask};

    use super::*;

    #[test]
    fn a_node_has_all_that_clients_need() {
        let node = Node {
            pool_id: "p".into(),
            id: "n1".into(),
            state: NodeState::WaitingForStartTask.into(),
            ip_address: "10.0.0.4".into(),
            vm_size: "Local".into(),
            is_dedicated: true,
            start_task: Some(StartTask { command_line: "x".into(), ..StartTask::default() }),
            start_task_info: Some(StartTaskInfo { retry_count: 2, ..StartTaskInfo::default() }),
            errors: vec![NodeError { code: "DiskFull".into(), ..NodeError::default() }],
            agent_version: "0.1.0".into(),
            ..Node::default()
        };
        let answer = write(&node, View { base: "http://h", version: Version::LATEST });
        assert_eq!(answer["state"], "waitingforstarttask");
        assert_eq!(answer["schedulingState"], "enabled");
        assert_eq!(answer["affinityId"], "TVM:n1");
        assert_eq!(answer["url"], "http://h/pools/p/nodes/n1");
        assert_eq!(answer["startTaskInfo"], json!({"state": "running", "retryCount": 2}));
        assert_eq!(answer["errors"][0]["code"], "DiskFull");
    }

    #[test]
    fn counts_name_every_state() {
        let by_state = [("waiting_for_start_task".to_owned(), 2), ("idle".to_owned(), 1)].into();
        let counts = PoolNodeCounts {
            pool_id: "p".into(),
            dedicated: Some(NodeCounts { by_state, total: 3 }),
            low_priority: None,
        };
        let answer = write_counts(&counts);
        assert_eq!(answer["dedicated"]["waitingForStartTask"], 2);
        assert_eq!(answer["dedicated"]["total"], 3);
        assert_eq!(answer["lowPriority"]["total"], 0);
        assert_eq!(answer["dedicated"].as_object().unwrap().len(), 17);
    }
}
