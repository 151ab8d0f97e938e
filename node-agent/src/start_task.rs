//! What happens when the agent begins a life, before tasks may come: the packages of
//! the pool are installed, then the start task runs.

use std::sync::Arc;

use kiln_proto::pool::v1::{AgentPhase, StartTask};
use tracing::Instrument;

use crate::agent::Agent;
use crate::node_task::{self, NodeTask};
use crate::run_process::on_own_thread;
use crate::wire;

/// Brings the node into its first phase: READY, START_TASK_FAILED, or UNUSABLE if a package cannot be installed. With
/// `wait_for_success = false` it is READY at once. True if tasks may come.
pub async fn prepare_node(agent: &Arc<Agent>) -> bool {
    let registration = agent.registration();
    let packages = &registration.settings.application_packages;
    tokio::select! {
        installed = agent.packages.install_for_pool(packages, &registration.blob_endpoint) => {
            if let Err(failure) = installed {
                tracing::warn!(%failure, "the node cannot be used without the packages of its pool");
                agent.add_error(&failure);
                agent.enter(AgentPhase::Unusable);
                return false;
            }
        }
        () = agent.closing.cancelled() => return false,
    }
    let Some(task) = registration.settings.start_task.clone().filter(|task| !task.command_line.is_empty()) else {
        agent.enter(AgentPhase::Ready);
        return true;
    };
    if !task.wait_for_success.unwrap_or(true) {
        agent.enter(AgentPhase::Ready);
        let agent = agent.clone();
        kiln_telemetry::spawn(async move { run(agent, task).await });
        return true;
    }
    agent.enter(AgentPhase::WaitingForStartTask);
    let succeeded = run(agent.clone(), task).await;
    if !agent.closing.is_cancelled() {
        agent.enter(if succeeded { AgentPhase::Ready } else { AgentPhase::StartTaskFailed });
    }
    succeeded
}

async fn run(agent: Arc<Agent>, task: StartTask) -> bool {
    let span = tracing::info_span!("start_task");
    let work = async move { run_here(&agent, &task).await };
    on_own_thread(work).instrument(span).await.unwrap_or_else(|error| {
        tracing::error!(%error, "the start task is lost");
        false
    })
}

async fn run_here(agent: &Arc<Agent>, task: &StartTask) -> bool {
    let node_task = NodeTask {
        dir: agent.root.join(kiln_node::STARTUP_DIR),
        command_line: &task.command_line,
        resource_files: &task.resource_files,
        packages: &[],
        settings: task.environment.iter().collect(),
        identity: task.user_identity.as_ref(),
        in_container: task.container_settings.is_some(),
        limit: None,
        max_retries: task.max_task_retry_count,
        marker: format!("{}/start-task", agent.incarnation),
        task: None,
    };
    let run = node_task::run(agent, &node_task, &agent.closing, |run| {
        agent.start_task_is(wire::start_task_info(run), !run.completed);
    })
    .await;
    match &run.failure {
        None => tracing::info!(retries = run.retries, "the start task has succeeded"),
        Some(failure) => tracing::info!(%failure, retries = run.retries, "the start task has failed"),
    }
    run.succeeded()
}
