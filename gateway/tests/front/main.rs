//! The whole gateway over loopback, with fake services behind it.

mod fakes;
mod grpc;
mod harness;
mod rest;
mod workflow;
