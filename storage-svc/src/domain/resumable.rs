//! Uploads that go on after a break: a large blob comes in pieces, which are cut into blocks
//! of one size. The name of a block says which upload it belongs to and where it goes, so
//! the blocks that are there are all that has to be remembered.

use kiln_error::{Error, Kind};
use md5::{Digest, Md5};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::StorageError;
use super::model::{BlockInfo, MAX_BLOCKS};

/// Bytes of a block if the client does not say.
const DEFAULT_BLOCK: u64 = 8 * 1024 * 1024;
/// Bytes of a block at most.
const MAX_BLOCK: u64 = 256 * 1024 * 1024;
/// Bytes of an upload's name at most.
const MAX_UPLOAD_ID: usize = 128;

/// One upload of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resumable {
    /// Begins the ids of all its blocks.
    prefix: [u8; 16],
    block_bytes: u64,
}

/// A block of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadedBlock {
    /// Counted from 0.
    pub number: u32,
    /// Bytes.
    pub length: u64,
}

impl Resumable {
    /// The upload of this name with blocks of this size; 0 stands for 8 MiB.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn new(upload_id: &str, block_bytes: u64) -> Result<Self, Error> {
        if upload_id.is_empty() || upload_id.len() > MAX_UPLOAD_ID {
            let why = format!("must have 1 to {MAX_UPLOAD_ID} bytes");
            return Err(Error::invalid_property("upload_id", upload_id, why));
        }
        if block_bytes > MAX_BLOCK {
            return Err(Error::invalid_property("block_bytes", block_bytes, format!("must be at most {MAX_BLOCK}")));
        }
        let block_bytes = if block_bytes == 0 { DEFAULT_BLOCK } else { block_bytes };
        // Another size is another upload: its blocks must not be mixed with these.
        let prefix = Md5::digest(format!("upload\0{block_bytes}\0{upload_id}")).into();
        Ok(Self { prefix, block_bytes })
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// The block that begins at `offset`.
    ///
    /// # Errors
    /// None does, or it would be too many.
    pub fn block_at(&self, offset: u64) -> Result<u32, Error> {
        if !offset.is_multiple_of(self.block_bytes) {
            let why = format!("must be a multiple of the {} bytes of a block", self.block_bytes);
            return Err(Error::invalid_property("offset", offset, why));
        }
        let number = offset / self.block_bytes;
        u32::try_from(number)
            .ok()
            .filter(|number| *number as usize <= MAX_BLOCKS)
            .ok_or_else(|| StorageError::BlockListTooLong(MAX_BLOCKS).into())
    }

    /// Id of a block.
    ///
    /// # Errors
    /// A blob has not so many.
    pub fn id_of(&self, number: u32) -> Result<String, StorageError> {
        if number as usize >= MAX_BLOCKS {
            return Err(StorageError::BlockListTooLong(MAX_BLOCKS));
        }
        let mut id = self.prefix.to_vec();
        id.extend_from_slice(&number.to_be_bytes());
        Ok(BASE64_STANDARD.encode(id))
    }

    /// Those of `blocks` that belong to this upload, in order; of two with one number the
    /// first one.
    pub fn own<'a>(&self, blocks: impl IntoIterator<Item = &'a BlockInfo>) -> Vec<UploadedBlock> {
        let number = |id: &str| -> Option<u32> {
            let id = BASE64_STANDARD.decode(id).ok()?;
            let number = id.strip_prefix(self.prefix.as_slice())?;
            number.try_into().ok().map(u32::from_be_bytes)
        };
        let mut own: Vec<UploadedBlock> = blocks
            .into_iter()
            .filter_map(|block| Some(UploadedBlock { number: number(&block.id)?, length: block.length }))
            .collect();
        own.sort_by_key(|block| block.number);
        own.dedup_by_key(|block| block.number);
        own
    }

    /// Up to where all bytes are there.
    pub fn durable(&self, own: &[UploadedBlock]) -> u64 {
        let mut end = 0;
        for (block, number) in own.iter().zip(0_u32..) {
            if block.number != number {
                break;
            }
            end += block.length;
            if block.length < self.block_bytes {
                break;
            }
        }
        end
    }

    /// Whether the first `count` blocks are there and whole; only the last one may be
    /// shorter than the others.
    ///
    /// # Errors
    /// Says from where on bytes are missing.
    pub fn check_complete(&self, own: &[UploadedBlock], count: u32) -> Result<(), Error> {
        let own = &own[..own.len().min(count as usize)];
        let whole = own.iter().zip(0_u32..).take_while(|(block, number)| {
            block.number == *number && (block.length == self.block_bytes || number + 1 == count)
        });
        let there = whole.count() as u64;
        if there == u64::from(count) {
            return Ok(());
        }
        let missing = there * self.block_bytes;
        let message =
            format!("the upload cannot be finished: its bytes from {missing} on are missing; send them first");
        Err(Error::new(Kind::FailedPrecondition, "InvalidBlockList", message)
            .with_detail("offset", missing.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(upload: &Resumable, number: u32, length: u64) -> BlockInfo {
        BlockInfo { id: upload.id_of(number).unwrap(), length }
    }

    #[test]
    fn blocks_know_their_upload_and_their_place() {
        let (a, b) = (Resumable::new("a", 10).unwrap(), Resumable::new("b", 10).unwrap());
        let other_size = Resumable::new("a", 11).unwrap();
        let blocks = [
            info(&a, 2, 10),
            info(&b, 0, 10),
            info(&a, 0, 10),
            info(&other_size, 1, 11),
            BlockInfo { id: "QUFB".into(), length: 3 },
            info(&a, 0, 7),
        ];
        let own: Vec<_> = a.own(&blocks).into_iter().map(|block| (block.number, block.length)).collect();
        assert_eq!(own, [(0, 10), (2, 10)]);
        assert_eq!(super::super::names::check_block_id(&blocks[0].id).unwrap(), 20);
    }

    #[test]
    fn what_is_durable_and_what_is_missing() {
        let upload = Resumable::new("a", 10).unwrap();
        let blocks = |blocks: &[(u32, u64)]| -> Vec<UploadedBlock> {
            blocks.iter().map(|(number, length)| UploadedBlock { number: *number, length: *length }).collect()
        };
        for (given, count, durable, missing) in [
            (&[][..], 0, 0, None),
            (&[], 1, 0, Some(0)),
            (&[(0, 10), (1, 3)], 2, 13, None),
            (&[(0, 10), (1, 3)], 3, 13, Some(10)),
            (&[(0, 10), (2, 10)], 3, 10, Some(10)),
            (&[(0, 3), (1, 10)], 2, 3, Some(0)),
            (&[(0, 10), (1, 10), (2, 10)], 2, 30, None),
            (&[(1, 10)], 1, 0, Some(0)),
        ] {
            let own = blocks(given);
            assert_eq!(upload.durable(&own), durable, "{given:?}");
            let found = upload.check_complete(&own, count).err();
            let found = found.map(|error| error.details()[0].1.parse::<u64>().unwrap());
            assert_eq!(found, missing, "{given:?} {count}");
        }
    }

    #[test]
    fn wrong_fields_are_named() {
        for (id, size, field) in
            [("", 0, "upload_id"), (&*"x".repeat(129), 0, "upload_id"), ("a", u64::MAX, "block_bytes")]
        {
            let error = Resumable::new(id, size).unwrap_err();
            assert!(error.to_string().contains(field), "{error}");
        }
        let upload = Resumable::new("a", 0).unwrap();
        assert_eq!(upload.block_bytes(), DEFAULT_BLOCK);
        assert_eq!(upload.block_at(3 * DEFAULT_BLOCK).unwrap(), 3);
        assert!(upload.block_at(1).is_err());
        assert!(upload.block_at(50_000 * DEFAULT_BLOCK).is_ok() && upload.id_of(50_000).is_err());
        assert!(
            upload.block_at(50_001 * DEFAULT_BLOCK).is_err()
                && upload.block_at(u64::MAX / DEFAULT_BLOCK * DEFAULT_BLOCK).is_err()
        );
    }
}
