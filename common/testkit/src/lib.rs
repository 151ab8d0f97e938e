//! What tests of several crates share: waiting for conditions instead of
//! sleeping, and servers to talk to ([`servers`]).

pub mod servers;

use std::future::Future;
use std::time::Duration;

/// How long a condition may take before the test fails. Generous, because test
/// machines are shared; a test that passes does not wait for it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until `condition` gives a value.
///
/// # Panics
/// With `what` when [`PATIENCE`] is over.
#[track_caller]
pub fn eventually<T, F, Fut>(what: &str, mut condition: F) -> impl Future<Output = T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let place = std::panic::Location::caller();
    async move {
        let search = async {
            let mut pause = Duration::from_millis(1);
            loop {
                if let Some(value) = condition().await {
                    return value;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(50));
            }
        };
        match tokio::time::timeout(PATIENCE, search).await {
            Ok(value) => value,
            Err(_) => panic!("{what} did not happen within {PATIENCE:?} ({place})"),
        }
    }
}
