//! Pools that jobs bring along: what is announced on the bus, and what the
//! answers do.

use std::collections::VecDeque;

use bytes::Bytes;
use job_svc::clock::{Clock, ManualClock};
use kiln_bus::{Bus, Message, QueueSpec, Subscription};
use kiln_proto::common::v1::FailureInfo;
use kiln_proto::events::v1::event::Payload;
use kiln_proto::events::v1::{AutoPoolFailed, Event, EventBatch, JobChanged, JobScheduleChanged, PoolChanged};
use kiln_proto::job::v1::*;
use kiln_proto::pool::v1::{PoolSpec, UserAccount};
use kiln_testkit::{PATIENCE, eventually};
use kiln_time::Timestamp;
use prost::Message as _;

use crate::harness::*;

/// Plays pool-svc.
struct Pools {
    service: Service,
    clock: ManualClock,
    told: Box<dyn Subscription>,
    /// Read and not looked at yet.
    waiting: VecDeque<Event>,
}

impl Pools {
    async fn start() -> Self {
        let clock = ManualClock::new(Timestamp::from_micros(1_800_000_000_000_000));
        let service = Service::start_by(Clock::Manual(clock.clone())).await;
        let bindings = ["job.job.*", "job.schedule.*", "job.auto_pool.*"].map(str::to_owned).to_vec();
        let queue = QueueSpec { name: "pool.jobs".into(), bindings, prefetch: 64 };
        let told = service.bus.subscribe(&queue).await.unwrap();
        // As the composition root does it: what is answered is never missed.
        service.bus.declare(&job_svc::auto_pools::queue()).await.unwrap();
        Self { service, clock, told, waiting: VecDeque::new() }
    }

    /// The next announcement of this type.
    async fn told(&mut self, event_type: &str) -> Payload {
        loop {
            while let Some(event) = self.waiting.pop_front() {
                if event.r#type == event_type {
                    return event.payload.unwrap();
                }
            }
            let next = tokio::time::timeout(PATIENCE, self.told.next());
            let delivery = next.await.unwrap_or_else(|_| panic!("{event_type} is told")).unwrap();
            let body = &delivery.message.body;
            assert!(!body.windows(7).any(|part| part == b"hunter2"), "a password is on the bus");
            let batch = EventBatch::decode(body.clone()).unwrap();
            delivery.ack().await.unwrap();
            self.waiting.extend(batch.events);
        }
    }

    async fn told_of_job(&mut self, event_type: &str) -> JobChanged {
        match self.told(event_type).await {
            Payload::Job(job) => job,
            other => panic!("{other:?}"),
        }
    }

    /// The next change of a schedule to this state.
    async fn told_of_schedule(&mut self, event_type: &str, state: JobScheduleState) -> JobScheduleChanged {
        loop {
            match self.told(event_type).await {
                Payload::JobSchedule(schedule) if schedule.new_state() == state => return schedule,
                Payload::JobSchedule(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn told_of_end(&mut self) -> JobChanged {
        loop {
            let job = self.told_of_job("job.job.state").await;
            if job.new_state() == JobState::Completed {
                return job;
            }
        }
    }

    /// Returns when job-svc has dealt with it.
    async fn answer(&self, event_type: &str, payload: Payload) {
        let event = Event {
            id: "e".into(),
            account: ACCOUNT.into(),
            r#type: event_type.into(),
            payload: Some(payload),
            ..Event::default()
        };
        let message = Message {
            id: "m".into(),
            routing_key: event_type.into(),
            source: "pool-svc/test".into(),
            traceparent: String::new(),
            body: Bytes::from(EventBatch { events: vec![event] }.encode_to_vec()),
        };
        let publishing = self.service.bus.publish(message);
        tokio::time::timeout(PATIENCE, publishing).await.expect("it is dealt with").unwrap();
    }

    async fn answer_about(&self, event_type: &str, pool: &str) {
        self.answer(event_type, Payload::Pool(PoolChanged { pool_id: pool.into(), ..PoolChanged::default() })).await;
    }

    async fn answer_failed(&self, pool: &str, owner: &str) {
        let failure = FailureInfo { code: "InvalidAutoPoolSettings".into(), ..FailureInfo::default() };
        let failed = AutoPoolFailed { pool_id: pool.into(), job_id: owner.into(), failure: Some(failure) };
        self.answer("pool.auto_pool.failed", Payload::AutoPoolFailed(failed)).await;
    }

    fn later(&self, seconds: u64) {
        self.clock.set(self.clock.now().plus(std::time::Duration::from_secs(seconds)));
    }

    async fn create(&self, id: &str, spec: JobSpec) -> Job {
        let client = self.service.client();
        let request = CreateJobRequest { id: id.into(), spec: Some(spec), ..Default::default() };
        eventually("the service", || async {
            match call!(client, create_job, request.clone()) {
                Ok(created) => created.job,
                Err(status) if status.code() == tonic::Code::Unavailable => None,
                Err(status) => panic!("{status:?}"),
            }
        })
        .await
    }

    async fn end(&self, job: &str) {
        let client = self.service.client();
        call!(client, terminate_job, TerminateJobRequest { id: job.into(), ..Default::default() }).unwrap();
        client.job_becomes(job, JobState::Completed).await;
    }
}

fn with_pool(lifetime: AutoPoolLifetime) -> JobSpec {
    let users = vec![UserAccount { name: "ann".into(), password: "hunter2".into(), ..UserAccount::default() }];
    let auto = AutoPool {
        id_prefix: "Tmp".into(),
        lifetime: lifetime.into(),
        keep_alive: false,
        pool: Some(PoolSpec { target_dedicated_nodes: 2, user_accounts: users, ..PoolSpec::default() }),
    };
    JobSpec { auto_pool: Some(auto), ..JobSpec::default() }
}

#[tokio::test]
async fn a_job_announces_its_pool_and_its_end_until_both_are_answered() {
    let mut pools = Pools::start().await;
    let job = pools.create("j", with_pool(AutoPoolLifetime::Job)).await;
    assert!(job.pool_id.starts_with("Tmp_") && job.pool_id.len() == 4 + 36, "{}", job.pool_id);
    let shown = job.spec.unwrap();
    let user = &shown.auto_pool.unwrap().pool.unwrap().user_accounts[0];
    assert_eq!((shown.pool_id.as_str(), user.name.as_str(), user.password.as_str()), ("", "ann", ""));
    let told = pools.told_of_job("job.job.created").await;
    assert_eq!((told.job_id.as_str(), &told.pool_id), ("j", &job.pool_id));
    let pool = told.auto_pool.unwrap().pool.unwrap();
    assert_eq!((pool.target_dedicated_nodes, pool.user_accounts[0].password.as_str()), (2, ""), "passwords stay here");

    // Nobody answers; it is announced again, and again.
    for _ in 0..2 {
        pools.later(120);
        let again = pools.told_of_job("job.auto_pool.wanted").await;
        assert_eq!((again.job_id.as_str(), &again.pool_id), ("j", &job.pool_id));
        assert_eq!(again.auto_pool.unwrap().pool.unwrap().target_dedicated_nodes, 2);
    }
    pools.answer_about("pool.auto_pool.made", &job.pool_id).await;
    // Another job's announcement shows that this one has come to rest.
    let other = pools.create("other", with_pool(AutoPoolLifetime::Job)).await;
    pools.later(7200);
    assert_eq!(pools.told_of_job("job.auto_pool.wanted").await.pool_id, other.pool_id);
    pools.answer_about("pool.auto_pool.made", &other.pool_id).await;

    pools.end("j").await;
    let ended = pools.told_of_end().await;
    assert_eq!(ended.pool_id, job.pool_id);
    assert!(ended.auto_pool.is_some_and(|auto| auto.pool.is_none() && !auto.keep_alive), "only what matters now");
    pools.later(7200);
    let again = pools.told_of_job("job.auto_pool.over").await;
    assert_eq!((again.pool_id.as_str(), again.new_state()), (job.pool_id.as_str(), JobState::Completed));
    pools.answer_about("pool.auto_pool.released", &job.pool_id).await;
    pools.end("other").await;
    pools.later(7200);
    assert_eq!(pools.told_of_job("job.auto_pool.over").await.pool_id, other.pool_id);
}

#[tokio::test]
async fn a_pool_that_cannot_be_made_ends_the_job() {
    let mut pools = Pools::start().await;
    let client = pools.service.client();
    let job = pools.create("j", with_pool(AutoPoolLifetime::Job)).await;
    client.add("j", spec("t")).await;
    pools.told_of_job("job.job.created").await;
    pools.answer_failed(&job.pool_id, "j").await;
    let over = client.job_becomes("j", JobState::Completed).await;
    assert_eq!(over.scheduling_error.unwrap().code, "InvalidAutoPoolSettings");
    assert!(over.end_time.is_some());
    pools.told_of_end().await;
    // A repetition finds nothing to do, and a job that has ended stays as it is.
    pools.answer_failed(&job.pool_id, "j").await;
    let ended = pools.create("ended", with_pool(AutoPoolLifetime::Job)).await;
    pools.end("ended").await;
    pools.answer_failed(&ended.pool_id, "ended").await;
    assert_eq!(client.job("ended").await.unwrap().scheduling_error, None);
}

#[tokio::test]
async fn keep_alive_can_change_and_the_pool_cannot() {
    let mut pools = Pools::start().await;
    let client = pools.service.client();
    pools.create("j", with_pool(AutoPoolLifetime::Job)).await;
    let keep = UpdateJobRequest { id: "j".into(), auto_pool_keep_alive: Some(true), ..Default::default() };
    let job = call!(client, update_job, keep.clone()).unwrap().job.unwrap();
    assert!(job.spec.unwrap().auto_pool.unwrap().keep_alive);
    let moved = UpdateJobRequest { id: "j".into(), pool_id: Some("p1".into()), ..Default::default() };
    assert_eq!(reason(call!(client, update_job, moved).unwrap_err()), "InvalidPropertyValue");
    pools.end("j").await;
    assert!(pools.told_of_end().await.auto_pool.unwrap().keep_alive);
    client.create_job("plain", JobSpec::default()).await;
    let keep = UpdateJobRequest { id: "plain".into(), ..keep };
    assert_eq!(reason(call!(client, update_job, keep).unwrap_err()), "InvalidPropertyValue");
    let request =
        CreateJobRequest { id: "k".into(), spec: Some(with_pool(AutoPoolLifetime::JobSchedule)), ..Default::default() };
    assert_eq!(reason(call!(client, create_job, request).unwrap_err()), "InvalidPropertyValue");
}

#[tokio::test]
async fn a_schedule_keeps_its_pool_over_its_jobs_and_tries_another_if_it_fails() {
    let mut pools = Pools::start().await;
    let (client, schedules) = (pools.service.client(), pools.service.schedules());
    client.create_job("first", JobSpec::default()).await;
    let interval = Some(prost_types::Duration { seconds: 600, nanos: 0 });
    let spec = JobScheduleSpec {
        schedule: Some(Schedule { recurrence_interval: interval, ..Schedule::default() }),
        job: Some(with_pool(AutoPoolLifetime::JobSchedule)),
        ..JobScheduleSpec::default()
    };
    let request = CreateJobScheduleRequest { id: "s".into(), spec: Some(spec), ..Default::default() };
    call!(schedules, create_job_schedule, request).unwrap();
    let created = |n: u32| {
        let client = client.clone();
        async move {
            let id = format!("s:job-{n}");
            eventually(&id, || async { client.job(&id).await.ok() }).await
        }
    };
    let failed = created(1).await.pool_id;
    pools.answer_failed(&failed, "s").await;
    let over = client.job_becomes("s:job-1", JobState::Completed).await;
    assert_eq!(over.scheduling_error.unwrap().code, "InvalidAutoPoolSettings");
    pools.later(600);
    let pool = created(2).await.pool_id;
    assert_ne!(pool, failed);
    pools.answer_about("pool.auto_pool.made", &pool).await;
    pools.end("s:job-2").await;
    pools.later(600);
    assert_eq!(created(3).await.pool_id, pool, "one for all of its jobs");
    let request = TerminateJobScheduleRequest { id: "s".into(), ..Default::default() };
    call!(schedules, terminate_job_schedule, request).unwrap();
    let over = pools.told_of_schedule("job.schedule.state", JobScheduleState::Completed).await;
    assert_eq!((over.pool_id.as_str(), over.keep_alive), (pool.as_str(), false));
    pools.later(7200);
    let again = pools.told_of_schedule("job.auto_pool.over", JobScheduleState::Completed).await;
    assert_eq!((again.job_schedule_id.as_str(), &again.pool_id), ("s", &pool));
}
