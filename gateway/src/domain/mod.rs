//! Rules without I/O: accounts and how requests are signed.

pub mod account;
pub mod shared_key;

pub use account::Account;
