//! PostgreSQL behind [`crate::sql`].
//!
//! - [`config`]: which server, database and schema, and how long to wait;
//! - [`connect`]: a connection, encrypted if the server is elsewhere;
//! - [`connection`]: one connection that a blocking thread uses, statement by
//!   statement; [`many`] is its batch of rows; [`wire`] turns values into the
//!   types of columns and back;
//! - [`session`]: the connection that hears of commits of other replicas, and
//!   holds the lock of the one whose turn it is to publish events;
//! - [`migrate`]: the schema.
//!
//! docs/adr/007 has the reasons.

pub(crate) mod config;
pub(crate) mod connect;
pub(crate) mod connection;
pub(crate) mod many;
pub(crate) mod migrate;
pub(crate) mod session;
pub(crate) mod wire;

#[cfg(test)]
mod tests;

pub use config::{InvalidUrl, PostgresConfig};

/// Number of the advisory lock that `what` of a schema is under. Two schemas
/// with the same number would only wait for each other.
pub(crate) fn lock_number(schema: &str, what: &str) -> i64 {
    // FNV-1a: the same in every version of this program.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in ["kiln", schema, what].join("/").bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash.cast_signed()
}
