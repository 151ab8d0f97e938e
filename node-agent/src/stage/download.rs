//! One file over HTTP into a new local file.
//!
//! The answer to the first request says how long the content is, which version of
//! it (ETag) and often its MD5. Then:
//!
//! - small content is collected in memory and written at once;
//! - large content is read in parts, several at once as long as the node has
//!   connections to spare;
//! - where a connection breaks, only what is missing is asked for, of the same version
//!   (`If-Match`); if the content has changed meanwhile, all of it is read anew;
//! - a server that knows no ranges, or names no version, is read from the start.
//!
//! Length and MD5 are checked at the end. Tries are counted anew when a good piece arrived in
//! between, so a large file over a bad line takes long but comes.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use futures::{StreamExt, TryStreamExt};
use md5::{Digest, Md5};
use reqwest::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, IF_MATCH, RANGE};
use reqwest::{Response, StatusCode};
use tokio::sync::Semaphore;
use url::Url;

use super::transfer::{Access, Http, TransferError, TryError, check, header, local_error, request_error};
use super::writer::{Writer, blocking};

/// Up to this length content is collected in memory.
const SMALL: u64 = 256 * 1024;
/// Bytes of one part of large content.
const PART: u64 = if cfg!(test) { 1 } else { 16 } * 1024 * 1024;
/// Parts of one file that are read at once.
const PARALLEL: usize = 4;
/// A try that brought as many bytes does not count as failed.
const PROGRESS: u64 = 256 * 1024;
/// Bytes read at once to compute the MD5 of a file.
const READ: usize = 256 * 1024;

/// What an answer says about the whole content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Absent if the server does not know.
    pub length: Option<u64>,
    /// Names the version.
    pub etag: Option<String>,
    md5: Option<[u8; 16]>,
    ranges: bool,
}

impl Content {
    /// As the headers of an answer to a request for all of it say.
    pub fn of(headers: &HeaderMap) -> Self {
        let md5 = header(headers, "content-md5").and_then(|text| base64::prelude::BASE64_STANDARD.decode(text).ok());
        let takes_ranges = header(headers, ACCEPT_RANGES.as_str()).is_some_and(|unit| unit == "bytes");
        Self {
            length: header(headers, CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok()),
            etag: header(headers, ETAG.as_str()),
            md5: md5.and_then(|sum| sum.try_into().ok()),
            // Blob services do not always say so.
            ranges: takes_ranges || headers.contains_key("x-ms-version"),
        }
    }

    /// The ETag, if ranges of this version can be asked for: then nothing is
    /// ever put together out of two versions.
    fn resumable(&self) -> Option<&str> {
        self.etag.as_deref().filter(|etag| self.ranges && self.length.is_some() && !etag.starts_with("W/"))
    }

    fn parts(&self) -> Vec<Range<u64>> {
        match self.length {
            Some(length) if self.resumable().is_some() && length >= 2 * PART => {
                (0..length.div_ceil(PART)).map(|part| part * PART..((part + 1) * PART).min(length)).collect()
            }
            length => std::iter::once(0..length.unwrap_or(u64::MAX)).collect(),
        }
    }
}

/// What arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Its length.
    pub bytes: u64,
    /// Its version.
    pub etag: Option<String>,
}

/// Where a file comes from, and with what it is fetched.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Makes the requests.
    pub http: &'a Http,
    /// The file.
    pub url: &'a Url,
    /// What the requests are allowed by.
    pub access: Access,
    /// Connections of the node; the caller holds one.
    pub connections: &'a Semaphore,
}

/// Why a part did not arrive.
enum Broken {
    /// The rest of it may.
    Resume(TryError),
    /// The version is gone, or cannot be had in parts.
    Restart(TryError),
}

impl Source<'_> {
    /// Brings the content to the new file `target`. `first` is an answer of success
    /// to a request for all of it.
    ///
    /// # Errors
    /// [`TransferError`]; `target` may exist then and has to be removed.
    pub async fn receive(&self, first: Response, target: &Path) -> Result<Received, TransferError> {
        let mut retries = self.http.retries();
        let mut answer = Ok(first);
        let mut ranges = true;
        loop {
            let result = match answer {
                Ok(response) => self.attempt(response, target, &mut ranges).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(received) => return Ok(received),
                Err(error) => retries.pause_after(error).await?,
            }
            answer = self.request(None).await;
        }
    }

    async fn request(&self, part: Option<(&str, Range<u64>)>) -> Result<Response, TryError> {
        let mut request = self.http.prepare(self.http.client(self.url).get(self.url.clone()), self.access);
        if let Some((etag, range)) = part {
            request = request.header(IF_MATCH, etag).header(RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        }
        check(request.send().await.map_err(request_error)?).await
    }

    async fn attempt(&self, response: Response, target: &Path, ranges: &mut bool) -> Result<Received, TryError> {
        let mut content = Content::of(response.headers());
        content.ranges &= *ranges;
        if content.length.is_some_and(|length| length <= SMALL) {
            return small(response, content, target).await;
        }
        let path = target.to_owned();
        let file = blocking(move || create(&path)).await.map_err(|error| disk(&error))?;
        let file = Arc::new(file);
        let parts = content.parts();
        let spare: Vec<_> = (1..PARALLEL.min(parts.len())).map_while(|_| self.connections.try_acquire().ok()).collect();
        let single = parts.len() == 1;
        let mut first = Some(response);
        let sums: Vec<_> = futures::stream::iter(parts)
            .map(|part| self.part(&content, part, first.take(), file.clone(), single))
            .buffer_unordered(1 + spare.len())
            .try_collect()
            .await
            .map_err(|broken| match broken {
                Broken::Resume(error) => error,
                Broken::Restart(error) => {
                    *ranges &= !matches!(error, TryError::Again(TransferError::NoRanges));
                    error
                }
            })?;
        let bytes = sums.iter().map(|(bytes, _)| bytes).sum();
        if let Some(expected) = content.md5 {
            let found = match sums[..] {
                [(_, Some(sum))] => sum,
                _ => blocking(move || sum_of(&file)).await.map_err(|error| disk(&error))?,
            };
            check_sum(expected, found)?;
        }
        Ok(Received { bytes, etag: content.etag })
    }

    /// Brings one part, in as many pieces as it takes; gives its length and, if it is
    /// all there is, its MD5.
    async fn part(
        &self,
        content: &Content,
        part: Range<u64>,
        first: Option<Response>,
        file: Arc<File>,
        single: bool,
    ) -> Result<(u64, Option<[u8; 16]>), Broken> {
        let mut writer = Writer::new(file, part.start, (single && content.md5.is_some()).then(Md5::new));
        let mut retries = self.http.retries();
        let mut answer = first;
        let mut achieved = part.start;
        while let Err(broken) = self.stretch(content, &part, answer.take(), &mut writer).await {
            let error = match broken {
                Broken::Resume(error) if content.resumable().is_some() => error,
                Broken::Resume(error) => return Err(Broken::Restart(error)),
                broken => return Err(broken),
            };
            if writer.position() >= achieved + PROGRESS {
                achieved = writer.position();
                retries.progressed();
            }
            retries.pause_after(error).await.map_err(|error| Broken::Restart(TryError::Final(error)))?;
        }
        let bytes = writer.position() - part.start;
        let sum = writer.finish().await.map_err(|error| Broken::Restart(disk(&error)))?;
        Ok((bytes, sum))
    }

    /// Reads on from where `writer` is, as long as one answer lasts.
    async fn stretch(
        &self,
        content: &Content,
        part: &Range<u64>,
        first: Option<Response>,
        writer: &mut Writer,
    ) -> Result<(), Broken> {
        let mut response = match (first, content.resumable()) {
            (Some(first), _) => first,
            (None, Some(etag)) => {
                let rest = writer.position()..part.end;
                if rest.is_empty() {
                    return Ok(());
                }
                let response = self.request(Some((etag, rest.clone()))).await.map_err(changed_or_broken)?;
                is_range_of(&response, content, &rest).map_err(Broken::Restart)?;
                response
            }
            (None, None) => return Err(Broken::Restart(TryError::Again(TransferError::NoRanges))),
        };
        loop {
            match response.chunk().await.map_err(|error| Broken::Resume(request_error(error)))? {
                Some(piece) => {
                    let room = usize::try_from(part.end - writer.position()).unwrap_or(usize::MAX);
                    let piece = piece.slice(..piece.len().min(room));
                    writer.write(&piece).await.map_err(|error| Broken::Restart(disk(&error)))?;
                    // Of the whole content, which the first answer brings, the rest is left to others.
                    if writer.position() == part.end && content.length.is_some_and(|length| part.end < length) {
                        return Ok(());
                    }
                }
                None if content.length.is_none() || writer.position() == part.end => return Ok(()),
                None => return Err(Broken::Resume(TryError::Again(too_short(writer.position(), part.end)))),
            }
        }
    }
}

/// A new file. An earlier try that was given up may still be writing into its own,
/// so that one is never used again. Blocks.
fn create(path: &Path) -> std::io::Result<File> {
    let new = || File::options().read(true).write(true).create_new(true).open(path);
    match new() {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            std::fs::remove_file(path)?;
            new()
        }
        created => created,
    }
}

/// Content in memory: checked, then written at once.
async fn small(mut response: Response, content: Content, target: &Path) -> Result<Received, TryError> {
    let mut bytes = Vec::with_capacity(content.length.and_then(|length| usize::try_from(length).ok()).unwrap_or(0));
    while let Some(piece) = response.chunk().await.map_err(request_error)? {
        bytes.extend_from_slice(&piece);
    }
    let length = bytes.len() as u64;
    if content.length.is_some_and(|expected| expected != length) {
        return Err(TryError::Again(too_short(length, content.length.unwrap_or_default())));
    }
    if let Some(expected) = content.md5 {
        check_sum(expected, Md5::digest(&bytes).into())?;
    }
    let path = target.to_owned();
    blocking(move || create(&path)?.write_all(&bytes)).await.map_err(|error| disk(&error))?;
    Ok(Received { bytes: length, etag: content.etag })
}

/// The answer to a request for a range of one version.
fn is_range_of(response: &Response, content: &Content, range: &Range<u64>) -> Result<(), TryError> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return Err(TryError::Again(TransferError::NoRanges));
    }
    let etag = header(response.headers(), ETAG.as_str());
    if etag.is_some() && etag != content.etag {
        return Err(TryError::Again(TransferError::Changed));
    }
    let sent = header(response.headers(), CONTENT_RANGE.as_str()).unwrap_or_default();
    let total = content.length.unwrap_or_default();
    let expected = format!("bytes {}-{}/{total}", range.start, range.end - 1);
    if sent.trim() == expected {
        return Ok(());
    }
    let message = format!("the server sent the range {sent:?} instead of {expected:?}");
    Err(TryError::Again(TransferError::Other(message)))
}

fn changed_or_broken(error: TryError) -> Broken {
    match error {
        // Another version, or one that is shorter than the range.
        TryError::Final(TransferError::Conflict(_)) | TryError::Again(TransferError::Changed) => {
            Broken::Restart(TryError::Again(TransferError::Changed))
        }
        TryError::Final(error) => Broken::Restart(TryError::Final(error)),
        error => Broken::Resume(error),
    }
}

fn too_short(found: u64, expected: u64) -> TransferError {
    TransferError::Other(format!("{found} bytes arrived instead of {expected}"))
}

fn check_sum(expected: [u8; 16], found: [u8; 16]) -> Result<(), TryError> {
    if expected == found {
        return Ok(());
    }
    Err(TryError::Again(TransferError::Other("the content does not fit its Content-MD5".to_owned())))
}

fn disk(error: &std::io::Error) -> TryError {
    TryError::Final(local_error("writing the file", error))
}

/// MD5 of a file. Blocks.
fn sum_of(file: &File) -> std::io::Result<[u8; 16]> {
    let (mut md5, mut buffer, mut at) = (Md5::new(), vec![0; READ], 0);
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok(md5.finalize().into()),
            read => {
                md5.update(&buffer[..read]);
                at += read as u64;
            }
        }
    }
}

#[cfg(test)]
#[path = "download_tests.rs"]
mod tests;
