//! job-svc over its wire: clients on one side, agents on the other.

mod agents;
mod harness;
mod jobs;
mod tasks;
