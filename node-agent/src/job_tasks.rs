//! Runs the preparation and release tasks of jobs on this node; what is to be
//! run is decided in [`crate::domain::job_tasks`].
//!
//! A drain does not wait for them: what they prepare or clean goes with the node.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_ids::TaskId;
use kiln_proto::common::v1::EnvironmentSetting;
use kiln_proto::job::v1::{Assignment, JobNodeKey, JobNodeReport, JobNodeTask, Preparation, ReleaseJob, TaskSpec};
use kiln_time::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::agent::Agent;
use crate::domain::environment::TaskFacts;
use crate::domain::failure::Failure;
use crate::domain::job_tasks::{Action, JobTasks, Kind, Preparation as State, Word};
use crate::domain::ledger::Key;
use crate::domain::node_task::Run;
use crate::node_task::{self, NodeTask};
use crate::run_process::on_own_thread;
use crate::wire;

/// A release task holds the end of its job up for at most this long.
const RELEASE_LIMIT: Duration = Duration::from_secs(15 * 60);

/// The tasks of all jobs on this node.
#[derive(Debug, Default)]
pub struct Jobs {
    inner: Mutex<Inner>,
    /// A preparation has ended.
    prepared: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    tasks: JobTasks,
    stops: HashMap<(u64, Kind), CancellationToken>,
    /// Releases that were asked for and do not run yet.
    pending: HashMap<u64, ReleaseJob>,
}

/// Where a process of a job finds what its preparation left.
pub fn preparation_dir(agent: &Agent, job: &str, preparation_id: &str) -> String {
    agent.root.join(kiln_node::task_dir(job, preparation_id)).to_string_lossy().into_owned()
}

impl Jobs {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes when the job's preparation has ended here.
    ///
    /// # Errors
    /// When it has failed.
    pub async fn wait(&self, number: u64) -> Result<(), Failure> {
        loop {
            let prepared = self.prepared.notified();
            tokio::pin!(prepared);
            prepared.as_mut().enable();
            match self.inner().tasks.preparation(number) {
                State::Succeeded => return Ok(()),
                State::Failed => {
                    let message = "the job's preparation task has failed on this node; the task goes to another";
                    return Err(Failure::user("JobPreparationTaskFailed", message));
                }
                State::Idle | State::Running => {}
            }
            prepared.await;
        }
    }

    /// Whether words wait for job-svc.
    pub fn has_words(&self) -> bool {
        self.inner().tasks.has_words()
    }

    /// What is to be told to job-svc.
    pub fn take_words(&self, max: usize) -> Vec<JobNodeReport> {
        self.inner().tasks.take_words(max).iter().map(report).collect()
    }

    /// The stream was lost.
    pub fn requeue_words(&self) {
        self.inner().tasks.requeue_words();
    }

    /// job-svc has these words.
    pub fn acknowledged(&self, keys: &[JobNodeKey]) {
        let mut inner = self.inner();
        for key in keys {
            let kind = match key.task() {
                JobNodeTask::Preparation => Kind::Preparation,
                JobNodeTask::Release => Kind::Release,
                JobNodeTask::Unspecified => continue,
            };
            inner.tasks.acknowledged(key.job_number, kind, key.sequence);
        }
    }

    /// How many of these tasks run.
    pub fn running(&self) -> usize {
        self.inner().tasks.running()
    }

    /// Whether a task runs for which `is_meant` (given job and task) is true.
    pub fn is_running(&self, is_meant: impl Fn(&str, &str) -> bool) -> bool {
        self.inner().tasks.is_running(is_meant)
    }

    /// Stops all of them: the lease is over, or the agent ends.
    pub fn stop_all(&self) {
        let mut inner = self.inner();
        inner.tasks.stop_all();
        for stop in inner.stops.values() {
            stop.cancel();
        }
    }

    fn stop_token(&self, number: u64, kind: Kind) -> CancellationToken {
        let token = CancellationToken::new();
        self.inner().stops.insert((number, kind), token.clone());
        token
    }
}

/// An attempt of a job with a preparation task has arrived.
pub fn join(agent: &Arc<Agent>, key: &Key, assignment: &Assignment) {
    let Some(preparation) = &assignment.preparation else { return };
    let number = assignment.job_number;
    let (_, action) = agent.jobs.inner().tasks.join(number, &key.job, key, preparation.done);
    if action == Some(Action::Prepare) {
        let stop = agent.jobs.stop_token(number, Kind::Preparation);
        let work = prepare(agent.clone(), number, key.job.clone(), preparation.clone(), stop);
        kiln_telemetry::spawn(on_own_thread(work));
    }
}

/// An attempt of a job with a preparation task has ended.
pub fn leave(agent: &Arc<Agent>, key: &Key, number: u64, stopped: bool) {
    let action = agent.jobs.inner().tasks.leave(number, key, stopped);
    act(agent, number, action);
}

/// job-svc asks for the release task of a job.
pub fn release(agent: &Arc<Agent>, asked: ReleaseJob) {
    if kiln_ids::JobId::parse(&asked.job_id).is_err() {
        tracing::warn!(job.id = asked.job_id, "job-svc names a job by an invalid id");
        return;
    }
    let number = asked.job_number;
    let id: Arc<str> = asked.job_id.as_str().into();
    let action = {
        let mut inner = agent.jobs.inner();
        inner.pending.insert(number, asked);
        let action = inner.tasks.release(number, &id);
        if !inner.tasks.awaits_release(number) && action.is_none() {
            inner.pending.remove(&number);
        }
        action
    };
    // It may only have to be told again.
    agent.work_due.notify_one();
    act(agent, number, action);
}

fn act(agent: &Arc<Agent>, number: u64, action: Option<Action>) {
    match action {
        // Only the preparation itself begins again: see `prepare`.
        None | Some(Action::Prepare) => {}
        Some(Action::StopPreparation) => {
            if let Some(stop) = agent.jobs.inner().stops.get(&(number, Kind::Preparation)) {
                stop.cancel();
            }
        }
        Some(Action::Release) => {
            let asked = agent.jobs.inner().pending.remove(&number);
            if let Some(asked) = asked {
                let stop = agent.jobs.stop_token(number, Kind::Release);
                kiln_telemetry::spawn(on_own_thread(run_release(agent.clone(), asked, stop)));
            }
        }
    }
}

async fn prepare(agent: Arc<Agent>, number: u64, job: Arc<str>, preparation: Preparation, mut stop: CancellationToken) {
    let spec = preparation.spec.unwrap_or_default();
    let task =
        JobTask { number, kind: Kind::Preparation, job: &job, spec: &spec, environment: &preparation.environment };
    loop {
        let run = task.run(&agent, None, &stop).await;
        let (succeeded, stopped) = (run.succeeded(), stop.is_cancelled());
        let action = agent.jobs.inner().tasks.prepared(number, succeeded, stopped);
        agent.jobs.prepared.notify_waiters();
        if action != Some(Action::Prepare) || agent.closing.is_cancelled() {
            task.is_over(&agent);
            act(&agent, number, action);
            return;
        }
        stop = agent.jobs.stop_token(number, Kind::Preparation);
    }
}

async fn run_release(agent: Arc<Agent>, asked: ReleaseJob, stop: CancellationToken) {
    let spec = asked.spec.unwrap_or_default();
    let job: Arc<str> = asked.job_id.as_str().into();
    let number = asked.job_number;
    let task = JobTask { number, kind: Kind::Release, job: &job, spec: &spec, environment: &asked.environment };
    let preparation = Some(&*asked.preparation_task_id).filter(|id| TaskId::parse(id).is_ok());
    task.run(&agent, preparation, &stop).await;
    agent.jobs.inner().tasks.released(number);
    task.is_over(&agent);
}

/// One of the two tasks of a job.
struct JobTask<'a> {
    number: u64,
    kind: Kind,
    job: &'a Arc<str>,
    spec: &'a TaskSpec,
    environment: &'a [EnvironmentSetting],
}

impl JobTask<'_> {
    async fn run(&self, agent: &Arc<Agent>, preparation: Option<&str>, stop: &CancellationToken) -> Run {
        let id: Arc<str> = self.spec.id.as_str().into();
        let constraints = self.spec.constraints.unwrap_or_default();
        let limit = wire::limit(constraints.max_wall_clock_time.as_ref());
        let (name, limit, max_retries) = match self.kind {
            Kind::Preparation => ("preparation", limit, constraints.max_task_retry_count.unwrap_or(0)),
            Kind::Release => ("release", Some(limit.map_or(RELEASE_LIMIT, |limit| limit.min(RELEASE_LIMIT))), 0),
        };
        let told = |run: &Run| {
            agent.jobs.inner().tasks.say(self.number, self.kind, &id, run.clone());
            agent.work_due.notify_one();
        };
        if TaskId::parse(&id).is_err() {
            // It would become the name of a directory.
            let mut run = Run::begin(Timestamp::now());
            let failure = Failure::server("Unknown", format!("the job's {name} task has an invalid id"));
            run.ended(None, Some(failure), Timestamp::now());
            told(&run);
            return run;
        }
        let task = NodeTask {
            dir: agent.root.join(kiln_node::task_dir(self.job, &id)),
            command_line: &self.spec.command_line,
            resource_files: &self.spec.resource_files,
            packages: &self.spec.application_packages,
            settings: self.environment.iter().chain(&self.spec.environment).collect(),
            identity: self.spec.user_identity.as_ref(),
            in_container: self.spec.container_settings.is_some(),
            limit,
            max_retries,
            marker: format!("{}/{}/{id}/{name}-{}", agent.incarnation, self.job, self.number),
            task: Some(TaskFacts {
                preparation_dir: preparation.map(|id| preparation_dir(agent, self.job, id)),
                ..TaskFacts::new(self.job, &id)
            }),
        };
        let span = tracing::info_span!("job.task", kind = name, job.id = &**self.job, task.id = &*id);
        let run = node_task::run(agent, &task, stop, told).instrument(span).await;
        agent.keep(task.dir, wire::limit(constraints.retention_time.as_ref()));
        match &run.failure {
            None => tracing::info!(job.id = &**self.job, task.id = &*id, "the job's {name} task has succeeded"),
            Some(failure) => {
                tracing::info!(job.id = &**self.job, task.id = &*id, %failure, "the job's {name} task has failed");
            }
        }
        run
    }

    fn is_over(&self, agent: &Agent) {
        agent.jobs.inner().stops.remove(&(self.number, self.kind));
        agent.ended.notify_waiters();
    }
}

fn report(word: &Word) -> JobNodeReport {
    let task = match word.kind {
        Kind::Preparation => JobNodeTask::Preparation,
        Kind::Release => JobNodeTask::Release,
    };
    let key = JobNodeKey {
        job_id: word.job.to_string(),
        job_number: word.number,
        task: task.into(),
        sequence: word.sequence,
    };
    let info = wire::node_task_info(&word.run, kiln_node::task_dir(&word.job, &word.task));
    JobNodeReport { key: Some(key), info: Some(info) }
}
