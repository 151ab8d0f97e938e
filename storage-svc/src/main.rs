//! storage-svc as a process of its own: configuration from file, environment
//! (`KILN_STORAGE_*`) and flags.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use kiln_bus::Bus;
use kiln_bus::memory::MemoryBus;
use kiln_bus::rabbitmq::{RabbitBus, RabbitConfig};
use kiln_telemetry::{LogFormat, Options};
use serde::Serialize;
use storage_svc::{Deps, Listeners, ProcessConfig, RawConfig};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Containers and blobs: gRPC for services, the Azure Blob dialect for clients.
#[derive(Debug, Parser, Serialize)]
#[command(name = "storage-svc", version)]
struct Flags {
    /// Configuration file.
    #[arg(long)]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Where catalogue and blobs are.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<PathBuf>,
    /// Address of the gRPC port.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_listen: Option<String>,
    /// Address of the data plane.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    blob_listen: Option<String>,
    /// How clients reach the data plane.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    public_blob_endpoint: Option<String>,
    /// Log one JSON object a line.
    #[arg(long)]
    #[serde(skip)]
    log_json: bool,
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let raw: RawConfig = kiln_config::load(flags.config.as_deref(), "KILN_STORAGE_", &flags)?;
    let config = ProcessConfig::try_from(raw)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let (outcome, guard) = runtime.block_on(async {
        let guard = kiln_telemetry::init(Options {
            service: "storage-svc",
            format: if flags.log_json { LogFormat::Json } else { LogFormat::Plain },
            default_filter: "info",
            otlp_endpoint: Options::otlp_from_env(),
        })?;
        anyhow::Ok((serve(config).await, guard))
    })?;
    guard.shutdown();
    outcome
}

async fn serve(config: ProcessConfig) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let bind = |address| async move {
        TcpListener::bind(address).await.with_context(|| format!("{address} cannot be listened on"))
    };
    let listeners = Listeners { grpc: bind(config.grpc_listen).await?, blob: bind(config.blob_listen).await? };
    tracing::info!(grpc = %config.grpc_listen, blob = %config.blob_listen, "storage-svc listens");
    let bus: Arc<dyn Bus> = match config.amqp_url {
        Some(url) => Arc::new(RabbitBus::new(RabbitConfig::new(url, "storage-svc")).context("amqp_url")?),
        None => Arc::new(MemoryBus::new()),
    };
    let stop = shutdown.clone();
    kiln_telemetry::spawn(async move {
        stop_signal().await;
        stop.cancel();
    });
    let deps = Deps { cluster_key: Arc::new(config.cluster_key), bus };
    storage_svc::run(config.service, deps, listeners, shutdown).await
}

async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminate = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signals) => drop(signals.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminate => {}
    }
}
