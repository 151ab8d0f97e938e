//! Content of files, also of files that still grow.

use std::path::Path;

use bytes::{Bytes, BytesMut};
use kiln_proto::pool::v1::file_answer::Part;
use kiln_proto::pool::v1::{FileDone, ReadFile};
use nix::libc;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::sync::CancellationToken;

use super::resolve::{join, resolve};
use super::watch::{self, Watch};
use super::{Answer, FileFailure};
use crate::agent::Agent;

const PIECE: usize = 256 * 1024;

/// Sends a file's properties, then its content or the asked part of it. With
/// `follow` it goes on until the task that owns the file has ended and
/// everything was sent.
///
/// # Errors
/// As [`resolve`]; `InvalidRange` if the range begins behind the end.
pub async fn read(
    agent: &Agent,
    path: &str,
    options: &ReadFile,
    answer: &mut Answer,
    cancel: &CancellationToken,
) -> Result<(), FileFailure> {
    let (start, end) = options.range.as_ref().map_or((0, None), |range| (range.start, range.end));
    if end.is_some_and(|end| end < start) {
        return Err(FileFailure::new("InvalidRange", format!("the range {start}-{} is empty", end.unwrap_or(0))));
    }
    join(&agent.root, path)?;
    let Some((mut file, length)) = open(agent, path, options.follow, cancel).await? else { return Ok(()) };
    if options.range.is_some() && start >= length && !options.follow {
        let message = format!("the range begins at {start}, the file has {length} bytes");
        return Err(FileFailure::new("InvalidRange", message));
    }
    let failed = |error: std::io::Error| FileFailure::io(Path::new(path), &error);
    // Properties first, then bytes.
    let (root, asked) = (agent.root.clone(), path.to_owned());
    let entry = super::blocking(move || super::list::stat(&root, &asked)).await?;
    if !answer.send(Part::File(entry)).await {
        return Ok(());
    }
    file.seek(std::io::SeekFrom::Start(start)).await.map_err(failed)?;
    // Without `follow` what is written after the request is not sent.
    let mut left = match (end, options.follow) {
        (Some(end), _) => end.saturating_sub(start).saturating_add(1),
        (None, true) => u64::MAX,
        (None, false) => length.saturating_sub(start),
    };
    // Begun before the content is read: no change is missed.
    let mut watch = options.follow.then(|| Watch::of(&file));
    while left > 0 {
        // Both asked before the end is seen: what was written until then is sent.
        let ended = agent.ended.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        let live = options.follow && agent.is_live_path(path.trim_matches('/'));
        match piece(&mut file, left).await.map_err(failed)? {
            data if !data.is_empty() => {
                left -= data.len() as u64;
                if !answer.send(Part::Data(data)).await {
                    return Ok(());
                }
            }
            _ => {
                let Some(watch) = watch.as_mut().filter(|_| live) else { break };
                tokio::select! {
                    () = watch.changed() => {}
                    () = &mut ended => {}
                    () = cancel.cancelled() => return Ok(()),
                }
            }
        }
    }
    answer.send(Part::Done(FileDone {})).await;
    Ok(())
}

async fn piece(file: &mut File, left: u64) -> std::io::Result<Bytes> {
    let mut buffer = BytesMut::with_capacity(usize::try_from(left).unwrap_or(PIECE).min(PIECE));
    file.take(left.min(PIECE as u64)).read_buf(&mut buffer).await?;
    Ok(buffer.freeze())
}

/// The open file and its length. With `follow` it may appear later, for as
/// long as its task runs; `None` if the caller went away meanwhile.
async fn open(
    agent: &Agent,
    path: &str,
    follow: bool,
    cancel: &CancellationToken,
) -> Result<Option<(File, u64)>, FileFailure> {
    loop {
        let live = follow && agent.is_live_path(path.trim_matches('/'));
        match open_once(agent, path).await {
            Err(failure) if failure.reason == "FileNotFound" && live => {}
            result => return result.map(Some),
        }
        tokio::select! {
            () = watch::pause() => {}
            () = cancel.cancelled() => return Ok(None),
        }
    }
}

async fn open_once(agent: &Agent, path: &str) -> Result<(File, u64), FileFailure> {
    let (root, asked) = (agent.root.clone(), path.to_owned());
    let work = move || -> Result<(std::fs::File, u64), FileFailure> {
        use std::os::unix::fs::OpenOptionsExt;
        let real = resolve(&root, &asked)?;
        let failed = |error: std::io::Error| FileFailure::io(Path::new(&asked), &error);
        // Not blocked by a pipe, not led away by a link that took its place.
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
            .open(&real)
            .map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(FileFailure::new("IOError", format!("{asked:?} is not a regular file")));
        }
        Ok((file, metadata.len()))
    };
    let (file, length) =
        tokio::task::spawn_blocking(work).await.map_err(|error| FileFailure::new("IOError", error.to_string()))??;
    let mut file = File::from_std(file);
    file.set_max_buf_size(PIECE);
    Ok((file, length))
}
