//! job-svc as a program of its own; `kiln service job-svc` runs the same code.

use std::process::ExitCode;

fn main() -> ExitCode {
    job_svc::process::main(&kiln_service::flags::<job_svc::config::RawConfig>())
}
