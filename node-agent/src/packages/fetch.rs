//! What a reference means, and the zip: both from the account's blob storage, with the node's token.

use std::path::Path;

use kiln_package::{CONTAINER, RESTYPE};
use kiln_proto::storage::v1::ResolvedPackage;
use prost::Message;
use reqwest::header::IF_MATCH;
use tokio::sync::Semaphore;
use url::Url;

use super::{Trouble, Wanted};
use crate::stage::download::Source;
use crate::stage::transfer::{self, Access, Http, TransferError, check, request_error};

/// An answer is a few names.
const MAX_ANSWER: usize = 64 * 1024;

/// Asks what a reference means now.
///
/// # Errors
/// There is no such package, or the question cannot be asked.
pub async fn resolve(http: &Http, blob_endpoint: &str, wanted: &Wanted) -> Result<ResolvedPackage, TransferError> {
    let mut url = container(blob_endpoint, &[])?;
    url.query_pairs_mut()
        .append_pair("restype", RESTYPE)
        .append_pair("application", wanted.application.as_str())
        .append_pair("version", wanted.version.as_ref().map_or("", |version| version.as_str()));
    let url = &url;
    let bytes = http
        .with_retries(|| async move {
            let request = http.prepare(http.client(url).get(url.clone()), Access::Node);
            let response = check(request.send().await.map_err(request_error)?).await?;
            transfer::bytes(response, MAX_ANSWER).await
        })
        .await?;
    let strange = |what: &str| TransferError::Other(format!("the answer about the package {what}"));
    let resolved = ResolvedPackage::decode(&*bytes).map_err(|_| strange("cannot be read"))?;
    // They become names of directories.
    let is_same = resolved.application_id.eq_ignore_ascii_case(wanted.application.as_str());
    if !is_same || kiln_ids::PackageVersion::parse(&resolved.version).is_err() {
        return Err(strange("is about something else"));
    }
    Ok(resolved)
}

/// Fetches the very zip that the answer was about to the new file `target`.
pub(super) async fn download(
    http: &Http,
    blob_endpoint: &str,
    resolved: &ResolvedPackage,
    connections: &Semaphore,
    target: &Path,
) -> Result<(), Trouble> {
    let parts: Vec<&str> = resolved.blob.split('/').collect();
    let url = container(blob_endpoint, &parts).map_err(Trouble::Transfer)?;
    let url = &url;
    let result = async {
        let first = http
            .with_retries(|| async move {
                let request = http.prepare(http.client(url).get(url.clone()), Access::Node);
                let request = request.header(IF_MATCH, format!("\"{}\"", resolved.etag));
                check(request.send().await.map_err(request_error)?).await
            })
            .await?;
        let source = Source { http, url, access: Access::Node, connections };
        let received = source.receive(first, target).await?;
        // It may have begun anew with a later version.
        let is_same = received.etag.is_none_or(|etag| etag.trim_matches('"') == resolved.etag);
        if is_same && received.bytes == resolved.content_length {
            return Ok(());
        }
        let message = format!("{} bytes of another version arrived", received.bytes);
        Err(TransferError::Conflict(message))
    }
    .await;
    result.map_err(|error| match error {
        TransferError::NotFound(why) | TransferError::Conflict(why) => Trouble::Replaced(why),
        other => Trouble::Transfer(other),
    })
}

fn container(blob_endpoint: &str, blob: &[&str]) -> Result<Url, TransferError> {
    let no_storage = || TransferError::Other("the account has no blob storage".to_owned());
    let mut url = Url::parse(blob_endpoint).map_err(|_| no_storage())?;
    url.path_segments_mut().map_err(|()| no_storage())?.pop_if_empty().push(CONTAINER).extend(blob);
    Ok(url)
}
