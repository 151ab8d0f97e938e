//! The announcements job-svc makes.

use kiln_ids::{AccountName, JobId, PoolId, TaskId};
use kiln_proto::common::v1::ExecutionResult;
use kiln_proto::events::v1::event::Payload;
use kiln_proto::events::v1::{JobChanged, JobScheduleChanged, TaskChanged};
use kiln_proto::job::v1::{self as wire, AutoPool};
use kiln_store::outbox::NewEvent;
use kiln_time::Timestamp;

use super::model::JobRow;
use super::schedules::ScheduleRow;
use crate::domain::auto_pool::without_passwords;
use crate::domain::job::JobState;
use crate::domain::schedule::{ScheduleId, ScheduleState};
use crate::domain::task::{Outcome, Phase, Task, TaskState};

/// The wire's word for a job's state.
pub fn job_state(state: JobState) -> wire::JobState {
    match state {
        JobState::Active => wire::JobState::Active,
        JobState::Disabling(_) => wire::JobState::Disabling,
        JobState::Disabled => wire::JobState::Disabled,
        JobState::Enabling => wire::JobState::Enabling,
        JobState::Terminating => wire::JobState::Terminating,
        JobState::Completed => wire::JobState::Completed,
        JobState::Deleting => wire::JobState::Deleting,
    }
}

/// The wire's word for a task's state.
pub fn task_state(phase: Phase) -> wire::TaskState {
    match phase {
        Phase::Active => wire::TaskState::Active,
        Phase::Preparing => wire::TaskState::Preparing,
        Phase::Running => wire::TaskState::Running,
        Phase::Completed => wire::TaskState::Completed,
    }
}

/// Something about a job; `old` is its state before.
pub fn job(
    row: &JobRow,
    event_type: &'static str,
    old: Option<JobState>,
    now: Timestamp,
    traceparent: &str,
) -> NewEvent {
    NewEvent {
        time_micros: now.as_micros(),
        account: row.account.as_str().to_owned(),
        subject: format!("jobs/{}", row.job),
        event_type,
        traceparent: traceparent.to_owned(),
        payload: Payload::Job(JobChanged {
            job_id: row.job.as_str().to_owned(),
            pool_id: row.pool.as_str().to_owned(),
            old_state: old.map_or(wire::JobState::Unspecified, job_state).into(),
            new_state: job_state(row.life.state).into(),
            reason: row.life.terminate_reason.clone(),
            auto_pool: row.spec.auto_pool.clone().map(|auto| {
                // Only its creation says what the pool shall be like.
                let pool = auto.pool.clone().filter(|_| event_type == "job.job.created");
                without_passwords(AutoPool { pool, ..auto })
            }),
            job_schedule_id: ScheduleId::of_job(&row.job).map(|id| id.as_str().to_owned()).unwrap_or_default(),
        }),
    }
}

/// The wire's word for a schedule's state.
pub fn schedule_state(state: ScheduleState) -> wire::JobScheduleState {
    match state {
        ScheduleState::Active => wire::JobScheduleState::Active,
        ScheduleState::Completed => wire::JobScheduleState::Completed,
        ScheduleState::Disabled => wire::JobScheduleState::Disabled,
        ScheduleState::Terminating => wire::JobScheduleState::Terminating,
        ScheduleState::Deleting => wire::JobScheduleState::Deleting,
    }
}

/// Whether the pool made for a schedule stays after its end.
pub fn keeps_pool(row: &ScheduleRow) -> bool {
    row.spec.job.as_ref().and_then(|job| job.auto_pool.as_ref()).is_some_and(|auto| auto.keep_alive)
}

/// Something about a schedule; `old` is its state before.
pub fn schedule(row: &ScheduleRow, event_type: &'static str, old: Option<ScheduleState>, now: Timestamp) -> NewEvent {
    NewEvent {
        time_micros: now.as_micros(),
        account: row.account.as_str().to_owned(),
        subject: format!("jobschedules/{}", row.id),
        event_type,
        traceparent: String::new(),
        payload: Payload::JobSchedule(JobScheduleChanged {
            job_schedule_id: row.id.as_str().to_owned(),
            old_state: old.map_or(wire::JobScheduleState::Unspecified, schedule_state).into(),
            new_state: schedule_state(row.life.state).into(),
            reason: String::new(),
            pool_id: row.pool.as_ref().map(|pool| pool.as_str().to_owned()).unwrap_or_default(),
            keep_alive: keeps_pool(row),
        }),
    }
}

/// Whose task an event is about.
#[derive(Debug, Clone, Copy)]
pub struct TaskNames<'a> {
    /// Owner.
    pub account: &'a AccountName,
    /// Pool of the job.
    pub pool: &'a PoolId,
    /// Job of the task.
    pub job: &'a JobId,
    /// The task.
    pub task: &'a TaskId,
    /// Slots it takes.
    pub slots: u16,
    /// Trace context of its submission.
    pub traceparent: &'a str,
}

/// A task as it is now; `old` is its phase before, `node` where it ran.
pub fn task(
    names: TaskNames<'_>,
    event_type: &'static str,
    old: Option<Phase>,
    task: &Task,
    node: Option<&str>,
    reason: &str,
    now: Timestamp,
) -> NewEvent {
    let (mut exit, mut result) = (None, ExecutionResult::Unspecified);
    let mut reason = reason.to_owned();
    let mut node = node;
    match &task.state {
        TaskState::Active => {}
        TaskState::Running { node: runs_on, .. } => node = Some(runs_on.as_str()),
        TaskState::Completed { outcome, exit_code, failure, run, .. } => {
            exit = *exit_code;
            result = match outcome {
                Outcome::Succeeded => ExecutionResult::Success,
                Outcome::Failed | Outcome::Terminated | Outcome::Requeued | Outcome::NodeLost | Outcome::Preempted => {
                    ExecutionResult::Failure
                }
            };
            if let Some(failure) = failure {
                reason.clone_from(&failure.code);
            }
            node = node.or(run.as_ref().map(|run| run.node.as_str()));
        }
    }
    NewEvent {
        time_micros: now.as_micros(),
        account: names.account.as_str().to_owned(),
        subject: format!("jobs/{}/tasks/{}", names.job, names.task),
        event_type,
        traceparent: names.traceparent.to_owned(),
        payload: Payload::Task(TaskChanged {
            job_id: names.job.as_str().to_owned(),
            task_id: names.task.as_str().to_owned(),
            pool_id: names.pool.as_str().to_owned(),
            node_id: node.unwrap_or_default().to_owned(),
            attempt: task.attempt,
            old_state: old.map_or(wire::TaskState::Unspecified, task_state).into(),
            new_state: task_state(task.state.phase()).into(),
            exit_code: exit,
            result: result.into(),
            reason,
            required_slots: i32::from(names.slots),
        }),
    }
}
