//! `kiln bench tasks`

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;

use super::figures::{Report, Round};
use super::nodes::{Fleet, Plan};
use super::server::Server;
use super::{floor, job, sqlite_floor, usage};
use crate::connect::ConnectArgs;
use crate::failure::Outcome;

/// Threads of job-svc in `kiln up`.
pub const JOB_SVC: [&str; 2] = ["job-svc", "write-job-svc"];
/// Tasks that are run before anything is measured.
const WARM_UP: usize = 200;

/// Arguments of `kiln bench tasks`.
#[derive(Debug, Args)]
pub struct TasksArgs {
    /// Tasks of one round
    #[arg(long, default_value_t = 10_000)]
    count: usize,
    /// Nodes
    #[arg(long, default_value_t = 2)]
    nodes: usize,
    /// Slots of each node
    #[arg(long, default_value_t = 1)]
    slots: i32,
    /// Nodes that start no process
    #[arg(long)]
    simulated: bool,
    /// Rounds
    #[arg(long, default_value_t = 5)]
    repeat: usize,
}

/// Measures.
///
/// # Errors
/// If a task is lost or fails, or the server does.
pub async fn run(connect: &ConnectArgs, args: TasksArgs) -> Outcome<Report> {
    let server = Server::new(connect).await?;
    let client = server.client()?;
    let (pool, fleet) = if args.simulated {
        let plan = Plan { pool: job::new_id("sim"), nodes: args.nodes, slots: args.slots, heartbeats: true };
        let fleet = Fleet::start(&server.inside()?, &plan).await?;
        (plan.pool, Some(fleet))
    } else {
        (job::create_pool(&client, args.nodes, args.slots).await?, None)
    };
    let mut report = Report::new("tasks");
    report.fact("count", args.count);
    report.fact("nodes", args.nodes);
    report.fact("slots", args.slots);
    report.fact("simulated", args.simulated);
    report.fact("floor", if args.simulated { "rows in SQLite" } else { "posix_spawn on as many threads as slots" });
    one_job(&server, &pool, fleet.as_ref(), WARM_UP.min(args.count)).await?;
    // Stays until all rounds are done: some file systems (ext4) make inodes slowly for seconds after
    // thousands were deleted, which would count against whoever comes next.
    let floors = tempfile::tempdir_in(server.scratch()).context("directory of the floor")?;
    for round in 0..args.repeat {
        let scratch = floors.path().to_owned();
        let (count, threads) = (args.count, args.nodes * usize::try_from(args.slots).unwrap_or(1));
        let simulated = args.simulated;
        let floor = tokio::task::spawn_blocking(move || {
            if simulated { sqlite_floor::lives(&scratch, count) } else { processes(&scratch, count, threads, round) }
        })
        .await
        .map_err(anyhow::Error::new)??;
        report.round(one_round(&server, &pool, fleet.as_ref(), args.count, floor).await?);
    }
    drop((fleet, floors));
    server.stop().await?;
    Ok(report)
}

fn processes(floors: &Path, count: usize, threads: usize, round: usize) -> Outcome<Duration> {
    let took = floor::run(count as u64, threads, &floors.join(round.to_string()), floor::Work::Task);
    Ok(took.context("processes of the floor")?)
}

async fn one_round(
    server: &Server,
    pool: &str,
    fleet: Option<&Fleet>,
    count: usize,
    floor: Duration,
) -> Outcome<Round> {
    if let Some(pid) = server.pid() {
        usage::forget_peak(pid);
    }
    let before = server.usage();
    let took = one_job(server, pool, fleet, count).await?;
    let rate = count as f64 / took.as_secs_f64();
    let floor_rate = count as f64 / floor.as_secs_f64();
    let mut round = vec![
        ("seconds", took.as_secs_f64()),
        ("tasks_per_second", rate),
        ("floor_per_second", floor_rate),
        ("ratio_to_floor", rate / floor_rate),
    ];
    round.extend(cost(server, before, count));
    Ok(round)
}

/// What the server has spent on each of `count` tasks since `before`, if it
/// runs on this machine.
pub fn cost(server: &Server, before: Option<usage::Usage>, count: usize) -> Round {
    let (Some(before), Some(after), Some(pid)) = (before, server.usage(), server.pid()) else { return Vec::new() };
    let spent = after.since(&before);
    let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / count as f64;
    let mut round = vec![
        ("server_cpu_us_per_task", each(spent.cpu)),
        ("job_svc_cpu_us_per_task", each(spent.of_threads(&JOB_SVC))),
        ("job_svc_writer_cpu_us_per_task", each(spent.of_threads(&JOB_SVC[1..]))),
        ("monitor_svc_cpu_us_per_task", each(spent.of_threads(&["monitor-svc", "write-monitor-s"]))),
        ("gateway_cpu_us_per_task", each(spent.of_threads(&["gateway"]))),
    ];
    if let Some((_, peak)) = usage::memory(pid) {
        round.push(("peak_memory_bytes", peak as f64));
    }
    round
}

/// Runs one job; gives the time from the first submission to the last recorded
/// completion.
pub async fn one_job(server: &Server, pool: &str, fleet: Option<&Fleet>, count: usize) -> Outcome<Duration> {
    let client = server.client()?;
    let id = job::create(&client, pool, 0).await?;
    let done = fleet.map_or(0, |fleet| fleet.seen.acknowledged()) + count;
    let began = Instant::now();
    let finished = async {
        match fleet {
            // The acknowledgement of a result says that it is durable.
            Some(fleet) => fleet.seen.until(|seen| seen.acknowledged() >= done).await,
            None => job::wait(&client, &id, count).await,
        }
    };
    tokio::try_join!(job::submit(&client, &id, count, "true", 1), finished)?;
    let took = began.elapsed();
    // Whatever the nodes have seen: the service's own word counts.
    job::wait(&client, &id, count).await?;
    Ok(took)
}
