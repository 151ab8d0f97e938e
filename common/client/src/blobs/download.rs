//! Blobs into files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use kiln_proto::storage::v1::Blob;
use tempfile::NamedTempFile;
use tonic::Code;

use super::{BLOCK, PARALLEL, Place, TransferError, Transfers, file_md5, with_file};

/// Bytes of one part of a large blob.
const PART: u64 = 2 * BLOCK;
/// Bytes that are collected before they are written.
const PIECE: usize = 512 * 1024;
/// How often a blob may change while it is read.
const VERSIONS: usize = 3;

impl Transfers {
    /// Reads the blob into `file`, which is replaced when all bytes are there and right;
    /// `progress` learns of bytes as they come. Gives the version that was read.
    ///
    /// # Errors
    /// If `file` cannot be written, what the service said, or wrong content.
    pub async fn download(
        &self,
        place: &Place,
        file: &Path,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Blob, TransferError> {
        let mut versions = VERSIONS;
        loop {
            let blob = self.blob(place).await?;
            match self.download_version(&blob, file, progress).await {
                Ok(()) => return Ok(blob),
                Err(error) if !has_changed(&error) || versions == 0 => return Err(error),
                Err(_) => versions -= 1,
            }
        }
    }

    async fn download_version(
        &self,
        blob: &Blob,
        file: &Path,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(), TransferError> {
        // Beside the file, so that the rename stays in one file system; its name cannot be foreseen.
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let directory = parent.to_owned();
        let (temporary, target) = with_file(file, move || {
            let temporary = NamedTempFile::with_prefix_in(".kiln-", directory)?;
            let target = Arc::new(temporary.as_file().try_clone()?);
            Ok((temporary, target))
        })
        .await?;
        let starts = (0..blob.content_length).step_by(usize::try_from(PART).unwrap_or(usize::MAX));
        futures::stream::iter(starts)
            .map(|start| self.part(blob, start, target.clone(), file, progress))
            .buffer_unordered(PARALLEL)
            .try_collect::<()>()
            .await?;
        let (expected, path, name) =
            (blob.content_md5.clone(), file.to_owned(), Place::new(&blob.container, &blob.name));
        let whole = with_file(file, move || {
            if !expected.is_empty() && expected != file_md5(temporary.path())? {
                return Ok(false);
            }
            use std::os::unix::fs::PermissionsExt;
            // As any new file; temporary ones are private.
            temporary.as_file().set_permissions(std::fs::Permissions::from_mode(0o666 & !umask()))?;
            temporary.persist(path).map_err(|error| error.error)?;
            Ok(true)
        })
        .await?;
        if whole {
            return Ok(());
        }
        Err(TransferError::Content(format!("{name}: the bytes that came do not fit the blob's MD5")))
    }

    async fn part(
        &self,
        blob: &Blob,
        start: u64,
        target: Arc<File>,
        file: &Path,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(), TransferError> {
        let mut reader = self.read_range(blob, start, start + PART);
        let (mut at, mut collected) = (start, Vec::new());
        loop {
            let piece = reader.next().await?;
            let ended = piece.is_none();
            if let Some(piece) = piece {
                progress(piece.len() as u64);
                collected.extend_from_slice(&piece);
            }
            if collected.len() >= PIECE || (ended && !collected.is_empty()) {
                let (bytes, target) = (std::mem::take(&mut collected), target.clone());
                let length = bytes.len() as u64;
                with_file(file, move || target.write_all_at(&bytes, at)).await?;
                at += length;
            }
            if ended {
                return Ok(());
            }
        }
    }
}

/// Another version took the place of the one that was read.
fn has_changed(error: &TransferError) -> bool {
    match error {
        TransferError::Service { status, .. } => {
            let condition = kiln_error::Error::from((**status).clone()).kind() == kiln_error::Kind::ConditionNotMet;
            condition || status.code() == Code::OutOfRange
        }
        _ => false,
    }
}

/// What new files of this process are not allowed; reading it alone is not possible
/// without changing it for a moment, so the kernel's own report is read.
fn umask() -> u32 {
    const DEFAULT: u32 = 0o022;
    let read = || -> io::Result<Option<u32>> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        Ok(line.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()))
    };
    read().ok().flatten().unwrap_or(DEFAULT)
}
