//! Accounts, containers, blobs, and what a blob's bytes are made of.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use kiln_auth::SecretKey;
use kiln_etag::Version;
use kiln_time::Timestamp;
use serde::{Deserialize, Serialize};

use super::lease::Lease;
use super::names::Metadata;

/// Blobs up to this size live in the catalogue, so that one group commit makes
/// many of them durable; larger ones are objects of their own.
pub const INLINE_LIMIT: u64 = 64 * 1024;
/// Blocks of one blob.
pub const MAX_BLOCKS: usize = 50_000;
/// Uncommitted blocks of one blob.
pub const MAX_UNCOMMITTED: u64 = 100_000;
/// Bytes of Put Blob.
pub const MAX_PUT_BLOB: u64 = 5000 * 1024 * 1024;
/// Bytes of one block.
pub const MAX_BLOCK: u64 = 4000 * 1024 * 1024;
/// Entries of one page of a list.
pub const MAX_PAGE: usize = 5000;
/// Stored access policies of a container.
pub const MAX_POLICIES: usize = 5;
/// Uncommitted blocks are forgotten after this.
pub const BLOCK_LIFE: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);

/// Owner of containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// As it was created.
    pub name: String,
    /// Either key signs; two, so that one can be replaced while the other is in use.
    pub keys: [SecretKey; 2],
}

/// What may be read without credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PublicAccess {
    /// Nothing.
    #[default]
    Private,
    /// Blobs whose name is known.
    Blob,
    /// Blobs, their list, and the container's properties.
    Container,
}

/// A shared access policy of a container; tokens name it by `si`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StoredPolicy {
    /// At most 64 characters.
    pub id: String,
    /// As written.
    pub start: Option<String>,
    /// As written.
    pub expiry: Option<String>,
    /// As written.
    pub permission: Option<String>,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Changes with every write to the container itself.
    pub etag: String,
    /// Of that write.
    pub last_modified: Timestamp,
    /// Given by clients.
    pub metadata: Metadata,
    /// What may be read without credentials.
    pub public_access: PublicAccess,
    /// At most [`MAX_POLICIES`].
    pub policies: Vec<StoredPolicy>,
    /// Who alone may delete it.
    #[serde(default)]
    pub lease: Lease,
}

/// Headers that are stored with a blob; empty texts mean absent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BlobProperties {
    /// Never empty in a stored blob.
    pub content_type: String,
    /// Content-Encoding.
    pub content_encoding: String,
    /// Content-Language.
    pub content_language: String,
    /// Content-Disposition.
    pub content_disposition: String,
    /// Cache-Control.
    pub cache_control: String,
    /// Of the whole content, if it is known.
    pub content_md5: Option<[u8; 16]>,
}

/// Type of blobs whose writer named none.
pub const DEFAULT_CONTENT_TYPE: &str = "application/octet-stream";

/// Where a blob was copied from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopySource {
    /// Of the copy operation.
    pub id: String,
    /// URL as the client gave it, without its signature.
    pub source: String,
    /// When it was done.
    pub completed: Timestamp,
}

/// How a blob's bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum BlobKind {
    /// At once, or as a list of blocks.
    #[default]
    Block,
    /// By adding to its end.
    Append {
        /// How often something was added.
        blocks: u64,
    },
}

/// How dear a blob's bytes are meant to be. A label, but for [`Tier::Archive`], whose
/// bytes are not given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // Azure's names.
pub enum Tier {
    Hot,
    Cool,
    Cold,
    Archive,
}

impl Tier {
    /// Reads Azure's word.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Hot, Self::Cool, Self::Cold, Self::Archive].into_iter().find(|tier| tier.name() == text)
    }

    /// Azure's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hot => "Hot",
            Self::Cool => "Cool",
            Self::Cold => "Cold",
            Self::Archive => "Archive",
        }
    }
}

/// A tier that somebody chose; blobs without one are [`Tier::Hot`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChosenTier {
    /// Which.
    pub tier: Tier,
    /// When it was chosen.
    pub since: Timestamp,
}

/// One blob, or one snapshot of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address<'a> {
    /// Owner.
    pub account: &'a str,
    /// Container it is in.
    pub container: &'a str,
    /// Its name.
    pub name: &'a str,
    /// When the snapshot was taken; the blob itself if absent.
    pub snapshot: Option<Timestamp>,
}

impl<'a> Address<'a> {
    /// The blob itself.
    pub fn blob(account: &'a str, container: &'a str, name: &'a str) -> Self {
        Self { account, container, name, snapshot: None }
    }
}

/// A blob without its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Container it is in.
    pub container: String,
    /// Its name.
    pub name: String,
    /// Changes with every write, also of metadata.
    pub etag: String,
    /// When the name was first written.
    pub created: Timestamp,
    /// Of the last write.
    pub last_modified: Timestamp,
    /// Bytes.
    pub length: u64,
    /// Stored headers.
    pub properties: BlobProperties,
    /// Given by clients.
    pub metadata: Metadata,
    /// If it is a copy.
    pub copy: Option<CopySource>,
    /// Who alone may write it.
    #[serde(default)]
    pub lease: Lease,
    /// How it is written.
    #[serde(default)]
    pub kind: BlobKind,
    /// If somebody chose one.
    #[serde(default)]
    pub tier: Option<ChosenTier>,
    /// If this is a snapshot: when it was taken.
    #[serde(default)]
    pub snapshot: Option<Timestamp>,
}

impl Blob {
    /// Whether its bytes are in the archive.
    pub fn is_archived(&self) -> bool {
        self.tier.is_some_and(|chosen| chosen.tier == Tier::Archive)
    }

    /// What conditions are compared with.
    pub fn version(&self) -> Version<'_> {
        Version { etag: &self.etag, last_modified: self.last_modified }
    }
}

impl Container {
    /// What conditions are compared with.
    pub fn version(&self) -> Version<'_> {
        Version { etag: &self.etag, last_modified: self.last_modified }
    }
}

/// Names the bytes of one write; never used twice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(pub String);

impl ObjectKey {
    /// Id of the key that its bytes are encrypted with, if they are: the name
    /// ends with it.
    pub fn sealed_with(&self) -> Option<&str> {
        self.0.rsplit_once('.').map(|(_, key)| key)
    }
}

/// An upload in parts to a remote store that was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenUpload {
    /// What it will be.
    pub object: ObjectKey,
    /// The store's name for it.
    pub id: String,
}

/// Bytes of a small blob, encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedBytes {
    /// Id of the key.
    pub key: String,
    /// As they are stored.
    pub bytes: Bytes,
}

impl SealedBytes {
    /// What encryption adds to them.
    pub const ADDED: u64 = 32;

    /// How many they are when opened.
    pub fn length(&self) -> u64 {
        (self.bytes.len() as u64).saturating_sub(Self::ADDED)
    }
}

/// Consecutive bytes of a blob that lie in one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Set if it was written as a block.
    pub block_id: Option<String>,
    /// The whole object.
    pub object: ObjectKey,
    /// Its length.
    pub length: u64,
}

/// Consecutive bytes of an append blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// The first `length` bytes of an object.
    Object {
        /// Which.
        key: ObjectKey,
        /// How many.
        length: u64,
    },
    /// In the catalogue.
    Bytes(Bytes),
}

impl Piece {
    /// How many bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::Object { length, .. } => *length,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

/// A blob's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// In the catalogue.
    Inline(Bytes),
    /// In the catalogue, encrypted.
    Sealed(SealedBytes),
    /// In objects, in this order.
    Objects(Vec<Extent>),
    /// Of an append blob: in both, in this order.
    Pieces(Vec<Piece>),
}

impl Content {
    /// How many bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Sealed(sealed) => sealed.length(),
            Self::Objects(extents) => extents.iter().map(|extent| extent.length).sum(),
            Self::Pieces(pieces) => pieces.iter().map(Piece::length).sum(),
        }
    }
}

/// Where a block list looks for a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockSource {
    /// In the blob as it is.
    Committed,
    /// Among the blocks that were put since.
    Uncommitted,
    /// Uncommitted first, else committed.
    Latest,
}

/// A block as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockInfo {
    /// Base64, as the client wrote it.
    pub id: String,
    /// Bytes.
    pub length: u64,
}

/// Makes ETags, never the same twice
/// from one process even if the clock stands still or goes back.
#[derive(Debug, Default)]
pub struct EtagSource(AtomicU64);

impl EtagSource {
    /// A new ETag, without quotes.
    pub fn next(&self, now: Timestamp) -> String {
        let after = |last| kiln_etag::next(last, now);
        let last =
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(after(last))).unwrap_or_default();
        kiln_etag::text(after(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_etag_is_made_twice() {
        let source = EtagSource::default();
        let now = Timestamp::from_micros(1_795_000_000_000_000);
        let (a, b) = (source.next(now), source.next(now));
        assert_ne!(a, b);
        assert_ne!(source.next(Timestamp::from_micros(0)), b);
    }
}
