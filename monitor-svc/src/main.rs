//! monitor-svc as a program of its own; `kiln service monitor-svc` runs the same code.

use std::process::ExitCode;

fn main() -> ExitCode {
    monitor_svc::process::main(&kiln_service::flags::<monitor_svc::RawConfig>())
}
