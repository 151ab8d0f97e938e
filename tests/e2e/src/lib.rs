//! End to end tests drive the real `kiln` program as its users do: as a process, with real clients, over real sockets.
//!
//! - [`server`]: one `kiln up` with its own data directory and ports; stopped, killed and started again at will. When it
//!   is dropped nothing of it stays: processes are found by their data directory, and ended by their ids.
//! - [`processes`]: the services as processes of their own, with RabbitMQ between them.
//! - [`cluster`]: one `kiln up --cluster-dev`, with replicas of the services.
//! - [`programs`]: where the program, the Python environments and the examples are.
//! - [`work`]: pools, jobs and tasks of tests, and waiting for them.
//! - [`marks`]: tasks that write down when they run, to prove that no task runs twice at once.
//! - [`rest`]: signed raw requests to the REST front and to the blob data plane, for what no SDK would send.
//! - [`inventory`]: what an account has, to prove that refused requests left nothing behind.
//! - [`otlp`]: a collector of exported spans.
//! - [`chaos`]: a deployment to which much happens while it works, and whether it kept its promises.
//!
//! `tests/run e2e` prepares all they need. Each file in `tests/` has one subject.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod chaos;
pub mod cluster;
pub mod inventory;
pub mod marks;
pub mod otlp;
pub mod processes;
pub mod programs;
pub mod rest;
pub mod server;
pub mod work;

use std::future::Future;
use std::time::{Duration, Instant};

/// Asks again and again until `condition` gives a value; panics with `what` when `limit` is over. The limit only ends
/// tests that would never end; it says nothing about how fast something has to be.
#[track_caller]
pub fn until<T>(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> Option<T>) -> impl Future<Output = T> {
    let place = std::panic::Location::caller();
    async move {
        let start = Instant::now();
        let mut pause = Duration::from_millis(5);
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            assert!(start.elapsed() < limit, "{what} did not happen within {limit:?} ({place})");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }
}

/// For things that take long on a busy machine, such as a node that comes back after its lease is over.
pub const LONG: Duration = Duration::from_secs(240);
