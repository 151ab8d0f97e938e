//! One front door: gRPC, Azure Batch REST, authentication.

pub mod config;

use std::sync::Arc;

use anyhow::Context;
use kiln_auth::SecretKey;
use kiln_grpc::{Readiness, Server};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::Config;

/// What the process gives the gateway.
#[derive(Debug, Clone)]
pub struct Deps {
    /// Signs the gateway's own calls and checks those of other services.
    pub cluster_key: Arc<SecretKey>,
}

/// Serves gRPC, REST and the operator's paths on `listener` until `shutdown`.
///
/// # Errors
/// If the store cannot be opened, an endpoint is no URL, or the listener fails.
pub async fn run(
    config: Config,
    deps: Deps,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    tokio::fs::create_dir_all(&config.data_dir)
        .await
        .with_context(|| format!("data directory {}", config.data_dir.display()))?;
    let server = Server {
        name: "gateway",
        cluster_key: deps.cluster_key,
        metrics: kiln_telemetry::prometheus::Registry::new(),
        readiness: Readiness::default(),
    };
    server.serve(listener, tonic::service::Routes::default(), shutdown).await.context("gateway listener")
}
