//! JSON of the parts that pools, jobs and tasks share.

use kiln_error::Error;
use kiln_proto::common::v1::resource_file::Source;
use kiln_proto::common::v1::{
    ApplicationPackageReference, AutoUserScope, ContainerSettings, DeallocationOption, ElevationLevel,
    EnvironmentSetting, ErrorCategory, ExecutionResult, FailureInfo, NameValue, OutputFile, OutputFileUploadCondition,
    ResourceFile, UserIdentity,
};
use serde_json::{Value, json};

use super::json::{Fields, Out, word};
use super::version::Version;

const SCOPES: &[(&str, AutoUserScope)] = &[("task", AutoUserScope::Task), ("pool", AutoUserScope::Pool)];
pub(super) const ELEVATION: &[(&str, ElevationLevel)] =
    &[("nonadmin", ElevationLevel::NonAdmin), ("admin", ElevationLevel::Admin)];
const UPLOAD_CONDITIONS: &[(&str, OutputFileUploadCondition)] = &[
    ("tasksuccess", OutputFileUploadCondition::TaskSuccess),
    ("taskfailure", OutputFileUploadCondition::TaskFailure),
    ("taskcompletion", OutputFileUploadCondition::TaskCompletion),
];
pub(super) const DEALLOCATION: &[(&str, DeallocationOption)] = &[
    ("requeue", DeallocationOption::Requeue),
    ("terminate", DeallocationOption::Terminate),
    ("taskcompletion", DeallocationOption::TaskCompletion),
    ("retaineddata", DeallocationOption::RetainedData),
];

pub(super) fn read_resource_files(fields: &Fields<'_>, name: &str) -> Result<Vec<ResourceFile>, Error> {
    fields.each(name, |file| {
        let mut sources = Vec::new();
        // Before 2018-12 the URL was called blobSource.
        for url in ["httpUrl", "blobSource"] {
            sources.extend(file.text(url)?.map(Source::HttpUrl));
        }
        sources.extend(file.text("storageContainerUrl")?.map(Source::StorageContainerUrl));
        sources.extend(file.text("autoStorageContainerName")?.map(Source::AutoStorageContainerName));
        if sources.len() > 1 {
            let path = file.path_of("httpUrl");
            let why = "only one of httpUrl, storageContainerUrl and autoStorageContainerName may be given";
            return Err(Error::invalid_property(&path, "", why));
        }
        let source = sources.pop().ok_or_else(|| file.missing("httpUrl"))?;
        Ok(ResourceFile {
            source: Some(source),
            blob_prefix: file.text_or_empty("blobPrefix")?,
            file_path: file.text_or_empty("filePath")?,
            file_mode: file.text_or_empty("fileMode")?,
        })
    })
}

pub(super) fn write_resource_files(files: &[ResourceFile], version: Version) -> Vec<Value> {
    files
        .iter()
        .map(|file| {
            let mut out = Out::new();
            match &file.source {
                Some(Source::HttpUrl(url)) => {
                    if version.has_blob_source() {
                        out.put("blobSource", url.as_str());
                    }
                    out.put("httpUrl", url.as_str());
                }
                Some(Source::StorageContainerUrl(url)) => {
                    out.put("storageContainerUrl", url.as_str());
                }
                Some(Source::AutoStorageContainerName(name)) => {
                    out.put("autoStorageContainerName", name.as_str());
                }
                None => {}
            }
            out.put_text("blobPrefix", &file.blob_prefix)
                .put_text("filePath", &file.file_path)
                .put_text("fileMode", &file.file_mode);
            out.done()
        })
        .collect()
}

pub(super) fn read_output_files(fields: &Fields<'_>, name: &str) -> Result<Vec<OutputFile>, Error> {
    fields.each(name, |file| {
        let destination = file.object("destination")?.ok_or_else(|| file.missing("destination"))?;
        let container = destination.object("container")?.ok_or_else(|| destination.missing("container"))?;
        let condition = match file.object("uploadOptions")? {
            Some(options) => options.choice("uploadCondition", UPLOAD_CONDITIONS)?,
            None => None,
        };
        Ok(OutputFile {
            file_pattern: file.required_text("filePattern")?,
            path: container.text_or_empty("path")?,
            container_url: container.required_text("containerUrl")?,
            upload_condition: condition.unwrap_or(OutputFileUploadCondition::TaskCompletion).into(),
            upload_headers: read_name_values(&container, "uploadHeaders")?,
        })
    })
}

pub(super) fn write_output_files(files: &[OutputFile]) -> Vec<Value> {
    files
        .iter()
        .map(|file| {
            let mut container = Out::new();
            container
                .put_text("path", &file.path)
                .put("containerUrl", file.container_url.as_str())
                .put_list("uploadHeaders", write_name_values(&file.upload_headers));
            let condition = word(UPLOAD_CONDITIONS, file.upload_condition()).unwrap_or("taskcompletion");
            json!({
                "filePattern": file.file_pattern,
                "destination": {"container": container.done()},
                "uploadOptions": {"uploadCondition": condition},
            })
        })
        .collect()
}

pub(super) fn read_environment(fields: &Fields<'_>, name: &str) -> Result<Vec<EnvironmentSetting>, Error> {
    fields.each(name, |item| {
        Ok(EnvironmentSetting { name: item.required_text("name")?, value: item.text_or_empty("value")? })
    })
}

pub(super) fn write_environment(settings: &[EnvironmentSetting]) -> Vec<Value> {
    settings.iter().map(|setting| json!({"name": setting.name, "value": setting.value})).collect()
}

pub(super) fn read_name_values(fields: &Fields<'_>, name: &str) -> Result<Vec<NameValue>, Error> {
    fields.each(name, |item| Ok(NameValue { name: item.required_text("name")?, value: item.text_or_empty("value")? }))
}

pub(super) fn write_name_values(items: &[NameValue]) -> Vec<Value> {
    items.iter().map(|item| json!({"name": item.name, "value": item.value})).collect()
}

/// `userIdentity`, or the `runElevated` of the first generation.
pub(super) fn read_identity(fields: &Fields<'_>) -> Result<Option<UserIdentity>, Error> {
    if let Some(identity) = fields.object("userIdentity")? {
        let user = identity.object("autoUser")?;
        let (scope, level) = match &user {
            Some(user) => (user.choice("scope", SCOPES)?, user.choice("elevationLevel", ELEVATION)?),
            None => (None, None),
        };
        return Ok(Some(UserIdentity {
            username: identity.text_or_empty("username")?,
            auto_user_scope: scope.unwrap_or_default().into(),
            elevation_level: level.unwrap_or_default().into(),
        }));
    }
    let elevated = fields.boolean("runElevated")?;
    Ok(elevated.map(|elevated| UserIdentity {
        elevation_level: if elevated { ElevationLevel::Admin } else { ElevationLevel::NonAdmin }.into(),
        ..UserIdentity::default()
    }))
}

/// Puts `userIdentity` with its defaults.
pub(super) fn put_identity(out: &mut Out, identity: Option<&UserIdentity>, version: Version) {
    let default = UserIdentity::default();
    let identity = identity.unwrap_or(&default);
    if version.has_run_elevated() {
        out.put("runElevated", identity.elevation_level() == ElevationLevel::Admin);
    }
    if identity.username.is_empty() {
        let scope = word(SCOPES, identity.auto_user_scope()).unwrap_or("pool");
        let level = word(ELEVATION, identity.elevation_level()).unwrap_or("nonadmin");
        out.put("userIdentity", json!({"autoUser": {"scope": scope, "elevationLevel": level}}));
    } else {
        out.put("userIdentity", json!({"username": identity.username}));
    }
}

pub(super) fn read_packages(fields: &Fields<'_>) -> Result<Vec<ApplicationPackageReference>, Error> {
    fields.each("applicationPackageReferences", |item| {
        Ok(ApplicationPackageReference {
            application_id: item.required_text("applicationId")?,
            version: item.text_or_empty("version")?,
        })
    })
}

pub(super) fn write_packages(packages: &[ApplicationPackageReference]) -> Vec<Value> {
    packages
        .iter()
        .map(|package| {
            let mut out = Out::new();
            out.put("applicationId", package.application_id.as_str()).put_text("version", &package.version);
            out.done()
        })
        .collect()
}

pub(super) fn read_container(fields: &Fields<'_>) -> Result<Option<ContainerSettings>, Error> {
    let Some(container) = fields.object("containerSettings")? else { return Ok(None) };
    Ok(Some(ContainerSettings {
        image_name: container.required_text("imageName")?,
        container_run_options: container.text_or_empty("containerRunOptions")?,
        working_directory: container.text_or_empty("workingDirectory")?,
    }))
}

pub(super) fn write_container(container: &ContainerSettings) -> Value {
    let mut out = Out::new();
    out.put_text("containerRunOptions", &container.container_run_options)
        .put("imageName", container.image_name.as_str())
        .put_text("workingDirectory", &container.working_directory);
    out.done()
}

pub(super) fn write_result(result: ExecutionResult) -> Option<&'static str> {
    match result {
        ExecutionResult::Success => Some("success"),
        ExecutionResult::Failure => Some("failure"),
        ExecutionResult::Unspecified => None,
    }
}

fn write_failure(failure: &FailureInfo) -> Value {
    let category = match failure.category() {
        ErrorCategory::Server => "servererror",
        ErrorCategory::User | ErrorCategory::Unspecified => "usererror",
    };
    let mut out = Out::new();
    out.put("category", category)
        .put_text("code", &failure.code)
        .put_text("message", &failure.message)
        .put_list("details", write_name_values(&failure.details));
    out.done()
}

/// A job's `schedulingError`.
pub(super) fn write_scheduling_error(failure: &FailureInfo) -> Value {
    write_failure(failure)
}

/// Puts `failureInfo`, or what stood for it before 2017-05: a `schedulingError`
/// unless the program itself failed.
pub(super) fn put_failure(out: &mut Out, failure: Option<&FailureInfo>, version: Version) {
    let Some(failure) = failure else { return };
    if version.has_failure_info() {
        out.put("failureInfo", write_failure(failure));
    } else if failure.code != "FailureExitCode" {
        out.put("schedulingError", write_failure(failure));
    }
}

/// What happens to running tasks; requeue if the body does not say.
pub(super) fn read_deallocation(fields: &Fields<'_>, name: &str) -> Result<i32, Error> {
    Ok(fields.choice(name, DEALLOCATION)?.unwrap_or(DeallocationOption::Requeue).into())
}
