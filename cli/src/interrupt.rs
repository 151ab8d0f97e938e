//! Ctrl-C and SIGTERM: the first asks to stop, the second leaves at once.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::failure::Outcome;

/// Tells that the user wants to stop.
#[derive(Debug, Clone)]
pub struct Interrupt(CancellationToken);

impl Interrupt {
    /// Takes over both signals for the rest of the process.
    ///
    /// # Errors
    /// If signals cannot be handled.
    pub fn listen() -> Outcome<Self> {
        let token = CancellationToken::new();
        let mut interrupts = signal(SignalKind::interrupt()).context("signals")?;
        let mut terminations = signal(SignalKind::terminate()).context("signals")?;
        let asked = token.clone();
        kiln_telemetry::spawn(async move {
            either(&mut interrupts, &mut terminations).await;
            asked.cancel();
            either(&mut interrupts, &mut terminations).await;
            eprintln!("leaving at once");
            std::process::exit(130);
        });
        Ok(Self(token))
    }

    /// Waits for the first signal.
    pub async fn requested(&self) {
        self.0.cancelled().await;
    }

    /// Whether it has come.
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
