//! `JobScheduleService`.

use std::sync::Arc;
use std::time::Duration;

use kiln_filter::Filter;
use kiln_grpc::condition::conditions;
use kiln_grpc::page;
use kiln_ids::AccountName;
use kiln_proto::common::v1::Precondition;
use kiln_proto::job::v1 as wire;
use kiln_proto::job::v1::job_schedule_service_server::JobScheduleService;
use kiln_time::Timestamp;
use prost::Message;
use tonic::{Response, Status};

use super::lists::{CHUNK, SCAN, SCHEDULE_PROPERTIES, schedule_matches};
use super::{Answer, account_of, convert, finished};
use crate::clock::Clock;
use crate::domain::schedule::{ScheduleEvent, ScheduleId};
use crate::domain::{Error, etag, schedule_spec, spec};
use crate::store::schedules::{NewSchedule, ScheduleChange, ScheduleRow, ScheduleUpdate, ScheduleWhat};
use crate::store::{Answered, Request, ScheduleStore};

/// `JobScheduleService`.
#[derive(Debug, Clone)]
pub struct ScheduleApi {
    /// The store.
    pub store: Arc<dyn ScheduleStore>,
    /// The time schedules go by.
    pub clock: Clock,
    /// How long "terminating" and "deleting" can be seen after the call.
    pub linger: Duration,
}

fn encode(row: &ScheduleRow, now: Timestamp) -> Vec<u8> {
    convert::schedule(row, now).encode_to_vec()
}

fn nothing(_: &ScheduleRow, _: Timestamp) -> Vec<u8> {
    Vec::new()
}

fn decode(bytes: &[u8]) -> Result<Option<wire::JobSchedule>, Error> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let decoded = wire::JobSchedule::decode(bytes);
    Ok(Some(decoded.map_err(|error| kiln_store::StoreError::Damaged(format!("answer: {error}")))?))
}

/// An id of something that is looked up: a text that is no id names nothing.
pub(super) fn schedule_id(text: &str) -> Result<ScheduleId, Error> {
    if text.is_empty() {
        return Err(Error::Missing("jobScheduleId".to_owned()));
    }
    ScheduleId::parse(text).map_err(|_| Error::JobScheduleNotFound(text.to_owned()))
}

/// What a client asks for, apart from the change itself.
struct Asked {
    id: String,
    method: &'static str,
    request_id: String,
    precondition: Option<Precondition>,
}

impl ScheduleApi {
    async fn create_job_schedule(
        &self,
        account: AccountName,
        request: wire::CreateJobScheduleRequest,
    ) -> Answer<wire::CreateJobScheduleResponse> {
        let spec = request.spec.ok_or_else(|| Error::Missing("spec".to_owned()))?;
        let (id, timing) = schedule_spec::check(&request.id, &spec)?;
        let now = self.clock.now();
        let new = NewSchedule { account: account.clone(), id, timing, spec, now, encode };
        let key = Request { method: "CreateJobSchedule", id: request.request_id };
        let job_schedule = match self.store.create_schedule(new, key).await? {
            Answered::New(row) => {
                tracing::info!(%account, job_schedule.id = %row.id, "job schedule created");
                Some(convert::schedule(&row, now))
            }
            Answered::Before(bytes) => decode(&bytes)?,
        };
        Ok(wire::CreateJobScheduleResponse { job_schedule })
    }

    async fn get_job_schedule(
        &self,
        account: AccountName,
        request: wire::GetJobScheduleRequest,
    ) -> Answer<wire::GetJobScheduleResponse> {
        let row = self.store.schedule(&account, &schedule_id(&request.id)?).await?;
        etag::check(&conditions(request.precondition.as_ref()), row.last_modified)?;
        Ok(wire::GetJobScheduleResponse { job_schedule: Some(convert::schedule(&row, self.clock.now())) })
    }

    async fn list_job_schedules(
        &self,
        account: AccountName,
        request: wire::ListJobSchedulesRequest,
    ) -> Answer<wire::ListJobSchedulesResponse> {
        let filter = Filter::parse(&request.filter, SCHEDULE_PROPERTIES)?;
        let size = page::size(request.page_size, 1000, 1000)? as usize;
        let mut after = page::last_key(&request.page_token)?;
        let now = self.clock.now();
        let (mut job_schedules, mut looked_at) = (Vec::new(), 0);
        loop {
            let rows = self.store.list_schedules(&account, after.clone(), CHUNK).await?;
            let last = rows.len() < CHUNK as usize;
            for row in rows {
                if job_schedules.len() == size || looked_at == SCAN {
                    let next_page_token = page::token(after.as_deref().unwrap_or_default());
                    return Ok(wire::ListJobSchedulesResponse { job_schedules, next_page_token });
                }
                looked_at += 1;
                after = Some(row.id.key().into_owned());
                if schedule_matches(&filter, &row, now) {
                    job_schedules.push(convert::schedule(&row, now));
                }
            }
            if last {
                return Ok(wire::ListJobSchedulesResponse { job_schedules, next_page_token: String::new() });
            }
        }
    }

    async fn update_job_schedule(
        &self,
        account: AccountName,
        request: wire::UpdateJobScheduleRequest,
    ) -> Answer<wire::UpdateJobScheduleResponse> {
        let schedule = match request.schedule {
            Some(schedule) => {
                let timing = schedule_spec::timing(&schedule)?;
                Some((schedule, timing))
            }
            None => None,
        };
        if let Some(job) = &request.job {
            schedule_spec::check_job(job)?;
        }
        let metadata = request.metadata.map(|metadata| metadata.items);
        if let Some(items) = &metadata {
            spec::check_metadata(items)?;
        }
        let update = ScheduleUpdate { schedule, job: request.job, metadata };
        let what = ScheduleWhat::Update(Box::new(update));
        let asked = Asked {
            id: request.id,
            method: "UpdateJobSchedule",
            request_id: request.request_id,
            precondition: request.precondition,
        };
        let job_schedule = self.change(&account, asked, what).await?;
        Ok(wire::UpdateJobScheduleResponse { job_schedule })
    }

    async fn change(
        &self,
        account: &AccountName,
        asked: Asked,
        what: ScheduleWhat,
    ) -> Answer<Option<wire::JobSchedule>> {
        let id = schedule_id(&asked.id)?;
        let now = self.clock.now();
        let (look_at, encode): (_, fn(&ScheduleRow, Timestamp) -> Vec<u8>) = match &what {
            ScheduleWhat::Event(ScheduleEvent::Delete) => (now.plus(self.linger), nothing),
            ScheduleWhat::Event(ScheduleEvent::Terminate) => (now.plus(self.linger), encode),
            ScheduleWhat::Event(_) | ScheduleWhat::Update(_) => (now, encode),
        };
        let method = asked.method;
        let request = Request { method, id: asked.request_id };
        let condition = conditions(asked.precondition.as_ref());
        let change = ScheduleChange { what, look_at, condition, request, encode, now };
        match self.store.change_schedule(account, &id, change).await? {
            Answered::New(row) => {
                let state = row.life.state.name();
                tracing::info!(%account, job_schedule.id = %row.id, state, method, "job schedule changed");
                Ok(Some(convert::schedule(&row, now)))
            }
            Answered::Before(bytes) => Ok(decode(&bytes)?),
        }
    }
}

/// The calls that are one event: enable, disable, terminate, delete.
macro_rules! events {
    ($($name:ident: $request:ident -> $response:ident $method:literal $event:ident $answer:expr;)*) => {
        impl ScheduleApi {
            $(async fn $name(
                &self,
                account: AccountName,
                request: wire::$request,
            ) -> Answer<wire::$response> {
                let wire::$request { id, request_id, precondition } = request;
                let asked = Asked { id, method: $method, request_id, precondition };
                let changed = self.change(&account, asked, ScheduleWhat::Event(ScheduleEvent::$event)).await?;
                let answer: fn(Option<wire::JobSchedule>) -> wire::$response = $answer;
                Ok(answer(changed))
            })*
        }
    };
}

events! {
    enable_job_schedule: EnableJobScheduleRequest -> EnableJobScheduleResponse
        "EnableJobSchedule" Enable |job_schedule| wire::EnableJobScheduleResponse { job_schedule };
    disable_job_schedule: DisableJobScheduleRequest -> DisableJobScheduleResponse
        "DisableJobSchedule" Disable |job_schedule| wire::DisableJobScheduleResponse { job_schedule };
    terminate_job_schedule: TerminateJobScheduleRequest -> TerminateJobScheduleResponse
        "TerminateJobSchedule" Terminate |job_schedule| wire::TerminateJobScheduleResponse { job_schedule };
    delete_job_schedule: DeleteJobScheduleRequest -> DeleteJobScheduleResponse
        "DeleteJobSchedule" Delete |_| wire::DeleteJobScheduleResponse {};
}

macro_rules! rpcs {
    ($($name:ident: $request:ident -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl JobScheduleService for ScheduleApi {
            $(async fn $name(
                &self,
                request: tonic::Request<wire::$request>,
            ) -> Result<Response<wire::$response>, Status> {
                let account = account_of(&request)?;
                let (api, request) = (self.clone(), request.into_inner());
                let answer = finished(async move { api.$name(account, request).await }).await;
                Ok(Response::new(answer.map_err(Status::from)?))
            })*
        }
    };
}

rpcs! {
    create_job_schedule: CreateJobScheduleRequest -> CreateJobScheduleResponse;
    get_job_schedule: GetJobScheduleRequest -> GetJobScheduleResponse;
    list_job_schedules: ListJobSchedulesRequest -> ListJobSchedulesResponse;
    update_job_schedule: UpdateJobScheduleRequest -> UpdateJobScheduleResponse;
    disable_job_schedule: DisableJobScheduleRequest -> DisableJobScheduleResponse;
    enable_job_schedule: EnableJobScheduleRequest -> EnableJobScheduleResponse;
    terminate_job_schedule: TerminateJobScheduleRequest -> TerminateJobScheduleResponse;
    delete_job_schedule: DeleteJobScheduleRequest -> DeleteJobScheduleResponse;
}
