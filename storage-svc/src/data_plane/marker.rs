//! Markers of lists of blobs: where the next page begins.
//!
//! A name is a token as all lists have them; a snapshot has its moment (in
//! microseconds) and a dot before that.

use kiln_grpc::page;
use kiln_time::Timestamp;

use crate::store::BlobPosition;

/// The marker of a position.
pub fn write(position: &BlobPosition) -> String {
    let name = page::token(&position.name);
    match position.snapshot {
        None => name,
        Some(at) => format!("{}.{name}", at.as_micros()),
    }
}

/// The position of a marker, `Some(None)` if it is empty; `None` if it is none of
/// this service's.
pub fn read(marker: &str) -> Option<Option<BlobPosition>> {
    let (snapshot, name) = match marker.split_once('.') {
        None => (None, marker),
        Some((_, "")) => return None,
        Some((at, name)) => (Some(Timestamp::from_micros(at.parse().ok()?)), name),
    };
    let name = page::last_key(name).ok()?;
    Some(name.map(|name| BlobPosition { name, snapshot }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_come_back() {
        for snapshot in [None, Some(Timestamp::from_micros(i64::MIN)), Some(Timestamp::from_micros(7))] {
            for name in ["a", "", "a.b/\u{0}ü"] {
                let position = BlobPosition { name: name.into(), snapshot };
                assert_eq!(read(&write(&position)), Some(Some(position)));
            }
        }
        assert_eq!(read(""), Some(None));
        for bad in ["a", "7.", ".k61", "x.k61", "7.k6"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
