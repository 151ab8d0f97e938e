//! Containers, blobs, shared access signatures, and packages of applications.
//!
//! - [`domain`]: the rules, without I/O: names, conditions, signatures;
//! - [`store`]: the catalogue of what exists; [`objects`]: the bytes;
//! - [`service`]: what storage does, joining the two, for both fronts:
//!   [`data_plane`] (HTTP in the Azure Blob dialect) and [`api`] (gRPC);
//! - [`collect`]: removes bytes that nobody needs; [`metrics`], [`config`].
//!
//! Promise: an acknowledged blob survives `kill -9` and power loss. Its bytes
//! are flushed before the row that names them is committed, and the answer is
//! sent after the commit. Everything else that can be on the disk (uploads that
//! broke off, replaced bytes) is garbage and is collected.

pub mod api;
pub mod collect;
pub mod config;
pub mod data_plane;
pub mod domain;
pub mod metrics;
pub mod objects;
pub mod process;
pub mod service;
pub mod store;

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kiln_auth::SecretKey;
use kiln_bus::Bus;
use kiln_grpc::{Port, Readiness, Server, serve_http};
use kiln_proto::storage::v1::application_service_server::ApplicationServiceServer;
use kiln_proto::storage::v1::storage_admin_service_server::StorageAdminServiceServer;
use kiln_proto::storage::v1::storage_service_server::StorageServiceServer;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use config::{Config, ProcessConfig, RawConfig};

use metrics::Metrics;
use objects::Objects;
use objects::local::Durability;
use objects::place::ObjectsPlace;
use service::{Remote, Storage};
use store::{Catalogue, SqlCatalogue};

/// Largest gRPC message: pieces of uploads.
const MAX_MESSAGE: usize = 8 * 1024 * 1024;

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
    pub grpc: Port,
    /// Data plane.
    pub blob: Port,
}

/// Serves until `shutdown`.
///
/// # Errors
/// When the data directory cannot be used or a listener fails for good.
pub async fn run(config: Config, deps: Deps, listeners: Listeners, shutdown: CancellationToken) -> anyhow::Result<()> {
    let metrics = Metrics::new()?;
    let _lock = lock(&config.data_dir)?;
    let catalogue = SqlCatalogue::open_with(&config.store, of_commits(config.durability))
        .await
        .with_context(|| format!("the catalogue {} cannot be opened", config.store))?;
    let database = catalogue.database().clone();
    let catalogue: Arc<dyn Catalogue> = Arc::new(catalogue);
    service::keys::check(&*catalogue, config.encryption.as_deref()).await?;
    let options = objects::Options { keyring: config.encryption.clone(), durability: config.durability };
    let log = Arc::new(service::UploadNotes(catalogue.clone()));
    let unusable = || format!("the place of the bytes, {:?}, cannot be used", config.objects);
    let objects = Objects::open(&config.objects, options, log).await.with_context(unusable)?;
    if config.objects.is_shared() {
        let name = catalogue.identity(&uuid::Uuid::new_v4().simple().to_string()).await?;
        objects.claim(&name).await.with_context(unusable)?;
    }
    if config.objects == ObjectsPlace::Memory {
        tracing::warn!("bytes of blobs larger than 64 KiB are kept in memory: they are gone when this process ends");
    }
    let remote = Remote::new(config.copy_sources.clone(), config.idle_timeout);
    let storage = Storage::new(catalogue, objects, metrics.clone(), remote);

    let relay = kiln_telemetry::spawn(kiln_store::outbox::relay(
        database,
        deps.bus,
        metrics.outbox_lag.clone(),
        shutdown.clone(),
    ));
    let collector = kiln_telemetry::spawn(clean(storage.clone(), config.clone(), shutdown.clone()));

    let readiness = Readiness::default();
    readiness.set(true);
    let server =
        Server { name: "storage-svc", cluster_key: deps.cluster_key.clone(), metrics: metrics.registry, readiness };
    let endpoint = &config.public_blob_endpoint;
    let routes = Routes::new(
        StorageServiceServer::new(api::StorageApi::new(storage.clone(), endpoint.clone()))
            .max_decoding_message_size(MAX_MESSAGE),
    )
    .add_service(
        ApplicationServiceServer::new(api::ApplicationApi::new(storage.clone(), endpoint.clone()))
            .max_decoding_message_size(MAX_MESSAGE),
    )
    .add_service(StorageAdminServiceServer::new(api::Admin::new(storage.clone(), endpoint.clone())));
    let plane = data_plane::DataPlane::new(storage, config, deps.cluster_key);
    let blob = serve_http("storage-svc blob", listeners.blob, data_plane::router(plane), shutdown.clone());
    let grpc = server.serve(listeners.grpc, routes, shutdown.clone());
    let served = tokio::try_join!(grpc, blob).context("a listener of storage-svc failed");
    // Also when one listener failed: the other tasks must not stay behind.
    shutdown.cancel();
    relay.await?;
    collector.await?;
    served.map(drop)
}

/// What commits of the catalogue survive, the same as the files.
fn of_commits(durability: Durability) -> kiln_store::Durability {
    match durability {
        Durability::PowerLoss => kiln_store::Durability::PowerLoss,
        Durability::ProcessDeath => kiln_store::Durability::ProcessDeath,
    }
}

/// Two processes on one directory would sweep each other's uploads.
fn lock(data_dir: &Path) -> anyhow::Result<File> {
    objects::local::create_dirs(data_dir, Durability::PowerLoss)
        .with_context(|| format!("{} cannot be made", data_dir.display()))?;
    let path = data_dir.join("storage-svc.lock");
    let file = File::create(&path).with_context(|| format!("{} cannot be opened", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            anyhow::bail!("another storage-svc uses {}; give it another data_dir or stop it", data_dir.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("{} cannot be locked", path.display())),
    }
}

/// Sweeps, then collects until the end. A directory that is shared is swept again and again, because what
/// another replica left when it died is too young at first.
async fn clean(storage: Storage, config: Config, shutdown: CancellationToken) {
    let collecting = collect::collect(storage.clone(), config.collect_interval, config.garbage_grace, shutdown.clone());
    let sweeping = async {
        loop {
            let (age, again) = match config.objects.is_shared() {
                false => (Duration::ZERO, None),
                true => (collect::ABANDONED, Some(collect::ABANDONED)),
            };
            let swept = tokio::select! {
                swept = collect::sweep(&storage, age) => swept,
                () = shutdown.cancelled() => return,
            };
            if let Err(error) = swept {
                tracing::warn!(%error, "bytes of interrupted uploads could not be swept; it is tried again later");
            }
            let Some(again) = again else { return };
            tokio::select! {
                () = tokio::time::sleep(again) => {}
                () = shutdown.cancelled() => return,
            }
        }
    };
    if !config.objects.is_shared() {
        sweeping.await;
        collecting.await;
    } else {
        tokio::join!(sweeping, collecting);
    }
}
