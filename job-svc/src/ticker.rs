//! Has every schedule do what is due, when it is due.
//!
//! Sleeps until the next look that a schedule asked for, or until a schedule
//! was changed or a job of one has ended. What a step does is decided and
//! written by the store in one transaction; here only the schedulers of the
//! jobs are told, who would otherwise find them at the next start.

use std::sync::Arc;
use std::time::Duration;

use kiln_time::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::domain::Error;
use crate::scheduler::note::Note;
use crate::scheduler::registry::Registry;
use crate::store::ScheduleStore;
use crate::store::schedules::Stepped;

/// Schedules that are read at once.
const PAGE: u32 = 100;
/// Schedules are looked for this often even if none asked for it: the clock on
/// the wall may have been set.
const SCAN: Duration = Duration::from_secs(30);
/// A schedule whose step fails is left alone for this long.
const POSTPONE: Duration = Duration::from_secs(30);
/// First and longest wait after the store failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// See the module.
#[derive(Debug, Clone)]
pub struct Ticker {
    /// The schedules.
    pub store: Arc<dyn ScheduleStore>,
    /// The schedulers of their jobs.
    pub registry: Arc<Registry>,
    /// The time they go by.
    pub clock: Clock,
}

impl Ticker {
    /// Works until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let changed = self.store.schedules_changed();
        let mut wait = RETRY.0;
        loop {
            let looked = tokio::select! {
                looked = self.look() => looked,
                () = shutdown.cancelled() => return,
            };
            match looked {
                Ok(next) => {
                    wait = RETRY.0;
                    let latest = self.clock.now().plus(SCAN);
                    tokio::select! {
                        // A change while we looked has left its mark here.
                        () = changed.notified() => {}
                        () = self.clock.sleep_until(next.unwrap_or(latest).min(latest)) => {}
                        () = shutdown.cancelled() => return,
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, retry_in = ?wait, "the job schedules could not be read");
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = shutdown.cancelled() => return,
                    }
                    wait = (wait * 2).min(RETRY.1);
                }
            }
        }
    }

    /// Does everything that is due; returns when something will be.
    async fn look(&self) -> Result<Option<Timestamp>, Error> {
        loop {
            let due = self.store.due_schedules(self.clock.now(), PAGE).await?;
            if due.is_empty() {
                return self.store.next_look().await;
            }
            for row in due {
                let now = self.clock.now();
                match self.store.step_schedule(row, now).await {
                    Ok(stepped) => self.tell(stepped).await,
                    Err(error) => {
                        tracing::error!(row, %error, retry_in = ?POSTPONE, "a job schedule cannot do what is due");
                        self.store.postpone_schedule(row, now.plus(POSTPONE)).await?;
                    }
                }
            }
        }
    }

    async fn tell(&self, stepped: Stepped) {
        if let Some(schedule) = &stepped.schedule {
            tracing::debug!(
                account = %schedule.account, job_schedule.id = %schedule.id, state = schedule.life.state.name(),
                created = schedule.life.created, "a job schedule was looked at"
            );
        }
        for job in stepped.jobs {
            tracing::info!(
                account = %job.account, job.id = %job.job, pool.id = %job.pool, state = job.life.state.name(),
                "a job schedule created or changed its job"
            );
            self.registry.tell(&job.account, &job.pool, Note::JobChanged(job.row)).await;
        }
    }
}
