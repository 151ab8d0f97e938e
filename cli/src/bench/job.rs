//! Jobs of a benchmark, and streams of tasks into them.

use std::time::{Duration, Instant};

use anyhow::Context;
use kiln_client::Client;
use kiln_proto::job::v1::{AddTasksRequest, CountTasksRequest, CreateJobRequest, JobSpec, TaskCounts, TaskSpec};
use kiln_proto::pool::v1::{CreatePoolRequest, ListNodesRequest, NodeState, PoolSpec};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::failure::Outcome;
use crate::transfer::request_id;

/// Tasks of one message of a stream.
pub const MESSAGE: usize = 1_000;
/// Longest and shortest pause between two looks at the counts of a job.
const LOOK: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(200));
/// Nothing has moved for so long: the benchmark is given up.
const STUCK: Duration = Duration::from_secs(120);

/// An id that no earlier run has used.
pub fn new_id(prefix: &str) -> String {
    format!("{prefix}-{}", &request_id()[..13])
}

/// Makes a job on `pool`; gives its id.
///
/// # Errors
/// What the service said.
pub async fn create(client: &Client, pool: &str, priority: i32) -> Outcome<String> {
    let id = new_id("bench");
    let spec = JobSpec { pool_id: pool.to_owned(), priority, ..JobSpec::default() };
    let request = CreateJobRequest { request_id: request_id(), id: id.clone(), spec: Some(spec) };
    client.jobs().create_job(request).await?;
    Ok(id)
}

/// Makes a pool of real nodes and waits until all are idle; gives its id.
///
/// # Errors
/// What the service said, or if a node does not come.
pub async fn create_pool(client: &Client, nodes: usize, slots: i32) -> Outcome<String> {
    let id = new_id("bench");
    let spec = PoolSpec {
        vm_size: "local".to_owned(),
        target_dedicated_nodes: i32::try_from(nodes).context("number of nodes")?,
        task_slots_per_node: slots,
        ..PoolSpec::default()
    };
    client
        .pools()
        .create_pool(CreatePoolRequest { request_id: request_id(), id: id.clone(), spec: Some(spec) })
        .await?;
    let began = Instant::now();
    loop {
        let list = ListNodesRequest { pool_id: id.clone(), ..ListNodesRequest::default() };
        let found = client.pools().list_nodes(list).await?.into_inner().nodes;
        if found.iter().filter(|node| node.state() == NodeState::Idle).count() >= nodes.min(found.len().max(1)) {
            return Ok(id);
        }
        if began.elapsed() > STUCK {
            return Err(anyhow::anyhow!("the nodes of the pool are not idle after {STUCK:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A task of a benchmark.
pub fn task(number: usize, command_line: &str, slots: i32) -> TaskSpec {
    TaskSpec {
        id: format!("t{number}"),
        command_line: command_line.to_owned(),
        required_slots: slots,
        ..TaskSpec::default()
    }
}

/// Adds `count` tasks by one stream. Gives how long it took until each message
/// of [`MESSAGE`] tasks was acknowledged.
///
/// # Errors
/// What the service said, or if it refused a task.
pub async fn submit(client: &Client, job: &str, count: usize, command: &str, slots: i32) -> Outcome<Vec<Duration>> {
    let (sender, receiver) = mpsc::channel(8);
    let began = Instant::now();
    let mut first = job.to_owned();
    let command = command.to_owned();
    let feed = kiln_telemetry::spawn(async move {
        for (sequence, start) in (0..count).step_by(MESSAGE).enumerate() {
            let numbers = start..count.min(start + MESSAGE);
            let tasks = numbers.map(|number| task(number, &command, slots)).collect();
            let message = AddTasksRequest { job_id: std::mem::take(&mut first), sequence: sequence as u64, tasks };
            if sender.send(message).await.is_err() {
                return;
            }
        }
    });
    let mut answers = client.jobs().add_tasks(ReceiverStream::new(receiver)).await?.into_inner();
    let mut times = Vec::with_capacity(count / MESSAGE + 1);
    let mut added = 0;
    while let Some(answer) = answers.next().await {
        let answer = answer?;
        if let Some(refused) = answer.failed.first() {
            return Err(anyhow::anyhow!("task {} was refused: {:?}", refused.task_id, refused.error).into());
        }
        added += usize::try_from(answer.added).unwrap_or(0);
        times.push(began.elapsed());
    }
    feed.await.context("feeding the stream")?;
    if added != count {
        return Err(anyhow::anyhow!("{added} of {count} tasks were added").into());
    }
    Ok(times)
}

/// The counts of a job.
///
/// # Errors
/// What the service said.
pub async fn counts(client: &Client, job: &str) -> Outcome<TaskCounts> {
    let request = CountTasksRequest { job_id: job.to_owned() };
    Ok(client.jobs().count_tasks(request).await?.into_inner().tasks.unwrap_or_default())
}

/// Waits until all tasks of a job have succeeded, looking rarely at first and
/// often near the end.
///
/// # Errors
/// If a task fails, or nothing moves any more.
pub async fn wait(client: &Client, job: &str, count: usize) -> Outcome {
    let began = Instant::now();
    let (mut moved, mut last) = (began, 0);
    loop {
        let counts = counts(client, job).await?;
        if counts.failed > 0 {
            return Err(anyhow::anyhow!("{} tasks of {job} failed", counts.failed).into());
        }
        let done = usize::try_from(counts.succeeded).unwrap_or(0);
        if done >= count {
            return Ok(());
        }
        if done > last {
            (moved, last) = (Instant::now(), done);
        } else if moved.elapsed() > STUCK {
            return Err(anyhow::anyhow!("{done} of {count} tasks are done and no more follow").into());
        }
        let left = began.elapsed().mul_f64((count - done) as f64 / done.max(1) as f64);
        tokio::time::sleep((left / 4).clamp(LOOK.0, LOOK.1)).await;
    }
}
