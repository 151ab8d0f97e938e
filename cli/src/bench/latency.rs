//! `kiln bench latency`

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use kiln_client::Client;
use kiln_proto::job::v1::{AddTaskRequest, GetTaskRequest, TaskState};
use serde_json::json;

use super::figures::{Report, percentile};
use super::nodes::{Fleet, Plan};
use super::server::Server;
use super::{floor, job};
use crate::connect::ConnectArgs;
use crate::failure::{Failure, Outcome};
use crate::follow::Follow;
use crate::transfer::request_id;

/// Tasks that are run before anything is measured.
const WARM_UP: usize = 20;
/// The queue's tasks need all slots of the node, of which this one is taken.
const NODE_SLOTS: i32 = 2;
/// How long each load of a sweep lasts.
const SWEEP: Duration = Duration::from_secs(5);

/// Arguments of `kiln bench latency`.
#[derive(Debug, Args)]
pub struct LatencyArgs {
    /// Tasks of one round, one after the other
    #[arg(long, default_value_t = 200)]
    count: usize,
    /// Rounds
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Tasks of lower priority that wait meanwhile
    #[arg(long, default_value_t = 0)]
    queued: usize,
    /// How the end of a task is learnt
    #[arg(long, value_enum, default_value_t)]
    by: By,
    /// Instead: latency on simulated nodes at these loads, in tasks a second
    #[arg(long, value_delimiter = ',', value_name = "RATE,...")]
    load: Vec<u64>,
}

/// How a client learns that its task has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum By {
    /// From the event, as `kiln run` does
    #[default]
    Watch,
    /// By asking for the task every millisecond
    Poll,
}

/// Measures.
///
/// # Errors
/// If a task is lost or fails, or the server does.
pub async fn run(connect: &ConnectArgs, args: LatencyArgs) -> Outcome<Report> {
    let server = Server::new(connect).await?;
    let report = if args.load.is_empty() { one_by_one(&server, &args).await? } else { sweep(&server, &args).await? };
    server.stop().await?;
    Ok(report)
}

async fn one_by_one(server: &Server, args: &LatencyArgs) -> Outcome<Report> {
    let client = server.client()?;
    let mut report = Report::new("latency");
    report.fact("count", args.count);
    report.fact("queued", args.queued);
    report.fact("by", format!("{:?}", args.by).to_lowercase());
    report.fact("floor", "one process of the same kind, alone");
    let pool = job::create_pool(&client, 1, NODE_SLOTS).await?;
    let id = job::create(&client, &pool, 100).await?;
    let queue = match args.queued {
        0 => None,
        count => Some(queue(&client, &pool, count).await?),
    };
    let mut single = Single::new(&client, &id, args.by);
    for _ in 0..WARM_UP {
        single.run().await?;
    }
    // Stays to the end, as in `tasks`.
    let floors = tempfile::tempdir_in(server.scratch()).map_err(anyhow::Error::new)?;
    for round in 0..args.repeat {
        let dir = floors.path().join(round.to_string());
        let count = args.count as u64;
        let alone = tokio::task::spawn_blocking(move || floor::run(count, 1, &dir, floor::Work::Task))
            .await
            .map_err(anyhow::Error::new)?
            .map_err(anyhow::Error::new)?;
        let mut times = Vec::with_capacity(args.count);
        for _ in 0..args.count {
            times.push(single.run().await?.as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        let part = |part| percentile(&times, part).unwrap_or_default();
        let floor_ms = alone.as_secs_f64() * 1e3 / args.count.max(1) as f64;
        report.round(vec![
            ("median_ms", part(0.5)),
            ("p90_ms", part(0.9)),
            ("p99_ms", part(0.99)),
            ("floor_ms", floor_ms),
            ("ratio_to_floor", part(0.5) / floor_ms),
        ]);
    }
    if let Some(queue) = queue {
        // Else it was no queue that was measured.
        let waiting = usize::try_from(job::counts(&client, &queue).await?.active).unwrap_or(0);
        if waiting != args.queued {
            return Err(anyhow::anyhow!("{waiting} of {} tasks are still queued", args.queued).into());
        }
    }
    Ok(report)
}

/// Fills the queue behind; gives its job: one task holds a slot of the node, all others need
/// both, so that they wait for as long as the first one runs.
async fn queue(client: &Client, pool: &str, count: usize) -> Outcome<String> {
    let holder = job::create(client, pool, 1000).await?;
    job::submit(client, &holder, 1, "sleep 86400", 1).await?;
    loop {
        if job::counts(client, &holder).await?.running == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let queue = job::create(client, pool, -1000).await?;
    job::submit(client, &queue, count, "true", NODE_SLOTS).await?;
    Ok(queue)
}

/// Submits a task and waits for its end.
struct Single {
    client: Client,
    job: String,
    by: By,
    follow: Follow,
    number: usize,
}

impl Single {
    fn new(client: &Client, job: &str, by: By) -> Self {
        let follow = Follow::job(client, job, false);
        Self { client: client.clone(), job: job.to_owned(), by, follow, number: 0 }
    }

    async fn run(&mut self) -> Outcome<Duration> {
        self.number += 1;
        let task = job::task(self.number, "true", 1);
        let id = task.id.clone();
        let began = Instant::now();
        let add = AddTaskRequest { request_id: request_id(), job_id: self.job.clone(), task: Some(task) };
        self.client.jobs().add_task(add).await?;
        match self.by {
            By::Watch => self.watch(&id).await?,
            By::Poll => self.poll(&id).await?,
        }
        Ok(began.elapsed())
    }

    async fn watch(&mut self, id: &str) -> Outcome {
        let subject = format!("jobs/{}/tasks/{id}", self.job);
        loop {
            let Some(events) = self.follow.next().await? else {
                return Err(anyhow::anyhow!("the events of the job have ended").into());
            };
            if events.iter().any(|event| event.r#type == "job.task.finished" && event.subject == subject) {
                return Ok(());
            }
        }
    }

    async fn poll(&self, id: &str) -> Outcome {
        loop {
            let get = GetTaskRequest { job_id: self.job.clone(), task_id: id.to_owned(), ..GetTaskRequest::default() };
            let task = self.client.jobs().get_task(get).await?.into_inner().task.unwrap_or_default();
            if task.state() == TaskState::Completed {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Latency from submission to the durable end, at given rates of single calls.
async fn sweep(server: &Server, args: &LatencyArgs) -> Outcome<Report> {
    if args.queued > 0 {
        return Err(Failure::Usage("--load has no queue behind it: leave out --queued".to_owned()));
    }
    let plan = Plan { pool: job::new_id("sim"), nodes: 16, slots: 64, heartbeats: true };
    let fleet = Fleet::start(&server.inside()?, &plan).await?;
    fleet.seen.keep_ends();
    let client = server.client()?;
    let mut report = Report::new("latency_under_load");
    report.fact("nodes", plan.nodes);
    report.fact("slots", plan.slots);
    let mut curve = Vec::new();
    for rate in &args.load {
        let id = job::create(&client, &plan.pool, 0).await?;
        let times = offer(&client, &fleet, &id, *rate).await?;
        let part = |part| percentile(&times, part).unwrap_or_default();
        curve.push(json!({
            "offered_per_second": rate, "median_ms": part(0.5), "p90_ms": part(0.9), "p99_ms": part(0.99),
        }));
    }
    report.fact("curve", curve);
    Ok(report)
}

/// One call for each task, at even intervals, whether or not earlier ones have
/// been answered. Gives the sorted latencies in milliseconds.
async fn offer(client: &Client, fleet: &Fleet, job: &str, rate: u64) -> Outcome<Vec<f64>> {
    let count = usize::try_from(rate * SWEEP.as_secs()).unwrap_or(usize::MAX);
    let done = fleet.seen.acknowledged() + count;
    let began = tokio::time::Instant::now();
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..count {
        let due = began + Duration::from_secs_f64(number as f64 / rate.max(1) as f64);
        tokio::time::sleep_until(due).await;
        let task = job::task(number, "true", 1);
        let key = format!("{job}/{}", task.id);
        let add = AddTaskRequest { request_id: String::new(), job_id: job.to_owned(), task: Some(task) };
        let mut jobs = client.jobs();
        calls.spawn(async move { jobs.add_task(add).await.map(|_| (key, due)) });
    }
    let mut begins = Vec::with_capacity(count);
    while let Some(call) = calls.join_next().await {
        begins.push(call.map_err(anyhow::Error::new)??);
    }
    fleet.seen.until(|seen| seen.acknowledged() >= done).await?;
    let ends = fleet.seen.take_ends();
    let took = |(key, due): &(String, tokio::time::Instant)| {
        ends.get(key).map(|end| end.saturating_duration_since(due.into_std()).as_secs_f64() * 1e3)
    };
    let mut times: Vec<f64> = begins.iter().filter_map(took).collect();
    times.sort_by(f64::total_cmp);
    Ok(times)
}
