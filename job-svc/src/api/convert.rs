//! Records to messages.

use kiln_proto::common::v1::{ExecutionResult, NameValue};
use kiln_proto::job::v1 as wire;
use kiln_proto::time::timestamp;
use kiln_time::Timestamp;
use prost::Message;

use crate::domain::Error;
use crate::domain::auto_pool::without_secrets;
use crate::domain::etag;
use crate::domain::job::JobState;
use crate::domain::schedule::ScheduleId;
use crate::domain::subtask::{Subtask, SubtaskPhase, SubtaskState};
use crate::domain::task::{AttemptRecord, LatestAttempt, Outcome, Run, TaskState};
use crate::store::schedules::ScheduleRow;
use crate::store::{Counts, JobNodeRow, JobRow, TaskRow, events};

fn at(time: Timestamp) -> Option<prost_types::Timestamp> {
    Some(timestamp(time.as_micros()))
}

/// A job.
pub fn job(row: &JobRow) -> wire::Job {
    let (previous, previous_since) = match row.life.previous {
        Some((state, since)) => (events::job_state(state), at(since)),
        None => (wire::JobState::Unspecified, None),
    };
    wire::Job {
        id: row.job.as_str().to_owned(),
        spec: Some(without_secrets((*row.spec).clone())),
        state: events::job_state(row.life.state).into(),
        state_transition_time: at(row.life.since),
        previous_state: previous.into(),
        previous_state_transition_time: previous_since,
        etag: etag::of(row.last_modified),
        creation_time: at(row.created),
        last_modified: at(row.last_modified),
        end_time: row.life.end.and_then(at),
        terminate_reason: row.life.terminate_reason.clone(),
        scheduling_error: row.life.scheduling_error.clone(),
        pool_id: row.pool.as_str().to_owned(),
        job_schedule_id: ScheduleId::of_job(&row.job).map(|id| id.as_str().to_owned()).unwrap_or_default(),
    }
}

/// A schedule, as it is at `now`.
pub fn schedule(row: &ScheduleRow, now: Timestamp) -> wire::JobSchedule {
    let (previous, previous_since) = match row.life.previous {
        Some((state, since)) => (events::schedule_state(state), at(since)),
        None => (wire::JobScheduleState::Unspecified, None),
    };
    wire::JobSchedule {
        id: row.id.as_str().to_owned(),
        spec: Some(wire::JobScheduleSpec { job: row.spec.job.clone().map(without_secrets), ..(*row.spec).clone() }),
        state: events::schedule_state(row.life.state).into(),
        state_transition_time: at(row.life.since),
        previous_state: previous.into(),
        previous_state_transition_time: previous_since,
        etag: etag::of(row.last_modified),
        creation_time: at(row.created),
        last_modified: at(row.last_modified),
        end_time: row.life.end.and_then(at),
        next_run_time: row.life.next_run_time(&row.timing, now).and_then(at),
        recent_job_id: row.recent_job().map(|job| job.as_str().to_owned()).unwrap_or_default(),
    }
}

fn result_of(outcome: Outcome) -> ExecutionResult {
    match outcome {
        Outcome::Succeeded => ExecutionResult::Success,
        Outcome::Failed | Outcome::Terminated | Outcome::Requeued | Outcome::NodeLost | Outcome::Preempted => {
            ExecutionResult::Failure
        }
    }
}

/// A task.
///
/// # Errors
/// If its stored spec cannot be read.
pub fn task(job: &JobRow, row: &TaskRow) -> Result<wire::Task, Error> {
    let spec = wire::TaskSpec::decode(row.spec.clone())
        .map_err(|error| kiln_store::StoreError::Damaged(format!("task spec: {error}")))?;
    let task = &row.task;
    let mut execution = wire::TaskExecutionInfo {
        retry_count: count(task.retry_count),
        last_retry_time: task.last_retry.and_then(at),
        requeue_count: count(task.requeue_count),
        last_requeue_time: task.last_requeue.and_then(at),
        internal_retry_count: count(task.internal_retry_count),
        ..wire::TaskExecutionInfo::default()
    };
    let mut node = None;
    match &task.state {
        TaskState::Active => {}
        TaskState::Running { node: runs_on, assigned, started, .. } => {
            execution.start_time = at(started.unwrap_or(*assigned));
            node = Some(runs_on);
        }
        TaskState::Completed { end, outcome, run, exit_code, failure } => {
            execution.start_time = run.as_ref().and_then(|run| at(run.started.unwrap_or(run.assigned)));
            execution.end_time = at(*end);
            execution.exit_code = *exit_code;
            execution.failure.clone_from(failure);
            execution.result = result_of(*outcome).into();
            node = run.as_ref().map(|run| &run.node);
        }
    }
    let (previous, previous_since) = match task.previous {
        Some((phase, since)) => (events::task_state(phase), at(since)),
        None => (wire::TaskState::Unspecified, None),
    };
    Ok(wire::Task {
        job_id: job.job.as_str().to_owned(),
        spec: Some(spec),
        state: events::task_state(task.state.phase()).into(),
        state_transition_time: at(task.since),
        previous_state: previous.into(),
        previous_state_transition_time: previous_since,
        etag: etag::of(row.last_modified),
        creation_time: at(row.created),
        last_modified: at(row.last_modified),
        execution: Some(execution),
        node: node.map(|node| wire::TaskNodeInfo {
            pool_id: job.pool.as_str().to_owned(),
            node_id: node.as_str().to_owned(),
            task_root_directory: kiln_node::task_dir(job.job.as_str(), row.id.as_str()),
        }),
        attempt: task.attempt,
    })
}

fn count(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn attempt(number: u32, run: &Run) -> wire::Attempt {
    wire::Attempt {
        number,
        node_id: run.node.as_str().to_owned(),
        assigned_time: at(run.assigned),
        start_time: run.started.and_then(at),
        ..wire::Attempt::default()
    }
}

/// An attempt that is over.
pub fn past_attempt(record: &AttemptRecord) -> wire::Attempt {
    let outcome = match record.outcome {
        Outcome::Succeeded => wire::AttemptOutcome::Succeeded,
        Outcome::Failed => wire::AttemptOutcome::Failed,
        Outcome::Terminated => wire::AttemptOutcome::Terminated,
        Outcome::Requeued => wire::AttemptOutcome::Requeued,
        Outcome::NodeLost => wire::AttemptOutcome::NodeLost,
        Outcome::Preempted => wire::AttemptOutcome::Preempted,
    };
    wire::Attempt {
        end_time: at(record.end),
        exit_code: record.exit_code,
        failure: record.failure.clone(),
        outcome: outcome.into(),
        reason: record.requeued.map_or_else(String::new, |cause| cause.reason().to_owned()),
        ..attempt(record.number, &record.run)
    }
}

/// Preparation and release of a job on one node.
pub fn job_node(row: JobNodeRow) -> wire::JobNodeStatus {
    wire::JobNodeStatus {
        pool_id: row.pool.as_str().to_owned(),
        node_id: row.node.as_str().to_owned(),
        preparation: row.preparation,
        release: row.release,
    }
}

/// The latest attempt.
pub fn latest_attempt(latest: &LatestAttempt) -> wire::Attempt {
    match latest {
        LatestAttempt::Running { number, run } => attempt(*number, run),
        LatestAttempt::Over(record) => past_attempt(record),
    }
}

/// A job's counts: tasks, then slots.
pub fn counts(counts: &Counts) -> wire::CountTasksResponse {
    let message = |[active, running, succeeded, failed]: [i64; 4]| wire::TaskCounts {
        active,
        running,
        completed: succeeded + failed,
        succeeded,
        failed,
    };
    wire::CountTasksResponse { tasks: Some(message(counts.tasks)), slots: Some(message(counts.slots)) }
}

/// Why a task was not added.
pub fn add_error(error: Error) -> wire::AddTaskError {
    let error = kiln_error::Error::from(error);
    wire::AddTaskError {
        reason: error.reason().to_owned(),
        message: error.message().to_owned(),
        details: error
            .details()
            .iter()
            .map(|(name, value)| NameValue { name: name.clone(), value: value.clone() })
            .collect(),
        retryable: error.kind().is_retryable(),
    }
}

/// The name of a job's state in filters.
pub fn state_name(state: JobState) -> &'static str {
    state.name()
}

/// An instance of a multi-instance task.
pub fn subtask(job: &JobRow, task: &TaskRow, subtask: &Subtask) -> wire::Subtask {
    let state = |phase: SubtaskPhase| match phase {
        SubtaskPhase::Preparing => wire::SubtaskState::Preparing,
        SubtaskPhase::Running => wire::SubtaskState::Running,
        SubtaskPhase::Completed => wire::SubtaskState::Completed,
    };
    let (previous, previous_since) = match subtask.previous {
        Some((phase, since)) => (state(phase), at(since)),
        None => (wire::SubtaskState::Unspecified, None),
    };
    let mut message = wire::Subtask {
        id: i32::try_from(subtask.instance).unwrap_or(i32::MAX),
        node: Some(wire::TaskNodeInfo {
            pool_id: job.pool.as_str().to_owned(),
            node_id: subtask.node.as_str().to_owned(),
            task_root_directory: kiln_node::task_dir(job.job.as_str(), task.id.as_str()),
        }),
        state: state(subtask.state.phase()).into(),
        state_transition_time: at(subtask.since),
        previous_state: previous.into(),
        previous_state_transition_time: previous_since,
        ..wire::Subtask::default()
    };
    match &subtask.state {
        SubtaskState::Preparing => {}
        SubtaskState::Running { started, .. } => message.start_time = at(*started),
        SubtaskState::Completed { started, end, exit_code, failure } => {
            message.start_time = started.and_then(at);
            message.end_time = at(*end);
            message.exit_code = *exit_code;
            let result = if failure.is_some() { ExecutionResult::Failure } else { ExecutionResult::Success };
            message.result = result.into();
            message.failure.clone_from(failure);
        }
    }
    message
}
