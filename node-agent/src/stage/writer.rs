//! Bytes of a download on their way into a file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::BytesMut;
use md5::{Digest, Md5};
use tokio::task::JoinHandle;

/// Bytes are written in pieces of about this size. Two of them are in memory: one is
/// written while the next one comes in.
const PIECE: usize = 512 * 1024;

/// Writes consecutive bytes on the threads for blocking work, and computes their MD5 there.
#[derive(Debug)]
pub struct Writer {
    file: Arc<File>,
    /// Where the bytes in `buffer` begin.
    start: u64,
    buffer: BytesMut,
    md5: Option<Md5>,
    writing: Option<JoinHandle<io::Result<Option<Md5>>>>,
}

impl Writer {
    /// Writes to `file` from `start` on; `md5` continues with these bytes.
    pub fn new(file: Arc<File>, start: u64, md5: Option<Md5>) -> Self {
        Self { file, start, buffer: BytesMut::new(), md5, writing: None }
    }

    /// Where the next byte goes.
    pub fn position(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// Bytes given before could not be written.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() < PIECE {
            return Ok(());
        }
        self.settle().await?;
        let (file, piece, at, mut md5) = (self.file.clone(), self.buffer.split().freeze(), self.start, self.md5.take());
        self.start += piece.len() as u64;
        self.writing = Some(tokio::task::spawn_blocking(move || {
            file.write_all_at(&piece, at)?;
            if let Some(md5) = &mut md5 {
                md5.update(&piece);
            }
            Ok(md5)
        }));
        Ok(())
    }

    /// Writes what is left; gives the MD5 if it was asked for.
    ///
    /// # Errors
    /// Bytes could not be written.
    pub async fn finish(mut self) -> io::Result<Option<[u8; 16]>> {
        self.settle().await?;
        let Self { file, start, buffer, mut md5, .. } = self;
        blocking(move || {
            file.write_all_at(&buffer, start)?;
            if let Some(md5) = &mut md5 {
                md5.update(&buffer);
            }
            Ok(md5.map(|md5| md5.finalize().into()))
        })
        .await
    }

    async fn settle(&mut self) -> io::Result<()> {
        if let Some(writing) = self.writing.take() {
            self.md5 = writing.await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
        }
        Ok(())
    }
}

/// Runs `work` on a thread for blocking work.
///
/// # Errors
/// That of `work`.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_land_where_they_belong() {
        let file = tempfile::tempfile().unwrap();
        let file = Arc::new(file);
        let mut expected = vec![0_u8; 7];
        let mut writer = Writer::new(file.clone(), 7, Some(Md5::new()));
        let mut md5 = Md5::new();
        for number in 0_u32..300 {
            let piece = vec![number as u8; 10_007];
            writer.write(&piece).await.unwrap();
            md5.update(&piece);
            expected.extend_from_slice(&piece);
        }
        assert_eq!(writer.position(), expected.len() as u64);
        assert_eq!(writer.finish().await.unwrap(), Some(md5.finalize().into()));
        let mut written = vec![0; expected.len()];
        file.read_exact_at(&mut written, 0).unwrap();
        assert!(written == expected);
        assert_eq!(file.metadata().unwrap().len(), expected.len() as u64);
    }
}
