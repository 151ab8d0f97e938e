//! Work behind the callers' backs: bytes that nobody needs any more.
//!
//! - [`collect`] removes garbage (the rows were committed with the change that
//!   made it), aborts uploads in parts that were left half-way, and lets the
//!   catalogue tidy up; safe to repeat after a crash, and for several at once.
//! - [`sweep`] removes objects that an earlier process wrote but never named in
//!   a row; objects of this process are told apart by their keys. Where other
//!   processes live, an object must be old: a writer names its object within half
//!   an hour or not at all ([`crate::objects::Written::is_fresh`]), and a sweep
//!   takes it after an hour.

use std::time::Duration;

use futures::TryStreamExt;
use kiln_time::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::service::Storage;

/// An object of another replica that no row names is given up when nobody has
/// written to it for so long. Uploads that stand still are ended much sooner.
pub const ABANDONED: Duration = Duration::from_secs(3600);
/// Objects removed between two writes to the catalogue.
const BATCH: usize = 256;

/// Runs until `shutdown`. Bytes stay for `grace` after their last row, so that
/// readers that are on their way can finish.
pub async fn collect(storage: Storage, interval: Duration, grace: Duration, shutdown: CancellationToken) {
    loop {
        match collect_some(&storage, Timestamp::now(), grace).await {
            Ok(true) if !shutdown.is_cancelled() => continue,
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "garbage could not be collected; trying again later"),
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// One round; `true` if more is waiting.
///
/// # Errors
/// If catalogue or objects fail; what is left comes next time.
pub async fn collect_some(storage: &Storage, now: Timestamp, grace: Duration) -> anyhow::Result<bool> {
    let waiting = storage.catalogue().tidy(now).await?;
    let garbage = storage.catalogue().garbage(now.minus(grace), BATCH).await?;
    let full = garbage.len() == BATCH;
    for object in &garbage {
        storage.objects().delete(object).await?;
        storage.metrics().collected.inc();
    }
    if !garbage.is_empty() {
        tracing::debug!(objects = garbage.len(), "garbage collected");
        storage.catalogue().forget_garbage(garbage).await?;
    }
    abort_left(storage, now).await?;
    Ok(waiting || full)
}

/// Ends uploads in parts whose process is gone: one that lives renews its note.
async fn abort_left(storage: &Storage, now: Timestamp) -> anyhow::Result<()> {
    for upload in storage.catalogue().open_uploads(now.minus(ABANDONED), BATCH).await? {
        storage.objects().abort(&upload).await?;
        storage.metrics().orphans.inc();
        tracing::info!(object = upload.object.0, "an upload that was left half-way is aborted");
    }
    Ok(())
}

/// Removes what interrupted uploads of other processes left, if it was not
/// written to for `age` by this machine's clock; gives how many.
///
/// # Errors
/// If catalogue or objects fail; the next start tries again.
pub async fn sweep(storage: &Storage, age: Duration) -> anyhow::Result<usize> {
    let mut batches = storage.objects().earlier(BATCH, Timestamp::now().minus(age));
    let mut removed = 0;
    while let Some(batch) = batches.try_next().await? {
        let known = storage.catalogue().known(batch.clone()).await?;
        for object in batch.iter().filter(|object| !known.contains(object)) {
            storage.objects().delete(object).await?;
            storage.metrics().orphans.inc();
            removed += 1;
        }
    }
    if removed > 0 {
        tracing::info!(objects = removed, "bytes of interrupted uploads removed");
    }
    Ok(removed)
}
