//! One front door on one port.
//!
//! ```text
//!              +--------------------- gateway ---------------------+
//! REST    ---> | rest/   SharedKey or bearer, JSON <-> proto  -----+--> pool-svc, job-svc
//! gRPC    ---> | front   bearer -> account                         |
//!              |   proxy/   public services, streams as they are --+--> the service that owns it
//!              |   api/     account, task files, workflow, admin --+--> pool-svc, job-svc
//! GET /metrics | operator paths (no authentication)                |
//!              +---------------------------------------------------+
//! ```
//!
//! - [`config`]: settings; [`metrics`]: what `/metrics` shows;
//! - [`domain`]: accounts, string-to-sign; no I/O;
//! - [`store`]: accounts on disk; [`accounts`]: their keys in memory;
//! - [`backend`]: channels to the services behind; [`proxy`]: gRPC pass-through;
//! - [`rights`]: what tokens of tasks open; [`job_access`]: calls with them;
//! - [`limit`]: how many requests an account may have open;
//! - [`front`]: decides which of all these answers a request;
//! - [`task_file`]: finds the node that has the files of a task;
//! - [`api`]: the gRPC services the gateway answers itself;
//! - [`rest`]: the Azure Batch REST dialect.
//!
//! Users' credentials end here: behind the gateway every call carries the
//! gateway's service token and names the account in metadata.

pub mod accounts;
pub mod api;
pub mod backend;
pub mod config;
pub mod domain;
pub mod front;
pub mod job_access;
pub mod limit;
pub mod metrics;
pub mod process;
pub mod proxy;
pub mod rest;
pub mod rights;
pub mod store;
pub mod task_file;

use std::sync::Arc;

use anyhow::Context;
use kiln_auth::SecretKey;
use kiln_grpc::{Port, Readiness, Server, ServiceAuth, serve_http};
use kiln_tls::ClientTls;
use tokio_util::sync::CancellationToken;

pub use config::Config;

use accounts::Accounts;
use backend::Backends;
use front::Front;
use limit::AccountLimits;
use metrics::Metrics;
use rest::Rest;
use store::sql::SqlStore;

/// What the process gives the gateway.
#[derive(Debug, Clone)]
pub struct Deps {
    /// Signs the gateway's own calls, checks those of other services and the
    /// tokens of tasks.
    pub cluster_key: Arc<SecretKey>,
    /// For calls to the services behind; absent where they are plain.
    pub tls: Option<ClientTls>,
}

/// Serves gRPC, REST and the operator's paths on `listener` until `shutdown`.
///
/// # Errors
/// If the store cannot be opened, an endpoint is no URL, or the listener fails.
pub async fn run(config: Config, deps: Deps, port: impl Into<Port>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let port = port.into();
    tokio::fs::create_dir_all(&config.data_dir)
        .await
        .with_context(|| format!("data directory {}", config.data_dir.display()))?;
    let store = SqlStore::open(&config.store).await.with_context(|| format!("the store {}", config.store))?;
    let accounts = Accounts::new(Arc::new(store), deps.cluster_key.clone());
    let auth = ServiceAuth::new("gateway", deps.cluster_key.clone()).with_tls(deps.tls);
    let backends = Backends::connect(&config, auth)?;
    let metrics = Metrics::new()?;
    let limits = AccountLimits::new(config.max_open_requests);
    let readiness = Readiness::default();

    let server = Server {
        name: "gateway",
        cluster_key: deps.cluster_key.clone(),
        metrics: metrics.registry(),
        readiness: readiness.clone(),
    };
    let own = api::Services::new(config.clone(), accounts.clone(), backends.clone(), shutdown.clone());
    let local = server.router(own.routes())?;
    let rest = Rest::new(config, accounts.clone(), backends.clone(), limits.clone(), metrics.clone());
    let front = Front::new(accounts, backends, limits, metrics, local, rest);

    readiness.set(true);
    readiness.end_with(shutdown.clone());
    tracing::info!(address = ?port.local_addr().ok(), "the gateway is open");
    serve_http("gateway", port, front.into_router(), shutdown).await.context("gateway listener")?;
    Ok(())
}
