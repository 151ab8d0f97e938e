//! Job schedules over the wire, by a clock that the test moves.

use job_svc::clock::{Clock, ManualClock};
use kiln_proto::common::v1::Precondition;
use kiln_proto::job::v1::*;
use kiln_proto::time::timestamp;
use kiln_testkit::eventually;
use kiln_time::Timestamp;
use tonic::Status;

use crate::harness::*;

const START: i64 = 1_800_000_000;

/// A moment, in minutes after the begin of the test.
fn at(minutes: i64) -> Timestamp {
    Timestamp::from_micros((START + minutes * 60) * 1_000_000)
}

fn minutes(count: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: count * 60, nanos: 0 })
}

async fn service() -> (Service, ManualClock) {
    let clock = ManualClock::new(at(0));
    let service = Service::start_by(Clock::Manual(clock.clone())).await;
    // Answers when the service does.
    service.client().create_job("first", JobSpec::default()).await;
    (service, clock)
}

fn every(interval: i64) -> JobScheduleSpec {
    JobScheduleSpec {
        schedule: Some(Schedule { recurrence_interval: minutes(interval), ..Schedule::default() }),
        job: Some(JobSpec { pool_id: "p1".into(), priority: 7, ..JobSpec::default() }),
        ..JobScheduleSpec::default()
    }
}

impl Schedules {
    async fn create(&self, id: &str, spec: JobScheduleSpec) -> Result<JobSchedule, Status> {
        let request = CreateJobScheduleRequest { id: id.into(), spec: Some(spec), ..Default::default() };
        Ok(call!(self, create_job_schedule, request)?.job_schedule.unwrap())
    }

    async fn get(&self, id: &str) -> Result<JobSchedule, Status> {
        let request = GetJobScheduleRequest { id: id.into(), ..Default::default() };
        Ok(call!(self, get_job_schedule, request)?.job_schedule.unwrap())
    }

    async fn becomes(&self, id: &str, state: JobScheduleState) -> JobSchedule {
        eventually(&format!("schedule {id} {state:?}"), || async {
            self.get(id).await.ok().filter(|schedule| schedule.state() == state)
        })
        .await
    }

    async fn delete(&self, id: &str) -> Result<(), Status> {
        let request = DeleteJobScheduleRequest { id: id.into(), ..Default::default() };
        call!(self, delete_job_schedule, request).map(drop)
    }
}

impl Client {
    /// The job is there, and by now also known to its scheduler.
    async fn created(&self, job: &str) -> Job {
        eventually(&format!("{job} is created"), || async { self.job(job).await.ok() }).await
    }

    async fn end(&self, job: &str) {
        let request = TerminateJobRequest { id: job.into(), ..Default::default() };
        call!(self, terminate_job, request).unwrap();
        self.job_becomes(job, JobState::Completed).await;
    }

    async fn jobs_of(&self, schedule: &str) -> Vec<String> {
        let request = ListJobsRequest { job_schedule_id: schedule.into(), ..Default::default() };
        call!(self, list_jobs, request).unwrap().jobs.into_iter().map(|job| job.id).collect()
    }
}

fn minute_of(time: Option<prost_types::Timestamp>) -> Option<i64> {
    time.map(|time| (time.seconds - START) / 60)
}

#[tokio::test]
async fn a_day_of_an_hourly_schedule() {
    let (service, clock) = service().await;
    let (client, schedules) = (service.client(), service.schedules());
    let mut agent = service.agent("n1", 1).await;
    let spec = JobScheduleSpec {
        schedule: Some(Schedule {
            do_not_run_until: Some(timestamp(at(30).as_micros())),
            do_not_run_after: Some(timestamp(at(24 * 60).as_micros())),
            ..every(60).schedule.unwrap()
        }),
        ..every(60)
    };
    let created = schedules.create("Hourly", spec).await.unwrap();
    assert_eq!((minute_of(created.next_run_time), created.recent_job_id.as_str()), (Some(30), ""));
    for hour in 0..24 {
        let due = 30 + 60 * hour;
        clock.set(at(due - 1));
        assert_eq!(client.jobs_of("hourly").await.len() as i64, hour);
        clock.set(at(due));
        let id = format!("Hourly:job-{}", hour + 1);
        let job = client.created(&id).await;
        assert_eq!((job.state(), job.job_schedule_id.as_str()), (JobState::Active, "Hourly"));
        assert_eq!((job.spec.unwrap().priority, job.creation_time), (7, Some(timestamp(at(due).as_micros()))));
        client.add(&id, crate::harness::spec("t")).await;
        let key = agent.assignments().await[0].key.clone().unwrap();
        assert_eq!(key.job_id, id);
        agent.end(&key, 0).await;
        client.end(&id).await;
        let schedule = schedules.get("hourly").await.unwrap();
        assert_eq!(schedule.recent_job_id, id);
        let next = (hour < 23).then_some(due + 60);
        assert_eq!(minute_of(schedule.next_run_time), next, "after {id}");
    }
    clock.set(at(24 * 60));
    let over = schedules.becomes("hourly", JobScheduleState::Completed).await;
    assert_eq!(minute_of(over.end_time), Some(24 * 60));
    assert_eq!(client.jobs_of("hourly").await.len(), 24);
}

#[tokio::test]
async fn one_job_at_a_time_and_one_late_run_after_an_outage() {
    let (mut service, clock) = service().await;
    service.schedules().create("s", every(10)).await.unwrap();
    service.client().created("s:job-1").await;
    clock.set(at(25));
    assert_eq!(service.client().jobs_of("s").await, ["s:job-1"]);
    let waiting = service.schedules().get("s").await.unwrap();
    assert_eq!(minute_of(waiting.next_run_time), Some(20), "it has waited since then");
    service.client().end("s:job-1").await;
    // The end of the job is the reason to look.
    service.client().created("s:job-2").await;
    service.client().end("s:job-2").await;
    for _ in 0..2 {
        service = service.crash_and_restart().await;
        service.client().create_job("again", JobSpec::default()).await;
        let request = DeleteJobRequest { id: "again".into(), ..Default::default() };
        let client = service.client();
        call!(client, delete_job, request).unwrap();
        eventually("it is gone", || async { client.job("again").await.err() }).await;
        assert_eq!(client.jobs_of("s").await, ["s:job-1", "s:job-2"], "nothing is due");
    }
    service.shutdown.cancel();
    clock.set(at(68));
    service = service.crash_and_restart().await;
    service.client().create_job("again", JobSpec::default()).await;
    service.client().created("s:job-3").await;
    let schedule = service.schedules().get("s").await.unwrap();
    assert_eq!(minute_of(schedule.next_run_time), Some(70));
    service.client().end("s:job-3").await;
    assert_eq!(service.client().jobs_of("s").await.len(), 3, "those between are lost");
}

#[tokio::test]
async fn disable_enable_terminate_delete() {
    let (service, clock) = service().await;
    let (client, schedules) = (service.client(), service.schedules());
    schedules.create("s", every(10)).await.unwrap();
    client.created("s:job-1").await;
    let disable = DisableJobScheduleRequest { id: "S".into(), ..Default::default() };
    call!(schedules, disable_job_schedule, disable.clone()).unwrap();
    assert_eq!(reason(call!(schedules, disable_job_schedule, disable).unwrap_err()), "JobScheduleDisabled");
    assert_eq!(client.job("s:job-1").await.unwrap().state(), JobState::Active, "its job goes on");
    client.end("s:job-1").await;
    clock.set(at(15));
    // Another schedule shows that the ticker has been there.
    schedules.create("other", every(10)).await.unwrap();
    client.created("other:job-1").await;
    assert_eq!(client.jobs_of("s").await, ["s:job-1"]);
    let enable = EnableJobScheduleRequest { id: "s".into(), ..Default::default() };
    call!(schedules, enable_job_schedule, enable.clone()).unwrap();
    client.created("s:job-2").await;
    client.add("s:job-2", crate::harness::spec("t")).await;
    let mut agent = service.agent("n1", 1).await;
    let key = agent.assignments().await[0].key.clone().unwrap();

    let terminate = TerminateJobScheduleRequest { id: "s".into(), ..Default::default() };
    let answer = call!(schedules, terminate_job_schedule, terminate.clone()).unwrap().job_schedule.unwrap();
    assert_eq!((answer.state(), answer.next_run_time), (JobScheduleState::Terminating, None));
    assert_eq!(agent.stops().await, std::slice::from_ref(&key));
    assert_eq!(schedules.get("s").await.unwrap().state(), JobScheduleState::Terminating, "its job still runs");
    let again = call!(schedules, terminate_job_schedule, terminate).unwrap_err();
    assert_eq!(reason(again), "JobScheduleBeingTerminated");
    agent.stopped(&key).await;
    schedules.becomes("s", JobScheduleState::Completed).await;
    assert_eq!(client.job("s:job-2").await.unwrap().terminate_reason, "TerminateJobSchedule");
    assert_eq!(reason(call!(schedules, enable_job_schedule, enable).unwrap_err()), "JobScheduleCompleted");

    schedules.delete("s").await.unwrap();
    eventually("it is gone", || async { schedules.get("s").await.err().map(reason) }).await;
    assert!(client.job("s:job-1").await.is_err() && client.job("s:job-2").await.is_err(), "and its jobs before it");
    schedules.create("s", every(10)).await.unwrap();
    client.created("s:job-1").await;
}

#[tokio::test]
async fn jobs_that_end_with_their_manager_follow_each_other() {
    let (service, clock) = service().await;
    let (client, schedules) = (service.client(), service.schedules());
    let mut agent = service.agent("n1", 1).await;
    let manager = JobManagerTask { task: Some(crate::harness::spec("manager")), ..JobManagerTask::default() };
    let mut spec = every(60);
    spec.job.as_mut().unwrap().job_manager_task = Some(manager);
    schedules.create("s", spec).await.unwrap();
    for hour in 0..3 {
        clock.set(at(60 * hour));
        let job = format!("s:job-{}", hour + 1);
        let key = agent.assignments().await[0].key.clone().unwrap();
        assert_eq!((&key.job_id, key.task_id.as_str()), (&job, "manager"));
        agent.end(&key, 0).await;
        assert_eq!(client.job_becomes(&job, JobState::Completed).await.terminate_reason, "JMComplete");
    }
}

#[tokio::test]
async fn a_single_job_completes_its_schedule() {
    let (service, _clock) = service().await;
    let (client, schedules) = (service.client(), service.schedules());
    schedules.create("once", JobScheduleSpec { schedule: Some(Schedule::default()), ..every(10) }).await.unwrap();
    client.created("once:job-1").await;
    assert_eq!(schedules.get("once").await.unwrap().state(), JobScheduleState::Active);
    client.end("once:job-1").await;
    schedules.becomes("once", JobScheduleState::Completed).await;
}

#[tokio::test]
async fn changes_are_for_later_jobs_and_respect_conditions_and_request_ids() {
    let (service, clock) = service().await;
    let (client, schedules) = (service.client(), service.schedules());
    let request = CreateJobScheduleRequest { request_id: "r".into(), id: "s".into(), spec: Some(every(10)) };
    let first = call!(schedules, create_job_schedule, request.clone()).unwrap();
    client.created("s:job-1").await;
    assert_eq!(call!(schedules, create_job_schedule, request).unwrap(), first);
    let etag = first.job_schedule.unwrap().etag;
    let update = UpdateJobScheduleRequest {
        id: "s".into(),
        job: Some(JobSpec { pool_id: "p1".into(), priority: 9, ..JobSpec::default() }),
        schedule: every(30).schedule,
        precondition: Some(Precondition { if_match: format!("\"{etag}\""), ..Default::default() }),
        ..Default::default()
    };
    let updated = call!(schedules, update_job_schedule, update.clone()).unwrap().job_schedule.unwrap();
    assert_eq!(minute_of(updated.next_run_time), Some(30));
    assert_eq!(reason(call!(schedules, update_job_schedule, update.clone()).unwrap_err()), "ConditionNotMet");
    assert_eq!(client.job("s:job-1").await.unwrap().spec.unwrap().priority, 7);
    client.end("s:job-1").await;
    clock.set(at(30));
    assert_eq!(client.created("s:job-2").await.spec.unwrap().priority, 9);
    let short = UpdateJobScheduleRequest {
        id: "s".into(),
        schedule: Some(Schedule { recurrence_interval: minutes(0), ..Schedule::default() }),
        ..Default::default()
    };
    assert_eq!(reason(call!(schedules, update_job_schedule, short).unwrap_err()), "InvalidPropertyValue");
}

#[tokio::test]
async fn ids_are_shared_with_jobs_and_lists_page_and_filter() {
    let (service, _clock) = service().await;
    let (client, schedules) = (service.client(), service.schedules());
    assert_eq!(reason(schedules.create("FIRST", every(10)).await.unwrap_err()), "JobWithSameIdExists");
    for id in ["a", "b", "c"] {
        schedules.create(id, every(10)).await.unwrap();
    }
    assert_eq!(reason(schedules.create("B", every(10)).await.unwrap_err()), "JobScheduleExists");
    let job = CreateJobRequest { id: "B".into(), spec: every(1).job, ..Default::default() };
    assert_eq!(reason(call!(client, create_job, job).unwrap_err()), "JobScheduleWithSameIdExists");
    let disable = DisableJobScheduleRequest { id: "b".into(), ..Default::default() };
    call!(schedules, disable_job_schedule, disable).unwrap();
    let list = |filter: &str, page_size, page_token: String| {
        let request = ListJobSchedulesRequest { filter: filter.into(), page_size, page_token };
        async { call!(schedules, list_job_schedules, request) }
    };
    let ids = |page: &ListJobSchedulesResponse| -> Vec<String> {
        page.job_schedules.iter().map(|schedule| schedule.id.clone()).collect()
    };
    let page = list("", 2, String::new()).await.unwrap();
    assert_eq!(ids(&page), ["a", "b"]);
    let page = list("", 2, page.next_page_token).await.unwrap();
    assert_eq!((ids(&page), page.next_page_token.as_str()), (vec!["c".to_owned()], ""));
    let page = list("state eq 'disabled'", 0, String::new()).await.unwrap();
    assert_eq!(ids(&page), ["b"]);
    assert!(list("colour eq 'red'", 0, String::new()).await.is_err());
    let request = ListJobsRequest { job_schedule_id: "none".into(), ..Default::default() };
    assert_eq!(reason(call!(client, list_jobs, request).unwrap_err()), "JobScheduleNotFound");
}
