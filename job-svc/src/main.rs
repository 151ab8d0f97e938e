//! job-svc as a process of its own; `deploy/config/job-svc.toml` explains its settings.

use std::process::ExitCode;

use job_svc::Deps;
use job_svc::clock::Clock;
use job_svc::config::RawConfig;

fn main() -> ExitCode {
    kiln_service::main::<RawConfig, _, _>(|config, shell| {
        let deps = Deps { cluster_key: shell.cluster_key, bus: shell.bus, clock: Clock::System };
        job_svc::run(config, deps, shell.listener, shell.shutdown)
    })
}
