//! The start task.

use kiln_proto::common::v1::ExecutionResult;
use kiln_proto::pool::v1::{AgentPhase, NodeSettings, StartTask, StartTaskState};

use crate::service::World;

fn settings(command_line: &str, max_task_retry_count: i32, wait_for_success: bool) -> NodeSettings {
    let start_task = StartTask {
        command_line: command_line.into(),
        max_task_retry_count,
        wait_for_success: Some(wait_for_success),
        ..StartTask::default()
    };
    NodeSettings { task_slots: 1, start_task: Some(start_task), ..NodeSettings::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_is_ready_after_the_start_task() {
    let script = "/bin/sh -c 'echo x >> ../tries; echo out; test $(wc -l < ../tries) -ge 3'";
    let world = World::start_with(settings(script, 5, true)).await;
    let report = world.log.report("ready", |report| report.phase() == AgentPhase::Ready).await;
    let info = report.start_task_info.unwrap();
    assert_eq!((info.state(), info.result()), (StartTaskState::Completed, ExecutionResult::Success));
    assert_eq!((info.exit_code, info.retry_count), (Some(0), 2));
    assert!(info.last_retry_time.is_some() && info.end_time.is_some());
    let startup = world.join.root_dir().join("startup");
    assert_eq!(std::fs::read_to_string(startup.join("stdout.txt")).unwrap(), "out\n");
    world.connected().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_success_no_tasks_come() {
    let world = World::start_with(settings("/bin/sh -c 'exit 7'", 1, true)).await;
    let report = world.log.report("failed", |report| report.phase() == AgentPhase::StartTaskFailed).await;
    let info = report.start_task_info.unwrap();
    assert_eq!((info.exit_code, info.retry_count), (Some(7), 1));
    assert_eq!(info.failure.unwrap().code, "FailureExitCode");
    assert!(world.log.work.lock().unwrap().is_empty());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_program_is_not_tried_again() {
    let world = World::start_with(settings("no-such-program", 5, true)).await;
    let report = world.log.report("failed", |report| report.phase() == AgentPhase::StartTaskFailed).await;
    let info = report.start_task_info.unwrap();
    assert_eq!((info.exit_code, info.retry_count), (None, 0));
    assert_eq!(info.failure.unwrap().code, "CommandProgramNotFound");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_need_not_wait_for_it() {
    let world = World::start_with(settings("sleep 1000", 0, false)).await;
    world.connected().await;
    let report = world.log.report("ready", |report| report.phase() == AgentPhase::Ready).await;
    assert_ne!(report.start_task_info.map(|info| info.state()), Some(StartTaskState::Completed));
    world.stop().await;
}
