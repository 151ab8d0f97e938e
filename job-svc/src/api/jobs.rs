//! Jobs.

use kiln_filter::Filter;
use kiln_grpc::condition::conditions;
use kiln_grpc::page;
use kiln_ids::{AccountName, PoolId};
use kiln_proto::job::v1 as wire;
use kiln_telemetry::propagation::current_traceparent;
use kiln_time::Timestamp;
use prost::Message;

use super::convert;
use super::lists::{self, CHUNK, JOB_PROPERTIES, SCAN};
use super::schedules::schedule_id;
use super::{Answer, Api, job_id};
use crate::domain::Error;
use crate::domain::etag;
use crate::domain::job::{DisableTasks, JobEvent, REASON_USER};
use crate::domain::spec;
use crate::scheduler::note::Note;
use crate::store::{Answered, JobChange, JobRow, JobUpdate, NewJob, Request};

/// Longest text a caller may give as reason.
const MAX_REASON: usize = 1024;

fn encode_job(row: &JobRow) -> Vec<u8> {
    convert::job(row).encode_to_vec()
}

fn nothing(_: &JobRow) -> Vec<u8> {
    Vec::new()
}

fn decode_job(bytes: &[u8]) -> Result<wire::Job, Error> {
    wire::Job::decode(bytes).map_err(|error| kiln_store::StoreError::Damaged(format!("answer: {error}")).into())
}

impl Api {
    pub(super) async fn create_job(
        &self,
        account: AccountName,
        request: wire::CreateJobRequest,
    ) -> Answer<wire::CreateJobResponse> {
        let spec = request.spec.ok_or_else(|| Error::Missing("spec".to_owned()))?;
        let (job, pool) = spec::check_job(&request.id, &spec)?;
        let unique = uuid::Uuid::new_v4().to_string();
        let pool = pool.resolve(&unique).map_err(|why| Error::bad_id("poolInfo", &unique, &why))?;
        let new = NewJob {
            account: account.clone(),
            job,
            pool,
            spec,
            traceparent: current_traceparent(),
            now: Timestamp::now(),
            encode: encode_job,
        };
        let answered = self.store.create_job(new, Request { method: "CreateJob", id: request.request_id }).await?;
        let job = match answered {
            Answered::New(row) => {
                tracing::info!(%account, job.id = %row.job, pool.id = %row.pool, "job created");
                self.registry.tell(&account, &row.pool, Note::JobChanged(row.row)).await;
                convert::job(&row)
            }
            Answered::Before(bytes) => decode_job(&bytes)?,
        };
        Ok(wire::CreateJobResponse { job: Some(job) })
    }

    pub(super) async fn get_job(
        &self,
        account: AccountName,
        request: wire::GetJobRequest,
    ) -> Answer<wire::GetJobResponse> {
        let row = self.store.job(&account, &job_id(&request.id)?).await?;
        etag::check(&conditions(request.precondition.as_ref()), row.last_modified)?;
        Ok(wire::GetJobResponse { job: Some(convert::job(&row)) })
    }

    pub(super) async fn list_jobs(
        &self,
        account: AccountName,
        request: wire::ListJobsRequest,
    ) -> Answer<wire::ListJobsResponse> {
        let filter = Filter::parse(&request.filter, JOB_PROPERTIES)?;
        let size = page::size(request.page_size, 1000, 1000)? as usize;
        let mut after = page::last_key(&request.page_token)?;
        let mut prefix = String::new();
        if !request.job_schedule_id.is_empty() {
            // Its jobs are a range of keys.
            let schedule = self.schedules.schedule(&account, &schedule_id(&request.job_schedule_id)?).await?;
            prefix = schedule.id.job_prefix();
            after = after.max(Some(prefix.clone()));
        }
        let (mut jobs, mut looked_at) = (Vec::new(), 0);
        loop {
            let rows = self.store.list_jobs(&account, after.clone(), CHUNK).await?;
            let last = rows.len() < CHUNK as usize;
            for row in rows {
                if !row.job.key().starts_with(&prefix) {
                    return Ok(wire::ListJobsResponse { jobs, next_page_token: String::new() });
                }
                if jobs.len() == size || looked_at == SCAN {
                    let next_page_token = page::token(after.as_deref().unwrap_or_default());
                    return Ok(wire::ListJobsResponse { jobs, next_page_token });
                }
                looked_at += 1;
                after = Some(row.job.key().into_owned());
                if lists::job_matches(&filter, &row) {
                    jobs.push(convert::job(&row));
                }
            }
            if last {
                return Ok(wire::ListJobsResponse { jobs, next_page_token: String::new() });
            }
        }
    }

    async fn change(
        &self,
        account: &AccountName,
        id: &str,
        change: JobChange,
        condition: Option<kiln_proto::common::v1::Precondition>,
        request: Request,
    ) -> Answer<Option<wire::Job>> {
        let (job, method) = (job_id(id)?, request.method);
        let moved_from = match &change {
            JobChange::Update(update, _) if update.pool.is_some() => Some(self.store.job(account, &job).await?.pool),
            JobChange::Update(..) | JobChange::Event(..) => None,
        };
        let condition = conditions(condition.as_ref());
        let answered = self.store.change_job(account, &job, change, condition, request, Timestamp::now()).await?;
        match answered {
            Answered::New(row) => {
                tracing::info!(%account, job.id = %row.job, state = row.life.state.name(), method, "job changed");
                if let Some(old) = moved_from.filter(|old| *old != row.pool) {
                    self.registry.tell(account, &old, Note::JobChanged(row.row)).await;
                }
                self.registry.tell(account, &row.pool, Note::JobChanged(row.row)).await;
                Ok(Some(convert::job(&row)))
            }
            Answered::Before(bytes) if bytes.is_empty() => Ok(None),
            Answered::Before(bytes) => Ok(Some(decode_job(&bytes)?)),
        }
    }

    pub(super) async fn update_job(
        &self,
        account: AccountName,
        request: wire::UpdateJobRequest,
    ) -> Answer<wire::UpdateJobResponse> {
        if let Some(priority) = request.priority {
            spec::check_priority(priority)?;
        }
        spec::check_max_parallel(request.max_parallel_tasks)?;
        spec::check_job_constraints(request.constraints.as_ref())?;
        let metadata = request.metadata.map(|metadata| metadata.items);
        if let Some(items) = &metadata {
            spec::check_metadata(items)?;
        }
        let on_all_tasks_complete = match wire::OnAllTasksComplete::try_from(request.on_all_tasks_complete) {
            Ok(wire::OnAllTasksComplete::Unspecified) => None,
            Ok(action) => Some(action),
            Err(_) => {
                let value = request.on_all_tasks_complete;
                return Err(Error::invalid("onAllTasksComplete", value, "is not one of the known values").into());
            }
        };
        let pool = request
            .pool_id
            .as_deref()
            .map(|pool| PoolId::parse(pool).map_err(|why| Error::bad_id("poolInfo.poolId", pool, &why)));
        let update = JobUpdate {
            priority: request.priority,
            max_parallel_tasks: request.max_parallel_tasks,
            allow_task_preemption: request.allow_task_preemption,
            constraints: request.constraints,
            pool: pool.transpose()?,
            on_all_tasks_complete,
            metadata,
            keep_alive: request.auto_pool_keep_alive,
        };
        let change = JobChange::Update(Box::new(update), encode_job);
        let key = Request { method: "UpdateJob", id: request.request_id };
        let job = self.change(&account, &request.id, change, request.precondition, key).await?;
        Ok(wire::UpdateJobResponse { job })
    }

    pub(super) async fn disable_job(
        &self,
        account: AccountName,
        request: wire::DisableJobRequest,
    ) -> Answer<wire::DisableJobResponse> {
        let tasks = match wire::DisableTasks::try_from(request.disable_tasks) {
            Ok(wire::DisableTasks::Unspecified | wire::DisableTasks::Requeue) => DisableTasks::Requeue,
            Ok(wire::DisableTasks::Terminate) => DisableTasks::Terminate,
            Ok(wire::DisableTasks::Wait) => DisableTasks::Wait,
            Err(_) => {
                return Err(Error::invalid("disableTasks", request.disable_tasks, "is not known").into());
            }
        };
        let change = JobChange::Event(JobEvent::Disable(tasks), encode_job);
        let key = Request { method: "DisableJob", id: request.request_id };
        let job = self.change(&account, &request.id, change, request.precondition, key).await?;
        Ok(wire::DisableJobResponse { job })
    }

    pub(super) async fn enable_job(
        &self,
        account: AccountName,
        request: wire::EnableJobRequest,
    ) -> Answer<wire::EnableJobResponse> {
        let change = JobChange::Event(JobEvent::Enable, encode_job);
        let key = Request { method: "EnableJob", id: request.request_id };
        let job = self.change(&account, &request.id, change, request.precondition, key).await?;
        Ok(wire::EnableJobResponse { job })
    }

    pub(super) async fn terminate_job(
        &self,
        account: AccountName,
        request: wire::TerminateJobRequest,
    ) -> Answer<wire::TerminateJobResponse> {
        if request.reason.len() > MAX_REASON {
            return Err(Error::invalid("terminateReason", "", format!("has more than {MAX_REASON} bytes")).into());
        }
        let reason = if request.reason.is_empty() { REASON_USER.to_owned() } else { request.reason };
        let change = JobChange::Event(JobEvent::Terminate(reason), encode_job);
        let key = Request { method: "TerminateJob", id: request.request_id };
        let job = self.change(&account, &request.id, change, request.precondition, key).await?;
        Ok(wire::TerminateJobResponse { job })
    }

    pub(super) async fn delete_job(
        &self,
        account: AccountName,
        request: wire::DeleteJobRequest,
    ) -> Answer<wire::DeleteJobResponse> {
        let change = JobChange::Event(JobEvent::Delete, nothing);
        let key = Request { method: "DeleteJob", id: request.request_id };
        self.change(&account, &request.id, change, request.precondition, key).await?;
        Ok(wire::DeleteJobResponse {})
    }

    pub(super) async fn count_tasks(
        &self,
        account: AccountName,
        request: wire::CountTasksRequest,
    ) -> Answer<wire::CountTasksResponse> {
        let counts = self.store.counts(&account, &job_id(&request.job_id)?).await?;
        Ok(convert::counts(&counts))
    }

    pub(super) async fn list_job_nodes(
        &self,
        account: AccountName,
        request: wire::ListJobNodesRequest,
    ) -> Answer<wire::ListJobNodesResponse> {
        let size = page::size(request.page_size, 1000, 1000)?;
        let after = page::last_key(&request.page_token)?;
        let after = after.as_deref().and_then(|key| key.split_once('/'));
        let after = after.map(|(node, pool)| (node.to_owned(), pool.to_owned()));
        let job = self.store.job(&account, &job_id(&request.job_id)?).await?;
        if job.spec.job_preparation_task.is_none() {
            return Err(Error::NoPreparation(job.job.as_str().to_owned()).into());
        }
        let rows = self.store.job_nodes(job.row, after, size).await?;
        let full = rows.len() == size as usize;
        let last = rows.last().filter(|_| full).map(|row| format!("{}/{}", row.node.key(), row.pool.key()));
        Ok(wire::ListJobNodesResponse {
            nodes: rows.into_iter().map(convert::job_node).collect(),
            next_page_token: last.map_or_else(String::new, |key| page::token(&key)),
        })
    }
}
