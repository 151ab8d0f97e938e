//! Tasks of several instances and tasks with resources, over the wire.

use kiln_proto::common::v1::{ExecutionResult, Resources};
use kiln_proto::job::v1::*;
use kiln_testkit::eventually;

use crate::harness::*;

const MEBI: i64 = 1 << 20;

fn gang(id: &str, instances: i32, retries: i32) -> TaskSpec {
    let settings = MultiInstanceSettings {
        number_of_instances: instances,
        coordination_command_line: "true".into(),
        ..MultiInstanceSettings::default()
    };
    let constraints = TaskConstraints { max_task_retry_count: Some(retries), ..TaskConstraints::default() };
    TaskSpec { multi_instance: Some(settings), constraints: Some(constraints), ..spec(id) }
}

async fn node(service: &Service, name: &str, status: WorkerStatus, attempts: Vec<AttemptView>) -> Agent {
    let hello = WorkerHello {
        account: ACCOUNT.into(),
        pool_id: "p1".into(),
        node_id: name.into(),
        incarnation: "life-1".into(),
        status: Some(status),
        attempts,
        ip_address: format!("10.0.0.{}", &name[1..]),
        stream: 0,
    };
    let mut agent = eventually("a stream", || async { service.connect(name, hello.clone()).await.ok() }).await;
    let first = agent.next().await;
    assert!(matches!(first, work_down::Message::Welcome(_)), "{first:?}");
    agent
}

fn ready(key: &AttemptKey) -> AttemptReport {
    AttemptReport { key: Some(key.clone()), what: Some(attempt_report::What::Ready(AttemptReady {})) }
}

/// The one assignment of each, the primary's agent first.
async fn instances(agents: Vec<Agent>) -> Vec<(Agent, Assignment)> {
    let mut placed = Vec::new();
    for mut agent in agents {
        let assignment = agent.assignments().await.remove(0);
        placed.push((agent, assignment));
    }
    placed.sort_by_key(|(_, assignment)| assignment.instance.as_ref().map(|instance| instance.number));
    placed
}

async fn proceed(agent: &mut Agent) -> Vec<AttemptKey> {
    loop {
        if let work_down::Message::Proceed(proceed) = agent.next().await {
            return proceed.attempts;
        }
    }
}

async fn subtasks(client: &Client) -> Vec<Subtask> {
    let request = ListSubtasksRequest { job_id: "j1".into(), task_id: "t".into() };
    call!(client, list_subtasks, request).unwrap().subtasks
}

#[tokio::test]
async fn instances_meet_go_on_together_and_outlive_the_service() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    client.add("j1", gang("t", 2, 0)).await;
    let n1 = node(&service, "n1", status(1, true), Vec::new()).await;
    let explain = ExplainTaskRequest { job_id: "j1".into(), task_id: "t".into() };
    let why = call!(client, explain_task, explain).unwrap();
    assert_eq!((why.reason.as_str(), why.never), ("TooFewNodes", false));
    let n2 = node(&service, "n2", status(1, true), Vec::new()).await;
    let mut placed = instances(vec![n1, n2]).await;
    let keys: Vec<AttemptKey> = placed.iter().map(|(_, given)| given.key.clone().unwrap()).collect();
    for (at, (_, given)) in placed.iter().enumerate() {
        let instance = given.instance.as_ref().unwrap();
        assert_eq!((instance.number as usize, keys[at].instance as usize), (at, at));
        let mut hosts: Vec<_> = instance.hosts.iter().map(|host| host.ip_address.as_str()).collect();
        hosts.sort_unstable();
        assert_eq!(hosts, ["10.0.0.1", "10.0.0.2"]);
    }
    let names: Vec<String> =
        placed[0].1.instance.as_ref().unwrap().hosts.iter().map(|host| host.node_id.clone()).collect();
    placed[1].0.report(vec![started(keys[1].clone()), ready(&keys[1])]).await;
    placed[0].0.report(vec![started(keys[0].clone()), ready(&keys[0])]).await;
    assert_eq!(proceed(&mut placed[0].0).await, [keys[0].clone()]);
    let listed = subtasks(&client).await;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].id, listed[0].state()), (1, SubtaskState::Running));
    assert_eq!(listed[0].node.as_ref().unwrap().node_id, names[1]);
    // The service dies; both agents come back with what they have.
    let service = service.crash_and_restart().await;
    let client = service.client();
    let view = |at: usize| vec![AttemptView { key: Some(keys[at].clone()), phase: AttemptPhase::Running.into() }];
    let mut first = node(&service, &names[0], status(1, true), view(0)).await;
    let mut second = node(&service, &names[1], status(1, true), view(1)).await;
    second.report(vec![ready(&keys[1])]).await;
    first.end(&keys[0], 0).await;
    assert_eq!(first.acks().await, [keys[0].clone()]);
    assert_eq!(second.stops().await, [keys[1].clone()]);
    let task = client.task_becomes("j1", "t", TaskState::Completed).await;
    assert_eq!((task.attempt, task.execution.unwrap().result()), (1, ExecutionResult::Success));
    // The second node is not free before the instance there has gone.
    client.add("j1", gang("u", 2, 0)).await;
    assert_eq!(client.task("j1", "u").await.unwrap().state(), TaskState::Active);
    second.stopped(&keys[1]).await;
    client.task_becomes("j1", "u", TaskState::Running).await;
    let listed = subtasks(&client).await;
    assert_eq!((listed[0].state(), listed[0].exit_code), (SubtaskState::Completed, Some(0)));
    assert_eq!(listed[0].result(), ExecutionResult::Success);
}

#[tokio::test]
async fn one_instance_that_fails_takes_the_attempt_with_it() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    client.add("j1", gang("t", 2, 1)).await;
    let n1 = node(&service, "n1", status(1, true), Vec::new()).await;
    let n2 = node(&service, "n2", status(1, true), Vec::new()).await;
    let mut placed = instances(vec![n1, n2]).await;
    for attempt in 1..=2 {
        let keys: Vec<AttemptKey> = placed.iter().map(|(_, given)| given.key.clone().unwrap()).collect();
        assert!(keys.iter().all(|key| key.attempt == attempt));
        placed[1].0.end(&keys[1], 7).await;
        assert_eq!(placed[0].0.stops().await, [keys[0].clone()]);
        placed[0].0.stopped(&keys[0]).await;
        if attempt == 1 {
            placed = instances(placed.into_iter().map(|(agent, _)| agent).collect()).await;
        }
    }
    let task = client.task_becomes("j1", "t", TaskState::Completed).await;
    let execution = task.execution.unwrap();
    assert_eq!((execution.exit_code, execution.retry_count, task.attempt), (Some(7), 1, 2));
    let listed = subtasks(&client).await;
    assert_eq!((listed[0].exit_code, listed[0].result()), (Some(7), ExecutionResult::Failure));
    let request = ListAttemptsRequest { job_id: "j1".into(), task_id: "t".into(), ..Default::default() };
    assert_eq!(call!(client, list_attempts, request).unwrap().attempts.len(), 2);
}

#[tokio::test]
async fn resources_are_shared_out_and_what_never_fits_is_told() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    let memory = |mebi: i64| Some(Resources { memory_bytes: mebi * MEBI, ..Resources::default() });
    for (id, mebi) in [("huge", 200), ("t1", 60), ("t2", 60)] {
        client.add("j1", TaskSpec { resources: memory(mebi), ..spec(id) }).await;
    }
    let limited = WorkerStatus { resources: memory(100), ..status(4, true) };
    let explain = |task: &str| ExplainTaskRequest { job_id: "j1".into(), task_id: task.into() };
    let _agent = node(&service, "n1", limited, Vec::new()).await;
    let why = eventually("the node", || async {
        let why = call!(client, explain_task, explain("huge")).unwrap();
        (why.reason == "ResourcesTooLarge").then_some(why)
    })
    .await;
    assert!(why.never);
    let details: Vec<_> = why.details.iter().map(|detail| (detail.name.as_str(), detail.value.as_str())).collect();
    let (needed, largest) = ((200 * MEBI).to_string(), (100 * MEBI).to_string());
    assert_eq!(details, [("resource", "memoryBytes"), ("needed", &needed), ("largest", &largest)]);
    let waiting = |why: &ExplainTaskResponse| why.reason == "NoFreeResources";
    let states = eventually("one of two runs", || async {
        let (one, two) = (client.task("j1", "t1").await.unwrap(), client.task("j1", "t2").await.unwrap());
        let running = [one.state(), two.state()].iter().filter(|state| **state == TaskState::Running).count();
        (running == 1).then_some([one, two])
    })
    .await;
    let waits = states.iter().find(|task| task.state() == TaskState::Active).unwrap();
    let why = call!(client, explain_task, explain(&waits.spec.as_ref().unwrap().id)).unwrap();
    assert!(waiting(&why) && !why.never, "{why:?}");
}
