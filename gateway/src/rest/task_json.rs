//! JSON of tasks.

use kiln_error::Error;
use kiln_proto::common::v1::Resources;
use kiln_proto::job::v1::{
    AddTaskResult, DependencyAction, ExitCodeMapping, ExitCodeRangeMapping, ExitConditions, ExitOptions, JobAction,
    MultiInstanceSettings, Task, TaskConstraints, TaskCounts, TaskDependencies, TaskIdRange, TaskSpec, TaskState,
};
use kiln_time::Timestamp;
use prost_types::Duration;
use serde_json::{Value, json};

use super::common::{
    put_failure, put_identity, read_container, read_environment, read_identity, read_output_files, read_packages,
    read_resource_files, write_container, write_environment, write_output_files, write_packages, write_resource_files,
    write_result,
};
use super::job_node_json::write_node;
use super::json::{Fields, Out, word, write_duration};
use super::kept;
use super::version::Version;
use super::view::View;

const STATES: &[(&str, TaskState)] = &[
    ("active", TaskState::Active),
    ("preparing", TaskState::Preparing),
    ("running", TaskState::Running),
    ("completed", TaskState::Completed),
];
const JOB_ACTIONS: &[(&str, JobAction)] =
    &[("none", JobAction::None), ("disable", JobAction::Disable), ("terminate", JobAction::Terminate)];
const DEPENDENCY_ACTIONS: &[(&str, DependencyAction)] =
    &[("satisfy", DependencyAction::Satisfy), ("block", DependencyAction::Block)];
/// Task directories stay this long if nothing was said.
pub(super) const RETENTION: Duration = Duration { seconds: 7 * 86_400, nanos: 0 };

/// A task out of the body of "add task" or an item of a collection.
///
/// # Errors
/// Names the property that is missing or wrong.
pub fn read_new(body: &Value) -> Result<TaskSpec, Error> {
    let fields = Fields::root(body)?;
    let mut spec = read_spec(&fields)?;
    spec.id = fields.required_text("id")?;
    let mut understood = Out::new();
    put_spec(&mut understood, &spec, Version::LATEST);
    spec.client_settings_json = kept::remainder(body, &understood.done());
    Ok(spec)
}

/// What tasks, job managers, preparation and release tasks have in common; the
/// id stays empty.
pub(super) fn read_spec(fields: &Fields<'_>) -> Result<TaskSpec, Error> {
    let affinity = match fields.object("affinityInfo")? {
        Some(info) => info.text_or_empty("affinityId")?,
        None => String::new(),
    };
    Ok(TaskSpec {
        id: String::new(),
        display_name: fields.text_or_empty("displayName")?,
        command_line: fields.required_text("commandLine")?,
        resource_files: read_resource_files(fields, "resourceFiles")?,
        output_files: read_output_files(fields, "outputFiles")?,
        environment: read_environment(fields, "environmentSettings")?,
        affinity_id: affinity,
        constraints: read_constraints(fields)?,
        required_slots: fields.int("requiredSlots")?.unwrap_or(0),
        user_identity: read_identity(fields)?,
        exit_conditions: fields.object("exitConditions")?.map(|exit| read_exit_conditions(&exit)).transpose()?,
        depends_on: fields.object("dependsOn")?.map(|on| read_dependencies(&on)).transpose()?,
        multi_instance: fields.object("multiInstanceSettings")?.map(|multi| read_multi(&multi)).transpose()?,
        application_packages: read_packages(fields)?,
        container_settings: read_container(fields)?,
        job_access: read_job_access(fields)?,
        client_settings_json: String::new(),
        resources: fields.object("kilnResources")?.map(|resources| read_resources(&resources)).transpose()?,
    })
}

/// An addition of ours: what the task needs of its node beside slots.
fn read_resources(fields: &Fields<'_>) -> Result<Resources, Error> {
    fields.only(&["cpuMillis", "memoryBytes", "diskBytes", "gpus"])?;
    Ok(Resources {
        cpu_millis: fields.long("cpuMillis")?.unwrap_or(0),
        memory_bytes: fields.long("memoryBytes")?.unwrap_or(0),
        disk_bytes: fields.long("diskBytes")?.unwrap_or(0),
        gpus: fields.int("gpus")?.unwrap_or(0),
    })
}

fn write_resources(resources: &Resources) -> Value {
    json!({
        "cpuMillis": resources.cpu_millis,
        "memoryBytes": resources.memory_bytes,
        "diskBytes": resources.disk_bytes,
        "gpus": resources.gpus,
    })
}

fn read_job_access(fields: &Fields<'_>) -> Result<bool, Error> {
    let Some(settings) = fields.object("authenticationTokenSettings")? else { return Ok(false) };
    Ok(settings.texts("access")?.iter().any(|access| access.eq_ignore_ascii_case("job")))
}

/// The `constraints` of a task, if there are any.
///
/// # Errors
/// Names the property that is wrong.
pub fn read_constraints(fields: &Fields<'_>) -> Result<Option<TaskConstraints>, Error> {
    let Some(constraints) = fields.object("constraints")? else { return Ok(None) };
    Ok(Some(TaskConstraints {
        max_wall_clock_time: constraints.limit("maxWallClockTime")?,
        retention_time: constraints.duration("retentionTime")?,
        max_task_retry_count: constraints.int("maxTaskRetryCount")?,
    }))
}

fn read_exit_options(fields: &Fields<'_>) -> Result<ExitOptions, Error> {
    Ok(ExitOptions {
        job_action: fields.choice("jobAction", JOB_ACTIONS)?.unwrap_or_default().into(),
        dependency_action: fields.choice("dependencyAction", DEPENDENCY_ACTIONS)?.unwrap_or_default().into(),
    })
}

fn read_exit_conditions(fields: &Fields<'_>) -> Result<ExitConditions, Error> {
    let options = |of: &Fields<'_>, name: &str| of.object(name)?.map(|inner| read_exit_options(&inner)).transpose();
    let number = |of: &Fields<'_>, name: &str| of.int(name)?.ok_or_else(|| of.missing(name));
    let exit_codes = fields.each("exitCodes", |item| {
        Ok(ExitCodeMapping { code: number(item, "code")?, exit_options: options(item, "exitOptions")? })
    })?;
    let exit_code_ranges = fields.each("exitCodeRanges", |item| {
        Ok(ExitCodeRangeMapping {
            start: number(item, "start")?,
            end: number(item, "end")?,
            exit_options: options(item, "exitOptions")?,
        })
    })?;
    // Before 2017-05 one condition stood for all that is not an exit code.
    let scheduling_error = options(fields, "schedulingError")?;
    Ok(ExitConditions {
        exit_codes,
        exit_code_ranges,
        pre_processing_error: options(fields, "preProcessingError")?.or(scheduling_error),
        file_upload_error: options(fields, "fileUploadError")?.or(scheduling_error),
        default: options(fields, "default")?,
    })
}

fn read_dependencies(fields: &Fields<'_>) -> Result<TaskDependencies, Error> {
    let number = |of: &Fields<'_>, name: &str| of.int(name)?.ok_or_else(|| of.missing(name));
    Ok(TaskDependencies {
        task_ids: fields.texts("taskIds")?,
        task_id_ranges: fields.each("taskIdRanges", |range| {
            Ok(TaskIdRange { start: number(range, "start")?, end: number(range, "end")? })
        })?,
    })
}

fn read_multi(fields: &Fields<'_>) -> Result<MultiInstanceSettings, Error> {
    Ok(MultiInstanceSettings {
        number_of_instances: fields.int("numberOfInstances")?.unwrap_or(1),
        coordination_command_line: fields.required_text("coordinationCommandLine")?,
        common_resource_files: read_resource_files(fields, "commonResourceFiles")?,
    })
}

/// A task as GET answers it.
pub fn write(task: &Task, view: View<'_>) -> Value {
    let default = TaskSpec::default();
    let spec = task.spec.as_ref().unwrap_or(&default);
    let mut out = Out::new();
    out.put("id", spec.id.as_str())
        .put_text("displayName", &spec.display_name)
        .put("url", view.url(&["jobs", &task.job_id, "tasks", &spec.id]))
        .put("eTag", task.etag.as_str())
        .put_time("lastModified", task.last_modified.as_ref())
        .put_time("creationTime", task.creation_time.as_ref())
        .put("state", word(STATES, task.state()).unwrap_or("active"))
        .put_time("stateTransitionTime", task.state_transition_time.as_ref())
        .put_some("previousState", word(STATES, task.previous_state()))
        .put_time("previousStateTransitionTime", task.previous_state_transition_time.as_ref());
    put_spec(&mut out, spec, view.version);
    out.put("executionInfo", write_execution(task, view.version));
    out.put_some("nodeInfo", task.node.as_ref().map(|node| write_node(node, view)));
    let mut answer = out.done();
    kept::merge(&mut answer, &spec.client_settings_json);
    answer
}

fn write_execution(task: &Task, version: Version) -> Value {
    let default = kiln_proto::job::v1::TaskExecutionInfo::default();
    let info = task.execution.as_ref().unwrap_or(&default);
    let mut out = Out::new();
    out.put_time("startTime", info.start_time.as_ref())
        .put_time("endTime", info.end_time.as_ref())
        .put_some("exitCode", info.exit_code);
    put_failure(&mut out, info.failure.as_ref(), version);
    out.put_some("result", write_result(info.result()))
        .put("retryCount", info.retry_count)
        .put_time("lastRetryTime", info.last_retry_time.as_ref())
        .put("requeueCount", info.requeue_count)
        .put_time("lastRequeueTime", info.last_requeue_time.as_ref());
    out.done()
}

/// What the creator decided, defaults filled in.
pub(super) fn put_spec(out: &mut Out, spec: &TaskSpec, version: Version) {
    out.put("commandLine", spec.command_line.as_str())
        .put_some("containerSettings", spec.container_settings.as_ref().map(write_container))
        .put_list("resourceFiles", write_resource_files(&spec.resource_files, version))
        .put_list("outputFiles", write_output_files(&spec.output_files))
        .put_list("environmentSettings", write_environment(&spec.environment));
    if !spec.affinity_id.is_empty() {
        out.put("affinityInfo", json!({"affinityId": spec.affinity_id}));
    }
    out.put("constraints", write_constraints(spec.constraints.as_ref()))
        .put("requiredSlots", spec.required_slots.max(1));
    put_identity(out, spec.user_identity.as_ref(), version);
    out.put_some("exitConditions", spec.exit_conditions.as_ref().map(|exit| write_exit_conditions(exit, version)));
    if let Some(on) = &spec.depends_on {
        let ranges = on.task_id_ranges.iter().map(|range| json!({"start": range.start, "end": range.end}));
        let mut inner = Out::new();
        inner
            .put_list("taskIds", on.task_ids.iter().map(|id| Value::from(id.as_str())).collect())
            .put_list("taskIdRanges", ranges.collect());
        out.put("dependsOn", inner.done());
    }
    if let Some(multi) = &spec.multi_instance {
        let mut inner = Out::new();
        inner
            .put("numberOfInstances", multi.number_of_instances)
            .put("coordinationCommandLine", multi.coordination_command_line.as_str())
            .put_list("commonResourceFiles", write_resource_files(&multi.common_resource_files, version));
        out.put("multiInstanceSettings", inner.done());
    }
    out.put_list("applicationPackageReferences", write_packages(&spec.application_packages))
        .put_some("kilnResources", spec.resources.as_ref().map(write_resources));
    if spec.job_access {
        out.put("authenticationTokenSettings", json!({"access": ["job"]}));
    }
}

pub(super) fn write_constraints(constraints: Option<&TaskConstraints>) -> Value {
    let default = TaskConstraints::default();
    let constraints = constraints.unwrap_or(&default);
    json!({
        "maxWallClockTime": write_duration(constraints.max_wall_clock_time.as_ref()),
        "retentionTime": write_duration(Some(constraints.retention_time.as_ref().unwrap_or(&RETENTION))),
        "maxTaskRetryCount": constraints.max_task_retry_count.unwrap_or(0),
    })
}

fn write_exit_options(options: Option<&ExitOptions>) -> Value {
    let mut out = Out::new();
    if let Some(options) = options {
        out.put_some("jobAction", word(JOB_ACTIONS, options.job_action()))
            .put_some("dependencyAction", word(DEPENDENCY_ACTIONS, options.dependency_action()));
    }
    out.done()
}

fn write_exit_conditions(conditions: &ExitConditions, version: Version) -> Value {
    let codes = conditions
        .exit_codes
        .iter()
        .map(|item| json!({"code": item.code, "exitOptions": write_exit_options(item.exit_options.as_ref())}));
    let ranges = conditions.exit_code_ranges.iter().map(|item| {
        json!({"start": item.start, "end": item.end, "exitOptions": write_exit_options(item.exit_options.as_ref())})
    });
    let some = |options: &Option<ExitOptions>| options.as_ref().map(|options| write_exit_options(Some(options)));
    let mut out = Out::new();
    out.put_list("exitCodes", codes.collect()).put_list("exitCodeRanges", ranges.collect());
    if version.has_failure_info() {
        out.put_some("preProcessingError", some(&conditions.pre_processing_error))
            .put_some("fileUploadError", some(&conditions.file_upload_error));
    } else {
        out.put_some("schedulingError", some(&conditions.pre_processing_error));
    }
    out.put_some("default", some(&conditions.default));
    out.done()
}

/// A row of the answer to "add task collection".
pub fn write_added(result: &AddTaskResult, job_id: &str, view: View<'_>, error: Option<(bool, Value)>) -> Value {
    let mut out = Out::new();
    match error {
        None => {
            out.put("status", "success")
                .put("taskId", result.task_id.as_str())
                .put_text("eTag", &result.etag)
                .put("lastModified", Timestamp::from_micros(result.last_modified_micros).to_rfc3339())
                .put("location", view.url(&["jobs", job_id, "tasks", &result.task_id]));
        }
        Some((retryable, body)) => {
            out.put("status", if retryable { "servererror" } else { "clienterror" })
                .put("taskId", result.task_id.as_str())
                .put("error", body);
        }
    }
    out.done()
}

/// Task counts, in the form of the version.
pub fn write_counts(tasks: &TaskCounts, slots: &TaskCounts, version: Version) -> Value {
    let write = |counts: &TaskCounts| {
        let mut out = Out::new();
        out.put("active", counts.active)
            .put("running", counts.running)
            .put("completed", counts.completed)
            .put("succeeded", counts.succeeded)
            .put("failed", counts.failed);
        out
    };
    if !version.has_no_slots() {
        return json!({"taskCounts": write(tasks).done(), "taskSlotCounts": write(slots).done()});
    }
    let mut flat = write(tasks);
    if version.has_validation_status() {
        flat.put("validationStatus", "Validated");
    }
    flat.done()
}

#[cfg(test)]
mod tests {
    use kiln_proto::common::v1::{ErrorCategory, ExecutionResult, FailureInfo};
    use kiln_proto::job::v1::{TaskExecutionInfo, TaskNodeInfo};

    use super::*;

    fn view(version: &str) -> View<'static> {
        View { base: "http://h", version: Version::parse(version).unwrap() }
    }

    fn back(body: &Value, version: &str) -> Value {
        let task = Task {
            job_id: "j".into(),
            spec: Some(read_new(body).unwrap()),
            state: TaskState::Active.into(),
            ..Task::default()
        };
        write(&task, view(version))
    }

    #[test]
    fn a_task_of_the_newest_sdk() {
        let body = json!({
            "id": "t1", "commandLine": "/bin/sh -c 'cat $IN'",
            "resourceFiles": [{"storageContainerUrl": "http://b/c?sv=1", "blobPrefix": "in/"},
                {"autoStorageContainerName": "auto", "filePath": "d"}],
            "outputFiles": [{"filePattern": "../std*.txt",
                "destination": {"container": {"containerUrl": "http://b/out?sv=1", "path": "t1",
                    "identityReference": {"resourceId": "r"}}},
                "uploadOptions": {"uploadCondition": "taskSuccess"}}],
            "environmentSettings": [{"name": "IN", "value": "x"}],
            "constraints": {"maxWallClockTime": "PT00H05M00S", "maxTaskRetryCount": "2"},
            "requiredSlots": 2,
            "dependsOn": {"taskIds": ["a"], "taskIdRanges": [{"start": 1, "end": 9}]},
            "exitConditions": {"exitCodes": [{"code": 3, "exitOptions": {"jobAction": "terminate"}}],
                "default": {"dependencyAction": "satisfy"}},
            "authenticationTokenSettings": {"access": ["job"]},
            "multiInstanceSettings": {"numberOfInstances": 3, "coordinationCommandLine": "c",
                "commonResourceFiles": [{"httpUrl": "http://b/c/x", "filePath": "x"}]},
            "kilnResources": {"cpuMillis": 1500, "memoryBytes": 8_589_934_592_i64, "diskBytes": 0, "gpus": 1},
            "containerSettings": {"imageName": "i", "registry": {"username": "u", "password": "geheim"}},
        });
        let spec = read_new(&body).unwrap();
        assert_eq!(spec.constraints.unwrap().max_wall_clock_time.unwrap().seconds, 300);
        assert!(spec.job_access);
        let answer = back(&body, "2025-06-01");
        for name in [
            "resourceFiles",
            "environmentSettings",
            "requiredSlots",
            "dependsOn",
            "exitConditions",
            "multiInstanceSettings",
            "kilnResources",
            "authenticationTokenSettings",
        ] {
            assert_eq!(answer[name], body[name], "{name}");
        }
        assert_eq!(answer["outputFiles"][0]["destination"], body["outputFiles"][0]["destination"]);
        assert_eq!(answer["outputFiles"][0]["uploadOptions"]["uploadCondition"], "tasksuccess");
        assert_eq!(
            answer["constraints"],
            json!({"maxWallClockTime": "PT5M", "retentionTime": "P7D", "maxTaskRetryCount": 2})
        );
        assert_eq!(answer["containerSettings"]["registry"], json!({"username": "u"}));
        assert_eq!(answer["executionInfo"], json!({"retryCount": 0, "requeueCount": 0}));
        assert_eq!(answer["userIdentity"], json!({"autoUser": {"scope": "pool", "elevationLevel": "nonadmin"}}));
        assert!(answer.get("nodeInfo").is_none() && answer.get("previousState").is_none());
    }

    #[test]
    fn resources_are_ours_and_strict() {
        let task = |resources: Value| json!({"id": "t", "commandLine": "x", "kilnResources": resources});
        assert_eq!(read_new(&task(json!({"gpus": "2"}))).unwrap().resources.unwrap().gpus, 2);
        for (bad, property) in [
            (json!({"memory": 1}), "kilnResources.memory"),
            (json!({"memoryBytes": 0.5}), "kilnResources.memoryBytes"),
            (json!("1"), "kilnResources"),
        ] {
            let error = read_new(&task(bad)).unwrap_err();
            assert_eq!(error.details()[0].1, property);
        }
    }

    #[test]
    fn a_plain_task_keeps_nothing_and_shows_defaults() {
        let body = json!({"id": "t", "commandLine": "true", "odata.metadata": "x", "unknown": {"a": 1}});
        assert_eq!(read_new(&body).unwrap().client_settings_json, "");
        let answer = back(&body, "2024-02-01.19.0");
        assert_eq!(answer["constraints"]["maxWallClockTime"], kiln_time::iso::INFINITE);
        assert_eq!(answer["requiredSlots"], 1);
    }

    #[test]
    fn a_completed_task_in_both_generations() {
        let failure = FailureInfo {
            category: ErrorCategory::User.into(),
            code: "BlobNotFound".into(),
            message: "gone".into(),
            details: Vec::new(),
        };
        let task = Task {
            job_id: "j".into(),
            spec: Some(TaskSpec { id: "t".into(), ..TaskSpec::default() }),
            state: TaskState::Completed.into(),
            previous_state: TaskState::Running.into(),
            execution: Some(TaskExecutionInfo {
                exit_code: Some(0),
                result: ExecutionResult::Failure.into(),
                failure: Some(failure),
                ..TaskExecutionInfo::default()
            }),
            node: Some(TaskNodeInfo {
                pool_id: "p".into(),
                node_id: "n".into(),
                task_root_directory: "workitems/j/job-1/t".into(),
            }),
            ..Task::default()
        };
        let new = write(&task, view("2024-02-01.19.0"));
        assert_eq!(new["executionInfo"]["failureInfo"]["category"], "usererror");
        assert_eq!((&new["executionInfo"]["result"], &new["previousState"]), (&json!("failure"), &json!("running")));
        assert_eq!(new["nodeInfo"]["taskRootDirectoryUrl"], "http://h/pools/p/nodes/n/files/workitems/j/job-1/t");
        let old = write(&task, view("2017-01-01.4.0"));
        assert_eq!(old["executionInfo"]["schedulingError"]["code"], "BlobNotFound");
        assert!(old["executionInfo"].get("failureInfo").is_none());
    }

    #[test]
    fn counts_are_nested_flat_or_validated() {
        let counts = TaskCounts { active: 1, running: 2, completed: 3, succeeded: 2, failed: 1 };
        assert_eq!(write_counts(&counts, &counts, Version::LATEST)["taskSlotCounts"]["running"], 2);
        assert_eq!(write_counts(&counts, &counts, view("2019-08-01.10.0").version)["failed"], 1);
        let old = write_counts(&counts, &counts, view("2017-09-01.6.0").version);
        assert_eq!(old["validationStatus"], "Validated");
    }

    #[test]
    fn old_conditions_are_read_and_written() {
        let body = json!({"id": "t", "commandLine": "x", "runElevated": true,
            "exitConditions": {"schedulingError": {"jobAction": "Terminate"}}});
        let answer = back(&body, "2016-07-01.3.1");
        assert_eq!(answer["exitConditions"], json!({"schedulingError": {"jobAction": "terminate"}}));
        assert_eq!(answer["runElevated"], true);
        assert_eq!(back(&body, "2025-06-01")["userIdentity"]["autoUser"]["elevationLevel"], "admin");
    }

    /// Whatever stands in a body, reading it gives a task or an error.
    fn anything() -> impl proptest::strategy::Strategy<Value = Value> {
        use proptest::prelude::*;
        const NAMES: [&str; 16] = [
            "id",
            "commandLine",
            "resourceFiles",
            "httpUrl",
            "outputFiles",
            "destination",
            "container",
            "constraints",
            "maxWallClockTime",
            "retentionTime",
            "maxTaskRetryCount",
            "exitConditions",
            "exitCodes",
            "dependsOn",
            "userIdentity",
            "registry",
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "P?[0-9YMDTHS.]{0,8}|.{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((prop::sample::select(&NAMES[..]), inner), 0..6)
                    .prop_map(|pairs| pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
            ]
        })
    }

    proptest::proptest! {
        #[test]
        fn no_body_is_too_strange(body in anything()) {
            if let Ok(spec) = read_new(&body) {
                let task = Task { spec: Some(spec), ..Task::default() };
                write(&task, view("2016-07-01.3.1"));
            }
        }
    }
}
