//! The checker against histories that are right, and against the same with one thing wrong.
#![allow(clippy::unwrap_used)]

mod command;
mod damage;
mod property;
mod right;
mod wrong;
