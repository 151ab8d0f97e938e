//! Pools, jobs and tasks of tests.

use std::collections::BTreeMap;
use std::time::Duration;

use kiln_client::Client;
use kiln_error::Error;
use kiln_proto::common::v1::EnvironmentSetting;
use kiln_proto::job::v1::{
    AddTasksRequest, Attempt, CountTasksRequest, CreateJobRequest, GetTaskRequest, JobSpec, ListAttemptsRequest, Task,
    TaskCounts, TaskSpec, TaskState,
};
use kiln_proto::monitor::v1::{ListEventsRequest, LoggedEvent};
use kiln_proto::pool::v1::{CreatePoolRequest, GetPoolRequest, ListNodesRequest, Node, NodeState, PoolSpec};

use crate::until;

/// Tasks per message when many are added.
const BATCH: usize = 500;

/// A new request id.
pub fn request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Makes a pool and waits until its nodes are idle.
pub async fn pool(client: &Client, id: &str, nodes: i32, slots: i32) {
    let spec = PoolSpec {
        vm_size: "local".to_owned(),
        target_dedicated_nodes: nodes,
        task_slots_per_node: slots,
        ..Default::default()
    };
    let request = CreatePoolRequest { request_id: request_id(), id: id.to_owned(), spec: Some(spec) };
    // Of several replicas of pool-svc one serves; until it does, the others say so.
    until("the pool is made", Duration::from_secs(60), async || {
        match client.pools().create_pool(request.clone()).await {
            Err(status) if status.code() == tonic::Code::Unavailable => None,
            answer => Some(answer.unwrap()),
        }
    })
    .await;
    until("the nodes are idle", Duration::from_secs(60), async || {
        let found = self::nodes(client, id).await;
        let idle = found.iter().filter(|node| node.state() == NodeState::Idle).count();
        (idle == usize::try_from(nodes).unwrap()).then_some(())
    })
    .await;
}

/// The nodes of a pool.
pub async fn nodes(client: &Client, pool_id: &str) -> Vec<Node> {
    let request = ListNodesRequest { pool_id: pool_id.to_owned(), ..Default::default() };
    client.pools().list_nodes(request).await.unwrap().into_inner().nodes
}

/// Makes a job whose tasks see `environment`.
pub async fn job(client: &Client, id: &str, pool_id: &str, environment: &[(&str, &str)]) {
    let common_environment = environment
        .iter()
        .map(|(name, value)| EnvironmentSetting { name: (*name).to_owned(), value: (*value).to_owned() })
        .collect();
    let spec = JobSpec { pool_id: pool_id.to_owned(), common_environment, ..Default::default() };
    let request = CreateJobRequest { request_id: request_id(), id: id.to_owned(), spec: Some(spec) };
    Box::pin(client.jobs().create_job(request)).await.unwrap();
}

/// A task that runs `script` with the shell.
pub fn shell_task(id: &str, script: &str) -> TaskSpec {
    assert!(!script.contains('\''), "the script is quoted with '");
    TaskSpec { id: id.to_owned(), command_line: format!("/bin/sh -c '{script}'"), ..Default::default() }
}

/// Adds tasks as a stream; all must be accepted.
pub async fn add_tasks(client: &Client, job_id: &str, tasks: Vec<TaskSpec>) {
    let messages: Vec<_> = (1..)
        .zip(tasks.chunks(BATCH))
        .map(|(sequence, tasks)| AddTasksRequest { job_id: job_id.to_owned(), sequence, tasks: tasks.to_vec() })
        .collect();
    let mut answers = client.jobs().add_tasks(tokio_stream::iter(messages)).await.unwrap().into_inner();
    while let Some(answer) = answers.message().await.unwrap() {
        assert_eq!(answer.failed, [], "refused tasks");
    }
}

/// The counts of a job, or `None` while the server does not answer.
pub async fn counts(client: &Client, job_id: &str) -> Option<TaskCounts> {
    let request = CountTasksRequest { job_id: job_id.to_owned() };
    client.jobs().count_tasks(request).await.ok()?.into_inner().tasks
}

/// Waits until `done` says so of the job's counts.
pub async fn until_counts(
    client: &Client,
    job_id: &str,
    limit: Duration,
    done: impl Fn(&TaskCounts) -> bool,
) -> TaskCounts {
    until("the tasks get there", limit, async || counts(client, job_id).await.filter(&done)).await
}

/// One task.
pub async fn task(client: &Client, job_id: &str, task_id: &str) -> Task {
    let request = GetTaskRequest { job_id: job_id.to_owned(), task_id: task_id.to_owned(), ..Default::default() };
    client.jobs().get_task(request).await.unwrap().into_inner().task.unwrap()
}

/// Runs one task to its end.
pub async fn run_task(client: &Client, job_id: &str, spec: TaskSpec) -> Task {
    let id = spec.id.clone();
    add_tasks(client, job_id, vec![spec]).await;
    until("the task completes", Duration::from_secs(60), async || {
        let task = task(client, job_id, &id).await;
        (task.state() == TaskState::Completed).then_some(task)
    })
    .await
}

/// All attempts of a task.
pub async fn attempts(client: &Client, job_id: &str, task_id: &str) -> Vec<Attempt> {
    let request = ListAttemptsRequest { job_id: job_id.to_owned(), task_id: task_id.to_owned(), ..Default::default() };
    client.jobs().list_attempts(request).await.unwrap().into_inner().attempts
}

/// The events of the account's log with this beginning of subject and type.
pub async fn events(client: &Client, subject_prefix: &str, type_prefix: &str) -> Vec<LoggedEvent> {
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListEventsRequest {
            subject_prefix: subject_prefix.to_owned(),
            type_prefix: type_prefix.to_owned(),
            page_size: 1000,
            page_token,
        };
        let page = client.monitor().list_events(request).await.unwrap().into_inner();
        found.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return found;
        }
    }
}

/// How often each subject occurs among `events`.
pub fn by_subject(events: &[LoggedEvent]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for event in events.iter().filter_map(|logged| logged.event.as_ref()) {
        *counts.entry(event.subject.clone()).or_default() += 1;
    }
    counts
}

/// Waits until a pool is gone.
pub async fn until_pool_gone(client: &Client, id: &str) {
    until("the pool is gone", Duration::from_secs(60), async || {
        let answer = client.pools().get_pool(GetPoolRequest { id: id.to_owned(), precondition: None }).await;
        answer.map_err(Error::from).err().filter(|error| error.reason() == "PoolNotFound").map(|_| ())
    })
    .await;
}
