//! Runs tasks on a compute node.

mod cli;
pub mod config;
pub mod process;

use tokio_util::sync::CancellationToken;

pub use cli::{AgentArgs, main_with};
pub use config::{NodeAgentConfig, NodeAgentConfig as Config, Settings};

/// Runs the agent until it leaves its pool or `shutdown` is cancelled.
///
/// # Errors
/// When the node's directory is held by another agent, or contact is lost for good.
pub async fn run(config: NodeAgentConfig, shutdown: CancellationToken) -> anyhow::Result<()> {
    tracing::info!(node.id = config.join.node_id, "agent started");
    shutdown.cancelled().await;
    Ok(())
}
