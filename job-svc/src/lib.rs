//! Jobs, tasks and the scheduler.

pub mod config;
pub mod domain;
pub mod store;

use std::sync::Arc;

use kiln_auth::SecretKey;
use kiln_bus::Bus;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::Config;

/// What the service is given by whoever starts it.
#[derive(Debug, Clone)]
pub struct Deps {
    /// Signs the tokens of services and nodes.
    pub cluster_key: Arc<SecretKey>,
    /// Where events go.
    pub bus: Arc<dyn Bus>,
}

/// Serves until `shutdown`.
///
/// # Errors
/// If the store cannot be opened or the listener fails.
pub async fn run(
    config: Config,
    deps: Deps,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let readiness = kiln_grpc::Readiness::default();
    tracing::info!(data = %config.data_dir.display(), "job-svc starts");
    readiness.set(true);
    kiln_grpc::Server {
        name: "job-svc",
        cluster_key: deps.cluster_key,
        metrics: kiln_telemetry::prometheus::Registry::new(),
        readiness,
    }
    .serve(listener, tonic::service::Routes::default(), shutdown)
    .await?;
    Ok(())
}
