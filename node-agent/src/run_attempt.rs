//! One attempt of a task from assignment to result.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kiln_ids::TaskId;
use kiln_proto::job::v1::{Assignment, MultiInstanceSettings};
use kiln_telemetry::propagation;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use crate::agent::Agent;
use crate::clock;
use crate::confine::{Asked, Confined};
use crate::domain::attempt::{Attempt, Event, StopCause};
use crate::domain::environment::{self, ProcessFacts, TaskFacts, Token};
use crate::domain::failure::Failure;
use crate::domain::ledger::Key;
use crate::instance::{self, Coordination, Held};
use crate::job_tasks;
use crate::process::launch::Launch;
use crate::process::supervisor::Running;
use crate::record::Recorded;
use crate::run_process::{self, Place};
use crate::stage::output::Job;
use crate::wire;

/// For so long the attempt's own thread waits for the process itself, and nobody is told that
/// it has begun. A stop may come later by as much.
const BRIEF: Duration = Duration::from_millis(20);

/// A process that runs, and what is needed after its end.
struct Started {
    running: Running,
    confined: Confined,
    /// Of an instance of a multi-instance task.
    held: Option<Held>,
    dir: PathBuf,
    working_dir: PathBuf,
    environment: BTreeMap<String, String>,
    recorded: Recorded,
}

/// Runs the attempt; every step is told to the ledger. Needs [a thread of its
/// own](run_process::on_own_thread).
pub async fn run_attempt(agent: Arc<Agent>, key: Key, assignment: Assignment, stop: CancellationToken) {
    let span = tracing::info_span!(
        "task.attempt",
        account = agent.registration().account,
        pool.id = agent.config.join.pool_id,
        node.id = agent.config.join.node_id,
        job.id = &*key.job,
        task.id = &*key.task,
        attempt = key.attempt,
        queue_wait_ms = queue_wait_ms(&assignment),
        exit_code = tracing::field::Empty,
        failure = tracing::field::Empty,
    );
    propagation::continue_from_text(&span, &assignment.traceparent);
    let stopped = steps(&agent, &key, &assignment, &stop, &span).instrument(span.clone()).await;
    if assignment.preparation.is_some() {
        job_tasks::leave(&agent, &key, assignment.job_number, stopped);
    }
    let spec = assignment.spec.unwrap_or_default();
    let said = wire::limit(spec.constraints.and_then(|constraints| constraints.retention_time).as_ref());
    agent.keep(agent.root.join(kiln_node::task_dir(&key.job, &key.task)), said);
}

/// True if the attempt was stopped from outside.
async fn steps(agent: &Arc<Agent>, key: &Key, assignment: &Assignment, stop: &CancellationToken, span: &Span) -> bool {
    if !is_prepared(agent, key, assignment, stop).await {
        return stop.is_cancelled();
    }
    tracing::debug!("attempt begins");
    let started = match begin(agent, key, assignment, stop, span).await {
        Ok(Some(started)) => started,
        Ok(None) => {
            // An instance may have ended already; then this changes nothing.
            agent.apply(key, Event::Interrupted);
            return stop.is_cancelled();
        }
        Err(failure) => {
            span.record("failure", failure.code);
            tracing::debug!(%failure, "the attempt cannot be started");
            agent.apply(key, Event::PreFailed(failure));
            return stop.is_cancelled();
        }
    };
    let Started { mut running, confined, held, dir, working_dir, environment, recorded } = started;
    agent.apply(key, Event::Started);
    let spec = assignment.spec.as_ref();
    let limit = spec.and_then(|spec| spec.constraints.as_ref()?.max_wall_clock_time.as_ref());
    let limit = wire::limit(limit);
    if running.wait_briefly(limit.map_or(BRIEF, |limit| limit.min(BRIEF))).is_none() {
        agent.tell_reports();
    }
    let (code, broken) = confined
        .wait(running, stop, limit, || {
            agent.apply(key, Event::WallClock);
        })
        .instrument(tracing::info_span!("task.run"))
        .await;
    if let Some(held) = held {
        held.release().await;
    }
    recorded.ended(code);
    drop(confined);
    span.record("exit_code", code);
    // Whoever killed it then, perhaps the guard while this agent stood still: another node has the task now, or will.
    if agent.with_work(|_, lease| lease.valid_until().is_some_and(|end| clock::since_boot() >= end)) {
        agent.apply(key, Event::Stop(StopCause::LeaseLost));
    }
    let Some(Attempt::StagingOut { expired, .. }) = agent.apply(key, Event::Exited { code, broken }) else {
        return true;
    };
    let files = spec.map(|spec| spec.output_files.as_slice()).unwrap_or_default();
    if assignment.retry_follows && code != 0 && !expired && !files.is_empty() {
        agent.apply(key, Event::Kept);
        return false;
    }
    if !files.is_empty() {
        agent.tell_reports();
    }
    let job = Job {
        files,
        exit_code: code,
        working_dir: &working_dir,
        task_dir: &dir,
        root_dir: &agent.root,
        environment: &environment,
    };
    let event = tokio::select! {
        biased;
        uploaded = agent.output.upload_all(job).instrument(tracing::info_span!("task.stage_out")) => match uploaded {
            Ok(()) => Event::Uploaded,
            Err(failure) => {
                span.record("failure", failure.code);
                Event::UploadFailed(failure)
            }
        },
        () = stop.cancelled() => Event::Interrupted,
    };
    let stopped = event == Event::Interrupted;
    agent.apply(key, event);
    stopped
}

/// Waits for the job's preparation task, if the attempt has to. False if the
/// attempt has ended instead.
async fn is_prepared(agent: &Agent, key: &Key, assignment: &Assignment, stop: &CancellationToken) -> bool {
    if !assignment.preparation.as_ref().is_some_and(|preparation| preparation.wait_for_success) {
        return true;
    }
    let event = tokio::select! {
        biased;
        () = stop.cancelled() => Event::Interrupted,
        prepared = agent.jobs.wait(assignment.job_number) => match prepared {
            Ok(()) => Event::Begin,
            Err(failure) => Event::BeginFailed(failure),
        },
    };
    let begins = event == Event::Begin;
    agent.apply(key, event);
    begins
}

/// Directory, resource files, process; `None` if a stop came first, or if the attempt has
/// ended before its own process. Only the transfer of
/// files is broken off: a process that is just being started must not be lost.
async fn begin(
    agent: &Arc<Agent>,
    key: &Key,
    assignment: &Assignment,
    stop: &CancellationToken,
    span: &Span,
) -> Result<Option<Started>, Failure> {
    let spec = assignment.spec.as_ref().ok_or_else(|| Failure::server("Unknown", "the assignment has no task"))?;
    // Better a clear failure than a task that runs without what it needs.
    if spec.container_settings.is_some() {
        return Err(Failure::user("ContainerMiscError", "nodes of this pool cannot run containers"));
    }
    let whom = agent.confiner.whom(agent, spec.user_identity.as_ref())?;
    let dir = agent.root.join(kiln_node::task_dir(&key.job, &key.task));
    agent.confiner.close(&dir)?;
    let Place { dir, working_dir, output } = run_process::prepare(&agent.root, dir)?;
    if !spec.resource_files.is_empty() || !spec.application_packages.is_empty() || assignment.instance.is_some() {
        // This may take a while.
        agent.tell_reports();
    }
    let registration = agent.registration();
    let nothing = MultiInstanceSettings::default();
    let settings = assignment.instance.as_ref().map(|_| spec.multi_instance.as_ref().unwrap_or(&nothing));
    let common = settings.map(|settings| settings.common_resource_files.as_slice()).unwrap_or_default();
    let is_primary = key.instance == 0;
    let own = if is_primary { spec.resource_files.as_slice() } else { &[] };
    let fetch = async {
        let packages = agent.packages.install(&spec.application_packages, &registration.blob_endpoint).await?;
        agent.input.fetch_all(common, &dir, &registration.blob_endpoint).await?;
        agent.input.fetch_all(own, &working_dir, &registration.blob_endpoint).await?;
        Ok::<_, Failure>(packages)
    }
    .instrument(tracing::info_span!("task.stage_in", files = common.len() + own.len()));
    let packages = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(None),
        fetched = fetch => fetched?,
    };
    let marker = format!("{}/{}/{}/{}/{}", agent.incarnation, key.job, key.task, key.attempt, key.instance);
    let preparation = assignment.preparation.as_ref().and_then(|preparation| preparation.spec.as_ref());
    let task = TaskFacts {
        attempt: Some((key.attempt, spec.required_slots.max(1))),
        preparation_dir: preparation
            .filter(|preparation| TaskId::parse(&preparation.id).is_ok())
            .map(|preparation| job_tasks::preparation_dir(agent, &key.job, &preparation.id)),
        instance: assignment.instance.as_ref().map(|instance| instance::facts(instance, &dir)),
        token: Token(assignment.authentication_token.clone()),
        ..TaskFacts::new(&key.job, &key.task)
    };
    // Without an exporter there is no span of ours: the caller's goes on.
    let own = propagation::traceparent_of(span);
    let traceparent = if own.is_empty() { &assignment.traceparent } else { &own };
    let facts = ProcessFacts {
        task: Some(&task),
        task_dir: &dir.to_string_lossy(),
        working_dir: &working_dir.to_string_lossy(),
        marker: &marker,
        traceparent,
        tracestate: &assignment.tracestate,
        packages: &packages,
    };
    let variables = assignment.environment.iter().chain(&spec.environment);
    let mut environment =
        environment::build(&agent.facts(), &facts, variables.map(|setting| (&*setting.name, &*setting.value)));
    let asked = Asked { whom, resources: spec.resources.as_ref(), is_open: false, dir: &dir };
    let confined = Confined::enter(&agent.confiner, &asked)?;
    confined.add_variables(&mut environment);
    // Dropped after the last process also where the attempt ends on the way.
    let recorded = agent.record.starting(key)?;
    let held = match settings {
        None => None,
        Some(settings) => {
            let coordination = Coordination {
                command_line: &settings.coordination_command_line,
                environment: &environment,
                working_dir: &working_dir,
                output: &output,
                marker: &marker,
                limit: wire::limit(spec.constraints.as_ref().and_then(|all| all.max_wall_clock_time.as_ref())),
                confined: &confined,
                is_primary,
            };
            match instance::hold_place(agent, key, coordination, stop).await? {
                Some(held) => Some(held),
                None => return Ok(None),
            }
        }
    };
    // For the patterns of output files, which may name variables.
    let kept = if spec.output_files.is_empty() { BTreeMap::new() } else { environment.clone() };
    let launch =
        Launch { command_line: spec.command_line.clone(), environment, working_dir: working_dir.clone(), output };
    let running = match confined.start(agent, launch, &marker) {
        Ok(running) => running,
        Err(failure) => {
            if let Some(held) = held {
                held.release().await;
            }
            return Err(failure);
        }
    };
    recorded.running(running.pid());
    Ok(Some(Started { running, confined, held, dir, working_dir, environment: kept, recorded }))
}

fn queue_wait_ms(assignment: &Assignment) -> u64 {
    let micros = |time: &Option<prost_types::Timestamp>| time.as_ref().map(kiln_proto::time::micros);
    match (micros(&assignment.created_time), micros(&assignment.assigned_time)) {
        (Some(created), Some(assigned)) => u64::try_from((assigned - created) / 1000).unwrap_or(0),
        _ => 0,
    }
}
