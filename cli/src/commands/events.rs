//! `kiln events`: the event log, and what did not get there ([`dead`]).

pub mod dead;

use kiln_client::Client;
use kiln_proto::monitor::v1::ListEventsRequest;

use super::pages;
use super::watch::print_event;
use crate::failure::Outcome;
use crate::output::Format;

/// Arguments of `events`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct EventsArgs {
    /// Something else than the log
    #[command(subcommand)]
    pub command: Option<EventsCommand>,
    /// Only subjects that begin with this, for example jobs/j1/
    #[arg(long, default_value = "", hide_default_value = true)]
    subject: String,
    /// Only types that begin with this, for example job.task
    #[arg(long = "type", value_name = "TYPE", default_value = "", hide_default_value = true)]
    kind: String,
    /// At most this many
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

/// Subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum EventsCommand {
    /// Messages that nobody could deal with, at the broker: for operators
    Dead(dead::DeadArgs),
}

/// Prints the oldest events first; JSON is one object a line.
///
/// # Errors
/// What the service said.
pub async fn run(client: &Client, format: Format, args: EventsArgs) -> Outcome {
    let events = pages(args.limit, |page_size, page_token| {
        let mut monitor = client.monitor();
        let request = ListEventsRequest {
            subject_prefix: args.subject.clone(),
            type_prefix: args.kind.clone(),
            page_size,
            page_token,
        };
        async move {
            let page = monitor.list_events(request).await?.into_inner();
            Ok((page.events, page.next_page_token))
        }
    })
    .await?;
    for event in events.iter().filter_map(|logged| logged.event.as_ref()) {
        print_event(format, event)?;
    }
    Ok(())
}
