//! How long a pool stands still when the replica of job-svc that schedules it is killed: from the kill until a task that
//! is submitted at that moment has run.

use std::time::{Duration, Instant};

use kiln_proto::job::v1::{AddTaskRequest, GetTaskRequest, TaskState};
use serde_json::json;

use super::Surroundings;
use super::broker::Broker;
use super::database::Database;
use crate::processes::{Deployment, Options};
use crate::work::{self, request_id, shell_task};

const JOB: &str = "takeover";
const POOL: &str = "p";
/// Pause before something is asked again: how exact the figures are.
const AGAIN: Duration = Duration::from_millis(10);
/// An answer that takes longer is asked for again: its replica may be the one that was killed.
const ANSWER: Duration = Duration::from_secs(2);
/// Nothing takes so long, unless it never comes.
const LIMIT: Duration = Duration::from_secs(120);

/// Kills the owner so many times, with leases as they are without settings; gives median and maximum as JSON. `None` if
/// there was nothing to measure.
pub async fn measure(times: usize, replicas: usize) -> Option<serde_json::Value> {
    let host = Deployment::free_host();
    let broker = Broker::start(&host).await;
    let database = Database::start(&host, false).await;
    let options =
        Options { amqp_url: Some(broker.url()), database_url: Some(database.url()), replicas, ..Options::default() };
    let mut deployment = Deployment::start_with(&host, options).await;
    let client = deployment.client();
    work::pool(&client, POOL, 2, 2).await;
    work::job(&client, JOB, POOL, &[]).await;
    let around = Surroundings {
        agents: [Vec::new(), Vec::new()],
        amqp: super::proxy::Proxy::start(&host, 7474, &host, 7475).await,
        broker: Some(broker),
        database: Some(database),
    };
    let mut seconds = Vec::with_capacity(times);
    for number in 0..times {
        run(&client, &format!("before-{number}")).await;
        let owner = around.owner(&deployment, POOL)?;
        let begin = Instant::now();
        deployment.kill_9("job-svc", owner).await;
        run(&client, &format!("after-{number}")).await;
        let took = begin.elapsed().as_secs_f64();
        eprintln!("{number:>3}  replica {owner} killed, {took:.2} s");
        seconds.push(took);
        deployment.start_again("job-svc", owner);
        deployment.until_ready().await;
    }
    deployment.stop().await;
    let Surroundings { broker, database, .. } = around;
    if let Some(broker) = broker {
        broker.stop().await;
    }
    if let Some(database) = database {
        database.stop().await;
    }
    seconds.sort_by(f64::total_cmp);
    let round = |value: &f64| (value * 1000.0).round() / 1000.0;
    let median = seconds.get(seconds.len() / 2)?;
    Some(json!({
        "kills": times,
        "replicas": replicas,
        "median_seconds": round(median),
        "max_seconds": round(seconds.last()?),
        "seconds": seconds.iter().map(round).collect::<Vec<_>>(),
    }))
}

/// Runs one task, whatever becomes of single calls.
async fn run(client: &kiln_client::Client, id: &str) {
    let task = Some(shell_task(id, "true"));
    let add = AddTaskRequest { request_id: request_id(), job_id: JOB.to_owned(), task };
    let (job_id, task_id) = (JOB.to_owned(), id.to_owned());
    let get = GetTaskRequest { job_id, task_id, ..GetTaskRequest::default() };
    let begin = Instant::now();
    let mut added = false;
    loop {
        assert!(begin.elapsed() < LIMIT, "task {id} has not run within {LIMIT:?}");
        if !added {
            added = matches!(tokio::time::timeout(ANSWER, client.jobs().add_task(add.clone())).await, Ok(Ok(_)));
        } else if let Ok(Ok(answer)) = tokio::time::timeout(ANSWER, client.jobs().get_task(get.clone())).await
            && answer.into_inner().task.is_some_and(|task| task.state() == TaskState::Completed)
        {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}
