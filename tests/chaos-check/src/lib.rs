//! Decides from histories whether a deployment kept its promises while things were killed around it.
//!
//! Five witnesses, none of which knows the others: the clients (what was acknowledged), the nodes (what really ran, from
//! when to when), the server's final word on each task, the event log, and watchers. [`check`] holds them
//! against each other and counts what does not fit, with the first offenders of each kind and the reason.
//!
//! - [`history`]: what the witnesses say, and how it is read;
//! - [`verdict`]: what is counted;
//! - [`live`]: from when to when attempts were alive, by the nodes; two at once are `doubled`;
//! - [`tasks`]: every acknowledged task ended once and was really run; the witnesses agree on how;
//! - [`log`]: the event log has no hole and no double; [`watchers`]: each saw each completion once.
//!
//! Nothing here has a clock, a runtime or a network. What it cannot see: events missing at the end of a source's
//! sequence that complete no task; what happened to a task whose addition was never acknowledged, beyond that it was
//! not doubled; names of tasks that are used twice (histories must not).

pub mod history;
pub mod live;
pub mod log;
pub mod tasks;
pub mod verdict;
pub mod watchers;

pub use history::History;
pub use verdict::{Kind, Verdict};

/// What is known about how the histories were taken.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules {
    /// The clocks of two witnesses differ by at most this, in microseconds. What overlaps by no more is not held against
    /// anybody. 0 if all ran on one machine.
    pub clock_error: u64,
}

/// Holds the witnesses against each other.
pub fn check(history: &History, rules: &Rules) -> Verdict {
    let mut verdict = Verdict::default();
    let lives = live::lives(&history.nodes, &mut verdict);
    live::doubled(&lives, rules, &mut verdict);
    tasks::check(history, &lives, rules, &mut verdict);
    log::check(&history.events, &mut verdict);
    watchers::check(&history.watched, &history.events, &mut verdict);
    verdict
}
