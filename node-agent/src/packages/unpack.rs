//! A zip becomes a directory. The zip is nobody's friend: what it may do is in
//! [`crate::domain::packages`].
//!
//! Directories and files come first, links last, so nothing is ever written
//! through a link of the package itself. Everything here blocks.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use kiln_package::zip::{NotAZip, TAIL, directory};
use tokio_util::sync::CancellationToken;
use zip::ZipArchive;
use zip::result::ZipError;

use crate::domain::packages::{self, Allowance, Becomes, Refused};

/// Bytes that are unpacked between two looks at the clock of others.
const PIECE: usize = 256 * 1024;
/// Longest path that a link may have.
const MAX_LINK: u64 = 4096;
/// Everybody may look into a package.
const DIRECTORY_MODE: u32 = 0o755;

/// Why a zip did not become a directory.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It is none.
    #[error("the package is no zip: {0}")]
    NotAZip(#[from] NotAZip),
    /// It is one that this agent cannot read.
    #[error("the zip cannot be read: {0}")]
    Unreadable(String),
    /// It may not become what it wants to.
    #[error("the zip is refused: {0}")]
    Refused(#[from] Refused),
    /// Two of its entries are in each other's way.
    #[error("the zip is refused: entry {0:?} is there twice, or is also a directory")]
    Twice(String),
    /// The node cannot write it.
    #[error("{}: {error}", path.display())]
    Io {
        /// What was written.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The agent ends.
    #[error("the agent ends")]
    Stopped,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> UnpackError {
    move |error| UnpackError::Io { path: path.to_owned(), error }
}

fn unreadable(error: ZipError) -> UnpackError {
    match error {
        ZipError::Io(error) => UnpackError::Unreadable(format!("it is damaged ({error})")),
        other => UnpackError::Unreadable(other.to_string()),
    }
}

/// Unpacks `zip` into the new directory `into`; its bytes may become `limit`
/// together. What is there after a failure has to be removed.
///
/// # Errors
/// What is wrong with the zip, or with the node's disk.
pub fn unpack(zip: &Path, into: &Path, limit: u64, stop: &CancellationToken) -> Result<(), UnpackError> {
    let mut file = File::open(zip).map_err(io_error(zip))?;
    let length = check(&mut file).map_err(|error| match error {
        UnpackError::Io { error, .. } => UnpackError::Io { path: zip.to_owned(), error },
        other => other,
    })?;
    let mut archive = ZipArchive::new(io::BufReader::new(file)).map_err(unreadable)?;
    let mut allowance = Allowance::new(length, limit);
    make_directory(into).map_err(io_error(into))?;
    let mut links = Vec::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(unreadable)?;
        let name = entry.name().map_err(unreadable)?.into_owned();
        let becomes = packages::becomes(&name, entry.is_dir(), entry.unix_mode())?;
        let Some(relative) = packages::target(&name)? else { continue };
        let path = into.join(&relative);
        match becomes {
            Becomes::Directory => make_directories(into, &relative, &name)?,
            Becomes::File(mode) => {
                make_directories(into, relative.parent().unwrap_or(Path::new("")), &name)?;
                write_file(&mut entry, &path, mode, &mut allowance, stop)?;
            }
            Becomes::Link => {
                let mut to = String::new();
                let read = (&mut entry).take(MAX_LINK).read_to_string(&mut to);
                read.map_err(|error| UnpackError::Unreadable(format!("link {name:?}: {error}")))?;
                allowance.take(to.len() as u64)?;
                packages::check_link(&relative, &to)?;
                links.push((relative, to, name));
            }
        }
        if stop.is_cancelled() {
            return Err(UnpackError::Stopped);
        }
    }
    for (relative, to, name) in links {
        make_directories(into, relative.parent().unwrap_or(Path::new("")), &name)?;
        let path = into.join(relative);
        symlink(to, &path).map_err(|error| exists_or(error, &path, &name))?;
    }
    Ok(())
}

/// Looks at the end of the zip before its directory is read into memory; gives its length.
fn check(file: &mut File) -> Result<u64, UnpackError> {
    let here = Path::new("");
    let length = file.seek(SeekFrom::End(0)).map_err(io_error(here))?;
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).map_err(io_error(here))?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail).map_err(io_error(here))?;
    directory(length, &tail)?;
    file.rewind().map_err(io_error(here))?;
    Ok(length)
}

fn write_file(
    from: &mut impl Read,
    path: &Path,
    mode: u32,
    allowance: &mut Allowance,
    stop: &CancellationToken,
) -> Result<(), UnpackError> {
    let name = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let made = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let file = made.map_err(|error| exists_or(error, path, &name()))?;
    // Whatever the umask is.
    file.set_permissions(Permissions::from_mode(mode)).map_err(io_error(path))?;
    let mut file = BufWriter::with_capacity(PIECE, file);
    let mut piece = vec![0; PIECE];
    loop {
        let read = from.read(&mut piece).map_err(|error| UnpackError::Unreadable(format!("{:?}: {error}", name())))?;
        if read == 0 {
            return file.flush().map_err(io_error(path));
        }
        allowance.take(read as u64)?;
        file.write_all(&piece[..read]).map_err(io_error(path))?;
        if stop.is_cancelled() {
            return Err(UnpackError::Stopped);
        }
    }
}

fn exists_or(error: io::Error, path: &Path, name: &str) -> UnpackError {
    match error.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::IsADirectory => UnpackError::Twice(name.to_owned()),
        _ => io_error(path)(error),
    }
}

/// Makes `relative` below `base`, each part of it a directory and no link.
fn make_directories(base: &Path, relative: &Path, name: &str) -> Result<(), UnpackError> {
    let mut path = base.to_owned();
    for part in relative.components() {
        path.push(part);
        match make_directory(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !std::fs::symlink_metadata(&path).map_err(io_error(&path))?.is_dir() {
                    return Err(UnpackError::Twice(name.to_owned()));
                }
            }
            Err(error) => return Err(io_error(&path)(error)),
        }
    }
    Ok(())
}

/// Makes one directory that everybody may look into, whatever the umask is.
pub fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(DIRECTORY_MODE).create(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(DIRECTORY_MODE))
}

#[cfg(test)]
mod tests;
