//! When a schedule creates its jobs, and the state machine of a schedule.
//!
//! | state \ event | enable | disable | terminate | delete | update |
//! |---|---|---|---|---|---|
//! | active | active | disabled | terminating | deleting | yes |
//! | disabled | active | `JobScheduleDisabled` | terminating | deleting | yes |
//! | terminating | `JobScheduleBeingTerminated` | same | same | deleting | same |
//! | completed | `JobScheduleCompleted` | same | same | deleting | same |
//! | deleting | `JobScheduleBeingDeleted` | same | same | same | same |
//!
//! Occurrences are due at `next`, `next + interval`, and so on. A schedule has
//! at most one active job: an occurrence that finds one waits for its end, and
//! so does one that found nobody at work (the service was down, the schedule
//! disabled). Due jobs do not queue up: only the latest occurrence counts, the
//! ones before it are lost; and with a start window it is lost, too, when it
//! has waited longer. [`plan`] says what to do at one moment and when to look
//! again; nothing is remembered of occurrences that were lost.

use std::time::Duration;

use kiln_ids::{InvalidId, JobId};
use kiln_time::Timestamp;

use super::Error;

/// Reason of a job that ended because its schedule was terminated.
pub const REASON_SCHEDULE: &str = "TerminateJobSchedule";
/// Shortest interval, and shortest start window.
pub const MIN_INTERVAL: Duration = Duration::from_secs(60);

/// The id of a schedule: one that could be a job's, since both share one name
/// space. The jobs it creates have it before a colon.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ScheduleId(JobId);

impl ScheduleId {
    /// Checks length and characters.
    ///
    /// # Errors
    /// What is wrong with the text; `None` if it has a colon or is too long for
    /// an id that a user chooses.
    pub fn parse(text: &str) -> Result<Self, Option<InvalidId>> {
        match JobId::parse(text) {
            Ok(id) if id.is_user_choice() => Ok(Self(id)),
            Ok(_) => Err(None),
            Err(why) => Err(Some(why)),
        }
    }

    /// The schedule that created this job; `None` for other jobs.
    pub fn of_job(job: &JobId) -> Option<Self> {
        let (schedule, _) = job.as_str().split_once(':')?;
        Self::parse(schedule).ok()
    }

    /// The same text as a job's id.
    pub fn as_job(&self) -> &JobId {
        &self.0
    }

    /// As its creator wrote it.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The lower-case form that identifies the record.
    pub fn key(&self) -> std::borrow::Cow<'_, str> {
        self.0.key()
    }

    /// What the keys of its jobs begin with.
    pub fn job_prefix(&self) -> String {
        format!("{}:", self.key())
    }

    /// The id of its job number `number`.
    ///
    /// # Errors
    /// If that is no id, which cannot be: 64 characters and a number fit.
    pub fn job(&self, number: u64) -> Result<JobId, InvalidId> {
        JobId::parse(&format!("{}:job-{number}", self.0))
    }
}

impl std::fmt::Display for ScheduleId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// When jobs are to be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timing {
    /// Nothing is due before.
    pub not_before: Option<Timestamp>,
    /// From this moment on nothing is created.
    pub not_after: Option<Timestamp>,
    /// How long an occurrence may wait.
    pub window: Option<Duration>,
    /// Between two occurrences; absent means a single one.
    pub interval: Option<Duration>,
}

impl Timing {
    fn first(&self, now: Timestamp) -> Timestamp {
        self.not_before.map_or(now, |start| start.max(now))
    }

    /// A window above the interval never ends: the next occurrence comes first.
    fn waits(&self, due: Timestamp, now: Timestamp) -> bool {
        let longer = |window: &Duration| self.interval.is_some_and(|interval| *window > interval);
        self.window.filter(|window| !longer(window)).is_none_or(|window| now <= due.plus(window))
    }

    /// The latest occurrence at or before `now`, if `next` is not after it.
    fn latest(&self, next: Timestamp, now: Timestamp) -> Option<Timestamp> {
        if next > now {
            return None;
        }
        match self.interval {
            None => Some(next),
            Some(interval) => Some(next.plus(steps(interval, now.since(next).as_micros() / micros(interval)))),
        }
    }

    fn over(&self, now: Timestamp) -> bool {
        self.not_after.is_some_and(|end| now >= end)
    }

    fn sooner(&self, at: Option<Timestamp>) -> Option<Timestamp> {
        [at, self.not_after].into_iter().flatten().min()
    }
}

fn micros(interval: Duration) -> u128 {
    interval.as_micros().max(1)
}

fn steps(interval: Duration, count: u128) -> Duration {
    let micros = interval.as_micros().saturating_mul(count);
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}

/// Where a schedule stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduleState {
    /// Creates jobs on time.
    Active,
    /// Creates none; a job that runs goes on.
    Disabled,
    /// Its job is being terminated.
    Terminating,
    /// Over.
    Completed,
    /// It and its jobs are being removed.
    Deleting,
}

impl ScheduleState {
    /// The state's name on the wire of Azure Batch.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabled => "disabled",
            Self::Terminating => "terminating",
            Self::Completed => "completed",
            Self::Deleting => "deleting",
        }
    }
}

/// What happens to a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduleEvent {
    /// Create jobs again.
    Enable,
    /// Create no jobs.
    Disable,
    /// End it and its job.
    Terminate,
    /// Remove it and its jobs.
    Delete,
    /// A job was created for the occurrence that was due then.
    Created(Timestamp),
    /// No job will be created any more, and none is active.
    Ended,
}

/// The history of a schedule, as its record shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScheduleLife {
    /// Where it stands.
    pub state: ScheduleState,
    /// Since when.
    pub since: Timestamp,
    /// The state before, and since when it was in that.
    pub previous: Option<(ScheduleState, Timestamp)>,
    /// When it ended.
    pub end: Option<Timestamp>,
    /// The first occurrence that no job was created for; absent when there is
    /// none any more. The latest that is due counts, which may be a later one.
    pub next: Option<Timestamp>,
    /// When the latest job was due.
    pub last: Option<Timestamp>,
    /// Jobs created so far.
    pub created: u64,
}

impl ScheduleLife {
    /// A schedule that was just created.
    pub fn new(timing: &Timing, now: Timestamp) -> Self {
        Self {
            state: ScheduleState::Active,
            since: now,
            previous: None,
            end: None,
            next: Some(timing.first(now)),
            last: None,
            created: 0,
        }
    }

    /// The schedule after `event`.
    ///
    /// # Errors
    /// Why the event does not apply.
    pub fn apply(&self, timing: &Timing, event: ScheduleEvent, now: Timestamp) -> Result<Self, Error> {
        use ScheduleEvent as E;
        use ScheduleState as S;
        match (self.state, event) {
            (S::Deleting, _) => Err(Error::JobScheduleBeingDeleted),
            (S::Active | S::Disabled | S::Terminating | S::Completed, E::Delete) => Ok(self.enter(S::Deleting, now)),
            (S::Terminating, E::Enable | E::Disable | E::Terminate | E::Created(_)) => {
                Err(Error::JobScheduleBeingTerminated)
            }
            (S::Completed, E::Enable | E::Disable | E::Terminate | E::Created(_) | E::Ended) => {
                Err(Error::JobScheduleCompleted)
            }
            (S::Active, E::Enable) => Ok(*self),
            (S::Disabled, E::Enable) => Ok(self.enter(S::Active, now)),
            (S::Active, E::Disable) => Ok(self.enter(S::Disabled, now)),
            (S::Disabled, E::Disable | E::Created(_)) => Err(Error::JobScheduleDisabled),
            (S::Active | S::Disabled, E::Terminate) => Ok(self.enter(S::Terminating, now)),
            (S::Active, E::Created(due)) => Ok(Self {
                next: timing.interval.map(|interval| due.plus(interval)),
                last: Some(due),
                created: self.created + 1,
                ..*self
            }),
            (S::Active | S::Disabled | S::Terminating, E::Ended) => {
                Ok(Self { end: Some(now), next: None, ..self.enter(S::Completed, now) })
            }
        }
    }

    fn enter(&self, state: ScheduleState, now: Timestamp) -> Self {
        Self { state, since: now, previous: Some((self.state, self.since)), ..*self }
    }

    /// Whether its settings may be changed.
    ///
    /// # Errors
    /// Why not.
    pub fn check_update(&self) -> Result<(), Error> {
        match self.state {
            ScheduleState::Active | ScheduleState::Disabled => Ok(()),
            ScheduleState::Terminating => Err(Error::JobScheduleBeingTerminated),
            ScheduleState::Completed => Err(Error::JobScheduleCompleted),
            ScheduleState::Deleting => Err(Error::JobScheduleBeingDeleted),
        }
    }

    /// The schedule with other times. Its rhythm goes on from the latest job;
    /// what was due before the change and has no job is lost. A single job that
    /// was created stays the only one.
    pub fn retimed(&self, old: &Timing, new: &Timing, now: Timestamp) -> Self {
        if old == new {
            return *self;
        }
        let next = match (new.interval, self.last) {
            (None, Some(_)) => None,
            (None, None) | (Some(_), None) => Some(new.first(now)),
            (Some(interval), Some(last)) => {
                let passed = now.since(last).as_micros().div_ceil(micros(interval)).max(1);
                let next = last.plus(steps(interval, passed));
                Some(new.not_before.map_or(next, |start| start.max(next)))
            }
        };
        Self { next, ..*self }
    }

    /// When a job will be created next, or since when one waits to be.
    pub fn next_run_time(&self, timing: &Timing, now: Timestamp) -> Option<Timestamp> {
        if !matches!(self.state, ScheduleState::Active | ScheduleState::Disabled) {
            return None;
        }
        let next = self.next?;
        let at = match timing.latest(next, now) {
            None => next,
            Some(due) if timing.waits(due, now) => due,
            Some(due) => due.plus(timing.interval?),
        };
        (!timing.over(at.max(now))).then_some(at)
    }
}

/// The jobs of a schedule, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Jobs {
    /// One is not completed.
    pub active: bool,
    /// There are any.
    pub any: bool,
}

/// What to do about a schedule now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Create the job of the occurrence that was due then.
    Create(Timestamp),
    /// Terminate the active job.
    EndJob,
    /// Delete the jobs.
    DeleteJobs,
    /// It is over.
    Complete,
    /// Nothing is left of it.
    Remove,
}

/// See [`plan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// What to do now; look again after it.
    pub act: Option<Act>,
    /// When to look again, if nothing happens before. The end of a job and
    /// every change of the schedule are reasons to look, too.
    pub look_at: Option<Timestamp>,
}

/// What to do about a schedule at `now`.
pub fn plan(life: &ScheduleLife, timing: &Timing, jobs: Jobs, now: Timestamp) -> Plan {
    let act = |act| Plan { act: Some(act), look_at: None };
    let wait = |look_at| Plan { act: None, look_at };
    match life.state {
        ScheduleState::Completed => wait(None),
        ScheduleState::Deleting if jobs.any => act(Act::DeleteJobs),
        ScheduleState::Deleting => act(Act::Remove),
        ScheduleState::Terminating if jobs.active => act(Act::EndJob),
        ScheduleState::Terminating => act(Act::Complete),
        // Its end is a reason to look.
        ScheduleState::Active | ScheduleState::Disabled if jobs.active => wait(None),
        ScheduleState::Active | ScheduleState::Disabled => {
            let Some(next) = life.next.filter(|_| !timing.over(now)) else { return act(Act::Complete) };
            if life.state == ScheduleState::Disabled {
                return wait(timing.not_after);
            }
            match (timing.latest(next, now), timing.interval) {
                (None, _) => wait(timing.sooner(Some(next))),
                (Some(due), _) if timing.waits(due, now) => act(Act::Create(due)),
                (Some(due), Some(interval)) => wait(timing.sooner(Some(due.plus(interval)))),
                // The only occurrence was lost.
                (Some(_), None) => act(Act::Complete),
            }
        }
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
