//! Jobs, tasks and the scheduler that places tasks on nodes.
//!
//! - [`api`]: gRPC for clients (through the gateway) and for agents;
//! - [`domain`]: the rules, free of I/O;
//! - [`scheduler`]: one actor a pool around a pure core;
//! - [`ticker`]: has job schedules create their jobs, by the time of [`clock`];
//! - [`auto_pools`]: what pool-svc is told about pools of jobs, and answers;
//! - [`store`]: what is kept;
//! - [`aging`]: the end of tasks that are too old;
//! - [`config`], [`metrics`];
//! - [`bench`]: measures the core of the scheduler alone.
//!
//! The life of a task: [`api`] checks it and writes its row together with the
//! job's counts and the event (one transaction of many callers), then tells the
//! actor of the pool. The core picks a node; the assignment is committed, then
//! sent. With several replicas, the one that has the pool does that, whichever
//! took the call (see [`scheduler::registry`]). The agent's reports come in on the same stream, are committed, and only
//! then acknowledged. See [`scheduler::core`] for the promises this keeps.

pub mod aging;
pub mod api;
pub mod auto_pools;
pub mod bench;
pub mod clock;
pub mod config;
pub mod domain;
pub mod metrics;
pub mod process;
pub mod scheduler;
pub mod store;
pub mod ticker;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kiln_auth::SecretKey;
use kiln_bus::Bus;
use kiln_grpc::ServiceAuth;
use kiln_proto::job::v1::job_schedule_service_server::JobScheduleServiceServer;
use kiln_proto::job::v1::job_service_server::JobServiceServer;
use kiln_proto::job::v1::work_service_server::WorkServiceServer;
use kiln_store::pace::Pace;
use kiln_store::{inbox, outbox};
use kiln_time::Timestamp;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::aging::Aging;
use crate::api::Api;
use crate::api::owner::Peers;
use crate::api::schedules::ScheduleApi;
use crate::api::work::Work;
use crate::clock::Clock;
use crate::scheduler::actor::Context;
use crate::scheduler::core::Settings;
use crate::scheduler::registry::{Recovery, Registry};
use crate::store::leases::Presence;
use crate::store::sql::SqlStore;
use crate::store::{LeaseStore, Store};
use crate::ticker::Ticker;

pub use config::Config;

/// The service, as its certificate says.
pub const SERVICE: &str = "job-svc";
/// Messages from clients and agents may have this many bytes.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// Old answers to requests are forgotten this often.
const FORGET: Duration = Duration::from_secs(600);
/// After commits of other replicas, schedules are looked at this often at most.
const SCHEDULES_PAUSE: Duration = Duration::from_millis(250);

/// What the service is given by whoever starts it.
#[derive(Debug, Clone)]
pub struct Deps {
    /// Signs the tokens of services and nodes.
    pub cluster_key: Arc<SecretKey>,
    /// Where events go.
    pub bus: Arc<dyn Bus>,
    /// The time schedules and the age of tasks go by.
    pub clock: Clock,
    /// For calls to other replicas over TLS.
    pub tls: Option<kiln_tls::ClientTls>,
}

/// Serves until `shutdown`.
///
/// # Errors
/// If the store cannot be opened or the listener fails.
pub async fn run(
    config: Config,
    deps: Deps,
    port: impl Into<kiln_grpc::Port>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let metrics = metrics::Metrics::new()?;
    let store = open_store(&config).await?;
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let context = Context {
        store: shared.clone(),
        settings: Settings { patience: config.lease + config.lease_margin, linger: config.transition_linger },
        lease: config.lease,
        cache_bytes: config.spec_cache_bytes,
        metrics: metrics.clone(),
        cluster_key: deps.cluster_key.clone(),
    };
    let port = port.into();
    let endpoint = port.advertised(config.advertised_endpoint.as_deref())?;
    let presence = Presence { endpoint: endpoint.into(), lease: config.pool_lease };
    let leases: Arc<dyn LeaseStore> = Arc::new(store.clone());
    let registry = Arc::new(Registry::new(context, leases.clone(), presence, shutdown.clone()));
    let readiness = kiln_grpc::Readiness::default();
    let relay = kiln_telemetry::spawn(outbox::relay(
        store.database().clone(),
        deps.bus.clone(),
        metrics.outbox.clone(),
        shutdown.clone(),
    ));
    let forgetting = {
        let (database, shared, leases, ends) =
            (store.database().clone(), shared.clone(), leases.clone(), shutdown.clone());
        kiln_telemetry::spawn(async move {
            database.in_turn(&ends, || forget_loop(shared.clone(), leases.clone(), ends.clone())).await;
        })
    };
    let ticker = Ticker { store: Arc::new(store.clone()), registry: registry.clone(), clock: deps.clock.clone() };
    let ticking = {
        let (database, changed, ends) = (store.database().clone(), ticker.store.schedules_changed(), shutdown.clone());
        kiln_telemetry::spawn(async move {
            tokio::select! {
                () = database.in_turn(&ends, || ticker.clone().run(ends.clone())) => {}
                // Of what other replicas did, only that there was something is known.
                () = database.each_commit_elsewhere(Pace::new(1, SCHEDULES_PAUSE), |_| changed.notify_one()) => {}
            }
        })
    };
    let aging = Aging { store: shared.clone(), registry: registry.clone(), clock: deps.clock.clone() };
    let aging = kiln_telemetry::spawn(aging.run(shutdown.clone()));
    let pools = Arc::new(store.clone());
    let announcing = {
        let (database, pools, clock, ends) =
            (store.database().clone(), pools.clone(), deps.clock.clone(), shutdown.clone());
        kiln_telemetry::spawn(async move {
            database.in_turn(&ends, || auto_pools::announce(pools.clone(), clock.clone(), ends.clone())).await;
        })
    };
    let answers = kiln_telemetry::spawn(inbox::consume(
        deps.bus.clone(),
        auto_pools::queue(),
        auto_pools::Answers { store: pools, registry: registry.clone() },
        shutdown.clone(),
    ));
    let recovery = kiln_telemetry::spawn(recover(registry.clone(), readiness.clone(), shutdown.clone()));
    let peers = Arc::new(Peers::new(ServiceAuth::new(SERVICE, deps.cluster_key.clone()).with_tls(deps.tls)));
    let server = kiln_grpc::Server {
        name: SERVICE,
        cluster_key: deps.cluster_key,
        metrics: metrics.registry.clone(),
        readiness: readiness.clone(),
    };
    let schedules = ScheduleApi { store: Arc::new(store), clock: deps.clock, linger: config.transition_linger };
    let served = server.serve(port, routes(shared, schedules, registry, peers, &shutdown), shutdown.clone()).await;
    readiness.set(false);
    // Also when the listener failed: nothing may go on without the service.
    shutdown.cancel();
    for work in [relay, forgetting, ticking, aging, announcing, answers, recovery] {
        if let Err(error) = work.await {
            tracing::error!(%error, "a loop of job-svc ended unexpectedly");
        }
    }
    Ok(served?)
}

async fn open_store(config: &Config) -> anyhow::Result<SqlStore> {
    tokio::fs::create_dir_all(&config.data_dir)
        .await
        .with_context(|| format!("data directory {}", config.data_dir.display()))?;
    SqlStore::open(&config.store).await.with_context(|| format!("the store {}", config.store))
}

fn routes(
    store: Arc<dyn Store>,
    schedules: ScheduleApi,
    registry: Arc<Registry>,
    peers: Arc<Peers>,
    shutdown: &CancellationToken,
) -> Routes {
    let api = Api { store, schedules: schedules.store.clone(), registry: registry.clone(), peers };
    let schedules = JobScheduleServiceServer::new(schedules)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE * 4);
    let api =
        JobServiceServer::new(api).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE * 4);
    let work = WorkServiceServer::new(Work { registry, shutdown: shutdown.clone() })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE * 4);
    Routes::new(api).add_service(schedules).add_service(work)
}

/// Loads all pools that are this replica's, then says that the service is ready;
/// sees to the pools until `shutdown`.
async fn recover(registry: Arc<Registry>, readiness: kiln_grpc::Readiness, shutdown: CancellationToken) {
    loop {
        let error = tokio::select! {
            outcome = registry.recover() => match outcome {
                Ok(recovery) => return see_to_pools(&registry, recovery, &readiness, shutdown).await,
                Err(error) => error,
            },
            () = shutdown.cancelled() => return,
        };
        tracing::error!(%error, "the pools could not be read; trying again");
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn see_to_pools(
    registry: &Registry,
    recovery: Recovery,
    readiness: &kiln_grpc::Readiness,
    shutdown: CancellationToken,
) {
    let after = recovery.after;
    let ready = async {
        tokio::select! {
            pools = recovery.loaded() => {
                tracing::info!(pools, "job-svc is ready");
                readiness.set(true);
            }
            () = shutdown.cancelled() => {}
        }
    };
    if registry.is_shared() {
        tokio::join!(ready, registry.keep(shutdown.clone()), registry.follow(after, shutdown.clone()));
    } else {
        ready.await;
    }
}

async fn forget_loop(store: Arc<dyn Store>, leases: Arc<dyn LeaseStore>, shutdown: CancellationToken) {
    loop {
        if let Err(error) = leases.forget_leases().await {
            tracing::warn!(%error, "old leases and changes could not be forgotten");
        }
        match store.forget(Timestamp::now()).await {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "old answers to requests were forgotten"),
            Err(error) => tracing::warn!(%error, "old answers to requests could not be forgotten"),
        }
        tokio::select! {
            () = tokio::time::sleep(FORGET) => {}
            () = shutdown.cancelled() => return,
        }
    }
}
