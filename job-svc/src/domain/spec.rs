//! What users may ask for in jobs and tasks.
//!
//! Everything that is accepted is done; what this deployment does not do is
//! refused by name, so that nobody waits for something that never happens.

use std::collections::HashSet;
use std::time::Duration;

use kiln_ids::{ApplicationId, JobId, PackageVersion, TaskId};
use kiln_proto::common::v1::{
    ApplicationPackageReference, EnvironmentSetting, NameValue, OutputFile, ResourceFile, resource_file::Source,
};
use kiln_proto::job::v1::{
    DependencyAction, JobAction, JobConstraints, JobSpec, MultiInstanceSettings, OnAllTasksComplete, OnTaskFailure,
    TaskConstraints, TaskSpec,
};
use prost::Message;

use super::auto_pool::{self, PoolChoice};
use super::needs::{MAX_INSTANCES, Needs};
use super::{Error, dependencies, exit, job_manager, job_tasks};

/// A task's spec, encoded, may have this many bytes (semantics 4.7).
pub const MAX_SPEC_BYTES: usize = 1024 * 1024;
/// Names with values in a job's metadata.
const MAX_METADATA: usize = 1024;
/// Application packages of one task.
const MAX_PACKAGES: usize = 100;
/// Bytes of a job's spec.
const MAX_JOB_BYTES: usize = 1024 * 1024;
/// Slots of the largest node.
pub const MAX_SLOTS: i32 = 256;
/// Marks tasks that set no limit of retries of their own.
pub const INHERIT_RETRIES: i32 = i32::MIN;

/// What the scheduler needs to know of a task, apart from its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskFacts {
    /// What it needs of a node.
    pub needs: Needs,
    /// Retries, or [`INHERIT_RETRIES`].
    pub max_retries: i32,
    /// Hash of the node it would like; 0 for none.
    pub affinity: u32,
}

/// Hash of a node's id for affinity; never 0. A collision only misleads a hint.
pub fn affinity_hash(node_id: &str) -> u32 {
    let hash = node_id
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte.to_ascii_lowercase())).wrapping_mul(0x0100_0193));
    hash.max(1)
}

/// Checks the id and the spec of a new job.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_job(id: &str, spec: &JobSpec) -> Result<(JobId, PoolChoice), Error> {
    let id_checked = JobId::parse(id).map_err(|why| Error::bad_id("id", id, &why))?;
    if !id_checked.is_user_choice() {
        return Err(Error::invalid("id", id, "must have 1 to 64 characters of A-Z a-z 0-9 - _"));
    }
    auto_pool::check_without_schedule(spec)?;
    Ok((id_checked, check_job_spec(spec)?))
}

/// Checks the spec of a new job, also of one that a schedule will create.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_job_spec(spec: &JobSpec) -> Result<PoolChoice, Error> {
    let pool = auto_pool::choice(spec)?;
    job_manager::task_of(spec)?;
    job_tasks::check(spec)?;
    check_priority(spec.priority)?;
    check_max_parallel(spec.max_parallel_tasks)?;
    check_job_constraints(spec.constraints.as_ref())?;
    check_environment("commonEnvironmentSettings", &spec.common_environment)?;
    check_metadata(&spec.metadata)?;
    check_enum::<OnAllTasksComplete>("onAllTasksComplete", spec.on_all_tasks_complete)?;
    check_enum::<OnTaskFailure>("onTaskFailure", spec.on_task_failure)?;
    let size = spec.encoded_len();
    if size > MAX_JOB_BYTES {
        return Err(Error::TooLarge { what: "the job", size, max: MAX_JOB_BYTES });
    }
    Ok(pool)
}

fn check_enum<E: TryFrom<i32>>(name: &str, value: i32) -> Result<(), Error> {
    E::try_from(value).map(drop).map_err(|_| Error::invalid(name, value, "is not one of the known values"))
}

/// Checks a job's priority.
///
/// # Errors
/// If it is out of range.
pub fn check_priority(priority: i32) -> Result<(), Error> {
    if (-1000..=1000).contains(&priority) {
        return Ok(());
    }
    Err(Error::Invalid {
        reason: "OutOfRangePriority",
        name: "priority".to_owned(),
        value: priority.to_string(),
        why: "must be between -1000 and 1000".to_owned(),
    })
}

/// Checks a job's limit of tasks that run at once.
///
/// # Errors
/// If it is neither -1 nor positive.
pub fn check_max_parallel(value: Option<i32>) -> Result<(), Error> {
    match value {
        None | Some(-1) | Some(1..) => Ok(()),
        Some(other) => Err(Error::invalid("maxParallelTasks", other, "must be -1 (no limit) or above 0")),
    }
}

/// Checks a job's constraints.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_job_constraints(constraints: Option<&JobConstraints>) -> Result<(), Error> {
    let Some(constraints) = constraints else { return Ok(()) };
    check_retries("constraints.maxTaskRetryCount", constraints.max_task_retry_count)?;
    check_duration("constraints.maxWallClockTime", constraints.max_wall_clock_time.as_ref())
}

fn check_retries(name: &str, value: i32) -> Result<(), Error> {
    if value >= -1 {
        return Ok(());
    }
    Err(constraint(name, value, "must be -1 (without end) or above"))
}

fn constraint(name: &str, value: impl ToString, why: &str) -> Error {
    Error::Invalid {
        reason: "InvalidConstraintValue",
        name: name.to_owned(),
        value: value.to_string(),
        why: why.to_owned(),
    }
}

fn check_duration(name: &str, value: Option<&prost_types::Duration>) -> Result<(), Error> {
    let Some(value) = value else { return Ok(()) };
    match kiln_proto::time::std_duration(value) {
        Some(duration) if duration > Duration::ZERO => Ok(()),
        _ => Err(constraint(name, format!("{}s", value.seconds), "must be a duration above 0")),
    }
}

/// Checks names with values of a job.
///
/// # Errors
/// Too many, or one without a name.
pub fn check_metadata(items: &[NameValue]) -> Result<(), Error> {
    if items.len() > MAX_METADATA {
        return Err(Error::Invalid {
            reason: "MetadataTooLarge",
            name: "metadata".to_owned(),
            value: items.len().to_string(),
            why: format!("has more than {MAX_METADATA} items"),
        });
    }
    if items.iter().any(|item| item.name.is_empty()) {
        return Err(Error::Invalid {
            reason: "EmptyMetadataKey",
            name: "metadata".to_owned(),
            value: String::new(),
            why: "every item needs a name".to_owned(),
        });
    }
    Ok(())
}

fn check_environment(field: &str, settings: &[EnvironmentSetting]) -> Result<(), Error> {
    let mut seen = HashSet::with_capacity(settings.len());
    for setting in settings {
        let name = setting.name.as_str();
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(Error::invalid(format!("{field}.name"), name, "must not be empty and not contain = or NUL"));
        }
        if setting.value.contains('\0') {
            return Err(Error::invalid(format!("{field}.value"), name, "must not contain NUL"));
        }
        let upper = name.to_ascii_uppercase();
        // The index of an array is the client's to give; it only bears our name.
        if (upper.starts_with("AZ_BATCH_") || upper.starts_with("KILN_")) && name != "KILN_ARRAY_INDEX" {
            return Err(Error::invalid(format!("{field}.name"), name, "AZ_BATCH_ and KILN_ are the service's own"));
        }
        if !seen.insert(name) {
            return Err(Error::invalid(format!("{field}.name"), name, "is given twice"));
        }
    }
    Ok(())
}

/// Checks names alone: whether there are such packages is found out by the node, as in Azure.
fn check_packages(packages: &[ApplicationPackageReference]) -> Result<(), Error> {
    let name = |field: &str| format!("applicationPackageReferences.{field}");
    if packages.len() > MAX_PACKAGES {
        let why = format!("a task has at most {MAX_PACKAGES} application packages");
        return Err(Error::invalid("applicationPackageReferences", packages.len(), why));
    }
    for package in packages {
        let (application, version) = (&package.application_id, &package.version);
        if application.is_empty() {
            return Err(Error::Missing(name("applicationId")));
        }
        ApplicationId::parse(application).map_err(|why| Error::bad_id(&name("applicationId"), application, &why))?;
        if !version.is_empty() {
            PackageVersion::parse(version).map_err(|why| Error::bad_id(&name("version"), version, &why))?;
        }
    }
    Ok(())
}

/// Checks the spec of a new task.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_task(spec: &TaskSpec) -> Result<(TaskId, TaskFacts), Error> {
    if spec.id.is_empty() {
        return Err(Error::Missing("id".to_owned()));
    }
    let id = TaskId::parse(&spec.id).map_err(|why| Error::bad_id("id", &spec.id, &why))?;
    if spec.command_line.trim().is_empty() {
        return Err(Error::Missing("commandLine".to_owned()));
    }
    if spec.command_line.contains('\0') {
        return Err(Error::invalid("commandLine", "", "must not contain NUL"));
    }
    if spec.container_settings.is_some() {
        return Err(Error::Unsupported("containerSettings"));
    }
    check_packages(&spec.application_packages)?;
    if let Some(on) = &spec.depends_on {
        dependencies::check(&id, on)?;
    }
    let slots = match spec.required_slots {
        0 => 1,
        slots @ 1..=MAX_SLOTS => slots,
        other => {
            return Err(Error::invalid("requiredSlots", other, format!("must be between 1 and {MAX_SLOTS}")));
        }
    };
    if let Some(settings) = &spec.multi_instance {
        check_multi_instance(settings, spec.required_slots)?;
    }
    for file in &spec.resource_files {
        check_resource_file(file)?;
    }
    for file in &spec.output_files {
        check_output_file(file)?;
    }
    check_environment("environmentSettings", &spec.environment)?;
    let max_retries = check_task_constraints(spec.constraints.as_ref())?;
    if let Some(conditions) = &spec.exit_conditions
        && let Some(range) = conditions.exit_code_ranges.iter().find(|range| range.start > range.end)
    {
        return Err(Error::invalid("exitConditions.exitCodeRanges", range.start, "start is above end"));
    }
    for options in spec.exit_conditions.iter().flat_map(exit::all_options) {
        check_enum::<JobAction>("exitConditions.jobAction", options.job_action)?;
        check_enum::<DependencyAction>("exitConditions.dependencyAction", options.dependency_action)?;
    }
    let size = spec.encoded_len();
    if size > MAX_SPEC_BYTES {
        return Err(Error::TooLarge { what: "the task", size, max: MAX_SPEC_BYTES });
    }
    let wanted = spec.affinity_id.strip_prefix("TVM:").unwrap_or(&spec.affinity_id);
    let affinity = if wanted.is_empty() { 0 } else { affinity_hash(wanted) };
    let needs = Needs::of(spec, u16::try_from(slots).unwrap_or(1))?;
    Ok((id, TaskFacts { needs, max_retries, affinity }))
}

fn check_multi_instance(settings: &MultiInstanceSettings, slots: i32) -> Result<(), Error> {
    const NAME: &str = "multiInstanceSettings";
    // 0 is what a client leaves out; it means 1.
    if !(0..=i32::from(MAX_INSTANCES)).contains(&settings.number_of_instances) {
        return Err(Error::invalid(
            format!("{NAME}.numberOfInstances"),
            settings.number_of_instances,
            format!("must be between 1 and {MAX_INSTANCES}"),
        ));
    }
    if settings.coordination_command_line.trim().is_empty() {
        return Err(Error::Missing(format!("{NAME}.coordinationCommandLine")));
    }
    if settings.coordination_command_line.contains('\0') {
        return Err(Error::invalid(format!("{NAME}.coordinationCommandLine"), "", "must not contain NUL"));
    }
    if slots > 1 {
        return Err(Error::invalid("requiredSlots", slots, "must be 1, or not be given, for multi-instance tasks"));
    }
    settings.common_resource_files.iter().try_for_each(check_resource_file)
}

/// Checks a task's constraints; returns its limit of retries.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_task_constraints(constraints: Option<&TaskConstraints>) -> Result<i32, Error> {
    let Some(constraints) = constraints else { return Ok(INHERIT_RETRIES) };
    check_duration("constraints.maxWallClockTime", constraints.max_wall_clock_time.as_ref())?;
    check_duration("constraints.retentionTime", constraints.retention_time.as_ref())?;
    match constraints.max_task_retry_count {
        None => Ok(INHERIT_RETRIES),
        Some(count) => check_retries("constraints.maxTaskRetryCount", count).map(|()| count),
    }
}

fn check_resource_file(file: &ResourceFile) -> Result<(), Error> {
    let blob_prefix_fits = match &file.source {
        None => {
            return Err(Error::Missing(
                "resourceFiles: httpUrl, storageContainerUrl or autoStorageContainerName".into(),
            ));
        }
        Some(Source::HttpUrl(url)) => {
            check_url("resourceFiles.httpUrl", url)?;
            if file.file_path.is_empty() {
                return Err(Error::Missing("resourceFiles.filePath".to_owned()));
            }
            false
        }
        Some(Source::StorageContainerUrl(url)) => {
            check_url("resourceFiles.storageContainerUrl", url)?;
            true
        }
        Some(Source::AutoStorageContainerName(name)) => {
            if name.is_empty() {
                return Err(Error::Missing("resourceFiles.autoStorageContainerName".to_owned()));
            }
            true
        }
    };
    if !blob_prefix_fits && !file.blob_prefix.is_empty() {
        return Err(Error::invalid("resourceFiles.blobPrefix", &file.blob_prefix, "needs a container as source"));
    }
    check_path("resourceFiles.filePath", &file.file_path)?;
    let mode = file.file_mode.as_str();
    if !mode.is_empty() && (mode.len() > 5 || u32::from_str_radix(mode, 8).is_err()) {
        return Err(Error::invalid("resourceFiles.fileMode", mode, "must be an octal mode such as 0755"));
    }
    Ok(())
}

fn check_url(name: &str, url: &str) -> Result<(), Error> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    match rest {
        Some(rest) if !rest.is_empty() && !rest.starts_with('/') => Ok(()),
        // The text may hold a signature: it is not repeated.
        _ => Err(Error::invalid(name, "", "must be an http or https URL")),
    }
}

/// A path below the working directory.
fn check_path(name: &str, path: &str) -> Result<(), Error> {
    let escapes = path.starts_with(['/', '\\'])
        || path.contains('\0')
        || path.split(['/', '\\']).any(|part| part == "..")
        || path.get(1..2) == Some(":");
    if escapes {
        return Err(Error::invalid(name, path, "must stay below the task's working directory"));
    }
    Ok(())
}

fn check_output_file(file: &OutputFile) -> Result<(), Error> {
    if file.file_pattern.is_empty() {
        return Err(Error::Missing("outputFiles.filePattern".to_owned()));
    }
    if file.file_pattern.contains('\0') {
        return Err(Error::invalid("outputFiles.filePattern", "", "must not contain NUL"));
    }
    if file.container_url.is_empty() {
        return Err(Error::Missing("outputFiles.destination.container.containerUrl".to_owned()));
    }
    check_url("outputFiles.destination.container.containerUrl", &file.container_url)?;
    check_enum::<kiln_proto::common::v1::OutputFileUploadCondition>(
        "outputFiles.uploadOptions.uploadCondition",
        file.upload_condition,
    )
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
