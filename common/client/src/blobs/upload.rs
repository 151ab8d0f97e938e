//! Files and other blobs into blobs.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use kiln_proto::storage::v1::{Blob, GetUploadRequest, ResumableUpload, UploadHeader, UploadRequest, upload_request};
use md5::{Digest, Md5};
use tokio::io::{AsyncRead, AsyncReadExt};
use tonic::Status;

use super::{BLOCK, PARALLEL, Place, TransferError, Transfers, file_md5, refused, with_file};

/// A blob has at most this many blocks.
const MAX_BLOCKS: u64 = 50_000;
/// Bytes of one message; services take at most 4 MiB.
const MESSAGE: usize = 1024 * 1024;

/// What is stored with the bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// Empty stands for `application/octet-stream`.
    pub content_type: String,
    /// Names and values.
    pub metadata: HashMap<String, String>,
}

/// Where the bytes of a large upload come from.
enum Source<'a> {
    File { file: Arc<File>, path: &'a Path },
    Blob(&'a Blob),
}

/// A large upload.
struct Large<'a> {
    source: Source<'a>,
    length: u64,
    /// The same for another process that uploads the same version.
    upload_id: String,
    to: &'a Place,
    about: &'a About,
}

impl Transfers {
    /// Writes a local file into a blob; `progress` learns of bytes as they go.
    ///
    /// # Errors
    /// If the file cannot be read or changes meanwhile, or what the service said.
    pub async fn upload(
        &self,
        file: &Path,
        to: &Place,
        about: &About,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Blob, TransferError> {
        let path = file.to_owned();
        let (opened, length, version) = with_file(file, move || {
            let opened = File::open(&path)?;
            let (length, version) = version(&opened)?;
            let name = path.canonicalize()?;
            Ok((Arc::new(opened), length, format!("{}\0{version}", name.display())))
        })
        .await?;
        if length <= BLOCK {
            let _memory = self.memory.acquire().await;
            let bytes = read_file(&opened, file, 0, length).await?;
            return self.upload_bytes(bytes, to, about, progress).await;
        }
        let upload_id = hex(&Md5::digest(format!("{version}\0{to}")));
        let path = file.to_owned();
        let whole = tokio::task::spawn_blocking(move || file_md5(&path));
        let large = Large { source: Source::File { file: opened.clone(), path: file }, length, upload_id, to, about };
        let block = self.send_blocks(&large, progress).await?;
        let sum = whole.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let sum = sum.map_err(|source| TransferError::File { path: file.to_owned(), source })?;
        let end = with_file(file, move || self::version(&opened)).await?;
        if !version.ends_with(&format!("\0{}", end.1)) {
            let source = io::Error::other("it changed while it was being sent");
            return Err(TransferError::File { path: file.to_owned(), source });
        }
        self.finish(&large, block, sum.to_vec()).await
    }

    /// Writes `bytes` into a blob.
    ///
    /// # Errors
    /// What the service said.
    pub async fn upload_bytes(
        &self,
        bytes: Bytes,
        to: &Place,
        about: &About,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Blob, TransferError> {
        let header = UploadHeader {
            // The same for all tries: the second one gives the answer of the first.
            request_id: uuid::Uuid::now_v7().to_string(),
            content_md5: md5_of(&bytes).await?,
            ..header(to, about)
        };
        let length = bytes.len() as u64;
        let written = self.send(to, header, bytes).await?;
        progress(length);
        blob_of(to, written)
    }

    /// Writes all that `source` gives into a blob. It cannot be read twice, so what
    /// breaks is not tried again.
    ///
    /// # Errors
    /// If `source` cannot be read, or what the service said.
    pub async fn upload_stream(
        &self,
        mut source: impl AsyncRead + Unpin + Send,
        to: &Place,
        about: &About,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Blob, TransferError> {
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let header = header(to, about);
        let feed = async move {
            // A failed send means that the call has ended; its answer says why.
            if sender.send(message(upload_request::Part::Header(header))).await.is_err() {
                return Ok(());
            }
            loop {
                let mut piece = Vec::with_capacity(MESSAGE);
                let read = (&mut source).take(MESSAGE as u64).read_to_end(&mut piece).await?;
                if read == 0 {
                    return io::Result::Ok(());
                }
                if sender.send(message(upload_request::Part::Data(Bytes::from(piece)))).await.is_err() {
                    return Ok(());
                }
                progress(read as u64);
            }
        };
        let mut storage = self.client.storage();
        let call = storage.upload(tokio_stream::wrappers::ReceiverStream::new(receiver));
        tokio::pin!(call, feed);
        // If reading fails the call is dropped, and the service forgets the stream.
        let answer = tokio::select! {
            answer = &mut call => answer,
            fed = &mut feed => {
                fed.map_err(|source| TransferError::File { path: "-".into(), source })?;
                call.await
            }
        };
        blob_of(to, answer.map_err(|status| refused(to, status))?.into_inner().blob)
    }

    /// Copies the version that `from` describes.
    ///
    /// # Errors
    /// What the service said; that there is another version by now, for example.
    pub async fn copy(&self, from: &Blob, to: &Place, progress: &(dyn Fn(u64) + Sync)) -> Result<Blob, TransferError> {
        let about = About { content_type: from.content_type.clone(), metadata: from.metadata.clone() };
        if from.content_length <= BLOCK {
            let _memory = self.memory.acquire().await;
            let bytes = self.read(from).all().await?;
            return self.upload_bytes(bytes, to, &about, progress).await;
        }
        let upload_id = hex(&Md5::digest(format!("{}/{}\0{}\0{to}", from.container, from.name, from.etag)));
        let large = Large { source: Source::Blob(from), length: from.content_length, upload_id, to, about: &about };
        let block = self.send_blocks(&large, progress).await?;
        self.finish(&large, block, from.content_md5.clone()).await
    }

    /// Makes all blocks durable that are not yet; gives their size.
    async fn send_blocks(&self, large: &Large<'_>, progress: &(dyn Fn(u64) + Sync)) -> Result<u64, TransferError> {
        let block = BLOCK.max(large.length.div_ceil(MAX_BLOCKS));
        let request = GetUploadRequest {
            container: large.to.container.clone(),
            name: large.to.name.clone(),
            upload_id: large.upload_id.clone(),
            block_bytes: block,
        };
        let there = self
            .retry(|| {
                let (mut storage, request) = (self.client.storage(), request.clone());
                async move { storage.get_upload(request).await }
            })
            .await
            .map_err(|status| refused(large.to, status))?
            .into_inner();
        let length_at = |offset: u64| block.min(large.length - offset);
        let there: HashSet<u64> = there
            .blocks
            .iter()
            .filter(|found| found.offset < large.length && found.length == length_at(found.offset))
            .map(|found| found.offset)
            .collect();
        progress(there.iter().map(|offset| length_at(*offset)).sum());
        let missing = (0..large.length.div_ceil(block)).map(|number| number * block).filter(|at| !there.contains(at));
        futures::stream::iter(missing)
            .map(|offset| async move {
                let _memory = self.memory.acquire().await;
                let bytes = match &large.source {
                    Source::File { file, path } => read_file(file, path, offset, length_at(offset)).await?,
                    Source::Blob(blob) => self.read_range(blob, offset, offset + length_at(offset)).all().await?,
                };
                let header = UploadHeader {
                    content_md5: md5_of(&bytes).await?,
                    resumable: Some(large.piece(block, offset)),
                    ..header(large.to, large.about)
                };
                self.send(large.to, header, bytes).await?;
                progress(length_at(offset));
                Ok(())
            })
            .buffer_unordered(PARALLEL)
            .try_collect::<()>()
            .await?;
        Ok(block)
    }

    async fn finish(&self, large: &Large<'_>, block: u64, blob_md5: Vec<u8>) -> Result<Blob, TransferError> {
        let end = large.length.div_ceil(block) * block;
        let piece = ResumableUpload { finish: true, blob_md5, ..large.piece(block, end) };
        let header = UploadHeader { resumable: Some(piece), ..header(large.to, large.about) };
        blob_of(large.to, self.send(large.to, header, Bytes::new()).await?)
    }

    /// One call with all of `bytes`, again until it is answered.
    async fn send(&self, to: &Place, header: UploadHeader, bytes: Bytes) -> Result<Option<Blob>, TransferError> {
        let answer = self.retry(|| {
            let (mut storage, header, bytes) = (self.client.storage(), header.clone(), bytes.clone());
            async move {
                let starts = (0..bytes.len()).step_by(MESSAGE);
                let pieces: Vec<_> = starts
                    .map(|at| bytes.slice(at..bytes.len().min(at + MESSAGE)))
                    .map(upload_request::Part::Data)
                    .collect();
                let parts = std::iter::once(upload_request::Part::Header(header)).chain(pieces);
                storage.upload(futures::stream::iter(parts.map(message))).await
            }
        });
        let answer: Result<_, Status> = answer.await;
        Ok(answer.map_err(|status| refused(to, status))?.into_inner().blob)
    }
}

impl Large<'_> {
    fn piece(&self, block_bytes: u64, offset: u64) -> ResumableUpload {
        ResumableUpload { upload_id: self.upload_id.clone(), block_bytes, offset, finish: false, blob_md5: Vec::new() }
    }
}

fn header(to: &Place, about: &About) -> UploadHeader {
    UploadHeader {
        container: to.container.clone(),
        name: to.name.clone(),
        content_type: about.content_type.clone(),
        metadata: about.metadata.clone(),
        ..UploadHeader::default()
    }
}

fn message(part: upload_request::Part) -> UploadRequest {
    UploadRequest { part: Some(part) }
}

fn blob_of(place: &Place, blob: Option<Blob>) -> Result<Blob, TransferError> {
    blob.ok_or_else(|| TransferError::Content(format!("{place}: the answer has no blob")))
}

/// Length, and what changes when the content does. Blocks.
fn version(file: &File) -> io::Result<(u64, String)> {
    let found = file.metadata()?;
    if found.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok((found.len(), format!("{} {}.{:09}", found.len(), found.mtime(), found.mtime_nsec())))
}

async fn md5_of(bytes: &Bytes) -> Result<Vec<u8>, TransferError> {
    let bytes = bytes.clone();
    let sum = tokio::task::spawn_blocking(move || Md5::digest(&bytes).to_vec()).await;
    sum.map_err(|error| TransferError::Content(error.to_string()))
}

async fn read_file(file: &Arc<File>, path: &Path, start: u64, length: u64) -> Result<Bytes, TransferError> {
    let file = file.clone();
    with_file(path, move || {
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, start)?;
        Ok(Bytes::from(bytes))
    })
    .await
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
