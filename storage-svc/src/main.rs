//! storage-svc as a program of its own; `kiln service storage-svc` runs the same code.

use std::process::ExitCode;

fn main() -> ExitCode {
    storage_svc::process::main(&kiln_service::flags::<storage_svc::RawConfig>())
}
