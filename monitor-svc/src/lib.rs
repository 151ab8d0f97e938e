//! monitor-svc: what happened, in order, and what it adds up to.
//!
//! Every event of the deployment comes over the bus into one log; readers page
//! through it, watch it, or ask for what follows from it. The service owns
//! nothing but history: losing its store loses no work.
//!
//! - [`ingest`]: bus to log, acknowledged after the commit, repetitions dropped;
//! - [`store`]: the log and the counters over time; one writer gives positions
//!   in the order of commits, so a reader never meets a hole that fills later;
//! - [`domain`]: counters and timelines, pure;
//! - [`hub`], [`watch`], [`cursor`]: streams that resume without hole or double;
//! - [`api`]: the RPCs; every one is limited to the caller's account;
//! - [`upkeep`]: retention, and the search for events that are missing.

pub mod api;
pub mod config;
pub mod cursor;
pub mod domain;
pub mod hub;
pub mod ingest;
pub mod metrics;
pub mod process;
pub mod store;
pub mod upkeep;
pub mod watch;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kiln_bus::Bus;
use kiln_proto::monitor::v1::monitor_service_server::MonitorServiceServer;
use kiln_store::pace::Pace;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use config::{Config, RawConfig};

/// After commits of another replica all watchers look: so many times at once, then once in a time
/// that grows with their topics, so that many of them do not keep the database busy with looking.
const WAKES: u32 = 8;
const WAKE_PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(50));
const WAKE_EACH: Duration = Duration::from_micros(250);

/// What the service needs from outside.
#[derive(Debug, Clone)]
pub struct Deps {
    /// Callers' tokens must be signed with it.
    pub cluster_key: Arc<kiln_auth::SecretKey>,
    /// Where events come from.
    pub bus: Arc<dyn Bus>,
}

/// Serves until `shutdown`.
///
/// # Errors
/// If the store cannot be opened or the listener fails for good.
pub async fn run(
    config: Config,
    deps: Deps,
    port: impl Into<kiln_grpc::Port>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    tokio::fs::create_dir_all(&config.data_dir).await.context(format!("data_dir {:?}", config.data_dir))?;
    let opened = store::sql::SqlStore::open(&config.store).await;
    let opened = opened.with_context(|| format!("the store {}", config.store))?;
    let database = opened.database().clone();
    let store: Arc<dyn store::Store> = Arc::new(opened);
    let registry = prometheus::Registry::new();
    let metrics = metrics::Metrics::new(&registry)?;
    metrics.log_events.set(store.log().await?.events);
    let hub = hub::Hub::default();
    // Loops end with this function, also when the listener fails.
    let stop = shutdown.child_token();
    let _stops = stop.clone().drop_guard();

    let server = kiln_grpc::Server {
        name: "monitor-svc",
        cluster_key: deps.cluster_key,
        metrics: registry,
        readiness: kiln_grpc::Readiness::default(),
    };
    let ingest = ingest::Ingest {
        bus: deps.bus,
        store: store.clone(),
        hub: hub.clone(),
        metrics: metrics.clone(),
        prefetch: config.prefetch,
    };
    let upkeep = upkeep::Upkeep { store: store.clone(), retention: config.retention, metrics: metrics.clone() };
    let api = api::Api {
        store,
        hub: hub.clone(),
        metrics,
        watchers: Arc::new(Semaphore::new(config.max_watchers)),
        keep_alive: config.keep_alive,
        shutdown: stop.clone(),
    };
    let readiness = server.readiness.clone();
    let ingesting = kiln_telemetry::spawn({
        let stop = stop.clone();
        async move {
            if let Some(subscription) = ingest.subscribe(&stop).await {
                // Only now is everything that is published kept for us.
                readiness.set(true);
                ingest.run(subscription, stop).await;
                readiness.set(false);
            }
        }
    });
    // Of several replicas one gets the events; the watchers here hear of its commits.
    let waking = kiln_telemetry::spawn({
        let (hub, stop) = (hub.clone(), stop.clone());
        async move {
            tokio::select! {
                () = database.each_commit_elsewhere(Pace::new(WAKES, WAKE_PAUSE.0), |pace| {
                    let topics = u32::try_from(hub.wake_all()).unwrap_or(u32::MAX);
                    pace.set_every(WAKE_EACH.saturating_mul(topics).clamp(WAKE_PAUSE.0, WAKE_PAUSE.1));
                }) => {}
                () = stop.cancelled() => {}
            }
        }
    });
    let tidying = kiln_telemetry::spawn(upkeep.run(stop.clone()));
    let routes = tonic::service::Routes::new(MonitorServiceServer::new(api));
    server.serve(port, routes, shutdown).await?;
    stop.cancel();
    ingesting.await?;
    tidying.await?;
    waking.await?;
    Ok(())
}
