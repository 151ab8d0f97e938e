//! What every [`Store`] must do.

use std::time::Duration;

use kiln_ids::{AccountName, NodeId, PoolId};
use kiln_time::Timestamp;

use crate::domain::auto_pool::{AutoPool, AutoPoolState};
use crate::domain::node::NodeState;
use crate::domain::pool::{Counts, NewPool};
use crate::domain::{Node, Pool, PoolName};
use crate::store::{AutoPoolWrite, Change, NodeWrite, Outcome, PoolWrite, Replica, Request, Store, StoreError};

const NOW: Timestamp = Timestamp::from_micros(1_763_600_000_000_000);

pub fn name(pool: &str) -> PoolName {
    PoolName { account: AccountName::parse("acc").unwrap(), pool: PoolId::parse(pool).unwrap() }
}

pub fn pool(id: &str) -> Pool {
    Pool::create(
        NewPool {
            account: AccountName::parse("acc").unwrap(),
            id: PoolId::parse(id).unwrap(),
            target: Counts { dedicated: 2, low_priority: 1 },
            resize_timeout: Duration::from_secs(900),
            task_slots: 4,
            settings: vec![1, 2, 3],
        },
        NOW,
    )
}

fn node(id: &str) -> Node {
    let mut node = Node::create(NodeId::parse(id).unwrap(), true, NOW);
    node.report = vec![9];
    node.start_task = vec![8];
    node
}

fn change(pool: &str) -> Change {
    Change::new(name(pool), NOW)
}

async fn write(
    store: &impl Store,
    pool: &str,
    pool_write: Option<PoolWrite>,
    node_writes: Vec<NodeWrite>,
) -> Result<Outcome, StoreError> {
    store.commit(Change { pool_write, node_writes, ..change(pool) }).await
}

/// Runs all checks against an empty store.
pub async fn check(store: &impl Store) {
    pools_are_found_without_case_and_only_once(store).await;
    writers_that_lost_a_race_change_nothing(store).await;
    nodes_belong_to_their_pool(store).await;
    repeated_requests_get_the_first_answer(store).await;
    lists_are_paged_by_key(store).await;
    counts_are_exact(store).await;
    owners_of_pools_are_written_once(store).await;
    who_serves_is_who_said_so_last(store).await;
}

async fn who_serves_is_who_said_so_last(store: &impl Store) {
    assert_eq!(store.serving().await.unwrap(), None);
    for id in ["one", "two", "two"] {
        let replica = Replica { id: id.to_owned(), endpoint: format!("http://{id}:1") };
        store.announce(&replica).await.unwrap();
        assert_eq!(store.serving().await.unwrap(), Some(replica));
    }
}

async fn pools_are_found_without_case_and_only_once(store: &impl Store) {
    write(store, "Once", Some(PoolWrite::Insert(pool("Once"))), vec![]).await.unwrap();
    let found = store.pool(&name("oNCE")).await.unwrap().unwrap();
    assert_eq!((found.id.as_str(), found.settings.as_slice(), found.revision), ("Once", &[1, 2, 3][..], 1));
    let again = write(store, "once", Some(PoolWrite::Insert(pool("once"))), vec![]).await;
    assert!(matches!(again, Err(StoreError::PoolExists)));
    let other = PoolName { account: AccountName::parse("other").unwrap(), ..name("once") };
    assert!(store.pool(&other).await.unwrap().is_none());
    write(store, "once", Some(PoolWrite::Delete(found)), vec![]).await.unwrap();
    assert!(store.pool(&name("once")).await.unwrap().is_none());
}

async fn writers_that_lost_a_race_change_nothing(store: &impl Store) {
    write(store, "race", Some(PoolWrite::Insert(pool("race"))), vec![NodeWrite::Insert(node("race-1"))]).await.unwrap();
    let (read, nodes) = store.pool_with_nodes(&name("race")).await.unwrap().unwrap();
    let mut first = read.clone();
    first.task_slots = 7;
    write(store, "race", Some(PoolWrite::Update(first)), vec![]).await.unwrap();
    let mut second = read.clone();
    second.task_slots = 8;
    // The node's write in the same change is undone too.
    let mut changed = nodes[0].clone();
    changed.state = NodeState::Idle;
    let lost = write(store, "race", Some(PoolWrite::Update(second)), vec![NodeWrite::Update(changed)]).await;
    assert!(matches!(lost, Err(StoreError::Conflict)));
    let (pool_now, nodes_now) = store.pool_with_nodes(&name("race")).await.unwrap().unwrap();
    assert_eq!((pool_now.task_slots, pool_now.revision), (7, 2));
    assert_eq!((nodes_now[0].state, nodes_now[0].revision), (NodeState::Creating, 1));
    let mut changed = nodes_now[0].clone();
    changed.state = NodeState::Idle;
    write(store, "race", None, vec![NodeWrite::Update(changed.clone())]).await.unwrap();
    let lost = write(store, "race", None, vec![NodeWrite::Update(changed)]).await;
    assert!(matches!(lost, Err(StoreError::Conflict)));
    assert!(matches!(write(store, "race", Some(PoolWrite::Delete(read)), vec![]).await, Err(StoreError::Conflict)));
}

async fn nodes_belong_to_their_pool(store: &impl Store) {
    let orphan = write(store, "nowhere", None, vec![NodeWrite::Insert(node("x-1"))]).await;
    assert!(orphan.is_err(), "a node needs its pool");
    write(store, "home", Some(PoolWrite::Insert(pool("home"))), vec![NodeWrite::Insert(node("Home-1"))]).await.unwrap();
    let found = store.node(&name("HOME").node(&NodeId::parse("HOME-1").unwrap())).await.unwrap().unwrap();
    assert_eq!((found.report.as_slice(), found.start_task.as_slice()), (&[9][..], &[8][..]));
    let twice = write(store, "home", None, vec![NodeWrite::Insert(node("home-1"))]).await;
    assert!(matches!(twice, Err(StoreError::Conflict)));
    let home = store.pool(&name("home")).await.unwrap().unwrap();
    assert!(write(store, "home", Some(PoolWrite::Delete(home.clone())), vec![]).await.is_err(), "it has nodes");
    let gone = vec![NodeWrite::Delete(found.id.clone())];
    write(store, "home", Some(PoolWrite::Delete(home)), gone).await.unwrap();
    assert!(store.node(&name("home").node(&found.id)).await.unwrap().is_none());
}

async fn repeated_requests_get_the_first_answer(store: &impl Store) {
    let request = |answer: u8| Some(Request { method: "CreatePool", id: "r1".into(), answer: vec![answer] });
    let create = |answer| Change {
        request: request(answer),
        pool_write: Some(PoolWrite::Insert(pool("again"))),
        ..change("again")
    };
    assert_eq!(store.commit(create(1)).await.unwrap(), Outcome::Written);
    assert_eq!(store.commit(create(2)).await.unwrap(), Outcome::Repeated(vec![1]));
    let account = AccountName::parse("ACC").unwrap();
    assert_eq!(store.answer(&account, "CreatePool", "r1").await.unwrap(), Some(vec![1]));
    assert_eq!(store.answer(&account, "DeletePool", "r1").await.unwrap(), None);
    assert_eq!(store.answer(&account, "CreatePool", "").await.unwrap(), None);
    // A failed change does not remember its answer.
    let failed = Change { request: Some(Request { method: "X", id: "r2".into(), answer: vec![] }), ..create(0) };
    assert!(matches!(store.commit(failed).await, Err(StoreError::PoolExists)));
    assert_eq!(store.answer(&account, "X", "r2").await.unwrap(), None);
    assert_eq!(store.forget_requests(NOW).await.unwrap(), 0);
    assert_eq!(store.forget_requests(NOW.plus(Duration::from_secs(90_000))).await.unwrap(), 1);
}

async fn lists_are_paged_by_key(store: &impl Store) {
    let ids: Vec<String> = (0..7).map(|number| format!("page-{number}")).collect();
    for id in &ids {
        write(
            store,
            id,
            Some(PoolWrite::Insert(pool(id))),
            vec![NodeWrite::Insert(node("n-1")), NodeWrite::Insert(node("n-2"))],
        )
        .await
        .unwrap();
    }
    let account = AccountName::parse("acc").unwrap();
    let (mut seen, mut after) = (Vec::new(), Some("page-".to_owned()));
    loop {
        let page = store.pools(&account, after.as_deref(), 3).await.unwrap();
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 3);
        after = Some(last.id.key().into_owned());
        seen.extend(page.into_iter().map(|pool| pool.id.as_str().to_owned()).filter(|id| id.starts_with("page-")));
    }
    assert_eq!(seen, ids);
    let (mut names, mut after) = (0, None);
    loop {
        let page = store.pool_names(after.as_ref(), 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.clone());
        names += page.len();
    }
    assert!(names >= ids.len());
    let nodes = store.nodes(&name("page-3"), Some("n-1"), 10).await.unwrap();
    assert_eq!(nodes.len(), 1);
    assert_eq!(nodes[0].id.as_str(), "n-2");
}

async fn owners_of_pools_are_written_once(store: &impl Store) {
    let record = |state| AutoPool {
        name: name("Auto"),
        owner: "job".into(),
        state,
        failure: ("Code".into(), "text".into()),
        since: NOW,
    };
    let commit = |write, pool_write| Change { auto_pool: Some(write), pool_write, ..change("auto") };
    let insert = || AutoPoolWrite::Insert(record(AutoPoolState::Made));
    let made = commit(insert(), Some(PoolWrite::Insert(pool("Auto"))));
    store.commit(made.clone()).await.unwrap();
    assert_eq!(store.auto_pool(&name("AUTO")).await.unwrap(), Some(record(AutoPoolState::Made)));
    let gone = PoolWrite::Delete(store.pool(&name("auto")).await.unwrap().unwrap());
    let again = commit(insert(), Some(gone));
    assert!(matches!(store.commit(again).await, Err(StoreError::Conflict)));
    assert!(store.pool(&name("auto")).await.unwrap().is_some(), "nothing of a lost race is written");
    let over = |expected| commit(AutoPoolWrite::Replace { expected, with: record(AutoPoolState::Over) }, None);
    assert!(matches!(store.commit(over(AutoPoolState::Failed)).await, Err(StoreError::Conflict)));
    store.commit(over(AutoPoolState::Made)).await.unwrap();
    assert_eq!(store.forget_auto_pools(NOW).await.unwrap(), 0);
    assert_eq!(store.forget_auto_pools(NOW.plus(Duration::from_secs(1))).await.unwrap(), 1);
    assert!(store.auto_pool(&name("auto")).await.unwrap().is_none());
}

async fn counts_are_exact(store: &impl Store) {
    let mut idle = node("c-2");
    idle.state = NodeState::Idle;
    let mut low = idle.clone();
    low.id = NodeId::parse("c-3").unwrap();
    low.dedicated = false;
    let nodes = [node("c-1"), idle, low].map(NodeWrite::Insert).to_vec();
    write(store, "Counted", Some(PoolWrite::Insert(pool("Counted"))), nodes).await.unwrap();
    let account = AccountName::parse("acc").unwrap();
    let counts = store.node_counts(&account, Some("counte"), 1).await.unwrap();
    assert_eq!(counts.len(), 1);
    assert_eq!(counts[0].0.as_str(), "Counted");
    assert_eq!(counts[0].1.dedicated, [("creating".to_owned(), 1), ("idle".to_owned(), 1)].into());
    assert_eq!(counts[0].1.low_priority, [("idle".to_owned(), 1)].into());
    assert!(store.total_counts().await.unwrap()["idle"] >= 2);
}
