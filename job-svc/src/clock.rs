//! The time schedules and the age of tasks go by, which a test can move.
//!
//! Leases and limits of running tasks go by the machine's own clock: they are
//! about processes that really run.

use std::future::Future;

use kiln_time::Timestamp;
use tokio::sync::watch;

/// Tells the time and waits for it.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The clock on the wall.
    #[default]
    System,
    /// One that stands still until somebody moves it.
    Manual(ManualClock),
}

/// See [`Clock::Manual`]. Clones show the same time.
#[derive(Debug, Clone)]
pub struct ManualClock {
    now: watch::Sender<Timestamp>,
}

impl ManualClock {
    /// Stands at `now`.
    pub fn new(now: Timestamp) -> Self {
        Self { now: watch::Sender::new(now) }
    }

    /// Moves to `now`.
    pub fn set(&self, now: Timestamp) {
        self.now.send_replace(now);
    }

    /// What it shows.
    pub fn now(&self) -> Timestamp {
        *self.now.borrow()
    }
}

impl Clock {
    /// The time.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => Timestamp::now(),
            Self::Manual(clock) => clock.now(),
        }
    }

    /// Completes at `at`.
    pub fn sleep_until(&self, at: Timestamp) -> impl Future<Output = ()> + Send + 'static {
        let clock = self.clone();
        async move {
            match clock {
                Self::System => tokio::time::sleep(at.since(Timestamp::now())).await,
                Self::Manual(clock) => {
                    let mut shown = clock.now.subscribe();
                    // The sender is held here, so the wait cannot fail.
                    let _ = shown.wait_for(|now| *now >= at).await;
                }
            }
        }
    }
}
