//! Event log, timelines and watches.

pub mod config;

use std::sync::Arc;

use kiln_bus::Bus;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::Config;

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
pub async fn run(config: Config, deps: Deps, listener: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
    tokio::fs::create_dir_all(&config.data_dir).await?;
    let server = kiln_grpc::Server {
        name: "monitor-svc",
        cluster_key: deps.cluster_key,
        metrics: prometheus::Registry::new(),
        readiness: kiln_grpc::Readiness::default(),
    };
    server.readiness.set(true);
    server.serve(listener, tonic::service::Routes::default(), shutdown).await?;
    Ok(())
}
