//! The bytes of blobs.
//!
//! Every write goes to an object of its own with a key that is never used
//! again, so nothing that exists is ever changed. [`ObjectWriter::finish`]
//! returns when the bytes survive power loss; only then may the catalogue name
//! the object. [`Written`] removes the object again unless it is kept.
//!
//! Backends are `object_store`'s ([`place`]); of remote ones [`remote`] writes large
//! objects in parts. Its local one does not flush, so [`local`] writes files
//! itself: data, then file, then directories. [`sealing`] encrypts on the way.

pub mod local;
pub mod place;
mod reader;
pub mod remote;
pub mod sealing;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use kiln_time::Timestamp;
use md5::{Digest, Md5};
use object_store::local::LocalFileSystem;
use object_store::path::Path as StorePath;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

use crate::domain::crc64::Crc64;
use crate::domain::model::{Content, ObjectKey, OpenUpload, SealedBytes};
use crate::domain::range::Span;
use local::Durability;
use place::{Bucket, ObjectsPlace};
use remote::{Remote, RemoteWriter, UploadLog};
use sealing::{Keyring, Sealer};

/// Directories over which local files are spread.
pub(crate) const SHARDS: u64 = 256;
/// Name of the object that says whose objects these are.
const OWNER: &str = "kiln-owner";
/// A row that names an object is committed this soon after the object is
/// durable, or not at all: a sweep of another replica may take it later.
const NAMED_WITHIN: Duration = Duration::from_secs(1800);

/// A handle; clones share the backend.
#[derive(Debug, Clone)]
pub struct Objects {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<dyn ObjectStore>,
    backend: Backend,
    /// Path of all objects in the store; may be empty.
    prefix: StorePath,
    keyring: Option<Arc<Keyring>>,
    /// Names this process; part of every key it makes.
    incarnation: String,
    next: AtomicU64,
}

#[derive(Debug)]
enum Backend {
    Local(Arc<local::Directory>),
    Remote(Arc<Remote>),
}

/// How objects are written.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Encrypts them.
    pub keyring: Option<Arc<Keyring>>,
    /// What local ones survive.
    pub durability: Durability,
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

/// What bytes go through on their way to the backend.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    hasher: Hasher,
    sealer: Option<Sealer>,
}

impl Pipe {
    /// What is to be written for `bytes`: with encryption, the chunks that are complete.
    pub(crate) fn pass(&mut self, bytes: &Bytes) -> io::Result<Bytes> {
        self.hasher.update(bytes);
        match &mut self.sealer {
            Some(sealer) => sealer.seal(bytes),
            None => Ok(bytes.clone()),
        }
    }

    /// What is still to be written, and the checksums of all plain bytes.
    pub(crate) fn finish(self) -> io::Result<(Bytes, Checksums)> {
        let rest = self.sealer.map(Sealer::finish).transpose()?.unwrap_or_default();
        Ok((rest, self.hasher.finish()))
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
    Remote { objects: Objects, writer: Box<RemoteWriter> },
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
    since: Instant,
    guard: Option<Guard>,
}

#[derive(Debug)]
enum Guard {
    Local { _file: local::FileGuard },
    Remote(Objects),
}

impl Written {
    /// Whether it is certain that no sweep has taken it.
    pub fn is_fresh(&self) -> bool {
        self.since.elapsed() < NAMED_WITHIN
    }

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
    /// Objects where the settings say.
    ///
    /// # Errors
    /// If the place cannot be used.
    pub async fn open(place: &ObjectsPlace, options: Options, log: Arc<dyn UploadLog>) -> io::Result<Self> {
        match place {
            ObjectsPlace::Own(root) | ObjectsPlace::Shared(root) => Self::local(root, options).await,
            ObjectsPlace::Memory => Ok(Self::remote(place::memory(), StorePath::default(), options, log)),
            ObjectsPlace::Remote(remote) => {
                let bucket = remote.open().map_err(io::Error::other)?;
                Ok(Self::remote(bucket, remote.prefix(), options, log))
            }
        }
    }

    /// Objects as files below `root`, which is made if needed.
    ///
    /// # Errors
    /// If the directories cannot be made.
    pub async fn local(root: &Path, options: Options) -> io::Result<Self> {
        let (root, durability) = (root.to_path_buf(), options.durability);
        let directory = blocking(move || local::Directory::prepare(root, durability)).await?;
        let store = LocalFileSystem::new_with_prefix(directory.root()).map_err(io::Error::other)?;
        let backend = Backend::Local(Arc::new(directory));
        Ok(Self::new(Arc::new(store), backend, StorePath::default(), options))
    }

    /// Objects in any other store, whose writes are durable when they return.
    pub fn remote(bucket: Arc<dyn Bucket>, prefix: StorePath, options: Options, log: Arc<dyn UploadLog>) -> Self {
        let store: Arc<dyn ObjectStore> = bucket.clone();
        Self::new(store, Backend::Remote(Arc::new(Remote::new(bucket, log))), prefix, options)
    }

    fn new(store: Arc<dyn ObjectStore>, backend: Backend, prefix: StorePath, options: Options) -> Self {
        let incarnation = uuid::Uuid::now_v7().simple().to_string();
        let (keyring, next) = (options.keyring, AtomicU64::new(0));
        Self { inner: Arc::new(Inner { store, backend, prefix, keyring, incarnation, next }) }
    }

    /// Whether what is written is encrypted.
    pub fn encrypts(&self) -> bool {
        self.inner.keyring.is_some()
    }

    /// Makes sure that the objects belong to the catalogue `owner` alone:
    /// another one would take them for leftovers. The first to ask owns them.
    ///
    /// # Errors
    /// They belong to another, or the store cannot be used.
    pub async fn claim(&self, owner: &str) -> io::Result<()> {
        let (store, path) = (&self.inner.store, self.path(OWNER));
        let found = match store.get(&path).await {
            Err(object_store::Error::NotFound { .. }) => {
                let payload = PutPayload::from(owner.to_owned());
                store.put(&path, payload).await.map_err(io::Error::other)?;
                // Somebody else may have done the same at the same time.
                store.get(&path).await
            }
            found => found,
        };
        let found = found.map_err(io::Error::other)?.bytes().await.map_err(io::Error::other)?;
        if found == owner.as_bytes() {
            return Ok(());
        }
        let found = String::from_utf8_lossy(&found[..found.len().min(64)]).into_owned();
        Err(io::Error::other(format!(
            "the objects there belong to another catalogue ({found}, this one is {owner}): use another path, or, \
             if the catalogue was restored from a copy under a new identity, delete the object {path} first"
        )))
    }

    /// Begins a new object.
    ///
    /// # Errors
    /// If the backend refuses.
    pub async fn create(&self, crc64: bool) -> io::Result<ObjectWriter> {
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let (shard, incarnation) = (number % SHARDS, &self.inner.incarnation);
        let key = match &self.inner.keyring {
            None => ObjectKey(format!("{shard:02x}/{incarnation}-{number:x}")),
            Some(keyring) => ObjectKey(format!("{shard:02x}/{incarnation}-{number:x}.{}", keyring.current())),
        };
        let sealer = self.inner.keyring.as_ref().map(|keyring| keyring.sealer(&key)).transpose()?;
        let pipe = Pipe { hasher: Hasher::new(crc64), sealer };
        let sink = match &self.inner.backend {
            Backend::Local(directory) => Sink::Local(local::LocalWriter::create(directory, shard, &key, pipe).await?),
            Backend::Remote(remote) => {
                let writer = RemoteWriter::new(remote.clone(), key.clone(), self.path(&key.0), pipe);
                Sink::Remote { objects: self.clone(), writer: Box::new(writer) }
            }
        };
        Ok(ObjectWriter { key, length: 0, sink })
    }

    /// Bytes that are small enough for the catalogue, as it keeps them.
    ///
    /// # Errors
    /// If they cannot be encrypted.
    pub fn inline(&self, bytes: Bytes) -> io::Result<Content> {
        match &self.inner.keyring {
            None => Ok(Content::Inline(bytes)),
            Some(keyring) => Ok(Content::Sealed(keyring.seal_small(&bytes)?)),
        }
    }

    /// The bytes of a small blob that is encrypted.
    ///
    /// # Errors
    /// Its key is not there or another one, or it was changed.
    pub fn unseal(&self, sealed: &SealedBytes) -> io::Result<Bytes> {
        self.keyring(&sealed.key)?.open_small(sealed)
    }

    fn keyring(&self, id: &str) -> io::Result<&Keyring> {
        self.inner.keyring.as_deref().ok_or_else(|| {
            io::Error::other(format!("the bytes are encrypted with the key {id:?}: set encryption_key_file"))
        })
    }

    /// The bytes of `span`, in pieces. A missing or shorter object is an error,
    /// never a shorter answer.
    pub fn read(&self, key: &ObjectKey, span: Span) -> BoxStream<'static, io::Result<Bytes>> {
        let opener = match key.sealed_with() {
            None => None,
            Some(id) => match self.keyring(id).and_then(|keyring| keyring.opener(id, key)) {
                Ok(opener) => Some(opener),
                Err(error) => return futures::stream::once(std::future::ready(Err(error))).boxed(),
            },
        };
        reader::read(self.inner.store.clone(), self.path(&key.0), span, opener)
    }

    /// Removes an object; it may be gone already.
    ///
    /// # Errors
    /// If the backend fails.
    pub async fn delete(&self, key: &ObjectKey) -> io::Result<()> {
        match self.inner.store.delete(&self.path(&key.0)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Keys of objects that other processes wrote, the last time before `until`, in
    /// batches.
    pub fn earlier(&self, batch: usize, until: Timestamp) -> BoxStream<'static, io::Result<Vec<ObjectKey>>> {
        let inner = self.inner.clone();
        let own = inner.incarnation.clone();
        let prefix = inner.prefix.clone();
        inner
            .store
            .list(Some(&prefix))
            .try_filter(move |meta| std::future::ready(meta.last_modified.timestamp_micros() <= until.as_micros()))
            .try_filter_map(move |meta| {
                let key = meta.location.prefix_match(&prefix).map(|parts| StorePath::from_iter(parts).to_string());
                // What does not look like an object is not ours to remove.
                let key = key.filter(|key| key.as_bytes().get(2) == Some(&b'/') && !key.contains(&own));
                std::future::ready(Ok(key.map(ObjectKey)))
            })
            .try_chunks(batch)
            .map_err(|error| io::Error::other(error.1))
            .boxed()
    }

    /// Aborts an upload in parts that its process has left behind.
    ///
    /// # Errors
    /// If the backend fails.
    pub async fn abort(&self, upload: &OpenUpload) -> io::Result<()> {
        match &self.inner.backend {
            Backend::Remote(remote) => remote.abort(&self.path(&upload.object.0), upload).await,
            Backend::Local(_) => Ok(()),
        }
    }

    fn path(&self, name: &str) -> StorePath {
        let name = StorePath::from(name);
        self.inner.prefix.parts().chain(name.parts()).collect()
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
            Sink::Remote { writer, .. } => writer.write(&bytes).await,
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
            Sink::Remote { objects, writer } => (writer.finish().await?, Guard::Remote(objects)),
        };
        let (since, guard) = (Instant::now(), Some(guard));
        Ok(Written { key: self.key, length: self.length, checksums, since, guard })
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
