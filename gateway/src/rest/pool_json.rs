//! JSON of pools.

use kiln_error::{Error, Kind};
use kiln_proto::pool::v1::{
    AllocationState, JobDefaultOrder, NodeFillType, Pool, PoolSpec, PoolState, ResizeError, StartTask, UserAccount,
};
use prost_types::Duration;
use serde_json::{Value, json};

use super::common::{
    ELEVATION, put_identity, read_container, read_environment, read_identity, read_name_values, read_packages,
    read_resource_files, write_container, write_environment, write_name_values, write_packages, write_resource_files,
};
use super::json::{Fields, Out, word, write_duration};
use super::kept;
use super::version::Version;
use super::view::View;

const FILL: &[(&str, NodeFillType)] = &[("spread", NodeFillType::Spread), ("pack", NodeFillType::Pack)];
const ORDER: &[(&str, JobDefaultOrder)] =
    &[("none", JobDefaultOrder::None), ("creationtime", JobDefaultOrder::CreationTime)];
const STATES: &[(&str, PoolState)] = &[("active", PoolState::Active), ("deleting", PoolState::Deleting)];
const ALLOCATION: &[(&str, AllocationState)] = &[
    ("steady", AllocationState::Steady),
    ("resizing", AllocationState::Resizing),
    ("stopping", AllocationState::Stopping),
];
/// Resizes may take this long if nothing was said.
const RESIZE_TIMEOUT: Duration = Duration { seconds: 15 * 60, nanos: 0 };

/// Id and specification out of the body of "add pool".
///
/// # Errors
/// Names the property that is missing or wrong.
pub fn read_new(body: &Value) -> Result<(String, PoolSpec), Error> {
    let fields = Fields::root(body)?;
    let id = fields.required_text("id")?;
    Ok((id, read_spec(body, &fields)?))
}

/// A pool without its id; `fields` are those of `body`.
///
/// # Errors
/// Names the property that is missing or wrong.
pub(super) fn read_spec(body: &Value, fields: &Fields<'_>) -> Result<PoolSpec, Error> {
    let policy = fields.object("taskSchedulingPolicy")?;
    let (fill, order) = match &policy {
        Some(policy) => (policy.choice("nodeFillType", FILL)?, policy.choice("jobDefaultOrder", ORDER)?),
        None => (None, None),
    };
    let mut spec = PoolSpec {
        display_name: fields.text_or_empty("displayName")?,
        vm_size: fields.required_text("vmSize")?,
        target_dedicated_nodes: read_target(fields)?.unwrap_or(0),
        target_low_priority_nodes: fields.int("targetLowPriorityNodes")?.unwrap_or(0),
        resize_timeout: fields.duration("resizeTimeout")?,
        task_slots_per_node: either(fields.int("taskSlotsPerNode")?, fields.int("maxTasksPerNode")?).unwrap_or(0),
        node_fill_type: fill.unwrap_or_default().into(),
        job_default_order: order.unwrap_or_default().into(),
        enable_inter_node_communication: fields.boolean("enableInterNodeCommunication")?.unwrap_or(false),
        start_task: read_start_task(fields)?,
        application_packages: read_packages(fields)?,
        user_accounts: fields.each("userAccounts", read_user)?,
        metadata: read_name_values(fields, "metadata")?,
        enable_auto_scale: fields.boolean("enableAutoScale")?.unwrap_or(false),
        auto_scale_formula: fields.text_or_empty("autoScaleFormula")?,
        auto_scale_evaluation_interval: fields.duration("autoScaleEvaluationInterval")?,
        provider: String::new(),
        client_settings_json: String::new(),
    };
    if spec.enable_auto_scale && spec.auto_scale_formula.is_empty() {
        return Err(fields.missing("autoScaleFormula"));
    }
    let mut understood = Out::new();
    put_spec(&mut understood, &spec, Version::LATEST);
    spec.client_settings_json = kept::remainder(body, &understood.done());
    Ok(spec)
}

/// A pool that is yet to be made, as it was described.
pub(super) fn write_spec(spec: &PoolSpec, version: Version) -> Value {
    let mut out = Out::new();
    out.put_text("displayName", &spec.display_name);
    put_spec(&mut out, spec, version);
    let mut pool = out.done();
    kept::merge(&mut pool, &spec.client_settings_json);
    fill_image_version(&mut pool);
    pool
}

/// `targetDedicatedNodes`, or `targetDedicated` of the generations before 2017-05.
///
/// # Errors
/// If the value is no number.
pub fn read_target(fields: &Fields<'_>) -> Result<Option<i32>, Error> {
    Ok(either(fields.int("targetDedicatedNodes")?, fields.int("targetDedicated")?))
}

fn either(new: Option<i32>, old: Option<i32>) -> Option<i32> {
    new.or(old)
}

/// The `startTask` of a body, if there is one.
///
/// # Errors
/// Names the property that is wrong.
pub fn read_start_task(fields: &Fields<'_>) -> Result<Option<StartTask>, Error> {
    let Some(task) = fields.object("startTask")? else { return Ok(None) };
    Ok(Some(StartTask {
        command_line: task.required_text("commandLine")?,
        resource_files: read_resource_files(&task, "resourceFiles")?,
        environment: read_environment(&task, "environmentSettings")?,
        user_identity: read_identity(&task)?,
        max_task_retry_count: task.int("maxTaskRetryCount")?.unwrap_or(0),
        wait_for_success: task.boolean("waitForSuccess")?,
        container_settings: read_container(&task)?,
    }))
}

fn read_user(user: &Fields<'_>) -> Result<UserAccount, Error> {
    let linux = user.object("linuxUserConfiguration")?;
    let id = |name: &str| -> Result<Option<u32>, Error> {
        let Some(linux) = &linux else { return Ok(None) };
        let Some(number) = linux.int(name)? else { return Ok(None) };
        let invalid = || Error::invalid_property(&linux.path_of(name), number, "must not be negative");
        Ok(Some(u32::try_from(number).map_err(|_| invalid())?))
    };
    Ok(UserAccount {
        name: user.required_text("name")?,
        password: user.text_or_empty("password")?,
        elevation_level: user.choice("elevationLevel", ELEVATION)?.unwrap_or_default().into(),
        uid: id("uid")?,
        gid: id("gid")?,
    })
}

/// Properties of a PATCH that this server cannot change on an existing pool.
///
/// # Errors
/// `NotImplemented` names the first of them.
pub fn refuse_fixed(fields: &Fields<'_>) -> Result<(), Error> {
    const FIXED: [&str; 10] = [
        "displayName",
        "vmSize",
        "enableInterNodeCommunication",
        "virtualMachineConfiguration",
        "taskSlotsPerNode",
        "taskSchedulingPolicy",
        "networkConfiguration",
        "userAccounts",
        "mountConfiguration",
        "upgradePolicy",
    ];
    match FIXED.iter().find(|name| fields.has(name)) {
        None => Ok(()),
        Some(name) => Err(Error::new(
            Kind::Unimplemented,
            "NotImplemented",
            format!(
                "{name} of an existing pool cannot be changed here; only startTask, applicationPackageReferences and \
                 metadata can. Make a new pool instead"
            ),
        )
        .with_detail("PropertyName", *name)),
    }
}

/// A start task as answers have it.
pub fn write_start_task(task: &StartTask, version: Version) -> Value {
    let mut out = Out::new();
    out.put("commandLine", task.command_line.as_str())
        .put_some("containerSettings", task.container_settings.as_ref().map(write_container))
        .put_list("resourceFiles", write_resource_files(&task.resource_files, version))
        .put_list("environmentSettings", write_environment(&task.environment));
    put_identity(&mut out, task.user_identity.as_ref(), version);
    out.put("maxTaskRetryCount", task.max_task_retry_count)
        .put("waitForSuccess", task.wait_for_success.unwrap_or(true));
    out.done()
}

/// A pool as GET answers it.
pub fn write(pool: &Pool, view: View<'_>) -> Value {
    let spec = pool.spec.clone().unwrap_or_default();
    let mut out = Out::new();
    out.put("id", pool.id.as_str())
        .put_text("displayName", &spec.display_name)
        .put("url", view.url(&["pools", &pool.id]))
        .put("eTag", pool.etag.as_str())
        .put_time("lastModified", pool.last_modified.as_ref())
        .put_time("creationTime", pool.creation_time.as_ref())
        .put("state", word(STATES, pool.state()).unwrap_or("active"))
        .put_time("stateTransitionTime", pool.state_transition_time.as_ref())
        .put("allocationState", word(ALLOCATION, pool.allocation_state()).unwrap_or("steady"))
        .put_time("allocationStateTransitionTime", pool.allocation_state_transition_time.as_ref());
    put_spec(&mut out, &spec, view.version);
    out.put("currentDedicatedNodes", pool.current_dedicated_nodes)
        .put("currentLowPriorityNodes", pool.current_low_priority_nodes)
        .put_list("resizeErrors", pool.resize_errors.iter().map(write_resize_error).collect());
    if view.version.has_one_target() {
        out.put("currentDedicated", pool.current_dedicated_nodes)
            .put_some("resizeError", pool.resize_errors.first().map(write_resize_error));
    }
    if let Some(run) = &pool.auto_scale_run {
        let mut inner = Out::new();
        inner.put_time("timestamp", run.time.as_ref()).put_text("results", &run.results).put_some(
            "error",
            run.error.as_ref().map(|error| {
                json!({"code": error.code, "message": error.message, "values": write_name_values(&error.details)})
            }),
        );
        out.put("autoScaleRun", inner.done());
    }
    let mut pool = out.done();
    kept::merge(&mut pool, &spec.client_settings_json);
    fill_image_version(&mut pool);
    pool
}

/// What the creator decided, defaults filled in.
fn put_spec(out: &mut Out, spec: &PoolSpec, version: Version) {
    out.put("vmSize", spec.vm_size.to_lowercase())
        .put("resizeTimeout", write_duration(Some(spec.resize_timeout.as_ref().unwrap_or(&RESIZE_TIMEOUT))));
    if !spec.enable_auto_scale {
        out.put("targetDedicatedNodes", spec.target_dedicated_nodes);
        if version.has_one_target() {
            out.put("targetDedicated", spec.target_dedicated_nodes);
        }
        out.put("targetLowPriorityNodes", spec.target_low_priority_nodes);
    }
    out.put("enableAutoScale", spec.enable_auto_scale);
    if spec.enable_auto_scale {
        let interval = spec.auto_scale_evaluation_interval.as_ref().unwrap_or(&RESIZE_TIMEOUT);
        out.put("autoScaleFormula", spec.auto_scale_formula.as_str())
            .put("autoScaleEvaluationInterval", write_duration(Some(interval)));
    }
    let slots = spec.task_slots_per_node.max(1);
    out.put("enableInterNodeCommunication", spec.enable_inter_node_communication)
        .put_some("startTask", spec.start_task.as_ref().map(|task| write_start_task(task, version)))
        .put_list("applicationPackageReferences", write_packages(&spec.application_packages));
    if version.has_no_slots() {
        out.put("maxTasksPerNode", slots);
    }
    let mut policy = Out::new();
    if spec.job_default_order() != JobDefaultOrder::Unspecified {
        policy.put_some("jobDefaultOrder", word(ORDER, spec.job_default_order()));
    }
    policy.put("nodeFillType", word(FILL, spec.node_fill_type()).unwrap_or("spread"));
    out.put("taskSlotsPerNode", slots)
        .put("taskSchedulingPolicy", policy.done())
        .put_list("userAccounts", spec.user_accounts.iter().map(write_user).collect())
        .put_list("metadata", write_name_values(&spec.metadata));
}

fn write_user(user: &UserAccount) -> Value {
    let mut out = Out::new();
    out.put("name", user.name.as_str())
        .put("elevationLevel", word(ELEVATION, user.elevation_level()).unwrap_or("nonadmin"));
    if user.uid.is_some() || user.gid.is_some() {
        let mut linux = Out::new();
        linux.put_some("uid", user.uid).put_some("gid", user.gid);
        out.put("linuxUserConfiguration", linux.done());
    }
    out.done()
}

fn write_resize_error(error: &ResizeError) -> Value {
    let mut out = Out::new();
    out.put("code", error.code.as_str())
        .put("message", error.message.as_str())
        .put_list("values", write_name_values(&error.values));
    out.done()
}

/// Clients that left the version of their image out read "latest".
fn fill_image_version(pool: &mut Value) {
    let image = pool.pointer_mut("/virtualMachineConfiguration/imageReference").and_then(Value::as_object_mut);
    if let Some(image) = image
        && image.contains_key("publisher")
        && !image.contains_key("version")
    {
        image.insert("version".to_owned(), "latest".into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(body: &Value, version: &str) -> Value {
        let (id, spec) = read_new(body).unwrap();
        let pool = Pool { id, spec: Some(spec), etag: "0x8D".into(), ..Pool::default() };
        write(&pool, View { base: "http://h", version: Version::parse(version).unwrap() })
    }

    #[test]
    fn a_pool_of_the_newest_sdk() {
        let body = json!({
            "id": "p1", "vmSize": "STANDARD_D2s_v3", "targetDedicatedNodes": 2, "taskSlotsPerNode": 4,
            "resizeTimeout": "PT10M00S",
            "virtualMachineConfiguration": {
                "imageReference": {"publisher": "canonical", "offer": "0001-com-ubuntu-server-jammy", "sku": "22_04-lts"},
                "nodeAgentSKUId": "batch.node.ubuntu 22.04"},
            "taskSchedulingPolicy": {"nodeFillType": "pack"},
            "startTask": {"commandLine": "/bin/sh -c 'echo hi'", "waitForSuccess": true,
                "resourceFiles": [{"httpUrl": "http://b/c/x", "filePath": "x"}],
                "userIdentity": {"autoUser": {"scope": "pool", "elevationLevel": "admin"}}},
            "userAccounts": [{"name": "u", "password": "geheim", "elevationLevel": "admin",
                "linuxUserConfiguration": {"uid": 1000, "gid": 1000, "sshPrivateKey": "geheim"}}],
            "metadata": [{"name": "a", "value": "b"}],
        });
        let (_, spec) = read_new(&body).unwrap();
        assert_eq!((spec.target_dedicated_nodes, spec.task_slots_per_node), (2, 4));
        assert_eq!(spec.user_accounts[0].password, "geheim");
        let answer = back(&body, "2025-06-01");
        assert_eq!(answer["vmSize"], "standard_d2s_v3");
        assert_eq!(answer["resizeTimeout"], "PT10M");
        assert_eq!(answer["url"], "http://h/pools/p1");
        assert_eq!(answer["virtualMachineConfiguration"]["imageReference"]["version"], "latest");
        assert_eq!(answer["startTask"]["userIdentity"]["autoUser"]["elevationLevel"], "admin");
        assert_eq!(answer["startTask"]["maxTaskRetryCount"], 0);
        assert_eq!(answer["userAccounts"][0]["linuxUserConfiguration"], json!({"uid": 1000, "gid": 1000}));
        assert!(!answer.to_string().contains("geheim"));
        assert!(answer.get("targetDedicated").is_none() && answer.get("maxTasksPerNode").is_none());
    }

    #[test]
    fn a_pool_of_2016_and_of_the_command_line() {
        let body = json!({
            "id": "p1", "vmSize": "small", "targetDedicated": "3", "maxTasksPerNode": 2,
            "cloudServiceConfiguration": {"osFamily": "4", "targetOSVersion": "*"}, "certificateReferences": [],
            "startTask": {"commandLine": "x", "runElevated": true,
                "resourceFiles": [{"blobSource": "http://b/c/x", "filePath": "x"}]},
        });
        let answer = back(&body, "2016-07-01.3.1");
        assert_eq!((&answer["targetDedicated"], &answer["targetDedicatedNodes"]), (&json!(3), &json!(3)));
        assert_eq!((&answer["maxTasksPerNode"], &answer["taskSlotsPerNode"]), (&json!(2), &json!(2)));
        assert_eq!(answer["currentDedicated"], 0);
        assert_eq!(answer["startTask"]["runElevated"], true);
        assert_eq!(answer["startTask"]["resourceFiles"][0]["blobSource"], "http://b/c/x");
        assert_eq!(answer["cloudServiceConfiguration"]["osFamily"], "4");
    }

    #[test]
    fn wrong_pools_are_refused_with_the_property() {
        let cases = [
            (json!({"vmSize": "x"}), "id"),
            (json!({"id": "p"}), "vmSize"),
            (json!({"id": "p", "vmSize": "x", "targetDedicatedNodes": "many"}), "targetDedicatedNodes"),
            (json!({"id": "p", "vmSize": "x", "startTask": {}}), "startTask.commandLine"),
            (json!({"id": "p", "vmSize": "x", "startTask": 1}), "startTask"),
            (json!({"id": "p", "vmSize": "x", "enableAutoScale": true}), "autoScaleFormula"),
            (
                json!({"id": "p", "vmSize": "x", "startTask": {"commandLine": "x", "resourceFiles": [{}]}}),
                "startTask.resourceFiles[0].httpUrl",
            ),
            (
                json!({"id": "p", "vmSize": "x", "startTask": {"commandLine": "x",
                    "resourceFiles": [{"httpUrl": "a", "autoStorageContainerName": "b"}]}}),
                "startTask.resourceFiles[0].httpUrl",
            ),
        ];
        for (body, property) in cases {
            let error = read_new(&body).unwrap_err();
            assert_eq!(error.details()[0], ("PropertyName".to_owned(), property.to_owned()), "{body}");
        }
        let body = json!({"taskSlotsPerNode": 3});
        assert_eq!(refuse_fixed(&Fields::root(&body).unwrap()).unwrap_err().reason(), "NotImplemented");
    }
}
