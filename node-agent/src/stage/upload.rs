//! One file goes out into a blob.
//!
//! A file that is not large is one request. A larger one goes in blocks, several at once as long
//! as the node has connections to spare; a block that breaks is sent again, the others are not.
//! Every request carries the MD5 of its bytes, which the service checks; the MD5 of the whole is
//! stored with the blob, so that whoever reads it can check it. At most one block per
//! connection is in memory.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::FuturesUnordered;
use kiln_proto::common::v1::NameValue;
use md5::{Digest, Md5};
use nix::libc;
use reqwest::RequestBuilder;
use reqwest::header::CONTENT_TYPE;
use tokio::sync::Semaphore;
use url::Url;

use super::transfer::{Access, Http, TransferError, check, local_error, request_error};
use super::writer::blocking;

/// Larger files are uploaded in blocks.
const LARGEST_PUT: u64 = 2 * BLOCK;
/// Bytes of one block, unless a blob would have too many of them.
const BLOCK: u64 = if cfg!(test) { 64 } else { 8 * 1024 } * 1024;
/// A blob has at most this many blocks.
const MAX_BLOCKS: u64 = 50_000;
/// Blocks of one file that are sent at once.
const PARALLEL: usize = 4;

/// Where a file goes, and with what it is sent.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Makes the requests.
    pub http: &'a Http,
    /// The blob, with its signature.
    pub url: &'a Url,
    /// Headers that the user wants to be sent.
    pub headers: &'a [NameValue],
    /// Connections of the node; the caller holds one.
    pub connections: &'a Semaphore,
}

/// A file that was looked at.
enum Opened {
    /// All of it, and its MD5.
    Small(Bytes, String),
    /// And its length.
    Large(File, u64),
}

/// Bytes of one block, ready to be sent.
struct Block {
    id: String,
    bytes: Bytes,
    md5: String,
}

impl Target<'_> {
    /// Uploads the file; gives its length.
    ///
    /// # Errors
    /// [`TransferError`].
    pub async fn send(&self, file: &Path) -> Result<u64, TransferError> {
        let path = file.to_owned();
        let opened = blocking(move || open(path)).await;
        match opened.map_err(|error| local_error(&format!("reading {}", file.display()), &error))? {
            Opened::Small(bytes, md5) => {
                let length = bytes.len() as u64;
                self.put(self.url, bytes, &md5, Purpose::Blob).await?;
                Ok(length)
            }
            Opened::Large(opened, length) => self.send_blocks(opened, length).await,
        }
    }

    async fn send_blocks(&self, file: File, length: u64) -> Result<u64, TransferError> {
        let size = BLOCK.max(length.div_ceil(MAX_BLOCKS));
        let spare: Vec<_> = (1..PARALLEL).map_while(|_| self.connections.try_acquire().ok()).collect();
        let mut list = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>");
        for number in 0..length.div_ceil(size) {
            list.push_str(&format!("<Latest>{}</Latest>", block_id(number)));
        }
        list.push_str("</BlockList>");
        let file = Arc::new(file);
        let mut whole = Md5::new();
        let mut sending = FuturesUnordered::new();
        for number in 0..length.div_ceil(size) {
            if sending.len() > spare.len() {
                sending.try_next().await?;
            }
            // Blocks are read in order, so that the MD5 of the whole comes from the same bytes.
            let (source, start) = (file.clone(), number * size);
            let read = blocking(move || read_block(&source, number, start, size.min(length - start), whole)).await;
            let block;
            (block, whole) = read.map_err(|error| local_error("reading the file", &error))?;
            sending.push(self.send_block(block));
        }
        while sending.try_next().await?.is_some() {}
        let sum = BASE64_STANDARD.encode(whole.finalize());
        let mut url = self.url.clone();
        url.query_pairs_mut().append_pair("comp", "blocklist");
        let list_sum = BASE64_STANDARD.encode(Md5::digest(&list));
        self.put(&url, Bytes::from(list), &list_sum, Purpose::List(&sum)).await?;
        Ok(length)
    }

    async fn send_block(&self, block: Block) -> Result<(), TransferError> {
        let mut url = self.url.clone();
        url.query_pairs_mut().append_pair("comp", "block").append_pair("blockid", &block.id);
        self.put(&url, block.bytes, &block.md5, Purpose::Block).await
    }

    async fn put(&self, url: &Url, bytes: Bytes, md5: &str, purpose: Purpose<'_>) -> Result<(), TransferError> {
        self.http
            .with_retries(|| async {
                let request = self.http.client(url).put(url.clone()).body(bytes.clone());
                let request = self.http.prepare(request, Access::Url);
                let request = purpose.add_headers(request, md5, self.headers);
                check(request.send().await.map_err(request_error)?).await.map(|_| ())
            })
            .await
    }
}

/// What a request is for, since headers of users belong to the blob.
#[derive(Clone, Copy)]
enum Purpose<'a> {
    /// The whole blob.
    Blob,
    /// One block of it.
    Block,
    /// The list that makes it of its blocks, and the MD5 of all of it.
    List(&'a str),
}

impl Purpose<'_> {
    fn add_headers(self, mut request: RequestBuilder, md5: &str, wanted: &[NameValue]) -> RequestBuilder {
        let has = |names: &[&str]| wanted.iter().any(|w| names.iter().any(|name| w.name.eq_ignore_ascii_case(name)));
        match self {
            Self::Blob => {
                request = request.header("x-ms-blob-type", "BlockBlob");
                for header in wanted {
                    request = request.header(&header.name, &header.value);
                }
                if !has(&["content-type", "x-ms-blob-content-type"]) {
                    request = request.header(CONTENT_TYPE, "application/octet-stream");
                }
                if has(&["content-md5"]) { request } else { request.header("content-md5", md5) }
            }
            Self::Block => request.header("content-md5", md5),
            Self::List(whole) => {
                request = request.header("content-md5", md5);
                for header in wanted {
                    request = request.header(of_blob(&header.name), &header.value);
                }
                if has(&["content-md5", "x-ms-blob-content-md5"]) {
                    return request;
                }
                request.header("x-ms-blob-content-md5", whole)
            }
        }
    }
}

/// The name under which a header is about the blob and not about the list of its blocks.
fn of_blob(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    let about_content =
        ["content-type", "content-encoding", "content-language", "content-disposition", "content-md5", "cache-control"];
    if about_content.contains(&name.as_str()) { format!("x-ms-blob-{name}") } else { name }
}

/// Ids of one blob must have the same length.
fn block_id(number: u64) -> String {
    BASE64_STANDARD.encode(format!("{number:08}"))
}

/// Blocks.
fn open(path: PathBuf) -> std::io::Result<Opened> {
    // Not blocked by a pipe that took the place of the file.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let length = file.metadata()?.len();
    if length > LARGEST_PUT {
        return Ok(Opened::Large(file, length));
    }
    let bytes = read(&file, 0, length)?;
    let md5 = BASE64_STANDARD.encode(Md5::digest(&bytes));
    Ok(Opened::Small(bytes, md5))
}

/// Blocks.
fn read_block(file: &File, number: u64, start: u64, length: u64, mut whole: Md5) -> std::io::Result<(Block, Md5)> {
    let bytes = read(file, start, length)?;
    whole.update(&bytes);
    let md5 = BASE64_STANDARD.encode(Md5::digest(&bytes));
    Ok((Block { id: block_id(number), bytes, md5 }, whole))
}

fn read(file: &File, start: u64, length: u64) -> std::io::Result<Bytes> {
    let mut bytes = vec![0; usize::try_from(length).map_err(std::io::Error::other)?];
    file.read_exact_at(&mut bytes, start).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => std::io::Error::new(error.kind(), "it became shorter while it was read"),
        _ => error,
    })?;
    Ok(Bytes::from(bytes))
}

#[cfg(test)]
#[path = "upload_tests.rs"]
mod tests;
