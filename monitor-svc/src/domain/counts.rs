//! Counters over time.
//!
//! Every event adds to counters of its job and its pool: a task that goes from
//! active to running is -1 active, +1 running. The store sums these changes per
//! second, minute and hour, so that a job with a million tasks costs a few
//! rows for every second in which something happened, and a history over a
//! month reads hours, not seconds. Sums do not depend on the order in which
//! events arrive, and a repeated event is not counted (the log knows it).
//!
//! | state of a task | counter |
//! |---|---|
//! | active | `active` |
//! | preparing, running | `running` |
//! | completed with success | `succeeded` |
//! | completed otherwise | `failed` |
//!
//! A task that is deleted when it had ended stays counted as ended: it is
//! history. Slots are used while a task counts as running.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::fact::Delta;

/// Most points of one answer.
pub const MAX_POINTS: u64 = 1000;
/// Widths of the buckets the store sums in, in seconds.
pub const WIDTHS: [i64; 3] = [1, 60, 3600];

/// Tasks that wait.
pub const ACTIVE: &str = "active";
/// Tasks that have a node.
pub const RUNNING: &str = "running";
/// Tasks that ended with success.
pub const SUCCEEDED: &str = "succeeded";
/// Tasks that ended otherwise.
pub const FAILED: &str = "failed";
/// Slots of all nodes of a pool.
pub const SLOTS: &str = "slots";
/// Slots taken by tasks.
pub const SLOTS_USED: &str = "slots_used";
/// Begins the counters of nodes by state.
pub const NODE_PREFIX: &str = "node:";

/// What a task counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskClass {
    /// Does not exist.
    Absent,
    /// Waits.
    Active,
    /// Has a node.
    Running,
    /// Ended.
    Succeeded,
    /// Ended.
    Failed,
}

impl TaskClass {
    fn counter(self) -> Option<&'static str> {
        match self {
            Self::Absent => None,
            Self::Active => Some(ACTIVE),
            Self::Running => Some(RUNNING),
            Self::Succeeded => Some(SUCCEEDED),
            Self::Failed => Some(FAILED),
        }
    }
}

/// What a task's step from `old` to `new` adds, in its job and in its pool.
pub fn task_deltas(job: &str, pool: Option<&str>, slots: i64, old: TaskClass, new: TaskClass) -> Vec<Delta> {
    let ended = matches!(old, TaskClass::Succeeded | TaskClass::Failed);
    if old == new || (ended && new == TaskClass::Absent) {
        return Vec::new();
    }
    let mut deltas = Vec::new();
    for (class, delta) in [(old, -1), (new, 1)] {
        if let Some(counter) = class.counter() {
            deltas.push(Delta { scope: job.to_owned(), counter: counter.into(), delta });
        }
        if let (TaskClass::Running, Some(pool)) = (class, pool) {
            let delta = delta * slots;
            deltas.push(Delta { scope: pool.to_owned(), counter: SLOTS_USED.into(), delta });
        }
    }
    deltas
}

/// What a node's step from state `old` to `new` adds; `None` is "not there".
pub fn node_deltas(pool: &str, slots: i64, old: Option<&str>, new: Option<&str>) -> Vec<Delta> {
    if old == new {
        return Vec::new();
    }
    let delta = |counter: Cow<'static, str>, delta| Delta { scope: pool.to_owned(), counter, delta };
    let mut deltas = Vec::new();
    if let Some(state) = old {
        deltas.push(delta(format!("{NODE_PREFIX}{state}").into(), -1));
    }
    if let Some(state) = new {
        deltas.push(delta(format!("{NODE_PREFIX}{state}").into(), 1));
    }
    match (old, new) {
        (None, Some(_)) => deltas.push(delta(SLOTS.into(), slots)),
        (Some(_), None) => deltas.push(delta(SLOTS.into(), -slots)),
        _ => {}
    }
    deltas
}

/// Counters by name.
pub type Counters = BTreeMap<String, i64>;

/// What the store gives for a history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The counters before the first bucket.
    pub before: Counters,
    /// (bucket, counter, sum), in order of buckets.
    pub buckets: Vec<(i64, String, i64)>,
}

/// The instants of a history, and the buckets to read for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    start_micros: i64,
    step_micros: i64,
    points: u64,
    /// Seconds of a bucket: one of [`WIDTHS`].
    pub width: i64,
}

/// Why a span cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpan {
    /// Points would be closer than the counters are kept.
    #[error("must be at least one second")]
    StepTooSmall,
    /// Ends before it starts.
    #[error("must not be before start")]
    EndBeforeStart,
    /// More than [`MAX_POINTS`].
    #[error("would give {0} points; at most {MAX_POINTS} are given: choose a larger step or a shorter time")]
    TooManyPoints(u64),
}

impl Span {
    /// From `start` to `end` (both included), every `step`.
    ///
    /// # Errors
    /// [`InvalidSpan`] says what is wrong.
    pub fn new(start_micros: i64, end_micros: i64, step_micros: i64) -> Result<Self, InvalidSpan> {
        if step_micros < 1_000_000 {
            return Err(InvalidSpan::StepTooSmall);
        }
        let length = i128::from(end_micros) - i128::from(start_micros);
        let length = u128::try_from(length).map_err(|_| InvalidSpan::EndBeforeStart)?;
        let points =
            u64::try_from(length / u128::from(step_micros.unsigned_abs())).unwrap_or(u64::MAX).saturating_add(1);
        if points > MAX_POINTS {
            return Err(InvalidSpan::TooManyPoints(points));
        }
        // Wide steps read wide buckets: at most about 120 a point.
        let width = match step_micros / 1_000_000 {
            0..120 => WIDTHS[0],
            120..7200 => WIDTHS[1],
            _ => WIDTHS[2],
        };
        Ok(Self { start_micros, step_micros, points, width })
    }

    /// First and last bucket to read.
    pub fn buckets(&self) -> (i64, i64) {
        (self.bucket(self.start_micros), self.bucket(self.time(self.points - 1)))
    }

    /// The counters at every instant: everything that happened up to the end of
    /// the bucket the instant lies in.
    pub fn points(&self, changes: Changes) -> Vec<(i64, Counters)> {
        let mut counters = changes.before;
        let mut buckets = changes.buckets.into_iter().peekable();
        (0..self.points)
            .map(|index| {
                let time = self.time(index);
                while let Some((_, counter, delta)) = buckets.next_if(|(bucket, ..)| *bucket <= self.bucket(time)) {
                    *counters.entry(counter).or_default() += delta;
                }
                (time, counters.clone())
            })
            .collect()
    }

    fn time(&self, index: u64) -> i64 {
        self.start_micros.saturating_add(self.step_micros.saturating_mul(i64::try_from(index).unwrap_or(i64::MAX)))
    }

    fn bucket(&self, micros: i64) -> i64 {
        micros.div_euclid(1_000_000).div_euclid(self.width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_of_a_task_counts_as_the_table_says() {
        use TaskClass as C;
        let all = [C::Absent, C::Active, C::Running, C::Succeeded, C::Failed];
        for old in all {
            for new in all {
                let mut sum = Counters::new();
                for delta in task_deltas("jobs/j", Some("pools/p"), 2, old, new) {
                    *sum.entry(format!("{} {}", delta.scope, delta.counter)).or_default() += delta.delta;
                }
                let mut expected = Counters::new();
                let stays = matches!((old, new), (C::Succeeded | C::Failed, C::Absent));
                if old != new && !stays {
                    for (class, by) in [(old, -1), (new, 1)] {
                        if let Some(counter) = class.counter() {
                            *expected.entry(format!("jobs/j {counter}")).or_default() += by;
                        }
                        if class == C::Running {
                            *expected.entry("pools/p slots_used".into()).or_default() += 2 * by;
                        }
                    }
                }
                assert_eq!(sum, expected, "{old:?} to {new:?}");
            }
        }
    }

    #[test]
    fn a_node_brings_its_slots_and_takes_them_away() {
        let sum = |deltas: Vec<Delta>| deltas.into_iter().map(|d| (d.counter, d.delta)).collect::<Vec<_>>();
        assert_eq!(sum(node_deltas("p", 4, None, Some("idle"))), [("node:idle".into(), 1), ("slots".into(), 4)]);
        assert_eq!(
            sum(node_deltas("p", 4, Some("idle"), Some("running"))),
            [("node:idle".into(), -1), ("node:running".into(), 1)]
        );
        assert_eq!(sum(node_deltas("p", 4, Some("idle"), None)), [("node:idle".into(), -1), ("slots".into(), -4)]);
        assert!(node_deltas("p", 4, Some("idle"), Some("idle")).is_empty());
    }

    #[test]
    fn spans_are_bounded_and_say_so() {
        let second = 1_000_000;
        assert_eq!(Span::new(0, 10, second / 2), Err(InvalidSpan::StepTooSmall));
        assert_eq!(Span::new(1, 0, second), Err(InvalidSpan::EndBeforeStart));
        assert_eq!(Span::new(0, 1000 * second, second), Err(InvalidSpan::TooManyPoints(1001)));
        assert!(Span::new(0, 999 * second, second).is_ok());
        assert!(matches!(Span::new(i64::MIN, i64::MAX, second), Err(InvalidSpan::TooManyPoints(_))));
        assert_eq!(Span::new(0, 0, 7200 * second).unwrap().width, 3600);
        assert_eq!(Span::new(0, 0, i64::MAX).unwrap().points(Changes::default()).len(), 1);
    }

    #[test]
    fn points_add_up_what_happened_until_then() {
        let span = Span::new(10_500_000, 16_500_000, 2_000_000).unwrap();
        assert_eq!(span.buckets(), (10, 16));
        let changes = Changes {
            before: [(ACTIVE.to_owned(), 5)].into(),
            buckets: vec![
                (10, ACTIVE.into(), -1),
                (11, RUNNING.into(), 1),
                (12, RUNNING.into(), 1),
                (16, ACTIVE.into(), -4),
            ],
        };
        let points: Vec<(i64, i64, i64)> = span
            .points(changes)
            .into_iter()
            .map(|(t, c)| (t / 1000, c[ACTIVE], c.get(RUNNING).copied().unwrap_or(0)))
            .collect();
        assert_eq!(points, [(10_500, 4, 0), (12_500, 4, 2), (14_500, 4, 2), (16_500, 0, 2)]);
    }
}
