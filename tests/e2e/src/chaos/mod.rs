//! A deployment of processes that works while things are killed, paused and cut off around it; then the histories of all
//! who saw it are held against each other by `kiln_chaos_check`.
//!
//! - [`harm`]: what is done to it, and when: a plan that follows from the seed alone;
//! - [`load`]: clients that add and delete tasks, and remember what was acknowledged;
//! - [`watch`]: watchers that go on from their cursor; [`collect`]: what the server and the log say in the end;
//! - [`proxy`]: the wire between agents or services and what they talk to, to be cut;
//! - [`broker`], [`database`]: a RabbitMQ and a PostgreSQL of its own, to be killed; [`disk`]: one that can be full;
//! - [`takeover`]: how long a pool stands still when the replica that schedules it is killed.
//!
//! Times here are part of what is done to the deployment (for how long something is away); whatever is waited for is a
//! condition with a limit, and what is not there at the limit is for the checker to judge.

pub mod broker;
pub mod collect;
pub mod database;
pub mod disk;
pub mod harm;
pub mod load;
pub mod proxy;
pub mod takeover;
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
/// Of pools. Short for the same reason.
pub const POOL_LEASE: Duration = Duration::from_secs(2);
/// The job that all tasks are in.
const JOB: &str = "chaos";
/// And its pool.
pub const POOL: &str = "p";
/// Ports of the wires between agents and pool-svc and job-svc, on each replica's address.
const WIRES: (u16, u16) = (7472, 7473);

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Tasks to add.
    pub tasks: usize,
    /// Harms to do.
    pub kills: usize,
    /// The plan of harms and the tasks follow from it.
    pub seed: u64,
    /// Processes of each service. Several need PostgreSQL.
    pub replicas: usize,
    /// First every harm that there is, in turn: each process of each service, and what they stand on. Then the plan.
    pub drill: bool,
    /// TLS between all of them.
    pub tls: bool,
    /// Nodes.
    pub nodes: usize,
    /// Slots of each node.
    pub slots: i32,
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
    /// Processes of each service.
    pub replicas: usize,
    /// Times that a service ended by itself.
    pub crashes: usize,
    /// Times that a replica of job-svc took a pool.
    pub pools_taken: usize,
    /// Times that one found that its pool is another's and wrote nothing more: by why, as its log has it.
    pub pools_given_up: BTreeMap<String, usize>,
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
    let (mut control, mut work_stream) = (Vec::new(), Vec::new());
    for replica in 0..plan.replicas {
        let host = Deployment::host_of(&host, replica);
        control.push(Proxy::start(&host, WIRES.0, &host, 7462).await);
        work_stream.push(Proxy::start(&host, WIRES.1, &host, 7463).await);
    }
    let broker = if plan.shared_broker { None } else { Some(Broker::start(&host).await) };
    let database = if plan.postgres { Some(Database::start(&host, plan.drill).await) } else { None };
    let amqp = broker.as_ref().map_or_else(processes::amqp_url, Broker::url);
    let (amqp_url, amqp_wire) = proxy::before_broker(&host, &amqp).await;
    let options = Options {
        amqp_url: Some(amqp_url),
        database_url: database.as_ref().map(Database::url),
        lease: Some(LEASE),
        replicas: plan.replicas,
        pool_lease: Some(POOL_LEASE),
        tls: plan.tls,
        agents_through: Some(WIRES),
        record: Some(plan.histories.join("nodes.jsonl")),
        ..Options::default()
    };
    let mut deployment = Deployment::start_with(&host, options).await;
    let client = deployment.client();
    work::pool(&client, POOL, i32::try_from(plan.nodes).unwrap(), plan.slots).await;
    work::job(&client, JOB, POOL, &[]).await;

    let begin = Instant::now();
    let targets = Targets {
        nodes: plan.nodes,
        broker: broker.is_some(),
        database: database.is_some(),
        disk: database.as_ref().is_some_and(Database::has_own_disk),
        replicas: plan.replicas,
    };
    let mut schedule = if plan.drill { harm::drill(targets) } else { Vec::new() };
    schedule.extend(harm::schedule(plan.seed, plan.kills, targets));
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
    let (pools_taken, pools_given_up) = pools(&deployment);
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
    Outcome {
        seed: plan.seed,
        kills: schedule.len(),
        harms,
        replicas: plan.replicas,
        crashes,
        pools_taken,
        pools_given_up,
        seconds,
        finished,
        verdict,
    }
}

/// What the services and agents stand on, and can be harmed.
#[derive(Debug)]
pub struct Surroundings {
    /// Agents to pool-svc and to job-svc, of each replica.
    pub agents: [Vec<Arc<Proxy>>; 2],
    /// Services to the broker.
    pub amqp: Arc<Proxy>,
    /// If it is not shared.
    pub broker: Option<Broker>,
    /// If there is one.
    pub database: Option<Database>,
}

impl Surroundings {
    /// The replica of job-svc that has the pool, by the database.
    pub fn owner(&self, deployment: &Deployment, pool: &str) -> Option<usize> {
        let sql = format!("SELECT endpoint FROM job_svc.pool_leases WHERE pool_id = '{pool}'");
        deployment.replica_at(&self.database.as_ref()?.ask(&sql)?)
    }
}

/// How often replicas of job-svc took pools and gave them up, as their logs say.
fn pools(deployment: &Deployment) -> (usize, BTreeMap<String, usize>) {
    let (mut taken, mut given_up) = (0, BTreeMap::new());
    for replica in 0..deployment.replicas() {
        for line in deployment.log("job-svc", replica).lines() {
            taken += usize::from(line.contains("this replica schedules the pool"));
            if line.contains("this replica gives the pool up") {
                let why = if line.contains("fenced") { "a commit was refused" } else { "the lease was over" };
                *given_up.entry(why.to_owned()).or_default() += 1;
            }
        }
    }
    (taken, given_up)
}

/// Starts what has ended by itself; gives how many that were.
async fn revive(deployment: &mut Deployment) -> usize {
    let ended = deployment.ended();
    for (service, replica, how) in &ended {
        eprintln!("{service}, replica {replica}, ended by itself: {how}");
        deployment.kill_9(service, *replica).await;
        deployment.start_again(service, *replica);
    }
    ended.len()
}

fn write<T: Serialize>(directory: &Path, name: &str, lines: &[T]) {
    let lines: Vec<String> = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
    std::fs::write(directory.join(name), lines.concat()).unwrap();
}
