//! The loop that keeps the log in bounds and looks for missing events.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kiln_store::StoreError;
use kiln_time::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::config::Retention;
use crate::metrics::Metrics;
use crate::store::{Keep, Store};

/// An event that is missing for this long is worth a warning.
const GAP_WARN: Duration = Duration::from_secs(60);
/// After this long it is not waited for any more.
const GAP_ACCEPT: Duration = Duration::from_secs(3600);
/// Counters of jobs and pools that are idle are kept this many times longer.
const IDLE_FACTOR: u32 = 10;
/// Batches that one round deletes at most; the rest waits for the next round.
const ROUND_BATCHES: usize = 200;

/// See the module.
#[derive(Debug)]
pub struct Upkeep {
    /// What is kept in bounds.
    pub store: Arc<dyn Store>,
    /// The bounds.
    pub retention: Retention,
    /// What is counted.
    pub metrics: Metrics,
}

impl Upkeep {
    /// Runs until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut warned = HashMap::new();
        let interval = self.retention.interval.min(GAP_WARN);
        loop {
            let now = Timestamp::now();
            if let Err(error) = self.round(now, &mut warned, &shutdown).await {
                tracing::error!(%error, "the event log could not be tidied; the next round tries again");
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(interval) => {}
            }
        }
    }

    async fn round(
        &self,
        now: Timestamp,
        warned: &mut HashMap<String, i64>,
        shutdown: &CancellationToken,
    ) -> Result<(), StoreError> {
        self.look_for_gaps(now, warned).await?;
        let keep = Keep {
            since_micros: now.minus(self.retention.age).as_micros(),
            max_events: self.retention.max_events,
            idle_since_micros: now.minus(self.retention.age.saturating_mul(IDLE_FACTOR)).as_micros(),
        };
        for _ in 0..ROUND_BATCHES {
            let pruned = self.store.prune(keep).await?;
            self.metrics.pruned.inc_by(pruned.events as u64);
            if !pruned.more || shutdown.is_cancelled() {
                break;
            }
        }
        self.metrics.log_events.set(self.store.log().await?.events);
        Ok(())
    }

    async fn look_for_gaps(&self, now: Timestamp, warned: &mut HashMap<String, i64>) -> Result<(), StoreError> {
        let gaps = self.store.gaps().await?;
        let old = |age: Duration| now.minus(age).as_micros();
        let long: Vec<_> = gaps.into_iter().filter(|gap| gap.since_micros < old(GAP_WARN)).collect();
        self.metrics.gaps.set(i64::try_from(long.len()).unwrap_or(i64::MAX));
        warned.retain(|source, _| long.iter().any(|gap| gap.source == *source));
        for gap in long {
            let since = Timestamp::from_micros(gap.since_micros);
            if warned.insert(gap.source.clone(), gap.first_missing) != Some(gap.first_missing) {
                tracing::warn!(gap.source, gap.first_missing, gap.newest, %since, "events of a source are missing");
            }
            if gap.since_micros < old(GAP_ACCEPT) {
                self.metrics.gaps_accepted.inc();
                tracing::error!(gap.source, gap.first_missing, gap.newest, %since, "events never came; no longer waiting");
            }
        }
        self.store.accept_gaps(old(GAP_ACCEPT)).await?;
        Ok(())
    }
}
