//! Pools, nodes and the providers that make nodes.
//!
//! - [`domain`]: rules of pools and nodes, and the plan that leads from what is
//!   to what was asked for;
//! - [`store`]: where records are kept, with their events;
//! - [`provider`]: what makes nodes (here: child processes of this machine);
//! - `api`: the gRPC front for clients and for agents;
//! - `auto_pools`: pools that jobs and schedules bring along;
//! - `reconcile`: the loop that carries out the plan;
//! - `sessions`, `transfers`: open control streams, and questions about files
//!   that wait for an agent's answer;
//! - `core`: what these share.
//!
//! A pool's way: `CreatePool` commits a record and wakes the reconciler, which
//! adds node records, has the provider start agents, and calls the pool steady.
//! Each agent registers, opens its control stream and reports; from that its
//! node's state follows. Smaller targets and deletion drain nodes through the
//! same stream before the provider takes them away.
//!
//! With PostgreSQL there may be several replicas, of which one serves and the
//! others stand by, not ready, until its turn is over.

mod api;
mod auto_pools;
pub mod config;
mod core;
pub mod domain;
mod metrics;
pub mod process;
pub mod provider;
mod reconcile;
mod sessions;
pub mod store;
mod transfers;

use std::sync::Arc;

use anyhow::Context;
use kiln_auth::SecretKey;
use kiln_bus::Bus;
use kiln_grpc::{Port, Readiness, Server};
use kiln_time::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::auto_pools::AutoPools;
use crate::core::{Core, Duty, Wakeups};
use crate::metrics::Metrics;
use crate::provider::Provider;
use crate::provider::local::LocalProvider;
use crate::sessions::Sessions;
use crate::store::SqlStore;
use crate::transfers::Transfers;

pub use auto_pools::queue as job_events;
pub use config::{Config, LocalProviderConfig};

/// What the service uses and does not make itself.
#[derive(Debug, Clone)]
pub struct Deps {
    /// Signs the tokens of services and nodes.
    pub cluster_key: Arc<SecretKey>,
    /// Where events go.
    pub bus: Arc<dyn Bus>,
}

/// Runs the service until `shutdown`.
///
/// # Errors
/// If the store cannot be opened or the listener fails for good.
pub async fn run(config: Config, deps: Deps, port: impl Into<Port>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let port = port.into();
    let store = open_store(&config).await?;
    let metrics = Metrics::new()?;
    let provider = config.local.clone().map(LocalProvider::new).transpose()?;
    let sessions = Arc::new(Sessions::default());
    let core = Arc::new(Core {
        store: Arc::new(store.clone()),
        provider: provider.map(|provider| Arc::new(provider) as Arc<dyn Provider>),
        transfers: Arc::new(Transfers::new(sessions.clone())),
        sessions,
        wakeups: Wakeups::default(),
        metrics: metrics.clone(),
        cluster_key: deps.cluster_key.clone(),
        duty: Duty::default(),
        config,
    });
    let relay = kiln_telemetry::spawn(kiln_store::outbox::relay(
        store.database(),
        deps.bus.clone(),
        metrics.outbox_lag.clone(),
        shutdown.clone(),
    ));
    let readiness = Readiness::default();
    if !store.database().is_shared() {
        // Nobody else can have the turn: calls need not wait for it.
        core.duty.begin(Timestamp::now());
        readiness.set(true);
    }
    let working = kiln_telemetry::spawn({
        let (core, database) = (core.clone(), store.database());
        let (bus, readiness, shutdown) = (deps.bus, readiness.clone(), shutdown.clone());
        async move {
            database.in_turn(&shutdown, || serve_in_turn(&core, &bus, &readiness, &shutdown)).await;
        }
    });
    let server = Server {
        name: "pool-svc",
        cluster_key: deps.cluster_key,
        metrics: metrics.registry,
        readiness: readiness.clone(),
    };
    // The server outlives the loops: agents that are stopped say goodbye to it.
    let stop_serving = CancellationToken::new();
    let serving = kiln_telemetry::spawn(server.serve(port, api::routes(core.clone()), stop_serving.clone()));
    tokio::pin!(serving);
    let served = tokio::select! {
        served = &mut serving => Some(served),
        () = shutdown.cancelled() => None,
    };
    readiness.set(false);
    shutdown.cancel();
    working.await.context("the reconciler")?;
    if core.config.stop_nodes_on_shutdown
        && let Some(provider) = &core.provider
    {
        provider.stop_all().await;
    }
    core.sessions.close_all();
    core.transfers.close_all();
    stop_serving.cancel();
    let served = match served {
        Some(served) => served,
        None => serving.await,
    };
    relay.await.context("the outbox relay")?;
    served.context("the server")??;
    Ok(())
}

/// What only one replica does, until `shutdown` or until this is dropped because
/// the turn is lost. Whoever has the next turn reads the records; agents open
/// their streams there.
async fn serve_in_turn(core: &Arc<Core>, bus: &Arc<dyn Bus>, readiness: &Readiness, shutdown: &CancellationToken) {
    struct End<'e>(&'e Core, &'e Readiness, &'e CancellationToken);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            // An orderly end goes on until agents have said goodbye.
            if !self.2.is_cancelled() {
                tracing::warn!("the turn of this replica is over: it stands by");
                self.1.set(false);
                self.0.duty.end();
                self.0.sessions.forget_all();
            }
        }
    }
    let _end = End(core, readiness, shutdown);
    core.duty.begin(Timestamp::now());
    readiness.set(true);
    tokio::join!(
        reconcile::run(core.clone(), shutdown.clone()),
        kiln_store::inbox::consume(
            bus.clone(),
            auto_pools::queue(),
            AutoPools { core: core.clone() },
            shutdown.clone()
        )
    );
}

async fn open_store(config: &Config) -> anyhow::Result<SqlStore> {
    let dir = config.data_dir.clone();
    tokio::task::spawn_blocking(move || std::fs::create_dir_all(&dir))
        .await?
        .with_context(|| format!("data_dir {}", config.data_dir.display()))?;
    SqlStore::open(&config.store).await.with_context(|| format!("the store {}", config.store))
}
