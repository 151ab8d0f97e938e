//! Append blobs: made empty, then added to.
//!
//! A small piece goes into the catalogue with the row that counts it, so that
//! one group commit makes the pieces of many writers durable. When enough of
//! them are there, they become one object behind the writers' backs; readers see
//! the same bytes before and after. A large piece is an object at once.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use kiln_time::Timestamp;

use super::upload::{Body, Expected, Received, detached, may_be_committed, settle, still_there};
use super::{Storage, io_error};
use crate::domain::StorageError;
use crate::domain::append::{self, Loose, Position};
use crate::domain::condition;
use crate::domain::lease::Leased;
use crate::domain::limits::Limits;
use crate::domain::model::{Address, INLINE_LIMIT, Piece};
use crate::objects::Checksums;
use crate::store::{Appended, Guard, LooseRun, NewPiece};

/// Bytes that are about to be added.
#[derive(Debug, Clone)]
pub struct AppendBlock {
    /// Owner.
    pub account: String,
    /// Container of the blob.
    pub container: String,
    /// The blob, which must exist.
    pub blob: String,
    /// Checked against the bytes.
    pub expected: Expected,
    /// How many they may be.
    pub limits: Limits,
    /// Where they are expected to go.
    pub position: Position,
    /// When they may be added.
    pub guard: Guard,
}

/// The contents whose pieces this process is merging, by owner, container and name: one merges, the others go on.
#[derive(Debug, Default)]
pub(super) struct Merging(Mutex<HashSet<(String, String, String)>>);

impl Storage {
    /// Adds to the end of an append blob. When this returns, the bytes survive
    /// power loss; writers that come at the same time are served one after the other.
    ///
    /// # Errors
    /// As Azure's Append Block.
    pub async fn append_block(
        &self,
        append: AppendBlock,
        body: Body<'_>,
    ) -> Result<(Appended, Checksums), StorageError> {
        let of = Address::blob(&append.account, &append.container, &append.blob);
        let blob = match self.catalogue().blob(of).await {
            Err(StorageError::BlobNotFound) if append.guard.conditions.if_match.is_some() => {
                return Err(StorageError::ConditionNotMet);
            }
            found => found?,
        };
        // What would be refused afterwards is refused before the bytes are taken.
        condition::check_write(&append.guard.conditions, Some(blob.version()))?;
        blob.lease.check_write(Leased::Blob, append.guard.lease.as_deref(), Timestamp::now())?;
        append::check(&blob, append.expected.length.unwrap_or(0), append.position)?;
        // Pieces in the catalogue are not encrypted; where bytes have to be, each piece is an object.
        let inline = if self.objects().encrypts() { 0 } else { INLINE_LIMIT };
        let received = self.receive(body, append.expected, append.limits.append, inline).await?;
        let (piece, written, checksums) = match received {
            Received::Small { bytes, checksums } => (Piece::Bytes(bytes), None, checksums),
            Received::Large(written) => {
                let piece = Piece::Object { key: written.key.clone(), length: written.length };
                let checksums = written.checksums;
                (piece, Some(written), checksums)
            }
        };
        let AppendBlock { account, container, blob, position, guard, .. } = append;
        let storage = self.clone();
        let appended = detached(async move {
            let new = NewPiece { container: container.clone(), blob: blob.clone(), piece, position };
            still_there(written.as_ref())?;
            let outcome = storage.catalogue().append(storage.stamp(&account, ""), new, guard).await;
            let named = outcome.as_ref().map_or_else(may_be_committed, |_| true);
            settle(written, named);
            if let Ok(done) = &outcome {
                storage.merge_if_due(account, container, blob, done.loose).await;
            }
            outcome
        })
        .await?;
        Ok((appended, checksums))
    }

    /// Begins to merge, unless this process is at it already; waits only if so
    /// much is loose that merging must come first.
    async fn merge_if_due(&self, account: String, container: String, blob: String, loose: Loose) {
        if !loose.is_worth_an_object() {
            return;
        }
        if loose.is_full() {
            // Also if another one is at it: the catalogue takes the faster one.
            self.merge(&account, &container, &blob).await;
            return;
        }
        let key = (account, container, blob);
        if !self.inner.merging.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone()) {
            return;
        }
        let storage = self.clone();
        kiln_telemetry::spawn(async move {
            let (account, container, blob) = &key;
            storage.merge(account, container, blob).await;
            storage.inner.merging.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        });
    }

    /// Makes objects of the loose pieces of a blob. If it fails, they stay where
    /// they are, and a later append tries again.
    async fn merge(&self, account: &str, container: &str, blob: &str) {
        let merged = async {
            for run in self.catalogue().loose(account, container, blob).await? {
                self.merge_run(run).await?;
            }
            Ok::<_, StorageError>(())
        };
        match merged.await {
            // It was deleted meanwhile.
            Ok(()) | Err(StorageError::BlobNotFound | StorageError::ContainerNotFound) => {}
            Err(error) => tracing::warn!(container, %error, "pieces of an append blob could not be merged"),
        }
    }

    async fn merge_run(&self, run: LooseRun) -> Result<(), StorageError> {
        let mut writer = self.objects().create(false).await.map_err(|error| io_error(&error))?;
        writer.write(run.bytes.clone()).await.map_err(|error| io_error(&error))?;
        let written = writer.finish().await.map_err(|error| io_error(&error))?;
        let outcome = self.catalogue().merge(run, written.key.clone()).await;
        let named = outcome.as_ref().map_or_else(may_be_committed, |merged| *merged);
        settle(Some(written), named);
        outcome.map(drop)
    }
}
