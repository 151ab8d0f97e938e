//! How long a service may be away.

use std::time::Duration;

use kiln_error::{Error, Kind};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::Transfers;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Pauses between tries, until nothing has been achieved for too long.
#[derive(Debug)]
pub struct Patience {
    whole: Duration,
    ends: Instant,
    pause: Duration,
}

impl Patience {
    /// Begins now.
    pub fn new(whole: Duration) -> Self {
        Self { whole, ends: Instant::now() + whole, pause: FIRST_PAUSE }
    }

    /// Something was achieved.
    pub fn renew(&mut self) {
        *self = Self::new(self.whole);
    }

    /// Waits until the next try.
    ///
    /// # Errors
    /// The status itself, if trying again is of no use, or patience is at its end.
    pub async fn pause_after(&mut self, status: Status) -> Result<(), Status> {
        if !may_pass(&status) {
            return Err(status);
        }
        let wish = Error::from(status.clone()).retry_after().unwrap_or_default();
        let next = Instant::now() + self.pause.max(wish);
        if next > self.ends {
            return Err(status);
        }
        tracing::debug!(%status, "a transfer goes on in a moment");
        tokio::time::sleep_until(next).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

/// Whether the same call may succeed later.
fn may_pass(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Aborted => {
            // A condition that does not hold never will; the reason tells it from a lost race.
            Error::from(status.clone()).kind() != Kind::ConditionNotMet
        }
        // What a connection that breaks looks like from this side; a service's own words
        // have no source.
        _ => std::error::Error::source(status).is_some(),
    }
}

impl Transfers {
    /// Repeats a call that has the same effect each time.
    pub(super) async fn retry<T, F: Future<Output = Result<T, Status>>>(
        &self,
        mut call: impl FnMut() -> F,
    ) -> Result<T, Status> {
        let mut patience = Patience::new(self.patience);
        loop {
            match call().await {
                Err(status) => patience.pause_after(status).await?,
                done => return done,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn patience_ends_unless_something_is_achieved() {
        let begin = Instant::now();
        let mut patience = Patience::new(Duration::from_secs(60));
        for _ in 0..10 {
            patience.pause_after(Status::unavailable("x")).await.unwrap();
        }
        patience.renew();
        let renewed = Instant::now();
        while patience.pause_after(Status::unavailable("x")).await.is_ok() {}
        let waited = renewed.elapsed();
        assert!(waited > Duration::from_secs(55) && waited <= Duration::from_secs(60), "{waited:?}");
        assert!(begin.elapsed() > Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_clear_no_and_a_wish_are_respected() {
        let mut patience = Patience::new(Duration::from_secs(60));
        for status in [Status::not_found("x"), Status::invalid_argument("x"), Status::internal("x")] {
            assert!(patience.pause_after(status).await.is_err());
        }
        let busy = Error::unavailable("x").with_retry_after(Duration::from_secs(7));
        let begin = Instant::now();
        patience.pause_after(busy.into()).await.unwrap();
        assert!(begin.elapsed() >= Duration::from_secs(7));
    }
}
