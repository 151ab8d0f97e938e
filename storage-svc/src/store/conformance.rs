//! What every catalogue does. One function per subject, generic over the
//! implementation; each uses accounts of its own.

#![allow(clippy::unwrap_used)]

#[path = "copy_conformance.rs"]
mod copies;
#[path = "lease_conformance.rs"]
mod leases;

use std::collections::BTreeMap;

use bytes::Bytes;
use kiln_auth::SecretKey;
use kiln_etag::EtagSet;
use kiln_time::Timestamp;

use super::*;
use crate::domain::cors::CorsRule;
use crate::domain::lease::Lease;
use crate::domain::model::{BLOCK_LIFE, Extent, SealedBytes};

pub(super) const NOW: Timestamp = Timestamp::from_micros(1_795_000_000_000_000);

/// Runs the whole suite.
pub async fn all(catalogue: &dyn Catalogue) {
    accounts(catalogue).await;
    containers(catalogue).await;
    blobs(catalogue).await;
    requests(catalogue).await;
    lists(catalogue).await;
    blocks(catalogue).await;
    garbage(catalogue).await;
    tidying(catalogue).await;
    leases::all(catalogue).await;
    places(catalogue).await;
    copies::all(catalogue).await;
    super::application_conformance::all(catalogue).await;
}

pub(super) fn stamp(account: &str, etag: &str) -> Stamp {
    Stamp {
        account: account.into(),
        now: NOW,
        etag: etag.into(),
        traceparent: String::new(),
        request_id: String::new(),
    }
}

pub(super) fn container(name: &str) -> Container {
    Container {
        name: name.into(),
        etag: String::new(),
        last_modified: Timestamp::default(),
        metadata: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        public_access: PublicAccess::Blob,
        policies: vec![StoredPolicy { id: "p".into(), ..StoredPolicy::default() }],
        lease: Lease::Available,
    }
}

pub(super) async fn with_container(c: &dyn Catalogue, account: &str) {
    c.create_container(stamp(account, "e0"), container("cont")).await.unwrap();
}

pub(super) fn small(name: &str, bytes: &'static [u8]) -> NewBlob {
    NewBlob {
        container: "cont".into(),
        name: name.into(),
        properties: BlobProperties { content_type: "a/b".into(), ..BlobProperties::default() },
        metadata: Metadata::new(),
        content: Content::Inline(Bytes::from_static(bytes)),
        copy: None,
        kind: BlobKind::Block,
        tier: None,
    }
}

pub(super) fn large(name: &str, object: &str) -> NewBlob {
    let extent = Extent { block_id: None, object: ObjectKey(object.into()), length: 100 };
    NewBlob { content: Content::Objects(vec![extent]), ..small(name, b"") }
}

pub(super) fn code<T: std::fmt::Debug>(result: Result<T, StorageError>) -> &'static str {
    result.map_or_else(|error| error.code(), |_| "ok")
}

async fn accounts(c: &dyn Catalogue) {
    assert_eq!(c.account("nobody").await.unwrap(), None);
    let first = Account { name: "Acct1".into(), keys: [SecretKey::generate(), SecretKey::generate()] };
    c.put_account(first.clone()).await.unwrap();
    assert_eq!(c.account("ACCT1").await.unwrap(), Some(first.clone()));
    let second = Account { keys: [SecretKey::generate(), first.keys[0].clone()], ..first };
    c.put_account(second.clone()).await.unwrap();
    assert_eq!(c.account("acct1").await.unwrap(), Some(second.clone()));
    assert_eq!(c.only_account().await.unwrap(), Some(second.clone()));
    assert_eq!(c.service_properties("acct1").await.unwrap(), ServiceProperties::default());
    assert_eq!(code(c.service_properties("nobody").await), "ResourceNotFound");
    let rule = CorsRule { origins: vec!["*".into()], methods: vec!["GET".into()], ..CorsRule::default() };
    let change = PropertiesChange { cors: Some(vec![rule.clone()]), default_version: Some("2019-02-02".into()) };
    c.change_service_properties("Acct1", change.clone()).await.unwrap();
    let bad = PropertiesChange { default_version: Some("x".into()), cors: Some(Vec::new()) };
    assert_eq!(code(c.change_service_properties("acct1", bad).await), "InvalidXmlNodeValue");
    // New keys leave them alone.
    c.put_account(second.clone()).await.unwrap();
    let kept = ServiceProperties { cors: vec![rule], default_version: change.default_version };
    assert_eq!(c.service_properties("acct1").await.unwrap(), kept);
    c.put_account(Account { name: "acct2".into(), ..second }).await.unwrap();
    assert_eq!(c.only_account().await.unwrap(), None);
}

async fn containers(c: &dyn Catalogue) {
    let made = c.create_container(stamp("cs", "e1"), container("cont")).await.unwrap().answer;
    assert_eq!((made.etag.as_str(), made.last_modified), ("e1", NOW));
    assert_eq!(c.container("cs", "cont").await.unwrap(), made);
    assert_eq!(code(c.create_container(stamp("cs", "e2"), container("cont")).await), "ContainerAlreadyExists");
    assert_eq!(code(c.container("other", "cont").await), "ContainerNotFound");

    let wrong = Guard::from(Conditions { if_match: Some(EtagSet::parse("e9")), ..Conditions::default() });
    let change = || ContainerChange::Acl { public_access: PublicAccess::Private, policies: Vec::new() };
    let refused = c.change_container(stamp("cs", "e2"), "cont", wrong.clone(), change()).await;
    assert_eq!(code(refused), "ConditionNotMet");
    let changed = c.change_container(stamp("cs", "e2"), "cont", Guard::default(), change()).await.unwrap();
    assert_eq!((changed.etag.as_str(), changed.public_access), ("e2", PublicAccess::Private));
    assert_eq!(changed.metadata, made.metadata);
    assert_eq!(c.container("cs", "cont").await.unwrap(), changed);

    c.put_blob(stamp("cs", "b1"), small("b", b"x"), Guard::default()).await.unwrap();
    assert_eq!(code(c.delete_container(stamp("cs", ""), "cont", wrong).await), "ConditionNotMet");
    c.delete_container(stamp("cs", ""), "cont", Guard::default()).await.unwrap();
    assert_eq!(code(c.container("cs", "cont").await), "ContainerNotFound");
    assert_eq!(code(c.delete_container(stamp("cs", ""), "cont", Guard::default()).await), "ContainerNotFound");
    // A new container of the name is empty at once.
    with_container(c, "cs").await;
    assert_eq!(code(c.blob(Address::blob("cs", "cont", "b")).await), "BlobNotFound");
    while c.tidy(NOW).await.unwrap() {}
    assert_eq!(code(c.container("cs", "cont").await), "ok");

    for name in ["aa1", "ab1", "ab2", "ac1"] {
        c.create_container(stamp("cl", "e"), container(name)).await.unwrap();
    }
    let page = c.list_containers("cl", "ab", "", 1).await.unwrap();
    assert_eq!((page.entries[0].name.as_str(), page.next.as_deref()), ("ab1", Some("ab2")));
    let page = c.list_containers("cl", "ab", "ab2", 1).await.unwrap();
    assert_eq!((page.entries[0].name.as_str(), page.next), ("ab2", None));
    assert_eq!(c.list_containers("cl", "", "", 10).await.unwrap().entries.len(), 4);
    assert_eq!(c.list_containers("cl", "x", "", 10).await.unwrap().entries.len(), 0);
}

async fn blobs(c: &dyn Catalogue) {
    assert_eq!(code(c.put_blob(stamp("bs", "e"), small("b", b"x"), Guard::default()).await), "ContainerNotFound");
    with_container(c, "bs").await;
    let first = c.put_blob(stamp("bs", "e1"), small("b", b"hello"), Guard::default()).await.unwrap();
    assert!(!first.repeated);
    assert_eq!((first.answer.length, first.answer.created), (5, NOW));
    let (blob, content) = c.blob_content(Address::blob("bs", "cont", "b")).await.unwrap();
    assert_eq!((blob, content), (first.answer.clone(), Content::Inline(Bytes::from_static(b"hello"))));

    let absent = Guard::from(Conditions::absent());
    assert_eq!(code(c.put_blob(stamp("bs", "e"), small("b", b""), absent).await), "BlobAlreadyExists");
    let only_new = Guard { only_new: true, ..Guard::default() };
    let refused = c.put_blob(stamp("bs", "e"), small("b", b""), only_new.clone()).await;
    assert_eq!(code(refused), "AuthorizationPermissionMismatch");
    assert_eq!(code(c.put_blob(stamp("bs", "e"), small("n", b""), only_new).await), "ok");

    let later = Stamp { now: NOW.plus(std::time::Duration::from_secs(5)), ..stamp("bs", "e2") };
    let new = c.put_blob(later, large("b", "obj-1"), Guard::default()).await.unwrap().answer;
    assert_eq!((new.created, new.etag.as_str(), new.length), (NOW, "e2", 100));
    assert_ne!(new.last_modified, NOW);

    let metadata = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    let stale = Guard::from(Conditions { if_match: Some(EtagSet::parse("e1")), ..Conditions::default() });
    let change = || BlobChange::Metadata(metadata.clone());
    assert_eq!(code(c.change_blob(stamp("bs", "e3"), "cont", "b", stale.clone(), change()).await), "ConditionNotMet");
    let changed = c.change_blob(stamp("bs", "e3"), "cont", "b", Guard::default(), change()).await.unwrap();
    assert_eq!((changed.etag.as_str(), &changed.metadata), ("e3", &metadata));
    let properties = BlobProperties { content_md5: Some([7; 16]), ..BlobProperties::default() };
    let change = BlobChange::Properties(properties.clone());
    c.change_blob(stamp("bs", "e4"), "cont", "b", Guard::default(), change).await.unwrap();
    let (blob, content) = c.blob_content(Address::blob("bs", "cont", "b")).await.unwrap();
    assert_eq!((blob.etag.as_str(), blob.properties, content.length()), ("e4", properties, 100));

    assert_eq!(
        code(c.delete_blob(stamp("bs", ""), "cont", "b", stale.clone(), Deletion::Blob).await),
        "ConditionNotMet"
    );
    c.delete_blob(stamp("bs", ""), "cont", "b", Guard::default(), Deletion::Blob).await.unwrap();
    assert_eq!(
        code(c.delete_blob(stamp("bs", ""), "cont", "b", Guard::default(), Deletion::Blob).await),
        "BlobNotFound"
    );
    assert_eq!(code(c.delete_blob(stamp("bs", ""), "cont", "b", stale, Deletion::Blob).await), "ConditionNotMet");
}

async fn requests(c: &dyn Catalogue) {
    let asked = |etag: &str, id: &str| Stamp { request_id: id.into(), ..stamp("rq", etag) };
    let first = c.create_container(asked("e1", "r1"), container("cont")).await.unwrap();
    let again = c.create_container(asked("e2", "r1"), container("cont")).await.unwrap();
    assert_eq!((again.repeated, again.answer), (true, first.answer));

    let absent = Guard::from(Conditions::absent());
    let first = c.put_blob(asked("e3", "r2"), large("b", "rq-1"), absent.clone()).await.unwrap();
    let again = c.put_blob(asked("e4", "r2"), large("b", "rq-2"), absent.clone()).await.unwrap();
    assert_eq!((again.repeated, again.answer), (true, first.answer));
    assert_eq!(code(c.put_blob(asked("e4", "r3"), large("b", "rq-2"), absent).await), "BlobAlreadyExists");
    let known = c.known(vec![ObjectKey("rq-1".into()), ObjectKey("rq-2".into())]).await.unwrap();
    assert_eq!(known, HashSet::from([ObjectKey("rq-1".into())]));

    for _ in 0..2 {
        c.delete_blob(asked("", "r4"), "cont", "b", Guard::default(), Deletion::Blob).await.unwrap();
    }
    for _ in 0..2 {
        c.delete_container(asked("", "r5"), "cont", Guard::default()).await.unwrap();
    }
}

async fn names(c: &dyn Catalogue, query: BlobQuery) -> (Vec<String>, Option<BlobPosition>) {
    let page = c.list_blobs("ls", "cont", query).await.unwrap();
    let names = page.entries.into_iter().map(|entry| match entry {
        BlobEntry::Blob(blob) => blob.name,
        BlobEntry::Prefix(prefix) => format!("[{prefix}]"),
        BlobEntry::Uncommitted { .. } => panic!("not asked for"),
    });
    (names.collect(), page.next)
}

async fn lists(c: &dyn Catalogue) {
    with_container(c, "ls").await;
    let all = ["a", "a/1", "a/2", "a/b/1", "a0", "ä/1", "ä/2", "b", "c/1", "\u{10FFFF}/x"];
    for name in all {
        c.put_blob(stamp("ls", "e"), small(name, b""), Guard::default()).await.unwrap();
    }
    let mut sorted = all.to_vec();
    sorted.sort_unstable();
    let query = |prefix: &str, delimiter: &str| BlobQuery {
        prefix: prefix.into(),
        delimiter: delimiter.into(),
        limit: 100,
        ..BlobQuery::default()
    };
    assert_eq!(names(c, query("", "")).await, (sorted.iter().map(|s| (*s).to_owned()).collect(), None));
    let strings = |names: &[&str]| names.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let top = ["a", "[a/]", "a0", "b", "[c/]", "[ä/]", "[\u{10FFFF}/]"];
    assert_eq!(names(c, query("", "/")).await, (strings(&top), None));
    assert_eq!(names(c, query("a/", "/")).await, (strings(&["a/1", "a/2", "[a/b/]"]), None));
    assert_eq!(names(c, query("a/b", "/")).await, (strings(&["[a/b/]"]), None));
    assert_eq!(names(c, query("zz", "/")).await, (strings(&[]), None));
    assert_eq!(names(c, query("", "/1")).await.0[1], "[a/1]");
    // Pages of every size join to the whole, and the last has no marker.
    for delimiter in ["", "/"] {
        let (whole, _) = names(c, query("", delimiter)).await;
        for limit in 1..=whole.len() {
            let (mut joined, mut from) = (Vec::new(), None);
            loop {
                let (page, next) = names(c, BlobQuery { limit, from: from.clone(), ..query("", delimiter) }).await;
                assert!(!page.is_empty() && page.len() <= limit);
                joined.extend(page);
                match next {
                    Some(next) => from = Some(next),
                    None => break,
                }
            }
            assert_eq!(joined, whole, "delimiter {delimiter:?}, limit {limit}");
        }
    }
    assert_eq!(code(c.list_blobs("ls", "none", query("", "")).await), "ContainerNotFound");
}

pub(super) fn block(blob: &str, id: &str, object: &str) -> NewBlock {
    NewBlock {
        container: "cont".into(),
        blob: blob.into(),
        id: id.into(),
        object: ObjectKey(object.into()),
        length: 10,
    }
}

pub(super) fn list(name: &str, blocks: &[(BlockSource, &str)]) -> BlockList {
    BlockList {
        container: "cont".into(),
        name: name.into(),
        properties: BlobProperties::default(),
        metadata: Metadata::new(),
        blocks: blocks.iter().map(|(source, id)| (*source, (*id).to_owned())).collect(),
        tier: None,
    }
}

pub(super) async fn objects_of(c: &dyn Catalogue, account: &str, name: &str) -> Vec<String> {
    match c.blob_content(Address::blob(account, "cont", name)).await.unwrap().1 {
        Content::Objects(extents) => extents.into_iter().map(|extent| extent.object.0).collect(),
        Content::Pieces(pieces) => pieces
            .into_iter()
            .filter_map(|piece| match piece {
                Piece::Object { key, .. } => Some(key.0),
                Piece::Bytes(_) => None,
            })
            .collect(),
        other => panic!("{other:?}"),
    }
}

async fn blocks(c: &dyn Catalogue) {
    use BlockSource::{Committed, Latest, Uncommitted};
    with_container(c, "bl").await;
    let put =
        |id: &'static str, object: &'static str| c.put_block(stamp("bl", ""), block("b", id, object), Guard::default());
    put("AAAA", "k1").await.unwrap();
    put("BBBB", "k2").await.unwrap();
    assert_eq!(code(put("AA==", "k3").await), "InvalidBlobOrBlock");
    assert_eq!(code(c.blob(Address::blob("bl", "cont", "b")).await), "BlobNotFound");
    let found = c.blocks(Address::blob("bl", "cont", "b")).await.unwrap();
    assert_eq!((found.blob, found.committed.len(), found.uncommitted.len()), (None, 0, 2));
    assert_eq!(code(c.blocks(Address::blob("bl", "cont", "none")).await), "BlobNotFound");

    let missing = list("b", &[(Committed, "AAAA")]);
    assert_eq!(code(c.put_block_list(stamp("bl", "e"), missing, Guard::default()).await), "InvalidBlockList");
    let three = list("b", &[(Uncommitted, "BBBB"), (Latest, "AAAA"), (Latest, "BBBB")]);
    let blob = c.put_block_list(stamp("bl", "e1"), three, Guard::default()).await.unwrap();
    assert_eq!(blob.length, 30);
    assert_eq!(objects_of(c, "bl", "b").await, ["k2", "k1", "k2"]);
    assert_eq!(c.blocks(Address::blob("bl", "cont", "b")).await.unwrap().uncommitted, []);

    // A new AAAA replaces the old one where Latest is asked for.
    put("AAAA", "k4").await.unwrap();
    put("AAAA", "k5").await.unwrap();
    let both = list("b", &[(Committed, "AAAA"), (Latest, "AAAA")]);
    c.put_block_list(stamp("bl", "e2"), both, Guard::default()).await.unwrap();
    assert_eq!(objects_of(c, "bl", "b").await, ["k1", "k5"]);
    let absent = Guard::from(Conditions::absent());
    assert_eq!(code(c.put_block_list(stamp("bl", "e3"), list("b", &[]), absent).await), "BlobAlreadyExists");
    let empty = c.put_block_list(stamp("bl", "e3"), list("b", &[]), Guard::default()).await.unwrap();
    assert_eq!(empty.length, 0);
    assert_eq!(
        code(
            c.put_block(stamp("bl", ""), block("b", "AAAA", "k6"), Guard { only_new: true, ..Guard::default() }).await
        ),
        "AuthorizationPermissionMismatch"
    );
    // Put Blob drops what was staged.
    put("AAAA", "k7").await.unwrap();
    c.put_blob(stamp("bl", "e4"), small("b", b""), Guard::default()).await.unwrap();
    assert_eq!(c.blocks(Address::blob("bl", "cont", "b")).await.unwrap().uncommitted, []);
    let lost: HashSet<String> = lost(c, "k").await;
    assert_eq!(lost, ["k1", "k2", "k4", "k5", "k7"].map(str::to_owned).into());
}

/// Garbage whose keys begin with `prefix`.
pub(super) async fn lost(c: &dyn Catalogue, prefix: &str) -> HashSet<String> {
    let all = c.garbage(NOW.plus(BLOCK_LIFE * 3), 10_000).await.unwrap();
    all.into_iter().map(|object| object.0).filter(|key| key.starts_with(prefix)).collect()
}

async fn garbage(c: &dyn Catalogue) {
    with_container(c, "gb").await;
    c.put_blob(stamp("gb", "e"), large("b", "g1"), Guard::default()).await.unwrap();
    assert!(lost(c, "g").await.is_empty());
    c.put_blob(stamp("gb", "e"), large("b", "g2"), Guard::default()).await.unwrap();
    assert_eq!(lost(c, "g").await, HashSet::from(["g1".to_owned()]));
    c.delete_blob(stamp("gb", ""), "cont", "b", Guard::default(), Deletion::Blob).await.unwrap();
    let keys = ["g1", "g2", "g3"].map(|key| ObjectKey(key.into()));
    assert_eq!(c.known(keys.to_vec()).await.unwrap(), keys[..2].iter().cloned().collect());
    assert!(c.garbage(NOW, 100).await.unwrap().iter().all(|key| key.0 != "g1"), "young garbage stays");
    c.forget_garbage(keys.to_vec()).await.unwrap();
    assert!(lost(c, "g").await.is_empty());
    assert!(c.known(keys.to_vec()).await.unwrap().is_empty());
}

async fn tidying(c: &dyn Catalogue) {
    with_container(c, "td").await;
    c.put_block(stamp("td", ""), block("old", "AAAA", "t1"), Guard::default()).await.unwrap();
    let later = NOW.plus(BLOCK_LIFE / 2);
    c.put_block(Stamp { now: later, ..stamp("td", "") }, block("young", "AAAA", "t2"), Guard::default()).await.unwrap();
    c.put_block(Stamp { now: later, ..stamp("td", "") }, block("old", "BBBB", "t3"), Guard::default()).await.unwrap();
    while c.tidy(NOW.plus(BLOCK_LIFE)).await.unwrap() {}
    assert!(lost(c, "t").await.is_empty(), "the last block counts");
    while c.tidy(later.plus(BLOCK_LIFE)).await.unwrap() {}
    assert!(lost(c, "t").await.is_empty(), "a week is not over");
    while c.tidy(later.plus(BLOCK_LIFE).plus(std::time::Duration::from_micros(1))).await.unwrap() {}
    assert_eq!(lost(c, "t").await, ["t1", "t2", "t3"].map(str::to_owned).into());

    for n in 0..1200 {
        c.put_blob(stamp("td", "e"), large(&format!("b{n}"), &format!("u{n}")), Guard::default()).await.unwrap();
    }
    c.put_block(stamp("td", ""), block("staged", "AAAA", "u-block"), Guard::default()).await.unwrap();
    c.delete_container(stamp("td", ""), "cont", Guard::default()).await.unwrap();
    while c.tidy(NOW).await.unwrap() {}
    assert_eq!(lost(c, "u").await.len(), 1201);
}

async fn places(c: &dyn Catalogue) {
    let name = c.identity("first").await.unwrap();
    assert_eq!((name.as_str(), c.identity("second").await.unwrap().as_str()), ("first", "first"));

    with_container(c, "pl").await;
    let sealed = SealedBytes { key: "k1".into(), bytes: Bytes::from(vec![7; 40]) };
    let content = Content::Sealed(sealed);
    let new = NewBlob { content: content.clone(), ..small("b", b"") };
    let blob = c.put_blob(stamp("pl", "e"), new, Guard::default()).await.unwrap().answer;
    assert_eq!((blob.length, c.blob_content(Address::blob("pl", "cont", "b")).await.unwrap().1), (8, content));
    c.put_blob(stamp("pl", "e"), large("o", "p1.k2"), Guard::default()).await.unwrap();
    c.put_block(stamp("pl", ""), block("s", "AAAA", "p2.k3"), Guard::default()).await.unwrap();
    for (id, used) in [("k1", true), ("k2", true), ("k3", true), ("k", false), ("2", false), ("k4", false)] {
        assert_eq!(c.key_in_use(id).await.unwrap(), used, "{id}");
    }
    c.add_encryption_key("k1", "p").await.unwrap();
    c.add_encryption_key("k1", "q").await.unwrap();
    assert_eq!(c.encryption_keys().await.unwrap(), [("k1".to_owned(), "p".to_owned())]);
    c.forget_encryption_key("k1").await.unwrap();
    assert_eq!(c.encryption_keys().await.unwrap(), []);

    let upload = |object: &str| OpenUpload { object: ObjectKey(object.into()), id: format!("id-{object}") };
    let later = NOW.plus(BLOCK_LIFE);
    c.note_upload(&upload("u1"), NOW).await.unwrap();
    c.note_upload(&upload("u2"), NOW).await.unwrap();
    c.note_upload(&upload("u2"), later).await.unwrap();
    assert_eq!(c.open_uploads(NOW, 10).await.unwrap(), []);
    assert_eq!(c.open_uploads(later, 10).await.unwrap(), [upload("u1")]);
    c.forget_upload(&ObjectKey("u1".into())).await.unwrap();
    assert_eq!(c.open_uploads(later.plus(BLOCK_LIFE), 10).await.unwrap(), [upload("u2")]);
}
