//! monitor-svc as a process of its own.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use kiln_bus::{RabbitBus, RabbitConfig};
use kiln_telemetry::{LogFormat, Options};
use monitor_svc::{Config, Deps, ProcessConfig, RawConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Event log, timelines and watches of Kiln.
#[derive(Debug, Parser, serde::Serialize)]
struct Flags {
    /// Settings; the environment (KILN_MONITOR_...) and flags win over it.
    #[arg(long)]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Address of the gRPC port.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_listen: Option<String>,
    /// Where the event log lies.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let raw: RawConfig = kiln_config::load(flags.config.as_deref(), "KILN_MONITOR_", &flags)?;
    let ProcessConfig { service, grpc_listen, cluster_key, amqp_url } = ProcessConfig::try_from(raw)?;
    let telemetry = kiln_telemetry::init(Options {
        service: "monitor-svc",
        format: LogFormat::Json,
        default_filter: "info",
        otlp_endpoint: Options::otlp_from_env(),
    })?;
    let result = serve(service, grpc_listen, cluster_key, amqp_url).await;
    tokio::task::spawn_blocking(move || telemetry.shutdown()).await?;
    result
}

async fn serve(
    config: Config,
    listen: std::net::SocketAddr,
    cluster_key: kiln_auth::SecretKey,
    amqp_url: String,
) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(listen).await.with_context(|| format!("grpc_listen {listen}"))?;
    let bus = RabbitBus::new(RabbitConfig::new(amqp_url, "monitor-svc"))?;
    let shutdown = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    kiln_telemetry::spawn({
        let shutdown = shutdown.clone();
        async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            shutdown.cancel();
        }
    });
    let deps = Deps { cluster_key: Arc::new(cluster_key), bus: Arc::new(bus.clone()) };
    let result = monitor_svc::run(config, deps, listener, shutdown).await;
    bus.close();
    result
}
