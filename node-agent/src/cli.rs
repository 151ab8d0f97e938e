//! The agent as a process: arguments, logs, runtime, signals.

use std::path::PathBuf;

use anyhow::Context;
use kiln_node::JoinConfig;
use kiln_telemetry::{LogFormat, Options};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{NodeAgentConfig, Settings};

/// Arguments of `kiln agent` and of `node-agent`.
#[derive(Debug, Clone, clap::Args)]
pub struct AgentArgs {
    /// Join file that a provider (or `kiln node join`) wrote.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["guard", "shim"])]
    pub join: Option<PathBuf>,
    /// Run as the guard of the agent with this incarnation: kills its tasks
    /// when the agent is gone. Started by the agent itself.
    #[arg(long, value_name = "INCARNATION", hide = true, conflicts_with = "join")]
    pub guard: Option<String>,
    /// Put this process into its place and become a task's. Started by the agent
    /// itself.
    #[arg(long, hide = true, conflicts_with_all = ["join", "guard"])]
    pub shim: bool,
}

/// Runs the agent until it leaves its pool or is asked to stop. Call it
/// outside of any runtime: it makes its own.
///
/// # Errors
/// When the join file or a setting is not usable, when another agent holds the
/// node's directory, and when the agent gave up for lack of contact.
pub fn main_with(args: AgentArgs) -> anyhow::Result<()> {
    if let Some(incarnation) = args.guard {
        return crate::process::guard::run_guard(&incarnation);
    }
    if args.shim {
        return crate::process::shim::run_shim();
    }
    let file = args.join.context("--join FILE is required")?;
    let join = JoinConfig::read(&file).with_context(|| format!("join file {}", file.display()))?;
    let mut config = NodeAgentConfig::new(join);
    config.settings = Settings::load()?;
    config.owns_process = true;
    config.guard_command = own_command("--guard");
    config.shim_command = own_command("--shim");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let telemetry = runtime.block_on(async {
        kiln_telemetry::init(Options {
            service: "node-agent",
            format: LogFormat::Json,
            default_filter: "info",
            otlp_endpoint: Options::otlp_from_env(),
        })
    })?;
    let result = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        stop_on_signal(SignalKind::terminate(), shutdown.clone())?;
        stop_on_signal(SignalKind::interrupt(), shutdown.clone())?;
        Box::pin(crate::run(config, shutdown)).await
    });
    if let Err(error) = &result {
        tracing::error!(error = format!("{error:#}"), "the agent ends");
    }
    // Blocking threads may still remove files; nobody waits for that.
    runtime.shutdown_background();
    telemetry.shutdown();
    result
}

fn stop_on_signal(kind: SignalKind, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut signals = signal(kind).context("signals cannot be handled")?;
    kiln_telemetry::spawn(async move {
        if signals.recv().await.is_some() {
            tracing::info!(signal = kind.as_raw_value(), "asked to stop");
            shutdown.cancel();
        }
    });
    Ok(())
}

/// How to start this very program as a helper of its own: everything before `--join`,
/// so that the subcommand of `kiln` is kept.
fn own_command(argument: &str) -> Vec<String> {
    // Works even when the program file was replaced since it was started.
    let mut command = vec!["/proc/self/exe".to_owned()];
    command.extend(std::env::args().skip(1).take_while(|argument| !argument.starts_with("--join")));
    command.push(argument.to_owned());
    command
}
