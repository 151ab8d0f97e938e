//! How large the bodies of requests may be. Versions of the protocol differ.
//!
//! | | before 2016-05-31 | before 2019-12-12 | from then on |
//! |---|---|---|---|
//! | Put Blob | 64 MiB | 256 MiB | 5000 MiB |
//! | Put Block | 4 MiB | 100 MiB | 4000 MiB |
//! | Append Block | 4 MiB | 4 MiB | 4 MiB, from 2022-11-02 on 100 MiB |

use super::model::{MAX_BLOCK, MAX_PUT_BLOB};

const MIB: u64 = 1024 * 1024;

/// Bytes of one Append Block, by the newest version.
pub const MAX_APPEND: u64 = 100 * MIB;
/// Bytes of a range whose checksum is computed on the way out.
pub const MAX_RANGE_CHECKSUM: u64 = 4 * MIB;

/// Bytes of one body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Put Blob.
    pub put_blob: u64,
    /// Put Block.
    pub put_block: u64,
    /// Append Block.
    pub append: u64,
}

impl Limits {
    /// The limits of a version (`2021-12-02`).
    pub fn of(version: &str) -> Self {
        let append = if version < "2022-11-02" { 4 * MIB } else { MAX_APPEND };
        let (put_blob, put_block) = if version < "2016-05-31" {
            (64 * MIB, 4 * MIB)
        } else if version < "2019-12-12" {
            (256 * MIB, 100 * MIB)
        } else {
            (MAX_PUT_BLOB, MAX_BLOCK)
        };
        Self { put_blob, put_block, append }
    }
}

impl Default for Limits {
    /// Those of the newest version.
    fn default() -> Self {
        Self { put_blob: MAX_PUT_BLOB, put_block: MAX_BLOCK, append: MAX_APPEND }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_grow_with_the_version() {
        for (version, put_blob, put_block, append) in [
            ("2014-02-14", 64, 4, 4),
            ("2016-05-30", 64, 4, 4),
            ("2016-05-31", 256, 100, 4),
            ("2019-12-11", 256, 100, 4),
            ("2019-12-12", 5000, 4000, 4),
            ("2022-11-01", 5000, 4000, 4),
            ("2022-11-02", 5000, 4000, 100),
            ("2026-10-06", 5000, 4000, 100),
        ] {
            let expected = Limits { put_blob: put_blob * MIB, put_block: put_block * MIB, append: append * MIB };
            assert_eq!(Limits::of(version), expected, "{version}");
        }
        assert_eq!(Limits::of("2026-10-06"), Limits::default());
    }
}
