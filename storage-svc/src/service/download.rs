//! Sending blobs.

use std::io;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use kiln_etag::Conditions;

use super::{Storage, io_error};
use crate::domain::StorageError;
use crate::domain::condition;
use crate::domain::model::{Address, Blob, Content, Piece};
use crate::domain::range::{Span, WantedRange};

/// Bytes on their way out.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// A blob, the part of it that was asked for, and how to get its bytes.
#[derive(Debug)]
pub struct Download {
    /// The whole blob.
    pub blob: Blob,
    /// The part.
    pub span: Span,
    content: Content,
    storage: Storage,
}

impl Storage {
    /// Opens a blob for reading: the version it has now, whatever is written
    /// meanwhile.
    ///
    /// # Errors
    /// It does not exist, a condition does not hold, the range is behind its end,
    /// its bytes are in the archive.
    pub async fn open(
        &self,
        of: Address<'_>,
        conditions: &Conditions,
        range: Option<WantedRange>,
    ) -> Result<Download, StorageError> {
        let (blob, content) = match self.catalogue().blob_content(of).await {
            Err(StorageError::BlobNotFound) if conditions.if_match.is_some() => {
                return Err(StorageError::ConditionNotMet);
            }
            found => found?,
        };
        condition::check_read(conditions, blob.version())?;
        if blob.is_archived() {
            return Err(StorageError::BlobArchived);
        }
        let content = match content {
            Content::Sealed(sealed) => {
                Content::Inline(self.objects().unseal(&sealed).map_err(|error| io_error(&error))?)
            }
            other => other,
        };
        let span = match range {
            Some(range) => range.within(blob.length)?,
            None => Span { start: 0, length: blob.length },
        };
        Ok(Download { blob, span, content, storage: self.clone() })
    }
}

impl Download {
    /// The bytes of the part, opened one object after the other. An error in
    /// the middle must break the connection: the length was promised.
    pub fn into_stream(self) -> ByteStream {
        let storage = self.storage.clone();
        let counted = move |piece: &Bytes| storage.metrics().bytes_out.inc_by(piece.len() as u64);
        match self.content {
            Content::Inline(bytes) => {
                let piece = cut(&bytes, self.span);
                counted(&piece);
                stream::once(std::future::ready(Ok(piece))).boxed()
            }
            // [`Storage::open`] gives none.
            Content::Sealed(_) => {
                stream::once(std::future::ready(Err(io::Error::other("encrypted bytes were not opened")))).boxed()
            }
            Content::Objects(extents) => {
                let parts = parts(extents.into_iter().map(|extent| (extent.object, extent.length)), self.span);
                let objects = self.storage.objects().clone();
                stream::iter(parts)
                    .map(move |(object, span)| Ok::<_, io::Error>(objects.read(&object, span)))
                    .try_flatten()
                    .inspect_ok(counted)
                    .inspect_err(unreadable)
                    .boxed()
            }
            Content::Pieces(pieces) => {
                let parts = parts(
                    pieces.into_iter().map(|piece| {
                        let length = piece.length();
                        (piece, length)
                    }),
                    self.span,
                );
                let objects = self.storage.objects().clone();
                stream::iter(parts)
                    .map(move |(piece, span)| {
                        Ok::<_, io::Error>(match piece {
                            Piece::Object { key, .. } => objects.read(&key, span),
                            Piece::Bytes(bytes) => stream::once(std::future::ready(Ok(cut(&bytes, span)))).boxed(),
                        })
                    })
                    .try_flatten()
                    .inspect_ok(counted)
                    .inspect_err(unreadable)
                    .boxed()
            }
        }
    }
}

fn unreadable(error: &io::Error) {
    tracing::error!(%error, "bytes of a blob could not be read");
}

/// A part of bytes in memory.
fn cut(bytes: &Bytes, span: Span) -> Bytes {
    let start = usize::try_from(span.start).unwrap_or(usize::MAX).min(bytes.len());
    let length = usize::try_from(span.length).unwrap_or(usize::MAX).min(bytes.len() - start);
    bytes.slice(start..start + length)
}

/// The parts of consecutive things that make up `span`.
fn parts<T>(objects: impl Iterator<Item = (T, u64)>, span: Span) -> Vec<(T, Span)> {
    let (first, end) = (span.start, span.start + span.length);
    let mut at = 0;
    let mut parts = Vec::new();
    for (object, length) in objects {
        let (start, stop) = (first.max(at), end.min(at + length));
        if start < stop {
            parts.push((object, Span { start: start - at, length: stop - start }));
        }
        at += length;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::model::ObjectKey;

    fn parts_of(lengths: &[u64], start: u64, length: u64) -> Vec<(u64, u64, u64)> {
        let objects = lengths.iter().enumerate().map(|(at, length)| (ObjectKey(at.to_string()), *length));
        parts(objects, Span { start, length })
            .into_iter()
            .map(|(key, span)| (key.0.parse().unwrap(), span.start, span.length))
            .collect()
    }

    #[test]
    fn ranges_over_several_objects() {
        assert_eq!(parts_of(&[10, 0, 5, 10], 0, 25), [(0, 0, 10), (2, 0, 5), (3, 0, 10)]);
        assert_eq!(parts_of(&[10, 0, 5, 10], 9, 7), [(0, 9, 1), (2, 0, 5), (3, 0, 1)]);
        assert_eq!(parts_of(&[10, 5], 10, 1), [(1, 0, 1)]);
        assert_eq!(parts_of(&[10, 5], 3, 0), []);
        assert_eq!(parts_of(&[], 0, 0), []);
    }
}
