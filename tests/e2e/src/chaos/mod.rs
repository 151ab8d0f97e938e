//! A deployment of processes that works while things are killed, paused and cut off around it; then the histories of all
//! who saw it are held against each other by `kiln_chaos_check`.
//!
//! - [`harm`]: what is done to it, and when: a plan that follows from the seed alone;
//! - [`load`]: clients that add and delete tasks, and remember what was acknowledged;
//! - [`watch`]: watchers that go on from their cursor; [`collect`]: what the server and the log say in the end;
//! - [`proxy`]: the wire between agents or services and what they talk to, to be cut;
//! - [`broker`], [`database`]: a RabbitMQ and a PostgreSQL of its own, to be killed.
//!
//! Times here are part of what is done to the deployment (for how long something is away); whatever is waited for is a
//! condition with a limit, and what is not there at the limit is for the checker to judge.

pub mod broker;
pub mod collect;
pub mod database;
pub mod harm;
pub mod load;
pub mod proxy;
pub mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_chaos_check::{History, Rules, Verdict};
use serde::Serialize;

use crate::processes::{self, Deployment, Options};
use crate::work;
use broker::Broker;
use database::Database;
use harm::Targets;
use proxy::Proxy;

/// Short, so that cutting a node off for longer does not take long.
pub const LEASE: Duration = Duration::from_secs(4);
/// The job that all tasks are in.
const JOB: &str = "chaos";

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Tasks to add.
    pub tasks: usize,
    /// Harms to do.
    pub kills: usize,
    /// The plan of harms and the tasks follow from it.
    pub seed: u64,
    /// Nodes, each with four slots.
    pub nodes: usize,
    /// How long the work may take after the last harm.
    pub patience: Duration,
    /// Where the histories are written.
    pub histories: PathBuf,
    /// The broker of the tests through a wire that is cut, instead of a broker of its own that is killed.
    pub shared_broker: bool,
    /// The stores are in PostgreSQL, in one of its own; else in SQLite.
    pub postgres: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// As planned.
    pub seed: u64,
    /// Harms that were done.
    pub kills: usize,
    /// The same by what they were.
    pub harms: BTreeMap<&'static str, usize>,
    /// Times that a service ended by itself.
    pub crashes: usize,
    /// From the first task to the last completion, with all harms.
    pub seconds: f64,
    /// Whether every task that was added completed within the patience.
    pub finished: bool,
    /// What the checker found.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// Carries it out.
pub async fn run(plan: &Plan) -> Outcome {
    std::fs::create_dir_all(&plan.histories).unwrap();
    let host = Deployment::free_host();
    let control = Proxy::start(&host, 7472, &host, 7462).await;
    let work_stream = Proxy::start(&host, 7473, &host, 7463).await;
    let broker = if plan.shared_broker { None } else { Some(Broker::start(&host).await) };
    let database = if plan.postgres { Some(Database::start(&host).await) } else { None };
    let amqp = broker.as_ref().map_or_else(processes::amqp_url, Broker::url);
    let (amqp_url, amqp_wire) = proxy::before_broker(&host, &amqp).await;
    let options = Options {
        amqp_url: Some(amqp_url),
        database_url: database.as_ref().map(Database::url),
        lease: Some(LEASE),
        agents_through: Some((7472, 7473)),
        record: Some(plan.histories.join("nodes.jsonl")),
        ..Options::default()
    };
    let mut deployment = Deployment::start_with(&host, options).await;
    let client = deployment.client();
    work::pool(&client, "p", i32::try_from(plan.nodes).unwrap(), 4).await;
    work::job(&client, JOB, "p", &[]).await;

    let begin = Instant::now();
    let targets = Targets { nodes: plan.nodes, broker: broker.is_some(), database: database.is_some() };
    let schedule = harm::schedule(plan.seed, plan.kills, targets);
    let span = schedule.iter().map(|step| step.after + step.harm.takes()).sum();
    let watchers: Vec<_> = (0..2).map(|number| watch::start(&client, JOB, &format!("watcher-{number}"))).collect();
    let load = load::start(&client, JOB, plan.tasks, plan.seed, span);

    let mut harms = BTreeMap::new();
    let mut crashes = 0;
    let mut around = Surroundings { agents: [control, work_stream], amqp: amqp_wire, broker, database };
    for step in &schedule {
        tokio::time::sleep(step.after).await;
        eprintln!("{:>7.1} s  {:?}", begin.elapsed().as_secs_f64(), step.harm);
        crashes += revive(&mut deployment).await;
        harm::carry_out(&step.harm, &mut deployment, &mut around).await;
        *harms.entry(step.harm.name()).or_default() += 1;
    }
    crashes += revive(&mut deployment).await;
    let clients = load.finish(plan.patience).await;
    let finished = collect::until_completed(&client, JOB, &clients, plan.patience).await;
    let seconds = begin.elapsed().as_secs_f64();
    eprintln!("{seconds:>7.1} s  {}", if finished { "all tasks have completed" } else { "patience is over" });

    deployment.until_ready().await;
    let finals = collect::finals(&client, JOB).await;
    let events = collect::events(&client, &finals).await;
    let mut watched = Vec::new();
    for watcher in watchers {
        watched.extend(watcher.finish(&events).await);
    }
    deployment.stop().await;
    if let Some(broker) = around.broker {
        broker.stop().await;
    }
    if let Some(database) = around.database {
        database.stop().await;
    }
    write(&plan.histories, "clients.jsonl", &clients);
    write(&plan.histories, "final.jsonl", &finals);
    write(&plan.histories, "events.jsonl", &events);
    write(&plan.histories, "watchers.jsonl", &watched);
    let history = History::read(&plan.histories).unwrap_or_else(|error| panic!("{error}"));
    // All ran on one machine.
    let verdict = kiln_chaos_check::check(&history, &Rules::default());
    Outcome { seed: plan.seed, kills: schedule.len(), harms, crashes, seconds, finished, verdict }
}

/// What the services and agents stand on, and can be harmed.
#[derive(Debug)]
pub struct Surroundings {
    /// Agents to pool-svc and to job-svc.
    pub agents: [Arc<Proxy>; 2],
    /// Services to the broker.
    pub amqp: Arc<Proxy>,
    /// If it is not shared.
    pub broker: Option<Broker>,
    /// If there is one.
    pub database: Option<Database>,
}

/// Starts what has ended by itself; gives how many that were.
async fn revive(deployment: &mut Deployment) -> usize {
    let ended = deployment.ended();
    for (service, how) in &ended {
        eprintln!("{service} ended by itself: {how}");
        deployment.kill_9(service).await;
        deployment.start_again(service);
    }
    ended.len()
}

fn write<T: Serialize>(directory: &Path, name: &str, lines: &[T]) {
    let lines: Vec<String> = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
    std::fs::write(directory.join(name), lines.concat()).unwrap();
}
