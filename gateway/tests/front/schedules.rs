//! Job schedules, and what jobs show of their nodes and tasks of their
//! instances.

use http::Method;
use kiln_error::{Error, Kind};
use kiln_proto::common::v1::Precondition;
use kiln_proto::job::v1::job_schedule_service_server::JobScheduleService;
use kiln_proto::job::v1::*;
use serde_json::json;
use tonic::{Request, Response, Status};

use crate::fakes::{Fakes, not_found};
use crate::harness::{ACCOUNT, Harness, VERSION};

impl Fakes {
    /// Changes a schedule if the condition holds.
    fn schedule(
        &self,
        id: &str,
        precondition: Option<Precondition>,
        change: impl FnOnce(&mut JobSchedule),
    ) -> Result<Option<JobSchedule>, Status> {
        let mut schedules = self.0.schedules.lock().unwrap();
        let schedule = schedules.get_mut(id).ok_or_else(|| not_found("JobScheduleNotFound", id))?;
        if precondition.is_some_and(|condition| !["", &schedule.etag].contains(&condition.if_match.as_str())) {
            return Err(Error::new(Kind::ConditionNotMet, "ConditionNotMet", "").into());
        }
        change(schedule);
        Ok(Some(schedule.clone()))
    }
}

#[tonic::async_trait]
impl JobScheduleService for Fakes {
    async fn create_job_schedule(
        &self,
        request: Request<CreateJobScheduleRequest>,
    ) -> Result<Response<CreateJobScheduleResponse>, Status> {
        self.see(&request)?;
        let message = request.into_inner();
        let mut schedules = self.0.schedules.lock().unwrap();
        if schedules.contains_key(&message.id) {
            return Err(Error::new(Kind::AlreadyExists, "JobScheduleExists", "it exists").into());
        }
        let schedule = JobSchedule {
            id: message.id.clone(),
            spec: message.spec,
            etag: "0x8D4".into(),
            state: JobScheduleState::Active.into(),
            last_modified: Some(kiln_proto::time::timestamp(1_769_860_800_000_000)),
            ..JobSchedule::default()
        };
        schedules.insert(message.id, schedule.clone());
        Ok(Response::new(CreateJobScheduleResponse { job_schedule: Some(schedule) }))
    }

    async fn get_job_schedule(
        &self,
        request: Request<GetJobScheduleRequest>,
    ) -> Result<Response<GetJobScheduleResponse>, Status> {
        self.see(&request)?;
        let message = request.into_inner();
        let job_schedule = self.schedule(&message.id, message.precondition, |_| ())?;
        Ok(Response::new(GetJobScheduleResponse { job_schedule }))
    }

    /// One a page.
    async fn list_job_schedules(
        &self,
        request: Request<ListJobSchedulesRequest>,
    ) -> Result<Response<ListJobSchedulesResponse>, Status> {
        self.see(&request)?;
        let after = kiln_grpc::page::last_key(&request.into_inner().page_token)?.unwrap_or_default();
        let all = self.0.schedules.lock().unwrap();
        let mut rest = all.values().filter(|schedule| schedule.id > after);
        let job_schedules: Vec<JobSchedule> = rest.next().into_iter().cloned().collect();
        let next_page_token = match (job_schedules.last(), rest.next()) {
            (Some(last), Some(_)) => kiln_grpc::page::token(&last.id),
            _ => String::new(),
        };
        Ok(Response::new(ListJobSchedulesResponse { job_schedules, next_page_token }))
    }

    async fn update_job_schedule(
        &self,
        request: Request<UpdateJobScheduleRequest>,
    ) -> Result<Response<UpdateJobScheduleResponse>, Status> {
        self.see(&request)?;
        let message = request.into_inner();
        let job_schedule = self.schedule(&message.id, message.precondition.clone(), |_| ())?;
        *self.0.schedule_update.lock().unwrap() = Some(message);
        Ok(Response::new(UpdateJobScheduleResponse { job_schedule }))
    }

    async fn disable_job_schedule(
        &self,
        request: Request<DisableJobScheduleRequest>,
    ) -> Result<Response<DisableJobScheduleResponse>, Status> {
        self.see(&request)?;
        let message = request.into_inner();
        let job_schedule =
            self.schedule(&message.id, message.precondition, |one| one.set_state(JobScheduleState::Disabled))?;
        Ok(Response::new(DisableJobScheduleResponse { job_schedule }))
    }

    async fn enable_job_schedule(
        &self,
        request: Request<EnableJobScheduleRequest>,
    ) -> Result<Response<EnableJobScheduleResponse>, Status> {
        self.see(&request)?;
        let message = request.into_inner();
        let job_schedule =
            self.schedule(&message.id, message.precondition, |one| one.set_state(JobScheduleState::Active))?;
        Ok(Response::new(EnableJobScheduleResponse { job_schedule }))
    }

    async fn terminate_job_schedule(
        &self,
        request: Request<TerminateJobScheduleRequest>,
    ) -> Result<Response<TerminateJobScheduleResponse>, Status> {
        self.see(&request)?;
        let message = request.into_inner();
        let job_schedule =
            self.schedule(&message.id, message.precondition, |one| one.set_state(JobScheduleState::Terminating))?;
        Ok(Response::new(TerminateJobScheduleResponse { job_schedule }))
    }

    async fn delete_job_schedule(
        &self,
        request: Request<DeleteJobScheduleRequest>,
    ) -> Result<Response<DeleteJobScheduleResponse>, Status> {
        self.see(&request)?;
        let message = request.into_inner();
        self.schedule(&message.id, message.precondition, |_| ())?;
        self.0.schedules.lock().unwrap().remove(&message.id);
        Ok(Response::new(DeleteJobScheduleResponse {}))
    }
}

fn body(id: &str) -> String {
    json!({"id": id, "schedule": {"recurrenceInterval": "PT1H"},
        "jobSpecification": {"poolInfo": {"poolId": "p"}, "jobManagerTask": {"id": "jm", "commandLine": "x"}}})
    .to_string()
}

#[tokio::test]
async fn a_schedule_goes_through_its_life() {
    let gateway = Harness::start().await;
    let made = gateway.post(&format!("/jobschedules?{VERSION}"), &body("s")).await;
    assert_eq!(made.status, 201, "{:?}", made.body);
    assert_eq!((made.header("etag"), made.body.len()), ("0x8D4", 0));
    assert_eq!(made.header("location"), format!("{}/jobschedules/s", gateway.url));
    let again = gateway.post(&format!("/jobschedules?{VERSION}"), &body("s")).await;
    assert_eq!(again.error(), (409, "JobScheduleExists".into()));

    let path = |tail: &str| format!("/jobschedules/s{tail}?{VERSION}");
    assert_eq!(gateway.call(Method::HEAD, &path(""), "", &[]).await.status, 200);
    let absent = gateway.call(Method::HEAD, &format!("/jobschedules/none?{VERSION}"), "", &[]).await;
    assert_eq!(absent.status, 404);
    let read = gateway.get(&path("")).await.json();
    assert_eq!(read["odata.metadata"], format!("{}/$metadata#jobschedules/@Element", gateway.url));
    assert_eq!(read["schedule"], json!({"recurrenceInterval": "PT1H"}));
    assert_eq!(read["jobSpecification"]["jobManagerTask"]["runExclusive"], true);

    let state = || gateway.state.schedules.lock().unwrap().get("s").map(|one| one.state());
    for (tail, status, expected) in [
        ("/disable", 204, JobScheduleState::Disabled),
        ("/enable", 204, JobScheduleState::Active),
        ("/terminate", 202, JobScheduleState::Terminating),
    ] {
        let old = gateway.call(Method::POST, &path(tail), "", &[("if-match", "0xOLD")]).await;
        assert_eq!(old.error(), (412, "ConditionNotMet".into()), "{tail}");
        let answer = gateway.call(Method::POST, &path(tail), "", &[("if-match", "\"0x8D4\"")]).await;
        assert_eq!((answer.status.as_u16(), answer.header("etag")), (status, "0x8D4"), "{tail}");
        assert_eq!(state(), Some(expected));
    }
    assert_eq!(gateway.call(Method::DELETE, &path(""), "", &[]).await.status, 202);
    assert_eq!(state(), None);
    assert_eq!(gateway.get(&path("")).await.error(), (404, "JobScheduleNotFound".into()));
    assert!(gateway.state.accounts.lock().unwrap().iter().all(|account| account == ACCOUNT));
}

#[tokio::test]
async fn a_schedule_is_patched_in_parts_and_put_whole() {
    let gateway = Harness::start().await;
    gateway.post(&format!("/jobschedules?{VERSION}"), &body("s")).await;
    let path = format!("/jobschedules/s?{VERSION}");
    let sent = || gateway.state.schedule_update.lock().unwrap().take().unwrap();
    let patch = json!({"schedule": {"startWindow": "PT10M"}}).to_string();
    assert_eq!(gateway.call(Method::PATCH, &path, &patch, &[]).await.status, 200);
    let update = sent();
    assert_eq!(update.schedule.unwrap().start_window.unwrap().seconds, 600);
    assert!(update.job.is_none() && update.metadata.is_none());
    let read = gateway.get(&path).await.json().to_string();
    assert_eq!(gateway.call(Method::PUT, &path, &read, &[]).await.status, 200);
    let update = sent();
    assert_eq!(update.schedule.unwrap().recurrence_interval.unwrap().seconds, 3600);
    assert_eq!((update.job.unwrap().pool_id.as_str(), update.metadata.unwrap().items.len()), ("p", 0));
    let refused = gateway.call(Method::PUT, &path, "{}", &[]).await;
    assert_eq!(refused.error(), (400, "MissingRequiredProperty".into()));
}

#[tokio::test]
async fn schedules_are_listed_with_their_jobs() {
    let gateway = Harness::start().await;
    for id in ["a", "b"] {
        gateway.post(&format!("/jobschedules?{VERSION}"), &body(id)).await;
    }
    let first = gateway.get(&format!("/jobschedules?{VERSION}&$select=id")).await.json();
    assert_eq!(first["value"], json!([{"id": "a"}]));
    let link = first["odata.nextLink"].as_str().unwrap();
    let second = gateway.get(link.strip_prefix(&gateway.url).unwrap()).await.json();
    assert_eq!((&second["value"], second.get("odata.nextLink")), (&json!([{"id": "b"}]), None));

    let job = Job { id: "a:job-1".into(), job_schedule_id: "a".into(), ..Job::default() };
    gateway.state.jobs.lock().unwrap().insert(job.id.clone(), job);
    let jobs = |id: &str| format!("/jobschedules/{id}/jobs?{VERSION}");
    assert_eq!(gateway.get(&jobs("a")).await.json()["value"][0]["url"], format!("{}/jobs/a:job-1", gateway.url));
    assert_eq!(gateway.get(&jobs("b")).await.json()["value"], json!([]));
    assert_eq!(gateway.get(&jobs("c")).await.error(), (404, "JobScheduleNotFound".into()));
    assert_eq!(gateway.get(&format!("/jobs/a:job-1?{VERSION}")).await.json()["id"], "a:job-1");
}

#[tokio::test]
async fn grpc_calls_on_schedules_pass_through() {
    let gateway = Harness::start().await;
    let channel = kiln_grpc::connect_lazy(&gateway.url).unwrap();
    let mut schedules = job_schedule_service_client::JobScheduleServiceClient::new(channel);
    let mut request = Request::new(GetJobScheduleRequest { id: "none".into(), precondition: None });
    request.metadata_mut().insert("authorization", crate::grpc::bearer(&gateway).parse().unwrap());
    let error = Error::from(schedules.get_job_schedule(request).await.unwrap_err());
    assert_eq!(error.reason(), "JobScheduleNotFound");
}

#[tokio::test]
async fn a_job_shows_its_nodes_and_a_task_its_instances() {
    let gateway = Harness::start().await;
    let path = format!("/jobs/j1/jobpreparationandreleasetaskstatus?{VERSION}");
    assert_eq!(gateway.get(&path).await.error(), (404, "JobNotFound".into()));
    let plain = json!({"id": "j0", "poolInfo": {"poolId": "p"}}).to_string();
    gateway.post(&format!("/jobs?{VERSION}"), &plain).await;
    let without = gateway.get(&path.replace("j1", "j0")).await;
    assert_eq!(without.error(), (409, "JobPreparationTaskNotSpecified".into()));
    let prepared = json!({"id": "j1", "poolInfo": {"poolId": "p"}, "jobPreparationTask": {"commandLine": "x"}});
    gateway.post(&format!("/jobs?{VERSION}"), &prepared.to_string()).await;
    assert_eq!(gateway.get(&path).await.json()["value"], json!([]));

    let node = |id: &str, exit_code| JobNodeStatus {
        pool_id: "p".into(),
        node_id: id.into(),
        preparation: Some(NodeTaskInfo {
            state: NodeTaskState::Completed.into(),
            exit_code: Some(exit_code),
            ..NodeTaskInfo::default()
        }),
        release: None,
    };
    gateway.state.job_nodes.lock().unwrap().extend([node("n1", 0), node("n2", 1)]);
    let rows = gateway.get(&path).await.json();
    assert_eq!(rows["odata.metadata"], format!("{}/$metadata#jobpreparationandreleasetaskstatuslist", gateway.url));
    assert_eq!(rows["value"].as_array().unwrap().len(), 2);
    let failed = "$filter=jobPreparationTaskExecutionInfo%2FexitCode%20ne%200";
    let rows = gateway.get(&format!("{path}&{failed}&$select=nodeId")).await.json();
    assert_eq!(rows["value"], json!([{"nodeId": "n2"}]));
    let unknown = gateway.get(&format!("{path}&$filter=color%20eq%20'red'")).await;
    assert_eq!(unknown.error(), (400, "InvalidQueryParameterValue".into()));

    let path = format!("/jobs/j1/tasks/t1/subtasksinfo?{VERSION}");
    assert_eq!(gateway.get(&path).await.json()["value"], json!([]));
    let subtask = Subtask { id: 1, state: SubtaskState::Running.into(), ..Subtask::default() };
    gateway.state.subtasks.lock().unwrap().push(subtask);
    assert_eq!(gateway.get(&path).await.json()["value"], json!([{"id": 1, "state": "running"}]));
}

#[tokio::test]
async fn an_auto_pool_is_kept_or_not() {
    let gateway = Harness::start().await;
    let body = json!({"id": "j1", "poolInfo": {"autoPoolSpecification":
        {"poolLifetimeOption": "job", "pool": {"vmSize": "x", "targetDedicatedNodes": 1}}}});
    assert_eq!(gateway.post(&format!("/jobs?{VERSION}"), &body.to_string()).await.status, 201);
    let path = format!("/jobs/j1?{VERSION}");
    let mut read = gateway.get(&path).await.json();
    assert_eq!(gateway.call(Method::PUT, &path, &read.to_string(), &[]).await.status, 200);
    let sent = gateway.state.job_update.lock().unwrap().take().unwrap();
    assert_eq!((sent.pool_id, sent.auto_pool_keep_alive), (None, None));
    read["poolInfo"]["autoPoolSpecification"]["keepAlive"] = true.into();
    assert_eq!(gateway.call(Method::PATCH, &path, &read.to_string(), &[]).await.status, 200);
    assert_eq!(gateway.state.job_update.lock().unwrap().take().unwrap().auto_pool_keep_alive, Some(true));
    read["poolInfo"]["autoPoolSpecification"]["pool"]["vmSize"] = "y".into();
    let refused = gateway.call(Method::PATCH, &path, &read.to_string(), &[]).await;
    assert_eq!(refused.error(), (400, "InvalidPropertyValue".into()));
}
