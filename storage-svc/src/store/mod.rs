//! The catalogue: what exists, and which objects hold its bytes.
//!
//! [`Catalogue`] is the contract in the words of the domain; [`sqlite`] is its
//! implementation; `conformance` is the suite every implementation passes.
//!
//! Invariants:
//! - a row never refers to an object that is not durable: callers write objects
//!   first and name them here afterwards;
//! - several blobs may name one object; one that loses its last row is in `garbage` in the same transaction,
//!   until [`Catalogue::forget_garbage`] confirms that its bytes are gone;
//! - every write judges its conditions, remembers its answer by request id and
//!   announces itself in the outbox in one transaction.

#[cfg(test)]
mod application_conformance;
mod applications;
#[cfg(test)]
pub mod conformance;
#[cfg(test)]
pub mod kind_conformance;
pub mod sql;

use std::collections::HashSet;
use std::fmt;

use async_trait::async_trait;
use kiln_etag::Conditions;
use kiln_time::Timestamp;

use crate::domain::StorageError;
use crate::domain::append::{Loose, Position};
use crate::domain::cors::{PropertiesChange, ServiceProperties};
use crate::domain::lease::{LeaseAction, LeaseAnswer};
use crate::domain::model::{
    Account, Address, Blob, BlobKind, BlobProperties, BlockInfo, BlockSource, ChosenTier, Container, Content,
    CopySource, ObjectKey, OpenUpload, Piece, PublicAccess, StoredPolicy, Tier,
};
use crate::domain::names::Metadata;

pub use applications::ApplicationCatalogue;
pub use sql::SqlCatalogue;

/// What every write carries.
#[derive(Debug, Clone)]
pub struct Stamp {
    /// Whose record it is.
    pub account: String,
    /// The clock.
    pub now: Timestamp,
    /// ETag of the record after the write.
    pub etag: String,
    /// For the event.
    pub traceparent: String,
    /// If this was seen before, the first answer is given again; empty: never.
    pub request_id: String,
}

/// When a write may happen.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// If-Match and so on.
    pub conditions: Conditions,
    /// The caller may make this blob but not replace it.
    pub only_new: bool,
    /// Id of the lease that the caller says it has.
    pub lease: Option<String>,
}

impl From<Conditions> for Guard {
    fn from(conditions: Conditions) -> Self {
        Self { conditions, ..Self::default() }
    }
}

/// An answer, and whether it was given before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Once<T> {
    /// What the (first) request did.
    pub answer: T,
    /// This request did nothing.
    pub repeated: bool,
}

/// A blob that is about to be.
#[derive(Debug, Clone)]
pub struct NewBlob {
    /// Container it goes into.
    pub container: String,
    /// Its name.
    pub name: String,
    /// Stored headers.
    pub properties: BlobProperties,
    /// Given by the client.
    pub metadata: Metadata,
    /// Its bytes, durable already.
    pub content: Content,
    /// If it is a copy.
    pub copy: Option<CopySource>,
    /// How it is written.
    pub kind: BlobKind,
    /// If the client chose one.
    pub tier: Option<ChosenTier>,
}

/// A blob of any account that is to be copied.
#[derive(Debug, Clone)]
pub struct CopyFrom {
    /// Owner.
    pub account: String,
    /// Container it is in.
    pub container: String,
    /// Its name.
    pub name: String,
    /// When the snapshot was taken; the blob itself if absent.
    pub snapshot: Option<Timestamp>,
    /// It must fulfil these.
    pub conditions: Conditions,
    /// It must be this version, of which the caller knows something.
    pub etag: Option<String>,
}

impl CopyFrom {
    /// Where it is.
    pub fn address(&self) -> Address<'_> {
        Address { account: &self.account, container: &self.container, name: &self.name, snapshot: self.snapshot }
    }
}

/// What a copy is to be.
#[derive(Debug, Clone)]
pub struct CopyInto {
    /// Container it goes into.
    pub container: String,
    /// Its name.
    pub name: String,
    /// Instead of the source's.
    pub metadata: Option<Metadata>,
    /// Instead of the source's.
    pub properties: Option<BlobProperties>,
    /// If it is told that it is a copy.
    pub copy: Option<CopySource>,
    /// If the client chose one.
    pub tier: Option<Tier>,
    /// Its blocks are those of the source, by the same ids.
    pub keep_blocks: bool,
}

/// A blob that is made of blocks.
#[derive(Debug, Clone)]
pub struct BlockList {
    /// Container it goes into.
    pub container: String,
    /// Its name.
    pub name: String,
    /// Stored headers.
    pub properties: BlobProperties,
    /// Given by the client.
    pub metadata: Metadata,
    /// Block ids in order, and where each is looked for.
    pub blocks: Vec<(BlockSource, String)>,
    /// If the client chose one.
    pub tier: Option<ChosenTier>,
}

/// Bytes that are about to be added to an append blob.
#[derive(Debug, Clone)]
pub struct NewPiece {
    /// Container of the blob.
    pub container: String,
    /// The blob, which must exist.
    pub blob: String,
    /// The bytes, durable already if they are an object.
    pub piece: Piece,
    /// Where the client expects to write.
    pub position: Position,
}

/// What an append did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// The blob after it.
    pub blob: Blob,
    /// Where the bytes are in it.
    pub offset: u64,
    /// The pieces of the blob that are not in objects, this one included.
    pub loose: Loose,
}

/// Consecutive pieces of an append blob that are still in the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LooseRun {
    /// Of the content, known to the catalogue.
    pub content: i64,
    /// Place of the first piece.
    pub first: u64,
    /// Place of the last piece.
    pub last: u64,
    /// All their bytes.
    pub bytes: bytes::Bytes,
}

/// What is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// The blob, which must not have snapshots.
    Blob,
    /// The blob and its snapshots.
    WithSnapshots,
    /// All snapshots; the blob stays.
    Snapshots,
    /// The one that was taken at this moment.
    Snapshot(Timestamp),
}

/// A block that is about to be.
#[derive(Debug, Clone)]
pub struct NewBlock {
    /// Container of the blob.
    pub container: String,
    /// The blob, which need not exist.
    pub blob: String,
    /// Base64, as the client wrote it.
    pub id: String,
    /// Its bytes, durable already.
    pub object: ObjectKey,
    /// How many.
    pub length: u64,
}

/// What changes in a container.
#[derive(Debug, Clone)]
pub enum ContainerChange {
    /// Replaces the metadata.
    Metadata(Metadata),
    /// Replaces the access rules.
    Acl {
        /// What may be read without credentials.
        public_access: PublicAccess,
        /// Stored policies.
        policies: Vec<StoredPolicy>,
    },
}

/// What changes in a blob besides its bytes.
#[derive(Debug, Clone)]
pub enum BlobChange {
    /// Replaces the metadata.
    Metadata(Metadata),
    /// Replaces the stored headers.
    Properties(BlobProperties),
}

/// Which blobs to list.
#[derive(Debug, Clone, Default)]
pub struct BlobQuery {
    /// Names that begin with this.
    pub prefix: String,
    /// Cut names behind the first of these after the prefix; empty: do not.
    pub delimiter: String,
    /// First entry to look at, itself included; absent: the first there is.
    pub from: Option<BlobPosition>,
    /// Entries at most; at least 1.
    pub limit: usize,
    /// Snapshots, too.
    pub snapshots: bool,
    /// Blobs that have only uncommitted blocks, too.
    pub uncommitted: bool,
}

/// A place in a list of blobs: names in order; of one name the snapshots by
/// their age, then the blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobPosition {
    /// Name of the blob.
    pub name: String,
    /// One of its snapshots; the blob itself if absent.
    pub snapshot: Option<Timestamp>,
}

impl BlobPosition {
    /// Before everything of the first name that is not before `name`.
    pub fn before(name: String) -> Self {
        Self { name, snapshot: Some(Timestamp::from_micros(i64::MIN)) }
    }
}

/// An entry of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobEntry {
    /// A blob or a snapshot.
    Blob(Box<Blob>),
    /// A blob that has only uncommitted blocks.
    Uncommitted {
        /// Its name.
        name: String,
        /// When the last block was put.
        time: Timestamp,
    },
    /// All blobs whose names begin with this.
    Prefix(String),
}

/// A part of a list, in the order of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T, P = String> {
    /// The entries.
    pub entries: Vec<T>,
    /// Where the next part begins; absent at the end.
    pub next: Option<P>,
}

/// The blocks of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    /// The blob, if it was committed.
    pub blob: Option<Blob>,
    /// In the order of the content.
    pub committed: Vec<BlockInfo>,
    /// In the order of their ids.
    pub uncommitted: Vec<BlockInfo>,
}

/// See the module.
#[async_trait]
pub trait Catalogue: ApplicationCatalogue + fmt::Debug + Send + Sync + 'static {
    /// Creates the account or replaces its keys.
    async fn put_account(&self, account: Account) -> Result<(), StorageError>;
    /// The account, its name compared without case.
    async fn account(&self, name: &str) -> Result<Option<Account>, StorageError>;
    /// The account, if there is exactly one.
    async fn only_account(&self) -> Result<Option<Account>, StorageError>;
    /// Properties of the account's blob service.
    async fn service_properties(&self, account: &str) -> Result<ServiceProperties, StorageError>;
    /// Changes them.
    async fn change_service_properties(&self, account: &str, change: PropertiesChange) -> Result<(), StorageError>;

    /// Makes a container; its `etag` and `last_modified` are those of the stamp.
    async fn create_container(&self, stamp: Stamp, container: Container) -> Result<Once<Container>, StorageError>;
    /// The container.
    async fn container(&self, account: &str, name: &str) -> Result<Container, StorageError>;
    /// Containers whose name begins with `prefix`, from the name `from` on.
    async fn list_containers(
        &self,
        account: &str,
        prefix: &str,
        from: &str,
        limit: usize,
    ) -> Result<Page<Container>, StorageError>;
    /// Changes a container.
    async fn change_container(
        &self,
        stamp: Stamp,
        name: &str,
        guard: Guard,
        change: ContainerChange,
    ) -> Result<Container, StorageError>;
    /// Removes a container; its blobs follow in [`Catalogue::tidy`], unseen.
    async fn delete_container(&self, stamp: Stamp, name: &str, guard: Guard) -> Result<(), StorageError>;
    /// Does a lease operation on a container, and gives it as it is then.
    async fn lease_container(
        &self,
        stamp: Stamp,
        name: &str,
        conditions: Conditions,
        action: LeaseAction,
    ) -> Result<(Container, LeaseAnswer), StorageError>;

    /// A blob or snapshot without its bytes.
    async fn blob(&self, of: Address<'_>) -> Result<Blob, StorageError>;
    /// A blob or snapshot and where its bytes are, of one moment.
    async fn blob_content(&self, of: Address<'_>) -> Result<(Blob, Content), StorageError>;
    /// Makes or replaces a blob; uncommitted blocks of its name are dropped.
    async fn put_blob(&self, stamp: Stamp, blob: NewBlob, guard: Guard) -> Result<Once<Blob>, StorageError>;
    /// Copies a blob; the copy names the source's objects. The stamp and the guard are those of the copy.
    async fn copy_blob(&self, stamp: Stamp, from: CopyFrom, into: CopyInto, guard: Guard)
    -> Result<Blob, StorageError>;
    /// Replaces metadata or headers.
    async fn change_blob(
        &self,
        stamp: Stamp,
        container: &str,
        name: &str,
        guard: Guard,
        change: BlobChange,
    ) -> Result<Blob, StorageError>;
    /// Removes a blob with its uncommitted blocks, or snapshots.
    async fn delete_blob(
        &self,
        stamp: Stamp,
        container: &str,
        name: &str,
        guard: Guard,
        what: Deletion,
    ) -> Result<(), StorageError>;
    /// Does a lease operation on a blob, and gives it as it is then.
    async fn lease_blob(
        &self,
        stamp: Stamp,
        container: &str,
        name: &str,
        conditions: Conditions,
        action: LeaseAction,
    ) -> Result<(Blob, LeaseAnswer), StorageError>;
    /// Keeps the blob as it is under the time of the stamp, or a later one if that is taken. With
    /// `metadata` the snapshot has this and is itself written now. The lease may be named, and need not.
    async fn take_snapshot(
        &self,
        stamp: Stamp,
        container: &str,
        name: &str,
        guard: Guard,
        metadata: Option<Metadata>,
    ) -> Result<Blob, StorageError>;
    /// Chooses a tier of a block blob or snapshot; its version stays. The lease `given` may be named, and need not.
    async fn set_tier(
        &self,
        of: Address<'_>,
        now: Timestamp,
        tier: Tier,
        given: Option<String>,
    ) -> Result<(), StorageError>;
    /// Blobs of a container.
    async fn list_blobs(
        &self,
        account: &str,
        container: &str,
        query: BlobQuery,
    ) -> Result<Page<BlobEntry, BlobPosition>, StorageError>;

    /// Adds an uncommitted block, or replaces the one of this id. Conditions of the guard do not count.
    async fn put_block(&self, stamp: Stamp, block: NewBlock, guard: Guard) -> Result<(), StorageError>;
    /// Makes or replaces a blob out of blocks; all others are dropped.
    async fn put_block_list(&self, stamp: Stamp, list: BlockList, guard: Guard) -> Result<Blob, StorageError>;
    /// The blocks of a blob or snapshot.
    async fn blocks(&self, of: Address<'_>) -> Result<Blocks, StorageError>;

    /// Adds to the end of an append blob.
    async fn append(&self, stamp: Stamp, piece: NewPiece, guard: Guard) -> Result<Appended, StorageError>;
    /// The loose pieces of an append blob, by runs in their order.
    async fn loose(&self, account: &str, container: &str, name: &str) -> Result<Vec<LooseRun>, StorageError>;
    /// Puts `object`, which has the bytes of the run, in its place; `false` if the run is not there any more.
    async fn merge(&self, run: LooseRun, object: ObjectKey) -> Result<bool, StorageError>;

    /// Objects that lost their last row before `before`.
    async fn garbage(&self, before: Timestamp, limit: usize) -> Result<Vec<ObjectKey>, StorageError>;
    /// Their bytes are gone.
    async fn forget_garbage(&self, objects: Vec<ObjectKey>) -> Result<(), StorageError>;
    /// Which of `objects` any row refers to, garbage included.
    async fn known(&self, objects: Vec<ObjectKey>) -> Result<HashSet<ObjectKey>, StorageError>;

    /// The name that the objects of this catalogue bear; `new` if it has none yet.
    async fn identity(&self, new: &str) -> Result<String, StorageError>;
    /// Keys that bytes may be encrypted with: their ids, and what tells another
    /// key of the same id apart.
    async fn encryption_keys(&self) -> Result<Vec<(String, String)>, StorageError>;
    /// Adds a key; if there is one of this id, that stays.
    async fn add_encryption_key(&self, id: &str, proof: &str) -> Result<(), StorageError>;
    /// Whether any bytes are encrypted with a key. Looks at all of them.
    async fn key_in_use(&self, id: &str) -> Result<bool, StorageError>;
    /// Forgets a key.
    async fn forget_encryption_key(&self, id: &str) -> Result<(), StorageError>;
    /// An upload in parts was begun, or goes on.
    async fn note_upload(&self, upload: &OpenUpload, now: Timestamp) -> Result<(), StorageError>;
    /// An upload in parts is over.
    async fn forget_upload(&self, object: &ObjectKey) -> Result<(), StorageError>;
    /// Uploads in parts that were noted before `before` for the last time.
    async fn open_uploads(&self, before: Timestamp, limit: usize) -> Result<Vec<OpenUpload>, StorageError>;

    /// Does a bounded part of what waits: blobs of deleted containers, old
    /// uncommitted blocks, old request ids. `true` if more may be waiting.
    async fn tidy(&self, now: Timestamp) -> Result<bool, StorageError>;
}
