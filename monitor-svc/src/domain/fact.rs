//! An event as the log keeps it.

use std::borrow::Cow;

use bytes::Bytes;

/// One event, ready to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// Which store announced it.
    pub source: String,
    /// Unique within the source.
    pub sequence: i64,
    /// Who owns what changed.
    pub account: String,
    /// Lower case, for example `jobs/j1/tasks/t7`.
    pub subject: String,
    /// For example `job.task.finished`.
    pub event_type: String,
    /// When it happened: microseconds since the Unix epoch.
    pub time_micros: i64,
    /// What it adds to counters.
    pub deltas: Vec<Delta>,
    /// The event as it was published: a part of its message, not a copy. The log
    /// gives it out unchanged.
    pub bytes: Bytes,
}

impl Fact {
    /// What the event is about, in two words: see [`topic_of`].
    pub fn topic(&self) -> &str {
        topic_of(&self.subject)
    }
}

/// A change of one counter. Sums do not depend on the order of events.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Delta {
    /// Whose counter: a topic such as `jobs/j1` or `pools/p1`.
    pub scope: String,
    /// Which counter, for example `active`.
    pub counter: Cow<'static, str>,
    /// What is added.
    pub delta: i64,
}

/// The first two words of a subject: the job or pool that watchers watch.
pub fn topic_of(subject: &str) -> &str {
    subject.match_indices('/').nth(1).map_or(subject, |(at, _)| &subject[..at])
}

/// An event of the log with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// Grows with every commit and is never used twice.
    pub position: i64,
    /// See [`Fact::sequence`].
    pub sequence: i64,
    /// See [`Fact::subject`].
    pub subject: String,
    /// See [`Fact::event_type`].
    pub event_type: String,
    /// See [`Fact::bytes`].
    pub bytes: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_two_words() {
        for (subject, topic) in [
            ("jobs/j1/tasks/t7", "jobs/j1"),
            ("jobs/j1", "jobs/j1"),
            ("pools/p1/nodes/n1", "pools/p1"),
            ("odd", "odd"),
            ("", ""),
        ] {
            assert_eq!(topic_of(subject), topic);
        }
    }
}
