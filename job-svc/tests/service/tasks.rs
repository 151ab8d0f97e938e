//! Tasks over the wire.

use kiln_proto::job::v1::*;
use kiln_testkit::eventually;
use tokio_stream::StreamExt;

use crate::harness::*;

fn named<T>(make: impl Fn(String, String) -> T, task: &str) -> T {
    make("j1".into(), task.into())
}

fn terminate(task: &str) -> TerminateTaskRequest {
    named(|job_id, task_id| TerminateTaskRequest { job_id, task_id, ..Default::default() }, task)
}

fn delete(task: &str) -> DeleteTaskRequest {
    named(|job_id, task_id| DeleteTaskRequest { job_id, task_id, ..Default::default() }, task)
}

fn reactivate(task: &str) -> ReactivateTaskRequest {
    named(|job_id, task_id| ReactivateTaskRequest { job_id, task_id, ..Default::default() }, task)
}

#[tokio::test]
async fn a_stream_of_tasks_can_be_repeated() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    for round in 0..2 {
        let messages: Vec<AddTasksRequest> = (0..10)
            .map(|sequence| AddTasksRequest {
                job_id: if sequence == 0 { "j1".into() } else { String::new() },
                sequence,
                tasks: (0..100).map(|at| spec(&format!("t{sequence}-{at}"))).collect(),
            })
            .collect();
        let request = kiln_grpc::with_account(tokio_stream::iter(messages), ACCOUNT).unwrap();
        let answers = client.inner.clone().add_tasks(request).await.unwrap().into_inner();
        let answers: Vec<_> = answers.map(|answer| answer.unwrap()).collect().await;
        let seen: Vec<_> = answers.iter().map(|answer| (answer.sequence, answer.added, answer.failed.len())).collect();
        let expected: Vec<_> = (0..10).map(|sequence| (sequence, 100, 0)).collect();
        assert_eq!(seen, expected, "round {round}");
    }
    assert_eq!(client.counts("j1").await.active, 1000);
    let other = AddTasksRequest {
        job_id: "j1".into(),
        sequence: 1,
        tasks: vec![TaskSpec { command_line: "false".into(), ..spec("t0-0") }],
    };
    let request = kiln_grpc::with_account(tokio_stream::iter(vec![other]), ACCOUNT).unwrap();
    let mut answers = client.inner.clone().add_tasks(request).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap();
    assert_eq!(answer.failed[0].error.as_ref().unwrap().reason, "TaskExists");
}

#[tokio::test]
async fn bad_tasks_fail_by_themselves() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    let tasks = vec![spec("good"), spec("bad/id"), TaskSpec { command_line: String::new(), ..spec("empty") }];
    let request = AddTaskCollectionRequest { job_id: "j1".into(), tasks, ..Default::default() };
    let results = call!(client, add_task_collection, request).unwrap().results;
    let seen: Vec<_> =
        results.iter().map(|r| (r.task_id.as_str(), r.error.as_ref().map(|e| e.reason.as_str()))).collect();
    assert_eq!(
        seen,
        [("good", None), ("bad/id", Some("InvalidPropertyValue")), ("empty", Some("MissingRequiredProperty"))]
    );
    let request = AddTaskRequest { job_id: "none".into(), task: Some(spec("t")), ..Default::default() };
    assert_eq!(reason(call!(client, add_task, request).unwrap_err()), "JobNotFound");
    assert_eq!(reason(client.task("j1", "none").await.unwrap_err()), "TaskNotFound");
}

#[tokio::test]
async fn terminate_delete_and_reactivate() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    client.add("j1", spec("waits")).await;
    call!(client, terminate_task, terminate("waits")).unwrap();
    let task = client.task("j1", "waits").await.unwrap();
    assert_eq!(task.execution.unwrap().failure.unwrap().code, "TaskEnded");
    assert_eq!(reason(call!(client, terminate_task, terminate("waits")).unwrap_err()), "TaskCompleted");

    client.add("j1", spec("gone")).await;
    call!(client, delete_task, delete("gone")).unwrap();
    assert_eq!(reason(client.task("j1", "gone").await.unwrap_err()), "TaskNotFound");
    assert_eq!(reason(call!(client, reactivate_task, reactivate("gone")).unwrap_err()), "TaskNotFound");

    call!(client, reactivate_task, reactivate("waits")).unwrap();
    assert_eq!(reason(call!(client, reactivate_task, reactivate("waits")).unwrap_err()), "TaskNotCompleted");
    let mut agent = service.agent("n1", 1).await;
    let key = agent.assignments().await[0].key.clone().unwrap();
    agent.end(&key, 0).await;
    client.task_becomes("j1", "waits", TaskState::Completed).await;
    assert_eq!(reason(call!(client, reactivate_task, reactivate("waits")).unwrap_err()), "TaskSucceeded");
    call!(client, delete_task, delete("waits")).unwrap();
    let counts = client.counts("j1").await;
    assert_eq!((counts.active, counts.running, counts.completed), (0, 0, 0));
}

#[tokio::test]
async fn a_terminated_task_that_is_reactivated_waits_for_its_process_to_end() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    client.add("j1", spec("t")).await;
    let mut agent = service.agent("n1", 1).await;
    let mut other = service.agent("n2", 1).await;
    // Whoever got it.
    let (holder, free, key) = tokio::select! {
        given = agent.assignments() => (agent, other, given[0].key.clone().unwrap()),
        given = other.assignments() => (other, agent, given[0].key.clone().unwrap()),
    };
    let (mut holder, mut free) = (holder, free);
    call!(client, terminate_task, terminate("t")).unwrap();
    assert_eq!(client.task("j1", "t").await.unwrap().state(), TaskState::Completed);
    call!(client, reactivate_task, reactivate("t")).unwrap();
    assert_eq!(holder.stops().await, std::slice::from_ref(&key));
    // Something else does run on the free node meanwhile: it is not blocked.
    client.add("j1", spec("next")).await;
    let given = free.assignments().await;
    assert_eq!(given[0].key.as_ref().unwrap().task_id, "next");
    holder.stopped(&key).await;
    let again = holder.assignments().await[0].key.clone().unwrap();
    assert_eq!((again.task_id.as_str(), again.attempt), ("t", 2));
}

#[tokio::test]
async fn a_running_task_is_deleted_when_its_process_has_ended() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    client.add("j1", spec("t")).await;
    let mut agent = service.agent("n1", 1).await;
    let key = agent.assignments().await[0].key.clone().unwrap();
    let deleting = client.clone();
    let call = kiln_telemetry::spawn(async move { call!(deleting, delete_task, delete("t")) });
    assert_eq!(agent.stops().await, std::slice::from_ref(&key));
    assert!(client.task("j1", "t").await.is_ok());
    agent.stopped(&key).await;
    call.await.unwrap().unwrap();
    assert_eq!(reason(client.task("j1", "t").await.unwrap_err()), "TaskNotFound");
    client.add("j1", spec("t")).await;
    assert_eq!(agent.assignments().await[0].key.as_ref().unwrap().attempt, 1);
}

#[tokio::test]
async fn a_deletion_that_is_asked_for_again_while_it_is_carried_out_succeeds_each_time() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    client.add("j1", spec("t")).await;
    let mut agent = service.agent("n1", 1).await;
    let key = agent.assignments().await[0].key.clone().unwrap();
    let asked = DeleteTaskRequest { request_id: "the same".into(), ..delete("t") };
    let first = {
        let (client, asked) = (client.clone(), asked.clone());
        kiln_telemetry::spawn(async move { call!(client, delete_task, asked) })
    };
    assert_eq!(agent.stops().await, std::slice::from_ref(&key));
    // They come before, while and after it is done: as long as the first has no answer, and once more.
    let again = kiln_telemetry::spawn(async move {
        let mut calls = Vec::new();
        loop {
            let over = first.is_finished();
            let (client, asked) = (client.clone(), asked.clone());
            calls.push(kiln_telemetry::spawn(async move { call!(client, delete_task, asked) }));
            if over || calls.len() == 200 {
                break;
            }
            tokio::task::yield_now().await;
        }
        first.await.unwrap().unwrap();
        for call in calls {
            call.await.unwrap().unwrap();
        }
    });
    agent.stopped(&key).await;
    again.await.unwrap();
}

#[tokio::test]
async fn constraints_can_be_replaced_and_the_etag_stays_through_states() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    client.add("j1", spec("t")).await;
    let before = client.task("j1", "t").await.unwrap();
    let update = UpdateTaskRequest {
        job_id: "j1".into(),
        task_id: "t".into(),
        constraints: Some(TaskConstraints { max_task_retry_count: Some(1), ..Default::default() }),
        ..Default::default()
    };
    let updated = call!(client, update_task, update).unwrap().task.unwrap();
    assert_ne!(updated.etag, before.etag);
    let mut agent = service.agent("n1", 1).await;
    let assignment = agent.assignments().await.remove(0);
    assert_eq!(assignment.spec.unwrap().constraints.unwrap().max_task_retry_count, Some(1));
    agent.end(&assignment.key.unwrap(), 1).await;
    let key = agent.assignments().await[0].key.clone().unwrap();
    agent.end(&key, 0).await;
    let after = client.task_becomes("j1", "t", TaskState::Completed).await;
    assert_eq!(after.etag, updated.etag);
}

#[tokio::test]
async fn lists_page_by_key_and_the_environment_is_merged() {
    let service = Service::start().await;
    let client = service.client();
    let env =
        |name: &str, value: &str| kiln_proto::common::v1::EnvironmentSetting { name: name.into(), value: value.into() };
    let common_environment = vec![env("A", "job"), env("B", "job")];
    client.create_job("j1", JobSpec { common_environment, ..JobSpec::default() }).await;
    for at in 0..5 {
        client.add("j1", TaskSpec { environment: vec![env("B", "task")], ..spec(&format!("t{at}")) }).await;
    }
    let mut names = Vec::new();
    let mut token = String::new();
    loop {
        let request = ListTasksRequest { job_id: "j1".into(), page_size: 2, page_token: token, ..Default::default() };
        let page = call!(client, list_tasks, request).unwrap();
        names.extend(page.tasks.into_iter().map(|task| task.spec.unwrap().id));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["t0", "t1", "t2", "t3", "t4"]);
    let mut agent = service.agent("n1", 1).await;
    let assignment = agent.assignments().await.remove(0);
    let merged: Vec<_> = assignment.environment.iter().map(|e| (e.name.as_str(), e.value.as_str())).collect();
    assert_eq!(merged, [("A", "job"), ("B", "task")]);
}

#[tokio::test]
async fn events_tell_the_life_of_a_task_in_order() {
    use kiln_bus::{Bus, QueueSpec};
    use prost::Message;
    let service = Service::start().await;
    let queue = QueueSpec { name: "test".into(), bindings: vec!["job.#".into()], prefetch: 1000 };
    let mut subscription = service.bus.subscribe(&queue).await.unwrap();
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    client.add("j1", spec("t")).await;
    let mut agent = service.agent("n1", 1).await;
    let key = agent.assignments().await[0].key.clone().unwrap();
    agent.report(vec![started(key.clone()), ended(key, Some(0), EndCause::Exited)]).await;
    let mut seen = Vec::new();
    while seen.last().map(String::as_str) != Some("job.task.finished") {
        let delivery = subscription.next().await.unwrap();
        let batch = kiln_proto::events::v1::EventBatch::decode(delivery.message.body.clone()).unwrap();
        seen.extend(batch.events.iter().map(|event| event.r#type.clone()));
        delivery.ack().await.unwrap();
    }
    assert_eq!(
        seen,
        ["job.job.created", "job.task.added", "job.task.assigned", "job.task.started", "job.task.finished"]
    );
    eventually("done", || async { Some(()) }).await;
}

#[tokio::test]
async fn tasks_end_180_days_after_they_were_added() {
    use std::time::Duration;

    use job_svc::clock::{Clock, ManualClock};
    use kiln_time::Timestamp;
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    let began = Timestamp::now();
    let clock = ManualClock::new(began);
    let service = Service::start_by(Clock::Manual(clock.clone())).await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    client.add("j1", spec("runs")).await;
    client.add("j1", spec("waits")).await;
    client.create_job("over", JobSpec::default()).await;
    client.add("over", spec("stays")).await;
    let end = TerminateJobRequest { id: "over".into(), ..Default::default() };
    call!(client, terminate_job, end).unwrap();
    client.job_becomes("over", JobState::Completed).await;
    let mut agent = service.agent("n1", 1).await;
    let key = agent.assignments().await[0].key.clone().unwrap();
    clock.set(began.plus(DAY * 179));
    clock.set(began.plus(DAY * 181));
    assert_eq!(agent.stops().await, std::slice::from_ref(&key));
    for task in ["runs", "waits"] {
        let task = client.task_becomes("j1", task, TaskState::Completed).await;
        assert_eq!(task.execution.unwrap().failure.unwrap().code, "TaskEnded");
    }
    assert_eq!(client.task("over", "stays").await.unwrap().state(), TaskState::Active);
    // New ones are young.
    agent.stopped(&key).await;
    client.add("j1", spec("young")).await;
    assert_eq!(agent.assignments().await[0].key.as_ref().unwrap().task_id, "young");
}

/// Tasks a second from submission to the last recorded end, nothing executed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn tasks_per_second() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    let count = 20_000_usize;
    for node in 0..4 {
        let mut agent = service.agent(&format!("n{node}"), 256).await;
        kiln_telemetry::spawn(async move { agent.work().await });
    }
    let began = std::time::Instant::now();
    client.add_many("j1", count).await;
    let added = began.elapsed();
    client.completed("j1", count as i64).await;
    let all = began.elapsed();
    println!("{count} tasks: added in {added:?}, done in {all:?}, {:.0} a second", count as f64 / all.as_secs_f64());
}
