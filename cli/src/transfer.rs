//! Files to blobs and back, through the gRPC contract.

use std::path::{Component, Path, PathBuf};

use anyhow::Context;
use bytes::Bytes;
use kiln_client::Client;
use kiln_error::{Error, Kind};
use kiln_proto::storage::v1::{
    Blob, DownloadRequest, ListBlobsRequest, UploadHeader, UploadRequest, download_response, upload_request,
};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::failure::{Failure, Outcome};

/// Bytes per message.
const CHUNK: usize = 256 * 1024;
/// Messages read ahead of the network.
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

/// Writes a local file into a blob; `progress` learns of the bytes sent.
///
/// # Errors
/// If the file cannot be read, or what the service said.
pub async fn upload(
    client: &Client,
    file: &Path,
    container: &str,
    name: &str,
    content_type: &str,
    progress: impl Fn(u64),
) -> Outcome<Blob> {
    retry(|| async {
        let opened = tokio::fs::File::open(file).await.with_context(|| file.display().to_string())?;
        upload_from(client, opened, container, name, content_type, &progress).await
    })
    .await
}

/// Writes all of `source` into a blob.
///
/// # Errors
/// If it cannot be read, or what the service said.
pub async fn upload_from(
    client: &Client,
    mut source: impl tokio::io::AsyncRead + Unpin,
    container: &str,
    name: &str,
    content_type: &str,
    progress: &impl Fn(u64),
) -> Outcome<Blob> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let header = UploadHeader {
        request_id: request_id(),
        container: container.to_owned(),
        name: name.to_owned(),
        content_type: content_type.to_owned(),
        ..UploadHeader::default()
    };
    let feed = async move {
        let part = |part| UploadRequest { part: Some(part) };
        // A failed send means that the call has ended; its answer says why.
        if sender.send(part(upload_request::Part::Header(header))).await.is_err() {
            return Ok(());
        }
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            let read = (&mut source).take(CHUNK as u64).read_to_end(&mut chunk).await?;
            if read == 0 {
                return std::io::Result::Ok(());
            }
            if sender.send(part(upload_request::Part::Data(Bytes::from(chunk)))).await.is_err() {
                return Ok(());
            }
            progress(read as u64);
        }
    };
    let mut storage = client.storage();
    let call = storage.upload(ReceiverStream::new(receiver));
    tokio::pin!(call, feed);
    // If reading fails the call is dropped, and the service forgets the stream.
    let response = tokio::select! {
        response = &mut call => response?,
        fed = &mut feed => {
            fed.with_context(|| format!("reading what should become {container}/{name}"))?;
            call.await?
        }
    };
    response.into_inner().blob.ok_or_else(|| Error::internal("the answer has no blob").into())
}

/// Reads a blob into a local file, which appears only when it is whole.
///
/// # Errors
/// If the file cannot be written, or what the service said.
pub async fn download(
    client: &Client,
    container: &str,
    name: &str,
    file: &Path,
    progress: impl Fn(u64),
) -> Outcome<u64> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    tokio::fs::create_dir_all(parent).await.with_context(|| parent.display().to_string())?;
    let mut temporary = file.as_os_str().to_owned();
    temporary.push(format!(".{}.part", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let result = retry(|| async {
        let mut target = tokio::fs::File::create(&temporary).await.with_context(|| temporary.display().to_string())?;
        let length = download_into(client, container, name, &mut target, &progress).await?;
        target.flush().await?;
        Ok(length)
    })
    .await;
    match result {
        Ok(length) => {
            tokio::fs::rename(&temporary, file).await.with_context(|| file.display().to_string())?;
            Ok(length)
        }
        Err(failure) => {
            // It may never have been made.
            let _ = tokio::fs::remove_file(&temporary).await;
            Err(failure)
        }
    }
}

/// Reads a blob into `target`.
///
/// # Errors
/// If `target` cannot be written, or what the service said.
pub async fn download_into(
    client: &Client,
    container: &str,
    name: &str,
    target: &mut (impl AsyncWrite + Unpin),
    progress: &impl Fn(u64),
) -> Outcome<u64> {
    let request =
        DownloadRequest { container: container.to_owned(), name: name.to_owned(), ..DownloadRequest::default() };
    let mut stream = client.storage().download(request).await?.into_inner();
    let mut expected = 0;
    let mut length = 0;
    while let Some(message) = stream.message().await? {
        match message.part {
            Some(download_response::Part::Blob(blob)) => expected = blob.content_length,
            Some(download_response::Part::Data(data)) => {
                target.write_all(&data).await.with_context(|| format!("writing {container}/{name}"))?;
                length += data.len() as u64;
                progress(data.len() as u64);
            }
            None => {}
        }
    }
    if length != expected {
        let message = format!("{container}/{name}: {length} of {expected} bytes came");
        return Err(Error::new(Kind::Unavailable, "IncompleteBody", message).into());
    }
    Ok(length)
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
    let relative = Path::new(blob);
    let inside = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if blob.is_empty() || blob.ends_with('/') || !inside {
        return Err(Failure::Other(anyhow::anyhow!("the blob name {blob:?} is no path below a directory")));
    }
    Ok(directory.join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blob_names_stay_inside_their_directory() {
        let base = Path::new("/out");
        assert_eq!(local_path(base, "a/b.txt").unwrap(), Path::new("/out/a/b.txt"));
        for name in ["../x", "a/../../x", "/etc/passwd", "", "a/", "./../x", ".."] {
            assert!(local_path(base, name).is_err(), "{name:?}");
        }
    }
}
