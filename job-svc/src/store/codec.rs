//! How the changing parts of jobs and tasks are packed into one column each.
//!
//! They are written on every step of a task and only read as a whole, so one
//! compact value is cheaper than a dozen columns. Fields are only ever added.

use std::sync::Arc;

use kiln_ids::NodeId;
use kiln_proto::common::v1::FailureInfo;
use kiln_store::StoreError;
use kiln_time::Timestamp;
use prost::Message;

use crate::domain::job::{DisableTasks, JobLife, JobState};
use crate::domain::needs::Needs;
use crate::domain::subtask::{Subtask, SubtaskPhase, SubtaskState};
use crate::domain::task::{AttemptRecord, Outcome, Phase, RequeueCause, Run, Task, TaskState};

#[derive(Clone, PartialEq, prost::Message)]
struct StoredTask {
    #[prost(uint32, tag = "1")]
    phase: u32,
    #[prost(sfixed64, tag = "2")]
    since: i64,
    #[prost(uint32, tag = "3")]
    previous_phase: u32,
    #[prost(sfixed64, tag = "4")]
    previous_since: i64,
    #[prost(uint32, tag = "5")]
    attempt: u32,
    #[prost(uint32, tag = "6")]
    retry_count: u32,
    #[prost(sfixed64, optional, tag = "7")]
    last_retry: Option<i64>,
    #[prost(uint32, tag = "8")]
    requeue_count: u32,
    #[prost(sfixed64, optional, tag = "9")]
    last_requeue: Option<i64>,
    #[prost(uint32, tag = "10")]
    internal_retry_count: u32,
    #[prost(message, optional, tag = "11")]
    run: Option<StoredRun>,
    #[prost(message, optional, tag = "12")]
    end: Option<StoredEnd>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredRun {
    #[prost(string, tag = "1")]
    node: String,
    #[prost(sfixed64, tag = "2")]
    assigned: i64,
    #[prost(sfixed64, optional, tag = "3")]
    started: Option<i64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredEnd {
    #[prost(sfixed64, tag = "1")]
    end: i64,
    #[prost(uint32, tag = "2")]
    outcome: u32,
    #[prost(int32, optional, tag = "3")]
    exit_code: Option<i32>,
    #[prost(message, optional, tag = "4")]
    failure: Option<FailureInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredAttempt {
    #[prost(uint32, tag = "1")]
    number: u32,
    #[prost(message, optional, tag = "2")]
    run: Option<StoredRun>,
    #[prost(message, optional, tag = "3")]
    end: Option<StoredEnd>,
    /// Why it was given back; 0 if it was not.
    #[prost(uint32, tag = "4")]
    requeued: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredSubtask {
    #[prost(uint32, tag = "1")]
    attempt: u32,
    #[prost(string, tag = "2")]
    node: String,
    /// 1 preparing, 2 running, 3 running and ready, 4 completed.
    #[prost(uint32, tag = "3")]
    state: u32,
    #[prost(sfixed64, tag = "4")]
    since: i64,
    #[prost(uint32, tag = "5")]
    previous: u32,
    #[prost(sfixed64, tag = "6")]
    previous_since: i64,
    #[prost(sfixed64, optional, tag = "7")]
    started: Option<i64>,
    #[prost(sfixed64, tag = "8")]
    end: i64,
    #[prost(int32, optional, tag = "9")]
    exit_code: Option<i32>,
    #[prost(message, optional, tag = "10")]
    failure: Option<FailureInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredLife {
    #[prost(uint32, tag = "1")]
    state: u32,
    #[prost(sfixed64, tag = "2")]
    since: i64,
    #[prost(uint32, tag = "3")]
    previous: u32,
    #[prost(sfixed64, tag = "4")]
    previous_since: i64,
    #[prost(sfixed64, optional, tag = "5")]
    end: Option<i64>,
    #[prost(string, tag = "6")]
    terminate_reason: String,
    #[prost(message, optional, tag = "7")]
    scheduling_error: Option<FailureInfo>,
}

/// Of [`Needs`], apart from slots.
#[derive(Clone, PartialEq, prost::Message)]
struct StoredNeeds {
    #[prost(uint32, tag = "1")]
    cpu_millis: u32,
    #[prost(uint64, tag = "2")]
    memory_bytes: u64,
    #[prost(uint64, tag = "3")]
    disk_bytes: u64,
    #[prost(uint32, tag = "4")]
    gpus: u32,
    /// 0 stands for 1.
    #[prost(uint32, tag = "5")]
    instances: u32,
    #[prost(bool, tag = "6")]
    exclusive: bool,
    #[prost(bool, tag = "7")]
    dedicated_only: bool,
    #[prost(bool, tag = "8")]
    manager: bool,
}

/// Packs what a task needs beside slots; `None` if that is nothing.
pub fn encode_needs(needs: &Needs) -> Option<Vec<u8>> {
    if needs.is_plain() {
        return None;
    }
    let stored = StoredNeeds {
        cpu_millis: needs.cpu_millis,
        memory_bytes: needs.memory_bytes,
        disk_bytes: needs.disk_bytes,
        gpus: needs.gpus.into(),
        instances: if needs.instances == 1 { 0 } else { needs.instances.into() },
        exclusive: needs.exclusive,
        dedicated_only: needs.dedicated_only,
        manager: needs.manager,
    };
    Some(stored.encode_to_vec())
}

/// Unpacks what [`encode_needs`] packed.
///
/// # Errors
/// [`StoreError::Damaged`] if it cannot be understood.
pub fn decode_needs(slots: u16, bytes: &[u8]) -> Result<Needs, StoreError> {
    let stored = StoredNeeds::decode(bytes).map_err(|error| damaged(format!("needs: {error}")))?;
    let small = |number: u32| u16::try_from(number).map_err(|_| damaged(format!("needs: {number}")));
    Ok(Needs {
        slots,
        cpu_millis: stored.cpu_millis,
        memory_bytes: stored.memory_bytes,
        disk_bytes: stored.disk_bytes,
        gpus: small(stored.gpus)?,
        instances: small(stored.instances)?.max(1),
        exclusive: stored.exclusive,
        dedicated_only: stored.dedicated_only,
        manager: stored.manager,
    })
}

/// The number under which a phase is kept.
pub fn phase_number(phase: Phase) -> u32 {
    match phase {
        Phase::Active => 1,
        Phase::Preparing => 2,
        Phase::Running => 3,
        Phase::Completed => 4,
    }
}

fn phase(number: u32) -> Option<Phase> {
    match number {
        1 => Some(Phase::Active),
        2 => Some(Phase::Preparing),
        3 => Some(Phase::Running),
        4 => Some(Phase::Completed),
        _ => None,
    }
}

fn outcome_number(outcome: Outcome) -> u32 {
    match outcome {
        Outcome::Succeeded => 1,
        Outcome::Failed => 2,
        Outcome::Terminated => 3,
        Outcome::Requeued => 4,
        Outcome::NodeLost => 5,
        Outcome::Preempted => 6,
    }
}

fn outcome(number: u32) -> Result<Outcome, StoreError> {
    Ok(match number {
        1 => Outcome::Succeeded,
        2 => Outcome::Failed,
        3 => Outcome::Terminated,
        4 => Outcome::Requeued,
        5 => Outcome::NodeLost,
        6 => Outcome::Preempted,
        other => return Err(damaged(format!("outcome {other}"))),
    })
}

fn cause_number(cause: RequeueCause) -> u32 {
    match cause {
        RequeueCause::JobDisabled => 1,
        RequeueCause::NodeAction => 2,
        RequeueCause::NodeLost => 3,
        RequeueCause::AgentFailure => 4,
        RequeueCause::PreparationFailed => 5,
        RequeueCause::Preempted => 6,
        RequeueCause::NotStarted => 7,
    }
}

fn cause(number: u32) -> Result<Option<RequeueCause>, StoreError> {
    Ok(Some(match number {
        0 => return Ok(None),
        1 => RequeueCause::JobDisabled,
        2 => RequeueCause::NodeAction,
        3 => RequeueCause::NodeLost,
        4 => RequeueCause::AgentFailure,
        5 => RequeueCause::PreparationFailed,
        6 => RequeueCause::Preempted,
        7 => RequeueCause::NotStarted,
        other => return Err(damaged(format!("requeue cause {other}"))),
    }))
}

fn damaged(what: impl Into<String>) -> StoreError {
    StoreError::Damaged(what.into())
}

fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

fn stored_run(run: &Run) -> StoredRun {
    StoredRun {
        node: run.node.as_str().to_owned(),
        assigned: run.assigned.as_micros(),
        started: run.started.map(Timestamp::as_micros),
    }
}

fn run(stored: StoredRun) -> Result<Run, StoreError> {
    let node = NodeId::parse(&stored.node).map_err(|why| damaged(why.to_string()))?;
    Ok(Run { node: Arc::new(node), assigned: at(stored.assigned), started: stored.started.map(at) })
}

/// Packs what changes about a task.
pub fn encode_task(task: &Task) -> Vec<u8> {
    let (run, end) = match &task.state {
        TaskState::Active => (None, None),
        TaskState::Running { node, assigned, started, .. } => {
            (Some(stored_run(&Run { node: node.clone(), assigned: *assigned, started: *started })), None)
        }
        TaskState::Completed { end, outcome, run, exit_code, failure } => (
            run.as_ref().map(stored_run),
            Some(StoredEnd {
                end: end.as_micros(),
                outcome: outcome_number(*outcome),
                exit_code: *exit_code,
                failure: failure.clone(),
            }),
        ),
    };
    let stored = StoredTask {
        phase: phase_number(task.state.phase()),
        since: task.since.as_micros(),
        previous_phase: task.previous.map_or(0, |(phase, _)| phase_number(phase)),
        previous_since: task.previous.map_or(0, |(_, since)| since.as_micros()),
        attempt: task.attempt,
        retry_count: task.retry_count,
        last_retry: task.last_retry.map(Timestamp::as_micros),
        requeue_count: task.requeue_count,
        last_requeue: task.last_requeue.map(Timestamp::as_micros),
        internal_retry_count: task.internal_retry_count,
        run,
        end,
    };
    stored.encode_to_vec()
}

/// Unpacks what [`encode_task`] packed.
///
/// # Errors
/// [`StoreError::Damaged`] if it cannot be understood.
pub fn decode_task(bytes: &[u8]) -> Result<Task, StoreError> {
    let stored = StoredTask::decode(bytes).map_err(|error| damaged(format!("task: {error}")))?;
    let run = stored.run.map(run).transpose()?;
    let state = match phase(stored.phase) {
        Some(Phase::Active) => TaskState::Active,
        Some(phase @ (Phase::Preparing | Phase::Running)) => {
            let run = run.ok_or_else(|| damaged("a running task without a node"))?;
            let preparing = phase == Phase::Preparing;
            TaskState::Running { node: run.node, assigned: run.assigned, started: run.started, preparing }
        }
        Some(Phase::Completed) => {
            let end = stored.end.ok_or_else(|| damaged("a completed task without an end"))?;
            TaskState::Completed {
                end: at(end.end),
                outcome: outcome(end.outcome)?,
                run,
                exit_code: end.exit_code,
                failure: end.failure,
            }
        }
        None => return Err(damaged(format!("task phase {}", stored.phase))),
    };
    Ok(Task {
        state,
        since: at(stored.since),
        previous: phase(stored.previous_phase).map(|phase| (phase, at(stored.previous_since))),
        attempt: stored.attempt,
        retry_count: stored.retry_count,
        last_retry: stored.last_retry.map(at),
        requeue_count: stored.requeue_count,
        last_requeue: stored.last_requeue.map(at),
        internal_retry_count: stored.internal_retry_count,
    })
}

/// Packs an attempt that is over.
pub fn encode_attempt(attempt: &AttemptRecord) -> Vec<u8> {
    let stored = StoredAttempt {
        number: attempt.number,
        run: Some(stored_run(&attempt.run)),
        end: Some(StoredEnd {
            end: attempt.end.as_micros(),
            outcome: outcome_number(attempt.outcome),
            exit_code: attempt.exit_code,
            failure: attempt.failure.clone(),
        }),
        requeued: attempt.requeued.map_or(0, cause_number),
    };
    stored.encode_to_vec()
}

/// Unpacks what [`encode_attempt`] packed.
///
/// # Errors
/// [`StoreError::Damaged`] if it cannot be understood.
pub fn decode_attempt(bytes: &[u8]) -> Result<AttemptRecord, StoreError> {
    let stored = StoredAttempt::decode(bytes).map_err(|error| damaged(format!("attempt: {error}")))?;
    let (Some(stored_run), Some(end)) = (stored.run, stored.end) else {
        return Err(damaged("an attempt without run or end"));
    };
    Ok(AttemptRecord {
        number: stored.number,
        run: run(stored_run)?,
        end: at(end.end),
        exit_code: end.exit_code,
        failure: end.failure,
        outcome: outcome(end.outcome)?,
        requeued: cause(stored.requeued)?,
    })
}

/// Packs an instance of a multi-instance task.
pub fn encode_subtask(subtask: &Subtask) -> Vec<u8> {
    let mut stored = StoredSubtask {
        attempt: subtask.attempt,
        node: subtask.node.as_str().to_owned(),
        since: subtask.since.as_micros(),
        previous: subtask.previous.map_or(0, |(phase, _)| subtask_phase_number(phase)),
        previous_since: subtask.previous.map_or(0, |(_, since)| since.as_micros()),
        ..StoredSubtask::default()
    };
    match &subtask.state {
        SubtaskState::Preparing => stored.state = 1,
        SubtaskState::Running { started, ready } => {
            stored.state = if *ready { 3 } else { 2 };
            stored.started = Some(started.as_micros());
        }
        SubtaskState::Completed { started, end, exit_code, failure } => {
            stored.state = 4;
            stored.started = started.map(Timestamp::as_micros);
            stored.end = end.as_micros();
            stored.exit_code = *exit_code;
            stored.failure.clone_from(failure);
        }
    }
    stored.encode_to_vec()
}

/// Unpacks what [`encode_subtask`] packed.
///
/// # Errors
/// [`StoreError::Damaged`] if it cannot be understood.
pub fn decode_subtask(instance: u32, bytes: &[u8]) -> Result<Subtask, StoreError> {
    let stored = StoredSubtask::decode(bytes).map_err(|error| damaged(format!("subtask: {error}")))?;
    let started = stored.started.map(at);
    let state = match (stored.state, started) {
        (1, _) => SubtaskState::Preparing,
        (2 | 3, Some(started)) => SubtaskState::Running { started, ready: stored.state == 3 },
        (4, started) => SubtaskState::Completed {
            started,
            end: at(stored.end),
            exit_code: stored.exit_code,
            failure: stored.failure,
        },
        (other, _) => return Err(damaged(format!("subtask state {other}"))),
    };
    let previous = match stored.previous {
        1 => Some(SubtaskPhase::Preparing),
        2 => Some(SubtaskPhase::Running),
        3 => Some(SubtaskPhase::Completed),
        _ => None,
    };
    Ok(Subtask {
        instance,
        attempt: stored.attempt,
        node: Arc::new(NodeId::parse(&stored.node).map_err(|why| damaged(why.to_string()))?),
        state,
        since: at(stored.since),
        previous: previous.map(|phase| (phase, at(stored.previous_since))),
    })
}

fn subtask_phase_number(phase: SubtaskPhase) -> u32 {
    match phase {
        SubtaskPhase::Preparing => 1,
        SubtaskPhase::Running => 2,
        SubtaskPhase::Completed => 3,
    }
}

/// The number under which a job's state is kept.
pub fn job_state_number(state: JobState) -> u32 {
    match state {
        JobState::Active => 1,
        JobState::Disabling(DisableTasks::Requeue) => 2,
        JobState::Disabling(DisableTasks::Terminate) => 12,
        JobState::Disabling(DisableTasks::Wait) => 22,
        JobState::Disabled => 3,
        JobState::Enabling => 4,
        JobState::Terminating => 5,
        JobState::Completed => 6,
        JobState::Deleting => 7,
    }
}

/// The state kept under a number.
///
/// # Errors
/// [`StoreError::Damaged`] for unknown numbers.
pub fn job_state(number: u32) -> Result<JobState, StoreError> {
    Ok(match number {
        1 => JobState::Active,
        2 => JobState::Disabling(DisableTasks::Requeue),
        12 => JobState::Disabling(DisableTasks::Terminate),
        22 => JobState::Disabling(DisableTasks::Wait),
        3 => JobState::Disabled,
        4 => JobState::Enabling,
        5 => JobState::Terminating,
        6 => JobState::Completed,
        7 => JobState::Deleting,
        other => return Err(damaged(format!("job state {other}"))),
    })
}

/// Packs the history of a job's state.
pub fn encode_life(life: &JobLife) -> Vec<u8> {
    let stored = StoredLife {
        state: job_state_number(life.state),
        since: life.since.as_micros(),
        previous: life.previous.map_or(0, |(state, _)| job_state_number(state)),
        previous_since: life.previous.map_or(0, |(_, since)| since.as_micros()),
        end: life.end.map(Timestamp::as_micros),
        terminate_reason: life.terminate_reason.clone(),
        scheduling_error: life.scheduling_error.clone(),
    };
    stored.encode_to_vec()
}

/// Unpacks what [`encode_life`] packed.
///
/// # Errors
/// [`StoreError::Damaged`] if it cannot be understood.
pub fn decode_life(bytes: &[u8]) -> Result<JobLife, StoreError> {
    let stored = StoredLife::decode(bytes).map_err(|error| damaged(format!("job: {error}")))?;
    let previous = match stored.previous {
        0 => None,
        number => Some((job_state(number)?, at(stored.previous_since))),
    };
    Ok(JobLife {
        state: job_state(stored.state)?,
        since: at(stored.since),
        previous,
        end: stored.end.map(at),
        terminate_reason: stored.terminate_reason,
        scheduling_error: stored.scheduling_error,
    })
}
