//! pool-svc as a program of its own; `kiln service pool-svc` runs the same code.

use std::process::ExitCode;

fn main() -> ExitCode {
    pool_svc::process::main(&kiln_service::flags::<pool_svc::config::RawConfig>())
}
