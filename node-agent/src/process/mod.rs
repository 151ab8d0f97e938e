//! Processes of tasks: start, watch, kill with everything they started.
//!
//! - [`launch`]: a command line becomes a running process.
//! - [`supervisor`]: knows the processes of the agent; when one has ended, or
//!   has to, whatever it started is killed too, also what left its process
//!   group or session.
//! - [`orphans`]: whether a process left anything behind, without a search;
//!   [`table`]: the process table of the machine, as read from `/proc`.
//! - [`guard`]: a small second process that kills the tasks of an agent that
//!   was itself killed, and the clean-up a new agent does first;
//!   [`groups`]: what it knows of them.
//! - [`shim`]: a start in two steps, for processes with a user or a control group
//!   of their own; [`users`], [`owner`], [`cgroup`], [`watcher`].
//!
//! A task is one process group. What leaves the group is found in two ways: the agent is
//! a subreaper, so orphans become its children; and every process inherits a
//! variable with a marker in its environment.

pub mod cgroup;
mod ended;
pub mod groups;
pub mod guard;
pub mod launch;
pub mod orphans;
pub mod owner;
pub mod shim;
pub mod supervisor;
pub mod table;
pub mod users;
pub mod watcher;
