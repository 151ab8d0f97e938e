//! What clients may ask for.

use std::time::Duration;

use kiln_error::{Error, Kind};
use kiln_proto::common::v1::{self as common, DeallocationOption as WireOption};
use kiln_proto::pool::v1::{PoolSpec, StartTask};

use crate::domain::DeallocationOption;
use crate::domain::pool::{Counts, DEFAULT_RESIZE_TIMEOUT};

/// Shortest limit of a resize.
const MIN_RESIZE_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// Longest limit of a resize that is kept as such.
const MAX_RESIZE_TIMEOUT: Duration = Duration::from_secs(3650 * 86_400);
/// Most nodes of a pool.
const MAX_NODES: u32 = 10_000;
/// Most slots of a node.
const MAX_SLOTS: i32 = 256;
/// Most characters of a start task: command line, files and environment.
const MAX_START_TASK: usize = 32_768;
/// Most characters of a display name.
const MAX_DISPLAY_NAME: usize = 1024;
/// Most application packages of a pool.
const MAX_PACKAGES: usize = 10;
/// Most characters of a user's name.
const MAX_USER_NAME: usize = 20;
/// Most users and metadata entries.
const MAX_ITEMS: usize = 1000;
/// Most bytes of settings that are only kept.
const MAX_CLIENT_SETTINGS: usize = 256 * 1024;

/// What of a specification the rules of pools need.
#[derive(Debug, Clone, Copy)]
pub struct Sizing {
    /// Nodes asked for.
    pub target: Counts,
    /// Limit of the resize.
    pub resize_timeout: Duration,
    /// Slots of each node.
    pub task_slots: u32,
}

/// Checks a new pool's specification and fills in what was left out.
///
/// # Errors
/// Names the field.
pub fn spec(spec: &mut PoolSpec, default_provider: &str) -> Result<Sizing, Error> {
    if spec.enable_auto_scale || !spec.auto_scale_formula.is_empty() || spec.auto_scale_evaluation_interval.is_some() {
        return Err(Error::new(
            Kind::InvalidArgument,
            "UnsupportedProperty",
            "enable_auto_scale: pools do not scale by themselves yet; set target_dedicated_nodes instead",
        )
        .with_detail("PropertyName", "enable_auto_scale"));
    }
    at_most("display_name", &spec.display_name, MAX_DISPLAY_NAME)?;
    if !spec.provider.is_empty() && spec.provider != default_provider {
        return Err(Error::invalid_property(
            "provider",
            &spec.provider,
            format!("this deployment has the provider {default_provider:?}"),
        ));
    }
    if spec.vm_size.is_empty() {
        spec.vm_size = "local".to_owned();
    }
    at_most("vm_size", &spec.vm_size, 128)?;
    let target = Counts {
        dedicated: target("target_dedicated_nodes", spec.target_dedicated_nodes)?,
        low_priority: target("target_low_priority_nodes", spec.target_low_priority_nodes)?,
    };
    total(target)?;
    let resize_timeout = resize_timeout(spec.resize_timeout.as_ref())?;
    spec.resize_timeout = Some(kiln_proto::time::duration(resize_timeout));
    if spec.task_slots_per_node == 0 {
        spec.task_slots_per_node = 1;
    }
    if !(1..=MAX_SLOTS).contains(&spec.task_slots_per_node) {
        let why = format!("must be between 1 and {MAX_SLOTS}");
        return Err(Error::invalid_property("task_slots_per_node", spec.task_slots_per_node, why));
    }
    if let Some(task) = &spec.start_task {
        start_task(task)?;
    }
    packages(&spec.application_packages)?;
    metadata(&spec.metadata)?;
    users(spec)?;
    if spec.client_settings_json.len() > MAX_CLIENT_SETTINGS {
        let why = format!("has {} bytes; at most {MAX_CLIENT_SETTINGS} are kept", spec.client_settings_json.len());
        return Err(Error::invalid_property("client_settings_json", "", why));
    }
    Ok(Sizing { target, resize_timeout, task_slots: spec.task_slots_per_node.unsigned_abs() })
}

fn at_most(name: &str, text: &str, max: usize) -> Result<(), Error> {
    let length = text.chars().count();
    if length > max {
        let shown: String = text.chars().take(64).collect();
        return Err(Error::invalid_property(
            name,
            shown,
            format!("has {length} characters; at most {max} are allowed"),
        ));
    }
    Ok(())
}

/// A number of nodes.
///
/// # Errors
/// If it is negative or too large.
pub fn target(name: &str, value: i32) -> Result<u32, Error> {
    u32::try_from(value)
        .ok()
        .filter(|value| *value <= MAX_NODES)
        .ok_or_else(|| Error::invalid_property(name, value, format!("must be between 0 and {MAX_NODES}")))
}

/// Both kinds together.
///
/// # Errors
/// If they are too many.
pub fn total(counts: Counts) -> Result<(), Error> {
    if counts.total() > MAX_NODES {
        let why = format!("a pool has at most {MAX_NODES} nodes of both kinds");
        return Err(Error::invalid_property("target_low_priority_nodes", counts.low_priority, why));
    }
    Ok(())
}

/// The limit of a resize.
///
/// # Errors
/// If it is below five minutes.
pub fn resize_timeout(given: Option<&prost_types::Duration>) -> Result<Duration, Error> {
    let Some(given) = given else { return Ok(DEFAULT_RESIZE_TIMEOUT) };
    kiln_proto::time::std_duration(given)
        .filter(|timeout| *timeout >= MIN_RESIZE_TIMEOUT)
        .map(|timeout| timeout.min(MAX_RESIZE_TIMEOUT))
        .ok_or_else(|| {
            Error::invalid_property("resize_timeout", format!("{} s", given.seconds), "must be at least 5 minutes")
        })
}

/// What happens to tasks.
///
/// # Errors
/// If it is none of the options.
pub fn option(name: &str, value: i32) -> Result<DeallocationOption, Error> {
    match WireOption::try_from(value) {
        Ok(WireOption::Unspecified | WireOption::Requeue) => Ok(DeallocationOption::Requeue),
        Ok(WireOption::Terminate) => Ok(DeallocationOption::Terminate),
        Ok(WireOption::TaskCompletion) => Ok(DeallocationOption::TaskCompletion),
        Ok(WireOption::RetainedData) => Ok(DeallocationOption::RetainedData),
        Err(_) => Err(Error::invalid_property(name, value, "is not an option this service knows")),
    }
}

/// A start task.
///
/// # Errors
/// Names the field.
pub fn start_task(task: &StartTask) -> Result<(), Error> {
    if task.command_line.trim().is_empty() {
        return Err(Error::missing_property("start_task.command_line"));
    }
    if task.max_task_retry_count < -1 {
        let why = "must be -1 (without end), 0 (none) or more";
        return Err(Error::invalid_property("start_task.max_task_retry_count", task.max_task_retry_count, why));
    }
    let mut size = task.command_line.chars().count();
    for setting in &task.environment {
        if setting.name.is_empty() || setting.name.contains(['=', '\0']) || setting.value.contains('\0') {
            let why = "a variable needs a name without '=' and no NUL characters";
            return Err(Error::invalid_property("start_task.environment", &setting.name, why));
        }
        size += setting.name.chars().count() + setting.value.chars().count();
    }
    for file in &task.resource_files {
        size += resource_file(file)?;
    }
    if size > MAX_START_TASK {
        let why = format!(
            "command line, files and environment have {size} characters together; at most {MAX_START_TASK} are allowed"
        );
        return Err(Error::invalid_property("start_task", "", why));
    }
    Ok(())
}

/// Checks one file and returns the characters it counts.
fn resource_file(file: &common::ResourceFile) -> Result<usize, Error> {
    use common::resource_file::Source;
    const FIELD: &str = "start_task.resource_files";
    let invalid = |value: &str, why: &str| Err(Error::invalid_property(FIELD, value, why));
    let source = match &file.source {
        // URLs may hold a signature: they are not repeated.
        Some(Source::HttpUrl(_)) if file.file_path.is_empty() => {
            return invalid("", "file_path is required with http_url");
        }
        Some(Source::HttpUrl(url) | Source::StorageContainerUrl(url)) => {
            if !url.starts_with("http://") && !url.starts_with("https://") {
                return invalid("", "must be an http or https URL");
            }
            url
        }
        Some(Source::AutoStorageContainerName(name)) => name,
        None => return invalid("", "one of http_url, storage_container_url, auto_storage_container_name is required"),
    };
    if source.is_empty() {
        return invalid("", "the source is empty");
    }
    if file.file_path.starts_with('/') || file.file_path.split('/').any(|part| part == "..") {
        return invalid(&file.file_path, "file_path must stay below the working directory");
    }
    if !file.file_mode.is_empty() && u32::from_str_radix(&file.file_mode, 8).map_or(true, |mode| mode > 0o7777) {
        return invalid(&file.file_mode, "file_mode must be octal, for example 0755");
    }
    Ok(source.chars().count() + file.file_path.chars().count() + file.blob_prefix.chars().count())
}

/// Application packages of a pool.
///
/// # Errors
/// If there are too many, or one has names that cannot be those of a package.
pub fn packages(packages: &[common::ApplicationPackageReference]) -> Result<(), Error> {
    if packages.len() > MAX_PACKAGES {
        let why = format!("a pool has at most {MAX_PACKAGES} application packages");
        return Err(Error::invalid_property("application_packages", packages.len(), why));
    }
    for package in packages {
        if package.application_id.is_empty() {
            return Err(Error::missing_property("application_packages.application_id"));
        }
        let bad = |name: &str, value: &str, why: kiln_ids::InvalidId| {
            Error::invalid_property(&format!("application_packages.{name}"), value, why.to_string())
        };
        let (application, version) = (&package.application_id, &package.version);
        kiln_ids::ApplicationId::parse(application).map_err(|why| bad("application_id", application, why))?;
        // None: whatever is the default when a node joins.
        if !version.is_empty() {
            kiln_ids::PackageVersion::parse(version).map_err(|why| bad("version", version, why))?;
        }
    }
    Ok(())
}

/// Names with values that mean nothing to the service.
///
/// # Errors
/// If a name is empty or there are too many.
pub fn metadata(items: &[common::NameValue]) -> Result<(), Error> {
    if items.iter().any(|item| item.name.is_empty()) {
        return Err(Error::new(Kind::InvalidArgument, "EmptyMetadataKey", "metadata: every entry needs a name"));
    }
    if items.len() > MAX_ITEMS {
        let why = format!("metadata: at most {MAX_ITEMS} entries are kept");
        return Err(Error::new(Kind::InvalidArgument, "MetadataTooLarge", why));
    }
    Ok(())
}

fn users(spec: &PoolSpec) -> Result<(), Error> {
    if spec.user_accounts.len() > MAX_ITEMS {
        return Err(Error::invalid_property("user_accounts", spec.user_accounts.len(), "too many users"));
    }
    let mut seen = std::collections::HashSet::new();
    for user in &spec.user_accounts {
        if user.name.is_empty() {
            return Err(Error::missing_property("user_accounts.name"));
        }
        at_most("user_accounts.name", &user.name, MAX_USER_NAME)?;
        // They become lines of a node's user database.
        if user.name.starts_with('-') || user.name.contains([':', '/', ',']) || user.name.contains(char::is_control) {
            let why = "must not begin with - nor have : / , or control characters";
            return Err(Error::invalid_property("user_accounts.name", user.name.escape_debug().to_string(), why));
        }
        if !seen.insert(user.name.to_lowercase()) {
            return Err(Error::invalid_property("user_accounts.name", &user.name, "is given twice"));
        }
        if user.password.contains([':', '\n', '\0']) {
            let why = "has a password with : or a line break";
            return Err(Error::invalid_property("user_accounts.password", &user.name, why));
        }
        if common::ElevationLevel::try_from(user.elevation_level).is_err() {
            return Err(Error::invalid_property("user_accounts.elevation_level", user.elevation_level, "is not known"));
        }
        if user.uid.is_some() != user.gid.is_some() {
            return Err(Error::invalid_property(
                "user_accounts.uid",
                &user.name,
                "uid and gid are given both or not at all",
            ));
        }
    }
    Ok(())
}

/// A path on a node, relative to its root: what the agent is asked for.
///
/// # Errors
/// If it could lead out of the root.
pub fn node_path(name: &str, path: &str) -> Result<String, Error> {
    let refused = |why: &str| Err(Error::invalid_property(name, path.chars().take(256).collect::<String>(), why));
    if path.len() > 4096 || path.contains('\0') {
        return refused("is not a path");
    }
    if path.starts_with('/') {
        return refused("must be relative to the node root");
    }
    if path.split(['/', '\\']).any(|part| part == "..") {
        return refused("must not contain \"..\"");
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        for (path, expected) in [("", ""), ("a/b", "a/b"), ("./a//b/", "a/b"), ("workitems/..x/y", "workitems/..x/y")] {
            assert_eq!(node_path("path", path).unwrap(), expected);
        }
        for path in ["..", "/etc/passwd", "a/../../b", "a\\..\\b", "a\0b", &"x".repeat(5000)] {
            assert_eq!(node_path("path", path).unwrap_err().reason(), "InvalidPropertyValue", "{path}");
        }
    }

    #[test]
    fn errors_do_not_repeat_signatures() {
        use common::resource_file::Source;
        for (url, path) in [("http://h/a/c/b?sig=SECRET", ""), ("ftp://h/c/b?sig=SECRET", "b")] {
            let file = common::ResourceFile {
                source: Some(Source::HttpUrl(url.to_owned())),
                file_path: path.to_owned(),
                ..common::ResourceFile::default()
            };
            let error = resource_file(&file).unwrap_err();
            assert!(!format!("{error} {:?}", error.details()).contains("SECRET"), "{error}");
        }
    }

    #[test]
    fn specifications_are_checked_field_by_field() {
        let task = |command: &str| StartTask { command_line: command.to_owned(), ..StartTask::default() };
        type Wrong = (&'static str, fn(&mut PoolSpec));
        let cases: [Wrong; 17] = [
            ("target_dedicated_nodes", |spec| spec.target_dedicated_nodes = -1),
            ("target_low_priority_nodes", |spec| spec.target_low_priority_nodes = 10_001),
            ("task_slots_per_node", |spec| spec.task_slots_per_node = 257),
            ("resize_timeout", |spec| {
                spec.resize_timeout = Some(prost_types::Duration { seconds: 299, nanos: 0 });
            }),
            ("resize_timeout", |spec| {
                spec.resize_timeout = Some(prost_types::Duration { seconds: -1, nanos: 0 });
            }),
            ("enable_auto_scale", |spec| spec.enable_auto_scale = true),
            ("provider", |spec| spec.provider = "moon".into()),
            ("start_task.command_line", |spec| spec.start_task = Some(StartTask::default())),
            ("start_task.resource_files", |spec| {
                let mut task = StartTask { command_line: "true".into(), ..StartTask::default() };
                task.resource_files.push(common::ResourceFile::default());
                spec.start_task = Some(task);
            }),
            ("application_packages", |spec| {
                spec.application_packages = vec![common::ApplicationPackageReference::default(); 11];
            }),
            ("application_packages.application_id", |spec| {
                spec.application_packages = vec![common::ApplicationPackageReference::default()];
            }),
            ("application_packages.application_id", |spec| {
                let application_id = "a/b".to_owned();
                spec.application_packages =
                    vec![common::ApplicationPackageReference { application_id, version: String::new() }];
            }),
            ("application_packages.version", |spec| {
                let (application_id, version) = ("a".to_owned(), "..".to_owned());
                spec.application_packages = vec![common::ApplicationPackageReference { application_id, version }];
            }),
            ("user_accounts.name", |spec| {
                spec.user_accounts =
                    vec![kiln_proto::pool::v1::UserAccount { name: "x".repeat(21), ..Default::default() }];
            }),
            ("user_accounts.name", |spec| {
                let user = |name: &str| kiln_proto::pool::v1::UserAccount { name: name.into(), ..Default::default() };
                spec.user_accounts = vec![user("Ann"), user("ann")];
            }),
            ("user_accounts.name", |spec| {
                let name = "root::0:0\n".to_owned();
                spec.user_accounts = vec![kiln_proto::pool::v1::UserAccount { name, ..Default::default() }];
            }),
            ("display_name", |spec| spec.display_name = "x".repeat(1025)),
        ];
        for (field, change) in cases {
            let mut wrong = PoolSpec::default();
            change(&mut wrong);
            let error = spec(&mut wrong, "local").unwrap_err();
            let named = error.details().iter().any(|(name, value)| name == "PropertyName" && value == field);
            assert!(named, "{field}: {error} {:?}", error.details());
        }
        let mut long = PoolSpec { start_task: Some(task(&"x".repeat(32_769))), ..PoolSpec::default() };
        assert!(spec(&mut long, "local").is_err());
        let mut fine = PoolSpec { start_task: Some(task(&"x".repeat(32_768))), ..PoolSpec::default() };
        let sizing = spec(&mut fine, "local").unwrap();
        assert_eq!((sizing.task_slots, fine.vm_size.as_str()), (1, "local"));
        assert_eq!(sizing.resize_timeout, DEFAULT_RESIZE_TIMEOUT);
    }
}
