//! The gateway as a program of its own.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use gateway::config::{Config, Flags};
use kiln_auth::SecretKey;
use kiln_telemetry::{LogFormat, Options};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// One front door: gRPC and Azure Batch REST.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Address to listen on.
    #[arg(long)]
    listen: Option<String>,
    /// Directory of the store.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Key that all services of the deployment share, Base64.
    #[arg(long, env = "KILN_CLUSTER_KEY", hide_env_values = true)]
    cluster_key: String,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let flags = Flags { listen: arguments.listen, data_dir: arguments.data_dir };
    let (config, listen) = Config::load(arguments.config.as_deref(), &flags)?;
    let cluster_key = Arc::new(SecretKey::from_base64(&arguments.cluster_key).context("KILN_CLUSTER_KEY")?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (outcome, telemetry) = runtime.block_on(async {
        let telemetry = kiln_telemetry::init(Options {
            service: "gateway",
            format: LogFormat::Json,
            default_filter: "info",
            otlp_endpoint: Options::otlp_from_env(),
        })?;
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        kiln_telemetry::spawn(async move {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            stop.cancel();
        });
        let listener = TcpListener::bind(&listen).await.with_context(|| format!("listen = {listen:?}"))?;
        let outcome = gateway::run(config, gateway::Deps { cluster_key }, listener, shutdown).await;
        anyhow::Ok((outcome, telemetry))
    })?;
    telemetry.shutdown();
    outcome
}
