//! Until when the node may run tasks.
//!
//! All times are readings of a clock that never goes back and goes on while
//! the machine sleeps, counted from any fixed moment. A grant counts from the
//! moment its request was SENT, so the agent's lease is always over before the
//! one job-svc counts.

use std::collections::VecDeque;
use std::time::Duration;

/// Requests without an answer that are remembered.
const MAX_OUTSTANDING: usize = 64;

/// The lease of a node.
#[derive(Debug, Clone)]
pub struct Lease {
    length: Duration,
    next_sequence: u64,
    outstanding: VecDeque<(u64, Duration)>,
    last_sent: Option<Duration>,
    valid_until: Option<Duration>,
}

impl Lease {
    /// No lease yet; `length` is assumed until the service tells it.
    pub fn new(length: Duration) -> Self {
        Self { length, next_sequence: 1, outstanding: VecDeque::new(), last_sent: None, valid_until: None }
    }

    /// How long one grant is.
    pub fn length(&self) -> Duration {
        self.length
    }

    /// A request is sent now; gives its sequence number.
    pub fn request(&mut self, now: Duration) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        if self.outstanding.len() == MAX_OUTSTANDING {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back((sequence, now));
        self.last_sent = Some(now);
        sequence
    }

    /// The service greets a new stream on which the hello was sent at `sent`:
    /// that counts as a grant.
    pub fn welcome(&mut self, sent: Duration, length: Duration) {
        self.set_length(length);
        self.extend(sent);
    }

    /// The service granted request `sequence`. False if that request is not known.
    pub fn grant(&mut self, sequence: u64, length: Duration) -> bool {
        self.set_length(length);
        let Some(at) = self.outstanding.iter().position(|(known, _)| *known == sequence) else {
            return false;
        };
        let sent = self.outstanding[at].1;
        // Answers come in order: older requests get none any more.
        self.outstanding.drain(..=at);
        self.extend(sent);
        true
    }

    /// A new stream: answers to earlier requests will not come.
    pub fn reconnected(&mut self) {
        self.outstanding.clear();
        self.last_sent = None;
    }

    /// Whether tasks may run at `now`.
    pub fn is_valid(&self, now: Duration) -> bool {
        self.valid_until.is_some_and(|until| now < until)
    }

    /// When the lease is over, if there is one.
    pub fn valid_until(&self) -> Option<Duration> {
        self.valid_until
    }

    /// When the next request is due: every third of the lease.
    pub fn next_request(&self, now: Duration) -> Duration {
        self.last_sent.map_or(now, |sent| sent + self.length / 3)
    }

    fn set_length(&mut self, length: Duration) {
        if !length.is_zero() {
            self.length = length;
        }
    }

    fn extend(&mut self, sent: Duration) {
        let until = sent + self.length;
        self.valid_until = Some(self.valid_until.map_or(until, |current| current.max(until)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_grant_counts_from_its_request() {
        let mut lease = Lease::new(s(30));
        assert!(!lease.is_valid(s(0)), "no lease before the first grant");
        let first = lease.request(s(10));
        assert_eq!(lease.next_request(s(10)), s(20));
        assert!(lease.grant(first, s(30)));
        assert!(lease.is_valid(s(39)));
        assert!(!lease.is_valid(s(40)));
    }

    #[test]
    fn late_and_repeated_grants_do_not_shorten_or_lengthen() {
        let mut lease = Lease::new(s(30));
        let first = lease.request(s(0));
        let second = lease.request(s(10));
        assert!(lease.grant(second, s(30)));
        assert!(!lease.grant(first, s(30)), "an older request was overtaken");
        assert!(!lease.grant(second, s(30)), "each grant counts once");
        assert!(!lease.grant(99, s(30)));
        assert_eq!(lease.valid_until(), Some(s(40)));
    }

    #[test]
    fn a_new_stream_keeps_the_lease_and_forgets_requests() {
        let mut lease = Lease::new(s(30));
        let first = lease.request(s(0));
        assert!(lease.grant(first, s(30)));
        let lost = lease.request(s(10));
        lease.reconnected();
        assert!(!lease.grant(lost, s(30)));
        assert!(lease.is_valid(s(29)));
        assert_eq!(lease.next_request(s(12)), s(12), "asks at once");
        lease.welcome(s(12), s(20));
        assert_eq!(lease.valid_until(), Some(s(32)));
    }

    #[test]
    fn unanswered_requests_are_bounded() {
        let mut lease = Lease::new(s(30));
        for second in 0..1000 {
            lease.request(s(second));
        }
        assert!(lease.outstanding.len() <= MAX_OUTSTANDING);
    }
}
