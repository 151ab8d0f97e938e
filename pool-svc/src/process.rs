//! pool-svc as a process of its own; `deploy/config/pool-svc.toml` explains its settings.

use std::process::ExitCode;

use kiln_service::Flags;

use crate::Deps;
use crate::config::RawConfig;

/// Runs until SIGTERM or SIGINT; gives the exit code of the process.
pub fn main(flags: &Flags) -> ExitCode {
    kiln_service::main::<RawConfig, _, _>(flags, |config, shell| {
        let deps = Deps { cluster_key: shell.cluster_key, bus: shell.bus, tls: shell.tls.client() };
        crate::run(config, deps, shell.port, shell.shutdown)
    })
}
