//! The start task: runs when the agent begins a life, before tasks may come.

use std::sync::Arc;

use kiln_proto::common::v1::ExecutionResult;
use kiln_proto::pool::v1::{AgentPhase, StartTask, StartTaskInfo, StartTaskState};
use kiln_time::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::agent::{Agent, timestamp};
use crate::domain::environment::{self, ProcessFacts};
use crate::domain::failure::Failure;
use crate::process::launch::Launch;
use crate::run_process::{self, Place};
use crate::stage::transfer::jittered;
use crate::wire;

/// Pauses between retries grow up to this.
const LONGEST_PAUSE: std::time::Duration = std::time::Duration::from_secs(30);

/// Brings the node into its first phase: READY, or START_TASK_FAILED. With
/// `wait_for_success = false` it is READY at once. True if tasks may come.
pub async fn prepare_node(agent: &Arc<Agent>) -> bool {
    let registration = agent.registration();
    let Some(task) = registration.settings.start_task.clone().filter(|task| !task.command_line.is_empty()) else {
        agent.enter(AgentPhase::Ready);
        return true;
    };
    if !task.wait_for_success.unwrap_or(true) {
        agent.enter(AgentPhase::Ready);
        let agent = agent.clone();
        kiln_telemetry::spawn(async move { run(&agent, &task).await });
        return true;
    }
    agent.enter(AgentPhase::WaitingForStartTask);
    let succeeded = run(agent, &task).await;
    if !agent.closing.is_cancelled() {
        agent.enter(if succeeded { AgentPhase::Ready } else { AgentPhase::StartTaskFailed });
    }
    succeeded
}

async fn run(agent: &Arc<Agent>, task: &StartTask) -> bool {
    let mut info = StartTaskInfo::default();
    let mut pause = std::time::Duration::from_millis(100);
    loop {
        info.state = StartTaskState::Running.into();
        info.start_time = Some(timestamp(Timestamp::now()));
        // The end of the last try stays visible until this one has ended.
        if info.retry_count > 0 {
            info.last_retry_time = info.start_time;
        }
        agent.start_task_is(info.clone(), true);
        let result =
            run_once(agent, task).instrument(tracing::info_span!("start_task", retry = info.retry_count)).await;
        info.state = StartTaskState::Completed.into();
        info.end_time = Some(timestamp(Timestamp::now()));
        let (exit_code, failure) = match result {
            Ok(0) => (Some(0), None),
            Ok(code) => (Some(code), Some(Failure::exit_code(code))),
            Err(failure) => (None, Some(failure)),
        };
        info.exit_code = exit_code;
        info.failure = failure.as_ref().map(wire::failure);
        info.result = if failure.is_none() { ExecutionResult::Success } else { ExecutionResult::Failure }.into();
        let Some(failure) = failure else {
            tracing::info!(retries = info.retry_count, "the start task has succeeded");
            agent.start_task_is(info, false);
            return true;
        };
        tracing::info!(%failure, retries = info.retry_count, "the start task has failed");
        agent.start_task_is(info.clone(), false);
        // Only exit codes are tried again, not missing files or programs.
        let again = exit_code.is_some()
            && (task.max_task_retry_count < 0 || info.retry_count < task.max_task_retry_count)
            && !agent.closing.is_cancelled();
        if !again {
            return false;
        }
        tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => {}
            () = agent.closing.cancelled() => return false,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        info.retry_count = info.retry_count.saturating_add(1);
    }
}

async fn run_once(agent: &Arc<Agent>, task: &StartTask) -> Result<i32, Failure> {
    if task.container_settings.is_some() {
        return Err(Failure::user("ContainerMiscError", "nodes of this pool cannot run containers"));
    }
    let stop: &CancellationToken = &agent.closing;
    let Place { dir, working_dir, output } =
        run_process::prepare(&agent.root, agent.root.join(kiln_node::STARTUP_DIR)).await?;
    let registration = agent.registration();
    tokio::select! {
        fetched = agent.input.fetch_all(&task.resource_files, &working_dir, &registration.blob_endpoint) => fetched?,
        () = stop.cancelled() => return Err(Failure::server("TaskEnded", "the agent was stopped")),
    }
    let marker = format!("{}/start-task", agent.incarnation);
    let facts = ProcessFacts {
        task: None,
        task_dir: &dir.to_string_lossy(),
        working_dir: &working_dir.to_string_lossy(),
        marker: &marker,
        traceparent: "",
        tracestate: "",
    };
    let environment = environment::build(
        &agent.facts(),
        &facts,
        task.environment.iter().map(|setting| (&*setting.name, &*setting.value)),
    );
    let launch = Launch { command_line: task.command_line.clone(), environment, working_dir, output };
    let running = run_process::start(&agent.supervisor, launch, marker).await?;
    Ok(run_process::wait(running, stop, None, || {}).await)
}
