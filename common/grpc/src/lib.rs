//! How every service of Kiln serves and calls.
//!
//! - [`server`]: one listener per service for gRPC, health, reflection,
//!   `/metrics`, `/livez` and `/readyz`; graceful stop; keep-alive. The accept
//!   loop serves any axum router, so the HTTP fronts use it too.
//! - [`caller`]: who calls. A layer verifies the bearer token once; handlers ask
//!   [`caller::Caller`] for the account or the node.
//!   Where there are certificates, a service's token needs its certificate.
//! - [`channel`]: outgoing channels with keep-alive, TLS, service tokens, the
//!   account on whose behalf a call is made, and the trace context.
//! - [`forward`]: calls that are passed on as they came.
//! - [`condition`]: conditions on the version of a record.
//! - [`page`]: page sizes and opaque page tokens.

pub mod caller;
pub mod channel;
pub mod condition;
pub mod forward;
pub mod page;
pub mod server;

pub use caller::{Caller, CallerLayer};
pub use channel::{Security, ServiceAuth, ServiceChannel, TokenAuth, connect_lazy, connect_secured, with_account};
pub use server::{Port, Readiness, Server, serve_http};
