//! Whole files to blobs, back, and from blob to blob, over connections that may break.
//!
//! - [`Transfers`] is what callers use. It bounds how much is in memory at once,
//!   however many files are under way.
//! - [`upload`]: small content is one call; large content goes in blocks, several at
//!   once, and only those that are missing are sent again, also by a later
//!   process that uploads the same file.
//! - [`download`]: large blobs are read in parts, several at once, all of one version; the file
//!   appears under its name when it is whole and its MD5 is right.
//! - [`reader`]: bytes of a range in order; [`retry`]: how long a service may be away.

mod download;
mod reader;
mod retry;
mod upload;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kiln_proto::storage::v1::{Blob, GetBlobRequest};
use md5::{Digest, Md5};
use tokio::sync::Semaphore;

use crate::Client;

pub use reader::BlobReader;
pub use upload::About;

/// Up to this size content is one call, and one piece in memory.
const BLOCK: u64 = 8 * 1024 * 1024;
/// Pieces of [`BLOCK`] bytes in memory.
const BLOCKS_IN_MEMORY: usize = 8;
/// Pieces of one file that are under way at once.
const PARALLEL: usize = 4;
/// A service may be away for so long before a transfer that began is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Names a blob.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Its container.
    pub container: String,
    /// Its name there.
    pub name: String,
}

impl Place {
    /// The blob of this name.
    pub fn new(container: impl Into<String>, name: impl Into<String>) -> Self {
        Self { container: container.into(), name: name.into() }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.container, self.name)
    }
}

/// Why a transfer ended.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The service refused, or stayed away for too long.
    #[error("{place}: {status}")]
    Service {
        /// What was transferred.
        place: Place,
        /// Its word.
        status: Box<tonic::Status>,
    },
    /// A local file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The content is not what it should be.
    #[error("{0}")]
    Content(String),
}

/// Carries bytes; clones share the bounds.
#[derive(Debug, Clone)]
pub struct Transfers {
    client: Client,
    /// Permits to have [`BLOCK`] bytes in memory.
    memory: Arc<Semaphore>,
    patience: Duration,
}

impl Transfers {
    /// Transfers of this account.
    pub fn new(client: Client) -> Self {
        Self { client, memory: Arc::new(Semaphore::new(BLOCKS_IN_MEMORY)), patience: PATIENCE }
    }

    /// The blob's properties.
    ///
    /// # Errors
    /// What the service said.
    pub async fn blob(&self, place: &Place) -> Result<Blob, TransferError> {
        let request = GetBlobRequest { container: place.container.clone(), name: place.name.clone() };
        self.retry(|| {
            let (mut storage, request) = (self.client.storage(), request.clone());
            async move { storage.get_blob(request).await }
        })
        .await
        .map_err(|status| refused(place, status))?
        .into_inner()
        .blob
        .ok_or_else(|| TransferError::Content(format!("{place}: the answer has no blob")))
    }
}

/// MD5 of a file's content. Blocks.
///
/// # Errors
/// The file cannot be read.
pub fn file_md5(path: &Path) -> io::Result<[u8; 16]> {
    let mut file = std::fs::File::open(path)?;
    let (mut md5, mut buffer) = (Md5::new(), vec![0; 256 * 1024]);
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(md5.finalize().into()),
            read => md5.update(&buffer[..read]),
        }
    }
}

fn refused(place: &Place, status: tonic::Status) -> TransferError {
    TransferError::Service { place: place.clone(), status: Box::new(status) }
}

/// Runs `work`, which is about the file `path`, on a thread for blocking work.
async fn with_file<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, TransferError> {
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    done.map_err(|source| TransferError::File { path: path.to_owned(), source })
}
