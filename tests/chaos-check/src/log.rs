//! The event log: within each source the numbers go from 1 without a hole, and each is there once.

use std::collections::BTreeMap;

use crate::history::Logged;
use crate::verdict::{Kind, Verdict};

/// See the module.
pub fn check(events: &[Logged], verdict: &mut Verdict) {
    verdict.events = events.len();
    let mut sources: BTreeMap<&str, BTreeMap<u64, u64>> = BTreeMap::new();
    for event in events {
        *sources.entry(&event.source).or_default().entry(event.sequence).or_default() += 1;
    }
    for (source, sequences) in sources {
        let mut expected = 1;
        for (sequence, times) in sequences {
            let reason = match sequence.saturating_sub(expected) {
                0 | 1 => format!("number {expected} is missing"),
                _ => format!("numbers {expected} to {} are missing", sequence - 1),
            };
            verdict.found_many(Kind::Holes, sequence.saturating_sub(expected), source, reason);
            verdict.found_many(Kind::Repeated, times - 1, source, format!("number {sequence} is there {times} times"));
            if sequence == 0 {
                verdict.found(Kind::Disagreements, source, "an event has number 0");
            }
            expected = expected.max(sequence.saturating_add(1));
        }
    }
}
