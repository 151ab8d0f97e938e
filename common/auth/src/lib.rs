//! Keys, signatures and tokens.
//!
//! - [`SecretKey`]: an account key or the deployment's cluster key; signs with
//!   HMAC-SHA-256, never prints itself, is wiped from no log because it never
//!   reaches one.
//! - [`token`]: signed bearer tokens. Users mint theirs from an account key, so
//!   that the key itself does not travel; services and nodes carry tokens
//!   signed with the cluster key.

mod key;
pub mod token;

pub use key::{InvalidKey, SecretKey, constant_time_eq};
