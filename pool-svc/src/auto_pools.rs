//! Makes pools for jobs and schedules, and deletes them after their end.
//!
//! job-svc announces what is needed and what is over; every event about such a
//! job says its pool. Each announcement is answered by an event of ours, so
//! that job-svc, which announces again whatever was not answered, comes to
//! rest. What an announcement means is in
//! [`domain::auto_pool`](crate::domain::auto_pool); two who deal with the same
//! one meet at the record, which only one of them can write.

use std::sync::Arc;

use async_trait::async_trait;
use kiln_bus::QueueSpec;
use kiln_error::Error;
use kiln_proto::events::v1::event::Payload;
use kiln_proto::events::v1::{Event as WireEvent, JobChanged, JobScheduleChanged};
use kiln_proto::job::v1::{AutoPoolLifetime, JobScheduleState, JobState};
use kiln_proto::pool::v1::PoolSpec;
use kiln_store::inbox::Handler;
use kiln_time::Timestamp;

use crate::api;
use crate::core::Core;
use crate::domain::auto_pool::{AutoPool, AutoPoolState, Todo, Told, decide, failure_code};
use crate::domain::event::{AutoPoolFact, PoolFact};
use crate::domain::{Event, PoolName, PoolState};
use crate::store::{AutoPoolWrite, Change, PoolWrite, StoreError};

/// Announcements of job-svc that ask for an answer even if they were dealt with
/// before begin with this.
const ASKS: &str = "job.auto_pool.";

/// The queue of what job-svc announces.
pub fn queue() -> QueueSpec {
    QueueSpec {
        name: "pool.jobs".to_owned(),
        bindings: ["job.job.*", "job.schedule.*", "job.auto_pool.*"].map(str::to_owned).to_vec(),
        prefetch: 64,
    }
}

/// See the module.
#[derive(Debug)]
pub struct AutoPools {
    /// Shared with the calls.
    pub core: Arc<Core>,
}

/// What an event says of a pool.
struct Announced {
    name: PoolName,
    /// The job, or the schedule, it is for.
    owner: String,
    told: Told,
    spec: PoolSpec,
    /// An answer is wanted even if nothing is to be done.
    asks: bool,
}

#[async_trait]
impl Handler for AutoPools {
    type Error = Error;

    async fn take(&self, event: WireEvent) -> Result<(), Error> {
        match announced(&event) {
            Ok(Some(announced)) => self.deal_with(announced).await,
            Ok(None) => Ok(()),
            Err(error) => {
                tracing::error!(event.id, event.subject, %error, "an announcement of a pool cannot be used");
                Ok(())
            }
        }
    }
}

fn announced(event: &WireEvent) -> Result<Option<Announced>, Error> {
    let asks = event.r#type.starts_with(ASKS);
    match &event.payload {
        Some(Payload::Job(job)) => of_job(event, job, asks),
        Some(Payload::JobSchedule(schedule)) => of_schedule(event, schedule, asks),
        _ => Ok(None),
    }
}

fn of_job(event: &WireEvent, job: &JobChanged, asks: bool) -> Result<Option<Announced>, Error> {
    let Some(auto) = &job.auto_pool else { return Ok(None) };
    let name = api::pool_name(&event.account, "pool_id", &job.pool_id)?;
    let of_schedule = auto.lifetime() == AutoPoolLifetime::JobSchedule;
    let owner = if of_schedule { &job.job_schedule_id } else { &job.job_id };
    let ended = job.new_state() == JobState::Completed || event.r#type == "job.job.deleted";
    let told = match (&auto.pool, ended) {
        (_, true) if !of_schedule => Told::Over { keep: auto.keep_alive },
        // Only its creation says what the pool shall be like.
        (Some(_), false) => Told::Wanted,
        (_, true) | (None, false) => return Ok(None),
    };
    let spec = auto.pool.clone().unwrap_or_default();
    Ok(Some(Announced { name, owner: owner.clone(), told, spec, asks }))
}

fn of_schedule(event: &WireEvent, schedule: &JobScheduleChanged, asks: bool) -> Result<Option<Announced>, Error> {
    let ended = schedule.new_state() == JobScheduleState::Completed || event.r#type == "job.schedule.deleted";
    if schedule.pool_id.is_empty() || !ended {
        return Ok(None);
    }
    Ok(Some(Announced {
        name: api::pool_name(&event.account, "pool_id", &schedule.pool_id)?,
        owner: schedule.job_schedule_id.clone(),
        told: Told::Over { keep: schedule.keep_alive },
        spec: PoolSpec::default(),
        asks,
    }))
}

impl AutoPools {
    async fn deal_with(&self, announced: Announced) -> Result<(), Error> {
        let name = &announced.name;
        loop {
            let known = self.core.store.auto_pool(name).await?;
            let now = Timestamp::now();
            let todo = decide(known.as_ref().map(|known| known.state), announced.told);
            let written = match todo {
                Todo::Make => self.make(&announced, now).await,
                Todo::Delete => self.end(&announced, known, true, now).await,
                Todo::Release => self.end(&announced, known, false, now).await,
                Todo::Nothing => match known.filter(|_| announced.asks) {
                    Some(known) => self.answer_again(&announced, known, now).await,
                    None => Ok(()),
                },
            };
            match written {
                Ok(()) => return Ok(()),
                // Somebody else was faster: look again.
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn make(&self, announced: &Announced, now: Timestamp) -> Result<(), StoreError> {
        let name = &announced.name;
        let prepared = match self.core.store.pool(name).await? {
            // The id is generated: this is somebody's intention.
            Some(_) => Err(Error::invalid_property("id", &name.pool, "a pool with this id exists")),
            None => api::prepare(name, announced.spec.clone(), now),
        };
        let mut change = Change::new(name.clone(), now);
        match prepared {
            Ok((pool, events)) => {
                tracing::info!(account = %name.account, pool.id = %name.pool, owner = announced.owner, "auto pool");
                change.events = events;
                change.events.push(fact(announced, AutoPoolFact::Made, now));
                change.pool_write = Some(PoolWrite::Insert(pool));
                change.auto_pool = Some(AutoPoolWrite::Insert(record(announced, AutoPoolState::Made, now)));
            }
            Err(error) => {
                let (code, message) = (failure_code(&error).to_owned(), error.message().to_owned());
                tracing::warn!(account = %name.account, pool.id = %name.pool, owner = announced.owner, code, message,
                    "an auto pool could not be made");
                let failed = AutoPool {
                    failure: (code.clone(), message.clone()),
                    ..record(announced, AutoPoolState::Failed, now)
                };
                change.events.push(fact(announced, AutoPoolFact::Failed { code, message }, now));
                change.auto_pool = Some(AutoPoolWrite::Insert(failed));
            }
        }
        match self.core.commit(change).await {
            Ok(_) => {
                self.core.wakeups.wake(name.clone());
                Ok(())
            }
            // Made between our look and our write: look again.
            Err(StoreError::PoolExists) => Err(StoreError::Conflict),
            Err(error) => Err(error),
        }
    }

    async fn end(
        &self,
        announced: &Announced,
        known: Option<AutoPool>,
        delete: bool,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let name = &announced.name;
        let mut change = Change::new(name.clone(), now);
        let over = record(announced, AutoPoolState::Over, now);
        change.auto_pool = Some(match known {
            None => AutoPoolWrite::Insert(over),
            Some(known) => AutoPoolWrite::Replace { expected: known.state, with: over },
        });
        if delete
            && let Some(mut pool) = self.core.store.pool(name).await?.filter(|pool| pool.state == PoolState::Active)
        {
            tracing::info!(account = %name.account, pool.id = %name.pool, owner = announced.owner,
                "the owner of an auto pool has ended: the pool is deleted");
            // It is active, so it can be deleted.
            if pool.delete(now).is_ok() {
                change.events.push(Event::pool(&pool, PoolFact::Deleting, "its owner has ended", now));
                change.pool_write = Some(PoolWrite::Update(pool));
            }
        }
        change.events.push(fact(announced, AutoPoolFact::Released, now));
        self.core.commit(change).await?;
        self.core.wakeups.wake(name.clone());
        Ok(())
    }

    /// The answer to an earlier announcement was missed.
    async fn answer_again(&self, announced: &Announced, known: AutoPool, now: Timestamp) -> Result<(), StoreError> {
        let what = match known.state {
            AutoPoolState::Made => AutoPoolFact::Made,
            AutoPoolState::Failed => AutoPoolFact::Failed { code: known.failure.0, message: known.failure.1 },
            AutoPoolState::Over => AutoPoolFact::Released,
        };
        let mut change = Change::new(announced.name.clone(), now);
        change.events.push(fact(announced, what, now));
        self.core.commit(change).await.map(drop)
    }
}

fn record(announced: &Announced, state: AutoPoolState, now: Timestamp) -> AutoPool {
    AutoPool {
        name: announced.name.clone(),
        owner: announced.owner.clone(),
        state,
        failure: Default::default(),
        since: now,
    }
}

fn fact(announced: &Announced, what: AutoPoolFact, now: Timestamp) -> Event {
    Event::auto_pool(&announced.name, &announced.owner, what, now)
}
