//! The agent as a program of its own; `kiln agent` runs the same code.

use clap::Parser;

/// Runs tasks on a compute node.
#[derive(Debug, Parser)]
#[command(name = "node-agent", version)]
struct Arguments {
    #[command(flatten)]
    agent: node_agent::AgentArgs,
}

fn main() -> anyhow::Result<()> {
    node_agent::main_with(Arguments::parse().agent)
}
