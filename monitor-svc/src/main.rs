//! monitor-svc as a process of its own; `deploy/config/monitor-svc.toml` explains its settings.

use std::process::ExitCode;

use monitor_svc::{Deps, RawConfig};

fn main() -> ExitCode {
    kiln_service::main::<RawConfig, _, _>(|config, shell| {
        let deps = Deps { cluster_key: shell.cluster_key, bus: shell.bus };
        monitor_svc::run(config, deps, shell.listener, shell.shutdown)
    })
}
