//! The service as callers and the bus see it: real gRPC over loopback, a real
//! store, the in-process bus; at the end the way through RabbitMQ.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kiln_auth::SecretKey;
use kiln_bus::{Bus, MemoryBus, Message, RabbitBus, RabbitConfig};
use kiln_grpc::{ServiceAuth, ServiceChannel, with_account};
use kiln_proto::common::v1::ExecutionResult;
use kiln_proto::events::v1::event::Payload;
use kiln_proto::events::v1::{Event, EventBatch, JobChanged, NodeChanged, TaskChanged};
use kiln_proto::job::v1::{JobState, TaskState};
use kiln_proto::monitor::v1::monitor_service_client::MonitorServiceClient;
use kiln_proto::monitor::v1::*;
use kiln_proto::pool::v1::NodeState;
use kiln_proto::time::{duration, timestamp};
use kiln_store::outbox::{self, NewEvent};
use kiln_store::testing::TestStore;
use kiln_store::{Database, Durability, Migration, StoreError};
use kiln_testkit::eventually;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const SECOND: i64 = 1_000_000;
const BASE: i64 = 1_700_000_000 * SECOND;

type Client = MonitorServiceClient<ServiceChannel>;

struct Service {
    client: Client,
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Service {
    async fn start(dir: &std::path::Path, bus: Arc<dyn Bus>, key: &Arc<SecretKey>) -> Self {
        let config = monitor_svc::Config { keep_alive: Duration::from_millis(100), ..monitor_svc::Config::new(dir) };
        Self::start_with(config, bus, key).await
    }

    async fn start_with(mut config: monitor_svc::Config, bus: Arc<dyn Bus>, key: &Arc<SecretKey>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        // The tests' events are from 2023.
        config.retention.age = Duration::from_secs(100 * 365 * 86_400);
        let deps = monitor_svc::Deps { cluster_key: key.clone(), bus };
        let running = kiln_telemetry::spawn(monitor_svc::run(config, deps, listener, shutdown.clone()));
        let channel = ServiceAuth::new("test", key.clone()).connect(&endpoint).unwrap();
        Self { client: MonitorServiceClient::new(channel), shutdown, running }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
    }
}

fn event(source: &str, sequence: u64, subject: &str, event_type: &str, payload: Payload) -> Event {
    Event {
        id: format!("{source}-{sequence}"),
        time: Some(timestamp(BASE + sequence as i64 * SECOND / 10)),
        source: source.into(),
        sequence,
        account: "acc".into(),
        subject: subject.into(),
        r#type: event_type.into(),
        traceparent: String::new(),
        payload: Some(payload),
    }
}

fn task(job: &str, id: &str, old: TaskState, new: TaskState, attempt: u32) -> TaskChanged {
    TaskChanged {
        job_id: job.into(),
        task_id: id.into(),
        pool_id: "p1".into(),
        node_id: if attempt > 0 { "n1".into() } else { String::new() },
        attempt,
        old_state: old.into(),
        new_state: new.into(),
        required_slots: 1,
        ..TaskChanged::default()
    }
}

fn job_event(source: &str, sequence: u64, job: &str, event_type: &str, state: JobState) -> Event {
    let payload = JobChanged { job_id: job.into(), new_state: state.into(), ..JobChanged::default() };
    event(source, sequence, &format!("jobs/{job}"), event_type, Payload::Job(payload))
}

fn message(events: Vec<Event>) -> Message {
    Message {
        id: events[0].id.clone(),
        routing_key: events[0].r#type.clone(),
        source: events[0].source.clone(),
        traceparent: String::new(),
        body: Bytes::from(EventBatch { events }.encode_to_vec()),
    }
}

async fn publish(bus: &dyn Bus, events: Vec<Event>) {
    bus.publish(message(events)).await.unwrap();
}

async fn ready(client: &Client) {
    eventually("the service answering", || {
        let mut client = client.clone();
        async move {
            let request = with_account(ListEventsRequest::default(), "acc").unwrap();
            client.list_events(request).await.ok()
        }
    })
    .await;
}

/// The queue must be there before anything is published.
async fn declare(bus: &dyn Bus) {
    let queue =
        kiln_bus::QueueSpec { name: monitor_svc::ingest::QUEUE.into(), bindings: vec!["#".into()], prefetch: 64 };
    bus.declare(&queue).await.unwrap();
}

/// Watches until the job is completed, leaving after `leave_after` messages
/// each time and coming back with the cursor; survives restarts of the service.
async fn watch_with_breaks(client: tokio::sync::watch::Receiver<Client>, job: &str, leave_after: usize) -> Vec<String> {
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let request = WatchJobRequest { job_id: job.to_owned(), cursor: cursor.clone(), until_completed: true };
        let mut current = client.borrow().clone();
        let Ok(stream) = current.watch_job(with_account(request, "acc").unwrap()).await else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let mut stream = stream.into_inner();
        let mut messages = 0;
        loop {
            match stream.message().await {
                Ok(Some(response)) => {
                    for logged in response.events {
                        seen.push(logged.event.unwrap().id);
                        cursor = logged.cursor;
                    }
                    messages += 1;
                    if messages >= leave_after {
                        break;
                    }
                }
                Ok(None) => return seen,
                Err(_) => break,
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_that_come_and_go_see_every_event_once_and_in_order() {
    const EVENTS: u64 = 2_500;
    let dir = tempfile::tempdir().unwrap();
    let key = Arc::new(SecretKey::generate());
    let bus = MemoryBus::new();
    declare(&bus).await;
    let first = Service::start(dir.path(), Arc::new(bus.clone()), &key).await;
    let (client, clients) = tokio::sync::watch::channel(first.client.clone());

    let watchers: Vec<_> = [1, 3, 7, usize::MAX]
        .into_iter()
        .map(|leave_after| {
            let clients = clients.clone();
            kiln_telemetry::spawn(async move { watch_with_breaks(clients, "J1", leave_after).await })
        })
        .collect();
    // Two sources, in messages of ten, every third message published twice.
    let publishers: Vec<_> = ["job-svc/1", "pool-svc/1"]
        .into_iter()
        .map(|source| {
            let bus = bus.clone();
            kiln_telemetry::spawn(async move {
                let sequences: Vec<u64> = (1..=EVENTS).collect();
                for (at, chunk) in sequences.chunks(10).enumerate() {
                    let events: Vec<Event> = chunk
                        .iter()
                        .map(|n| {
                            let changed = task("j1", &format!("t{n}"), TaskState::Unspecified, TaskState::Active, 0);
                            let subject = format!("jobs/j1/tasks/{source}{n}");
                            event(source, *n, &subject, "job.task.added", Payload::Task(changed))
                        })
                        .collect();
                    for _ in 0..if at % 3 == 0 { 2 } else { 1 } {
                        publish(&bus, events.clone()).await;
                    }
                }
            })
        })
        .collect();
    // In the middle of it the service goes and comes again.
    eventually("a good part being stored", || {
        let mut client = first.client.clone();
        async move {
            let request = GetTaskCountHistoryRequest { job_id: "j1".into(), ..Default::default() };
            let answer = client.get_task_count_history(with_account(request, "acc").unwrap()).await.ok()?;
            (answer.into_inner().points.last()?.active > 300).then_some(())
        }
    })
    .await;
    first.stop().await;
    let second = Service::start(dir.path(), Arc::new(bus.clone()), &key).await;
    client.send_replace(second.client.clone());
    for publisher in publishers {
        publisher.await.unwrap();
    }
    let end = job_event("job-svc/1", EVENTS + 1, "j1", "job.job.state", JobState::Completed);
    publish(&bus, vec![end]).await;

    let mut sequences = Vec::new();
    for watcher in watchers {
        let seen = watcher.await.unwrap();
        assert_eq!(seen.len() as u64, 2 * EVENTS + 1);
        for source in ["job-svc/1", "pool-svc/1"] {
            let own: Vec<&String> = seen.iter().filter(|id| id.starts_with(source)).collect();
            let expected: Vec<String> =
                (1..=EVENTS + u64::from(source == "job-svc/1")).map(|n| format!("{source}-{n}")).collect();
            assert!(own.iter().zip(&expected).all(|(a, b)| *a == b) && own.len() == expected.len(), "{source}");
        }
        sequences.push(seen);
    }
    assert!(sequences.windows(2).all(|pair| pair[0] == pair[1]), "all watchers see the same order");
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_at_any_replica_see_what_the_one_that_has_the_queue_takes_in() {
    let (place, dir, key) = (TestStore::postgres(), tempfile::tempdir().unwrap(), Arc::new(SecretKey::generate()));
    let bus = MemoryBus::new();
    declare(&bus).await;
    let replica = async || {
        let config = monitor_svc::Config {
            store: place.config().clone(),
            // Nobody may look by chance.
            keep_alive: Duration::from_secs(3600),
            ..monitor_svc::Config::new(dir.path())
        };
        let service = Service::start_with(config, Arc::new(bus.clone()), &key).await;
        ready(&service.client).await;
        service
    };
    let (first, second) = (replica().await, replica().await);
    let mut streams = Vec::new();
    for service in [&first, &second] {
        let request = WatchJobRequest { job_id: "j".into(), ..WatchJobRequest::default() };
        let stream = service.client.clone().watch_job(with_account(request, "acc").unwrap()).await.unwrap();
        streams.push(stream.into_inner());
    }
    for n in 1..=20 {
        publish(&bus, vec![job_event("job-svc/1", n, "j", "job.job.state", JobState::Active)]).await;
        for stream in &mut streams {
            let next = tokio::time::timeout(kiln_testkit::PATIENCE, stream.message());
            let events = next.await.expect("news in time").unwrap().unwrap().events;
            let ids: Vec<String> = events.into_iter().map(|logged| logged.event.unwrap().id).collect();
            assert_eq!(ids, [format!("job-svc/1-{n}")]);
        }
    }
    // Whichever has the queue: the other takes it over.
    first.stop().await;
    let late = publish(&bus, vec![job_event("job-svc/1", 21, "j", "job.job.state", JobState::Active)]);
    tokio::time::timeout(kiln_testkit::PATIENCE, late).await.expect("somebody takes it in");
    let next = tokio::time::timeout(kiln_testkit::PATIENCE, streams[1].message());
    assert_eq!(next.await.expect("news in time").unwrap().unwrap().events.len(), 1);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_is_told_to_its_account_only() {
    use TaskState as T;
    let dir = tempfile::tempdir().unwrap();
    let key = Arc::new(SecretKey::generate());
    let bus = MemoryBus::new();
    declare(&bus).await;
    let service = Service::start(dir.path(), Arc::new(bus.clone()), &key).await;
    let mut client = service.client.clone();
    ready(&client).await;

    // A watch may begin before its job exists, and hears that nothing happens.
    let request = WatchJobRequest { job_id: "J1".into(), until_completed: true, ..Default::default() };
    let mut early = client.watch_job(with_account(request.clone(), "acc").unwrap()).await.unwrap().into_inner();
    assert!(early.message().await.unwrap().unwrap().keep_alive);

    let task_event = |n: u64, kind: &str, changed: TaskChanged| {
        event("job-svc/1", n, "jobs/j1/tasks/T1", &format!("job.task.{kind}"), Payload::Task(changed))
    };
    let mut finished = task("J1", "T1", T::Running, T::Completed, 2);
    finished.exit_code = Some(0);
    finished.result = ExecutionResult::Success.into();
    let node = |n: u64, kind: &str, old: NodeState, new: NodeState| {
        let changed = NodeChanged {
            pool_id: "p1".into(),
            node_id: "n1".into(),
            old_state: old.into(),
            new_state: new.into(),
            task_slots: 4,
            ..NodeChanged::default()
        };
        event("pool-svc/1", n, "pools/p1/nodes/n1", &format!("pool.node.{kind}"), Payload::Node(changed))
    };
    let events = vec![
        node(1, "created", NodeState::Unspecified, NodeState::Creating),
        node(2, "state", NodeState::Creating, NodeState::Idle),
        job_event("job-svc/1", 3, "J1", "job.job.created", JobState::Active),
        task_event(10, "added", task("J1", "T1", T::Unspecified, T::Active, 0)),
        task_event(20, "assigned", task("J1", "T1", T::Active, T::Running, 1)),
        task_event(30, "requeued", task("J1", "T1", T::Running, T::Active, 1)),
        task_event(40, "assigned", task("J1", "T1", T::Active, T::Running, 2)),
        task_event(50, "started", task("J1", "T1", T::Running, T::Running, 2)),
        task_event(60, "finished", finished),
        job_event("job-svc/1", 61, "J1", "job.job.state", JobState::Completed),
        job_event("job-svc/1", 62, "J1", "job.job.updated", JobState::Completed),
    ];
    // One by one and from the end, as a disturbed bus might.
    for event in events.iter().rev().filter(|event| event.sequence != 61) {
        publish(&bus, vec![event.clone()]).await;
    }
    publish(&bus, vec![events[9].clone(), events[9].clone()]).await;

    let mut heard = Vec::new();
    while let Some(response) = early.message().await.unwrap() {
        heard.extend(response.events);
    }
    assert_eq!((heard.len(), heard.last().unwrap().event.as_ref().unwrap().sequence), (9, 61));
    // Coming back with the last cursor ends at once; without it, all again.
    let again = WatchJobRequest { cursor: heard.last().unwrap().cursor.clone(), ..request.clone() };
    let mut again = client.watch_job(with_account(again, "acc").unwrap()).await.unwrap().into_inner();
    assert!(again.message().await.unwrap().is_none());
    let mut late = client.watch_job(with_account(request.clone(), "acc").unwrap()).await.unwrap().into_inner();
    assert_eq!(late.message().await.unwrap().unwrap().events, heard);
    // Another account does not hear of it.
    let mut other = client.watch_job(with_account(request, "other").unwrap()).await.unwrap().into_inner();
    assert!(other.message().await.unwrap().unwrap().keep_alive);

    let timeline = |account: &'static str| {
        let mut client = service.client.clone();
        async move {
            let request = GetJobTimelineRequest { job_id: "j1".into(), ..Default::default() };
            client.get_job_timeline(with_account(request, account).unwrap()).await.unwrap().into_inner()
        }
    };
    let at = |n: i64| Some(timestamp(BASE + n * SECOND / 10));
    let told = timeline("acc").await;
    assert_eq!(told.tasks.len(), 1);
    let t1 = &told.tasks[0];
    assert_eq!((t1.task_id.as_str(), t1.result.as_str(), t1.added, t1.finished), ("T1", "success", at(10), at(60)));
    let phases: Vec<_> = t1.attempts.iter().map(|a| (a.attempt, a.assigned, a.started, a.ended)).collect();
    assert_eq!(phases, [(1, at(20), None, at(30)), (2, at(40), at(50), at(60))]);
    assert!(timeline("other").await.tasks.is_empty());

    let request = GetTaskCountHistoryRequest {
        job_id: "j1".into(),
        start: Some(timestamp(BASE)),
        end: Some(timestamp(BASE + 7 * SECOND)),
        step: Some(duration(Duration::from_secs(1))),
    };
    let counts = client.get_task_count_history(with_account(request.clone(), "acc").unwrap()).await.unwrap();
    let counts: Vec<_> =
        counts.into_inner().points.iter().map(|p| (p.active, p.running, p.succeeded, p.failed)).collect();
    assert_eq!(
        counts,
        [
            (0, 0, 0, 0),
            (1, 0, 0, 0),
            (0, 1, 0, 0),
            (1, 0, 0, 0),
            (0, 1, 0, 0),
            (0, 1, 0, 0),
            (0, 0, 1, 0),
            (0, 0, 1, 0)
        ]
    );
    let other = client.get_task_count_history(with_account(request.clone(), "other").unwrap()).await.unwrap();
    assert!(other.into_inner().points.iter().all(|p| p.active + p.running + p.succeeded == 0));
    let wide = GetTaskCountHistoryRequest { end: Some(timestamp(BASE + 5_000 * SECOND)), ..request };
    let error = client.get_task_count_history(with_account(wide, "acc").unwrap()).await.unwrap_err();
    assert!(error.message().contains("5001 points"), "{error}");

    let request = GetNodeUseHistoryRequest {
        pool_id: "P1".into(),
        start: Some(timestamp(BASE + 4 * SECOND)),
        end: Some(timestamp(BASE + 6 * SECOND)),
        step: Some(duration(Duration::from_secs(2))),
    };
    let used = client.get_node_use_history(with_account(request, "acc").unwrap()).await.unwrap().into_inner().points;
    let idle: std::collections::HashMap<String, i32> = [("idle".to_owned(), 1)].into();
    let points: Vec<_> = used.into_iter().map(|p| (p.nodes, p.slots, p.slots_used, p.nodes_by_state)).collect();
    assert_eq!(points, [(1, 4, 1, idle.clone()), (1, 4, 0, idle)]);

    let list = |account: &'static str, subject: &str, kind: &str| {
        let mut client = service.client.clone();
        let request =
            ListEventsRequest { subject_prefix: subject.into(), type_prefix: kind.into(), ..Default::default() };
        async move { client.list_events(with_account(request, account).unwrap()).await.unwrap().into_inner().events.len() }
    };
    assert_eq!(list("acc", "", "").await, 11);
    assert_eq!(list("acc", "jobs/J1/", "").await, 6);
    assert_eq!(list("acc", "jobs/j1", "job.job.").await, 3);
    assert_eq!(list("other", "", "").await, 0);

    let bad = ListEventsRequest { page_token: "c123-1".into(), ..Default::default() };
    let error = client.list_events(with_account(bad, "acc").unwrap()).await.unwrap_err();
    assert_eq!(kiln_error::Error::from(error).reason(), "CursorExpired");
    service.stop().await;
}

/// An outbox of its own, as every service has one.
async fn outbox(dir: &std::path::Path) -> Database {
    const MIGRATIONS: &[Migration] = &[Migration::new(1, outbox::SCHEMA)];
    Database::open(&dir.join("outbox.db"), Durability::PowerLoss, MIGRATIONS).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_travel_from_an_outbox_through_rabbitmq_to_a_watcher() {
    const TASKS: usize = 1_000;
    let dir = tempfile::tempdir().unwrap();
    let key = Arc::new(SecretKey::generate());
    let url = std::env::var("KILN_TEST_AMQP_URL").unwrap_or_else(|_| "amqp://guest:guest@127.0.0.1:5672/%2f".into());
    let unique = format!("test.monitor.{}", std::process::id());
    let config =
        RabbitConfig { exchange: unique.clone(), queue_prefix: format!("{unique}."), ..RabbitConfig::new(url, unique) };
    let bus = RabbitBus::new(config).unwrap();
    if let Err(error) = bus.connected().await {
        panic!("this test needs RabbitMQ (set KILN_TEST_AMQP_URL, or start one on 127.0.0.1:5672): {error}");
    }
    declare(&bus).await;
    let service = Service::start(dir.path(), Arc::new(bus.clone()), &key).await;
    let database = outbox(dir.path()).await;
    let stop = CancellationToken::new();
    let lag = prometheus::IntGauge::new("lag", "lag").unwrap();
    let relay = kiln_telemetry::spawn(outbox::relay(database.clone(), Arc::new(bus.clone()), lag, stop.clone()));
    for n in 0..TASKS {
        let changed = task("j1", &format!("t{n}"), TaskState::Unspecified, TaskState::Active, 0);
        let event = NewEvent {
            time_micros: BASE + n as i64,
            account: "acc".into(),
            subject: format!("jobs/j1/tasks/t{n}"),
            event_type: "job.task.added",
            traceparent: String::new(),
            payload: Payload::Task(changed),
        };
        database.write::<_, StoreError, _>(move |c| outbox::append(c, "job-svc", vec![event])).await.unwrap();
    }
    let mut client = service.client.clone();
    let request = WatchJobRequest { job_id: "j1".into(), ..Default::default() };
    let mut stream = client.watch_job(with_account(request, "acc").unwrap()).await.unwrap().into_inner();
    let mut seen = BTreeMap::new();
    while seen.len() < TASKS {
        for logged in stream.message().await.unwrap().unwrap().events {
            let event = logged.event.unwrap();
            assert_eq!(seen.insert(event.sequence, event.subject), None);
        }
    }
    assert_eq!(
        seen.into_values().collect::<Vec<_>>(),
        (0..TASKS).map(|n| format!("jobs/j1/tasks/t{n}")).collect::<Vec<_>>()
    );
    stop.cancel();
    relay.await.unwrap();
    service.stop().await;
    bus.remove_everything().await.unwrap();
}
