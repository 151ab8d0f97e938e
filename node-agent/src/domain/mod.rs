//! The rules of the agent, free of I/O, clock and runtime.
//!
//! - [`attempt`]: the life of one attempt; [`ledger`]: all attempts of the
//!   node and what job-svc still has to hear about them.
//! - [`job_tasks`]: preparation and release of jobs; [`node_task`]: how such
//!   a task goes.
//! - [`lease`]: until when the node may run tasks.
//! - [`command_line`], [`environment`]: what a process is started with.
//! - [`glob`]: which files an output file pattern means; [`paths`]: targets
//!   that stay below their directory.
//! - [`identity`]: as whom a process runs; [`limits`]: what it may use.
//! - [`packages`]: names of packages' variables, and what of a zip may become a file.
//! - [`failure`]: what is reported when something goes wrong.

pub mod attempt;
pub mod command_line;
pub mod environment;
pub mod failure;
pub mod glob;
pub mod identity;
pub mod job_tasks;
pub mod lease;
pub mod ledger;
pub mod limits;
pub mod node_task;
pub mod packages;
pub mod paths;
