//! What an actor keeps of a job beside the core.

use std::sync::Arc;
use std::time::Duration;

use kiln_ids::{JobId, NodeId};
use kiln_proto::common::v1::EnvironmentSetting;
use kiln_proto::job::v1::{JobSpec, OnAllTasksComplete, OnTaskFailure, Preparation, ReleaseJob, TaskSpec};
use kiln_proto::time::{duration, std_duration};
use kiln_time::Timestamp;

use super::core::{JobView, OnNode, Row};
use crate::domain::job::JobState;
use crate::domain::job_manager;
use crate::domain::job_tasks::{self, Progress, Rules};
use crate::store::{JobNodeRow, JobRow};

/// See the module.
#[derive(Debug)]
pub struct JobInfo {
    /// Its id.
    pub job: JobId,
    /// Its spec.
    pub spec: Arc<JobSpec>,
    /// When it was created.
    pub created: Timestamp,
    /// Rows up to this one were read from the store; notes about them are old.
    pub loaded_to: Row,
}

impl JobInfo {
    /// Whether exit conditions matter.
    pub fn exit_actions(&self) -> bool {
        self.spec.on_task_failure() == OnTaskFailure::PerformExitOptionsJobAction
    }

    /// Whether its nodes are prepared.
    pub fn prepares(&self) -> bool {
        self.spec.job_preparation_task.is_some()
    }

    /// For assignments; `done`: see the contract.
    pub fn preparation(&self, done: bool) -> Option<Preparation> {
        let preparation = self.spec.job_preparation_task.as_ref()?;
        let spec = preparation.task.clone()?;
        Some(Preparation {
            environment: self.environment(&spec),
            spec: Some(spec),
            wait_for_success: preparation.wait_for_success.unwrap_or(true),
            done,
        })
    }

    /// The order to a node to run the release.
    pub fn release(&self, job_number: u64) -> Option<ReleaseJob> {
        let mut spec = self.spec.job_release_task.as_ref()?.task.clone()?;
        let constraints = spec.constraints.get_or_insert_default();
        constraints.max_wall_clock_time.get_or_insert_with(|| duration(job_tasks::MAX_RELEASE));
        let preparation = self.spec.job_preparation_task.as_ref()?.task.as_ref()?;
        Some(ReleaseJob {
            job_id: self.job.as_str().to_owned(),
            job_number,
            environment: self.environment(&spec),
            spec: Some(spec),
            preparation_task_id: preparation.id.clone(),
        })
    }

    /// Whether tasks may wait for others.
    pub fn uses_dependencies(&self) -> bool {
        self.spec.uses_task_dependencies
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

/// What a job's row says about a node of its pool.
pub fn on_node(row: JobNodeRow) -> (Arc<NodeId>, OnNode) {
    let released = row.release.is_some_and(|info| job_tasks::progress(&info) != Progress::Running);
    let prepared = row.preparation.is_some_and(|info| job_tasks::progress(&info) == Progress::Succeeded);
    let prepared = prepared.then_some(row.incarnation);
    (Arc::new(row.node), OnNode { prepared, barred: row.barred, ran: row.ran, released })
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
        ends_with_manager: job_manager::ends_job(&row.spec),
        default_retries: constraints.map_or(0, |constraints| constraints.max_task_retry_count),
        preemptible: row.spec.allow_task_preemption,
        preparation: job_tasks::rules(&row.spec).map(|rules| {
            // A job that was over before it was deleted has been released.
            let was_over = matches!(row.life.previous, Some((JobState::Completed, _)));
            Rules { release: rules.release.filter(|_| !was_over), ..rules }
        }),
        wall_clock_end: wall_clock.map(|limit| row.created.plus(limit)),
    }
}
