//! Repeated calls, files as the messages of a call, lists of blobs, and names of blobs as paths.

use std::path::{Path, PathBuf};

use anyhow::Context;
use bytes::Bytes;
use kiln_client::Client;
use kiln_proto::storage::v1::{Blob, ListBlobsRequest};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::failure::{Failure, Outcome};

/// Bytes per message of [`send_all`].
const CHUNK: usize = 256 * 1024;
/// Messages that [`send_all`] reads ahead of the network.
const AHEAD: usize = 8;
/// Tries of one transfer.
const TRIES: u32 = 4;

/// A new id for one intended change, so that a repetition is not a second one.
pub fn request_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// Repeats `work` while the service says "later".
///
/// # Errors
/// The last one.
pub async fn retry<T, F, Fut>(mut work: F) -> Outcome<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Outcome<T>>,
{
    let mut attempt = 0;
    loop {
        attempt += 1;
        match work().await {
            Err(Failure::Service(error)) if error.kind().is_retryable() && attempt < TRIES => {
                let pause = std::time::Duration::from_millis(50 << attempt);
                tokio::time::sleep(error.retry_after().unwrap_or(pause)).await;
            }
            result => return result,
        }
    }
}

/// Makes one call whose messages are `header` and then all of `source` in pieces; `what` names
/// it in errors.
///
/// # Errors
/// If `source` cannot be read, or what the service said.
pub async fn send_all<M, R, F>(
    what: &str,
    mut source: impl tokio::io::AsyncRead + Unpin,
    header: M,
    data: impl Fn(Bytes) -> M,
    progress: &impl Fn(u64),
    call: impl FnOnce(ReceiverStream<M>) -> F,
) -> Outcome<R>
where
    F: Future<Output = Result<R, tonic::Status>>,
{
    let (sender, receiver) = mpsc::channel(AHEAD);
    let feed = async move {
        // A failed send means that the call has ended; its answer says why.
        if sender.send(header).await.is_err() {
            return Ok(());
        }
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            let read = (&mut source).take(CHUNK as u64).read_to_end(&mut chunk).await?;
            if read == 0 {
                return std::io::Result::Ok(());
            }
            if sender.send(data(Bytes::from(chunk))).await.is_err() {
                return Ok(());
            }
            progress(read as u64);
        }
    };
    let call = call(ReceiverStream::new(receiver));
    tokio::pin!(call, feed);
    // If reading fails the call is dropped, and the service forgets the stream.
    tokio::select! {
        response = &mut call => Ok(response?),
        fed = &mut feed => {
            fed.with_context(|| format!("reading {what}"))?;
            Ok(call.await?)
        }
    }
}

/// All blobs of a container whose names begin with `prefix`, at most `limit`.
///
/// # Errors
/// What the service said.
pub async fn list_blobs(client: &Client, container: &str, prefix: &str, limit: usize) -> Outcome<Vec<Blob>> {
    let mut blobs = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListBlobsRequest {
            container: container.to_owned(),
            prefix: prefix.to_owned(),
            page_token,
            ..ListBlobsRequest::default()
        };
        let page = client.storage().list_blobs(request).await?.into_inner();
        blobs.extend(page.blobs);
        page_token = page.next_page_token;
        if page_token.is_empty() || blobs.len() >= limit {
            blobs.truncate(limit);
            return Ok(blobs);
        }
    }
}

/// Where a blob of this name goes below `directory`. Names come from tasks, so
/// they cannot be trusted to stay inside.
///
/// # Errors
/// If the name leads elsewhere.
pub fn local_path(directory: &Path, blob: &str) -> Outcome<PathBuf> {
    // Empty parts, too: two blobs would become one file.
    if blob.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Failure::Other(anyhow::anyhow!("the blob name {blob:?} is no path below a directory")));
    }
    Ok(directory.join(blob))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blob_names_stay_inside_their_directory() {
        let base = Path::new("/out");
        assert_eq!(local_path(base, "a/b.txt").unwrap(), Path::new("/out/a/b.txt"));
        for name in ["../x", "a/../../x", "/etc/passwd", "", "a/", "./../x", "..", "a//b", "a/./b"] {
            assert!(local_path(base, name).is_err(), "{name:?}");
        }
    }
}
