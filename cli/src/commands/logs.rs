//! `kiln logs JOB TASK`: what a task wrote.

use kiln_client::Client;

use super::task::{Which, cat};
use crate::failure::Outcome;

/// Arguments of `logs`.
#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    #[command(flatten)]
    which: Which,
    /// Go on as the task writes, until it has ended
    #[arg(short, long)]
    follow: bool,
    /// Standard error instead of standard output
    #[arg(long)]
    stderr: bool,
}

/// Prints the file.
///
/// # Errors
/// What the service said.
pub async fn run(client: &Client, args: LogsArgs) -> Outcome {
    let path = if args.stderr { kiln_node::STDERR_FILE } else { kiln_node::STDOUT_FILE };
    cat(client, args.which, path.to_owned(), args.follow).await
}
