//! Tasks of the node itself, with their retries: the start task, and a job's
//! preparation and release tasks. How they are alike is here; when they run is
//! in [`crate::start_task`] and [`crate::job_tasks`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kiln_proto::common::v1::{ApplicationPackageReference, EnvironmentSetting, ResourceFile, UserIdentity};
use kiln_time::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::confine::{Asked, Confined};
use crate::domain::environment::{self, ProcessFacts, TaskFacts};
use crate::domain::failure::Failure;
use crate::domain::node_task::Run;
use crate::process::launch::Launch;
use crate::run_process::{self, Place};
use crate::stage::transfer::jittered;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Pauses between retries grow up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is run.
#[derive(Debug)]
pub struct NodeTask<'a> {
    /// Its directory.
    pub dir: PathBuf,
    /// As its author wrote it.
    pub command_line: &'a str,
    /// Brought into its working directory before every run.
    pub resource_files: &'a [ResourceFile],
    /// Installed before every run.
    pub packages: &'a [ApplicationPackageReference],
    /// What users set, in rising order of precedence.
    pub settings: Vec<&'a EnvironmentSetting>,
    /// As whom it runs.
    pub identity: Option<&'a UserIdentity>,
    /// It asks for a container.
    pub in_container: bool,
    /// Longest time of one run.
    pub limit: Option<Duration>,
    /// After exit codes other than 0; below 0 without end.
    pub max_retries: i32,
    /// See [`ProcessFacts::marker`].
    pub marker: String,
    /// Its job, if it has one.
    pub task: Option<TaskFacts>,
}

/// Runs the task until it succeeds, has no retries left, or `stop` is
/// cancelled. Every change is `told`. Needs [a thread of its own](run_process::on_own_thread).
pub async fn run(agent: &Arc<Agent>, task: &NodeTask<'_>, stop: &CancellationToken, mut told: impl FnMut(&Run)) -> Run {
    let mut run = Run::begin(Timestamp::now());
    let mut pause = FIRST_PAUSE;
    loop {
        told(&run);
        let (exit_code, failure) = match run_once(agent, task, stop).await {
            Ok(result) => result,
            Err(failure) => (None, Some(failure)),
        };
        run.ended(exit_code, failure, Timestamp::now());
        if !run.is_tried_again(task.max_retries) || stop.is_cancelled() {
            told(&run);
            return run;
        }
        // A retry follows: not the end for whoever waits for that.
        let mut between = run.clone();
        between.completed = false;
        told(&between);
        tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => {}
            () = stop.cancelled() => {
                told(&run);
                return run;
            }
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        run.again(Timestamp::now());
    }
}

/// Exit code, and failure if there is one.
async fn run_once(
    agent: &Arc<Agent>,
    task: &NodeTask<'_>,
    stop: &CancellationToken,
) -> Result<(Option<i32>, Option<Failure>), Failure> {
    if task.in_container {
        return Err(Failure::user("ContainerMiscError", "nodes of this pool cannot run containers"));
    }
    let stopped = || Failure::server("TaskEnded", "the task was stopped, with its job or with the agent");
    let whom = agent.confiner.whom(agent, task.identity)?;
    agent.confiner.close(&task.dir)?;
    let Place { dir, working_dir, output } = run_process::prepare(&agent.root, task.dir.clone())?;
    let registration = agent.registration();
    let fetch = async {
        let packages = agent.packages.install(task.packages, &registration.blob_endpoint).await?;
        agent.input.fetch_all(task.resource_files, &working_dir, &registration.blob_endpoint).await?;
        Ok::<_, Failure>(packages)
    };
    let packages = tokio::select! {
        fetched = fetch => fetched?,
        () = stop.cancelled() => return Err(stopped()),
    };
    let facts = ProcessFacts {
        task: task.task.as_ref(),
        task_dir: &dir.to_string_lossy(),
        working_dir: &working_dir.to_string_lossy(),
        marker: &task.marker,
        traceparent: "",
        tracestate: "",
        packages: &packages,
    };
    let settings = task.settings.iter().map(|setting| (&*setting.name, &*setting.value));
    let environment = environment::build(&agent.facts(), &facts, settings);
    // Tasks of the job, or of the node, find there what it has made for them.
    let asked = Asked { whom, resources: None, is_open: true, dir: &dir };
    let confined = Confined::enter(&agent.confiner, &asked)?;
    let launch = Launch { command_line: task.command_line.to_owned(), environment, working_dir, output };
    let running = confined.start(agent, launch, &task.marker)?;
    let mut expired = false;
    let (code, _) = confined.wait(running, stop, task.limit, || expired = true).await;
    drop(confined);
    let failure = if expired {
        Some(Failure::user("TaskEnded", "the process was killed because its maximum wall-clock time was over"))
    } else if stop.is_cancelled() && code != 0 {
        Some(stopped())
    } else {
        (code != 0).then(|| Failure::exit_code(code))
    };
    Ok((Some(code), failure))
}
