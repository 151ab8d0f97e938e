//! Several replicas of the service on one PostgreSQL: one serves.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Instant;

use kiln_auth::SecretKey;
use kiln_error::Kind;
use kiln_proto::pool::v1::PoolSpec;
use kiln_store::testing::TestStore;
use kiln_testkit::eventually;
use support::Service;

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_serves_and_the_next_takes_over() {
    let (place, key) = (TestStore::postgres(), Arc::new(SecretKey::generate()));
    let first = Service::replica(&place, key.clone()).await;
    let create = || first.create_with("p1", PoolSpec { task_slots_per_node: 1, ..PoolSpec::default() });
    eventually("its turn", || async { create().await.ok() }).await;
    let second = Service::replica(&place, key).await;
    // Since when nobody waits for it: it answers, and refuses.
    let refused = eventually("an answer", || async { second.pool("p1").await.err() }).await;
    assert_eq!(refused.kind(), Kind::Unavailable, "{refused}");
    assert!(first.pool("p1").await.is_ok());
    let begun = Instant::now();
    first.stop().await;
    let pool = eventually("the other's turn", || async { second.pool("p1").await.ok() }).await;
    println!("taken over after {:?}", begun.elapsed());
    assert_eq!(pool.id, "p1");
    second.stop().await;
}
