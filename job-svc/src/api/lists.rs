//! Filters and pages.
//!
//! A page looks at a bounded number of rows: with a filter that few rows match
//! it may be short, or empty, with a token to go on.

use kiln_filter::{Filter, Value};
use kiln_time::Timestamp;

use crate::domain::task::{Outcome, Phase, TaskState};
use crate::store::schedules::ScheduleRow;
use crate::store::{JobRow, TaskRow};

/// Rows one page looks at.
pub const SCAN: usize = 10_000;
/// Rows that are read at once.
pub const CHUNK: u32 = 1000;

/// Properties of jobs that filters may name.
pub const JOB_PROPERTIES: &[&str] = &[
    "id",
    "state",
    "stateTransitionTime",
    "creationTime",
    "lastModified",
    "executionInfo/startTime",
    "executionInfo/endTime",
    "executionInfo/poolId",
];

/// Properties of schedules that filters may name.
pub const SCHEDULE_PROPERTIES: &[&str] = &[
    "id",
    "state",
    "stateTransitionTime",
    "creationTime",
    "lastModified",
    "executionInfo/nextRunTime",
    "executionInfo/endTime",
];

/// Properties of tasks that filters may name.
pub const TASK_PROPERTIES: &[&str] = &[
    "id",
    "state",
    "stateTransitionTime",
    "creationTime",
    "lastModified",
    "lastModifiedTime",
    "executionInfo/startTime",
    "executionInfo/endTime",
    "executionInfo/exitCode",
    "executionInfo/result",
];

/// Whether a job fits.
pub fn job_matches(filter: &Filter, row: &JobRow) -> bool {
    let text = |text: &str| Some(Value::Text(text.to_owned()));
    filter.matches(&|property| match property {
        "id" => text(row.job.as_str()),
        "state" => text(row.life.state.name()),
        "stateTransitionTime" => Some(Value::Time(row.life.since)),
        "creationTime" | "executionInfo/startTime" => Some(Value::Time(row.created)),
        "lastModified" => Some(Value::Time(row.last_modified)),
        "executionInfo/endTime" => row.life.end.map(Value::Time),
        "executionInfo/poolId" => text(row.pool.as_str()),
        _ => None,
    })
}

/// Whether a schedule fits at `now`.
pub fn schedule_matches(filter: &Filter, row: &ScheduleRow, now: Timestamp) -> bool {
    let text = |text: &str| Some(Value::Text(text.to_owned()));
    filter.matches(&|property| match property {
        "id" => text(row.id.as_str()),
        "state" => text(row.life.state.name()),
        "stateTransitionTime" => Some(Value::Time(row.life.since)),
        "creationTime" => Some(Value::Time(row.created)),
        "lastModified" => Some(Value::Time(row.last_modified)),
        "executionInfo/nextRunTime" => row.life.next_run_time(&row.timing, now).map(Value::Time),
        "executionInfo/endTime" => row.life.end.map(Value::Time),
        _ => None,
    })
}

/// Whether a task fits.
pub fn task_matches(filter: &Filter, row: &TaskRow) -> bool {
    let text = |text: &str| Some(Value::Text(text.to_owned()));
    let state = &row.task.state;
    filter.matches(&|property| match property {
        "id" => text(row.id.as_str()),
        "state" => text(match state.phase() {
            Phase::Active => "active",
            Phase::Preparing => "preparing",
            Phase::Running => "running",
            Phase::Completed => "completed",
        }),
        "stateTransitionTime" => Some(Value::Time(row.task.since)),
        "creationTime" => Some(Value::Time(row.created)),
        "lastModified" | "lastModifiedTime" => Some(Value::Time(row.last_modified)),
        "executionInfo/startTime" => match state {
            TaskState::Active => None,
            TaskState::Running { started, assigned, .. } => Some(Value::Time(started.unwrap_or(*assigned))),
            TaskState::Completed { run, .. } => {
                run.as_ref().map(|run| Value::Time(run.started.unwrap_or(run.assigned)))
            }
        },
        "executionInfo/endTime" => match state {
            TaskState::Completed { end, .. } => Some(Value::Time(*end)),
            TaskState::Active | TaskState::Running { .. } => None,
        },
        "executionInfo/exitCode" => match state {
            TaskState::Completed { exit_code, .. } => exit_code.map(|code| Value::Number(f64::from(code))),
            TaskState::Active | TaskState::Running { .. } => None,
        },
        "executionInfo/result" => match state {
            TaskState::Completed { outcome: Outcome::Succeeded, .. } => text("success"),
            TaskState::Completed { .. } => text("failure"),
            TaskState::Active | TaskState::Running { .. } => None,
        },
        _ => None,
    })
}
