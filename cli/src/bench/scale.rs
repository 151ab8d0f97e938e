//! `kiln bench nodes`

use clap::Args;
use serde_json::json;

use super::figures::Report;
use super::nodes::{Fleet, Plan};
use super::server::Server;
use super::{job, sqlite_floor, tasks};
use crate::connect::ConnectArgs;
use crate::failure::{Failure, Outcome};

/// Arguments of `kiln bench nodes`.
#[derive(Debug, Args)]
pub struct NodesArgs {
    /// Numbers of simulated nodes; the first is what the others are compared with
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1_000, 10_000], value_name = "NODES,...")]
    nodes: Vec<usize>,
    /// Tasks of one round
    #[arg(long, default_value_t = 100_000)]
    count: usize,
    /// Slots of all nodes together, or one each if they are more
    #[arg(long, default_value_t = 1_000)]
    slots: usize,
    /// Rounds; in each all numbers of nodes have their turn, in the same minute
    #[arg(long, default_value_t = 5)]
    repeat: usize,
}

/// Measures.
///
/// # Errors
/// If a task is lost or the server fails.
pub async fn run(connect: &ConnectArgs, args: NodesArgs) -> Outcome<Report> {
    if args.nodes.is_empty() || args.nodes.contains(&0) {
        return Err(Failure::Usage("--nodes: there must be at least one node".to_owned()));
    }
    let mut report = Report::new("nodes");
    report.fact("count", args.count);
    report.fact("nodes", args.nodes.clone());
    report.fact("slots", args.slots);
    report.fact("floor", "rows in SQLite");
    let mut curve: Vec<Vec<serde_json::Value>> = vec![Vec::new(); args.nodes.len()];
    for _ in 0..args.repeat {
        let mut seconds = Vec::new();
        let mut round = Vec::new();
        for (place, nodes) in args.nodes.iter().enumerate() {
            let server = Server::new(connect).await?;
            let (scratch, count) = (server.scratch(), args.count);
            let floor = tokio::task::spawn_blocking(move || sqlite_floor::lives(&scratch, count))
                .await
                .map_err(anyhow::Error::new)??;
            let slots = i32::try_from((args.slots / nodes).clamp(1, 256)).unwrap_or(1);
            let plan = Plan { pool: job::new_id("sim"), nodes: *nodes, slots, heartbeats: true };
            let fleet = Fleet::start(&server.inside()?, &plan).await?;
            let before = server.usage();
            let took = tasks::one_job(&server, &plan.pool, Some(&fleet), args.count).await?.as_secs_f64();
            let cost = tasks::cost(&server, before, args.count);
            let mut point = json!({
                "nodes": nodes, "seconds": took, "tasks_per_second": args.count as f64 / took,
                "floor_per_second": args.count as f64 / floor.as_secs_f64(), "heartbeats": fleet.seen.heartbeats(),
            });
            for (name, value) in &cost {
                point[*name] = json!(value);
            }
            curve[place].push(point);
            seconds.push(took);
            round = cost;
            drop(fleet);
            server.stop().await?;
        }
        let first = seconds.first().copied().unwrap_or_default();
        let most = seconds.iter().copied().fold(0.0, f64::max);
        let last = seconds.last().copied().unwrap_or_default();
        let mut figures = vec![
            ("seconds_fewest_nodes", first),
            ("seconds_most_nodes", last),
            ("tasks_per_second_most_nodes", args.count as f64 / last),
            ("most_to_fewest", last / first),
            ("worst_to_fewest", most / first),
        ];
        figures.append(&mut round);
        report.round(figures);
    }
    report.fact("points", curve);
    Ok(report)
}
