//! Files come in before a process starts and go out after it has ended.
//!
//! - [`transfer`]: HTTP with retries, and what its errors mean.
//! - [`cache`]: content that several tasks need is fetched once; [`turns`]: by one of them.
//! - [`download`]: one file comes in, whole, over connections that may break; [`writer`]: its bytes go to disk.
//! - [`upload`]: one file goes out, a large one in blocks.
//! - [`listing`]: the blobs of a container.
//! - [`input`]: resource files arrive in the working directory.
//! - [`output`]: output files are found and uploaded.
//!
//! Both directions have a bounded number of connections for the whole node. What one file
//! takes beyond its first is taken only while nobody else waits for it, so memory is bounded, too.

pub mod cache;
pub mod download;
#[cfg(test)]
mod fake_server;
pub mod input;
pub mod listing;
pub mod output;
pub mod transfer;
pub mod turns;
pub mod upload;
pub mod writer;
