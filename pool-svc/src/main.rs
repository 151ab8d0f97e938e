//! pool-svc as a process of its own; `deploy/config/pool-svc.toml` explains its settings.

use std::process::ExitCode;

use pool_svc::Deps;
use pool_svc::config::RawConfig;

fn main() -> ExitCode {
    kiln_service::main::<RawConfig, _, _>(|config, shell| {
        let deps = Deps { cluster_key: shell.cluster_key, bus: shell.bus };
        pool_svc::run(config, deps, shell.listener, shell.shutdown)
    })
}
