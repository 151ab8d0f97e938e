//! The composition root: five services in this process, each with its own port
//! and its own threads, put together as they are in a cluster. Threads apart
//! mean that a service with much to do (digests of large uploads, a flood of
//! events) does not hold up the others, and that the system's own tools tell
//! which service uses the processors.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::FutureExt;
use futures::future::BoxFuture;
use kiln_auth::SecretKey;
use kiln_bus::memory::MemoryBus;
use kiln_bus::{Bus, QueueSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Addresses;
use super::deployment::Ports;
use crate::failure::{Failure, Outcome};

/// How long one service may take to stop; streams of clients that do not hang
/// up are cut after ten seconds, and local agents are stopped meanwhile.
const STOP_LIMIT: Duration = Duration::from_secs(25);
/// How long all services together may take until they can work.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// Pause between two looks at a service that is not ready yet.
const READY_PAUSE: Duration = Duration::from_millis(2);

/// All ports, open before anything starts.
#[derive(Debug)]
pub struct Listeners {
    gateway: TcpListener,
    blob: TcpListener,
    storage: TcpListener,
    pool: TcpListener,
    job: TcpListener,
    monitor: TcpListener,
}

impl Listeners {
    /// Opens the two public ports where `addresses` says and the others where
    /// they were the last time.
    ///
    /// # Errors
    /// If a public port is taken.
    pub async fn bind(addresses: &Addresses, last: Ports) -> Outcome<Self> {
        Ok(Self {
            gateway: bind_public("--listen", addresses.gateway, last.gateway).await?,
            blob: bind_public("--blob-listen", addresses.blob, last.blob).await?,
            storage: bind_internal(last.storage).await?,
            pool: bind_internal(last.pool).await?,
            job: bind_internal(last.job).await?,
            monitor: bind_internal(last.monitor).await?,
        })
    }

    /// The ports as they are.
    ///
    /// # Errors
    /// If a socket has gone.
    pub fn ports(&self) -> std::io::Result<Ports> {
        Ok(Ports {
            gateway: self.gateway.local_addr()?.port(),
            blob: self.blob.local_addr()?.port(),
            storage: self.storage.local_addr()?.port(),
            pool: self.pool.local_addr()?.port(),
            job: self.job.local_addr()?.port(),
            monitor: self.monitor.local_addr()?.port(),
        })
    }
}

pub(super) async fn bind_public(flag: &str, address: SocketAddr, last: u16) -> Outcome<TcpListener> {
    if address.port() == 0
        && last != 0
        && let Ok(listener) = TcpListener::bind(SocketAddr::new(address.ip(), last)).await
    {
        return Ok(listener);
    }
    TcpListener::bind(address).await.map_err(|error| {
        let why = if error.kind() == std::io::ErrorKind::AddrInUse {
            "another program listens there".to_owned()
        } else {
            error.to_string()
        };
        Failure::Other(anyhow::anyhow!("cannot listen on {address}: {why}; choose another address with {flag}"))
    })
}

/// Agents of an earlier start look for the service on its last port. If that is
/// taken they give up after their lease, and new ones are started.
async fn bind_internal(last: u16) -> Outcome<TcpListener> {
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    match TcpListener::bind(SocketAddr::new(local, last)).await {
        Ok(listener) => Ok(listener),
        Err(error) if last != 0 => {
            tracing::warn!(port = last, %error, "the port of the last start is taken; another one is used");
            Ok(TcpListener::bind(SocketAddr::new(local, 0)).await.context("cannot listen on 127.0.0.1")?)
        }
        Err(error) => Err(anyhow::Error::new(error).context("cannot listen on 127.0.0.1").into()),
    }
}

/// What the services are started with.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Data directory.
    pub data: &'a Path,
    /// Signs internal tokens.
    pub cluster_key: Arc<SecretKey>,
    /// Public URL of the front door.
    pub batch_endpoint: String,
    /// Public URL of the data plane, without account.
    pub blob_endpoint: String,
    /// Program and arguments of an agent.
    pub agent_command: Vec<String>,
}

/// Running services.
#[derive(Debug)]
pub struct Services {
    /// In the order in which they are stopped: who is called last stops last.
    running: Vec<Running>,
    bus: MemoryBus,
}

#[derive(Debug)]
struct Running {
    name: &'static str,
    shutdown: CancellationToken,
    handle: JoinHandle<anyhow::Result<()>>,
    _threads: Threads,
}

/// The runtime of one service.
#[derive(Debug)]
struct Threads(Option<Runtime>);

impl Threads {
    fn start(name: &'static str) -> Outcome<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().thread_name(name).enable_all().build();
        Ok(Self(Some(runtime.with_context(|| format!("threads of {name}"))?)))
    }

    fn spawn(&self, work: BoxFuture<'static, anyhow::Result<()>>) -> JoinHandle<anyhow::Result<()>> {
        let _inside = self.0.as_ref().map(Runtime::enter);
        kiln_telemetry::spawn(work)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Waiting is not allowed where other futures run, and nothing is left to
        // wait for: the service has ended or was cut off.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Services {
    /// Starts all and waits until each can work.
    ///
    /// # Errors
    /// The error of the first service that fails.
    pub async fn start(plan: Plan<'_>, listeners: Listeners) -> Outcome<Self> {
        let ports = listeners.ports().context("listener")?;
        let bus = MemoryBus::new();
        // Before anybody publishes, so that no event finds nobody interested.
        let queue = QueueSpec { name: "monitor.events".to_owned(), bindings: vec!["#".to_owned()], prefetch: 64 };
        for queue in [queue, pool_svc::job_events(), job_svc::auto_pools::queue()] {
            bus.declare(&queue).await.context("event bus")?;
        }
        let mut services = Self { running: Vec::new(), bus };
        let started = match services.spawn_all(plan, listeners, ports) {
            Ok(()) => services.ready([ports.gateway, ports.pool, ports.job, ports.monitor, ports.storage]).await,
            Err(failure) => Err(failure),
        };
        match started {
            Ok(()) => Ok(services),
            Err(failure) => {
                services.stop().await;
                Err(failure)
            }
        }
    }

    fn spawn_all(&mut self, plan: Plan<'_>, listeners: Listeners, ports: Ports) -> Outcome {
        let local = |port: u16| format!("http://127.0.0.1:{port}");
        let data = plan.data.to_path_buf();
        let key = plan.cluster_key;
        let bus: Arc<dyn Bus> = Arc::new(self.bus.clone());

        let config = gateway::Config::new(
            &data,
            local(ports.storage),
            local(ports.pool),
            local(ports.job),
            local(ports.monitor),
            &plan.blob_endpoint,
            &plan.batch_endpoint,
        );
        let deps = gateway::Deps { cluster_key: key.clone(), tls: None };
        self.spawn("gateway", |shutdown| gateway::run(config, deps, listeners.gateway, shutdown).boxed())?;

        let config = pool_svc::Config {
            control_endpoint: local(ports.pool),
            work_endpoint: local(ports.job),
            public_blob_endpoint: plan.blob_endpoint.clone(),
            batch_endpoint: plan.batch_endpoint,
            local: Some(pool_svc::LocalProviderConfig::new(data.join("nodes"), plan.agent_command)),
            stop_nodes_on_shutdown: true,
            ..pool_svc::Config::new(&data)
        };
        let deps = pool_svc::Deps { cluster_key: key.clone(), bus: bus.clone(), tls: None };
        self.spawn("pool-svc", |shutdown| pool_svc::run(config, deps, listeners.pool, shutdown).boxed())?;

        let config = job_svc::Config::new(data.clone());
        let clock = job_svc::clock::Clock::System;
        let deps = job_svc::Deps { cluster_key: key.clone(), bus: bus.clone(), clock, tls: None };
        self.spawn("job-svc", |shutdown| job_svc::run(config, deps, listeners.job, shutdown).boxed())?;

        let config = monitor_svc::Config::new(&data);
        let deps = monitor_svc::Deps { cluster_key: key.clone(), bus: bus.clone() };
        self.spawn("monitor-svc", |shutdown| monitor_svc::run(config, deps, listeners.monitor, shutdown).boxed())?;

        let config = storage_svc::Config::new(&data, plan.blob_endpoint);
        let deps = storage_svc::Deps { cluster_key: key, bus };
        let ports = storage_svc::Listeners { grpc: listeners.storage.into(), blob: listeners.blob.into() };
        self.spawn("storage-svc", |shutdown| storage_svc::run(config, deps, ports, shutdown).boxed())
    }

    fn spawn<F>(&mut self, name: &'static str, run: F) -> Outcome
    where
        F: FnOnce(CancellationToken) -> BoxFuture<'static, anyhow::Result<()>>,
    {
        let shutdown = CancellationToken::new();
        let threads = Threads::start(name)?;
        let handle = threads.spawn(run(shutdown.clone()));
        self.running.push(Running { name, shutdown, handle, _threads: threads });
        Ok(())
    }

    /// Waits until every `/readyz` says so.
    async fn ready<const N: usize>(&mut self, ports: [u16; N]) -> Outcome {
        let all = futures::future::join_all(ports.into_iter().map(wait_ready));
        tokio::select! {
            failure = self.failed() => Err(failure),
            done = tokio::time::timeout(READY_LIMIT, all) => match done {
                Ok(_) => Ok(()),
                Err(_) => Err(anyhow::anyhow!("the services are not ready after {READY_LIMIT:?}").into()),
            },
        }
    }

    /// Waits until one of the services ends by itself, which none should.
    pub async fn failed(&mut self) -> Failure {
        let first = futures::future::select_all(self.running.iter_mut().map(|running| {
            let name = running.name;
            (&mut running.handle).map(move |result| (name, result)).boxed()
        }));
        let (name, result) = first.await.0;
        self.running.retain(|running| running.name != name);
        match result {
            Ok(Ok(())) => anyhow::anyhow!("{name} ended by itself").into(),
            Ok(Err(error)) => error.context(name).into(),
            Err(error) => anyhow::anyhow!("{name} panicked: {error}").into(),
        }
    }

    /// Stops the services one after the other; later ones are still there for
    /// those that stop before them.
    pub async fn stop(self) {
        for mut running in self.running {
            running.shutdown.cancel();
            match tokio::time::timeout(STOP_LIMIT, &mut running.handle).await {
                Ok(Ok(Ok(()))) => tracing::debug!(service = running.name, "stopped"),
                Ok(Ok(Err(error))) => tracing::error!(service = running.name, error = format!("{error:#}"), "stopped"),
                Ok(Err(error)) => tracing::error!(service = running.name, %error, "stopped by a panic"),
                Err(_) => {
                    tracing::error!(service = running.name, "did not stop within {STOP_LIMIT:?}; cut off");
                    running.handle.abort();
                }
            }
        }
        self.bus.close();
    }
}

async fn wait_ready(port: u16) {
    // The port is open already, so only the service behind it can be late.
    while !is_ready(port).await.unwrap_or(false) {
        tokio::time::sleep(READY_PAUSE).await;
    }
}

/// What `/readyz` of a port of this machine says.
///
/// # Errors
/// If nobody answers there.
pub(super) async fn is_ready(port: u16) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    Ok(&head[8..] == b" 200")
}
