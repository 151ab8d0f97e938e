//! Processes of tasks: start, watch, kill with all they started.
pub mod guard;
