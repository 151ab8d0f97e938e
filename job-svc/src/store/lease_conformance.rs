//! What leases of pools have to do. Every store on a database is a replica.

use std::time::Duration;

use kiln_etag::Conditions;
use kiln_store::testing::TestStore;
use kiln_testkit::eventually;

use super::conformance::{account, add, assign, commit, create, job_id, new, write};
use super::leases::*;
use super::sql::SqlStore;
use super::*;
use crate::domain::job::JobEvent;
use crate::domain::task::{Phase, TaskState};

fn presence(millis: u64) -> Presence {
    Presence { endpoint: "http://replica".into(), lease: Duration::from_millis(millis) }
}

fn pool() -> PoolKey {
    (account(), PoolId::parse("p1").unwrap())
}

async fn claim(store: &SqlStore, millis: u64) -> Claim {
    store.claim_pools(&presence(millis), vec![pool()]).await.unwrap().remove(0)
}

fn fence(store: &SqlStore, epoch: u64) -> Option<Fence> {
    Some(Fence { pool: pool().1, owner: store.replica(), epoch })
}

/// Longer than a test.
const LONG: u64 = 600_000;

#[tokio::test]
async fn a_former_owner_writes_nothing() {
    for place in TestStore::each() {
        let (first, second) =
            (SqlStore::open(place.config()).await.unwrap(), SqlStore::open(place.config()).await.unwrap());
        create(&first, "j").await;
        let task = add(&first, "j", &["t"]).await.remove(0);
        assert_eq!(first.owner_of(&pool().0, &pool().1).await.unwrap(), None);
        // What a process believes that was stopped in the middle of its work.
        assert_eq!(claim(&first, 1).await, Claim::Ours(1));
        let taken = eventually("the lease is over", || async {
            match claim(&second, LONG).await {
                Claim::Ours(epoch) => Some(epoch),
                Claim::Other(_) => None,
            }
        })
        .await;
        assert_eq!(taken, 2);
        let assigned = || Commit { tasks: vec![write(&task, assign()).0], ..commit(1) };
        let late = first.commit(Commit { fence: fence(&first, 1), ..assigned() }).await;
        assert!(matches!(late, Err(CommitError::Fenced { epoch: 1, .. })), "{late:?}");
        let guessed = first.commit(Commit { fence: fence(&first, 2), ..assigned() }).await;
        assert!(matches!(guessed, Err(CommitError::Fenced { epoch: 2, .. })), "{guessed:?}");
        let (_, row) = first.task(&account(), &job_id("j"), &task.id).await.unwrap();
        assert!(matches!(row.task.state, TaskState::Active), "{row:?}");
        assert_eq!(first.renew_pools(&presence(LONG)).await.unwrap(), [], "it is not renewed, either");
        second.commit(Commit { fence: fence(&second, 2), ..assigned() }).await.unwrap();
        let (_, row) = first.task(&account(), &job_id("j"), &task.id).await.unwrap();
        assert_eq!(row.task.state.phase(), Phase::Running);
        // Its own claim raises the epoch, too: of two schedulers of one process
        // the later counts.
        assert_eq!(claim(&second, LONG).await, Claim::Ours(3));
        let earlier = second.commit(Commit { fence: fence(&second, 2), ..commit(2) }).await;
        assert!(matches!(earlier, Err(CommitError::Fenced { .. })));
    }
}

#[tokio::test]
async fn a_lease_that_goes_on_is_respected_until_it_is_given_back() {
    let place = TestStore::postgres();
    let (first, second) =
        (SqlStore::open(place.config()).await.unwrap(), SqlStore::open(place.config()).await.unwrap());
    assert_eq!(claim(&first, LONG).await, Claim::Ours(1));
    let owner = Owner { id: first.replica().to_string(), endpoint: "http://replica".into() };
    assert_eq!(claim(&second, LONG).await, Claim::Other(owner.clone()));
    assert_eq!(second.owner_of(&pool().0, &pool().1).await.unwrap(), Some(owner));
    let held = vec![Held { account: account(), pool: pool().1, epoch: 1 }];
    assert_eq!(first.renew_pools(&presence(LONG)).await.unwrap(), held);
    first.release_pools().await.unwrap();
    assert_eq!(second.owner_of(&pool().0, &pool().1).await.unwrap(), None);
    assert_eq!(claim(&second, LONG).await, Claim::Ours(2), "the epoch goes on");
    assert_eq!(second.forget_leases().await.unwrap(), 0, "what is young or goes on is not forgotten");
}

#[tokio::test]
async fn with_a_file_every_claim_wins() {
    let place = TestStore::sqlite();
    let (first, second) =
        (SqlStore::open(place.config()).await.unwrap(), SqlStore::open(place.config()).await.unwrap());
    assert_eq!(claim(&first, LONG).await, Claim::Ours(1));
    create(&first, "j").await;
    assert_eq!(second.standing().await.unwrap().free, [pool()], "a start need not wait for the lease of a crash");
    assert_eq!(claim(&second, LONG).await, Claim::Ours(2));
    assert!(!second.is_shared());
}

#[tokio::test]
async fn replicas_see_each_other_and_what_is_free() {
    for place in TestStore::each() {
        let store = SqlStore::open(place.config()).await.unwrap();
        let standing = store.standing().await.unwrap();
        assert_eq!(standing, Standing { replicas: 1, ..Standing::default() });
        create(&store, "j").await;
        let standing = store.standing().await.unwrap();
        assert_eq!(standing, Standing { free: vec![pool()], ours: 0, all: 1, replicas: 1 });
        claim(&store, LONG).await;
        let standing = store.standing().await.unwrap();
        assert_eq!(standing, Standing { free: vec![], ours: 1, all: 1, replicas: 1 });
        if store.is_shared() {
            let other = SqlStore::open(place.config()).await.unwrap();
            store.renew_pools(&presence(LONG)).await.unwrap();
            let standing = other.standing().await.unwrap();
            assert_eq!(standing, Standing { free: vec![], ours: 0, all: 1, replicas: 2 });
            store.release_pools().await.unwrap();
            let standing = other.standing().await.unwrap();
            assert_eq!(standing, Standing { free: vec![pool()], ours: 0, all: 1, replicas: 1 });
        }
    }
}

#[tokio::test]
async fn what_clients_change_is_written_down_with_it() {
    for place in TestStore::each() {
        let store = SqlStore::open(place.config()).await.unwrap();
        let begin = store.last_change().await.unwrap();
        let job = create(&store, "j").await;
        let tasks = add(&store, "j", &["a", "b", "c"]).await;
        assert!(add_again(&store).await, "nothing new is nothing to tell");
        let disable = JobChange::Event(JobEvent::Terminate("x".into()), |_| Vec::new());
        let now = Timestamp::from_micros(400);
        new(store
            .change_job(&account(), &job_id("j"), disable, Conditions::default(), Request::default(), now)
            .await
            .unwrap());
        let changes = store.changes(begin, 10).await.unwrap();
        if !store.is_shared() {
            assert_eq!(changes, [], "one replica has nobody to tell");
            continue;
        }
        let other = SqlStore::open(place.config()).await.unwrap();
        let foreign = other.changes(begin, 10).await.unwrap();
        assert!(changes.iter().all(|row| row.own) && foreign.iter().all(|row| !row.own));
        let what: Vec<Change> = foreign.iter().map(|row| row.change.clone()).collect();
        let added = Change::Added { job: job.row, first: tasks[0].row, last: tasks[2].row };
        assert_eq!(what, [Change::Job(job.row), added, Change::Job(job.row)]);
        assert!(foreign.iter().all(|row| row.account == account() && row.pool.as_ref() == Some(&job.pool)));
        assert_eq!(other.changes(foreign[1].id, 10).await.unwrap(), foreign[2..]);
        assert_eq!(other.last_change().await.unwrap(), foreign[2].id);
    }
}

/// Adds a task that is there already.
async fn add_again(store: &SqlStore) -> bool {
    let add = AddTasks { same_is_added: true, ..super::conformance::adding("j", &["a"]) };
    let added = new(store.add_tasks(add).await.unwrap());
    added.results.iter().all(|result| result.outcome.as_ref().unwrap().new.is_none())
}
