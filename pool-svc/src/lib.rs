//! Pools, nodes and the providers that make nodes.

pub mod config;
pub mod domain;
pub mod store;

use std::sync::Arc;

use kiln_auth::SecretKey;
use kiln_bus::Bus;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

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
pub async fn run(config: Config, deps: Deps, listener: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
    let _ = (config, deps, listener);
    shutdown.cancelled().await;
    Ok(())
}
