//! Runs tasks on a compute node.
