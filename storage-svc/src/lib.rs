//! Containers, blobs and shared access signatures.

pub mod config;

use std::sync::Arc;

use kiln_auth::SecretKey;
use kiln_bus::Bus;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::{Config, ProcessConfig, RawConfig};

/// What the service gets from its surroundings.
#[derive(Debug, Clone)]
pub struct Deps {
    /// Signs the tokens of services and nodes.
    pub cluster_key: Arc<SecretKey>,
    /// Where events go.
    pub bus: Arc<dyn Bus>,
}

/// The two ports of the service.
#[derive(Debug)]
pub struct Listeners {
    /// gRPC, health, metrics.
    pub grpc: TcpListener,
    /// Data plane.
    pub blob: TcpListener,
}

/// Serves until `shutdown`.
///
/// # Errors
/// When the data directory cannot be used or a listener fails for good.
pub async fn run(config: Config, deps: Deps, listeners: Listeners, shutdown: CancellationToken) -> anyhow::Result<()> {
    let _ = (config, deps, listeners);
    shutdown.cancelled().await;
    Ok(())
}
