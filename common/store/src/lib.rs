//! What the stores of all services share.
//!
//! - [`sqlite`]: a database file with one writer thread that puts everything
//!   queued into one transaction (group commit), and readers beside it;
//! - [`outbox`]: events that are committed with the change they announce, and
//!   the relay that publishes them;
//! - [`inbox`]: events of other services, handed over until they are dealt with;
//! - [`requests`]: answers by request id, so that a repeated call is safe.
//!
//! Domain code does not see these types: each service has a store trait in its
//! own words, and the SQLite implementation of that trait uses this crate.

mod checkpoint;
pub mod inbox;
pub mod outbox;
pub mod requests;
pub mod sqlite;

pub use rusqlite;
pub use sqlite::{Database, Durability, Migration, StoreError};
