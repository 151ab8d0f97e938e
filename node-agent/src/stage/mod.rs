//! Files come in before a process starts and go out after it has ended.
//!
//! - [`transfer`]: HTTP with retries, and what its errors mean.
//! - [`cache`]: content that several tasks need is fetched once.
//! - [`listing`]: the blobs of a container.
//! - [`input`]: resource files arrive in the working directory.
//! - [`output`]: output files are found and uploaded.

pub mod cache;
pub mod input;
pub mod listing;
pub mod output;
pub mod transfer;
