//! The gateway as a process of its own; `deploy/config/gateway.toml` explains its
//! settings.

use std::process::ExitCode;

use gateway::Deps;
use gateway::config::RawConfig;

fn main() -> ExitCode {
    kiln_service::main::<RawConfig, _, _>(|config, shell| {
        gateway::run(config, Deps { cluster_key: shell.cluster_key }, shell.listener, shell.shutdown)
    })
}
