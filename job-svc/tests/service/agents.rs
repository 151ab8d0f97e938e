//! What happens when agents, streams and the service itself die.

use std::time::Duration;

use kiln_proto::job::v1::*;
use kiln_testkit::eventually;

use crate::harness::*;

fn view(key: &AttemptKey, phase: AttemptPhase) -> AttemptView {
    AttemptView { key: Some(key.clone()), phase: phase.into() }
}

#[tokio::test]
async fn tasks_run_and_their_results_are_acknowledged() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    client.add_many("j1", 500).await;
    let mut agent = service.agent("n1", 8).await;
    let work = kiln_telemetry::spawn(async move { agent.work().await });
    client.completed("j1", 500).await;
    let counts = client.counts("j1").await;
    assert_eq!((counts.active, counts.running, counts.succeeded, counts.failed), (0, 0, 500, 0));
    let task = client.task("j1", "t7").await.unwrap();
    assert_eq!((task.attempt, task.execution.unwrap().exit_code), (1, Some(0)));
    assert_eq!(task.node.unwrap().task_root_directory, "workitems/j1/job-1/t7");
    work.abort();
}

#[tokio::test]
async fn slots_are_not_given_twice_and_reports_may_repeat() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    client.add("j1", TaskSpec { required_slots: 2, ..spec("wide") }).await;
    client.add("j1", spec("small")).await;
    let mut agent = service.agent("n1", 2).await;
    let first = agent.assignments().await;
    assert_eq!(first.len(), 1, "the wide one fills the node");
    let key = first[0].key.clone().unwrap();
    agent.end(&key, 0).await;
    agent.end(&key, 0).await;
    assert_eq!(agent.acks().await[0], key);
    // An attempt nobody knows is acknowledged, too.
    let unknown = AttemptKey { job_id: "j1".into(), task_id: "none".into(), attempt: 9, ..AttemptKey::default() };
    agent.end(&unknown, 0).await;
    eventually("the ack", || async { Some(()) }).await;
    client.task_becomes("j1", "wide", TaskState::Completed).await;
    client.task_becomes("j1", "small", TaskState::Running).await;
}

#[tokio::test]
async fn retries_are_counted_and_history_is_kept() {
    let service = Service::start().await;
    let client = service.client();
    let constraints = Some(JobConstraints { max_task_retry_count: 1, max_wall_clock_time: None });
    client.create_job("j1", JobSpec { constraints, ..JobSpec::default() }).await;
    client.add("j1", spec("t")).await;
    let mut agent = service.agent("n1", 1).await;
    for attempt in 1..=2 {
        let key = agent.assignments().await[0].key.clone().unwrap();
        assert_eq!(key.attempt, attempt);
        agent.end(&key, 3).await;
    }
    let task = client.task_becomes("j1", "t", TaskState::Completed).await;
    let execution = task.execution.unwrap();
    assert_eq!((execution.exit_code, execution.retry_count), (Some(3), 1));
    assert_eq!(execution.failure.unwrap().code, "FailureExitCode");
    let request = ListAttemptsRequest { job_id: "j1".into(), task_id: "t".into(), ..Default::default() };
    let attempts = call!(client, list_attempts, request).unwrap().attempts;
    let seen: Vec<_> = attempts.iter().map(|attempt| (attempt.number, attempt.outcome(), attempt.exit_code)).collect();
    assert_eq!(seen, [(1, AttemptOutcome::Failed, Some(3)), (2, AttemptOutcome::Failed, Some(3))]);
}

#[tokio::test]
async fn a_stream_that_breaks_costs_nothing() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    client.add("j1", spec("t")).await;
    let mut agent = service.agent("n1", 1).await;
    let key = agent.assignments().await[0].key.clone().unwrap();
    drop(agent);
    let mut agent = service.agent_with("n1", "life-1", 1, vec![view(&key, AttemptPhase::Running)]).await;
    agent.end(&key, 0).await;
    assert_eq!(agent.acks().await, [key]);
    let task = client.task_becomes("j1", "t", TaskState::Completed).await;
    assert_eq!((task.attempt, task.execution.unwrap().internal_retry_count), (1, 0));
}

#[tokio::test]
async fn a_new_life_of_an_agent_gives_its_tasks_back_at_once() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    client.add("j1", spec("t")).await;
    let mut agent = service.agent("n1", 1).await;
    let old = agent.assignments().await[0].key.clone().unwrap();
    let mut again = service.agent_with("n1", "life-2", 1, Vec::new()).await;
    let new = again.assignments().await[0].key.clone().unwrap();
    assert_eq!((old.attempt, new.attempt), (1, 2));
    // The former life is not listened to any more.
    agent.end(&old, 0).await;
    again.end(&old, 5).await;
    assert_eq!(again.acks().await, [old]);
    again.end(&new, 0).await;
    let task = client.task_becomes("j1", "t", TaskState::Completed).await;
    let execution = task.execution.unwrap();
    assert_eq!((execution.internal_retry_count, execution.exit_code), (1, Some(0)));
}

#[tokio::test]
async fn silence_longer_than_the_lease_moves_tasks_elsewhere() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let config = job_svc::Config {
        lease: Duration::from_millis(1500),
        lease_margin: Duration::from_millis(500),
        ..config(&dir)
    };
    let service = Service::start_on(dir, config, std::sync::Arc::new(kiln_auth::SecretKey::generate())).await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    client.add("j1", spec("t")).await;
    let mut silent = service.agent("n1", 1).await;
    let lost = silent.assignments().await[0].key.clone().unwrap();
    // The stream is open, but no lease is asked for: it is closed in the end.
    while silent.try_next().await.is_some() {}
    let mut other = service.agent("n2", 1).await;
    let key = other.assignments().await[0].key.clone().unwrap();
    assert_eq!(key.attempt, 2);
    other.send(work_up::Message::LeaseRequest(LeaseRequest { sequence: 7 })).await;
    loop {
        if let work_down::Message::LeaseGrant(grant) = other.next().await {
            assert_eq!(grant.sequence, 7);
            break;
        }
    }
    other.end(&key, 0).await;
    client.task_becomes("j1", "t", TaskState::Completed).await;
    // It comes back with what it should have stopped.
    let mut back = service.agent_with("n1", "life-1", 1, vec![view(&lost, AttemptPhase::Running)]).await;
    assert_eq!(back.stops().await, [lost]);
}

#[tokio::test]
async fn a_node_that_is_taken_away_gives_its_tasks_back() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    client.add("j1", spec("t")).await;
    let mut agent = service.agent("n1", 1).await;
    let key = agent.assignments().await[0].key.clone().unwrap();
    agent.send(work_up::Message::Status(status(1, false))).await;
    assert_eq!(agent.stops().await, std::slice::from_ref(&key));
    assert_eq!(client.task("j1", "t").await.unwrap().state(), TaskState::Running, "it still runs there");
    let mut other = service.agent("n2", 1).await;
    agent.stopped(&key).await;
    let moved = other.assignments().await[0].key.clone().unwrap();
    assert_eq!(moved.attempt, 2);
    let task = client.task("j1", "t").await.unwrap();
    assert_eq!(task.execution.unwrap().requeue_count, 1);
    agent.send(work_up::Message::Goodbye(Goodbye {})).await;
    while agent.try_next().await.is_some() {}
}

#[tokio::test]
async fn a_token_of_another_node_is_refused() {
    let service = Service::start().await;
    let hello = WorkerHello {
        account: ACCOUNT.into(),
        pool_id: "p1".into(),
        node_id: "n2".into(),
        incarnation: "x".into(),
        status: Some(status(1, true)),
        ..WorkerHello::default()
    };
    let mut agent = eventually("a stream", || async { service.connect("n1", hello.clone()).await.ok() }).await;
    assert!(agent.try_next().await.is_none());
    // Of the node itself, but of an earlier life of its agent.
    let earlier = service.node_token("n2", "w");
    let mut agent = service.connect_with(&earlier, hello.clone()).await.unwrap();
    assert!(agent.try_next().await.is_none());
    let own = service.node_token("n2", "x");
    let mut agent = service.connect_with(&own, hello).await.unwrap();
    assert!(matches!(agent.try_next().await, Some(work_down::Message::Welcome(_))));
}

#[tokio::test]
async fn a_crash_of_the_service_loses_and_doubles_nothing() {
    let mut service = Service::start().await;
    service.client().create_job("j1", JobSpec::default()).await;
    service.client().add_many("j1", 300).await;
    // Results that the agent has and the service has not acknowledged.
    let mut results: std::collections::BTreeMap<(String, u32), AttemptKey> = Default::default();
    let mut ran: std::collections::BTreeMap<(String, u32), u32> = Default::default();
    for life in 0..4 {
        let views = results.values().map(|key| view(key, AttemptPhase::Ended)).collect();
        let mut agent = service.agent_with("n1", "life-1", 10, views).await;
        agent.report(results.values().map(|key| ended(key.clone(), Some(0), EndCause::Exited)).collect()).await;
        let target = (life + 1) * 75;
        while ran.len() < target || (life == 3 && !results.is_empty()) {
            match agent.try_next().await {
                Some(work_down::Message::Assignments(given)) => {
                    let mut reports = Vec::new();
                    for assignment in given.assignments {
                        let key = assignment.key.unwrap();
                        *ran.entry((key.task_id.clone(), key.attempt)).or_default() += 1;
                        results.insert((key.task_id.clone(), key.attempt), key.clone());
                        reports.push(started(key.clone()));
                        reports.push(ended(key, Some(0), EndCause::Exited));
                    }
                    agent.report(reports).await;
                }
                Some(work_down::Message::Acks(acks)) => {
                    for key in acks.attempts {
                        results.remove(&(key.task_id, key.attempt));
                    }
                }
                Some(_) => {}
                None => break,
            }
        }
        if life < 3 {
            service = service.crash_and_restart().await;
        }
    }
    let client = service.client();
    client.completed("j1", 300).await;
    assert!(ran.values().all(|times| *times == 1), "an attempt was given out twice");
    let counts = client.counts("j1").await;
    assert_eq!((counts.active, counts.running, counts.succeeded), (0, 0, 300));
}

#[tokio::test]
async fn calls_that_are_given_up_leave_no_task_that_nobody_knows_of() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    for at in 0..60_u64 {
        let request =
            AddTaskRequest { request_id: String::new(), job_id: "j1".into(), task: Some(spec(&format!("t{at}"))) };
        // The caller goes away somewhere between its call and the answer.
        let call = async { call!(client, add_task, request) };
        let _ = tokio::time::timeout(Duration::from_micros(100 * at), call).await;
    }
    let mut agent = service.agent("n1", 8).await;
    let work = kiln_telemetry::spawn(async move { agent.work().await });
    let counts = eventually("every task that is there completed", || async {
        let counts = client.counts("j1").await;
        (counts.active + counts.running == 0).then_some(counts)
    })
    .await;
    assert!(counts.succeeded > 0);
    work.abort();
}

#[tokio::test]
async fn a_task_with_the_name_of_a_deleted_one_is_another_task() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    let mut agent = service.agent("n1", 1).await;
    let mut keys = Vec::new();
    for _ in 0..2 {
        client.add("j1", spec("t")).await;
        let key = agent.assignments().await[0].key.clone().unwrap();
        if let Some(former) = keys.last() {
            // A late repetition of the former task's result.
            agent.end(former, 9).await;
        }
        agent.end(&key, 0).await;
        let task = client.task_becomes("j1", "t", TaskState::Completed).await;
        assert_eq!(task.execution.unwrap().exit_code, Some(0));
        let request = DeleteTaskRequest { job_id: "j1".into(), task_id: "t".into(), ..Default::default() };
        call!(client, delete_task, request).unwrap();
        keys.push(key);
    }
    assert_eq!((keys[0].attempt, keys[1].attempt), (1, 1));
    assert_ne!(keys[0], keys[1], "the agent can tell them apart");
}

#[tokio::test]
async fn a_hello_that_was_overtaken_does_not_count() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    client.add("j1", spec("t")).await;
    let hello = |incarnation: &str, stream| WorkerHello {
        account: ACCOUNT.into(),
        pool_id: "p1".into(),
        node_id: "n1".into(),
        incarnation: incarnation.into(),
        status: Some(status(1, true)),
        stream,
        ..WorkerHello::default()
    };
    let _former = service.connect("n1", hello("life-1", 1)).await.unwrap().next().await;
    let mut agent = service.connect("n1", hello("life-2", 2)).await.unwrap();
    let key = loop {
        let given = agent.assignments().await;
        if let Some(key) = given[0].key.clone() {
            break key;
        }
    };
    // Both have an old view, in which nothing runs.
    for late in [hello("life-2", 1), hello("life-1", 7)] {
        assert!(service.connect("n1", late).await.unwrap().try_next().await.is_none());
    }
    agent.send(work_up::Message::Status(WorkerStatus { version: 5, ..status(1, false) })).await;
    assert_eq!(agent.stops().await, std::slice::from_ref(&key), "the stream goes on, and the attempt");
    agent.end(&key, 0).await;
    assert_eq!(agent.acks().await, [key]);
    let task = client.task_becomes("j1", "t", TaskState::Completed).await;
    assert_eq!(task.execution.unwrap().internal_retry_count, if task.attempt == 1 { 0 } else { 1 });
}
