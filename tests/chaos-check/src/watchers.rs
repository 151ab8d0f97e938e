//! Watchers: each saw each completion of its job once, whatever became of its connections.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Logged, TaskName, Watched};
use crate::verdict::{Kind, Verdict};

/// Names an event.
type Id<'a> = (&'a str, u64);

/// See the module.
pub fn check(watched: &[Watched], events: &[Logged], verdict: &mut Verdict) {
    let mut completions: BTreeMap<String, BTreeMap<Id<'_>, &str>> = BTreeMap::new();
    for event in events.iter().filter(|event| event.is_completion()) {
        if let Some(name) = TaskName::of_subject(&event.subject) {
            completions.entry(name.job).or_default().insert((&event.source, event.sequence), &event.subject);
        }
    }
    let mut jobs: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut saw: BTreeMap<&str, BTreeMap<Id<'_>, (u64, &str)>> = BTreeMap::new();
    for said in watched {
        match said {
            Watched::Job { watcher, job } => {
                jobs.entry(watcher).or_default().insert(job);
            }
            Watched::Saw { watcher, event } if event.is_completion() => {
                let seen = saw.entry(watcher).or_default();
                seen.entry((&event.source, event.sequence)).or_insert((0, &event.subject)).0 += 1;
            }
            Watched::Saw { .. } => {}
        }
    }
    verdict.watchers = jobs.len();
    for (watcher, jobs) in &jobs {
        let seen = saw.remove(watcher).unwrap_or_default();
        for (id, (times, subject)) in &seen {
            verdict.found_many(
                Kind::WatcherRepeated,
                times - 1,
                watcher,
                format!("saw {subject} complete {times} times"),
            );
            let logged = TaskName::of_subject(subject).and_then(|name| completions.get(&name.job)?.get(id).copied());
            if logged != Some(*subject) {
                let reason = format!("saw {subject} complete ({} {}), which the log does not have", id.0, id.1);
                verdict.found(Kind::Disagreements, watcher, reason);
            }
        }
        for (id, subject) in jobs.iter().filter_map(|job| completions.get(*job)).flatten() {
            if !seen.contains_key(id) {
                verdict.found(Kind::WatcherMissed, watcher, format!("did not see {subject} complete"));
            }
        }
    }
    for watcher in saw.keys() {
        verdict.found(Kind::Disagreements, watcher, "saw events, and does not say which job it watched");
    }
}
