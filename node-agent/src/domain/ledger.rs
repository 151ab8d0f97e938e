//! All attempts of the node, and what job-svc still has to hear about them.
//!
//! An attempt enters by [`Ledger::assign`] and leaves when job-svc has
//! acknowledged its result. In between every change that job-svc has to know
//! is queued; [`Ledger::take_reports`] hands out what has gathered. After a
//! lost stream [`Ledger::requeue_reports`] queues again all that was not
//! acknowledged. The ledger lives in memory only: a restarted agent is a new
//! incarnation, and whatever the old one held is void.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use kiln_time::Timestamp;

use super::attempt::{Attempt, Effect, Ended, Event, Rejected, StopCause};

/// Acknowledged attempts that are remembered, so that a late duplicate of an
/// assignment is not run again.
const REMEMBERED: usize = 16_384;

/// Names one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Job of the task.
    pub job: Arc<str>,
    /// The task.
    pub task: Arc<str>,
    /// Which try of it.
    pub attempt: u32,
    /// Tells the task from an earlier one with the same ids.
    pub number: u64,
    /// Which instance of a multi-instance task; 0 for all others.
    pub instance: u32,
}

/// What job-svc has to hear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The attempt began.
    Started(Timestamp),
    /// The instance is ready for the command of its task.
    Ready,
    /// The attempt is over.
    Ended(Ended),
}

/// What a new assignment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assigned {
    /// Run it.
    New,
    /// It runs, or ran, already.
    Known,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Started,
    Ready,
    Ended,
}

/// What of its state job-svc has to hear. Waiting for the job's preparation is
/// told by the preparation itself.
fn due(attempt: &Attempt) -> &'static [Due] {
    match attempt {
        Attempt::Waiting { .. } => &[],
        Attempt::StagingIn { .. } | Attempt::Running { .. } | Attempt::StagingOut { .. } => &[Due::Started],
        Attempt::Ready { .. } => &[Due::Started, Due::Ready],
        Attempt::Ended(_) => &[Due::Ended],
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Ledger {
    attempts: HashMap<Key, Attempt>,
    due: VecDeque<(Key, Due)>,
    /// Something of `due` is not to wait.
    urgent: bool,
    live: usize,
    forgotten: HashSet<Key>,
    forgotten_order: VecDeque<Key>,
}

impl Ledger {
    /// An assignment has arrived; with `waits` it begins later. Its beginning is told
    /// together with what comes next, or after [`Ledger::tell`]: what ends at
    /// once needs one report only.
    pub fn assign(&mut self, key: &Key, waits: bool, now: Timestamp) -> Assigned {
        if self.attempts.contains_key(key) || self.forgotten.contains(key) {
            return Assigned::Known;
        }
        let attempt = if waits { Attempt::wait(now) } else { Attempt::begin(now) };
        self.due.extend(due(&attempt).iter().map(|due| (key.clone(), *due)));
        self.attempts.insert(key.clone(), attempt);
        self.live += 1;
        Assigned::New
    }

    /// Something happened to an attempt. `None` if it is not known.
    ///
    /// # Errors
    /// [`Rejected`] if it cannot happen in the attempt's state.
    pub fn apply(&mut self, key: &Key, event: Event, now: Timestamp) -> Result<Option<Effect>, Rejected> {
        let Some(attempt) = self.attempts.get_mut(key) else { return Ok(None) };
        let was_live = attempt.is_live();
        // As with those that begin at once.
        let begins = event == Event::Begin;
        let transition = attempt.apply(event, now)?;
        match transition.next {
            Some(next) => {
                if was_live && !next.is_live() {
                    self.live -= 1;
                }
                *attempt = next;
                if transition.effect == Effect::Report
                    && let Some(due) = due(attempt).last()
                {
                    self.due.push_back((key.clone(), *due));
                    self.urgent |= !begins;
                }
            }
            None => {
                self.attempts.remove(key);
                self.remember(key);
            }
        }
        Ok(Some(transition.effect))
    }

    /// job-svc asks to stop an attempt this agent does not know: it is told
    /// that the attempt is over.
    pub fn stop_unknown(&mut self, key: &Key, now: Timestamp) {
        let begin = Attempt::begin(now);
        let stopped = begin
            .apply(Event::Stop(StopCause::Requested), now)
            .ok()
            .and_then(|marked| marked.next)
            .and_then(|marked| marked.apply(Event::Interrupted, now).ok())
            .and_then(|ended| ended.next);
        if let Some(ended) = stopped {
            self.attempts.insert(key.clone(), ended);
            self.due.push_back((key.clone(), Due::Ended));
            self.urgent = true;
        }
    }

    fn remember(&mut self, key: &Key) {
        if self.forgotten_order.len() == REMEMBERED
            && let Some(oldest) = self.forgotten_order.pop_front()
        {
            self.forgotten.remove(&oldest);
        }
        if self.forgotten.insert(key.clone()) {
            self.forgotten_order.push_back(key.clone());
        }
    }

    /// Up to `max` reports in the order in which things happened.
    pub fn take_reports(&mut self, max: usize) -> Vec<(Key, Report)> {
        let mut reports = Vec::new();
        while reports.len() < max
            && let Some((key, due)) = self.due.pop_front()
        {
            let Some(attempt) = self.attempts.get(&key) else { continue };
            let report = match (due, attempt) {
                // The end tells the beginning, too.
                (Due::Started, Attempt::Ended(_)) => continue,
                (Due::Started, attempt) => Report::Started(attempt.start()),
                (Due::Ready, Attempt::Ready { .. }) => Report::Ready,
                (Due::Ended, Attempt::Ended(ended)) => Report::Ended(ended.clone()),
                (Due::Ready | Due::Ended, _) => continue,
            };
            reports.push((key, report));
        }
        self.urgent &= !self.due.is_empty();
        reports
    }

    /// Whether something waits to be sent now.
    pub fn has_reports(&self) -> bool {
        self.urgent
    }

    /// What is due does not wait for more.
    pub fn tell(&mut self) {
        self.urgent = !self.due.is_empty();
    }

    /// The stream was lost: everything that was not acknowledged is due again.
    pub fn requeue_reports(&mut self) {
        self.due.clear();
        let mut keys: Vec<&Key> = self.attempts.keys().collect();
        keys.sort_unstable();
        for key in keys {
            self.due.extend(due(&self.attempts[key]).iter().map(|due| (key.clone(), *due)));
        }
        self.tell();
    }

    /// Drops a result that nobody shall hear.
    pub fn forget(&mut self, key: &Key) {
        if let Some(attempt) = self.attempts.remove(key) {
            self.live -= usize::from(attempt.is_live());
            self.remember(key);
        }
    }

    /// Every attempt that is not acknowledged.
    pub fn all(&self) -> impl Iterator<Item = (&Key, &Attempt)> {
        self.attempts.iter()
    }

    /// One attempt.
    pub fn get(&self, key: &Key) -> Option<&Attempt> {
        self.attempts.get(key)
    }

    /// Attempts of which something runs.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Results that job-svc has not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.attempts.len() - self.live
    }

    /// The attempts of a job, or of one of its tasks, of which something runs.
    pub fn live_of(&self, job: &str, task: Option<&str>) -> Vec<Key> {
        let same = |key: &Key| {
            key.job.eq_ignore_ascii_case(job) && task.is_none_or(|task| key.task.eq_ignore_ascii_case(task))
        };
        self.attempts
            .iter()
            .filter(|(key, attempt)| attempt.is_live() && same(key))
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// All attempts of which something runs.
    pub fn live_keys(&self) -> Vec<Key> {
        self.attempts.iter().filter(|(_, attempt)| attempt.is_live()).map(|(key, _)| key.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(7);

    fn key(task: &str, attempt: u32) -> Key {
        Key { job: "j".into(), task: task.into(), attempt, number: 1, instance: 0 }
    }

    fn run_to_end(ledger: &mut Ledger, key: &Key) {
        for event in [Event::Started, Event::Exited { code: 0, broken: None }, Event::Uploaded] {
            ledger.apply(key, event, NOW).unwrap();
        }
    }

    #[test]
    fn an_attempt_runs_once_even_after_it_was_acknowledged() {
        let mut ledger = Ledger::default();
        let a = key("a", 1);
        assert_eq!(ledger.assign(&a, false, NOW), Assigned::New);
        assert_eq!(ledger.assign(&a, false, NOW), Assigned::Known);
        run_to_end(&mut ledger, &a);
        assert_eq!((ledger.live(), ledger.unacknowledged()), (0, 1));
        assert_eq!(ledger.take_reports(10).len(), 1, "the end tells the beginning, too");
        ledger.apply(&a, Event::Acknowledged, NOW).unwrap();
        assert_eq!(ledger.unacknowledged(), 0);
        assert_eq!(ledger.assign(&a, false, NOW), Assigned::Known);
        assert_eq!(ledger.assign(&key("a", 2), false, NOW), Assigned::New);
        // The task was deleted, and another one has its name now.
        assert_eq!(ledger.assign(&Key { number: 2, ..key("a", 1) }, false, NOW), Assigned::New);
    }

    #[test]
    fn unacknowledged_results_are_sent_again_on_a_new_stream() {
        let mut ledger = Ledger::default();
        let (a, b) = (key("a", 1), key("b", 1));
        ledger.assign(&a, false, NOW);
        ledger.assign(&b, false, NOW);
        run_to_end(&mut ledger, &a);
        assert_eq!(ledger.take_reports(100).len(), 2);
        assert!(!ledger.has_reports());
        ledger.requeue_reports();
        let again = ledger.take_reports(100);
        assert!(
            matches!(&again[..], [(first, Report::Ended(_)), (second, Report::Started(_))] if *first == a && *second == b)
        );
    }

    #[test]
    fn reports_come_in_order_and_in_bounded_batches() {
        let mut ledger = Ledger::default();
        for task in ["a", "b", "c"] {
            ledger.assign(&key(task, 1), false, NOW);
        }
        run_to_end(&mut ledger, &key("a", 1));
        let first = ledger.take_reports(2);
        assert_eq!(first.iter().map(|(key, _)| &*key.task).collect::<Vec<_>>(), ["b", "c"]);
        assert!(ledger.has_reports());
        assert_eq!(ledger.take_reports(2).len(), 1);
        assert!(!ledger.has_reports());
    }

    #[test]
    fn a_beginning_is_told_with_what_comes_next_or_when_it_lasts() {
        let mut ledger = Ledger::default();
        ledger.tell();
        assert!(!ledger.has_reports());
        ledger.assign(&key("a", 1), false, NOW);
        assert!(!ledger.has_reports());
        ledger.tell();
        assert!(ledger.has_reports());
        assert_eq!(ledger.take_reports(10), [(key("a", 1), Report::Started(NOW))]);
        assert!(!ledger.has_reports());
    }

    #[test]
    fn attempts_that_wait_are_told_when_they_begin() {
        let mut ledger = Ledger::default();
        let a = key("a", 1);
        assert_eq!(ledger.assign(&a, true, NOW), Assigned::New);
        ledger.requeue_reports();
        assert_eq!((ledger.live(), ledger.has_reports()), (1, false));
        ledger.apply(&a, Event::Begin, Timestamp::from_micros(9)).unwrap();
        assert_eq!(ledger.take_reports(9), [(a, Report::Started(Timestamp::from_micros(9)))]);
    }

    #[test]
    fn instances_are_told_apart_and_say_when_they_are_ready() {
        let mut ledger = Ledger::default();
        let (a, b) = (key("a", 1), Key { instance: 1, ..key("a", 1) });
        for key in [&a, &b] {
            assert_eq!(ledger.assign(key, false, NOW), Assigned::New);
        }
        ledger.apply(&b, Event::Coordinated { code: 0, expired: false }, NOW).unwrap();
        let started = |key: &Key| (key.clone(), Report::Started(NOW));
        assert_eq!(ledger.take_reports(9), [started(&a), started(&b), (b.clone(), Report::Ready)]);
        ledger.requeue_reports();
        assert_eq!(ledger.take_reports(9), [started(&a), started(&b), (b, Report::Ready)]);
    }

    #[test]
    fn unknown_attempts_are_reported_as_stopped() {
        let mut ledger = Ledger::default();
        ledger.stop_unknown(&key("x", 4), NOW);
        let reports = ledger.take_reports(10);
        assert!(
            matches!(&reports[..], [(_, Report::Ended(ended))] if ended.cause == super::super::attempt::Cause::Stopped)
        );
        assert_eq!(ledger.live(), 0);
    }

    #[test]
    fn the_memory_of_old_attempts_is_bounded() {
        let mut ledger = Ledger::default();
        for attempt in 0..(REMEMBERED as u32 + 10) {
            let key = key("a", attempt);
            ledger.assign(&key, false, NOW);
            run_to_end(&mut ledger, &key);
            ledger.apply(&key, Event::Acknowledged, NOW).unwrap();
            ledger.take_reports(10);
        }
        assert_eq!(ledger.forgotten.len(), REMEMBERED);
        assert_eq!(ledger.forgotten_order.len(), REMEMBERED);
        assert!(ledger.attempts.is_empty() && ledger.due.is_empty());
    }
}
