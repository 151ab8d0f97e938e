//! gRPC: [`storage`] for programs and services, [`admin`] for services only.
//! Both turn messages into values of the domain and back; they hold no rule.

mod admin;
mod convert;
mod storage;

pub use admin::Admin;
pub use storage::StorageApi;
