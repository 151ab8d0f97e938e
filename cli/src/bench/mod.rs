//! `kiln bench`: how fast a deployment is, beside what the machine allows.
//!
//! - [`tasks`]: whole lives of tasks, with processes or on simulated nodes;
//! - [`latency`]: one task at a time, and under load;
//! - [`submit`]: a long queue;
//! - [`scale`]: many nodes; [`core`]: placement alone;
//! - [`blobs`]: storage, also of other servers;
//! - [`server`]: the deployment that is measured, a process of its own;
//!   [`usage`]: what it costs; [`nodes`]: simulated nodes; [`job`]: jobs and
//!   streams of tasks; [`floor`], [`sqlite_floor`], [`disk_floor`]: what the
//!   machine allows;
//!   [`figures`]: medians, text, JSON.
//!
//! Every figure is the median of some rounds, and every round has its floor in
//! the same minute: a busy machine makes both smaller, their ratio stays.

pub mod blobs;
pub mod core;
pub mod disk_floor;
pub mod figures;
pub mod floor;
pub mod job;
pub mod latency;
pub mod nodes;
pub mod scale;
pub mod server;
pub mod sqlite_floor;
pub mod submit;
pub mod tasks;
pub mod usage;

use clap::{Args, Subcommand};

use crate::connect::ConnectArgs;
use crate::failure::Outcome;
use crate::output::{self, Format, json};
use figures::Report;

/// Arguments of `kiln bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Whole lives of tasks: from the first submission to the last completion
    Tasks(tasks::TasksArgs),
    /// One task, submitted and awaited
    Latency(latency::LatencyArgs),
    /// Many tasks into a queue that nobody empties
    Submit(submit::SubmitArgs),
    /// The same tasks on few and on many simulated nodes
    Nodes(scale::NodesArgs),
    /// Placements of the scheduler's core, without any I/O
    Core(core::CoreArgs),
    /// Blobs: small ones by several clients, a large one, lists; also of another server, or beside Azurite
    Blobs(blobs::BlobsArgs),
}

/// Carries out `kiln bench`.
///
/// # Errors
/// If the server cannot be started or reached, or does not do what it should.
pub async fn command(connect: ConnectArgs, format: Format, args: BenchArgs) -> Outcome {
    let report: Report = match args.what {
        What::Tasks(args) => tasks::run(&connect, args).await?,
        What::Latency(args) => latency::run(&connect, args).await?,
        What::Submit(args) => submit::run(&connect, args).await?,
        What::Nodes(args) => scale::run(&connect, args).await?,
        What::Core(args) => core::run(args)?,
        What::Blobs(args) => blobs::run(&connect, args).await?,
    };
    match format {
        Format::Json => output::line(format_args!("{}", json::pretty(&report.json()))),
        Format::Table => output::text_block(format_args!("{}", report.text())),
    }
    Ok(())
}
