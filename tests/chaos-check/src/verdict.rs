//! What was found: a count for each kind of broken promise, and the first offenders with reasons.

use std::collections::BTreeMap;

use serde::Serialize;

/// Offenders that are listed of each kind; all are counted.
const LISTED: usize = 20;

/// A broken promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An acknowledged task is not completed, or completed without having been run, or is gone.
    Lost,
    /// Two attempts of a task were alive at once, or one attempt was run twice.
    Doubled,
    /// An attempt ran that the server does not know.
    UnknownAttempts,
    /// Events that the log does not have, though it has later ones of their source.
    Holes,
    /// Events that the log has more than once, and completions of one task beyond the first.
    Repeated,
    /// Completed tasks whose completion is not in the log.
    Unlogged,
    /// Completions that a watcher did not see.
    WatcherMissed,
    /// Completions that a watcher saw more than once.
    WatcherRepeated,
    /// Two witnesses tell different things, for example of an exit code, or one contradicts itself.
    Disagreements,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Lost,
        Self::Doubled,
        Self::UnknownAttempts,
        Self::Holes,
        Self::Repeated,
        Self::Unlogged,
        Self::WatcherMissed,
        Self::WatcherRepeated,
        Self::Disagreements,
    ];
}

/// One that broke a promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Offender {
    /// The task, attempt, source or watcher.
    pub what: String,
    /// How.
    pub reason: String,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Acknowledged tasks.
    pub tasks: usize,
    /// Attempts that nodes ran.
    pub attempts: usize,
    /// Events of the log.
    pub events: usize,
    /// Watchers.
    pub watchers: usize,
    counts: BTreeMap<Kind, u64>,
    offenders: BTreeMap<Kind, Vec<Offender>>,
}

impl Verdict {
    /// How often.
    pub fn count(&self, kind: Kind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    /// The first of a kind.
    pub fn offenders(&self, kind: Kind) -> &[Offender] {
        self.offenders.get(&kind).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether all promises were kept.
    pub fn is_kept(&self) -> bool {
        self.counts.is_empty()
    }

    /// Notes a broken promise.
    pub fn found(&mut self, kind: Kind, what: impl ToString, reason: impl Into<String>) {
        self.found_many(kind, 1, what, reason);
    }

    /// Notes one that was broken `times`, if it was.
    pub fn found_many(&mut self, kind: Kind, times: u64, what: impl ToString, reason: impl Into<String>) {
        if times == 0 {
            return;
        }
        *self.counts.entry(kind).or_default() += times;
        let listed = self.offenders.entry(kind).or_default();
        if listed.len() < LISTED {
            listed.push(Offender { what: what.to_string(), reason: reason.into() });
        }
    }
}

/// The form in which it is printed; every count is there, also those of 0.
#[derive(Serialize)]
struct Printed<'a> {
    kept: bool,
    tasks: usize,
    attempts: usize,
    events: usize,
    watchers: usize,
    #[serde(flatten)]
    counts: BTreeMap<Kind, u64>,
    offenders: &'a BTreeMap<Kind, Vec<Offender>>,
}

impl Serialize for Verdict {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Printed {
            kept: self.is_kept(),
            tasks: self.tasks,
            attempts: self.attempts,
            events: self.events,
            watchers: self.watchers,
            counts: Kind::ALL.into_iter().map(|kind| (kind, self.count(kind))).collect(),
            offenders: &self.offenders,
        }
        .serialize(serializer)
    }
}
