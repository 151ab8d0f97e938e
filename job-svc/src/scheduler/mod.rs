//! Placing tasks on nodes.
//!
//! - [`core`]: what to do, as a pure function of what happened;
//! - [`actor`]: does it, one actor for each pool; [`intake`] understands what it
//!   is told, [`absorb`] turns decisions into writes and messages, [`load`] reads what
//!   there is to do, [`parents`] finds out for tasks that wait for others where
//!   those stand;
//! - [`registry`]: finds the actor of a pool, here or at another replica, and
//!   sees to it that somebody has each; [`tenure`]: how long an actor has its pool;
//! - [`note`], [`link`], [`cache`], [`job_info`]: messages to the actor, streams
//!   to agents, tasks at hand, what it keeps of jobs.

mod absorb;
pub mod actor;
pub mod cache;
pub mod core;
mod instances;
mod intake;
pub mod job_info;
pub mod link;
mod load;
pub mod note;
mod parents;
pub mod registry;
pub mod tenure;
