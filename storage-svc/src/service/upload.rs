//! Receiving blobs and blocks.

use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use futures::{Stream, TryStreamExt};
use kiln_time::Timestamp;

use super::{Storage, io_error};
use crate::domain::StorageError;
use crate::domain::condition;
use crate::domain::lease::{Lease, Leased};
use crate::domain::limits::Limits;
use crate::domain::model::{Address, Blob, BlobKind, BlobProperties, ChosenTier, Content, Extent, INLINE_LIMIT, Tier};
use crate::domain::names::{self, Metadata};
use crate::objects::{Checksums, Hasher, ObjectWriter, Written};
use crate::store::{BlockList, Guard, NewBlob, NewBlock, Once};

/// Bytes as they come in.
pub type Body<'a> = Pin<Box<dyn Stream<Item = Result<Bytes, StorageError>> + Send + 'a>>;

/// What the sender said about its bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expected {
    /// How many.
    pub length: Option<u64>,
    /// Their MD5.
    pub md5: Option<[u8; 16]>,
    /// Their CRC-64.
    pub crc64: Option<[u8; 8]>,
    /// It shall be computed also if the sender did not say it.
    pub answer_crc64: bool,
}

/// A blob that is about to come in.
#[derive(Debug, Clone)]
pub struct PutBlob {
    /// Owner.
    pub account: String,
    /// Container it goes into.
    pub container: String,
    /// Its name.
    pub name: String,
    /// Stored headers; the MD5 is filled in if it is absent.
    pub properties: BlobProperties,
    /// Given by the client.
    pub metadata: Metadata,
    /// If the client chose one.
    pub tier: Option<Tier>,
    /// Checked against the bytes.
    pub expected: Expected,
    /// How many they may be.
    pub limits: Limits,
    /// When it may be written.
    pub guard: Guard,
    /// For safe repetition; may be empty.
    pub request_id: String,
}

/// A block that is about to come in.
#[derive(Debug, Clone)]
pub struct PutBlock {
    /// Owner.
    pub account: String,
    /// Container of the blob.
    pub container: String,
    /// The blob, which need not exist.
    pub blob: String,
    /// Base64, as the client wrote it.
    pub id: String,
    /// Checked against the bytes.
    pub expected: Expected,
    /// How many they may be.
    pub limits: Limits,
    /// When it may be written; conditions do not count.
    pub guard: Guard,
}

/// The outcome of Put Blob.
#[derive(Debug, Clone)]
pub struct Put {
    /// What was written.
    pub blob: Blob,
    /// Of the bytes that came in.
    pub checksums: Checksums,
}

/// Bytes that came in and are complete.
pub(super) enum Received {
    Small { bytes: Bytes, checksums: Checksums },
    Large(Written),
}

impl Storage {
    /// Makes or replaces a blob. When this returns, it survives power loss; if
    /// it fails or is dropped, nothing is left.
    ///
    /// # Errors
    /// As Azure's Put Blob.
    pub async fn put_blob(&self, put: PutBlob, body: Body<'_>) -> Result<Put, StorageError> {
        names::check_blob(&put.name)?;
        // A repeated request must reach its first answer.
        if put.request_id.is_empty() {
            self.check_early(&put.account, &put.container, &put.name, &put.guard).await?;
        }
        let received = self.receive(body, put.expected, put.limits.put_blob, INLINE_LIMIT).await?;
        let (content, written, checksums) = match received {
            Received::Small { bytes, checksums } => {
                let content = self.objects().inline(bytes).map_err(|error| io_error(&error))?;
                (content, None, checksums)
            }
            Received::Large(written) => {
                let extent = Extent { block_id: None, object: written.key.clone(), length: written.length };
                let checksums = written.checksums;
                (Content::Objects(vec![extent]), Some(written), checksums)
            }
        };
        let mut properties = put.properties;
        properties.content_md5 = properties.content_md5.or(Some(checksums.md5));
        let tier = put.tier.map(|tier| ChosenTier { tier, since: Timestamp::now() });
        let PutBlob { account, container, name, metadata, guard, request_id, .. } = put;
        let kind = BlobKind::Block;
        let blob = NewBlob { container, name, properties, metadata, content, copy: None, kind, tier };
        let blob = self.commit_blob(account, request_id, blob, written, guard).await?;
        Ok(Put { blob, checksums })
    }

    /// Commits a blob whose bytes are durable. Runs on by itself when the caller
    /// goes away, so that bytes and row cannot part.
    pub(super) async fn commit_blob(
        &self,
        account: String,
        request_id: String,
        blob: NewBlob,
        written: Option<Written>,
        guard: Guard,
    ) -> Result<Blob, StorageError> {
        let storage = self.clone();
        detached(async move {
            still_there(written.as_ref())?;
            let stamp = storage.stamp(&account, &request_id);
            let outcome = storage.catalogue().put_blob(stamp, blob, guard).await;
            let named = match &outcome {
                Ok(Once { repeated, .. }) => !repeated,
                Err(error) => may_be_committed(error),
            };
            settle(written, named);
            outcome.map(|once| once.answer)
        })
        .await
    }

    /// Adds an uncommitted block; gives the checksums of its bytes.
    ///
    /// # Errors
    /// As Azure's Put Block.
    pub async fn put_block(&self, put: PutBlock, body: Body<'_>) -> Result<Checksums, StorageError> {
        names::check_blob(&put.blob)?;
        names::check_block_id(&put.id)?;
        let found = self.current(&put.account, &put.container, &put.blob).await?;
        lease_of(found.as_ref()).check_write(Leased::Blob, put.guard.lease.as_deref(), Timestamp::now())?;
        // Blocks are never small ones: a list refers to them without copying.
        let Received::Large(written) = self.receive(body, put.expected, put.limits.put_block, 0).await? else {
            return Err(StorageError::InternalError);
        };
        let checksums = written.checksums;
        let PutBlock { account, container, blob, id, guard, .. } = put;
        let block = NewBlock { container, blob, id, object: written.key.clone(), length: written.length };
        let storage = self.clone();
        detached(async move {
            still_there(Some(&written))?;
            let outcome = storage.catalogue().put_block(storage.stamp(&account, ""), block, guard).await;
            let named = outcome.as_ref().map_or_else(may_be_committed, |()| true);
            settle(Some(written), named);
            outcome
        })
        .await?;
        Ok(checksums)
    }

    /// Makes or replaces a blob out of blocks.
    ///
    /// # Errors
    /// As Azure's Put Block List.
    pub async fn put_block_list(&self, account: &str, list: BlockList, guard: Guard) -> Result<Blob, StorageError> {
        names::check_blob(&list.name)?;
        self.catalogue().put_block_list(self.stamp(account, ""), list, guard).await
    }

    /// Refuses before the bytes are taken what would be refused afterwards.
    pub(super) async fn check_early(
        &self,
        account: &str,
        container: &str,
        name: &str,
        guard: &Guard,
    ) -> Result<(), StorageError> {
        let found = self.current(account, container, name).await?;
        condition::check_create(&guard.conditions, found.as_ref().map(Blob::version))?;
        lease_of(found.as_ref()).check_write(Leased::Blob, guard.lease.as_deref(), Timestamp::now())?;
        match found {
            Some(_) if guard.only_new => Err(StorageError::AuthorizationPermissionMismatch),
            _ => Ok(()),
        }
    }

    /// The blob, if there is one in this container, which must exist.
    async fn current(&self, account: &str, container: &str, name: &str) -> Result<Option<Blob>, StorageError> {
        match self.catalogue().blob(Address::blob(account, container, name)).await {
            Ok(blob) => Ok(Some(blob)),
            Err(StorageError::BlobNotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes all bytes; up to `inline` of them stay in memory.
    pub(super) async fn receive(
        &self,
        mut body: Body<'_>,
        expected: Expected,
        limit: u64,
        inline: u64,
    ) -> Result<Received, StorageError> {
        if expected.length.is_some_and(|length| length > limit) {
            return Err(StorageError::RequestBodyTooLarge(limit));
        }
        let crc64 = expected.crc64.is_some() || expected.answer_crc64;
        let mut start = BytesMut::new();
        let mut writer: Option<ObjectWriter> = None;
        let mut length = 0;
        while let Some(piece) = body.try_next().await? {
            length += piece.len() as u64;
            self.metrics().bytes_in.inc_by(piece.len() as u64);
            if length > limit {
                return Err(StorageError::RequestBodyTooLarge(limit));
            }
            match &mut writer {
                Some(writer) => writer.write(piece).await.map_err(|error| io_error(&error))?,
                None => {
                    start.extend_from_slice(&piece);
                    if length > inline {
                        let mut new = self.objects().create(crc64).await.map_err(|error| io_error(&error))?;
                        new.write(start.split().freeze()).await.map_err(|error| io_error(&error))?;
                        writer = Some(new);
                    }
                }
            }
        }
        if expected.length.is_some_and(|expected| expected != length) {
            return Err(StorageError::IncompleteBody);
        }
        if writer.is_none() && inline == 0 {
            writer = Some(self.objects().create(crc64).await.map_err(|error| io_error(&error))?);
        }
        let received = match writer {
            Some(writer) => Received::Large(writer.finish().await.map_err(|error| io_error(&error))?),
            None => {
                let mut hasher = Hasher::new(crc64);
                hasher.update(&start);
                Received::Small { bytes: start.freeze(), checksums: hasher.finish() }
            }
        };
        let checksums = match &received {
            Received::Small { checksums, .. } => checksums,
            Received::Large(written) => &written.checksums,
        };
        if expected.md5.is_some_and(|md5| md5 != checksums.md5) {
            return Err(StorageError::Md5Mismatch);
        }
        if expected.crc64.is_some() && expected.crc64 != checksums.crc64 {
            return Err(StorageError::Crc64Mismatch);
        }
        Ok(received)
    }
}

fn lease_of(blob: Option<&Blob>) -> &Lease {
    blob.map_or(&Lease::Available, |blob| &blob.lease)
}

/// Whether the row may exist in spite of the error. Only the store itself can
/// fail without an answer; every refusal was rolled back.
pub(super) fn may_be_committed(error: &StorageError) -> bool {
    matches!(error, StorageError::InternalError | StorageError::ServerBusy)
}

/// A process that stood still for long finds that its bytes may have been swept.
pub(super) fn still_there(written: Option<&Written>) -> Result<(), StorageError> {
    match written {
        Some(written) if !written.is_fresh() => Err(StorageError::ServerBusy),
        _ => Ok(()),
    }
}

/// Keeps the bytes if a row (maybe) names them; else they go. What is kept
/// without a row is found at the next start.
pub(super) fn settle(written: Option<Written>, named: bool) {
    if let (Some(written), true) = (written, named) {
        written.keep();
    }
}

/// Finishes `work` even if the caller is dropped.
pub(super) async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, StorageError>> + Send + 'static,
) -> Result<T, StorageError> {
    kiln_telemetry::spawn(work).await.unwrap_or_else(|error| {
        tracing::error!(%error, "a write ended unexpectedly");
        Err(StorageError::InternalError)
    })
}
