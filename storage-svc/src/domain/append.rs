//! Rules of append blobs.
//!
//! Small pieces stay in the catalogue, where one group commit makes many of
//! them durable, until there are enough for an object: a log of 50,000 lines is
//! some 50 objects, not 50,000. Pieces that wait for that are *loose*.

use super::StorageError;
use super::model::Blob;
use super::model::BlobKind;

/// How often something may be added to one blob.
pub const MAX_APPENDS: u64 = 50_000;
/// Loose pieces that are worth an object.
pub const MERGE_PIECES: u64 = 1024;
/// Loose bytes that are worth an object.
pub const MERGE_BYTES: u64 = 1024 * 1024;
/// Loose bytes at which a writer waits until they are merged: readers hold them
/// in memory.
pub const MAX_LOOSE_BYTES: u64 = 8 * 1024 * 1024;
/// The same for the number of pieces.
pub const MAX_LOOSE_PIECES: u64 = 8 * MERGE_PIECES;

/// Where the writer expects to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// The blob must have this length before.
    pub at: Option<u64>,
    /// It must not be longer than this afterwards.
    pub max_size: Option<u64>,
}

/// Pieces of a blob that are not in objects yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Loose {
    /// How many.
    pub pieces: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Loose {
    /// Whether an object should be made of them.
    pub fn is_worth_an_object(self) -> bool {
        self.pieces >= MERGE_PIECES || self.bytes >= MERGE_BYTES
    }

    /// Whether whoever adds more has to wait.
    pub fn is_full(self) -> bool {
        self.pieces >= MAX_LOOSE_PIECES || self.bytes >= MAX_LOOSE_BYTES
    }
}

/// How often something was added to a blob.
///
/// # Errors
/// [`StorageError::InvalidBlobType`] if it is no append blob.
pub fn appended(blob: &Blob) -> Result<u64, StorageError> {
    match blob.kind {
        BlobKind::Append { blocks } => Ok(blocks),
        BlobKind::Block => Err(StorageError::InvalidBlobType),
    }
}

/// Whether `added` bytes may be added to `blob`; gives how often something was
/// added before.
///
/// # Errors
/// It is no append blob, something was added too often, the position is another.
pub fn check(blob: &Blob, added: u64, position: Position) -> Result<u64, StorageError> {
    let blocks = appended(blob)?;
    if position.at.is_some_and(|at| at != blob.length) {
        return Err(StorageError::AppendPositionConditionNotMet);
    }
    if position.max_size.is_some_and(|most| blob.length.saturating_add(added) > most) {
        return Err(StorageError::MaxBlobSizeConditionNotMet);
    }
    if blocks >= MAX_APPENDS {
        return Err(StorageError::BlockCountExceedsLimit(MAX_APPENDS));
    }
    Ok(blocks)
}

/// Runs of consecutive places, as first and last.
pub fn runs(places: impl IntoIterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for place in places {
        match runs.last_mut() {
            Some((_, last)) if place.checked_sub(1) == Some(*last) => *last = place,
            _ => runs.push((place, place)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use kiln_time::Timestamp;

    use super::*;
    use crate::domain::model::BlobProperties;

    fn blob(kind: BlobKind, length: u64) -> Blob {
        Blob {
            container: "cont".into(),
            name: "b".into(),
            etag: String::new(),
            created: Timestamp::default(),
            last_modified: Timestamp::default(),
            length,
            properties: BlobProperties::default(),
            metadata: std::collections::BTreeMap::new(),
            copy: None,
            kind,
            tier: None,
            snapshot: None,
            lease: crate::domain::lease::Lease::Available,
        }
    }

    #[test]
    fn positions() {
        let append = blob(BlobKind::Append { blocks: 3 }, 10);
        for (at, max_size, expected) in [
            (None, None, "ok"),
            (Some(10), None, "ok"),
            (Some(9), None, "AppendPositionConditionNotMet"),
            (Some(11), None, "AppendPositionConditionNotMet"),
            (None, Some(15), "ok"),
            (None, Some(14), "MaxBlobSizeConditionNotMet"),
            (None, Some(0), "MaxBlobSizeConditionNotMet"),
            (Some(9), Some(0), "AppendPositionConditionNotMet"),
        ] {
            let got = check(&append, 5, Position { at, max_size });
            assert_eq!(got.as_ref().map_or_else(|error| error.code(), |_| "ok"), expected, "{at:?} {max_size:?}");
        }
        let nowhere = Position::default();
        assert_eq!(check(&blob(BlobKind::Block, 0), 1, nowhere).unwrap_err().code(), "InvalidBlobType");
        assert_eq!(check(&blob(BlobKind::Append { blocks: 49_999 }, 0), 1, nowhere).unwrap(), 49_999);
        let full = check(&blob(BlobKind::Append { blocks: 50_000 }, 0), 1, nowhere).unwrap_err();
        assert_eq!((full.code(), full.status()), ("BlockCountExceedsLimit", 409));
    }

    #[test]
    fn consecutive_places_are_runs() {
        assert_eq!(runs([]), []);
        assert_eq!(runs([4]), [(4, 4)]);
        assert_eq!(runs([0, 1, 2, 5, 7, 8]), [(0, 2), (5, 5), (7, 8)]);
    }

    #[test]
    fn what_is_loose_is_merged_long_before_it_is_too_much() {
        let loose = |pieces, bytes| Loose { pieces, bytes };
        assert!(!loose(1023, MERGE_BYTES - 1).is_worth_an_object());
        assert!(loose(1024, 0).is_worth_an_object() && !loose(1024, 0).is_full());
        assert!(loose(0, MERGE_BYTES).is_worth_an_object() && !loose(0, MERGE_BYTES).is_full());
        assert!(loose(0, MAX_LOOSE_BYTES).is_full() && loose(MAX_LOOSE_PIECES, 0).is_full());
    }
}
