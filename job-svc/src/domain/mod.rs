//! The rules of jobs and tasks, free of clock, network and database.
//!
//! - [`task`]: the state machine of a task and the rule of retries;
//! - [`cause`]: why attempts are given back or given up;
//! - [`job`]: the state machine of a job;
//! - [`auto_pool`]: pools that jobs bring along;
//! - [`schedule`]: when a schedule creates its jobs;
//! - [`dependencies`]: which tasks a task waits for;
//! - [`exit`]: what the end of a task means for its job and its dependants;
//! - [`spec`]: what users may ask for. Specs are data that is kept and given
//!   back unchanged, so they stay in their wire form; the facts the scheduler
//!   needs are taken out once, when a task is added;
//! - [`job_manager`]: the task whose end may end its job;
//! - [`subtask`]: one instance of a multi-instance task;
//! - [`needs`]: what tasks need of nodes, and what nodes have;
//! - [`job_tasks`]: preparation and release of jobs;
//! - [`schedule_spec`]: the same for schedules;
//! - [`etag`]: versions of records as clients see them;
//! - [`error`]: everything that can be refused.

pub mod auto_pool;
pub mod cause;
pub mod dependencies;
pub mod error;
pub mod etag;
pub mod exit;
pub mod job;
pub mod job_manager;
pub mod job_tasks;
pub mod needs;
pub mod schedule;
pub mod schedule_spec;
pub mod spec;
pub mod subtask;
pub mod task;

pub use error::Error;
