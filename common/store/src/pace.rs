//! How often something may be done: at once while it is rare, at a steady rate while there is much of it.

use std::time::Duration;

use tokio::time::Instant;

/// So many times at once, and one more after each interval.
#[derive(Debug)]
pub struct Pace {
    most: u32,
    every: Duration,
    left: u32,
    /// Since when `left` has not grown.
    since: Instant,
}

impl Pace {
    /// `most` at once; after those, one each `every`.
    pub fn new(most: u32, every: Duration) -> Self {
        Self { most, every, left: most, since: Instant::now() }
    }

    /// Not before this time is over; for what has failed.
    pub fn wait(&mut self, pause: Duration) {
        self.left = 0;
        self.since = Instant::now() + pause.saturating_sub(self.every);
    }

    /// When it may be done next: now, or later.
    pub fn ready_at(&mut self) -> Instant {
        self.refill();
        if self.left > 0 { Instant::now() } else { self.since + self.every }
    }

    /// From now on one more after each `every`.
    pub fn set_every(&mut self, every: Duration) {
        self.every = every;
    }

    /// It is done.
    pub fn done(&mut self) {
        self.refill();
        if self.left == self.most {
            self.since = Instant::now();
        }
        self.left = self.left.saturating_sub(1);
    }

    fn refill(&mut self) {
        let now = Instant::now();
        while self.left < self.most && self.since + self.every <= now {
            self.left += 1;
            self.since += self.every;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_rare_is_not_delayed_and_what_is_frequent_keeps_the_rate() {
        let every = Duration::from_millis(10);
        let mut pace = Pace::new(3, every);
        let begin = Instant::now();
        let mut times = Vec::new();
        for _ in 0..6 {
            tokio::time::sleep_until(pace.ready_at()).await;
            pace.done();
            times.push(begin.elapsed().as_millis());
        }
        assert_eq!(times, [0, 0, 0, 10, 20, 30]);
        tokio::time::sleep(every * 10).await;
        for _ in 0..3 {
            assert!(pace.ready_at() <= Instant::now());
            pace.done();
        }
        assert_eq!(pace.ready_at(), Instant::now() + every);
        pace.wait(every * 7);
        assert_eq!(pace.ready_at(), Instant::now() + every * 7);
    }
}
