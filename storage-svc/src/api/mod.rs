//! gRPC: [`storage`] and [`applications`] for programs and services, [`admin`] for services only.
//! Pieces of large
//! blobs are taken in [`resumable`]. All turn messages into values of the domain and back; they hold no rule.

mod admin;
mod applications;
mod convert;
mod resumable;
mod sas;
mod storage;

pub use admin::Admin;
pub use applications::{ApplicationApi, reference, resolved_message};
pub use storage::StorageApi;
