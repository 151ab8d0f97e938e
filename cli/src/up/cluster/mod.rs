//! `kiln up --cluster-dev`: the shape of a cluster on one machine.
//!
//! ```text
//!  clients ---> balance (this process) ---> gateway-1, gateway-2 ---> all services
//!               balance (blobs)        ---> storage-svc-1, storage-svc-2
//!  each replica: `kiln service <name>`, settings and log in <data>/cluster
//! ```
//!
//! Every service is a process, those that can have replicas have several, records
//! are in PostgreSQL, and events go over RabbitMQ; it is how deployments with more
//! than one machine work, to be tried and tested on one. This process starts them,
//! starts them again when they die, and stops them in order.
//!
//! - [`service`]: which services there are, and how many of each;
//! - [`record`]: name and ports of the deployment, the same at every start;
//! - [`settings`]: the files that the processes read;
//! - [`process`]: one process that is kept running;
//! - [`balance`]: the public ports; [`backing`]: PostgreSQL and RabbitMQ.
//!
//! If this process is killed, the services notice that their standard input ended
//! and stop in order; the agents of nodes go on and find the next ones.

pub mod backing;
pub mod balance;
pub mod process;
pub mod record;
pub mod service;
pub mod settings;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use pool_svc::LocalProviderConfig;
use pool_svc::provider::Provider;
use pool_svc::provider::local::LocalProvider;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::balance::Backend;
use self::process::{Replica, Supervised};
use self::record::Record;
use self::service::{ALL, Service};
use self::settings::{Member, Shared};
use super::deployment::{Deployment, Ports, Wanted};
use super::dir::{DataDir, write_atomic};
use super::running::Running;
use super::services::bind_public;
use super::{Addresses, own_program, put_account, welcome};
use crate::commands::status;
use crate::connect::Target;
use crate::failure::{Failure, Outcome};
use crate::interrupt::Interrupt;

/// PostgreSQL of this machine.
pub const DATABASE_URL: &str = "postgres://postgres@127.0.0.1:5432/postgres";
/// RabbitMQ of this machine.
pub const AMQP_URL: &str = "amqp://guest:guest@127.0.0.1:5672/%2f";

/// How long the processes may take until they can work.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// A process that ended so often without ever being ready will not get there.
const MOST_STARTS: u32 = 3;
/// Pause between two looks at processes that are not ready yet.
const PAUSE: Duration = Duration::from_millis(10);

/// What a deployment of processes is made of.
#[derive(Clone)]
pub struct Options {
    /// Processes of each service that can have several.
    pub replicas: usize,
    /// PostgreSQL; may hold a password.
    pub database_url: String,
    /// RabbitMQ; may hold a password.
    pub amqp_url: String,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("replicas", &self.replicas).finish_non_exhaustive()
    }
}

/// A running deployment of processes.
#[derive(Debug)]
pub struct Cluster {
    /// In the order in which they are stopped.
    processes: Vec<Supervised>,
    /// How to reach it.
    target: Target,
    blob_endpoint: String,
    front: Loop,
    blobs: Loop,
    announcer: Loop,
    nodes: LocalProviderConfig,
    data: DataDir,
}

/// A loop of this process, and how it is ended.
#[derive(Debug)]
struct Loop {
    stop: CancellationToken,
    handle: JoinHandle<()>,
}

impl Loop {
    fn start<Run: Future<Output = ()> + Send + 'static>(run: impl FnOnce(CancellationToken) -> Run) -> Self {
        let stop = CancellationToken::new();
        Self { handle: kiln_telemetry::spawn(run(stop.clone())), stop }
    }

    async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.handle.await {
            tracing::error!(%error, "a loop has failed");
        }
    }
}

/// The main or the data plane's port of a replica.
struct Behind(Arc<Replica>, u16);

impl Backend for Behind {
    fn port(&self) -> u16 {
        self.1
    }

    fn is_ready(&self) -> bool {
        self.0.is_ready()
    }
}

impl Cluster {
    /// Starts a deployment on `data`; returns when it can be used.
    ///
    /// # Errors
    /// If the directory is in use, a public port is taken, PostgreSQL or RabbitMQ
    /// is not there, or a process does not come up.
    pub async fn start(data: &Path, addresses: &Addresses, options: &Options, wanted: Wanted) -> Outcome<Self> {
        let data = DataDir::lock(data)?;
        let mut record = Record::read_or_create(data.path())?;
        backing::POSTGRES.check(&options.database_url).await?;
        backing::RABBITMQ.check(&options.amqp_url).await?;
        let earlier = Deployment::read(data.path())?;
        let first = earlier.is_none();
        let mut deployment = match earlier {
            Some(deployment) => deployment,
            None => Deployment::create(wanted)?,
        };
        let front = bind_public("--listen", addresses.gateway, deployment.ports.gateway).await?;
        let blobs = bind_public("--blob-listen", addresses.blob, deployment.ports.blob).await?;
        let port = |listener: &TcpListener| Ok::<_, Failure>(listener.local_addr().context("listener")?.port());
        let ports = Ports { gateway: port(&front)?, blob: port(&blobs)?, ..Ports::default() };
        let moved = deployment.ports != ports;
        deployment.ports = ports;
        let members = members(options.replicas, &mut record)?;
        record.write(data.path())?;
        if moved && !first {
            deployment.write(data.path())?;
        }

        let endpoint = addresses.url(addresses.gateway, ports.gateway);
        let blob_endpoint = addresses.url(addresses.blob, ports.blob);
        let program = own_program()?;
        let nodes = LocalProviderConfig::new(data.path().join("nodes"), vec![program.clone(), "agent".to_owned()]);
        let dir = data.path().join("cluster");
        let configs = {
            let shared = Shared {
                dir: &dir,
                name: &record.name,
                options,
                members: &members,
                cluster_key_file: dir.join("cluster.key"),
                batch_endpoint: &endpoint,
                blob_endpoint: &blob_endpoint,
                nodes_dir: nodes.nodes_dir.clone(),
                agent_command: &nodes.agent_command,
            };
            write_files(&deployment, &shared)?
        };

        let changed = Arc::new(Notify::new());
        let mut processes = Processes { running: Vec::new(), program, dir, changed: changed.clone() };
        let started = async {
            processes.start(&members, &configs).await?;
            let (storage, gateway) =
                (settings::urls(&members, Service::StorageSvc), settings::urls(&members, Service::Gateway));
            put_account(&deployment, &storage, &gateway, Arc::new(deployment.cluster_key()?)).await?;
            if first {
                // Not earlier: whoever reads the keys can use them.
                deployment.write(data.path())?;
            }
            Ok(())
        };
        if let Err(failure) = started.await {
            futures::future::join_all(processes.running.into_iter().map(Supervised::stop)).await;
            return Err(failure);
        }
        let replicas: Vec<_> = processes.running.iter().map(|process| process.replica.clone()).collect();
        let gateways = replicas.iter().filter(|replica| replica.member.service == Service::Gateway);
        let gateways: Vec<_> = gateways.map(|replica| Behind(replica.clone(), replica.member.port)).collect();
        let storages = replicas.iter().filter_map(|replica| Some(Behind(replica.clone(), replica.member.blob_port?)));
        let storages: Vec<_> = storages.collect();
        let running = Running {
            pid: std::process::id(),
            endpoint: endpoint.clone(),
            blob_endpoint: blob_endpoint.clone(),
            processes: replicas.iter().map(|replica| replica.shown()).collect(),
        };
        running.announce(data.path())?;
        let path = data.path().to_owned();
        Ok(Self {
            target: Target { endpoint, account: deployment.account, key: deployment.key1, authority: None },
            blob_endpoint,
            front: Loop::start(|stop| balance::balance(front, gateways, stop)),
            blobs: Loop::start(|stop| balance::balance(blobs, storages, stop)),
            announcer: Loop::start(|stop| announce(running, replicas, path, changed, stop)),
            processes: processes.running,
            nodes,
            data,
        })
    }

    /// What `kiln status` shows.
    fn shown(&self) -> Vec<super::running::Process> {
        self.processes.iter().map(|process| process.replica.shown()).collect()
    }

    /// Finishes what is open, stops the nodes, then the services.
    pub async fn stop(self) {
        self.announcer.stop().await;
        Running::withdraw(self.data.path());
        let mut left = self.processes;
        let mut front = Some(self.front);
        for service in ALL {
            let (of, others): (Vec<_>, Vec<_>) =
                left.into_iter().partition(|process| process.replica.member.service == service);
            left = others;
            futures::future::join_all(of.into_iter().map(Supervised::stop)).await;
            match service {
                Service::Gateway => {
                    if let Some(front) = front.take() {
                        front.stop().await;
                    }
                }
                // It would start them again; job-svc still takes their last results.
                Service::PoolSvc => match LocalProvider::new(self.nodes.clone()) {
                    Ok(provider) => provider.stop_all().await,
                    Err(error) => tracing::error!(%error, "the nodes cannot be stopped; their agents go on"),
                },
                Service::JobSvc | Service::MonitorSvc | Service::StorageSvc => {}
            }
        }
        self.blobs.stop().await;
    }
}

/// All replicas, with their ports.
fn members(replicas: usize, record: &mut Record) -> Outcome<Vec<Member>> {
    // Held until all have been chosen, so that none is given twice.
    let mut held = Vec::new();
    let mut port = |purpose: String| -> Outcome<u16> {
        let (port, listener) = record.port(purpose)?;
        held.push(listener);
        Ok(port)
    };
    let mut members = Vec::new();
    for service in ALL {
        for replica in 1..=replicas {
            let name = format!("{}-{replica}", service.name());
            let blob_port = match service {
                Service::StorageSvc => Some(port(format!("{name}/blob"))?),
                _ => None,
            };
            members.push(Member { service, replica, port: port(name)?, blob_port });
        }
    }
    Ok(members)
}

/// Key and settings, each for its owner alone; gives the files of the settings.
fn write_files(deployment: &Deployment, shared: &Shared<'_>) -> Outcome<Vec<PathBuf>> {
    let make = |dir: &Path| {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.with_context(|| dir.display().to_string())
    };
    let write =
        |path: &Path, content: &str| write_atomic(path, content.as_bytes()).with_context(|| path.display().to_string());
    make(shared.dir)?;
    write(&shared.cluster_key_file, &deployment.cluster_key)?;
    let mut files = Vec::new();
    for member in shared.members {
        make(&shared.dir.join(member.name()))?;
        let file = shared.dir.join(format!("{}.toml", member.name()));
        write(&file, &settings::of(member, shared))?;
        files.push(file);
    }
    Ok(files)
}

/// Processes that are being started.
struct Processes {
    running: Vec<Supervised>,
    program: String,
    dir: PathBuf,
    changed: Arc<Notify>,
}

impl Processes {
    /// Starts all, and waits until they are ready.
    async fn start(&mut self, members: &[Member], configs: &[PathBuf]) -> Outcome {
        let all = || members.iter().zip(configs);
        // The event log first: what is published before its queue is there, it would not see.
        let early = |member: &Member| member.service == Service::MonitorSvc;
        for (member, config) in all().filter(|(member, _)| early(member)) {
            self.spawn(*member, config.clone());
        }
        self.until_ready().await?;
        for (member, config) in all().filter(|(member, _)| !early(member)) {
            self.spawn(*member, config.clone());
        }
        self.until_ready().await?;
        let place = |process: &Supervised| {
            members.iter().position(|member| *member == process.replica.member).unwrap_or(members.len())
        };
        self.running.sort_by_key(place);
        Ok(())
    }

    fn spawn(&mut self, member: Member, config: PathBuf) {
        let log = self.dir.join(format!("{}.log", member.name()));
        self.running.push(Supervised::start(member, self.program.clone(), config, log, self.changed.clone()));
    }

    async fn until_ready(&self) -> Outcome {
        let begin = Instant::now();
        loop {
            let mut late = self.running.iter().map(|process| &process.replica).filter(|replica| !replica.was_ready());
            let Some(one) = late.next() else { return Ok(()) };
            let failed = std::iter::once(one).chain(late).find(|replica| replica.starts() > MOST_STARTS);
            if failed.is_some() || begin.elapsed() > READY_LIMIT {
                let replica = failed.unwrap_or(one);
                return Err(Failure::Other(anyhow::anyhow!(
                    "{} does not come up: {}\n(all of it in {})",
                    replica.member.name(),
                    replica.last_words(),
                    replica.log.display()
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Keeps `runtime.json` as things are.
async fn announce(
    running: Running,
    replicas: Vec<Arc<Replica>>,
    data: PathBuf,
    changed: Arc<Notify>,
    stop: CancellationToken,
) {
    while stop.run_until_cancelled(changed.notified()).await.is_some() {
        let processes = replicas.iter().map(|replica| replica.shown()).collect();
        let (running, data) = (Running { processes, ..running.clone() }, data.clone());
        match tokio::task::spawn_blocking(move || running.announce(&data)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the runtime file cannot be written"),
            Err(error) => tracing::warn!(%error, "the runtime file was not written"),
        }
    }
}

/// `kiln up --cluster-dev`.
///
/// # Errors
/// As [`Cluster::start`].
pub async fn command(data: &Path, addresses: &Addresses, options: &Options) -> Outcome {
    let begin = Instant::now();
    let interrupt = Interrupt::listen()?;
    let cluster = tokio::select! {
        cluster = Cluster::start(data, addresses, options, Wanted::from_env()) => cluster?,
        () = interrupt.requested() => return Err(Failure::Interrupted),
    };
    let path = cluster.data.path();
    let more =
        format!("  logs      {}/*.log\n\n{}", path.join("cluster").display(), status::processes(&cluster.shown()));
    welcome(begin, &cluster.target, &cluster.blob_endpoint, path, data, &more);
    interrupt.requested().await;
    eprintln!("stopping (Ctrl-C again to leave at once)");
    cluster.stop().await;
    Ok(())
}
