//! Pieces of large blobs; the rules are in [`crate::domain::resumable`].

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use kiln_error::Error;
use kiln_proto::storage::v1 as proto;
use tonic::{Status, Streaming};

use super::convert;
use super::storage::refused;
use crate::domain::StorageError;
use crate::domain::limits::Limits;
use crate::domain::model::{Address, Blob, BlobProperties, BlockSource};
use crate::domain::names::Metadata;
use crate::domain::resumable::{Resumable, UploadedBlock};
use crate::service::{Expected, PutBlock, Storage};
use crate::store::{BlockList, Blocks, Guard};

/// The blob that a piece belongs to, as it will be.
#[derive(Debug)]
pub struct Whole {
    pub account: String,
    pub container: String,
    pub name: String,
    pub properties: BlobProperties,
    pub metadata: Metadata,
    pub guard: Guard,
}

/// Takes one piece, block by block; finishes the blob if it was the last one.
pub async fn receive(
    storage: &Storage,
    mut whole: Whole,
    piece: proto::ResumableUpload,
    md5: Option<[u8; 16]>,
    messages: Streaming<proto::UploadRequest>,
) -> Result<Option<Blob>, Status> {
    let upload = Resumable::new(&piece.upload_id, piece.block_bytes)?;
    let mut number = upload.block_at(piece.offset)?;
    let first = number;
    let mut messages = Messages { messages, rest: Bytes::new() };
    while messages.has_more().await.map_err(refused)? {
        if md5.is_some() && number > first {
            let why = "goes with one block; it cannot be checked before more are durable";
            return Err(Error::invalid_property("content_md5", "", why).into());
        }
        let block = PutBlock {
            account: whole.account.clone(),
            container: whole.container.clone(),
            blob: whole.name.clone(),
            id: upload.id_of(number).map_err(refused)?,
            expected: Expected { md5, ..Expected::default() },
            limits: Limits::default(),
            guard: Guard::default(),
        };
        let body = OneBlock { messages: &mut messages, left: upload.block_bytes() };
        storage.put_block(block, Box::pin(body)).await.map_err(refused)?;
        number += 1;
    }
    if !piece.finish {
        return Ok(None);
    }
    whole.properties.content_md5 = match piece.blob_md5.len() {
        0 => None,
        _ => Some(piece.blob_md5.try_into().map_err(|_| refused(StorageError::InvalidMd5))?),
    };
    finish(storage, whole, &upload, number).await.map(Some)
}

async fn finish(storage: &Storage, whole: Whole, upload: &Resumable, count: u32) -> Result<Blob, Status> {
    let Whole { account, container, name, properties, metadata, guard } = whole;
    let found = blocks(storage, &account, &container, &name).await?;
    if let (Some(blob), true) = (found.blob, upload.own(&found.uncommitted).is_empty()) {
        // The answer to an earlier call may have been lost.
        let own = upload.own(&found.committed);
        if count > 0 && own.len() == found.committed.len() && own.len() == count as usize {
            return Ok(blob);
        }
    }
    upload.check_complete(&upload.own(found.uncommitted.iter().chain(&found.committed)), count)?;
    let ids = (0..count).map(|number| Ok((BlockSource::Latest, upload.id_of(number)?)));
    let list = BlockList {
        container,
        name,
        properties,
        metadata,
        tier: None,
        blocks: ids.collect::<Result<_, StorageError>>().map_err(refused)?,
    };
    storage.put_block_list(&account, list, guard).await.map_err(refused)
}

/// What is durable of an upload.
pub async fn durable(
    storage: &Storage,
    account: &str,
    asked: proto::GetUploadRequest,
) -> Result<proto::GetUploadResponse, Status> {
    let upload = Resumable::new(&asked.upload_id, asked.block_bytes)?;
    let found = blocks(storage, account, &asked.container, &asked.name).await?;
    let own = upload.own(found.uncommitted.iter().chain(&found.committed));
    let shown = |block: &UploadedBlock| proto::UploadedBlock {
        offset: u64::from(block.number) * upload.block_bytes(),
        length: block.length,
    };
    Ok(proto::GetUploadResponse { durable: upload.durable(&own), blocks: own.iter().map(shown).collect() })
}

async fn blocks(storage: &Storage, account: &str, container: &str, name: &str) -> Result<Blocks, Status> {
    match storage.catalogue().blocks(Address::blob(account, container, name)).await {
        Err(StorageError::BlobNotFound) => Ok(Blocks { blob: None, committed: Vec::new(), uncommitted: Vec::new() }),
        found => found.map_err(refused),
    }
}

/// The bytes of a stream, whatever pieces they come in.
struct Messages {
    messages: Streaming<proto::UploadRequest>,
    rest: Bytes,
}

impl Messages {
    /// Whether another byte comes.
    async fn has_more(&mut self) -> Result<bool, StorageError> {
        std::future::poll_fn(|cx| self.poll_fill(cx)).await
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, StorageError>> {
        while self.rest.is_empty() {
            match ready!(self.messages.poll_next_unpin(cx)) {
                None => return Poll::Ready(Ok(false)),
                Some(message) => self.rest = convert::data(message)?,
            }
        }
        Poll::Ready(Ok(true))
    }
}

/// The next block of them.
struct OneBlock<'a> {
    messages: &'a mut Messages,
    left: u64,
}

impl Stream for OneBlock<'_> {
    type Item = Result<Bytes, StorageError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        match ready!(self.messages.poll_fill(cx)) {
            Err(error) => Poll::Ready(Some(Err(error))),
            Ok(false) => Poll::Ready(None),
            Ok(true) => {
                let room = usize::try_from(self.left).unwrap_or(usize::MAX);
                let length = self.messages.rest.len().min(room);
                let piece = self.messages.rest.split_to(length);
                self.left -= length as u64;
                Poll::Ready(Some(Ok(piece)))
            }
        }
    }
}
