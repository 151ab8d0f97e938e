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
//! With PostgreSQL there may be several replicas. One serves; the others answer
//! what is in the store, pass on the rest (`api/pass_on.rs`), and take over when
//! its turn is over.

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
use std::time::Duration;

use anyhow::Context;
use kiln_auth::SecretKey;
use kiln_bus::Bus;
use kiln_grpc::{Port, Readiness, Server, ServiceAuth};
use kiln_time::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::api::Peer;
use crate::auto_pools::AutoPools;
use crate::core::{Core, Duty, Wakeups};
use crate::metrics::Metrics;
use crate::provider::Provider;
use crate::provider::local::LocalProvider;
use crate::sessions::Sessions;
use crate::store::{Replica, SqlStore};
use crate::transfers::Transfers;

pub use auto_pools::queue as job_events;
pub use config::{Config, LocalProviderConfig};

/// The service, as its certificate says.
const SERVICE: &str = "pool-svc";
/// Whether the store still says who serves is looked at this often.
const ANNOUNCE: Duration = Duration::from_secs(5);
/// Pause after the store could not be told.
const ANNOUNCE_AGAIN: Duration = Duration::from_millis(500);

/// What the service uses and does not make itself.
#[derive(Debug, Clone)]
pub struct Deps {
    /// Signs the tokens of services and nodes.
    pub cluster_key: Arc<SecretKey>,
    /// Where events go.
    pub bus: Arc<dyn Bus>,
    /// For calls to other replicas over TLS.
    pub tls: Option<kiln_tls::ClientTls>,
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
    let endpoint = port.advertised(config.advertised_endpoint.as_deref())?;
    let auth = ServiceAuth::new(SERVICE, deps.cluster_key.clone()).with_tls(deps.tls);
    let core = Arc::new(Core {
        store: Arc::new(store.clone()),
        provider: provider.map(|provider| Arc::new(provider) as Arc<dyn Provider>),
        transfers: Arc::new(Transfers::new(sessions.clone())),
        sessions,
        wakeups: Wakeups::default(),
        metrics: metrics.clone(),
        cluster_key: deps.cluster_key.clone(),
        duty: Duty::default(),
        replica: Replica { id: uuid::Uuid::new_v4().to_string(), endpoint },
        peer: Peer::new(auth),
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
    }
    readiness.set(true);
    let working = kiln_telemetry::spawn({
        let (core, database) = (core.clone(), store.database());
        let (bus, shutdown) = (deps.bus, shutdown.clone());
        async move {
            database.in_turn(&shutdown, || serve_in_turn(&core, &bus, database.is_shared(), &shutdown)).await;
        }
    });
    let server = Server {
        name: SERVICE,
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
    // Agents that another replica looks after go on.
    if core.config.stop_nodes_on_shutdown
        && core.duty.since().is_some()
        && let Some(provider) = &core.provider
    {
        provider.stop_all().await;
    }
    core.sessions.close_all();
    core.transfers.close_all();
    core.peer.close_all();
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
async fn serve_in_turn(core: &Arc<Core>, bus: &Arc<dyn Bus>, shared: bool, shutdown: &CancellationToken) {
    struct End<'e>(&'e Core, &'e CancellationToken);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            // An orderly end goes on until agents have said goodbye.
            if !self.1.is_cancelled() {
                tracing::warn!("the turn of this replica is over: it passes calls on");
                self.0.duty.end();
                self.0.sessions.forget_all();
            }
        }
    }
    let _end = End(core, shutdown);
    core.duty.begin(Timestamp::now());
    tokio::join!(
        announce(core, shared, shutdown),
        reconcile::run(core.clone(), shutdown.clone()),
        kiln_store::inbox::consume(
            bus.clone(),
            auto_pools::queue(),
            AutoPools { core: core.clone() },
            shutdown.clone()
        )
    );
}

/// Tells the others where this replica is, while it serves. Again from time to
/// time: one that stood still may have said late that it was its turn.
async fn announce(core: &Core, shared: bool, shutdown: &CancellationToken) {
    while shared && !shutdown.is_cancelled() {
        let told = async {
            match core.store.serving().await? {
                Some(replica) if replica == core.replica => Ok(()),
                _ => core.store.announce(&core.replica).await,
            }
        };
        let pause = match told.await {
            Ok(()) => ANNOUNCE,
            Err(error) => {
                tracing::warn!(%error, "other replicas could not be told that this one serves; it is tried again");
                ANNOUNCE_AGAIN
            }
        };
        shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
}

async fn open_store(config: &Config) -> anyhow::Result<SqlStore> {
    let dir = config.data_dir.clone();
    tokio::task::spawn_blocking(move || std::fs::create_dir_all(&dir))
        .await?
        .with_context(|| format!("data_dir {}", config.data_dir.display()))?;
    SqlStore::open(&config.store).await.with_context(|| format!("the store {}", config.store))
}
