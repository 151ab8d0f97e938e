//! Durable files: data, then the file, then its directory is flushed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use tokio::task::JoinHandle;

use super::{Checksums, Hasher, blocking};

/// Bytes that go to the disk in one call. Two of these are in memory per
/// upload: one that fills, one that is being written.
const CHUNK: usize = 1024 * 1024;

/// Makes `root`, durably, for its owner alone: blobs must not be open to others
/// on the machine, whatever the mode of the data directory is. The directories
/// below it come when they are needed: a deployment that lives for one run makes
/// and removes few.
pub fn prepare(root: &Path) -> io::Result<()> {
    fs::create_dir_all(root)?;
    if fs::metadata(root)?.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(root, fs::Permissions::from_mode(0o700))?;
    }
    sync_dir(root)?;
    match root.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => Ok(()),
    }
}

/// A new file; its directory is made, durably, if this is its first.
fn create_file(path: &Path) -> io::Result<File> {
    let create = || OpenOptions::new().write(true).create_new(true).open(path);
    match create() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (Some(dir), Some(root)) = (path.parent(), path.parent().and_then(Path::parent)) else {
                return Err(error);
            };
            match fs::create_dir(dir) {
                // Whoever was faster may not have flushed it yet.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                result => result?,
            }
            sync_dir(root)?;
            create()
        }
        result => result,
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes its file when dropped, unless it is kept.
#[derive(Debug)]
pub struct FileGuard(Option<PathBuf>);

impl FileGuard {
    /// Leaves the file where it is.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for FileGuard {
    fn drop(&mut self) {
        let Some(path) = self.0.take() else { return };
        let remove = move || {
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "an unused file stays until the next start");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// A file in the making. Bytes are hashed and written on the blocking pool
/// while the next ones arrive.
#[derive(Debug)]
pub struct LocalWriter {
    path: PathBuf,
    guard: FileGuard,
    filling: BytesMut,
    state: State,
}

#[derive(Debug)]
enum State {
    Idle(Box<Sink>),
    Writing(JoinHandle<io::Result<Box<Sink>>>),
    /// A write failed.
    Broken,
}

#[derive(Debug)]
struct Sink {
    file: File,
    hasher: Hasher,
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes)
    }
}

impl LocalWriter {
    pub async fn create(path: PathBuf, hasher: Hasher) -> io::Result<Self> {
        let target = path.clone();
        // The guard is made where the file is made: if nobody waits for the
        // answer any more, dropping the answer removes the file.
        let (file, guard) = blocking(move || {
            let file = create_file(&target)?;
            Ok((file, FileGuard(Some(target))))
        })
        .await?;
        Ok(Self { path, guard, filling: BytesMut::new(), state: State::Idle(Box::new(Sink { file, hasher })) })
    }

    pub async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        self.filling.extend_from_slice(&bytes);
        if self.filling.len() >= CHUNK {
            let mut sink = self.sink().await?;
            let full = std::mem::replace(&mut self.filling, BytesMut::with_capacity(CHUNK + bytes.len())).freeze();
            self.state = State::Writing(tokio::task::spawn_blocking(move || {
                sink.write(&full)?;
                Ok(sink)
            }));
        }
        Ok(())
    }

    pub async fn finish(mut self) -> io::Result<(Checksums, FileGuard)> {
        let mut sink = self.sink().await?;
        let Self { path, guard, filling, .. } = self;
        blocking(move || {
            sink.write(&filling)?;
            sink.file.sync_all()?;
            if let Some(dir) = path.parent() {
                sync_dir(dir)?;
            }
            Ok((sink.hasher.finish(), guard))
        })
        .await
    }

    /// Waits for the write under way.
    async fn sink(&mut self) -> io::Result<Box<Sink>> {
        match std::mem::replace(&mut self.state, State::Broken) {
            State::Idle(sink) => Ok(sink),
            State::Writing(handle) => handle.await.map_err(io::Error::other)?,
            State::Broken => Err(io::Error::other("an earlier write failed")),
        }
    }
}
