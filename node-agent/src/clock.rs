//! The clock of leases.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Time since the machine was started. Goes on while the machine sleeps, so a
/// laptop that wakes up knows that its lease is over.
pub fn since_boot() -> Duration {
    match clock_gettime(ClockId::CLOCK_BOOTTIME) {
        Ok(time) => Duration::from(time),
        // Kernels without this clock are older than the ones we run on.
        Err(_) => clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default(),
    }
}
