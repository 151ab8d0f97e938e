//! What an actor keeps of a job beside the core.

use std::sync::Arc;
use std::time::Duration;

use kiln_ids::JobId;
use kiln_proto::common::v1::EnvironmentSetting;
use kiln_proto::job::v1::{JobSpec, OnAllTasksComplete, OnTaskFailure, TaskSpec};
use kiln_proto::time::std_duration;

use super::core::{JobView, Row};
use crate::store::JobRow;

/// See the module.
#[derive(Debug)]
pub struct JobInfo {
    /// Its id.
    pub job: JobId,
    /// Its spec.
    pub spec: Arc<JobSpec>,
    /// Rows up to this one were read from the store; notes about them are old.
    pub loaded_to: Row,
}

impl JobInfo {
    /// Whether exit conditions matter.
    pub fn exit_actions(&self) -> bool {
        self.spec.on_task_failure() == OnTaskFailure::PerformExitOptionsJobAction
    }

    /// The job's common environment with the task's own on top.
    pub fn environment(&self, task: &TaskSpec) -> Vec<EnvironmentSetting> {
        let common = &self.spec.common_environment;
        let own = |name: &str| task.environment.iter().any(|setting| setting.name == name);
        let mut merged: Vec<EnvironmentSetting> =
            common.iter().filter(|setting| !own(&setting.name)).cloned().collect();
        merged.extend(task.environment.iter().cloned());
        merged
    }
}

/// The core's view of a job.
pub fn view(row: &JobRow) -> JobView {
    let constraints = row.spec.constraints.as_ref();
    let wall_clock: Option<Duration> =
        constraints.and_then(|constraints| std_duration(constraints.max_wall_clock_time.as_ref()?));
    JobView {
        key: row.row,
        version: row.version,
        state: row.life.state,
        priority: row.spec.priority,
        max_parallel: row.spec.max_parallel_tasks.and_then(|max| u32::try_from(max).ok()).filter(|max| *max > 0),
        created: row.created,
        ends_when_complete: row.spec.on_all_tasks_complete() == OnAllTasksComplete::TerminateJob,
        exit_actions: row.spec.on_task_failure() == OnTaskFailure::PerformExitOptionsJobAction,
        default_retries: constraints.map_or(0, |constraints| constraints.max_task_retry_count),
        wall_clock_end: wall_clock.map(|limit| row.created.plus(limit)),
    }
}
