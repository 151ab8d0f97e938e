//! Ends tasks that are too old, whatever they do.
//!
//! Looks once an hour, a bounded number of tasks at a time, and leaves the end
//! itself to the schedulers; of several replicas each sees to its own pools. Jobs that are over keep their tasks as they are.

use std::sync::Arc;
use std::time::Duration;

use kiln_time::Timestamp;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::domain::Error;
use crate::domain::task;
use crate::scheduler::note::{Command, Note};
use crate::scheduler::registry::Registry;
use crate::store::Store;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(60 * 60);
/// Tasks that are ended at once.
const PAGE: u32 = 500;

/// See the module.
#[derive(Debug)]
pub struct Aging {
    /// The tasks.
    pub store: Arc<dyn Store>,
    /// Who ends them.
    pub registry: Arc<Registry>,
    /// Tells how old they are.
    pub clock: Clock,
}

impl Aging {
    /// Works until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        loop {
            // Read before looking: what grows too old meanwhile is looked for when that time has passed, not later.
            let now = self.clock.now();
            let looked = tokio::select! {
                looked = self.look(now) => looked,
                () = shutdown.cancelled() => return,
            };
            match looked {
                Ok(0) => {}
                Ok(ended) => tracing::info!(ended, "tasks that were too old were ended"),
                Err(error) => {
                    tracing::warn!(%error, retry_in = ?EVERY, "tasks that are too old could not be looked for");
                }
            }
            tokio::select! {
                () = self.clock.sleep_until(now.plus(EVERY)) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Ends all that are too old at `now`; returns how many. What is just being
    /// changed otherwise is left for the next time.
    async fn look(&self, now: Timestamp) -> Result<usize, Error> {
        let before = task::oldest(now);
        let (mut after, mut ended) = (0, 0);
        loop {
            let page = self.store.old_tasks(before, after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(ended) };
            after = last.row;
            let mut answers = Vec::with_capacity(page.len());
            for old in page {
                // The replica that has the pool looks, too.
                if self.registry.is_shared() && self.registry.here(&old.account, &old.pool).is_none() {
                    continue;
                }
                let (reply, answer) = oneshot::channel();
                let command = Command { job: old.job, row: old.row, needs: old.facts.needs, answer: None, reply };
                self.registry.tell(&old.account, &old.pool, Note::Terminate(command)).await;
                answers.push(answer);
            }
            for answer in answers {
                ended += usize::from(matches!(answer.await, Ok(Ok(()))));
            }
        }
    }
}
