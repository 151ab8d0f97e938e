//! JSON of what runs of a job beside its tasks: preparation and release on each
//! node, and the other instances of a multi-instance task.

use kiln_proto::job::v1::{JobNodeStatus, NodeTaskInfo, NodeTaskState, Subtask, SubtaskState, TaskNodeInfo};
use serde_json::Value;

use super::common::{put_failure, write_result};
use super::json::{Out, word};
use super::node_json::affinity_id;
use super::view::View;

const NODE_TASK_STATES: &[(&str, NodeTaskState)] =
    &[("running", NodeTaskState::Running), ("completed", NodeTaskState::Completed)];
const SUBTASK_STATES: &[(&str, SubtaskState)] = &[
    ("preparing", SubtaskState::Preparing),
    ("running", SubtaskState::Running),
    ("completed", SubtaskState::Completed),
];

/// What the list of preparations and releases can be filtered by.
pub const STATUS_PROPERTIES: &[&str] = &[
    "poolId",
    "nodeId",
    "jobPreparationTaskExecutionInfo/state",
    "jobPreparationTaskExecutionInfo/startTime",
    "jobPreparationTaskExecutionInfo/endTime",
    "jobPreparationTaskExecutionInfo/exitCode",
    "jobPreparationTaskExecutionInfo/result",
    "jobReleaseTaskExecutionInfo/state",
    "jobReleaseTaskExecutionInfo/startTime",
    "jobReleaseTaskExecutionInfo/endTime",
    "jobReleaseTaskExecutionInfo/exitCode",
    "jobReleaseTaskExecutionInfo/result",
];

/// Preparation and release of a job on one node.
pub fn write_status(status: &JobNodeStatus, view: View<'_>) -> Value {
    let node = ["pools", status.pool_id.as_str(), "nodes", status.node_id.as_str()];
    let mut out = Out::new();
    out.put("poolId", status.pool_id.as_str()).put("nodeId", status.node_id.as_str()).put("nodeUrl", view.url(&node));
    if let Some(info) = &status.preparation {
        let mut inner = write_run(info, &node, view);
        inner.put("retryCount", info.retry_count).put_time("lastRetryTime", info.last_retry_time.as_ref());
        out.put("jobPreparationTaskExecutionInfo", inner.done());
    }
    // Releases are not tried again, so they have no count of it.
    out.put_some(
        "jobReleaseTaskExecutionInfo",
        status.release.as_ref().map(|info| write_run(info, &node, view).done()),
    );
    out.done()
}

fn write_run(info: &NodeTaskInfo, node: &[&str], view: View<'_>) -> Out {
    let mut out = Out::new();
    out.put_time("startTime", info.start_time.as_ref())
        .put_time("endTime", info.end_time.as_ref())
        .put("state", word(NODE_TASK_STATES, info.state()).unwrap_or("running"));
    if !info.task_root_directory.is_empty() {
        out.put("taskRootDirectory", info.task_root_directory.as_str())
            .put("taskRootDirectoryUrl", view.file_url(node, &info.task_root_directory));
    }
    out.put_some("exitCode", info.exit_code);
    put_failure(&mut out, info.failure.as_ref(), view.version);
    if view.version.has_failure_info() {
        out.put_some("result", write_result(info.result()));
    }
    out
}

/// Where a task or one of its instances runs.
pub fn write_node(node: &TaskNodeInfo, view: View<'_>) -> Value {
    let mut info = Out::new();
    if !node.node_id.is_empty() {
        let parent = ["pools", node.pool_id.as_str(), "nodes", node.node_id.as_str()];
        info.put("affinityId", affinity_id(&node.node_id))
            .put("nodeUrl", view.url(&parent))
            .put("poolId", node.pool_id.as_str())
            .put("nodeId", node.node_id.as_str())
            .put("taskRootDirectory", node.task_root_directory.as_str())
            .put("taskRootDirectoryUrl", view.file_url(&parent, &node.task_root_directory));
    }
    info.done()
}

/// One instance besides the primary.
pub fn write_subtask(subtask: &Subtask, view: View<'_>) -> Value {
    let mut out = Out::new();
    out.put("id", subtask.id)
        .put_some("nodeInfo", subtask.node.as_ref().map(|node| write_node(node, view)))
        .put_time("startTime", subtask.start_time.as_ref())
        .put_time("endTime", subtask.end_time.as_ref())
        .put_some("exitCode", subtask.exit_code);
    put_failure(&mut out, subtask.failure.as_ref(), view.version);
    out.put_some("state", word(SUBTASK_STATES, subtask.state()))
        .put_time("stateTransitionTime", subtask.state_transition_time.as_ref())
        .put_some("previousState", word(SUBTASK_STATES, subtask.previous_state()))
        .put_time("previousStateTransitionTime", subtask.previous_state_transition_time.as_ref());
    if view.version.has_failure_info() {
        out.put_some("result", write_result(subtask.result()));
    }
    out.done()
}

#[cfg(test)]
mod tests {
    use kiln_proto::common::v1::{ErrorCategory, ExecutionResult, FailureInfo};
    use serde_json::json;

    use super::*;
    use crate::rest::version::Version;

    fn view(version: &str) -> View<'static> {
        View { base: "http://h", version: Version::parse(version).unwrap() }
    }

    fn failed() -> FailureInfo {
        FailureInfo { category: ErrorCategory::User.into(), code: "BlobNotFound".into(), ..FailureInfo::default() }
    }

    #[test]
    fn a_node_shows_preparation_and_release() {
        let time = |micros| Some(kiln_proto::time::timestamp(micros));
        let preparation = NodeTaskInfo {
            state: NodeTaskState::Completed.into(),
            start_time: time(1_769_860_800_000_000),
            end_time: time(1_769_860_801_500_000),
            exit_code: Some(0),
            result: ExecutionResult::Success.into(),
            retry_count: 1,
            task_root_directory: "workitems/j/job-1/jobpreparation".into(),
            ..NodeTaskInfo::default()
        };
        let release = NodeTaskInfo {
            state: NodeTaskState::Running.into(),
            start_time: time(1_769_860_802_000_000),
            failure: Some(failed()),
            ..NodeTaskInfo::default()
        };
        let status = JobNodeStatus {
            pool_id: "p".into(),
            node_id: "n".into(),
            preparation: Some(preparation),
            release: Some(release),
        };
        let answer = write_status(&status, view("2025-06-01"));
        assert_eq!(
            answer,
            json!({
                "poolId": "p", "nodeId": "n", "nodeUrl": "http://h/pools/p/nodes/n",
                "jobPreparationTaskExecutionInfo": {
                    "startTime": "2026-01-31T12:00:00Z", "endTime": "2026-01-31T12:00:01.5Z", "state": "completed",
                    "taskRootDirectory": "workitems/j/job-1/jobpreparation",
                    "taskRootDirectoryUrl": "http://h/pools/p/nodes/n/files/workitems/j/job-1/jobpreparation",
                    "exitCode": 0, "result": "success", "retryCount": 1},
                "jobReleaseTaskExecutionInfo": {
                    "startTime": "2026-01-31T12:00:02Z", "state": "running",
                    "failureInfo": {"category": "usererror", "code": "BlobNotFound"}},
            })
        );
        let old = write_status(&status, view("2017-01-01.4.0"));
        assert!(old["jobPreparationTaskExecutionInfo"].get("result").is_none());
        assert_eq!(old["jobReleaseTaskExecutionInfo"]["schedulingError"]["code"], "BlobNotFound");
    }

    #[test]
    fn a_subtask_shows_its_node_and_states() {
        let subtask = Subtask {
            id: 2,
            node: Some(TaskNodeInfo {
                pool_id: "p".into(),
                node_id: "n".into(),
                task_root_directory: "workitems/j/job-1/t/2".into(),
            }),
            state: SubtaskState::Completed.into(),
            previous_state: SubtaskState::Running.into(),
            exit_code: Some(3),
            result: ExecutionResult::Failure.into(),
            ..Subtask::default()
        };
        let answer = write_subtask(&subtask, view("2024-02-01.19.0"));
        assert_eq!((&answer["id"], &answer["state"], &answer["exitCode"]), (&json!(2), &json!("completed"), &json!(3)));
        assert_eq!((&answer["previousState"], &answer["result"]), (&json!("running"), &json!("failure")));
        assert_eq!(answer["nodeInfo"]["taskRootDirectoryUrl"], "http://h/pools/p/nodes/n/files/workitems/j/job-1/t/2");
    }
}
