//! What containers, blobs, blocks and metadata may be called.
//!
//! Blob names are keys of the catalogue and never become paths, so `..`, `//`
//! and control characters in them are harmless and kept.

use std::collections::BTreeMap;

use base64::Engine;

use super::StorageError;
use super::application;

/// Characters of a container name.
const CONTAINER_LEN: std::ops::RangeInclusive<usize> = 3..=63;
/// Characters of a blob name at most.
const MAX_BLOB_NAME: usize = 1024;
/// Names and values of all metadata of one object together.
const MAX_METADATA: usize = 8 * 1024;
/// Bytes of a decoded block id at most.
const MAX_BLOCK_ID: usize = 64;

/// Metadata by name; names keep the letters they were written in.
pub type Metadata = BTreeMap<String, String>;

/// Checks an account's name: what fits into a URL's path and host.
///
/// # Errors
/// [`StorageError::InvalidAccount`] says what is wrong.
pub fn check_account(name: &str) -> Result<(), StorageError> {
    kiln_ids::AccountName::parse(name).map(drop).map_err(|error| StorageError::InvalidAccount(error.to_string()))
}

/// Checks a container's name.
///
/// # Errors
/// Its length or a character is not allowed.
pub fn check_container(name: &str) -> Result<(), StorageError> {
    if matches!(name, "$root" | "$web" | "$logs" | application::CONTAINER) {
        return Ok(());
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !CONTAINER_LEN.contains(&name.chars().count()) {
        return Err(StorageError::NameLength);
    }
    if !name.chars().all(allowed) || name.contains("--") || name.starts_with('-') || name.ends_with('-') {
        return Err(StorageError::InvalidResourceName);
    }
    Ok(())
}

/// Checks a blob's name.
///
/// # Errors
/// It is empty or too long.
pub fn check_blob(name: &str) -> Result<(), StorageError> {
    if name.is_empty() || name.chars().count() > MAX_BLOB_NAME {
        return Err(StorageError::NameLength);
    }
    Ok(())
}

/// Checks names, and the size of all pairs together. Names that differ only in
/// case are one name; their values are joined by commas.
///
/// # Errors
/// Which name is wrong, or that it is too much.
pub fn check_metadata(pairs: impl IntoIterator<Item = (String, String)>) -> Result<Metadata, StorageError> {
    let mut metadata = Metadata::new();
    let mut size = 0;
    for (name, value) in pairs {
        if name.is_empty() {
            return Err(StorageError::EmptyMetadataKey);
        }
        let identifier = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && !name.starts_with(|c: char| c.is_ascii_digit());
        if !identifier {
            return Err(StorageError::InvalidMetadata(name));
        }
        let header_bytes = |byte: u8| byte == b'\t' || (byte >= b' ' && byte != 0x7f);
        if !value.bytes().all(header_bytes) {
            return Err(StorageError::InvalidMetadata(name));
        }
        size += name.len() + value.len();
        if size > MAX_METADATA {
            return Err(StorageError::MetadataTooLarge(MAX_METADATA));
        }
        let existing = metadata.iter_mut().find(|(known, _): &(&String, _)| known.eq_ignore_ascii_case(&name));
        match existing {
            Some((_, joined)) => {
                joined.push(',');
                joined.push_str(&value);
            }
            None => drop(metadata.insert(name, value)),
        }
    }
    Ok(metadata)
}

/// Checks a block id as it stands in the URL or in a block list; gives its
/// decoded length, which must be the same for all blocks of a blob.
///
/// # Errors
/// It is no Base64, empty, or longer than 64 bytes.
pub fn check_block_id(id: &str) -> Result<usize, StorageError> {
    let decoded = base64::prelude::BASE64_STANDARD.decode(id).map_err(|_| StorageError::InvalidBlockId)?;
    match decoded.len() {
        0 => Err(StorageError::InvalidBlockId),
        len if len > MAX_BLOCK_ID => Err(StorageError::NameLength),
        len => Ok(len),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_names() {
        for good in ["abc", "a-b", "0a9", &"a".repeat(63), "$root"] {
            assert!(check_container(good).is_ok(), "{good}");
        }
        for (bad, code) in [
            ("ab", "OutOfRangeInput"),
            ("", "OutOfRangeInput"),
            (&*"a".repeat(64), "OutOfRangeInput"),
            ("a--b", "InvalidResourceName"),
            ("-ab", "InvalidResourceName"),
            ("ab-", "InvalidResourceName"),
            ("Abc", "InvalidResourceName"),
            ("a_b", "InvalidResourceName"),
            ("äbc", "InvalidResourceName"),
            ("...", "InvalidResourceName"),
        ] {
            assert_eq!(check_container(bad).unwrap_err().code(), code, "{bad}");
        }
    }

    #[test]
    fn blob_names_are_bounded_only() {
        for good in ["a", "..", "../../etc/passwd", "//", "ü/日本", "a%2Fb", &"é".repeat(1024)] {
            assert!(check_blob(good).is_ok(), "{good}");
        }
        assert!(check_blob("").is_err());
        assert!(check_blob(&"a".repeat(1025)).is_err());
    }

    #[test]
    fn metadata_names_and_size() {
        let pair = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        assert_eq!(check_metadata(pair("A_1", "x")).unwrap()["A_1"], "x");
        assert_eq!(check_metadata(pair("1a", "x")).unwrap_err().code(), "InvalidMetadata");
        assert_eq!(check_metadata(pair("a-b", "x")).unwrap_err().code(), "InvalidMetadata");
        assert_eq!(check_metadata(pair("a", "x\r\ny")).unwrap_err().code(), "InvalidMetadata");
        assert_eq!(check_metadata(pair("", "x")).unwrap_err().code(), "EmptyMetadataKey");
        assert_eq!(check_metadata(pair("a", &"x".repeat(8192))).unwrap_err().code(), "MetadataTooLarge");
        let joined = check_metadata([("a".into(), "1".into()), ("A".into(), "2".into())]).unwrap();
        assert_eq!(joined["a"], "1,2");
    }

    #[test]
    fn block_ids() {
        assert_eq!(check_block_id("AAAA").unwrap(), 3);
        assert_eq!(check_block_id("!").unwrap_err().code(), "InvalidBlockId");
        assert_eq!(check_block_id("").unwrap_err().code(), "InvalidBlockId");
        let long = base64::prelude::BASE64_STANDARD.encode([0; 65]);
        assert_eq!(check_block_id(&long).unwrap_err().code(), "OutOfRangeInput");
    }
}
