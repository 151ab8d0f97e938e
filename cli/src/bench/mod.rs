//! Measurements: how fast this deployment is, beside what the machine can do.

pub mod floor;
