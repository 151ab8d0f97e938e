//! Runs tasks on a compute node.
//!
//! The agent only dials out. It keeps two streams: control (pool-svc: commands
//! come, the node's view goes) and work (job-svc: assignments come, results
//! go).
//!
//! | module | what it is for |
//! |---|---|
//! | [`cli`](main_with), [`config`] | the process: arguments, settings, signals |
//! | [`domain`] | rules without I/O: attempts, lease, command lines, patterns |
//! | [`agent`] | what the loops share in one life of the agent |
//! | [`control`], [`work`] | the two streams, and the watch over the lease |
//! | [`trust`] | how both know that they speak to the right service |
//! | [`run_attempt`], [`run_process`] | from assignment to result |
//! | [`confine`] | users, limits and graphics processors of tasks |
//! | [`instance`] | instances of multi-instance tasks |
//! | [`start_task`], [`job_tasks`], [`node_task`] | tasks of the node itself, and of jobs on it |
//! | [`process`] | starting, watching and killing process trees |
//! | [`stage`] | files in and out |
//! | [`packages`] | packages of applications |
//! | [`files`] | questions about the node's files |
//! | [`retention`] | directories of tasks go |
//!
//! A life (incarnation) begins with a start or a reboot. Everything it knows is
//! in memory: whatever an earlier life was doing is void, its processes are
//! killed by its guard or, at the latest, when the next life begins.

pub mod agent;
mod cli;
mod clock;
pub mod config;
pub mod confine;
pub mod control;
pub mod domain;
pub mod files;
pub mod instance;
pub mod job_tasks;
mod lock;
mod machine;
pub mod node_task;
pub mod packages;
pub mod process;
pub mod record;
pub mod retention;
pub mod run_attempt;
pub mod run_process;
pub mod stage;
pub mod start_task;
pub mod trust;
mod wire;
pub mod work;

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use agent::{Agent, Outcome, Parts};
use confine::Confiner;
use domain::attempt::StopCause;
use packages::Packages;
use process::guard;
use process::supervisor::Supervisor;
use record::Record;
use retention::kept::Kept;
use stage::cache::Cache;
use stage::input::Input;
use stage::output::Output;
use stage::transfer::Http;

pub use cli::{AgentArgs, main_with};
pub use config::{NodeAgentConfig, NodeAgentConfig as Config, Settings};

/// How long tasks may take to die at the end.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// How long the streams may take to say goodbye.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Runs the agent until it leaves its pool or `shutdown` is cancelled.
///
/// # Errors
/// When the node's directory is held by another agent or cannot be used, when
/// pool-svc refuses the node, and when contact is lost for good.
pub async fn run(mut config: NodeAgentConfig, shutdown: CancellationToken) -> anyhow::Result<()> {
    config.join.node_dir = std::path::absolute(&config.join.node_dir)?;
    let node_dir = config.join.node_dir.clone();
    make_private(&node_dir).with_context(|| format!("node directory {}", node_dir.display()))?;
    let locked = node_dir.clone();
    let lock = tokio::task::spawn_blocking(move || lock::NodeLock::take(&locked)).await??;
    let root = make_directories(&config).context("the node's directories cannot be made")?;
    let earlier = root.clone();
    tokio::task::spawn_blocking(move || guard::kill_earlier(&earlier)).await?;
    let mut done_command = 0;
    let result = loop {
        let outcome = Box::pin(live(&config, root.clone(), done_command, &shutdown)).await?;
        match outcome {
            Outcome::Stopped => break Ok(()),
            Outcome::Left(reason) => {
                tracing::info!(reason, "the node has left its pool");
                break Ok(());
            }
            Outcome::Reboot(command) => {
                tracing::info!("a new life begins");
                done_command = command;
            }
            Outcome::GaveUp(reason) => break Err(anyhow::anyhow!(reason)),
        }
        if shutdown.is_cancelled() {
            break Ok(());
        }
    };
    drop(lock);
    result
}

/// Tokens, cached files and what tasks leave are for the agent's user alone, also
/// in a directory that a provider made with the usual mode.
fn make_private(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(dir)?;
    if std::fs::metadata(dir)?.permissions().mode() & 0o077 == 0 {
        return Ok(());
    }
    if let Err(error) = std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)) {
        // A mounted directory that belongs to another user.
        tracing::warn!(dir = %dir.display(), %error, "other users can enter the node's directory");
    }
    Ok(())
}

fn make_directories(config: &NodeAgentConfig) -> anyhow::Result<PathBuf> {
    let root = config.join.root_dir();
    for name in [
        packages::APPLICATIONS_DIR,
        "fsmounts",
        "volatile",
        kiln_node::SHARED_DIR,
        kiln_node::STARTUP_DIR,
        kiln_node::WORKITEMS_DIR,
    ] {
        std::fs::create_dir_all(root.join(name))?;
    }
    std::fs::create_dir_all(config.join.node_dir.join(kiln_node::STATE_DIR))?;
    if root.to_str().is_none() {
        bail!("the path {} is not UTF-8", root.display());
    }
    Ok(root)
}

/// One life of the agent.
async fn live(
    config: &NodeAgentConfig,
    root: PathBuf,
    done_command: u64,
    shutdown: &CancellationToken,
) -> anyhow::Result<Outcome> {
    // Of version 7: job-svc tells by the time in it which of two lives is the later one.
    let incarnation = uuid::Uuid::now_v7().to_string();
    let over = CancellationToken::new();
    let _over = over.clone().drop_guard();
    let supervisor = Supervisor::start(&incarnation, config.owns_process, over.clone());
    let record = begin_record(config, &incarnation).await?;
    if !config.guard_command.is_empty() {
        let command = config.guard_command.clone();
        let record = record.for_guard();
        guard::keep_guard(command, incarnation.clone(), record, supervisor.clone(), over.clone()).await?;
    }
    let agent = Arc::new(make_agent(config, root, incarnation, supervisor, record, done_command, over.clone())?);
    tracing::info!(pool.id = config.join.pool_id, node.id = config.join.node_id, agent.incarnation, "agent started");

    let registered = CancellationToken::new();
    let control = kiln_telemetry::spawn(control::control_loop(agent.clone(), registered.clone()));
    let watch = kiln_telemetry::spawn(work::watch_lease(agent.clone()));
    let retention = kiln_telemetry::spawn(retention::retention_loop(agent.clone()));
    let line = kiln_telemetry::spawn(agent::line::watch_line(agent.clone()));
    let worker = agent.clone();
    let work = kiln_telemetry::spawn(async move {
        tokio::select! {
            () = registered.cancelled() => {}
            () = worker.closing.cancelled() => return,
        }
        if start_task::prepare_node(&worker).await {
            work::work_loop(worker).await;
        }
    });

    let outcome = tokio::select! {
        outcome = agent.finished() => outcome,
        () = shutdown.cancelled() => Outcome::Stopped,
    };
    tracing::info!(?outcome, live = agent.live(), "the agent stops its tasks");
    stop_tasks(&agent).await;
    agent.closing.cancel();
    let loops = async {
        for result in [control.await, work.await, watch.await, retention.await, line.await] {
            if let Err(error) = result {
                tracing::error!(%error, "a loop of the agent has failed");
            }
        }
    };
    if tokio::time::timeout(CLOSE_LIMIT, loops).await.is_err() {
        tracing::info!("the services could not be told goodbye in time");
    }
    Ok(outcome)
}

async fn begin_record(config: &NodeAgentConfig, incarnation: &str) -> anyhow::Result<Record> {
    let (path, join, incarnation) = (config.settings.record_file.clone(), config.join.clone(), incarnation.to_owned());
    tokio::task::spawn_blocking(move || Record::begin(path.as_deref(), &join, &incarnation)).await?
}

fn make_agent(
    config: &NodeAgentConfig,
    root: PathBuf,
    incarnation: String,
    supervisor: Arc<Supervisor>,
    record: Record,
    done_command: u64,
    over: CancellationToken,
) -> anyhow::Result<Agent> {
    let settings = &config.settings;
    let node_token = Arc::new(RwLock::new(String::new()));
    let ca_pem = config.join.ca_pem.as_deref();
    let http = Http::new(settings.transfer_idle, settings.transfer_tries, node_token.clone(), ca_pem)?;
    let cache_dir = config.join.node_dir.join(kiln_node::STATE_DIR).join("cache");
    let state = config.join.node_dir.join(kiln_node::STATE_DIR);
    let applications = root.join(packages::APPLICATIONS_DIR);
    let packages = Packages::create(applications, &state, settings.package_bytes, http.clone(), over)
        .context("the directories of application packages")?;
    let cache = Cache::create(cache_dir, settings.cache_bytes, http.clone(), settings.parallel_downloads)
        .context("the cache of resource files")?;
    let input = Input { http: http.clone(), cache };
    let output = Output { http, connections: Semaphore::new(settings.parallel_uploads) };
    let kept = Kept::load(&root, &state);
    let confiner = Arc::new(Confiner::new(config.shim_command.clone(), config.join.node_dir.clone(), machine::gpus()));
    let parts = Parts { supervisor, input, output, packages, kept, confiner, record, node_token };
    Ok(Agent::new(config.clone(), root, incarnation, parts, done_command))
}

/// Kills every task and waits until all are over.
async fn stop_tasks(agent: &Agent) {
    agent.stop_all(StopCause::Shutdown);
    agent.jobs.stop_all();
    let all_ended = async {
        loop {
            let ended = agent.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if agent.live() == 0 && agent.jobs.running() == 0 {
                return;
            }
            ended.await;
        }
    };
    if tokio::time::timeout(STOP_LIMIT, all_ended).await.is_err() {
        tracing::warn!(live = agent.live(), "some tasks did not end in time");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_the_agents_user_enters_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let node = dir.path().join("a/n-1");
        for _ in 0..2 {
            make_private(&node).unwrap();
            assert_eq!(std::fs::metadata(&node).unwrap().permissions().mode() & 0o777, 0o700);
            std::fs::set_permissions(&node, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
}
