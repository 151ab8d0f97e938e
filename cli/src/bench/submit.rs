//! `kiln bench submit`

use std::time::Duration;

use clap::Args;

use super::figures::{Report, Round};
use super::server::Server;
use super::{job, sqlite_floor, tasks, usage};
use crate::connect::ConnectArgs;
use crate::failure::Outcome;

/// Arguments of `kiln bench submit`.
#[derive(Debug, Args)]
pub struct SubmitArgs {
    /// Tasks of one round
    #[arg(long, default_value_t = 1_000_000)]
    count: usize,
    /// Rounds; each has a new server, if the benchmark starts it
    #[arg(long, default_value_t = 5)]
    repeat: usize,
}

/// Measures.
///
/// # Errors
/// If the server fails or refuses a task.
pub async fn run(connect: &ConnectArgs, args: SubmitArgs) -> Outcome<Report> {
    let mut report = Report::new("submit");
    report.fact("count", args.count);
    report.fact("floor", "inserts into one table of SQLite");
    let mut curve = Vec::new();
    for _ in 0..args.repeat {
        let server = Server::new(connect).await?;
        let (scratch, count) = (server.scratch(), args.count);
        let floor = tokio::task::spawn_blocking(move || sqlite_floor::inserts(&scratch, count))
            .await
            .map_err(anyhow::Error::new)??;
        let (round, times) = round(&server, args.count, floor).await?;
        report.round(round);
        curve = rates(&times);
        server.stop().await?;
    }
    report.fact("curve", curve);
    Ok(report)
}

async fn round(server: &Server, count: usize, floor: Duration) -> Outcome<(Round, Vec<Duration>)> {
    let client = server.client()?;
    let id = job::create(&client, &job::new_id("empty"), 0).await?;
    if let Some(pid) = server.pid() {
        usage::forget_peak(pid);
    }
    let before = server.usage();
    let times = job::submit(&client, &id, count, "true", 1).await?;
    let seconds = times.last().copied().unwrap_or_default().as_secs_f64();
    let (rate, floor_rate) = (count as f64 / seconds, count as f64 / floor.as_secs_f64());
    // A tenth of the messages at each end: 100,000 of a million.
    let tenth = (times.len() / 10).max(1);
    let first = times[tenth - 1].as_secs_f64();
    let last = seconds - times.len().checked_sub(tenth + 1).map_or(0.0, |at| times[at].as_secs_f64());
    let mut round = vec![
        ("seconds", seconds),
        ("tasks_per_second", rate),
        ("floor_per_second", floor_rate),
        ("ratio_to_floor", rate / floor_rate),
        ("first_tenth_per_second", (tenth * job::MESSAGE).min(count) as f64 / first),
        ("last_tenth_per_second", (tenth * job::MESSAGE).min(count) as f64 / last),
        ("last_to_first", first / last),
    ];
    round.extend(tasks::cost(server, before, count));
    // Freed memory goes back to the system a moment later.
    tokio::time::sleep(Duration::from_secs(1)).await;
    if let Some((resident, _)) = server.pid().and_then(usage::memory) {
        round.push(("resident_bytes", resident as f64));
    }
    let queued = job::counts(&client, &id).await?.active;
    if usize::try_from(queued).unwrap_or(0) != count {
        return Err(anyhow::anyhow!("{queued} of {count} tasks are queued").into());
    }
    Ok((round, times))
}

/// (tasks queued, tasks a second) at fifty places, for a plot.
fn rates(times: &[Duration]) -> Vec<serde_json::Value> {
    let step = (times.len() / 50).max(1);
    let mut before = Duration::ZERO;
    let point = |chunk: (usize, &[Duration])| {
        let (index, chunk) = chunk;
        let end = chunk.last().copied().unwrap_or_default();
        let rate = (chunk.len() * job::MESSAGE) as f64 / (end - before).as_secs_f64().max(1e-9);
        before = end;
        serde_json::json!([(index * step + chunk.len()) * job::MESSAGE, rate.round()])
    };
    times.chunks(step).enumerate().map(point).collect()
}
