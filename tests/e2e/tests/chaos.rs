//! A short run of `tests/chaos`: long ones are for when somebody looks for something.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use kiln_e2e::chaos::{Plan, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promises_are_kept_while_things_are_killed() {
    let histories = tempfile::tempdir().unwrap();
    let plan = Plan {
        tasks: 120,
        kills: 8,
        seed: SEED,
        replicas: 1,
        drill: false,
        tls: false,
        nodes: 3,
        slots: 4,
        patience: Duration::from_secs(120),
        histories: histories.path().to_owned(),
        shared_broker: true,
        postgres: false,
    };
    let outcome = Box::pin(run(&plan)).await;
    let told = serde_json::to_string_pretty(&outcome).unwrap();
    assert!(outcome.finished && outcome.verdict.is_kept(), "seed {SEED}: {told}");
    assert_eq!((outcome.verdict.tasks, outcome.crashes), (120, 0), "{told}");
    assert_eq!(outcome.harms.len(), 7, "another seed is needed: {told}");
}

/// One of those whose eight harms are all that a shared broker allows.
const SEED: u64 = 37;
