//! `kiln bench core`

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use clap::Args;

use super::figures::Report;
use crate::failure::{Failure, Outcome};

/// Arguments of `kiln bench core`.
#[derive(Debug, Args)]
pub struct CoreArgs {
    /// Tasks of one round
    #[arg(long, default_value_t = 1_000_000)]
    count: u64,
    /// Nodes
    #[arg(long, default_value_t = 1_000)]
    nodes: usize,
    /// Rounds
    #[arg(long, default_value_t = 5)]
    repeat: usize,
}

/// Measures.
///
/// # Errors
/// If a task was not placed.
pub fn run(args: CoreArgs) -> Outcome<Report> {
    if args.nodes == 0 {
        return Err(Failure::Usage("--nodes: there must be at least one node".to_owned()));
    }
    let mut report = Report::new("core");
    report.fact("count", args.count);
    report.fact("nodes", args.nodes);
    report.fact("floor", "one ordered queue and one table");
    for _ in 0..args.repeat {
        let floor = args.count as f64 / bookkeeping(args.count).as_secs_f64();
        let placed = job_svc::bench::placements(args.count, args.nodes);
        if placed.placements != args.count {
            return Err(anyhow::anyhow!("{} of {} tasks were placed", placed.placements, args.count).into());
        }
        report.round(vec![
            ("seconds", placed.took.as_secs_f64()),
            ("placements_per_second", placed.rate()),
            ("floor_per_second", floor),
            ("ratio_to_floor", placed.rate() / floor),
        ]);
    }
    Ok(report)
}

/// What every scheduler has to do: take the first that waits, remember that it
/// runs, forget it.
fn bookkeeping(count: u64) -> Duration {
    let mut waiting: BTreeMap<u64, u64> = (0..count).map(|row| (row, row)).collect();
    let mut running: HashMap<u64, u64> = HashMap::new();
    let began = Instant::now();
    while let Some((row, task)) = waiting.pop_first() {
        running.insert(row, task);
        // One node's worth of tasks runs at a time.
        if let Some(ended) = row.checked_sub(8) {
            running.remove(&ended);
        }
    }
    began.elapsed().max(Duration::from_nanos(1))
}
