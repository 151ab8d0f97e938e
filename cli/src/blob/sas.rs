//! `kiln blob sas`.

use std::time::Duration;

use kiln_client::Client;
use kiln_proto::storage::v1::{CreateSasBatchRequest, CreateSasResponse};

use super::place::BlobPath;
use super::select::{self, Source};
use crate::commands::blob::sas_request;
use crate::commands::parse_duration;
use crate::failure::Outcome;
use crate::output::{self, Format};

/// Signatures of one call.
const BATCH: usize = 1000;

/// Arguments of `kiln blob sas`.
#[derive(Debug, clap::Args)]
pub struct SasArgs {
    /// CONTAINER or CONTAINER/NAME; NAME may be a pattern in quotes: a signature for each blob
    #[arg(required = true, value_name = "PLACE")]
    places: Vec<String>,
    /// Letters: r read, a add, c create, w write, d delete, l list
    #[arg(long, default_value = "r")]
    permissions: String,
    /// How long it is valid
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    expires: Duration,
}

/// Carries it out.
///
/// # Errors
/// What the service said.
pub async fn sas(client: &Client, format: Format, args: SasArgs) -> Outcome {
    let request = |container: &str, blob: &str| sas_request(container, blob, &args.permissions, args.expires);
    let mut requests = Vec::new();
    let mut one = args.places.len() == 1;
    for text in &args.places {
        let path = BlobPath::parse(text)?;
        if !path.is_pattern() {
            requests.push(request(&path.container, &path.name));
            continue;
        }
        one = false;
        for source in select::blobs(client, &path, false).await?.sources {
            if let Source::Blob { blob, .. } = source {
                requests.push(request(&blob.container, &blob.name));
            }
        }
    }
    let mut signed: Vec<CreateSasResponse> = Vec::new();
    for batch in requests.chunks(BATCH) {
        let request = CreateSasBatchRequest { requests: batch.to_vec() };
        signed.extend(client.storage().create_sas_batch(request).await?.into_inner().responses);
    }
    let name = "kiln.storage.v1.CreateSasResponse";
    match &signed[..] {
        [signed] if one => {
            output::show(format, name, signed, |signed| vec![("sas", signed.sas.clone()), ("url", signed.url.clone())])
        }
        // One URL a line: a table would cut them.
        _ if format == Format::Table => {
            signed.iter().for_each(|signed| output::line(format_args!("{}", signed.url)));
            Ok(())
        }
        _ => output::list(format, name, &signed, &["url"], |signed| vec![signed.url.clone()]),
    }
}
