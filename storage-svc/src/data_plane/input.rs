//! Bodies of requests.

use std::time::Duration;

use axum::body::{Body as RequestBody, BodyDataStream, HttpBody};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};

use crate::domain::StorageError;
use crate::service::Body;

/// Bytes of a refused request that are read before the answer: as much as the
/// SDKs send in one request.
const DRAIN_BYTES: usize = 64 * 1024 * 1024;
/// How long that may take.
const DRAIN_TIME: Duration = Duration::from_secs(20);

/// The body of one request.
#[derive(Debug)]
pub struct Input {
    stream: BodyDataStream,
    idle: Duration,
    ended: bool,
    /// More than is worth reading for nothing.
    large: bool,
}

impl Input {
    /// A sender may be silent for `idle`.
    pub fn new(body: RequestBody, idle: Duration) -> Self {
        let large = body.size_hint().lower() > DRAIN_BYTES as u64;
        Self { stream: body.into_data_stream(), idle, ended: false, large }
    }

    /// The bytes as they come.
    pub fn body(&mut self) -> Body<'_> {
        Box::pin(stream::try_unfold(self, |input| async move { Ok(input.next().await?.map(|piece| (piece, input))) }))
    }

    /// All bytes of a small document.
    ///
    /// # Errors
    /// More than `limit`, or the sender went away.
    pub async fn document(&mut self, limit: usize) -> Result<Bytes, StorageError> {
        let mut all = BytesMut::new();
        let mut body = self.body();
        while let Some(piece) = body.try_next().await? {
            if all.len() + piece.len() > limit {
                return Err(StorageError::RequestBodyTooLarge(limit as u64));
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }

    /// Reads and forgets what is left, within bounds.
    pub async fn drain(&mut self) {
        if self.large {
            return;
        }
        let read = async {
            let mut left = DRAIN_BYTES;
            while let Ok(Some(piece)) = self.next().await {
                left = left.saturating_sub(piece.len());
                if left == 0 {
                    break;
                }
            }
        };
        // If it takes longer, the connection is closed behind the answer.
        let _ = tokio::time::timeout(DRAIN_TIME, read).await;
    }

    async fn next(&mut self) -> Result<Option<Bytes>, StorageError> {
        if self.ended {
            return Ok(None);
        }
        match tokio::time::timeout(self.idle, self.stream.next()).await {
            Ok(Some(Ok(piece))) => Ok(Some(piece)),
            Ok(None) => {
                self.ended = true;
                Ok(None)
            }
            Ok(Some(Err(error))) => {
                self.ended = true;
                tracing::debug!(%error, "a request's body broke off");
                Err(StorageError::IncompleteBody)
            }
            Err(_) => {
                self.ended = true;
                Err(StorageError::OperationTimedOut)
            }
        }
    }
}
