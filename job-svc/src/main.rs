//! job-svc as a process of its own.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use job_svc::config::{Config, RawConfig};
use kiln_auth::SecretKey;
use kiln_bus::rabbitmq::{RabbitBus, RabbitConfig};
use kiln_telemetry::{LogFormat, Options};
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
#[command(about = "Kiln's jobs, tasks and scheduler")]
struct Args {
    /// Configuration file; deploy/config/job-svc.toml explains the settings.
    #[arg(long)]
    config: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let guard = kiln_telemetry::init(Options {
        service: "job-svc",
        format: LogFormat::Json,
        default_filter: "info",
        otlp_endpoint: Options::otlp_from_env(),
    })?;
    let raw: RawConfig = kiln_config::load(args.config.as_deref(), "KILN_JOB_", &serde_json::json!({}))?;
    let key_file = raw.cluster_key_file.clone().context("cluster_key_file is required")?;
    let key = std::fs::read_to_string(&key_file).with_context(|| key_file.display().to_string())?;
    let url =
        raw.amqp_url.clone().context("amqp_url is required: a process of its own shares its events over RabbitMQ")?;
    let bus = Arc::new(RabbitBus::new(RabbitConfig::new(&url, "job-svc")).context("amqp_url")?);
    let listen = raw.listen.clone().unwrap_or_else(|| "127.0.0.1:7463".to_owned());
    let config = Config::try_from(raw)?;
    let listener = tokio::net::TcpListener::bind(&listen).await.with_context(|| format!("listen = {listen:?}"))?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    kiln_telemetry::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.cancel();
        }
    });
    let deps = job_svc::Deps { cluster_key: Arc::new(SecretKey::from_base64(&key)?), bus };
    let outcome = job_svc::run(config, deps, listener, shutdown).await;
    tokio::task::spawn_blocking(move || guard.shutdown()).await?;
    outcome
}
