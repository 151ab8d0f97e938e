//! Protobuf's JSON form (camelCase, enum names, 64-bit numbers as text), from
//! the descriptors of all contracts.

use std::sync::LazyLock;

use anyhow::Context;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;

use crate::failure::Outcome;

static POOL: LazyLock<Result<DescriptorPool, String>> =
    LazyLock::new(|| DescriptorPool::decode(kiln_proto::FILE_DESCRIPTOR_SET).map_err(|error| error.to_string()));

/// The JSON form of `message`, whose full name is `name`.
///
/// # Errors
/// If `name` is not the name of the message's type.
pub fn value<M: Message>(name: &str, message: &M) -> Outcome<Value> {
    let pool = POOL.as_ref().map_err(|error| anyhow::anyhow!("contracts: {error}"))?;
    let descriptor = pool.get_message_by_name(name).with_context(|| format!("no message {name}"))?;
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .with_context(|| format!("message {name}"))?;
    let options = SerializeOptions::new().skip_default_fields(true);
    Ok(dynamic
        .serialize_with_options(serde_json::value::Serializer, &options)
        .with_context(|| format!("message {name}"))?)
}

/// Indented text.
pub fn pretty(value: &Value) -> String {
    // A `Value` always has a text form.
    serde_json::to_string_pretty(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use kiln_proto::job::v1::{Task, TaskExecutionInfo, TaskState};

    use super::*;

    #[test]
    fn names_times_and_enums_have_protobufs_json_form() {
        let task = Task {
            job_id: "j".to_owned(),
            state: TaskState::Completed.into(),
            creation_time: Some(kiln_proto::time::timestamp(1_500_000)),
            execution: Some(TaskExecutionInfo { exit_code: Some(0), ..TaskExecutionInfo::default() }),
            ..Task::default()
        };
        let expected = serde_json::json!({
            "jobId": "j",
            "state": "TASK_STATE_COMPLETED",
            "creationTime": "1970-01-01T00:00:01.500Z",
            "execution": {"exitCode": 0},
        });
        assert_eq!(value("kiln.job.v1.Task", &task).unwrap(), expected);
        assert!(value("kiln.job.v1.Nothing", &task).is_err());
    }
}
