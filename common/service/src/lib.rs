//! The shell of a service that runs as a process of its own: flags, settings
//! that all services share, logs, signals, listeners, the bus. What is left for
//! a service's `process.rs` is to call [`main()`] and hand over to its `run`; its
//! `main.rs` reads the command line of this service alone ([`flags`]), `kiln` has
//! those of all.
//!
//! Settings come from the file (`--config`), then from environment variables
//! `KILN_<SERVICE>_<KEY>`, then from flags; unknown keys are refused. The order
//! of a start: settings are checked, logs begin, the port is bound, the bus is
//! made, `run` begins. SIGTERM or SIGINT ask it to end, a second one ends the
//! process at once; the last spans are exported before it is gone.
//!
//! Exit codes: 0 done, 1 failed, 2 flags or settings cannot be used.
//!
//! - [`settings`]: keys, where they come from, how they are checked;
//! - [`tls`]: those of certificates, and the ports that have them;
//! - [`signals`]: from signals to a cancelled token.

pub mod settings;
pub mod signals;
pub mod tls;

use std::future::Future;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches};
use kiln_auth::SecretKey;
use kiln_bus::{Bus, MemoryBus, RabbitBus, RabbitConfig};
use kiln_grpc::Port;
use kiln_telemetry::Options;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use settings::{Common, Flags, Settings, load};
pub use tls::{PublicPort, Tls};

/// Exit code for flags and settings that cannot be used; clap has the same.
const UNUSABLE: u8 = 2;

/// Work that blocks and is still not done when `run` has returned may go on for
/// this long.
const LAST_WORK: Duration = Duration::from_secs(5);

/// What the shell hands to a service.
#[derive(Debug)]
pub struct Shell {
    /// Bound to the address in `listen`, with its certificate if it has one.
    pub port: Port,
    /// For calls to other services, and for further ports.
    pub tls: Tls,
    /// Signs the tokens of services and nodes.
    pub cluster_key: Arc<SecretKey>,
    /// As `amqp_url` says; of a service without one, a bus nobody else is on.
    pub bus: Arc<dyn Bus>,
    /// Cancelled by SIGTERM and SIGINT.
    pub shutdown: CancellationToken,
}

/// The command line of a program that is this service and nothing else. Ends the
/// process if it cannot be used, or only help was wanted.
pub fn flags<S: Settings>() -> Flags {
    let command = Flags::command().name(S::SERVICE).about(S::ABOUT).version(env!("CARGO_PKG_VERSION"));
    match Flags::from_arg_matches(&command.get_matches()) {
        Ok(flags) => flags,
        Err(error) => error.exit(),
    }
}

/// Runs a service as a process: from its settings to its exit code.
pub fn main<S, Run, Running>(flags: &Flags, run: Run) -> ExitCode
where
    S: Settings,
    Run: FnOnce(S::Config, Shell) -> Running,
    Running: Future<Output = anyhow::Result<()>>,
{
    // For libraries that take the default of the process.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (common, config) = match load::<S>(flags) {
        Ok(settings) => settings,
        Err(error) => return complain(S::SERVICE, &error.into(), UNUSABLE),
    };
    if flags.check_config {
        println!("{common:#?}\n{config:#?}");
        return ExitCode::SUCCESS;
    }
    match process(S::SERVICE, S::PUBLIC_PORT, common, |shell| run(config, shell)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(S::SERVICE, &error, 1),
    }
}

/// A listener on `address`, which the setting `key` gave.
///
/// # Errors
/// Names the setting, the address and what the system says.
pub async fn bind(key: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{key} = {address} cannot be listened on"))
}

fn complain(service: &str, error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("{service}: {error:#}");
    ExitCode::from(code)
}

fn process<Run, Running>(service: &'static str, public: PublicPort, common: Common, run: Run) -> anyhow::Result<()>
where
    Run: FnOnce(Shell) -> Running,
    Running: Future<Output = anyhow::Result<()>>,
{
    let runtime = tokio::runtime::Runtime::new()?;
    let telemetry = runtime.block_on(async {
        kiln_telemetry::init(Options {
            service,
            format: common.log_format,
            default_filter: "info",
            otlp_endpoint: Options::otlp_from_env(),
        })
    })?;
    let outcome = runtime.block_on(serve(service, public, common, run));
    telemetry.shutdown();
    runtime.shutdown_timeout(LAST_WORK);
    outcome
}

async fn serve<Run, Running>(service: &'static str, public: PublicPort, common: Common, run: Run) -> anyhow::Result<()>
where
    Run: FnOnce(Shell) -> Running,
    Running: Future<Output = anyhow::Result<()>>,
{
    let shutdown = signals::shutdown()?;
    let listener = bind("listen", common.listen).await?;
    let rabbit = match common.bus.url() {
        Some(url) => {
            let config = RabbitConfig::new(url, service).with_prefix(&common.amqp_prefix);
            Some(RabbitBus::new(config).context("amqp_url")?)
        }
        None => None,
    };
    let bus: Arc<dyn Bus> = match &rabbit {
        Some(bus) => Arc::new(bus.clone()),
        None => Arc::new(MemoryBus::new()),
    };
    let tls = common.tls;
    tls.watch(&shutdown);
    let port = match public {
        PublicPort::Main => tls.public_port(listener),
        PublicPort::None | PublicPort::Other => tls.port(listener),
    };
    tracing::info!(listen = %port.local_addr()?, tls = port.has_tls(), "{service} listens");
    let outcome = run(Shell { port, tls, cluster_key: common.cluster_key, bus, shutdown }).await;
    if let Some(bus) = rabbit {
        bus.close();
    }
    outcome
}
