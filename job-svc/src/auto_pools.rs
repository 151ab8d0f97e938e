//! What job-svc has to do with pool-svc about pools that jobs bring along:
//! announce again what was not answered, and take the answers in.
//!
//! The first announcement is the event of the job itself. Answers come over the
//! bus, too; the one that matters is that a pool could not be made, which ends
//! the job that waits for it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kiln_bus::QueueSpec;
use kiln_ids::{AccountName, PoolId};
use kiln_proto::events::v1::Event;
use kiln_proto::events::v1::event::Payload;
use kiln_store::inbox::Handler;
use kiln_time::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::domain::Error;
use crate::scheduler::note::Note;
use crate::scheduler::registry::Registry;
use crate::store::AutoPoolStore;
use crate::store::auto_pools::PoolAnswer;

/// Pools that are announced again in one transaction.
const PAGE: u32 = 100;
/// What is to be announced is looked for at least this often. New ones are not
/// due before.
const SCAN: Duration = Duration::from_secs(30);

/// The queue of what pool-svc answers.
pub fn queue() -> QueueSpec {
    QueueSpec { name: "job.pools".to_owned(), bindings: vec!["pool.auto_pool.*".to_owned()], prefetch: 64 }
}

/// Announces again what was not answered, until `shutdown`.
pub async fn announce(store: Arc<dyn AutoPoolStore>, clock: Clock, shutdown: CancellationToken) {
    loop {
        let now = clock.now();
        let next = match announce_due(&*store, now).await {
            Ok(next) => next.unwrap_or(now.plus(SCAN)).min(now.plus(SCAN)),
            Err(error) => {
                tracing::warn!(%error, "pools of jobs could not be announced again");
                now.plus(SCAN)
            }
        };
        tokio::select! {
            () = clock.sleep_until(next) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn announce_due(store: &dyn AutoPoolStore, now: Timestamp) -> Result<Option<Timestamp>, Error> {
    loop {
        let count = store.announce_auto_pools(now, PAGE).await?;
        if count > 0 {
            tracing::info!(count, "pools of jobs are announced again: pool-svc has not answered");
        }
        if count < PAGE as usize {
            return store.next_announcement().await;
        }
    }
}

/// Takes the answers in.
#[derive(Debug)]
pub struct Answers {
    /// Pools and their jobs.
    pub store: Arc<dyn AutoPoolStore>,
    /// The schedulers of the jobs.
    pub registry: Arc<Registry>,
}

#[async_trait]
impl Handler for Answers {
    type Error = Error;

    async fn take(&self, event: Event) -> Result<(), Error> {
        let (pool, answer) = match (event.r#type.as_str(), event.payload) {
            ("pool.auto_pool.made", Some(Payload::Pool(changed))) => (changed.pool_id, PoolAnswer::Made),
            ("pool.auto_pool.released", Some(Payload::Pool(changed))) => (changed.pool_id, PoolAnswer::Released),
            ("pool.auto_pool.failed", Some(Payload::AutoPoolFailed(failed))) => {
                (failed.pool_id, PoolAnswer::Failed(failed.failure.unwrap_or_default()))
            }
            _ => {
                tracing::error!(event.id, event.r#type, "an answer about a pool cannot be used");
                return Ok(());
            }
        };
        let (Ok(account), Ok(pool)) = (AccountName::parse(&event.account), PoolId::parse(&pool)) else {
            tracing::error!(event.id, event.account, pool.id = pool, "an answer about a pool names none");
            return Ok(());
        };
        if let PoolAnswer::Failed(failure) = &answer {
            tracing::warn!(%account, pool.id = %pool, failure.code, failure.message, "the pool of a job was not made");
        }
        if let Some(job) = self.store.auto_pool_answered(&account, &pool, answer, Timestamp::now()).await? {
            self.registry.tell(&account, &job.pool, Note::JobChanged(job.row)).await;
        }
        Ok(())
    }
}
