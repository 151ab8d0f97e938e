//! What the stores of all services share.
//!
//! - [`database`]: one writer thread that puts everything queued into one
//!   transaction (group commit), and readers beside it;
//! - `sqlite`, [`postgres`]: the two databases, and [`config`] which it is;
//! - [`sql`]: the SQL in which all stores are written, once;
//! - [`outbox`]: events that are committed with the change they announce, and
//!   the relay that publishes them;
//! - [`inbox`]: events of other services, handed over until they are dealt with;
//! - [`pace`]: how often a loop may look or tell;
//! - [`requests`]: answers by request id, so that a repeated call is safe.
//!
//! Domain code does not see these types: each service has a store trait in its
//! own words, and the implementation of that trait uses this crate.

mod checkpoint;
pub mod config;
pub mod database;
mod dialect;
pub mod error;
pub mod inbox;
pub mod migration;
pub mod outbox;
pub mod pace;
pub mod postgres;
pub mod requests;
pub mod sql;
mod sqlite;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use config::StoreConfig;
pub use database::{Database, Durability};
pub use error::StoreError;
pub use migration::Migration;
pub use postgres::{InvalidUrl, PostgresConfig};
pub use rusqlite;
