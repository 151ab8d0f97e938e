//! The bytes of blobs.
//!
//! Every write goes to an object of its own with a key that is never used
//! again, so nothing that exists is ever changed. [`ObjectWriter::finish`]
//! returns when the bytes survive power loss; only then may the catalogue name
//! the object. [`Written`] removes the object again unless it is kept.
//!
//! Backends are `object_store`'s. Its local one does not flush, so [`local`]
//! writes files itself: data, then file, then directory.

mod local;
mod reader;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use kiln_time::Timestamp;
use md5::{Digest, Md5};
use object_store::local::LocalFileSystem;
use object_store::path::Path as StorePath;
use object_store::{ObjectStore, ObjectStoreExt, WriteMultipart};

use crate::domain::crc64::Crc64;
use crate::domain::model::ObjectKey;
use crate::domain::range::Span;

/// Directories over which local files are spread.
const SHARDS: u64 = 256;
/// Parts of a multi-part upload that may be under way at once.
const REMOTE_PARTS: usize = 4;

/// A handle; clones share the backend.
#[derive(Debug, Clone)]
pub struct Objects {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<dyn ObjectStore>,
    /// Root of a local backend.
    local: Option<Arc<Path>>,
    /// Names this process; part of every key it makes.
    incarnation: String,
    next: AtomicU64,
}

/// What was learned about bytes on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksums {
    /// Always.
    pub md5: [u8; 16],
    /// If it was asked for.
    pub crc64: Option<[u8; 8]>,
}

/// Computes [`Checksums`].
#[derive(Debug, Clone, Default)]
pub struct Hasher {
    md5: Md5,
    crc64: Option<Crc64>,
}

impl Hasher {
    /// MD5, and the other one too if `crc64`.
    pub fn new(crc64: bool) -> Self {
        Self { md5: Md5::new(), crc64: crc64.then(Crc64::default) }
    }

    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.md5.update(bytes);
        if let Some(crc64) = &mut self.crc64 {
            crc64.update(bytes);
        }
    }

    /// The results.
    pub fn finish(self) -> Checksums {
        Checksums { md5: self.md5.finalize().into(), crc64: self.crc64.map(Crc64::finish) }
    }
}

/// An object in the making; dropping it leaves nothing.
#[derive(Debug)]
pub struct ObjectWriter {
    key: ObjectKey,
    length: u64,
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    Local(local::LocalWriter),
    Remote { objects: Objects, upload: WriteMultipart, hasher: Box<Hasher> },
}

/// A durable object that no row names yet; dropping it removes it.
#[derive(Debug)]
pub struct Written {
    /// Its key.
    pub key: ObjectKey,
    /// Bytes.
    pub length: u64,
    /// Of its bytes.
    pub checksums: Checksums,
    guard: Option<Guard>,
}

#[derive(Debug)]
enum Guard {
    Local { _file: local::FileGuard },
    Remote(Objects),
}

impl Written {
    /// A row names the object now (or may: the outcome of the commit is unknown).
    pub fn keep(mut self) {
        if let Some(Guard::Local { _file: file }) = self.guard.take() {
            file.keep();
        }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        if let Some(Guard::Remote(objects)) = self.guard.take() {
            let key = self.key.clone();
            kiln_telemetry::spawn(async move {
                if let Err(error) = objects.delete(&key).await {
                    tracing::warn!(key = key.0, %error, "an unused object stays until the next start");
                }
            });
        }
    }
}

impl Objects {
    /// Objects as files below `root`, which is made if needed.
    ///
    /// # Errors
    /// If the directories cannot be made.
    pub async fn local(root: &Path) -> io::Result<Self> {
        let root: Arc<Path> = Arc::from(root);
        let made = root.clone();
        blocking(move || local::prepare(&made)).await?;
        let store = LocalFileSystem::new_with_prefix(&root).map_err(io::Error::other)?;
        Ok(Self::new(Arc::new(store), Some(root)))
    }

    /// Objects in any other store, whose writes are durable when they return.
    pub fn remote(store: Arc<dyn ObjectStore>) -> Self {
        Self::new(store, None)
    }

    fn new(store: Arc<dyn ObjectStore>, local: Option<Arc<Path>>) -> Self {
        let incarnation = uuid::Uuid::now_v7().simple().to_string();
        Self { inner: Arc::new(Inner { store, local, incarnation, next: AtomicU64::new(0) }) }
    }

    /// Begins a new object.
    ///
    /// # Errors
    /// If the backend refuses.
    pub async fn create(&self, crc64: bool) -> io::Result<ObjectWriter> {
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let key = ObjectKey(format!("{:02x}/{}-{number:x}", number % SHARDS, self.inner.incarnation));
        let hasher = Hasher::new(crc64);
        let sink = match &self.inner.local {
            Some(root) => Sink::Local(local::LocalWriter::create(root.join(&key.0), hasher).await?),
            None => {
                let upload = self.inner.store.put_multipart(&path(&key)).await.map_err(io::Error::other)?;
                let upload = WriteMultipart::new(upload);
                Sink::Remote { objects: self.clone(), upload, hasher: Box::new(hasher) }
            }
        };
        Ok(ObjectWriter { key, length: 0, sink })
    }

    /// The bytes of `span`, in pieces. A missing or shorter object is an error,
    /// never a shorter answer.
    pub fn read(&self, key: &ObjectKey, span: Span) -> BoxStream<'static, io::Result<Bytes>> {
        reader::read(self.inner.store.clone(), path(key), span)
    }

    /// Removes an object; it may be gone already.
    ///
    /// # Errors
    /// If the backend fails.
    pub async fn delete(&self, key: &ObjectKey) -> io::Result<()> {
        match self.inner.store.delete(&path(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Keys of objects that other processes wrote, the last time before `until`, in
    /// batches.
    pub fn earlier(&self, batch: usize, until: Timestamp) -> BoxStream<'static, io::Result<Vec<ObjectKey>>> {
        let inner = self.inner.clone();
        let own = inner.incarnation.clone();
        inner
            .store
            .list(None)
            .try_filter(move |meta| std::future::ready(meta.last_modified.timestamp_micros() <= until.as_micros()))
            .map_ok(|meta| ObjectKey(meta.location.to_string()))
            .try_filter(move |key| std::future::ready(!key.0.contains(&own)))
            .try_chunks(batch)
            .map_err(|error| io::Error::other(error.1))
            .boxed()
    }
}

impl ObjectWriter {
    /// Adds `bytes`; waits while too many are under way.
    ///
    /// # Errors
    /// If the backend fails; the object is then useless.
    pub async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        self.length += bytes.len() as u64;
        match &mut self.sink {
            Sink::Local(writer) => writer.write(bytes).await,
            Sink::Remote { upload, hasher, .. } => {
                upload.wait_for_capacity(REMOTE_PARTS).await.map_err(io::Error::other)?;
                hasher.update(&bytes);
                upload.put(bytes);
                Ok(())
            }
        }
    }

    /// Makes the object durable.
    ///
    /// # Errors
    /// If the backend fails; the object is then gone.
    pub async fn finish(self) -> io::Result<Written> {
        let (checksums, guard) = match self.sink {
            Sink::Local(writer) => {
                let (checksums, file) = writer.finish().await?;
                (checksums, Guard::Local { _file: file })
            }
            Sink::Remote { objects, upload, hasher } => {
                upload.finish().await.map_err(io::Error::other)?;
                (hasher.finish(), Guard::Remote(objects))
            }
        };
        Ok(Written { key: self.key, length: self.length, checksums, guard: Some(guard) })
    }
}

fn path(key: &ObjectKey) -> StorePath {
    StorePath::from(key.0.as_str())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests;
