//! How long an actor may believe that its pool is its own.
//!
//! The lease in the store is renewed for all pools of a replica together; each
//! actor has a [`Tenure`] that says until when that holds, by the clock of this
//! process, counted from before the renewal was sent. So it is over here before
//! anybody else may take the pool. What is sent without a commit (leases of
//! nodes) asks it first; commits are fenced in the store.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::store::leases::Fence;

/// Longer than any process lives.
const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// The actor's end.
#[derive(Debug, Clone)]
pub struct Tenure {
    /// What its commits carry.
    pub fence: Fence,
    until: watch::Receiver<Instant>,
}

/// The registry's end. When it is dropped, the tenure is over.
#[derive(Debug)]
pub struct Grant(watch::Sender<Instant>);

impl Tenure {
    /// Until `until`, or until the end of the process.
    pub fn new(fence: Fence, until: Option<Instant>) -> (Grant, Self) {
        let (sender, receiver) = watch::channel(until.unwrap_or_else(|| Instant::now() + FOR_EVER));
        (Grant(sender), Self { fence, until: receiver })
    }

    /// Whether the pool is still ours.
    pub fn holds(&self) -> bool {
        self.until.has_changed().is_ok() && Instant::now() < *self.until.borrow()
    }

    /// Completes when it is not.
    pub async fn over(&mut self) {
        loop {
            let until = *self.until.borrow_and_update();
            if Instant::now() >= until {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                changed = self.until.changed() => if changed.is_err() { return },
            }
        }
    }
}

impl Grant {
    /// The lease was renewed.
    pub fn extend(&self, until: Instant) {
        self.0.send_if_modified(|now| {
            let later = until > *now;
            *now = until.max(*now);
            later
        });
    }
}

#[cfg(test)]
mod tests {
    use kiln_ids::PoolId;

    use super::*;

    fn fence() -> Fence {
        Fence { pool: PoolId::parse("p").unwrap(), owner: "r".into(), epoch: 1 }
    }

    #[tokio::test]
    async fn it_ends_when_nobody_renews_it_and_when_it_is_taken_away() {
        let until = Instant::now() + Duration::from_millis(200);
        let (grant, mut tenure) = Tenure::new(fence(), Some(until));
        assert!(tenure.holds());
        let later = until + Duration::from_millis(50);
        grant.extend(later);
        grant.extend(until);
        tenure.over().await;
        assert!(Instant::now() >= later, "what was renewed goes on");
        assert!(!tenure.holds(), "it does not come back by itself");
        let (grant, mut tenure) = Tenure::new(fence(), None);
        assert!(tenure.holds());
        drop(grant);
        tenure.over().await;
        assert!(!tenure.holds());
    }
}
