//! When something that failed is tried again, and how often that is told.

use std::time::Duration;

use tokio::time::Instant;

/// First and longest pause.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));
/// What goes on failing is told this often.
const TELL: Duration = Duration::from_secs(60);

/// Failures in a row.
#[derive(Debug, Default)]
pub(super) struct Setback {
    failures: u32,
    until: Option<Instant>,
    told: Option<Instant>,
}

impl Setback {
    /// Once more; returns whether to tell.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        let pause = PAUSE.0.saturating_mul(1 << self.failures.min(16)).min(PAUSE.1);
        self.failures += 1;
        self.until = Some(now + pause);
        let tell = self.told.is_none_or(|told| now.duration_since(told) >= TELL);
        if tell {
            self.told = Some(now);
        }
        tell
    }

    /// How long not to try yet.
    pub(super) fn left(&self, now: Instant) -> Duration {
        self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// It worked; returns how often it had not.
    pub(super) fn over(&mut self) -> u32 {
        std::mem::take(self).failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_one_of_many_failures_is_told() {
        let begin = Instant::now();
        let (mut now, mut setback, mut told) = (begin, Setback::default(), 0);
        let mut pauses = Vec::new();
        for _ in 0..40 {
            assert_eq!(setback.left(now), Duration::ZERO);
            told += u32::from(setback.failed(now));
            pauses.push(setback.left(now));
            now += setback.left(now);
        }
        assert_eq!(pauses[..3], [50, 100, 200].map(Duration::from_millis));
        assert!(pauses.is_sorted() && pauses[39] == PAUSE.1, "{pauses:?}");
        let minutes = (now - begin).as_secs() / 60;
        assert!(u64::from(told) <= minutes + 1, "{told} in {minutes} minutes");
        assert_eq!(setback.over(), 40);
        assert_eq!((setback.over(), setback.left(now)), (0, Duration::ZERO));
    }
}
