//! Leases, judged with the writes they concern.

use std::time::Duration;

use super::*;

fn held(id: &str) -> Guard {
    Guard { lease: Some(id.into()), ..Guard::default() }
}

fn acquire(id: &str, seconds: Option<u32>) -> LeaseAction {
    LeaseAction::Acquire { proposed: Some(id.into()), fresh: "fresh".into(), seconds }
}

fn at(seconds: u64, account: &str, etag: &str) -> Stamp {
    Stamp { now: NOW.plus(Duration::from_secs(seconds)), ..stamp(account, etag) }
}

pub async fn all(c: &dyn Catalogue) {
    of_blobs(c).await;
    forgotten_by_writes(c).await;
    of_containers(c).await;
}

async fn of_blobs(c: &dyn Catalogue) {
    with_container(c, "lb").await;
    let lease = |id: &str| c.lease_blob(stamp("lb", "x"), "cont", "b", Conditions::default(), acquire(id, None));
    assert_eq!(code(lease("a").await), "BlobNotFound");
    let made = c.put_blob(stamp("lb", "e1"), large("b", "l1"), Guard::default()).await.unwrap().answer;
    let stale = Conditions { if_match: Some(EtagSet::parse("e9")), ..Conditions::default() };
    let refused = c.lease_blob(stamp("lb", "x"), "cont", "b", stale, acquire("a", None)).await;
    assert_eq!(code(refused), "ConditionNotMet");
    let (leased, answer) = lease("a").await.unwrap();
    assert_eq!((leased.lease.state(), answer), ("leased", LeaseAnswer::Held("a".into())));
    assert_eq!((&leased.etag, leased.last_modified), (&made.etag, made.last_modified), "a lease is no write");
    assert_eq!(c.blob(Address::blob("lb", "cont", "b")).await.unwrap(), leased);
    assert_eq!(code(lease("b").await), "LeaseAlreadyPresent");

    let metadata = || BlobChange::Metadata(Metadata::new());
    for (guard, expected) in [
        (Guard::default(), "LeaseIdMissing"),
        (held("b"), "LeaseIdMismatchWithBlobOperation"),
        (Guard { conditions: Conditions::absent(), ..held("a") }, "BlobAlreadyExists"),
    ] {
        assert_eq!(code(c.put_blob(stamp("lb", "e2"), large("b", "l2"), guard.clone()).await), expected);
        assert_eq!(code(c.put_block_list(stamp("lb", "e2"), list("b", &[]), guard.clone()).await), expected);
        if guard.conditions == Conditions::default() {
            assert_eq!(code(c.put_block(stamp("lb", ""), block("b", "AAAA", "l3"), guard.clone()).await), expected);
            assert_eq!(code(c.change_blob(stamp("lb", "e2"), "cont", "b", guard.clone(), metadata()).await), expected);
            assert_eq!(code(c.delete_blob(stamp("lb", ""), "cont", "b", guard, Deletion::Blob).await), expected);
        }
    }
    assert_eq!(c.blob(Address::blob("lb", "cont", "b")).await.unwrap(), leased, "nothing has changed");
    assert_eq!(code(c.put_block(stamp("lb", ""), block("b", "AAAA", "l4"), held("a")).await), "ok");
    let list = list("b", &[(BlockSource::Latest, "AAAA")]);
    let written = c.put_block_list(stamp("lb", "e3"), list, held("a")).await.unwrap();
    assert_eq!((written.lease.state(), written.etag.as_str()), ("leased", "e3"), "a lease outlasts new content");
    let written = c.put_blob(stamp("lb", "e4"), large("b", "l5"), held("a")).await.unwrap().answer;
    assert_eq!(written.lease.state(), "leased");
    assert_eq!(code(c.change_blob(stamp("lb", "e5"), "cont", "b", held("a"), metadata()).await), "ok");
    assert_eq!(c.blob(Address::blob("lb", "cont", "b")).await.unwrap().lease.id(), Some("a"));
    assert_eq!(code(c.delete_blob(stamp("lb", ""), "cont", "b", held("a"), Deletion::Blob).await), "ok");
    let new = c.put_blob(stamp("lb", "e6"), large("b", "l6"), Guard::default()).await.unwrap().answer;
    assert_eq!(new.lease, Lease::Available, "a lease goes with its blob");
    let refused = c.put_blob(stamp("lb", "e7"), large("n", "l7"), held("a")).await;
    assert_eq!(code(refused), "LeaseNotPresentWithBlobOperation");
}

async fn forgotten_by_writes(c: &dyn Catalogue) {
    with_container(c, "lf").await;
    c.put_blob(stamp("lf", "e1"), small("b", b"x"), Guard::default()).await.unwrap();
    let lease =
        |seconds, action: LeaseAction| c.lease_blob(at(seconds, "lf", "x"), "cont", "b", Conditions::default(), action);
    let renew = || LeaseAction::Renew { id: "a".into() };
    lease(0, acquire("a", Some(15))).await.unwrap();
    assert_eq!(code(lease(20, renew()).await), "ok", "nobody has written since it ran out");
    assert_eq!(code(c.put_blob(at(40, "lf", "e2"), small("b", b"y"), held("a")).await), "LeaseLost");
    assert_eq!(code(c.put_blob(at(40, "lf", "e2"), small("b", b"y"), Guard::default()).await), "ok");
    assert_eq!(code(lease(41, renew()).await), "LeaseIdMismatchWithLeaseOperation");
    lease(41, acquire("a", None)).await.unwrap();
    let (_, answer) = lease(42, LeaseAction::Break { seconds: Some(10) }).await.unwrap();
    assert_eq!(answer, LeaseAnswer::BreaksIn(10));
    let change = || BlobChange::Properties(BlobProperties::default());
    let change = |seconds| c.change_blob(at(seconds, "lf", "e3"), "cont", "b", Guard::default(), change());
    assert_eq!(code(change(51).await), "LeaseIdMissing");
    assert_eq!(code(change(52).await), "ok");
    assert_eq!(c.blob(Address::blob("lf", "cont", "b")).await.unwrap().lease, Lease::Available);
}

async fn of_containers(c: &dyn Catalogue) {
    with_container(c, "lc").await;
    let lease = |action| c.lease_container(stamp("lc", "x"), "cont", Conditions::default(), action);
    let (leased, _) = lease(acquire("a", None)).await.unwrap();
    assert_eq!((leased.lease.state(), leased.etag.as_str()), ("leased", "e0"));
    assert_eq!(c.container("lc", "cont").await.unwrap(), leased);
    assert_eq!(c.list_containers("lc", "", "", 9).await.unwrap().entries, [leased]);
    // Blobs in it, and its metadata, are not locked.
    assert_eq!(code(c.put_blob(stamp("lc", "e"), small("b", b"x"), Guard::default()).await), "ok");
    let change =
        |guard| c.change_container(stamp("lc", "e1"), "cont", guard, ContainerChange::Metadata(Metadata::new()));
    assert_eq!(code(change(Guard::default()).await), "ok");
    assert_eq!(code(change(held("b")).await), "LeaseIdMismatchWithContainerOperation");
    assert_eq!(code(c.delete_container(stamp("lc", ""), "cont", Guard::default()).await), "LeaseIdMissing");
    let wrong = c.delete_container(stamp("lc", ""), "cont", held("b")).await;
    assert_eq!(code(wrong), "LeaseIdMismatchWithContainerOperation");
    assert_eq!(c.container("lc", "cont").await.unwrap().lease.state(), "leased");
    assert_eq!(code(c.delete_container(stamp("lc", ""), "cont", held("a")).await), "ok");
    with_container(c, "lc").await;
    let refused = c.delete_container(stamp("lc", ""), "cont", held("a")).await;
    assert_eq!(code(refused), "LeaseNotPresentWithContainerOperation");
}
