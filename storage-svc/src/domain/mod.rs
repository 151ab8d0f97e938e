//! The rules of storage, without I/O and without a clock.
//!
//! - [`names`]: what containers, blobs, blocks and metadata may be called;
//! - [`model`]: accounts, containers, blobs and what their bytes are made of;
//! - [`condition`]: If-Match and its relatives; [`lease`]: who alone may write; [`range`]: byte ranges;
//!   [`limits`]: sizes of bodies;
//! - [`append`]: where something may be added, and when small pieces become an object;
//! - [`shared_key`], [`sas`]: signatures; [`access`]: who may do what;
//! - [`resumable`]: uploads that go on after a break;
//! - [`copy_source`]: from where copies may come; [`cors`]: scripts of other origins;
//! - [`query`]: query strings as Azure reads them;
//! - [`application`]: packages that nodes install;
//! - [`error`]: everything that can be wrong with a request.

pub mod access;
pub mod append;
pub mod application;
pub mod condition;
pub mod copy_source;
pub mod cors;
pub mod crc64;
pub mod error;
pub mod lease;
pub mod limits;
pub mod model;
pub mod names;
pub mod query;
pub mod range;
pub mod resumable;
pub mod sas;
pub mod shared_key;

pub use error::StorageError;
