//! The whole gateway over loopback, with fake services behind it.

// A test stops at what it did not expect, also in its helpers.
#![allow(clippy::unwrap_used)]

mod fakes;
mod grpc;
mod harness;
mod job_tokens;
mod rest;
mod schedules;
mod workflow;
