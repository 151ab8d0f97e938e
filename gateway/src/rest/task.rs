//! Operations on tasks.

use http::StatusCode;
use kiln_error::{Error, Kind};
use kiln_proto::job::v1::{
    AddTaskCollectionRequest, AddTaskRequest, AddTaskResult, DeleteTaskRequest, GetTaskRequest, ListSubtasksRequest,
    ListTasksRequest, ReactivateTaskRequest, Task, TaskConstraints, TerminateTaskRequest, UpdateTaskRequest,
};
use serde_json::{Value, json};

use super::call::{Call, MAX_RESULTS};
use super::json::Fields;
use super::reply::Reply;
use super::{job_node_json, odata, task_json};

/// Tasks of one "add task collection".
const MAX_COLLECTION: usize = 100;

pub(super) async fn add(call: &Call) -> Result<Reply, Error> {
    let spec = task_json::read_new(&call.json()?)?;
    let job_id = call.argument(0);
    let url = call.view().url(&["jobs", &job_id, "tasks", &spec.id]);
    let message = AddTaskRequest { request_id: String::new(), job_id, task: Some(spec) };
    let answer = call.backends.jobs().add_task(call.request(message)?).await?.into_inner();
    let task = answer.task.unwrap_or_default();
    Ok(Reply::empty(StatusCode::CREATED).version(&task.etag, task.last_modified.as_ref()).location(&url))
}

/// Each task succeeds or fails by itself, also in being read.
pub(super) async fn add_collection(call: &Call) -> Result<Reply, Error> {
    let body = call.json()?;
    let fields = Fields::root(&body)?;
    if !fields.has("value") {
        return Err(fields.missing("value"));
    }
    let items = fields.list("value")?;
    if items.is_empty() || items.len() > MAX_COLLECTION {
        let why = format!("a collection has 1 to {MAX_COLLECTION} tasks");
        return Err(Error::invalid_property("value", format!("{} tasks", items.len()), why));
    }
    let job_id = call.argument(0);
    let mut rows: Vec<Option<Value>> = Vec::with_capacity(items.len());
    let mut tasks = Vec::with_capacity(items.len());
    for item in items {
        match task_json::read_new(item) {
            Ok(spec) => {
                tasks.push(spec);
                rows.push(None);
            }
            Err(error) => {
                let task_id = item.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
                rows.push(Some(refused(call, &job_id, task_id, false, &error)));
            }
        }
    }
    let sent = tasks.len();
    let mut results = Vec::new();
    if sent > 0 {
        let message = AddTaskCollectionRequest { request_id: String::new(), job_id: job_id.clone(), tasks };
        results = call.backends.jobs().add_task_collection(call.request(message)?).await?.into_inner().results;
        if results.len() != sent {
            return Err(Error::internal("job-svc answered for another number of tasks"));
        }
    }
    let mut added = results.into_iter();
    let values = rows
        .into_iter()
        .filter_map(|row| row.or_else(|| added.next().map(|result| row_of(call, &job_id, result))))
        .collect();
    Ok(Reply::json("taskaddresult", json!({"value": Value::Array(values)})))
}

fn row_of(call: &Call, job_id: &str, mut result: AddTaskResult) -> Value {
    let Some(failure) = result.error.take() else {
        return task_json::write_added(&result, job_id, call.view(), None);
    };
    let mut error = Error::new(Kind::InvalidArgument, failure.reason, failure.message);
    for detail in failure.details {
        error = error.with_detail(detail.name, detail.value);
    }
    refused(call, job_id, result.task_id, failure.retryable, &error)
}

fn refused(call: &Call, job_id: &str, task_id: String, retryable: bool, error: &Error) -> Value {
    let result = AddTaskResult { task_id, ..AddTaskResult::default() };
    let body = super::errors::body(&call.base, &call.request_id, error);
    task_json::write_added(&result, job_id, call.view(), Some((retryable, body)))
}

pub(super) async fn list(call: &Call) -> Result<Reply, Error> {
    let (page_size, page_token) = call.page(MAX_RESULTS)?;
    let message = ListTasksRequest { job_id: call.argument(0), filter: call.filter(), page_size, page_token };
    let answer = call.backends.jobs().list_tasks(call.request(message)?).await?.into_inner();
    let values = answer.tasks.iter().map(|task| task_json::write(task, call.view())).collect();
    Ok(odata::page(call, "tasks", values, &answer.next_page_token))
}

async fn fetch(call: &Call) -> Result<Task, Error> {
    let message =
        GetTaskRequest { job_id: call.argument(0), task_id: call.argument(1), precondition: call.precondition()? };
    let answer = call.backends.jobs().get_task(call.request(message)?).await?.into_inner();
    answer.task.ok_or_else(|| Error::internal("job-svc answered without a task"))
}

pub(super) async fn get(call: &Call) -> Result<Reply, Error> {
    let task = fetch(call).await?;
    let mut value = task_json::write(&task, call.view());
    odata::select(call, &mut value);
    Ok(Reply::json("tasks/@Element", value).version(&task.etag, task.last_modified.as_ref()))
}

/// Replaces the constraints, all that can change of a task.
pub(super) async fn put(call: &Call) -> Result<Reply, Error> {
    let body = call.json()?;
    let constraints = task_json::read_constraints(&Fields::root(&body)?)?;
    let message = UpdateTaskRequest {
        request_id: String::new(),
        job_id: call.argument(0),
        task_id: call.argument(1),
        constraints: Some(constraints.unwrap_or(TaskConstraints::default())),
        precondition: call.precondition()?,
    };
    let task = call.backends.jobs().update_task(call.request(message)?).await?.into_inner().task.unwrap_or_default();
    Ok(Reply::empty(StatusCode::OK).version(&task.etag, task.last_modified.as_ref()))
}

pub(super) async fn delete(call: &Call) -> Result<Reply, Error> {
    let message = DeleteTaskRequest {
        request_id: String::new(),
        job_id: call.argument(0),
        task_id: call.argument(1),
        precondition: call.precondition()?,
    };
    call.backends.jobs().delete_task(call.request(message)?).await?;
    Ok(Reply::empty(StatusCode::OK))
}

pub(super) async fn terminate(call: &Call) -> Result<Reply, Error> {
    let message = TerminateTaskRequest {
        request_id: String::new(),
        job_id: call.argument(0),
        task_id: call.argument(1),
        precondition: call.precondition()?,
    };
    call.backends.jobs().terminate_task(call.request(message)?).await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

pub(super) async fn reactivate(call: &Call) -> Result<Reply, Error> {
    let message = ReactivateTaskRequest {
        request_id: String::new(),
        job_id: call.argument(0),
        task_id: call.argument(1),
        precondition: call.precondition()?,
    };
    call.backends.jobs().reactivate_task(call.request(message)?).await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

/// The instances of a multi-instance task besides the primary; none of others.
pub(super) async fn subtasks(call: &Call) -> Result<Reply, Error> {
    let message = ListSubtasksRequest { job_id: call.argument(0), task_id: call.argument(1) };
    let answer = call.backends.jobs().list_subtasks(call.request(message)?).await?.into_inner();
    let values = answer.subtasks.iter().map(|subtask| job_node_json::write_subtask(subtask, call.view())).collect();
    Ok(odata::page(call, "subtaskinfo", values, ""))
}
