//! Preparation and release tasks of jobs: what users may ask for, and what
//! follows from a report about them.

use std::time::Duration;

use kiln_ids::TaskId;
use kiln_proto::common::v1::ExecutionResult;
use kiln_proto::job::v1::{JobSpec, NodeTaskInfo, NodeTaskState, TaskSpec};
use kiln_proto::time::std_duration;

use super::{Error, spec};

/// Id of a preparation task whose creator gives none.
const PREPARATION_ID: &str = "jobpreparation";
/// Id of a release task whose creator gives none.
const RELEASE_ID: &str = "jobrelease";
/// A release task may take this long, and does if it says nothing.
pub const MAX_RELEASE: Duration = Duration::from_secs(15 * 60);

/// What the scheduler has to know of a job's preparation and release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Tasks start only after the preparation ended well on their node.
    pub wait_for_success: bool,
    /// A node that begins a new life is prepared again.
    pub rerun: bool,
    /// How long a release may take; absent if the job has none.
    pub release: Option<Duration>,
}

/// Where the preparation of a job stands on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It runs.
    Running,
    /// It ended well.
    Succeeded,
    /// It ended otherwise.
    Failed,
}

/// The rules of a job; `None` if it has no preparation task.
pub fn rules(spec: &JobSpec) -> Option<Rules> {
    let preparation = spec.job_preparation_task.as_ref()?;
    let release = spec.job_release_task.as_ref().map(|release| {
        let limit = release.task.as_ref().and_then(|task| task.constraints.as_ref()?.max_wall_clock_time.as_ref());
        limit.and_then(std_duration).unwrap_or(MAX_RELEASE)
    });
    Some(Rules {
        wait_for_success: preparation.wait_for_success.unwrap_or(true),
        rerun: preparation.rerun_on_node_reboot_after_success.unwrap_or(true),
        release,
    })
}

/// What a word of an agent says.
pub fn progress(info: &NodeTaskInfo) -> Progress {
    if info.state() != NodeTaskState::Completed {
        return Progress::Running;
    }
    let failed = info.failure.is_some() || info.result() == ExecutionResult::Failure || info.exit_code != Some(0);
    if failed { Progress::Failed } else { Progress::Succeeded }
}

/// Fills in what the creator of a job left to us.
pub fn fill_in(spec: &mut JobSpec) {
    let preparation = spec.job_preparation_task.as_mut().and_then(|preparation| preparation.task.as_mut());
    let release = spec.job_release_task.as_mut().and_then(|release| release.task.as_mut());
    for (task, id) in [(preparation, PREPARATION_ID), (release, RELEASE_ID)] {
        if let Some(task) = task
            && task.id.is_empty()
        {
            id.clone_into(&mut task.id);
        }
    }
}

/// Ids that no other task of the job may have: of preparation and release.
pub fn reserved(spec: &JobSpec) -> [Option<TaskId>; 2] {
    let preparation = spec.job_preparation_task.as_ref().and_then(|preparation| preparation.task.as_ref());
    let release = spec.job_release_task.as_ref().and_then(|release| release.task.as_ref());
    [(preparation, PREPARATION_ID), (release, RELEASE_ID)].map(|(task, default)| {
        let id = task.map(|task| if task.id.is_empty() { default } else { task.id.as_str() })?;
        TaskId::parse(id).ok()
    })
}

/// Checks the preparation and the release task of a new job.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(spec: &JobSpec) -> Result<(), Error> {
    if let Some(preparation) = &spec.job_preparation_task {
        check_one("jobPreparationTask", preparation.task.as_ref(), PREPARATION_ID)?;
    }
    let Some(release) = &spec.job_release_task else { return Ok(()) };
    if spec.job_preparation_task.is_none() {
        return Err(Error::invalid("jobReleaseTask", "", "needs a job with a jobPreparationTask"));
    }
    check_one("jobReleaseTask", release.task.as_ref(), RELEASE_ID)?;
    let constraints = release.task.as_ref().and_then(|task| task.constraints.as_ref());
    if let Some(constraints) = constraints {
        let limit = constraints.max_wall_clock_time.as_ref().and_then(std_duration);
        if let Some(limit) = limit.filter(|limit| *limit > MAX_RELEASE) {
            return Err(Error::Invalid {
                reason: "InvalidConstraintValue",
                name: "jobReleaseTask.maxWallClockTime".to_owned(),
                value: format!("{}s", limit.as_secs()),
                why: "must not be above 15 minutes".to_owned(),
            });
        }
        if constraints.max_task_retry_count.is_some_and(|count| count != 0) {
            return Err(Error::invalid("jobReleaseTask.maxTaskRetryCount", "", "release tasks are not tried again"));
        }
    }
    let [preparation, release] = reserved(spec);
    if preparation == release {
        let id = release.map_or_else(String::new, |id| id.as_str().to_owned());
        return Err(Error::invalid("jobReleaseTask.id", id, "must not be the id of the jobPreparationTask"));
    }
    Ok(())
}

/// Both are tasks with a few of the settings of tasks.
fn check_one(kind: &str, task: Option<&TaskSpec>, default_id: &str) -> Result<(), Error> {
    let Some(task) = task else { return Err(Error::Missing(format!("{kind}.commandLine"))) };
    let mut task = task.clone();
    if task.id.is_empty() {
        default_id.clone_into(&mut task.id);
    }
    for (given, name) in [
        (!task.output_files.is_empty(), "outputFiles"),
        (!task.affinity_id.is_empty(), "affinityInfo"),
        (task.required_slots != 0, "requiredSlots"),
        (task.exit_conditions.is_some(), "exitConditions"),
        (task.depends_on.is_some(), "dependsOn"),
        (task.multi_instance.is_some(), "multiInstanceSettings"),
        (task.job_access, "authenticationTokenSettings"),
        (task.resources.is_some(), "resources"),
    ] {
        if given {
            return Err(Error::invalid(format!("{kind}.{name}"), "", "is not a setting of this kind of task"));
        }
    }
    spec::check_task(&task).map(drop).map_err(|error| match error {
        Error::Missing(name) => Error::Missing(format!("{kind}.{name}")),
        Error::Invalid { reason, name, value, why } => {
            Error::Invalid { reason, name: format!("{kind}.{name}"), value, why }
        }
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use kiln_proto::job::v1::{JobPreparationTask, JobReleaseTask, TaskConstraints};

    use super::*;

    fn task() -> TaskSpec {
        TaskSpec { command_line: "true".into(), ..TaskSpec::default() }
    }

    fn job() -> JobSpec {
        JobSpec {
            pool_id: "p1".into(),
            job_preparation_task: Some(JobPreparationTask { task: Some(task()), ..JobPreparationTask::default() }),
            job_release_task: Some(JobReleaseTask { task: Some(task()) }),
            ..JobSpec::default()
        }
    }

    fn preparation(spec: &mut JobSpec) -> &mut TaskSpec {
        spec.job_preparation_task.as_mut().unwrap().task.as_mut().unwrap()
    }

    fn release(spec: &mut JobSpec) -> &mut TaskSpec {
        spec.job_release_task.as_mut().unwrap().task.as_mut().unwrap()
    }

    fn within(seconds: i64) -> Option<TaskConstraints> {
        let max_wall_clock_time = Some(prost_types::Duration { seconds, nanos: 0 });
        Some(TaskConstraints { max_wall_clock_time, ..TaskConstraints::default() })
    }

    #[test]
    fn what_is_refused() {
        type Change = Box<dyn Fn(&mut JobSpec)>;
        let cases: Vec<(&str, Change)> = vec![
            ("InvalidPropertyValue", Box::new(|job| job.job_preparation_task = None)),
            ("MissingRequiredProperty", Box::new(|job| preparation(job).command_line.clear())),
            ("MissingRequiredProperty", Box::new(|job| job.job_release_task = Some(JobReleaseTask::default()))),
            ("InvalidPropertyValue", Box::new(|job| preparation(job).id = "a/b".into())),
            ("InvalidPropertyValue", Box::new(|job| preparation(job).id = "JobRelease".into())),
            ("InvalidPropertyValue", Box::new(|job| release(job).required_slots = 2)),
            ("InvalidPropertyValue", Box::new(|job| preparation(job).affinity_id = "n1".into())),
            ("InvalidConstraintValue", Box::new(|job| release(job).constraints = within(901))),
            (
                "InvalidPropertyValue",
                Box::new(|job| {
                    release(job).constraints =
                        Some(TaskConstraints { max_task_retry_count: Some(1), ..TaskConstraints::default() });
                }),
            ),
        ];
        for (at, (reason, change)) in cases.into_iter().enumerate() {
            let mut job = job();
            change(&mut job);
            let error = kiln_error::Error::from(check(&job).expect_err(&format!("case {at}")));
            assert_eq!(error.reason(), reason, "case {at}");
        }
        assert_eq!(check(&job()).map_err(|error| error.to_string()), Ok(()));
        assert!(check(&JobSpec::default()).is_ok());
    }

    #[test]
    fn defaults_and_rules() {
        let mut spec = job();
        fill_in(&mut spec);
        assert_eq!(preparation(&mut spec).id, PREPARATION_ID);
        assert_eq!(release(&mut spec).id, RELEASE_ID);
        let expected = Rules { wait_for_success: true, rerun: true, release: Some(MAX_RELEASE) };
        assert_eq!(rules(&spec), Some(expected));
        release(&mut spec).constraints = within(60);
        assert_eq!(rules(&spec).unwrap().release, Some(Duration::from_secs(60)));
        assert_eq!(rules(&JobSpec::default()), None);
    }

    #[test]
    fn a_report_is_a_success_only_with_exit_code_0() {
        let ended =
            |exit_code| NodeTaskInfo { state: NodeTaskState::Completed.into(), exit_code, ..NodeTaskInfo::default() };
        assert_eq!(progress(&NodeTaskInfo::default()), Progress::Running);
        assert_eq!(progress(&ended(Some(0))), Progress::Succeeded);
        assert_eq!(progress(&ended(Some(1))), Progress::Failed);
        assert_eq!(progress(&ended(None)), Progress::Failed);
        let failure = Some(kiln_proto::common::v1::FailureInfo::default());
        assert_eq!(progress(&NodeTaskInfo { failure, ..ended(Some(0)) }), Progress::Failed);
    }
}
