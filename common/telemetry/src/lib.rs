//! Logs, traces and spawned work of every process.
//!
//! - [`init`] sets up logs (to stderr; JSON or plain) and, if
//!   `OTEL_EXPORTER_OTLP_ENDPOINT` is set, the export of spans. The returned
//!   [`Guard`] flushes what is left; keep it until the end of `main`.
//! - [`propagation`] carries the W3C trace context over gRPC metadata, HTTP
//!   headers and text fields.
//! - [`spawn`] is how work is put on the runtime: it keeps the span and the name.
//!
//! Field names are the same everywhere: `account`, `pool.id`, `node.id`,
//! `job.id`, `task.id`, `attempt`.

mod init;
pub mod propagation;

use std::future::Future;

use tracing::Instrument;

pub use init::{Guard, LogFormat, Options, init};
pub use prometheus;

/// Puts `work` on the runtime within the current span. The only place where
/// tasks are spawned, so that none runs outside its trace.
#[track_caller]
#[allow(clippy::disallowed_methods)]
pub fn spawn<F>(work: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(work.in_current_span())
}
