//! The `kiln` program; see the library for what is in it.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    kiln_cli::main(kiln_cli::Cli::parse())
}
