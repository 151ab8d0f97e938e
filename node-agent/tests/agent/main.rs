//! The whole agent against a pool-svc, a job-svc and a blob server of the
//! test: the agent's side of each contract, with real processes.
#![allow(clippy::unwrap_used)]

mod blob;
mod confine;
mod death;
mod files;
mod instances;
mod job_tasks;
mod line;
mod packages;
mod record;
mod service;
mod start_task;
mod streams;
mod tasks;
