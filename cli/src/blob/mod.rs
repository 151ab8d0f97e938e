//! Many blobs and files at once.
//!
//! - [`place`]: what `kiln:CONTAINER/NAME` and local paths on a command line mean;
//! - [`select`]: the files and blobs behind them, and where each goes;
//! - [`local`]: directories of this machine, and how not to leave them;
//! - [`carry`]: carries a plan out, several files at once, without those that are the same;
//! - [`cp`], [`remove`], [`sas`], [`list`]: the commands.

pub mod carry;
pub mod cp;
pub mod list;
pub mod local;
pub mod place;
pub mod remove;
pub mod sas;
pub mod select;
