//! `tests/chaos`: kills, pauses and cuts around a working deployment, and says whether it kept its promises.
//! Exit codes: 0 kept, 1 broken, 101 the run itself failed.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use kiln_e2e::chaos::{Outcome, Plan, run, takeover};
use kiln_e2e::processes::MOST_REPLICAS;

/// Brings up the services as processes of their own, makes them work while things are killed around them, and checks what
/// all who saw it tell
#[derive(Debug, Parser)]
#[command(name = "tests/chaos")]
struct Arguments {
    /// Tasks to add
    #[arg(long, default_value_t = 1000)]
    tasks: usize,
    /// Harms to do: processes killed or paused, agents and the broker cut off
    #[arg(long, default_value_t = 20)]
    kills: usize,
    /// What is done, and when, follows from it; default: another one each time
    #[arg(long)]
    seed: Option<u64>,
    /// First every harm there is, in turn: each process of each service, and what they stand on
    #[arg(long)]
    drill: bool,
    /// Instead: how long a pool stands still when the replica that schedules it is killed, so many times
    #[arg(long, value_name = "TIMES", num_args = 0..=1, default_missing_value = "20")]
    takeover: Option<usize>,
    /// Processes of each service; default: 2 with PostgreSQL, else 1
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=MOST_REPLICAS as i64))]
    replicas: Option<u16>,
    /// TLS between all of them
    #[arg(long)]
    tls: bool,
    /// Nodes
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    nodes: u16,
    /// Slots of each node
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(i32).range(1..))]
    slots: i32,
    /// How long the work may take after the last harm
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    patience: u64,
    /// Keep the histories in this directory (chaos-check reads them)
    #[arg(long, value_name = "DIR")]
    keep: Option<std::path::PathBuf>,
    /// Cut the wire to the broker of the tests instead of killing a broker of its own
    #[arg(long)]
    shared_broker: bool,
    /// Where the services store; PostgreSQL is one of its own, which is killed, too
    #[arg(long, value_enum, default_value_t = Stores::Sqlite)]
    stores: Stores,
    /// Form of the output
    #[arg(long, value_enum, default_value_t = Form::Text)]
    output: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stores {
    Sqlite,
    Postgres,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Text,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let postgres = arguments.stores == Stores::Postgres || arguments.takeover.is_some();
    let replicas = arguments.replicas.map_or(if postgres { 2 } else { 1 }, usize::from);
    if replicas > 1 && !postgres {
        eprintln!("several replicas share a database: give --stores postgres");
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if let Some(times) = arguments.takeover {
        return match runtime.block_on(Box::pin(takeover::measure(times, replicas.max(2)))) {
            Some(figures) => {
                println!("{figures}");
                ExitCode::SUCCESS
            }
            None => ExitCode::from(2),
        };
    }
    let temporary = tempfile::Builder::new().prefix("kiln-chaos-").tempdir().expect("a temporary directory");
    let plan = Plan {
        tasks: arguments.tasks,
        kills: arguments.kills,
        seed: arguments.seed.unwrap_or_else(rand::random),
        replicas,
        drill: arguments.drill,
        tls: arguments.tls,
        nodes: usize::from(arguments.nodes),
        slots: arguments.slots,
        patience: Duration::from_secs(arguments.patience),
        histories: arguments.keep.unwrap_or_else(|| temporary.path().to_owned()),
        shared_broker: arguments.shared_broker,
        postgres,
    };
    if plan.histories.join("nodes.jsonl").exists() {
        eprintln!("{} has histories already", plan.histories.display());
        return ExitCode::from(2);
    }
    // First of all, so that a run that fails can be repeated.
    eprintln!("seed {}", plan.seed);
    let outcome = runtime.block_on(Box::pin(run(&plan)));
    match arguments.output {
        Form::Json => println!("{}", serde_json::to_string(&outcome).expect("an outcome is JSON")),
        Form::Text => println!("{}", serde_json::to_string_pretty(&outcome).expect("an outcome is JSON")),
    }
    ExitCode::from(u8::from(!kept(&outcome)))
}

fn kept(outcome: &Outcome) -> bool {
    outcome.finished && outcome.crashes == 0 && outcome.verdict.is_kept()
}
