//! Writing to a remote store, with little memory.
//!
//! What fits into one part is one request. More is sent in parts as they fill,
//! a few at once, and becomes an object when the last has arrived. A store keeps
//! parts of an upload that never ends; so the upload is noted before its first
//! part is sent ([`UploadLog`]), aborted when its writer is dropped, and if its process
//! dies, by whoever finds the note ([`crate::collect`]).

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use object_store::multipart::PartId;
use object_store::path::Path as StorePath;
use object_store::{MultipartId, ObjectStoreExt, PutPayload};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::place::Bucket;
use super::{Checksums, Pipe};
use crate::domain::model::{ObjectKey, OpenUpload};

/// Bytes of a part. Stores take 5 MiB at least and 10,000 parts at most; some
/// want all parts but the last to be of one size.
const PART: usize = 8 * 1024 * 1024;
/// Parts of one upload under way at once.
const UPLOAD_PARTS: usize = 3;
/// Parts of all uploads under way at once: 256 MiB.
const ALL_PARTS: usize = 32;
/// A note of an upload is renewed this often while bytes arrive.
const RENEW: Duration = Duration::from_secs(600);

/// Remembers uploads in parts, also when the process dies.
#[async_trait]
pub trait UploadLog: fmt::Debug + Send + Sync {
    /// Notes an upload, or that it goes on.
    async fn note(&self, upload: &OpenUpload) -> io::Result<()>;
    /// It is complete or aborted.
    async fn forget(&self, object: &ObjectKey) -> io::Result<()>;
}

/// A remote store.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) bucket: Arc<dyn Bucket>,
    log: Arc<dyn UploadLog>,
    parts: Arc<Semaphore>,
}

impl Remote {
    pub(super) fn new(bucket: Arc<dyn Bucket>, log: Arc<dyn UploadLog>) -> Self {
        Self { bucket, log, parts: Arc::new(Semaphore::new(ALL_PARTS)) }
    }

    /// Ends an upload for good; it may be gone or complete already.
    pub(super) async fn abort(&self, path: &StorePath, upload: &OpenUpload) -> io::Result<()> {
        match self.bucket.abort_multipart(path, &upload.id).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => self.log.forget(&upload.object).await,
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

/// An object in the making; dropping it aborts its upload.
#[derive(Debug)]
pub(super) struct RemoteWriter {
    remote: Arc<Remote>,
    key: ObjectKey,
    path: StorePath,
    pipe: Pipe,
    filling: BytesMut,
    upload: Option<Upload>,
}

#[derive(Debug)]
struct Upload {
    open: OpenUpload,
    noted: Instant,
    /// Sent, in order; at most 10,000.
    parts: VecDeque<JoinHandle<io::Result<PartId>>>,
    sent: usize,
    failed: Arc<AtomicBool>,
    slots: Arc<Semaphore>,
}

impl RemoteWriter {
    pub(super) fn new(remote: Arc<Remote>, key: ObjectKey, path: StorePath, pipe: Pipe) -> Self {
        Self { remote, key, path, pipe, filling: BytesMut::new(), upload: None }
    }

    /// Waits while too many parts are under way.
    pub(super) async fn write(&mut self, bytes: &Bytes) -> io::Result<()> {
        let bytes = self.pipe.pass(bytes)?;
        self.filling.extend_from_slice(&bytes);
        // A full part waits for more: the last one goes with the end.
        while self.filling.len() > PART {
            let part = self.filling.split_to(PART).freeze();
            self.send(part).await?;
        }
        if let Some(upload) = &mut self.upload
            && upload.noted.elapsed() > RENEW
        {
            self.remote.log.note(&upload.open).await?;
            upload.noted = Instant::now();
        }
        Ok(())
    }

    pub(super) async fn finish(mut self) -> io::Result<Checksums> {
        let (last, checksums) = std::mem::take(&mut self.pipe).finish()?;
        self.filling.extend_from_slice(&last);
        while self.filling.len() > PART {
            let part = self.filling.split_to(PART).freeze();
            self.send(part).await?;
        }
        let rest = self.filling.split().freeze();
        if self.upload.is_none() {
            let payload = PutPayload::from_bytes(rest);
            self.remote.bucket.put(&self.path, payload).await.map_err(io::Error::other)?;
            return Ok(checksums);
        }
        self.send(rest).await?;
        let Some(upload) = &mut self.upload else { return Err(gone()) };
        let mut parts = Vec::with_capacity(upload.parts.len());
        // Each stays in line until it is done: who drops this future drops none of them.
        while let Some(part) = upload.parts.front_mut() {
            let outcome = part.await;
            upload.parts.pop_front();
            parts.push(outcome.map_err(io::Error::other)??);
        }
        let (bucket, id) = (&self.remote.bucket, &upload.open.id);
        bucket.complete_multipart(&self.path, id, parts).await.map_err(io::Error::other)?;
        self.upload = None;
        if let Err(error) = self.remote.log.forget(&self.key).await {
            tracing::warn!(key = self.key.0, %error, "the note of a finished upload stays until it is collected");
        }
        Ok(checksums)
    }

    async fn send(&mut self, part: Bytes) -> io::Result<()> {
        if self.upload.is_none() {
            let id: MultipartId = self.remote.bucket.create_multipart(&self.path).await.map_err(io::Error::other)?;
            let open = OpenUpload { object: self.key.clone(), id };
            // From here on it is aborted, whatever happens.
            self.upload = Some(Upload {
                open: open.clone(),
                noted: Instant::now(),
                parts: VecDeque::new(),
                sent: 0,
                failed: Arc::default(),
                slots: Arc::new(Semaphore::new(UPLOAD_PARTS)),
            });
            self.remote.log.note(&open).await?;
        }
        let Some(upload) = &mut self.upload else { return Err(gone()) };
        let own = upload.slots.clone().acquire_owned().await.map_err(io::Error::other)?;
        let shared = self.remote.parts.clone().acquire_owned().await.map_err(io::Error::other)?;
        if upload.failed.load(Ordering::Relaxed) {
            return Err(io::Error::other("an earlier part could not be sent"));
        }
        let (remote, path, id) = (self.remote.clone(), self.path.clone(), upload.open.id.clone());
        let (number, failed) = (upload.sent, upload.failed.clone());
        upload.sent += 1;
        upload.parts.push_back(kiln_telemetry::spawn(async move {
            let _permits = (own, shared);
            let sent = remote.bucket.put_part(&path, &id, number, PutPayload::from_bytes(part)).await;
            sent.map_err(|error| {
                failed.store(true, Ordering::Relaxed);
                io::Error::other(error)
            })
        }));
        Ok(())
    }
}

fn gone() -> io::Error {
    io::Error::other("the upload has ended")
}

impl Drop for RemoteWriter {
    fn drop(&mut self) {
        let Some(upload) = self.upload.take() else { return };
        let (remote, path) = (self.remote.clone(), self.path.clone());
        kiln_telemetry::spawn(async move {
            for part in &upload.parts {
                part.abort();
            }
            // A part that arrives after the abort would stay.
            for part in upload.parts {
                let _ = part.await;
            }
            if let Err(error) = remote.abort(&path, &upload.open).await {
                let object = &upload.open.object.0;
                tracing::warn!(object, %error, "an upload could not be aborted; it is tried again in an hour");
            }
        });
    }
}
