//! JSON of jobs.

use kiln_error::Error;
use kiln_proto::job::v1::{
    DisableTasks, Job, JobConstraints, JobManagerTask, JobPreparationTask, JobReleaseTask, JobSpec, JobState,
    OnAllTasksComplete, OnTaskFailure, TaskConstraints, TaskSpec,
};
use prost_types::Duration;
use serde_json::{Value, json};

use super::common::{read_environment, read_name_values, write_environment, write_name_values, write_scheduling_error};
use super::json::{Fields, Out, word, write_duration};
use super::version::Version;
use super::view::View;
use super::{kept, pool_info, task_json};

const STATES: &[(&str, JobState)] = &[
    ("active", JobState::Active),
    ("disabling", JobState::Disabling),
    ("disabled", JobState::Disabled),
    ("enabling", JobState::Enabling),
    ("terminating", JobState::Terminating),
    ("completed", JobState::Completed),
    ("deleting", JobState::Deleting),
];
const ALL_COMPLETE: &[(&str, OnAllTasksComplete)] =
    &[("noaction", OnAllTasksComplete::NoAction), ("terminatejob", OnAllTasksComplete::TerminateJob)];
const TASK_FAILURE: &[(&str, OnTaskFailure)] = &[
    ("noaction", OnTaskFailure::NoAction),
    ("performexitoptionsjobaction", OnTaskFailure::PerformExitOptionsJobAction),
];
const DISABLE: &[(&str, DisableTasks)] =
    &[("requeue", DisableTasks::Requeue), ("terminate", DisableTasks::Terminate), ("wait", DisableTasks::Wait)];
const MANAGER_ID: &str = "jobmanager";
const PREPARATION_ID: &str = "jobpreparation";
/// What a release task may take if nothing was said.
const RELEASE_TIME: Duration = Duration { seconds: 15 * 60, nanos: 0 };
const RELEASE_ID: &str = "jobrelease";

/// Id and specification out of the body of "add job".
///
/// # Errors
/// Names the property that is missing or wrong.
pub fn read_new(body: &Value) -> Result<(String, JobSpec), Error> {
    let fields = Fields::root(body)?;
    let id = fields.required_text("id")?;
    Ok((id, read_spec(body, &fields)?))
}

/// A job without its id; `fields` are those of `body`.
///
/// # Errors
/// Names the property that is missing or wrong.
pub(super) fn read_spec(body: &Value, fields: &Fields<'_>) -> Result<JobSpec, Error> {
    let (pool_id, auto_pool) = pool_info::read_new(fields)?;
    let mut spec = JobSpec {
        display_name: fields.text_or_empty("displayName")?,
        pool_id,
        priority: fields.int("priority")?.unwrap_or(0),
        max_parallel_tasks: fields.int("maxParallelTasks")?,
        allow_task_preemption: fields.boolean("allowTaskPreemption")?.unwrap_or(false),
        constraints: read_constraints(fields)?,
        common_environment: read_environment(fields, "commonEnvironmentSettings")?,
        on_all_tasks_complete: read_all_complete(fields)?.unwrap_or_default().into(),
        on_task_failure: fields.choice("onTaskFailure", TASK_FAILURE)?.unwrap_or_default().into(),
        uses_task_dependencies: fields.boolean("usesTaskDependencies")?.unwrap_or(false),
        metadata: read_name_values(fields, "metadata")?,
        job_manager_task: fields.object("jobManagerTask")?.map(|task| read_manager(&task)).transpose()?,
        job_preparation_task: fields.object("jobPreparationTask")?.map(|task| read_preparation(&task)).transpose()?,
        job_release_task: fields.object("jobReleaseTask")?.map(|task| read_release(&task)).transpose()?,
        client_settings_json: String::new(),
        auto_pool,
    };
    let mut understood = Out::new();
    put_spec(&mut understood, &spec, Version::LATEST);
    spec.client_settings_json = kept::remainder(body, &understood.done());
    Ok(spec)
}

/// The `constraints` of a job, if there are any.
///
/// # Errors
/// Names the property that is wrong.
pub fn read_constraints(fields: &Fields<'_>) -> Result<Option<JobConstraints>, Error> {
    let Some(constraints) = fields.object("constraints")? else { return Ok(None) };
    Ok(Some(JobConstraints {
        max_wall_clock_time: constraints.limit("maxWallClockTime")?,
        max_task_retry_count: constraints.int("maxTaskRetryCount")?.unwrap_or(0),
    }))
}

/// `onAllTasksComplete`, if the body has it.
///
/// # Errors
/// If the word is not known.
pub fn read_all_complete(fields: &Fields<'_>) -> Result<Option<OnAllTasksComplete>, Error> {
    fields.choice("onAllTasksComplete", ALL_COMPLETE)
}

/// `disableTasks` of "disable job".
///
/// # Errors
/// If it is missing or not known.
pub fn read_disable(fields: &Fields<'_>) -> Result<DisableTasks, Error> {
    fields.choice("disableTasks", DISABLE)?.ok_or_else(|| fields.missing("disableTasks"))
}

fn read_inner(fields: &Fields<'_>, default_id: &str) -> Result<TaskSpec, Error> {
    let mut spec = task_json::read_spec(fields)?;
    spec.id = fields.text("id")?.unwrap_or_else(|| default_id.to_owned());
    Ok(spec)
}

fn read_manager(fields: &Fields<'_>) -> Result<JobManagerTask, Error> {
    fields.required_text("id")?;
    Ok(JobManagerTask {
        task: Some(read_inner(fields, MANAGER_ID)?),
        kill_job_on_completion: fields.boolean("killJobOnCompletion")?,
        run_exclusive: fields.boolean("runExclusive")?,
        allow_low_priority_node: fields.boolean("allowLowPriorityNode")?,
    })
}

fn read_preparation(fields: &Fields<'_>) -> Result<JobPreparationTask, Error> {
    Ok(JobPreparationTask {
        task: Some(read_inner(fields, PREPARATION_ID)?),
        wait_for_success: fields.boolean("waitForSuccess")?,
        rerun_on_node_reboot_after_success: fields.boolean("rerunOnNodeRebootAfterSuccess")?,
    })
}

/// A release task has its limits beside its command, not in `constraints`.
fn read_release(fields: &Fields<'_>) -> Result<JobReleaseTask, Error> {
    let mut spec = read_inner(fields, RELEASE_ID)?;
    spec.constraints = Some(TaskConstraints {
        max_wall_clock_time: fields.limit("maxWallClockTime")?,
        retention_time: fields.duration("retentionTime")?,
        max_task_retry_count: None,
    });
    Ok(JobReleaseTask { task: Some(spec) })
}

/// A job as GET answers it.
pub fn write(job: &Job, view: View<'_>) -> Value {
    let spec = job.spec.clone().unwrap_or_default();
    let mut out = Out::new();
    out.put("id", job.id.as_str())
        .put_text("displayName", &spec.display_name)
        .put("usesTaskDependencies", spec.uses_task_dependencies)
        .put("url", view.url(&["jobs", &job.id]))
        .put("eTag", job.etag.as_str())
        .put_time("lastModified", job.last_modified.as_ref())
        .put_time("creationTime", job.creation_time.as_ref())
        .put("state", word(STATES, job.state()).unwrap_or("active"))
        .put_time("stateTransitionTime", job.state_transition_time.as_ref())
        .put_some("previousState", word(STATES, job.previous_state()))
        .put_time("previousStateTransitionTime", job.previous_state_transition_time.as_ref());
    put_spec(&mut out, &spec, view.version);
    let mut execution = Out::new();
    execution
        .put_time("startTime", job.creation_time.as_ref())
        .put_time("endTime", job.end_time.as_ref())
        .put_text("poolId", if job.pool_id.is_empty() { &spec.pool_id } else { &job.pool_id })
        .put_some("schedulingError", job.scheduling_error.as_ref().map(write_scheduling_error))
        .put_text("terminateReason", &job.terminate_reason);
    out.put("executionInfo", execution.done());
    let mut answer = out.done();
    kept::merge(&mut answer, &spec.client_settings_json);
    answer
}

/// What jobs of a schedule will be like.
pub(super) fn write_spec(spec: &JobSpec, version: Version) -> Value {
    let mut out = Out::new();
    out.put_text("displayName", &spec.display_name).put("usesTaskDependencies", spec.uses_task_dependencies);
    put_spec(&mut out, spec, version);
    let mut answer = out.done();
    kept::merge(&mut answer, &spec.client_settings_json);
    answer
}

fn put_spec(out: &mut Out, spec: &JobSpec, version: Version) {
    let constraints = spec.constraints.unwrap_or_default();
    out.put("priority", spec.priority)
        .put("allowTaskPreemption", spec.allow_task_preemption)
        .put("maxParallelTasks", spec.max_parallel_tasks.unwrap_or(-1))
        .put(
            "constraints",
            json!({
                "maxWallClockTime": write_duration(constraints.max_wall_clock_time.as_ref()),
                "maxTaskRetryCount": constraints.max_task_retry_count,
            }),
        )
        .put_some(
            "jobManagerTask",
            spec.job_manager_task.as_ref().map(|manager| {
                let mut inner = inner_task(manager.task.as_ref(), version);
                let mut limits = manager.task.as_ref().and_then(|task| task.constraints).unwrap_or_default();
                // A task that says nothing is tried again as often as its job says.
                limits.max_task_retry_count.get_or_insert(constraints.max_task_retry_count);
                inner
                    .put("constraints", task_json::write_constraints(Some(&limits)))
                    .put("killJobOnCompletion", manager.kill_job_on_completion.unwrap_or(true))
                    .put("runExclusive", manager.run_exclusive.unwrap_or(true))
                    .put("allowLowPriorityNode", manager.allow_low_priority_node.unwrap_or(true));
                inner.done()
            }),
        )
        .put_some(
            "jobPreparationTask",
            spec.job_preparation_task.as_ref().map(|preparation| {
                let mut inner = inner_task(preparation.task.as_ref(), version);
                inner.remove("requiredSlots").put("waitForSuccess", preparation.wait_for_success.unwrap_or(true)).put(
                    "rerunOnNodeRebootAfterSuccess",
                    preparation.rerun_on_node_reboot_after_success.unwrap_or(true),
                );
                inner.done()
            }),
        )
        .put_some("jobReleaseTask", spec.job_release_task.as_ref().map(|release| write_release(release, version)))
        .put_list("commonEnvironmentSettings", write_environment(&spec.common_environment))
        .put("poolInfo", pool_info::write(spec, version))
        .put("onAllTasksComplete", word(ALL_COMPLETE, spec.on_all_tasks_complete()).unwrap_or("noaction"))
        .put("onTaskFailure", word(TASK_FAILURE, spec.on_task_failure()).unwrap_or("noaction"))
        .put_list("metadata", write_name_values(&spec.metadata));
}

fn inner_task(spec: Option<&TaskSpec>, version: Version) -> Out {
    let mut out = Out::new();
    if let Some(spec) = spec {
        out.put("id", spec.id.as_str()).put_text("displayName", &spec.display_name);
        task_json::put_spec(&mut out, spec, version);
    }
    out
}

fn write_release(release: &JobReleaseTask, version: Version) -> Value {
    let limits = release.task.as_ref().and_then(|task| task.constraints).unwrap_or_default();
    let mut inner = inner_task(release.task.as_ref(), version);
    inner
        .remove("constraints")
        .remove("requiredSlots")
        .put("maxWallClockTime", write_duration(Some(limits.max_wall_clock_time.as_ref().unwrap_or(&RELEASE_TIME))))
        .put("retentionTime", write_duration(Some(limits.retention_time.as_ref().unwrap_or(&task_json::RETENTION))));
    inner.done()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(body: &Value) -> Value {
        let (id, spec) = read_new(body).unwrap();
        let job = Job { id, spec: Some(spec), state: JobState::Active.into(), ..Job::default() };
        write(&job, View { base: "http://h", version: Version::LATEST })
    }

    #[test]
    fn a_new_job_shows_its_defaults() {
        let answer = back(&json!({"id": "j", "poolInfo": {"poolId": "p"}}));
        assert_eq!(answer["state"], "active");
        assert_eq!(answer["maxParallelTasks"], -1);
        assert_eq!(answer["constraints"]["maxWallClockTime"], kiln_time::iso::INFINITE);
        assert_eq!(answer["onAllTasksComplete"], "noaction");
        assert_eq!(answer["executionInfo"], json!({"poolId": "p"}));
        assert_eq!(answer["url"], "http://h/jobs/j");
        assert!(answer.get("metadata").is_none());
    }

    #[test]
    fn a_job_with_everything_comes_back() {
        let body = json!({
            "id": "j", "displayName": "d", "priority": "5", "maxParallelTasks": 3, "usesTaskDependencies": true,
            "constraints": {"maxWallClockTime": "PT01H", "maxTaskRetryCount": 1},
            "onAllTasksComplete": "terminateJob", "onTaskFailure": "performExitOptionsJobAction",
            "poolInfo": {"poolId": "p"}, "metadata": [{"name": "a", "value": "b"}],
            "commonEnvironmentSettings": [{"name": "X", "value": "1"}],
            "networkConfiguration": {"subnetId": "s"},
            "jobManagerTask": {"id": "jm", "commandLine": "x", "killJobOnCompletion": false,
                "authenticationTokenSettings": {"access": ["job"]}},
            "jobPreparationTask": {"commandLine": "prep"},
            "jobReleaseTask": {"commandLine": "rel", "maxWallClockTime": "PT5M"},
        });
        let answer = back(&body);
        for name in [
            "displayName",
            "maxParallelTasks",
            "poolInfo",
            "metadata",
            "commonEnvironmentSettings",
            "networkConfiguration",
        ] {
            assert_eq!(answer[name], body[name], "{name}");
        }
        assert_eq!((&answer["priority"], &answer["onTaskFailure"]), (&json!(5), &json!("performexitoptionsjobaction")));
        assert_eq!(answer["jobManagerTask"]["killJobOnCompletion"], false);
        assert_eq!(answer["jobManagerTask"]["runExclusive"], true);
        assert_eq!(answer["jobManagerTask"]["authenticationTokenSettings"], json!({"access": ["job"]}));
        // As often as the job says.
        assert_eq!(answer["jobManagerTask"]["constraints"]["maxTaskRetryCount"], 1);
        assert_eq!(answer["jobManagerTask"]["constraints"]["retentionTime"], "P7D");
        assert_eq!(answer["jobPreparationTask"]["id"], "jobpreparation");
        assert_eq!(answer["jobPreparationTask"]["rerunOnNodeRebootAfterSuccess"], true);
        assert_eq!(answer["jobPreparationTask"]["constraints"]["maxTaskRetryCount"], 0);
        assert!(answer["jobPreparationTask"].get("requiredSlots").is_none());
        assert_eq!(answer["jobReleaseTask"]["maxWallClockTime"], "PT5M");
        assert_eq!(answer["jobReleaseTask"]["retentionTime"], "P7D");
        assert!(answer["jobReleaseTask"].get("constraints").is_none());
    }

    #[test]
    fn settings_of_the_pool_are_kept_once() {
        let body = json!({"id": "j", "networkConfiguration": {"subnetId": "s"}, "poolInfo": {"autoPoolSpecification": {
            "poolLifetimeOption": "job", "pool": {"vmSize": "x", "networkConfiguration": {"subnetId": "p"}}}}});
        let (_, spec) = read_new(&body).unwrap();
        assert_eq!(spec.client_settings_json, json!({"networkConfiguration": {"subnetId": "s"}}).to_string());
        let pool = back(&body)["poolInfo"]["autoPoolSpecification"]["pool"].clone();
        assert_eq!(pool["networkConfiguration"]["subnetId"], "p");
    }

    #[test]
    fn the_pool_that_was_made_is_told() {
        let job = Job {
            pool_id: "auto_1".into(),
            scheduling_error: Some(kiln_proto::common::v1::FailureInfo {
                code: "AutoPoolCreationFailedWithQuotaReached".into(),
                ..Default::default()
            }),
            ..Job::default()
        };
        let answer = write(&job, View { base: "http://h", version: Version::LATEST });
        assert_eq!(
            answer["executionInfo"],
            json!({"poolId": "auto_1", "schedulingError":
                {"category": "usererror", "code": "AutoPoolCreationFailedWithQuotaReached"}})
        );
    }

    #[test]
    fn jobs_need_a_pool() {
        for (body, reason) in [
            (json!({"id": "j"}), "MissingRequiredProperty"),
            (json!({"id": "j", "poolInfo": {}}), "MissingRequiredProperty"),
            (json!({"id": "j", "poolInfo": {"autoPoolSpecification": {}}}), "MissingRequiredProperty"),
            (json!({"poolInfo": {"poolId": "p"}}), "MissingRequiredProperty"),
            (json!({"id": "j", "poolInfo": {"poolId": "p"}, "onTaskFailure": "maybe"}), "InvalidPropertyValue"),
        ] {
            assert_eq!(read_new(&body).unwrap_err().reason(), reason, "{body}");
        }
    }
}
