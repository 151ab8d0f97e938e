//! pool-svc as a process of its own: configuration from file, environment
//! (`KILN_POOL_*`) and flags.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use kiln_bus::Bus;
use kiln_bus::memory::MemoryBus;
use kiln_bus::rabbitmq::{RabbitBus, RabbitConfig};
use kiln_telemetry::{LogFormat, Options};
use pool_svc::Deps;
use pool_svc::config::{self, Flags, ProcessConfig};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Pools, nodes and the providers that make nodes.
#[derive(Debug, Parser)]
#[command(name = "pool-svc", version)]
struct Arguments {
    /// Configuration file.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Address to listen on.
    #[arg(long)]
    listen: Option<String>,
    /// Log one JSON object a line.
    #[arg(long)]
    log_json: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config = config::load(arguments.config.as_deref(), &Flags { listen: arguments.listen })?;
    let runtime = tokio::runtime::Runtime::new()?;
    let (outcome, guard) = runtime.block_on(async {
        let guard = kiln_telemetry::init(Options {
            service: "pool-svc",
            format: if arguments.log_json { LogFormat::Json } else { LogFormat::Plain },
            default_filter: "info",
            otlp_endpoint: Options::otlp_from_env(),
        })?;
        anyhow::Ok((serve(config).await, guard))
    })?;
    guard.shutdown();
    outcome
}

async fn serve(config: ProcessConfig) -> anyhow::Result<()> {
    let bound = TcpListener::bind(config.listen).await;
    let listener = bound.with_context(|| format!("{} cannot be listened on", config.listen))?;
    tracing::info!(listen = %config.listen, "pool-svc listens");
    let bus: Arc<dyn Bus> = match config.amqp_url {
        Some(url) => Arc::new(RabbitBus::new(RabbitConfig::new(url, "pool-svc")).context("amqp_url")?),
        None => Arc::new(MemoryBus::new()),
    };
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = shutdown.clone();
    kiln_telemetry::spawn(async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        stop.cancel();
    });
    let deps = Deps { cluster_key: Arc::new(config.cluster_key), bus };
    pool_svc::run(config.service, deps, listener, shutdown).await
}
