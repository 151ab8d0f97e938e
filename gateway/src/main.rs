//! The gateway as a program of its own; `kiln service gateway` runs the same code.

use std::process::ExitCode;

fn main() -> ExitCode {
    gateway::process::main(&kiln_service::flags::<gateway::config::RawConfig>())
}
