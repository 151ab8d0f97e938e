//! Operations on job schedules.

use http::StatusCode;
use kiln_error::Error;
use kiln_proto::job::v1::{
    CreateJobScheduleRequest, DeleteJobScheduleRequest, DisableJobScheduleRequest, EnableJobScheduleRequest,
    GetJobScheduleRequest, JobSchedule, ListJobSchedulesRequest, ListJobsRequest, TerminateJobScheduleRequest,
    UpdateJobScheduleRequest,
};

use super::call::{Call, MAX_RESULTS};
use super::job_schedule_json::Change;
use super::reply::Reply;
use super::{job_json, job_schedule_json, odata};

fn changed(status: StatusCode, schedule: Option<JobSchedule>) -> Reply {
    let reply = Reply::empty(status);
    match schedule {
        Some(schedule) => reply.version(&schedule.etag, schedule.last_modified.as_ref()),
        None => reply,
    }
}

pub(super) async fn add(call: &Call) -> Result<Reply, Error> {
    let (id, spec) = job_schedule_json::read_new(&call.json()?)?;
    let url = call.view().url(&["jobschedules", &id]);
    let message = CreateJobScheduleRequest { request_id: String::new(), id, spec: Some(spec) };
    let answer =
        Box::pin(call.backends.job_schedules().create_job_schedule(call.request(message)?)).await?.into_inner();
    Ok(changed(StatusCode::CREATED, answer.job_schedule).location(&url))
}

pub(super) async fn list(call: &Call) -> Result<Reply, Error> {
    let (page_size, page_token) = call.page(MAX_RESULTS)?;
    let message = ListJobSchedulesRequest { filter: call.filter(), page_size, page_token };
    let answer = call.backends.job_schedules().list_job_schedules(call.request(message)?).await?.into_inner();
    let values = answer.job_schedules.iter().map(|one| job_schedule_json::write(one, call.view())).collect();
    Ok(odata::page(call, "jobschedules", values, &answer.next_page_token))
}

async fn fetch(call: &Call, conditional: bool) -> Result<JobSchedule, Error> {
    let precondition = if conditional { call.precondition()? } else { None };
    let message = GetJobScheduleRequest { id: call.argument(0), precondition };
    let answer = call.backends.job_schedules().get_job_schedule(call.request(message)?).await?.into_inner();
    answer.job_schedule.ok_or_else(|| Error::internal("job-svc answered without a job schedule"))
}

pub(super) async fn get(call: &Call) -> Result<Reply, Error> {
    let schedule = fetch(call, true).await?;
    let mut value = job_schedule_json::write(&schedule, call.view());
    odata::select(call, &mut value);
    Ok(Reply::json("jobschedules/@Element", value).version(&schedule.etag, schedule.last_modified.as_ref()))
}

pub(super) async fn exists(call: &Call) -> Result<Reply, Error> {
    let schedule = fetch(call, true).await?;
    Ok(changed(StatusCode::OK, Some(schedule)))
}

/// Replaces what is given, each part whole.
pub(super) async fn patch(call: &Call) -> Result<Reply, Error> {
    Box::pin(update(call, job_schedule_json::read_patch(&call.json()?)?)).await
}

/// Replaces all that can change.
pub(super) async fn put(call: &Call) -> Result<Reply, Error> {
    Box::pin(update(call, job_schedule_json::read_put(&call.json()?)?)).await
}

async fn update(call: &Call, change: Change) -> Result<Reply, Error> {
    let message = UpdateJobScheduleRequest {
        request_id: String::new(),
        id: call.argument(0),
        schedule: change.schedule,
        job: change.job,
        metadata: change.metadata,
        precondition: call.precondition()?,
    };
    let answer =
        Box::pin(call.backends.job_schedules().update_job_schedule(call.request(message)?)).await?.into_inner();
    Ok(changed(StatusCode::OK, answer.job_schedule))
}

pub(super) async fn delete(call: &Call) -> Result<Reply, Error> {
    let message = DeleteJobScheduleRequest {
        request_id: String::new(),
        id: call.argument(0),
        precondition: call.precondition()?,
    };
    call.backends.job_schedules().delete_job_schedule(call.request(message)?).await?;
    Ok(Reply::empty(StatusCode::ACCEPTED))
}

pub(super) async fn disable(call: &Call) -> Result<Reply, Error> {
    let message = DisableJobScheduleRequest {
        request_id: String::new(),
        id: call.argument(0),
        precondition: call.precondition()?,
    };
    let answer = call.backends.job_schedules().disable_job_schedule(call.request(message)?).await?.into_inner();
    Ok(changed(StatusCode::NO_CONTENT, answer.job_schedule))
}

pub(super) async fn enable(call: &Call) -> Result<Reply, Error> {
    let message = EnableJobScheduleRequest {
        request_id: String::new(),
        id: call.argument(0),
        precondition: call.precondition()?,
    };
    let answer = call.backends.job_schedules().enable_job_schedule(call.request(message)?).await?.into_inner();
    Ok(changed(StatusCode::NO_CONTENT, answer.job_schedule))
}

pub(super) async fn terminate(call: &Call) -> Result<Reply, Error> {
    let message = TerminateJobScheduleRequest {
        request_id: String::new(),
        id: call.argument(0),
        precondition: call.precondition()?,
    };
    let answer = call.backends.job_schedules().terminate_job_schedule(call.request(message)?).await?.into_inner();
    Ok(changed(StatusCode::ACCEPTED, answer.job_schedule))
}

/// The jobs a schedule has created.
pub(super) async fn jobs(call: &Call) -> Result<Reply, Error> {
    let (page_size, page_token) = call.page(MAX_RESULTS)?;
    let message = ListJobsRequest { filter: call.filter(), page_size, page_token, job_schedule_id: call.argument(0) };
    let answer = call.backends.jobs().list_jobs(call.request(message)?).await?.into_inner();
    if answer.jobs.is_empty() {
        // None yet, or no such schedule: only the latter is an error.
        fetch(call, false).await?;
    }
    let values = answer.jobs.iter().map(|job| job_json::write(job, call.view())).collect();
    Ok(odata::page(call, "jobs", values, &answer.next_page_token))
}
