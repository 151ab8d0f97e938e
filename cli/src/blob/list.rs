//! `kiln blob ls PLACE`.

use kiln_client::Client;
use kiln_proto::storage::v1::{Blob, ListBlobsRequest};

use super::place::BlobPath;
use crate::failure::Outcome;
use crate::output::{self, Format, json, table, text};

/// Lists the blobs and, unless `recursive`, the prefixes behind a place; `long` shows more of each.
///
/// # Errors
/// What the service said.
pub async fn blobs(client: &Client, format: Format, path: &BlobPath, options: Options) -> Outcome {
    let (mut blobs, mut prefixes) = (Vec::new(), Vec::new());
    let mut page_token = String::new();
    loop {
        let request = ListBlobsRequest {
            container: path.container.clone(),
            prefix: path.name.clone(),
            delimiter: if options.recursive { String::new() } else { "/".to_owned() },
            page_token,
            page_size: 0,
        };
        let page = client.storage().list_blobs(request).await?.into_inner();
        blobs.extend(page.blobs);
        prefixes.extend(page.prefixes);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        if blobs.len() + prefixes.len() >= options.limit {
            eprintln!("(there are more; raise --limit)");
            break;
        }
    }
    prefixes.truncate(options.limit);
    blobs.truncate(options.limit - prefixes.len());
    match format {
        Format::Json => {
            let mut values: Vec<_> = prefixes.iter().map(|prefix| serde_json::json!({ "prefix": prefix })).collect();
            for blob in &blobs {
                values.push(json::value("kiln.storage.v1.Blob", blob)?);
            }
            output::line(format_args!("{}", json::pretty(&serde_json::Value::Array(values))));
        }
        Format::Table => {
            let header: &[&str] = match options.long {
                true => &["name", "bytes", "modified", "type", "md5", "etag"],
                false => &["name", "bytes", "modified", "type"],
            };
            let folders = prefixes.iter().map(|prefix| vec![prefix.clone(), "prefix".to_owned()]);
            let rows = folders.map(|mut row| {
                row.resize(header.len(), String::new());
                row
            });
            let rows = rows.chain(blobs.iter().map(|blob| row(blob, options.long)));
            output::text_block(format_args!("{}", table::table(header, rows)));
        }
    }
    Ok(())
}

/// How to list.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Not level by level.
    pub recursive: bool,
    /// More columns.
    pub long: bool,
    /// Entries at most.
    pub limit: usize,
}

fn row(blob: &Blob, long: bool) -> Vec<String> {
    let mut row = vec![
        blob.name.clone(),
        blob.content_length.to_string(),
        text::time(blob.last_modified.as_ref()),
        blob.content_type.clone(),
    ];
    if long {
        row.push(blob.content_md5.iter().map(|byte| format!("{byte:02x}")).collect());
        row.push(blob.etag.clone());
    }
    row
}
