//! Copies within an account: the bytes are read and written again, so that the
//! two blobs share nothing.

use futures::{StreamExt, TryStreamExt};
use kiln_etag::Conditions;

use super::{Storage, io_error};
use crate::domain::StorageError;
use crate::domain::model::{Address, Blob, BlobKind, Content, CopySource, Extent, INLINE_LIMIT, Piece};
use crate::domain::names::{self, Metadata};
use crate::store::{Guard, NewBlob};

/// What is copied where.
#[derive(Debug, Clone)]
pub struct CopyRequest {
    /// Owner of both.
    pub account: String,
    /// Container of the source.
    pub from_container: String,
    /// Name of the source.
    pub from_name: String,
    /// URL of the source without its signature.
    pub source_url: String,
    /// The source must fulfil these.
    pub source_conditions: Conditions,
    /// Container of the copy.
    pub container: String,
    /// Name of the copy.
    pub name: String,
    /// Replaces the source's.
    pub metadata: Option<Metadata>,
    /// When the copy may be written.
    pub guard: Guard,
}

impl Storage {
    /// Copies a blob; complete when this returns.
    ///
    /// # Errors
    /// As Azure's Copy Blob.
    pub async fn copy_blob(&self, copy: CopyRequest) -> Result<Blob, StorageError> {
        names::check_blob(&copy.name)?;
        self.check_early(&copy.account, &copy.container, &copy.name, &copy.guard).await?;
        let source = self
            .open(Address::blob(&copy.account, &copy.from_container, &copy.from_name), &copy.source_conditions, None)
            .await
            .map_err(|error| match error {
                StorageError::ContainerNotFound => StorageError::BlobNotFound,
                StorageError::NotModified => StorageError::ConditionNotMet,
                other => other,
            })?;
        let original = source.blob.clone();
        let mut stream = source.into_stream();
        // An append blob stays one: its copy can be added to.
        let append = matches!(original.kind, BlobKind::Append { .. });
        let most = if append && self.objects().encrypts() { 0 } else { INLINE_LIMIT };
        let (content, written) = if original.length <= most {
            let mut bytes = bytes::BytesMut::new();
            while let Some(piece) = stream.try_next().await.map_err(|error| io_error(&error))? {
                bytes.extend_from_slice(&piece);
            }
            let content = match append {
                // An empty piece would count as one that was added.
                true if bytes.is_empty() => Content::Pieces(Vec::new()),
                true => Content::Pieces(vec![Piece::Bytes(bytes.freeze())]),
                false => self.objects().inline(bytes.freeze()).map_err(|error| io_error(&error))?,
            };
            (content, None)
        } else {
            let mut writer = self.objects().create(false).await.map_err(|error| io_error(&error))?;
            while let Some(piece) = stream.next().await {
                let piece = piece.map_err(|error| io_error(&error))?;
                writer.write(piece).await.map_err(|error| io_error(&error))?;
            }
            let written = writer.finish().await.map_err(|error| io_error(&error))?;
            let extent = Extent { block_id: None, object: written.key.clone(), length: written.length };
            (Content::Objects(vec![extent]), Some(written))
        };
        let new = NewBlob {
            container: copy.container,
            name: copy.name,
            properties: original.properties,
            metadata: copy.metadata.unwrap_or(original.metadata),
            content,
            copy: Some(CopySource {
                id: uuid::Uuid::new_v4().to_string(),
                source: copy.source_url,
                completed: kiln_time::Timestamp::now(),
            }),
            kind: original.kind,
            tier: None,
        };
        self.commit_blob(copy.account, String::new(), new, written, copy.guard).await
    }
}
