//! job-svc over its wire: clients on one side, agents on the other.
#![allow(clippy::large_futures, clippy::unwrap_used)] // test bodies are long; helpers are tests, too

mod agents;
mod auto_pools;
mod dependencies;
mod harness;
mod instances;
mod jobs;
mod manager;
mod preemption;
mod preparation;
mod replicas;
mod schedules;
mod tasks;
