//! Tasks that wait for others, over the wire.

use kiln_proto::job::v1::*;

use crate::harness::*;

fn family() -> JobSpec {
    JobSpec { uses_task_dependencies: true, ..JobSpec::default() }
}

fn after(id: &str, parents: &[&str], ranges: &[(i32, i32)]) -> TaskSpec {
    let task_ids = parents.iter().map(|parent| (*parent).to_owned()).collect();
    let task_id_ranges = ranges.iter().map(|(start, end)| TaskIdRange { start: *start, end: *end }).collect();
    TaskSpec { depends_on: Some(TaskDependencies { task_ids, task_id_ranges }), ..spec(id) }
}

fn satisfied_by_failure(id: &str) -> TaskSpec {
    let default = Some(ExitOptions { job_action: 0, dependency_action: DependencyAction::Satisfy.into() });
    TaskSpec { exit_conditions: Some(ExitConditions { default, ..ExitConditions::default() }), ..spec(id) }
}

async fn explain(client: &Client, task: &str) -> (String, bool, Vec<String>) {
    let request = ExplainTaskRequest { job_id: "j1".into(), task_id: task.into() };
    let answer = call!(client, explain_task, request).unwrap();
    (answer.reason, answer.never, answer.details.into_iter().map(|detail| detail.value).collect())
}

async fn given(agent: &mut Agent) -> AttemptKey {
    let mut given = agent.assignments().await;
    assert_eq!(given.len(), 1, "{given:?}");
    given.remove(0).key.unwrap()
}

fn text(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

#[tokio::test]
async fn children_run_after_their_parents_also_over_a_restart() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", family()).await;
    // The children first.
    client.add("j1", after("last", &["MIDDLE", "1"], &[])).await;
    client.add("j1", after("middle", &[], &[(1, 3)])).await;
    assert_eq!(explain(&client, "middle").await, ("DependencyMissing".into(), false, text(&["1", "2", "3"])));
    for id in ["1", "002", "3"] {
        client.add("j1", spec(id)).await;
    }
    assert_eq!(explain(&client, "middle").await, ("DependencyOpen".into(), false, text(&["1", "2", "3"])));
    let mut agent = service.agent("n1", 1).await;
    for id in ["1", "002"] {
        let key = given(&mut agent).await;
        assert_eq!(key.task_id, id);
        agent.end(&key, 0).await;
        client.task_becomes("j1", id, TaskState::Completed).await;
    }
    let key = given(&mut agent).await;
    assert_eq!(key.task_id, "3");
    assert_eq!(explain(&client, "last").await, ("DependencyOpen".into(), false, text(&["middle"])));
    drop(agent);
    let service = service.crash_and_restart().await;
    let client = service.client();
    let view = AttemptView { key: Some(key.clone()), phase: AttemptPhase::Running.into() };
    let mut agent = service.agent_with("n1", "life-1", 1, vec![view]).await;
    agent.end(&key, 0).await;
    for id in ["middle", "last"] {
        let key = given(&mut agent).await;
        assert_eq!(key.task_id, id);
        agent.end(&key, 0).await;
    }
    client.completed("j1", 5).await;
}

#[tokio::test]
async fn a_failure_blocks_children_and_the_job_ends_without_them() {
    use kiln_bus::{Bus, QueueSpec};
    use prost::Message;
    let service = Service::start().await;
    let queue = QueueSpec { name: "test".into(), bindings: vec!["job.task.unschedulable".into()], prefetch: 100 };
    let mut subscription = service.bus.subscribe(&queue).await.unwrap();
    let client = service.client();
    client.create_job("j1", family()).await;
    client.add("j1", spec("fails")).await;
    client.add("j1", satisfied_by_failure("fails-well")).await;
    client.add("j1", after("child", &["fails"], &[])).await;
    client.add("j1", after("grandchild", &["child"], &[])).await;
    client.add("j1", after("other", &["fails-well"], &[])).await;
    let mut agent = service.agent("n1", 1).await;
    for (id, code) in [("fails", 3), ("fails-well", 3), ("other", 0)] {
        let key = given(&mut agent).await;
        assert_eq!(key.task_id, id);
        agent.end(&key, code).await;
    }
    client.completed("j1", 3).await;
    assert_eq!(explain(&client, "child").await, ("DependencyFailed".into(), true, text(&["fails"])));
    assert_eq!(explain(&client, "grandchild").await, ("DependencyFailed".into(), true, text(&["child"])));
    let mut told = Vec::new();
    while told.len() < 2 {
        let delivery = subscription.next().await.unwrap();
        let batch = kiln_proto::events::v1::EventBatch::decode(delivery.message.body.clone()).unwrap();
        told.extend(batch.events.into_iter().map(|event| event.subject));
        delivery.ack().await.unwrap();
    }
    assert_eq!(told, ["jobs/j1/tasks/child", "jobs/j1/tasks/grandchild"]);

    // Activated again, the parent may still come: the job goes on.
    let again = ReactivateTaskRequest { job_id: "j1".into(), task_id: "fails".into(), ..Default::default() };
    call!(client, reactivate_task, again).unwrap();
    let key = given(&mut agent).await;
    assert_eq!(explain(&client, "child").await, ("DependencyOpen".into(), false, text(&["fails"])));
    let update = UpdateJobRequest {
        id: "j1".into(),
        on_all_tasks_complete: OnAllTasksComplete::TerminateJob.into(),
        ..Default::default()
    };
    call!(client, update_job, update).unwrap();
    assert_eq!(client.job("j1").await.unwrap().state(), JobState::Active);
    agent.end(&key, 3).await;
    let job = client.job_becomes("j1", JobState::Completed).await;
    assert_eq!(job.terminate_reason, "AllTasksComplete");
    assert_eq!(client.task("j1", "grandchild").await.unwrap().state(), TaskState::Active);
}

#[tokio::test]
async fn a_blocked_job_ends_also_when_it_was_loaded_so() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", family()).await;
    client.add("j1", spec("fails")).await;
    client.add("j1", after("child", &["fails"], &[])).await;
    let mut agent = service.agent("n1", 1).await;
    let key = given(&mut agent).await;
    agent.end(&key, 1).await;
    client.task_becomes("j1", "fails", TaskState::Completed).await;
    let service = service.crash_and_restart().await;
    let client = service.client();
    let update = UpdateJobRequest {
        id: "j1".into(),
        on_all_tasks_complete: OnAllTasksComplete::TerminateJob.into(),
        ..Default::default()
    };
    let updated = || async { call!(client, update_job, update.clone()).ok() };
    kiln_testkit::eventually("the service", updated).await;
    client.job_becomes("j1", JobState::Completed).await;
}

#[tokio::test]
async fn circles_are_told_and_ending_one_of_them_frees_nobody() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", family()).await;
    client.add("j1", after("a", &["b"], &[])).await;
    client.add("j1", after("b", &["a"], &[])).await;
    assert_eq!(explain(&client, "a").await, ("DependencyCycle".into(), true, text(&["a", "b"])));
    let end = TerminateTaskRequest { job_id: "j1".into(), task_id: "b".into(), ..Default::default() };
    call!(client, terminate_task, end).unwrap();
    assert_eq!(explain(&client, "a").await, ("DependencyFailed".into(), true, text(&["b"])));
    let delete = DeleteTaskRequest { job_id: "j1".into(), task_id: "b".into(), ..Default::default() };
    call!(client, delete_task, delete).unwrap();
    assert_eq!(explain(&client, "a").await, ("DependencyMissing".into(), false, text(&["b"])));
    client.add("j1", spec("b")).await;
    let mut agent = service.agent("n1", 1).await;
    for id in ["b", "a"] {
        let key = given(&mut agent).await;
        assert_eq!(key.task_id, id);
        agent.end(&key, 0).await;
    }
    client.completed("j1", 2).await;
}

#[tokio::test]
async fn a_satisfied_parent_outlives_its_deletion_until_its_id_comes_again() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", family()).await;
    client.add("j1", spec("parent")).await;
    let mut agent = service.agent("n1", 1).await;
    let key = given(&mut agent).await;
    agent.end(&key, 0).await;
    client.task_becomes("j1", "parent", TaskState::Completed).await;
    let delete = DeleteTaskRequest { job_id: "j1".into(), task_id: "parent".into(), ..Default::default() };
    call!(client, delete_task, delete).unwrap();
    client.add("j1", after("child", &["parent"], &[])).await;
    let key = given(&mut agent).await;
    assert_eq!(key.task_id, "child");
    // This one is released, and has not started, when its parent comes again.
    client.add("j1", after("second", &["parent"], &[])).await;
    assert_eq!(explain(&client, "second").await.0, "NoFreeSlots");
    client.add("j1", spec("parent")).await;
    assert_eq!(explain(&client, "second").await, ("DependencyOpen".into(), false, text(&["parent"])));
    agent.end(&key, 0).await;
    for id in ["parent", "second"] {
        let key = given(&mut agent).await;
        assert_eq!(key.task_id, id);
        agent.end(&key, 0).await;
    }
    client.completed("j1", 3).await;
}

#[tokio::test]
async fn what_is_said_about_parents_is_checked() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("plain", JobSpec::default()).await;
    client.create_job("j1", family()).await;
    let add = |job_id: &str, task| AddTaskRequest { job_id: job_id.into(), task: Some(task), ..Default::default() };
    let many: Vec<(i32, i32)> = (0..1001).map(|at| (at, at)).collect();
    let long = "x".repeat(64);
    let ids: Vec<&str> = std::iter::repeat_n(long.as_str(), 1001).collect();
    for (job, task, expected) in [
        ("plain", after("t", &["a"], &[]), "TaskDependenciesNotSpecifiedOnJob"),
        ("j1", after("t", &["T"], &[]), "InvalidPropertyValue"),
        ("j1", after("7", &[], &[(1, 9)]), "InvalidPropertyValue"),
        ("j1", after("t", &[], &[(2, 1)]), "InvalidPropertyValue"),
        ("j1", after("t", &ids, &[]), "TaskDependencyListTooLong"),
        ("j1", after("t", &[], &many), "TaskDependencyRangesTooLong"),
    ] {
        assert_eq!(reason(call!(client, add_task, add(job, task)).unwrap_err()), expected);
    }
    // Naming nobody is no dependency.
    client.add("plain", after("t", &[], &[])).await;
}
