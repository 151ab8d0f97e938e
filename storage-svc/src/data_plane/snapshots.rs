//! Snapshots and tiers.

use kiln_time::Timestamp;

use super::reply::Reply;
use super::{Answer, Job, headers};
use crate::domain::StorageError;
use crate::store::Deletion;

const DELETE_SNAPSHOTS: &str = "x-ms-delete-snapshots";

impl Job<'_> {
    pub(super) async fn snapshot_blob(self) -> Answer {
        let guard = self.guard()?;
        let metadata = headers::metadata(self.call)?;
        let (account, container, name) = self.name();
        let stamp = self.plane.storage.stamp(account, "");
        let catalogue = self.plane.storage.catalogue();
        let taken = catalogue.take_snapshot(stamp, container, name, guard, metadata).await?;
        let at = taken.snapshot.ok_or(StorageError::InternalError)?;
        Ok(Reply::new(201)
            .version(&taken.etag, taken.last_modified)
            .header("x-ms-snapshot", at.to_rfc3339_ticks())
            .header("x-ms-request-server-encrypted", "false"))
    }

    /// What a request to delete is about.
    pub(super) fn deletion(&self) -> Result<Deletion, StorageError> {
        let snapshots = self.call.header(DELETE_SNAPSHOTS).map(str::to_ascii_lowercase);
        match (self.call.snapshot()?, snapshots.as_deref()) {
            (None, None) => Ok(Deletion::Blob),
            (None, Some("include")) => Ok(Deletion::WithSnapshots),
            (None, Some("only")) => Ok(Deletion::Snapshots),
            (None, Some(other)) => {
                Err(StorageError::InvalidHeaderValue { name: DELETE_SNAPSHOTS, value: other.to_owned() })
            }
            (Some(at), None) => Ok(Deletion::Snapshot(at)),
            // One snapshot has no snapshots.
            (Some(_), Some(_)) => Err(StorageError::UnsupportedHeader(DELETE_SNAPSHOTS)),
        }
    }

    pub(super) async fn set_blob_tier(self) -> Answer {
        let tier = headers::tier(self.call)?.ok_or(StorageError::MissingRequiredHeader("x-ms-access-tier"))?;
        let lease = headers::lease_id(self.call)?;
        self.plane.storage.catalogue().set_tier(self.address()?, Timestamp::now(), tier, lease).await?;
        Ok(Reply::new(200))
    }
}
