//! What storage does, for both fronts.
//!
//! [`Storage`] joins the catalogue and the objects: bytes first, durable, then
//! the row that names them. [`upload`] and [`append`] receive, [`download`] sends,
//! [`copy`] does both, also with what is on other servers ([`remote`]); [`applications`] make
//! zips packages; the rest passes to the catalogue with a stamp.

mod accounts;
mod append;
mod applications;
mod copy;
mod download;
pub mod keys;
pub mod remote;
mod upload;

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use kiln_telemetry::propagation;
use kiln_time::Timestamp;

use crate::domain::StorageError;
use crate::domain::model::{EtagSource, ObjectKey, OpenUpload};
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::objects::remote::UploadLog;
use crate::store::{Catalogue, Stamp};

pub use append::AppendBlock;
pub use applications::PackageName;
pub use copy::CopyBytes;
pub use download::{ByteStream, Download};
pub use remote::Remote;
pub use upload::{Body, Expected, Put, PutBlob, PutBlock};

/// See the module. Clones share everything.
#[derive(Debug, Clone)]
pub struct Storage {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    catalogue: Arc<dyn Catalogue>,
    objects: Objects,
    etags: EtagSource,
    accounts: accounts::Cache,
    merging: append::Merging,
    metrics: Metrics,
    remote: Remote,
}

impl Storage {
    /// Joins a catalogue and its objects; copies may come from `remote`.
    pub fn new(catalogue: Arc<dyn Catalogue>, objects: Objects, metrics: Metrics, remote: Remote) -> Self {
        let (etags, accounts, merging) = Default::default();
        Self { inner: Arc::new(Inner { catalogue, objects, etags, accounts, merging, metrics, remote }) }
    }

    /// The catalogue.
    pub fn catalogue(&self) -> &dyn Catalogue {
        &*self.inner.catalogue
    }

    /// The objects.
    pub fn objects(&self) -> &Objects {
        &self.inner.objects
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Other servers.
    pub fn remote(&self) -> &Remote {
        &self.inner.remote
    }

    /// The stamp of a write that happens now.
    pub fn stamp(&self, account: &str, request_id: &str) -> Stamp {
        let now = Timestamp::now();
        Stamp {
            account: account.to_owned(),
            now,
            etag: self.inner.etags.next(now),
            traceparent: propagation::current_traceparent(),
            request_id: request_id.to_owned(),
        }
    }
}

/// The catalogue as the place where uploads in parts are noted.
#[derive(Debug)]
pub struct UploadNotes(pub Arc<dyn Catalogue>);

#[async_trait]
impl UploadLog for UploadNotes {
    async fn note(&self, upload: &OpenUpload) -> io::Result<()> {
        self.0.note_upload(upload, Timestamp::now()).await.map_err(io::Error::other)
    }

    async fn forget(&self, object: &ObjectKey) -> io::Result<()> {
        self.0.forget_upload(object).await.map_err(io::Error::other)
    }
}

/// An I/O error of the objects, logged here, once.
fn io_error(error: &std::io::Error) -> StorageError {
    tracing::error!(%error, "bytes could not be stored or read");
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => StorageError::ServerBusy,
        _ => StorageError::InternalError,
    }
}
