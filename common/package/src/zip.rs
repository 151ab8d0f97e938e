//! Whether bytes are a zip, from its end alone; nothing is unpacked.
//!
//! The structures and their numbers are those of PKWARE's APPNOTE.TXT 6.3.10,
//! sections 4.3.12 and 4.3.14 to 4.3.16. What is inside is the node's to judge.

/// The directory of a zip ends within so many of its last bytes: the end record
/// with the longest comment, and before it the two records of large zips.
pub const TAIL: u64 = END + 0xffff + LOCATOR + LARGE_END;

const END: u64 = 22;
const LOCATOR: u64 = 20;
const LARGE_END: u64 = 56;
/// Shortest entry of a directory.
const ENTRY: u64 = 46;
/// Entries of a zip.
pub const MAX_ENTRIES: u64 = 500_000;
/// Bytes of the directory: whoever unpacks a zip has it in memory.
pub const MAX_DIRECTORY: u64 = 64 * 1024 * 1024;

/// First bytes of an entry of the directory.
pub const ENTRY_MARK: [u8; 4] = *b"PK\x01\x02";

/// Why something is no zip that a package may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAZip {
    /// Nothing at its end says that it is one.
    #[error("its end has no directory of a zip")]
    NoDirectory,
    /// The directory is not where its end says.
    #[error("it is cut off or damaged: its directory is not where its end says")]
    Damaged,
    /// It is one of several files.
    #[error("it is one part of a zip in several parts")]
    Parts,
    /// Too many entries.
    #[error("it has {0} entries; at most {MAX_ENTRIES} are allowed")]
    TooManyEntries(u64),
    /// Its names and comments are too long.
    #[error("its directory has {0} bytes; at most {MAX_DIRECTORY} are allowed")]
    LargeDirectory(u64),
}

/// Where the directory of a zip is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Directory {
    /// Its first byte.
    pub start: u64,
    /// How many entries it has.
    pub entries: u64,
}

/// Finds the directory of a zip of `length` bytes by its last ones, of which
/// `tail` has [`TAIL`] or all there are.
///
/// # Errors
/// What is wrong with it.
pub fn directory(length: u64, tail: &[u8]) -> Result<Directory, NotAZip> {
    let tail_start = length.checked_sub(tail.len() as u64).ok_or(NotAZip::Damaged)?;
    let end = find_end(tail).ok_or(NotAZip::NoDirectory)?;
    let at = |offset: u64| end + usize::try_from(offset).unwrap_or(usize::MAX);
    let disks = (u16_at(tail, at(4))?, u16_at(tail, at(6))?);
    let mut entries = u64::from(u16_at(tail, at(10))?);
    let mut size = u64::from(u32_at(tail, at(12))?);
    let mut offset = u64::from(u32_at(tail, at(16))?);
    let mut behind = tail_start + end as u64;
    if entries == 0xffff || size == 0xffff_ffff || offset == 0xffff_ffff {
        // Too large for these fields: another record has them.
        let locator = end.checked_sub(LOCATOR as usize).filter(|at| tail[*at..].starts_with(b"PK\x06\x07"));
        if let Some(locator) = locator {
            let large = locator.checked_sub(LARGE_END as usize).ok_or(NotAZip::Damaged)?;
            if !tail[large..].starts_with(b"PK\x06\x06") {
                return Err(NotAZip::Damaged);
            }
            entries = u64_at(tail, large + 32)?;
            size = u64_at(tail, large + 40)?;
            offset = u64_at(tail, large + 48)?;
            behind = tail_start + large as u64;
        }
    } else if disks != (0, 0) {
        return Err(NotAZip::Parts);
    }
    if entries > MAX_ENTRIES {
        return Err(NotAZip::TooManyEntries(entries));
    }
    if size > MAX_DIRECTORY {
        return Err(NotAZip::LargeDirectory(size));
    }
    if size < entries * ENTRY {
        return Err(NotAZip::Damaged);
    }
    // Something may stand in front of a zip (a program that unpacks it), but nothing may be missing there.
    let start = behind.checked_sub(size).filter(|start| *start >= offset).ok_or(NotAZip::Damaged)?;
    Ok(Directory { start, entries })
}

/// The last end record whose comment reaches to the end of the zip.
fn find_end(tail: &[u8]) -> Option<usize> {
    let last = tail.len().checked_sub(END as usize)?;
    (0..=last).rev().find(|at| {
        tail[*at..].starts_with(b"PK\x05\x06")
            && u16_at(tail, at + 20).is_ok_and(|comment| at + END as usize + usize::from(comment) == tail.len())
    })
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Result<[u8; N], NotAZip> {
    from.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(NotAZip::Damaged)
}

fn u16_at(from: &[u8], at: usize) -> Result<u16, NotAZip> {
    bytes(from, at).map(u16::from_le_bytes)
}

fn u32_at(from: &[u8], at: usize) -> Result<u32, NotAZip> {
    bytes(from, at).map(u32::from_le_bytes)
}

fn u64_at(from: &[u8], at: usize) -> Result<u64, NotAZip> {
    bytes(from, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use zip::write::SimpleFileOptions;

    use super::*;

    fn zip_of(entries: usize, comment: &str) -> Vec<u8> {
        let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for n in 0..entries {
            writer.start_file(format!("f{n}"), SimpleFileOptions::default()).unwrap();
            writer.write_all(b"content").unwrap();
        }
        writer.set_comment(comment).unwrap();
        writer.finish().unwrap().into_inner()
    }

    fn look(bytes: &[u8]) -> Result<Directory, NotAZip> {
        let tail = bytes.len().saturating_sub(TAIL as usize);
        directory(bytes.len() as u64, &bytes[tail..])
    }

    #[test]
    fn directories_of_real_zips_are_found() {
        let mut prefixed = b"#!/bin/sh\n".to_vec();
        prefixed.extend(zip_of(2, ""));
        for (bytes, entries) in [
            (zip_of(0, ""), 0),
            (zip_of(3, ""), 3),
            (zip_of(3, "a comment"), 3),
            (zip_of(1, &"x".repeat(0xffff)), 1),
            // More than the fields of small zips can say.
            (zip_of(70_000, ""), 70_000),
            (prefixed, 2),
        ] {
            let found = look(&bytes).unwrap();
            assert_eq!(found.entries, entries);
            if entries > 0 {
                assert!(bytes[found.start as usize..].starts_with(&ENTRY_MARK));
            }
        }
    }

    #[test]
    fn what_is_cut_off_or_something_else_is_told() {
        let whole = zip_of(3, "");
        assert_eq!(look(&whole[..whole.len() - 1]), Err(NotAZip::NoDirectory));
        assert_eq!(look(b""), Err(NotAZip::NoDirectory));
        assert_eq!(look(b"\x1f\x8b a tar.gz, perhaps, that is long enough"), Err(NotAZip::NoDirectory));
        // The end alone: its directory was in front of what is there. Or a few bytes of the first entry are missing.
        for missing in [whole.len() - 22, 10] {
            assert_eq!(look(&whole[missing..]), Err(NotAZip::Damaged), "{missing}");
        }
        let mut part = whole;
        let at = part.len() - 22 + 4;
        part[at] = 1;
        assert_eq!(look(&part), Err(NotAZip::Parts));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(mut noise in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..300) {
            for mark in [b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"] {
                let at = at.min(noise.len());
                noise.splice(at..at, mark.iter().copied());
            }
            let length = noise.len() as u64;
            if let Ok(found) = directory(length, &noise) {
                prop_assert!(found.start <= length);
            }
        }
    }
}
