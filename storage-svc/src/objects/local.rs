//! Durable files: data, then the file, then its directory is flushed; and the
//! directories above it when they are made. `docs/storage.md` tells the order.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use tokio::task::JoinHandle;

use super::{Checksums, Pipe, SHARDS, blocking};
use crate::domain::model::ObjectKey;

/// Bytes that go to the disk in one call. Two of these are in memory per
/// upload: one that fills, one that is being written.
const CHUNK: usize = 1024 * 1024;

/// What is written survives this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// The loss of power.
    #[default]
    PowerLoss,
    /// The death of the process, not of the machine: nothing is flushed.
    ProcessDeath,
}

/// The directory of all files.
#[derive(Debug)]
pub(super) struct Directory {
    root: PathBuf,
    durability: Durability,
    /// Directories whose names in `root` are known to be flushed. One that is
    /// there may have been made a moment ago by somebody who has not flushed it
    /// yet; so each process sees to each of them once.
    flushed: [AtomicBool; SHARDS as usize],
}

impl Directory {
    /// Makes `root`, durably, for its owner alone: blobs must not be open to others
    /// on the machine, whatever the mode of the data directory is. The directories
    /// below it come when they are needed: a deployment that lives for one run makes
    /// and removes few.
    ///
    /// # Errors
    /// If it cannot be made or flushed.
    pub fn prepare(root: PathBuf, durability: Durability) -> io::Result<Self> {
        create_dirs(&root, durability)?;
        if fs::metadata(&root)?.permissions().mode() & 0o077 != 0 {
            fs::set_permissions(&root, fs::Permissions::from_mode(0o700))?;
        }
        let directory = Self { root, durability, flushed: std::array::from_fn(|_| AtomicBool::new(false)) };
        let there: Vec<u64> =
            (0..SHARDS).filter(|shard| directory.root.join(format!("{shard:02x}")).is_dir()).collect();
        directory.flush(&directory.root)?;
        for shard in there {
            directory.flushed[shard as usize].store(true, Ordering::Release);
        }
        Ok(directory)
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A new file. When this returns, the way to its directory is durable.
    fn create_file(&self, shard: u64, path: &Path) -> io::Result<File> {
        let create = || OpenOptions::new().write(true).create_new(true).open(path);
        let known = &self.flushed[shard as usize];
        let file = match create() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match fs::create_dir(self.root.join(format!("{shard:02x}"))) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    result => result?,
                }
                known.store(false, Ordering::Release);
                create()?
            }
            result => result?,
        };
        if !known.load(Ordering::Acquire) {
            self.flush(&self.root)?;
            known.store(true, Ordering::Release);
        }
        Ok(file)
    }

    fn flush(&self, dir: &Path) -> io::Result<()> {
        match self.durability {
            Durability::PowerLoss => sync_dir(dir),
            Durability::ProcessDeath => Ok(()),
        }
    }
}

/// Makes `dir` and what is missing above it. Each new name is flushed in the
/// directory that has it.
///
/// # Errors
/// If a directory cannot be made or flushed.
pub fn create_dirs(dir: &Path, durability: Durability) -> io::Result<()> {
    if dir.as_os_str().is_empty() || dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        create_dirs(parent, durability)?;
    }
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        result => result?,
    }
    match durability {
        Durability::PowerLoss => sync_dir(parent.unwrap_or(Path::new("."))),
        Durability::ProcessDeath => Ok(()),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes its file when dropped, unless it is kept.
#[derive(Debug)]
pub(super) struct FileGuard(Option<PathBuf>);

impl FileGuard {
    /// Leaves the file where it is.
    pub(super) fn keep(mut self) {
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
pub(super) struct LocalWriter {
    directory: Arc<Directory>,
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
    pipe: Pipe,
}

impl Sink {
    fn write(&mut self, bytes: &Bytes) -> io::Result<()> {
        let bytes = self.pipe.pass(bytes)?;
        self.file.write_all(&bytes)
    }
}

impl LocalWriter {
    pub(super) async fn create(
        directory: &Arc<Directory>,
        shard: u64,
        key: &ObjectKey,
        pipe: Pipe,
    ) -> io::Result<Self> {
        let path = directory.root.join(&key.0);
        let (target, directory) = (path.clone(), directory.clone());
        let place = directory.clone();
        // The guard is made where the file is made: if nobody waits for the
        // answer any more, dropping the answer removes the file.
        let (file, guard) = blocking(move || {
            let file = place.create_file(shard, &target)?;
            Ok((file, FileGuard(Some(target))))
        })
        .await?;
        let state = State::Idle(Box::new(Sink { file, pipe }));
        Ok(Self { directory, path, guard, filling: BytesMut::new(), state })
    }

    pub(super) async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
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

    pub(super) async fn finish(mut self) -> io::Result<(Checksums, FileGuard)> {
        let mut sink = self.sink().await?;
        let Self { directory, path, guard, filling, .. } = self;
        blocking(move || {
            sink.write(&filling.freeze())?;
            let Sink { mut file, pipe } = *sink;
            let (last, checksums) = pipe.finish()?;
            file.write_all(&last)?;
            if directory.durability == Durability::PowerLoss {
                file.sync_all()?;
            }
            if let Some(dir) = path.parent() {
                directory.flush(dir)?;
            }
            Ok((checksums, guard))
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
