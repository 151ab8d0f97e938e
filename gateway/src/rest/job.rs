//! Operations on jobs.

use http::StatusCode;
use kiln_error::{Error, Kind};
use kiln_filter::Filter;
use kiln_proto::job::v1::{
    CountTasksRequest, CreateJobRequest, DeleteJobRequest, DisableJobRequest, EnableJobRequest, GetJobRequest, Job,
    JobConstraints, JobMetadata, ListJobNodesRequest, ListJobsRequest, OnAllTasksComplete, TerminateJobRequest,
    UpdateJobRequest,
};

use super::application;
use super::call::{Call, MAX_RESULTS};
use super::common::read_name_values;
use super::json::Fields;
use super::pool_info::{self, PoolChange};
use super::reply::Reply;
use super::{job_json, job_node_json, odata, task_json};

fn changed(status: StatusCode, job: Option<Job>) -> Reply {
    let reply = Reply::empty(status);
    match job {
        Some(job) => reply.version(&job.etag, job.last_modified.as_ref()),
        None => reply,
    }
}

pub(super) async fn add(call: &Call) -> Result<Reply, Error> {
    let (id, spec) = job_json::read_new(&call.json()?)?;
    if let Some(pool) = spec.auto_pool.as_ref().and_then(|auto| auto.pool.as_ref()) {
        application::check(call, &pool.application_packages).await?;
    }
    let url = call.view().url(&["jobs", &id]);
    let message = CreateJobRequest { request_id: String::new(), id, spec: Some(spec) };
    let answer = Box::pin(call.backends.jobs().create_job(call.request(message)?)).await?.into_inner();
    Ok(changed(StatusCode::CREATED, answer.job).location(&url))
}

pub(super) async fn list(call: &Call) -> Result<Reply, Error> {
    let (page_size, page_token) = call.page(MAX_RESULTS)?;
    let message = ListJobsRequest { filter: call.filter(), page_size, page_token, job_schedule_id: String::new() };
    let answer = call.backends.jobs().list_jobs(call.request(message)?).await?.into_inner();
    let values = answer.jobs.iter().map(|job| job_json::write(job, call.view())).collect();
    Ok(odata::page(call, "jobs", values, &answer.next_page_token))
}

async fn fetch(call: &Call, conditional: bool) -> Result<Job, Error> {
    let precondition = if conditional { call.precondition()? } else { None };
    let message = GetJobRequest { id: call.argument(0), precondition };
    let answer = call.backends.jobs().get_job(call.request(message)?).await?.into_inner();
    answer.job.ok_or_else(|| Error::internal("job-svc answered without a job"))
}

pub(super) async fn get(call: &Call) -> Result<Reply, Error> {
    let job = fetch(call, true).await?;
    let mut value = job_json::write(&job, call.view());
    odata::select(call, &mut value);
    Ok(Reply::json("jobs/@Element", value).version(&job.etag, job.last_modified.as_ref()))
}

/// Replaces what is given, each part whole.
pub(super) async fn patch(call: &Call) -> Result<Reply, Error> {
    let body = call.json()?;
    let fields = Fields::root(&body)?;
    let metadata = read_name_values(&fields, "metadata")?;
    let pool = pool_change(call, &fields).await?;
    let message = UpdateJobRequest {
        request_id: String::new(),
        id: call.argument(0),
        priority: fields.int("priority")?,
        max_parallel_tasks: fields.int("maxParallelTasks")?,
        allow_task_preemption: fields.boolean("allowTaskPreemption")?,
        constraints: job_json::read_constraints(&fields)?,
        pool_id: pool.pool_id,
        on_all_tasks_complete: job_json::read_all_complete(&fields)?.unwrap_or_default().into(),
        metadata: fields.has("metadata").then_some(JobMetadata { items: metadata }),
        precondition: call.precondition()?,
        auto_pool_keep_alive: pool.keep_alive,
    };
    let answer = call.backends.jobs().update_job(call.request(message)?).await?.into_inner();
    Ok(changed(StatusCode::OK, answer.job))
}

/// Replaces all that can change; what is not given falls back to its default.
pub(super) async fn put(call: &Call) -> Result<Reply, Error> {
    let body = call.json()?;
    let fields = Fields::root(&body)?;
    if !fields.has("poolInfo") {
        return Err(fields.missing("poolInfo"));
    }
    let pool = pool_change(call, &fields).await?;
    let all_complete = job_json::read_all_complete(&fields)?.unwrap_or(OnAllTasksComplete::NoAction);
    let message = UpdateJobRequest {
        request_id: String::new(),
        id: call.argument(0),
        priority: Some(fields.int("priority")?.unwrap_or(0)),
        max_parallel_tasks: Some(fields.int("maxParallelTasks")?.unwrap_or(-1)),
        allow_task_preemption: Some(fields.boolean("allowTaskPreemption")?.unwrap_or(false)),
        constraints: Some(job_json::read_constraints(&fields)?.unwrap_or(JobConstraints::default())),
        pool_id: pool.pool_id,
        on_all_tasks_complete: all_complete.into(),
        metadata: Some(JobMetadata { items: read_name_values(&fields, "metadata")? }),
        precondition: call.precondition()?,
        auto_pool_keep_alive: pool.keep_alive,
    };
    let answer = call.backends.jobs().update_job(call.request(message)?).await?.into_inner();
    Ok(changed(StatusCode::OK, answer.job))
}

/// Clients send back the pool they read, so what is a change depends on the
/// job; whether its state allows it is decided by job-svc.
async fn pool_change(call: &Call, fields: &Fields<'_>) -> Result<PoolChange, Error> {
    if !fields.has("poolInfo") {
        return Ok(PoolChange::default());
    }
    pool_info::read_change(fields, &fetch(call, false).await?.spec.unwrap_or_default())
}

pub(super) async fn delete(call: &Call) -> Result<Reply, Error> {
    let message =
        DeleteJobRequest { request_id: String::new(), id: call.argument(0), precondition: call.precondition()? };
    call.backends.jobs().delete_job(call.request(message)?).await?;
    Ok(Reply::empty(StatusCode::ACCEPTED))
}

pub(super) async fn disable(call: &Call) -> Result<Reply, Error> {
    let body = call.json()?;
    let message = DisableJobRequest {
        request_id: String::new(),
        id: call.argument(0),
        disable_tasks: job_json::read_disable(&Fields::root(&body)?)?.into(),
        precondition: call.precondition()?,
    };
    let answer = call.backends.jobs().disable_job(call.request(message)?).await?.into_inner();
    Ok(changed(StatusCode::ACCEPTED, answer.job))
}

pub(super) async fn enable(call: &Call) -> Result<Reply, Error> {
    let message =
        EnableJobRequest { request_id: String::new(), id: call.argument(0), precondition: call.precondition()? };
    let answer = call.backends.jobs().enable_job(call.request(message)?).await?.into_inner();
    Ok(changed(StatusCode::ACCEPTED, answer.job))
}

pub(super) async fn terminate(call: &Call) -> Result<Reply, Error> {
    let body = call.json()?;
    let message = TerminateJobRequest {
        request_id: String::new(),
        id: call.argument(0),
        reason: Fields::root(&body)?.text_or_empty("terminateReason")?,
        precondition: call.precondition()?,
    };
    let answer = call.backends.jobs().terminate_job(call.request(message)?).await?.into_inner();
    Ok(changed(StatusCode::ACCEPTED, answer.job))
}

pub(super) async fn task_counts(call: &Call) -> Result<Reply, Error> {
    let message = CountTasksRequest { job_id: call.argument(0) };
    let answer = call.backends.jobs().count_tasks(call.request(message)?).await?.into_inner();
    let (tasks, slots) = (answer.tasks.unwrap_or_default(), answer.slots.unwrap_or_default());
    Ok(Reply::json("taskcounts/@Element", task_json::write_counts(&tasks, &slots, call.version)))
}

/// Node by node; a page may be short, since it is filtered here.
pub(super) async fn preparation_status(call: &Call) -> Result<Reply, Error> {
    let (page_size, page_token) = call.page(MAX_RESULTS)?;
    let filter = Filter::parse(&call.filter(), job_node_json::STATUS_PROPERTIES)?;
    let message = ListJobNodesRequest { job_id: call.argument(0), page_size, page_token };
    let answer = call.backends.jobs().list_job_nodes(call.request(message)?).await?.into_inner();
    if answer.nodes.is_empty() {
        // No node yet, or nothing to run there: only the latter is an error.
        let job = fetch(call, false).await?;
        if job.spec.is_none_or(|spec| spec.job_preparation_task.is_none()) {
            return Err(Error::new(
                Kind::FailedPrecondition,
                "JobPreparationTaskNotSpecified",
                format!("job {} has no preparation task", job.id),
            ));
        }
    }
    let values = answer.nodes.iter().map(|node| job_node_json::write_status(node, call.view()));
    let values = values.filter(|value| odata::matches(&filter, value)).collect();
    Ok(odata::page(call, "jobpreparationandreleasetaskstatuslist", values, &answer.next_page_token))
}
