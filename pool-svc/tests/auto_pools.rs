//! Pools of jobs and schedules: announcements on the bus, pools, answers.

// Helpers outside of test functions.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;

use bytes::Bytes;
use kiln_bus::{Bus, Message, QueueSpec, Subscription};
use kiln_proto::events::v1::event::Payload;
use kiln_proto::events::v1::{Event, EventBatch, JobChanged, JobScheduleChanged};
use kiln_proto::job::v1::{AutoPool, AutoPoolLifetime, JobScheduleState, JobState};
use kiln_proto::pool::v1::*;
use kiln_testkit::PATIENCE;
use prost::Message as _;
use support::{ACCOUNT, Service};

/// Plays job-svc.
struct Jobs<'a> {
    service: &'a Service,
    answers: Box<dyn Subscription>,
}

impl<'a> Jobs<'a> {
    async fn of(service: &'a Service) -> Self {
        let queue = QueueSpec { name: "answers".into(), bindings: vec!["pool.auto_pool.*".into()], prefetch: 16 };
        let answers = service.bus.subscribe(&queue).await.unwrap();
        // As the composition root does it, so that nothing is missed.
        let bindings = ["job.job.*", "job.schedule.*", "job.auto_pool.*"].map(str::to_owned).to_vec();
        service.bus.declare(&QueueSpec { name: "pool.jobs".into(), bindings, prefetch: 64 }).await.unwrap();
        Self { service, answers }
    }

    /// Returns when pool-svc has dealt with it.
    async fn announce(&self, event_type: &str, payload: Payload) {
        let event = Event {
            id: "e".into(),
            account: ACCOUNT.into(),
            r#type: event_type.into(),
            payload: Some(payload),
            ..Event::default()
        };
        let publishing = self.service.bus.publish(message(event));
        tokio::time::timeout(PATIENCE, publishing).await.expect("it is dealt with").unwrap();
    }

    /// The next answer: its type and, of a failure, its code.
    async fn answer(&mut self, pool: &str) -> (String, String) {
        let delivery = tokio::time::timeout(PATIENCE, self.answers.next()).await.expect("an answer").unwrap();
        let mut batch = EventBatch::decode(delivery.message.body.clone()).unwrap();
        assert_eq!(batch.events.len(), 1, "{batch:?}");
        let event = batch.events.remove(0);
        delivery.ack().await.unwrap();
        assert_eq!((event.account.as_str(), event.subject), (ACCOUNT, format!("pools/{pool}")));
        let code = match event.payload.unwrap() {
            Payload::Pool(changed) => {
                assert_eq!(changed.pool_id, pool);
                String::new()
            }
            Payload::AutoPoolFailed(failed) => {
                assert_eq!((failed.pool_id.as_str(), failed.job_id.as_str()), (pool, "j"));
                failed.failure.unwrap().code
            }
            other => panic!("{other:?}"),
        };
        (event.r#type, code)
    }

    async fn answers(&mut self, pool: &str, answer: &str) {
        assert_eq!(self.answer(pool).await, (answer.to_owned(), String::new()));
    }
}

fn message(event: Event) -> Message {
    Message {
        id: "m".into(),
        routing_key: event.r#type.clone(),
        source: "job-svc/test".into(),
        traceparent: String::new(),
        body: Bytes::from(EventBatch { events: vec![event] }.encode_to_vec()),
    }
}

fn spec() -> PoolSpec {
    PoolSpec { task_slots_per_node: 3, ..PoolSpec::default() }
}

fn job(pool: &str, state: JobState, spec: Option<PoolSpec>, keep_alive: bool) -> Payload {
    let auto = AutoPool { keep_alive, pool: spec, ..AutoPool::default() };
    Payload::Job(JobChanged {
        job_id: "j".into(),
        pool_id: pool.into(),
        new_state: state.into(),
        auto_pool: Some(auto),
        ..JobChanged::default()
    })
}

fn created(pool: &str) -> Payload {
    job(pool, JobState::Active, Some(spec()), false)
}

fn ended(pool: &str) -> Payload {
    job(pool, JobState::Completed, None, false)
}

#[tokio::test]
async fn a_pool_is_made_for_a_job_and_goes_with_it() {
    let service = Service::start().await;
    let mut jobs = Jobs::of(&service).await;
    jobs.announce("job.job.created", created("Auto_1")).await;
    assert_eq!(service.pool("auto_1").await.unwrap().spec.unwrap().task_slots_per_node, 3);
    jobs.answers("Auto_1", "pool.auto_pool.made").await;
    // Again, as after a crash of the bus: nothing happens, nobody asked.
    jobs.announce("job.job.created", created("Auto_1")).await;
    // What happens to the job meanwhile does not matter.
    jobs.announce("job.job.state", job("Auto_1", JobState::Disabled, None, false)).await;
    jobs.announce("job.job.state", job("Auto_1", JobState::Terminating, None, false)).await;
    assert_eq!(service.pool("auto_1").await.unwrap().state(), PoolState::Active);
    jobs.announce("job.auto_pool.wanted", created("Auto_1")).await;
    jobs.answers("Auto_1", "pool.auto_pool.made").await;
    jobs.announce("job.job.state", ended("Auto_1")).await;
    service.wait_gone("auto_1").await;
    jobs.answers("Auto_1", "pool.auto_pool.released").await;
    jobs.announce("job.job.deleted", job("Auto_1", JobState::Deleting, None, false)).await;
    jobs.announce("job.job.created", created("Auto_1")).await;
    assert!(service.pool("auto_1").await.is_err(), "late and repeated announcements do not bring it back");
    jobs.announce("job.auto_pool.over", ended("Auto_1")).await;
    jobs.answers("Auto_1", "pool.auto_pool.released").await;
    service.stop().await;
}

#[tokio::test]
async fn a_job_that_has_ended_before_gets_no_pool() {
    let service = Service::start().await;
    let mut jobs = Jobs::of(&service).await;
    jobs.announce("job.job.deleted", job("early", JobState::Deleting, None, false)).await;
    jobs.answers("early", "pool.auto_pool.released").await;
    jobs.announce("job.job.created", created("early")).await;
    assert!(service.pool("early").await.is_err());
    service.stop().await;
}

#[tokio::test]
async fn a_pool_that_is_kept_alive_stays_and_is_its_users() {
    let service = Service::start().await;
    let mut jobs = Jobs::of(&service).await;
    jobs.announce("job.job.created", created("kept")).await;
    jobs.answers("kept", "pool.auto_pool.made").await;
    // The job's user has changed it since.
    jobs.announce("job.job.state", job("kept", JobState::Completed, None, true)).await;
    jobs.answers("kept", "pool.auto_pool.released").await;
    jobs.announce("job.job.deleted", job("kept", JobState::Deleting, None, true)).await;
    assert_eq!(service.pool("kept").await.unwrap().state(), PoolState::Active);
    service.delete("kept").await;
    service.wait_gone("kept").await;
    service.stop().await;
}

#[tokio::test]
async fn a_pool_that_cannot_be_made_is_answered_with_the_words_of_azure() {
    let service = Service::start().await;
    let mut jobs = Jobs::of(&service).await;
    service.create("taken", 0).await;
    let mut cases: HashMap<&str, (PoolSpec, &str)> = HashMap::new();
    cases.insert("scale", (PoolSpec { enable_auto_scale: true, ..spec() }, "InvalidAutoScaleFormulaInAutoPool"));
    cases.insert("slots", (PoolSpec { task_slots_per_node: 999, ..spec() }, "InvalidAutoPoolSettings"));
    cases.insert("taken", (spec(), "InvalidAutoPoolSettings"));
    for (pool, (spec, code)) in cases {
        let failed = ("pool.auto_pool.failed".to_owned(), code.to_owned());
        jobs.announce("job.job.created", job(pool, JobState::Active, Some(spec.clone()), false)).await;
        assert_eq!(jobs.answer(pool).await, failed);
        jobs.announce("job.auto_pool.wanted", job(pool, JobState::Active, Some(spec), false)).await;
        assert_eq!(jobs.answer(pool).await, failed);
        jobs.announce("job.job.state", ended(pool)).await;
        jobs.answers(pool, "pool.auto_pool.released").await;
    }
    assert_eq!(service.pool("taken").await.unwrap().state(), PoolState::Active, "it was never the job's");
    service.stop().await;
}

#[tokio::test]
async fn the_pool_of_a_schedule_outlives_its_jobs() {
    let service = Service::start().await;
    let mut jobs = Jobs::of(&service).await;
    let of_schedule = |state: JobState, pool: Option<PoolSpec>| {
        let auto = AutoPool { lifetime: AutoPoolLifetime::JobSchedule.into(), pool, ..AutoPool::default() };
        Payload::Job(JobChanged {
            job_id: "s:job-1".into(),
            job_schedule_id: "s".into(),
            pool_id: "all".into(),
            new_state: state.into(),
            auto_pool: Some(auto),
            ..JobChanged::default()
        })
    };
    let schedule = |state: JobScheduleState| {
        Payload::JobSchedule(JobScheduleChanged {
            job_schedule_id: "s".into(),
            pool_id: "all".into(),
            new_state: state.into(),
            ..JobScheduleChanged::default()
        })
    };
    jobs.announce("job.job.created", of_schedule(JobState::Active, Some(spec()))).await;
    jobs.answers("all", "pool.auto_pool.made").await;
    jobs.announce("job.job.state", of_schedule(JobState::Completed, None)).await;
    jobs.announce("job.job.deleted", of_schedule(JobState::Deleting, None)).await;
    jobs.announce("job.schedule.state", schedule(JobScheduleState::Disabled)).await;
    assert_eq!(service.pool("all").await.unwrap().state(), PoolState::Active);
    jobs.announce("job.schedule.state", schedule(JobScheduleState::Completed)).await;
    jobs.answers("all", "pool.auto_pool.released").await;
    service.wait_gone("all").await;
    service.stop().await;
}
