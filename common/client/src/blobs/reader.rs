//! The bytes of a blob in order.

use bytes::Bytes;
use kiln_proto::common::v1::{ByteRange, Precondition};
use kiln_proto::storage::v1::{Blob, DownloadRequest, DownloadResponse, download_response};
use tonic::{Status, Streaming};

use super::retry::Patience;
use super::{Place, TransferError, Transfers, refused};

/// Reads a range of one version of a blob. Where the stream breaks it is opened again, behind
/// the bytes that came.
#[derive(Debug)]
pub struct BlobReader {
    transfers: Transfers,
    place: Place,
    etag: String,
    at: u64,
    end: u64,
    stream: Option<Streaming<DownloadResponse>>,
    patience: Patience,
}

impl Transfers {
    /// Reads the version that `blob` describes.
    pub fn read(&self, blob: &Blob) -> BlobReader {
        self.read_range(blob, 0, blob.content_length)
    }

    /// As [`Transfers::read`], the bytes from `start` to before `end`.
    pub fn read_range(&self, blob: &Blob, start: u64, end: u64) -> BlobReader {
        BlobReader {
            transfers: self.clone(),
            place: Place::new(&blob.container, &blob.name),
            etag: blob.etag.clone(),
            at: start,
            end: end.min(blob.content_length),
            stream: None,
            patience: Patience::new(self.patience),
        }
    }
}

impl BlobReader {
    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// What the service said: that it has another version by now, for example.
    pub async fn next(&mut self) -> Result<Option<Bytes>, TransferError> {
        while self.at < self.end {
            match self.piece().await {
                Ok(Some(piece)) => {
                    self.patience.renew();
                    self.at += piece.len() as u64;
                    return Ok(Some(piece));
                }
                Ok(None) => {}
                Err(status) => {
                    self.stream = None;
                    self.patience.pause_after(status).await.map_err(|status| refused(&self.place, status))?;
                }
            }
        }
        Ok(None)
    }

    /// All of the range.
    ///
    /// # Errors
    /// As [`BlobReader::next`].
    pub async fn all(mut self) -> Result<Bytes, TransferError> {
        let mut all = bytes::BytesMut::with_capacity(usize::try_from(self.end - self.at).unwrap_or(0));
        while let Some(piece) = self.next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request = DownloadRequest {
                    container: self.place.container.clone(),
                    name: self.place.name.clone(),
                    range: Some(ByteRange { start: self.at, end: Some(self.end - 1) }),
                    precondition: Some(Precondition { if_match: self.etag.clone(), ..Precondition::default() }),
                };
                let opened = self.transfers.client.storage().download(request).await?;
                self.stream.insert(opened.into_inner())
            }
        };
        match stream.message().await? {
            Some(DownloadResponse { part: Some(download_response::Part::Data(mut data)) }) => {
                let room = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
                data.truncate(room);
                Ok(Some(data).filter(|data| !data.is_empty()))
            }
            Some(_) => Ok(None),
            None => Err(Status::unavailable(format!("the stream ended at byte {} of {}", self.at, self.end))),
        }
    }
}
