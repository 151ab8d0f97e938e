//! `kiln status`: the server that runs on a data directory.

use std::path::Path;

use anyhow::Context;

use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, table};
use crate::up::running::{Process, Running};

/// Prints it; JSON is the content of `runtime.json`.
///
/// # Errors
/// If no server runs there.
pub fn command(format: Format, data: &Path) -> Outcome {
    let running = Running::find(data).ok_or_else(|| {
        Failure::Unreachable(format!("no server runs on {}; start one with `kiln up`", data.display()))
    })?;
    if format == Format::Json {
        let text = serde_json::to_string_pretty(&running).context("runtime file")?;
        output::line(format_args!("{text}"));
        return Ok(());
    }
    let rows = vec![
        ("endpoint", running.endpoint),
        ("blobs", running.blob_endpoint),
        ("data", data.display().to_string()),
        ("pid", running.pid.to_string()),
    ];
    output::text_block(format_args!("{}", table::details(rows)));
    if !running.processes.is_empty() {
        output::text_block(format_args!("\n{}", processes(&running.processes)));
    }
    Ok(())
}

/// A table of the services.
pub fn processes(all: &[Process]) -> String {
    let row = |process: &Process| {
        let state = match (process.pid, process.ready) {
            (None, _) => "restarting",
            (Some(_), false) => "starting",
            (Some(_), true) => "ready",
        };
        vec![
            format!("{}-{}", process.service, process.replica),
            state.to_owned(),
            process.pid.map(|pid| pid.to_string()).unwrap_or_default(),
            process.port.to_string(),
            process.blob_port.map(|port| port.to_string()).unwrap_or_default(),
            process.starts.to_string(),
        ]
    };
    table::table(&["process", "state", "pid", "port", "blobs", "starts"], all.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_come_as_a_table() {
        let process = |replica, pid, ready| Process {
            service: "gateway".to_owned(),
            replica,
            pid,
            port: 7000,
            blob_port: None,
            ready,
            starts: 1,
        };
        let text = processes(&[process(1, Some(5), true), process(2, None, false)]);
        let lines: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["gateway-1", "ready", "5", "7000", "1"]);
        assert_eq!(lines[2], ["gateway-2", "restarting", "7000", "1"]);
    }
}
