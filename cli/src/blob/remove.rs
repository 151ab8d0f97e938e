//! `kiln blob rm`.

use kiln_client::Client;
use kiln_client::blobs::Place;

use super::cp::delete_all;
use super::place::BlobPath;
use super::select::{self, Source};
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, json};

/// Arguments of `kiln blob rm`.
#[derive(Debug, clap::Args)]
pub struct RmArgs {
    /// CONTAINER/NAME; NAME may be a pattern in quotes
    #[arg(required = true, value_name = "BLOB")]
    places: Vec<String>,
    /// All below the names
    #[arg(long, short)]
    recursive: bool,
    /// Only say what would be deleted
    #[arg(long)]
    dry_run: bool,
}

/// Carries it out; what is deleted is said, nothing is asked.
///
/// # Errors
/// What the service said about the first that could not be found, or [`Failure::Silent`] if some
/// could not be deleted.
pub async fn rm(client: &Client, format: Format, args: RmArgs) -> Outcome {
    let mut places = Vec::new();
    for text in &args.places {
        let found = select::blobs(client, &BlobPath::parse(text)?, args.recursive).await?;
        places.extend(found.sources.into_iter().filter_map(|source| match source {
            Source::Blob { blob, .. } => Some(Place::new(blob.container, blob.name)),
            Source::File(_) => None,
        }));
    }
    places.sort_unstable();
    places.dedup();
    let (deleted, failed) = delete_all(client, places, args.dry_run, format).await;
    if format == Format::Json {
        let failures: Vec<_> =
            failed.iter().map(|(place, why)| serde_json::json!({"name": place.to_string(), "error": why})).collect();
        let value = serde_json::json!({"deleted": deleted, "failures": failures, "dryRun": args.dry_run});
        output::line(format_args!("{}", json::pretty(&value)));
    } else {
        for (place, why) in &failed {
            eprintln!("error: kiln:{place}: {why}");
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Failure::Silent(1)) }
}
