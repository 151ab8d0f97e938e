//! Copies of bytes that are elsewhere: on other servers, or where a part of a blob is wanted.
//!
//! What is in the catalogue whole is copied by the catalogue itself ([`Storage::copy_blob`]).

use futures::TryStreamExt;
use kiln_etag::Conditions;
use kiln_time::Timestamp;

use super::upload::{Body, Expected, Received};
use super::{Download, Storage, io_error, remote};
use crate::domain::StorageError;
use crate::domain::condition;
use crate::domain::model::{
    Address, Blob, BlobKind, BlobProperties, ChosenTier, Content, CopySource, Extent, INLINE_LIMIT, Tier,
};
use crate::domain::names::{self, Metadata};
use crate::domain::range::WantedRange;
use crate::objects::Hasher;
use crate::store::{CopyFrom, CopyInto, Guard, NewBlob};

/// A blob that is made of bytes from elsewhere.
#[derive(Debug, Clone)]
pub struct CopyBytes {
    /// Owner.
    pub account: String,
    /// Container of the copy.
    pub container: String,
    /// Name of the copy.
    pub name: String,
    /// Stored headers; the MD5 is filled in.
    pub properties: BlobProperties,
    /// Metadata.
    pub metadata: Metadata,
    /// If it is told that it is a copy.
    pub copy: Option<CopySource>,
    /// If the client chose one.
    pub tier: Option<Tier>,
    /// Checked against the bytes.
    pub expected: Expected,
    /// How many they may be.
    pub limit: u64,
    /// When the copy may be written.
    pub guard: Guard,
}

impl Storage {
    /// Copies a blob of this service, of any account, without moving its bytes. If `md5` is given, they are read
    /// once and compared, and the blob must not change meanwhile.
    ///
    /// # Errors
    /// As Azure's Copy Blob.
    pub async fn copy_blob(
        &self,
        account: &str,
        mut from: CopyFrom,
        into: CopyInto,
        md5: Option<[u8; 16]>,
        guard: Guard,
    ) -> Result<Blob, StorageError> {
        names::check_blob(&into.name)?;
        if let Some(md5) = md5 {
            let opened = self.open_source(from.address(), &from.conditions, None).await?;
            let etag = opened.blob.etag.clone();
            if self.md5_of(remote::body_of(opened.into_stream())).await? != md5 {
                return Err(StorageError::Md5Mismatch);
            }
            from.etag = Some(etag);
        }
        let stamp = self.stamp(account, "");
        self.catalogue().copy_blob(stamp, from, into, guard).await
    }

    /// Makes a blob of bytes as they come; complete when this returns. If it fails or is dropped, nothing is left.
    ///
    /// # Errors
    /// As Azure's Put Blob From URL; whatever the body says.
    pub async fn copy_bytes(&self, copy: CopyBytes, body: Body<'_>) -> Result<Blob, StorageError> {
        names::check_blob(&copy.name)?;
        self.check_early(&copy.account, &copy.container, &copy.name, &copy.guard).await?;
        let received = self.receive(body, copy.expected, copy.limit, INLINE_LIMIT).await?;
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
        let new = NewBlob {
            container: copy.container,
            name: copy.name,
            properties: BlobProperties { content_md5: Some(checksums.md5), ..copy.properties },
            metadata: copy.metadata,
            content,
            copy: copy.copy,
            kind: BlobKind::Block,
            tier: copy.tier.map(|tier| ChosenTier { tier, since: Timestamp::now() }),
        };
        self.commit_blob(copy.account, String::new(), new, written, copy.guard).await
    }

    /// Opens a blob of this service that is to be copied, or a part of it.
    ///
    /// # Errors
    /// It does not exist, a condition does not hold, the range is behind its end.
    pub async fn open_source(
        &self,
        of: Address<'_>,
        conditions: &Conditions,
        range: Option<WantedRange>,
    ) -> Result<Download, StorageError> {
        let opened = self.open(of, &Conditions::default(), range).await;
        let opened = opened.map_err(|error| match error {
            // Which part of a source is missing is its owner's business.
            StorageError::ContainerNotFound => StorageError::BlobNotFound,
            other => other,
        })?;
        condition::check_source(conditions, opened.blob.version())?;
        Ok(opened)
    }

    async fn md5_of(&self, mut body: Body<'_>) -> Result<[u8; 16], StorageError> {
        let mut hasher = Hasher::new(false);
        while let Some(piece) = body.try_next().await? {
            hasher.update(&piece);
        }
        Ok(hasher.finish().md5)
    }
}
