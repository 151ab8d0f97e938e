//! What every catalogue does with snapshots, append blobs and tiers. As
//! `conformance`: each subject uses accounts of its own.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kiln_etag::EtagSet;

use super::conformance::{NOW, block, code, large, list, lost, objects_of, small, stamp, with_container};
use super::*;
use crate::domain::model::{BLOCK_LIFE, Extent};

/// Runs the whole suite.
pub async fn all(catalogue: &dyn Catalogue) {
    snapshots(catalogue).await;
    shared_objects(catalogue).await;
    deletions(catalogue).await;
    tiers(catalogue).await;
    appends(catalogue).await;
    merges(catalogue).await;
    append_snapshots(catalogue).await;
    kinds_do_not_mix(catalogue).await;
    leases(catalogue).await;
    lists(catalogue).await;
    doomed(catalogue).await;
}

fn at(account: &'static str, name: &'static str, snapshot: Timestamp) -> Address<'static> {
    Address { snapshot: Some(snapshot), ..Address::blob(account, "cont", name) }
}

fn later(micros: u64) -> Timestamp {
    NOW.plus(Duration::from_micros(micros))
}

async fn take(c: &dyn Catalogue, account: &str, name: &str, now: Timestamp, metadata: Option<Metadata>) -> Blob {
    let stamp = Stamp { now, ..stamp(account, "s-etag") };
    c.take_snapshot(stamp, "cont", name, Guard::default(), metadata).await.unwrap()
}

async fn snapshots(c: &dyn Catalogue) {
    with_container(c, "sn").await;
    let missing = c.take_snapshot(stamp("sn", "e"), "cont", "none", Guard::default(), None).await;
    assert_eq!(code(missing), "BlobNotFound");
    let base = c.put_blob(stamp("sn", "e1"), small("b", b"one"), Guard::default()).await.unwrap().answer;
    let stale = Conditions { if_match: Some(EtagSet::parse("e0")), ..Conditions::default() };
    assert_eq!(code(c.take_snapshot(stamp("sn", "e"), "cont", "b", stale.into(), None).await), "ConditionNotMet");

    let first = take(c, "sn", "b", later(5), None).await;
    assert_eq!(first, Blob { snapshot: Some(later(5)), ..base.clone() }, "nothing but the moment is new");
    assert_eq!(c.blob(Address::blob("sn", "cont", "b")).await.unwrap(), base);
    // A clock that stands still or goes back still gives another name.
    let metadata = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    let second = take(c, "sn", "b", later(3), Some(metadata.clone())).await;
    assert_eq!((second.snapshot, second.last_modified), (Some(later(6)), later(3)));
    assert_eq!((second.etag.as_str(), &second.metadata), ("s-etag", &metadata));

    // What becomes of the blob is nothing to them.
    c.put_blob(stamp("sn", "e2"), large("b", "sn-1"), Guard::default()).await.unwrap();
    let third = take(c, "sn", "b", later(9), None).await;
    let one = Content::Inline(Bytes::from_static(b"one"));
    assert_eq!(c.blob_content(at("sn", "b", later(5))).await.unwrap(), (first, one.clone()));
    assert_eq!(c.blob_content(at("sn", "b", later(6))).await.unwrap(), (second, one));
    assert_eq!(c.blob_content(at("sn", "b", later(9))).await.unwrap().0, third);
    assert_eq!(third.length, 100);
    assert_eq!(code(c.blob(at("sn", "b", later(7))).await), "BlobNotFound");
}

/// Objects are garbage when nothing has them, and not before.
async fn shared_objects(c: &dyn Catalogue) {
    use BlockSource::{Committed, Latest};
    with_container(c, "sh").await;
    for (id, object) in [("AAAA", "sh-1"), ("BBBB", "sh-2")] {
        c.put_block(stamp("sh", ""), block("b", id, object), Guard::default()).await.unwrap();
    }
    let both = list("b", &[(Latest, "AAAA"), (Latest, "BBBB"), (Latest, "AAAA")]);
    c.put_block_list(stamp("sh", "e1"), both, Guard::default()).await.unwrap();
    take(c, "sh", "b", later(1), None).await;
    assert_eq!(c.blocks(at("sh", "b", later(1))).await.unwrap().committed.len(), 3);
    // The blob loses BBBB, the snapshot keeps it.
    c.put_block_list(stamp("sh", "e2"), list("b", &[(Committed, "AAAA")]), Guard::default()).await.unwrap();
    assert!(lost(c, "sh-").await.is_empty());
    take(c, "sh", "b", later(2), None).await;
    c.put_blob(stamp("sh", "e3"), small("b", b""), Guard::default()).await.unwrap();
    assert!(lost(c, "sh-").await.is_empty());
    let delete = |what| c.delete_blob(stamp("sh", ""), "cont", "b", Guard::default(), what);
    delete(Deletion::Snapshot(later(1))).await.unwrap();
    assert_eq!(lost(c, "sh-").await, HashSet::from(["sh-2".to_owned()]));
    assert_eq!(objects_of_snapshot(c, later(2)).await, ["sh-1"]);
    delete(Deletion::Snapshot(later(2))).await.unwrap();
    assert_eq!(lost(c, "sh-").await.len(), 2);

    // Two blobs may have one object, as copies do.
    for name in ["x", "y"] {
        c.put_blob(stamp("sh", "e"), large(name, "sh-3"), Guard::default()).await.unwrap();
    }
    c.put_blob(stamp("sh", "e"), large("x", "sh-3"), Guard::default()).await.unwrap();
    let delete = |name: &'static str| c.delete_blob(stamp("sh", ""), "cont", name, Guard::default(), Deletion::Blob);
    delete("x").await.unwrap();
    assert_eq!(lost(c, "sh-3").await.len(), 0);
    delete("y").await.unwrap();
    assert_eq!(lost(c, "sh-3").await.len(), 1);
}

async fn objects_of_snapshot(c: &dyn Catalogue, snapshot: Timestamp) -> Vec<String> {
    match c.blob_content(at("sh", "b", snapshot)).await.unwrap().1 {
        Content::Objects(extents) => extents.into_iter().map(|extent| extent.object.0).collect(),
        other => panic!("{other:?}"),
    }
}

async fn deletions(c: &dyn Catalogue) {
    with_container(c, "dl").await;
    let delete = |what| c.delete_blob(stamp("dl", ""), "cont", "b", Guard::default(), what);
    assert_eq!(code(delete(Deletion::Snapshots).await), "BlobNotFound");
    c.put_blob(stamp("dl", "e1"), large("b", "dl-1"), Guard::default()).await.unwrap();
    for micros in 0..3 {
        take(c, "dl", "b", later(micros), None).await;
    }
    assert_eq!(code(delete(Deletion::Blob).await), "SnapshotsPresent");
    assert_eq!(code(delete(Deletion::Snapshot(later(7))).await), "BlobNotFound");
    delete(Deletion::Snapshot(later(1))).await.unwrap();
    assert_eq!(code(c.blob(at("dl", "b", later(1))).await), "BlobNotFound");
    assert_eq!(code(c.blob(at("dl", "b", later(2))).await), "ok");
    delete(Deletion::Snapshots).await.unwrap();
    assert_eq!(code(c.blob(at("dl", "b", later(2))).await), "BlobNotFound");
    assert_eq!(objects_of(c, "dl", "b").await, ["dl-1"]);
    take(c, "dl", "b", later(9), None).await;
    delete(Deletion::WithSnapshots).await.unwrap();
    assert_eq!(lost(c, "dl-").await.len(), 1);
    // A new blob of the name has no snapshots.
    c.put_blob(stamp("dl", "e2"), small("b", b""), Guard::default()).await.unwrap();
    assert_eq!(code(c.blob(at("dl", "b", later(9))).await), "BlobNotFound");
    delete(Deletion::Blob).await.unwrap();
}

async fn tiers(c: &dyn Catalogue) {
    with_container(c, "ti").await;
    let of = Address::blob("ti", "cont", "b");
    assert_eq!(code(c.set_tier(of, NOW, Tier::Cool, None).await), "BlobNotFound");
    let chosen = |tier, since| Some(ChosenTier { tier, since });
    let new = NewBlob { tier: chosen(Tier::Cold, NOW), ..small("b", b"x") };
    let put = c.put_blob(stamp("ti", "e1"), new, Guard::default()).await.unwrap().answer;
    assert_eq!(put.tier, chosen(Tier::Cold, NOW));
    take(c, "ti", "b", later(1), None).await;
    c.set_tier(of, later(2), Tier::Cool, None).await.unwrap();
    assert_eq!(c.blob(of).await.unwrap(), Blob { tier: chosen(Tier::Cool, later(2)), ..put.clone() });
    let snapshot = at("ti", "b", later(1));
    assert_eq!(c.blob(snapshot).await.unwrap().tier, put.tier);
    c.set_tier(snapshot, later(3), Tier::Archive, None).await.unwrap();
    assert!(c.blob(snapshot).await.unwrap().is_archived() && !c.blob(of).await.unwrap().is_archived());
    c.put_blob(stamp("ti", "e2"), append_blob("a"), Guard::default()).await.unwrap();
    assert_eq!(code(c.set_tier(Address::blob("ti", "cont", "a"), NOW, Tier::Hot, None).await), "InvalidBlobType");
}

fn append_blob(name: &str) -> NewBlob {
    NewBlob { kind: BlobKind::Append { blocks: 0 }, content: Content::Pieces(Vec::new()), ..small(name, b"") }
}

fn bytes(text: &str) -> Piece {
    Piece::Bytes(Bytes::copy_from_slice(text.as_bytes()))
}

fn object(key: &str, length: u64) -> Piece {
    Piece::Object { key: ObjectKey(key.into()), length }
}

fn piece(blob: &str, piece: Piece, position: Position) -> NewPiece {
    NewPiece { container: "cont".into(), blob: blob.into(), piece, position }
}

async fn add(c: &dyn Catalogue, account: &str, what: Piece) -> Appended {
    let piece = piece("a", what, Position::default());
    c.append(stamp(account, "e"), piece, Guard::default()).await.unwrap()
}

async fn pieces(c: &dyn Catalogue, of: Address<'_>) -> Vec<Piece> {
    match c.blob_content(of).await.unwrap().1 {
        Content::Pieces(pieces) => pieces,
        other => panic!("{other:?}"),
    }
}

async fn appends(c: &dyn Catalogue) {
    with_container(c, "ap").await;
    let add = |etag: &'static str, what: &str, position, conditions| {
        c.append(stamp("ap", etag), piece("a", bytes(what), position), Guard { conditions, ..Guard::default() })
    };
    let anywhere = Position::default();
    assert_eq!(code(add("e", "x", anywhere, Conditions::default()).await), "BlobNotFound");
    let properties = BlobProperties { content_md5: Some([7; 16]), ..BlobProperties::default() };
    let new = NewBlob { properties, ..append_blob("a") };
    let made = c.put_blob(stamp("ap", "e0"), new, Guard::default()).await.unwrap().answer;
    assert_eq!((made.kind, made.length), (BlobKind::Append { blocks: 0 }, 0));
    let of = Address::blob("ap", "cont", "a");
    assert_eq!(pieces(c, of).await, []);

    let first = add("e1", "one", anywhere, Conditions::default()).await.unwrap();
    assert_eq!((first.offset, first.loose), (0, Loose { pieces: 1, bytes: 3 }));
    assert_eq!((first.blob.etag.as_str(), first.blob.length), ("e1", 3));
    assert_eq!((first.blob.kind, first.blob.properties.content_md5), (BlobKind::Append { blocks: 1 }, None));
    let expects = |at, max_size| Position { at, max_size };
    let refused = add("e", "x", expects(Some(0), None), Conditions::default()).await;
    assert_eq!(code(refused), "AppendPositionConditionNotMet");
    let refused = add("e", "xy", expects(Some(3), Some(4)), Conditions::default()).await;
    assert_eq!(code(refused), "MaxBlobSizeConditionNotMet");
    let stale = Conditions { if_match: Some(EtagSet::parse("e0")), ..Conditions::default() };
    assert_eq!(code(add("e", "x", anywhere, stale).await), "ConditionNotMet");
    let second = add("e2", "two", expects(Some(3), Some(6)), Conditions::default()).await.unwrap();
    assert_eq!((second.offset, second.loose), (3, Loose { pieces: 2, bytes: 6 }));
    let large = c.append(stamp("ap", "e3"), piece("a", object("ap-1", 500), anywhere), Guard::default()).await.unwrap();
    assert_eq!((large.offset, large.loose), (6, Loose { pieces: 2, bytes: 6 }));
    let last = add("e4", "three", anywhere, Conditions::default()).await.unwrap();
    assert_eq!(pieces(c, of).await, [bytes("onetwo"), object("ap-1", 500), bytes("three")]);
    assert_eq!(c.blob(of).await.unwrap(), last.blob);
    assert_eq!(last.blob.kind, BlobKind::Append { blocks: 4 });

    let metadata = BlobChange::Metadata(Metadata::new());
    c.change_blob(stamp("ap", "e5"), "cont", "a", Guard::default(), metadata).await.unwrap();
    assert_eq!(c.blob(of).await.unwrap().kind, last.blob.kind);
    // A new one of the name begins anew.
    c.put_blob(stamp("ap", "e6"), append_blob("a"), Guard::default()).await.unwrap();
    assert_eq!(pieces(c, of).await, []);
    assert_eq!(lost(c, "ap-").await.len(), 1);
    let first = add("e7", "x", anywhere, Conditions::default()).await.unwrap();
    assert_eq!((first.offset, first.loose.pieces), (0, 1));
    // A copy of one begins with what it copies, and goes on from there.
    let copied = NewBlob {
        kind: BlobKind::Append { blocks: 9 },
        content: Content::Pieces(vec![bytes("ab"), object("ap-2", 5)]),
        ..append_blob("a")
    };
    c.put_blob(stamp("ap", "e8"), copied, Guard::default()).await.unwrap();
    let added = add("e9", "c", anywhere, Conditions::default()).await.unwrap();
    assert_eq!((added.offset, added.blob.kind), (7, BlobKind::Append { blocks: 10 }));
    assert_eq!(added.loose, Loose { pieces: 2, bytes: 3 });
    assert_eq!(pieces(c, of).await, [bytes("ab"), object("ap-2", 5), bytes("c")]);
}

async fn merges(c: &dyn Catalogue) {
    with_container(c, "mg").await;
    c.put_blob(stamp("mg", "e"), append_blob("a"), Guard::default()).await.unwrap();
    let of = Address::blob("mg", "cont", "a");
    for text in ["a", "bc", "d"] {
        add(c, "mg", bytes(text)).await;
    }
    add(c, "mg", object("mg-1", 10)).await;
    add(c, "mg", bytes("ef")).await;
    let runs = c.loose("mg", "cont", "a").await.unwrap();
    let shown: Vec<_> = runs.iter().map(|run| (run.first, run.last, &run.bytes[..])).collect();
    assert_eq!(shown, [(0, 2, &b"abcd"[..]), (4, 4, &b"ef"[..])]);
    let before = c.blob(of).await.unwrap();

    assert!(c.merge(runs[0].clone(), ObjectKey("mg-2".into())).await.unwrap());
    assert_eq!(pieces(c, of).await, [object("mg-2", 4), object("mg-1", 10), bytes("ef")]);
    assert_eq!(c.blob(of).await.unwrap(), before, "nobody sees it");
    // Whoever comes second has nothing to merge any more.
    assert!(!c.merge(runs[0].clone(), ObjectKey("mg-3".into())).await.unwrap());
    let known = c.known(vec![ObjectKey("mg-2".into()), ObjectKey("mg-3".into())]).await.unwrap();
    assert_eq!(known, HashSet::from([ObjectKey("mg-2".into())]));
    let added = add(c, "mg", bytes("g")).await;
    assert_eq!(added.loose, Loose { pieces: 2, bytes: 3 });
    let runs = c.loose("mg", "cont", "a").await.unwrap();
    assert!(c.merge(runs[0].clone(), ObjectKey("mg-4".into())).await.unwrap());
    assert_eq!(pieces(c, of).await, [object("mg-2", 4), object("mg-1", 10), object("mg-4", 3)]);
    assert_eq!(c.loose("mg", "cont", "a").await.unwrap(), []);
    add(c, "mg", bytes("h")).await;
    let runs = c.loose("mg", "cont", "a").await.unwrap();
    c.delete_blob(stamp("mg", ""), "cont", "a", Guard::default(), Deletion::Blob).await.unwrap();
    assert!(!c.merge(runs[0].clone(), ObjectKey("mg-5".into())).await.unwrap(), "the blob is gone");
    assert_eq!(lost(c, "mg-").await, ["mg-1", "mg-2", "mg-4"].map(str::to_owned).into());
}

/// A snapshot shows the bytes there were, also after they were merged with later ones.
async fn append_snapshots(c: &dyn Catalogue) {
    with_container(c, "as").await;
    c.put_blob(stamp("as", "e"), append_blob("a"), Guard::default()).await.unwrap();
    add(c, "as", bytes("one")).await;
    take(c, "as", "a", later(1), None).await;
    add(c, "as", bytes("two")).await;
    let snapshot = at("as", "a", later(1));
    assert_eq!(pieces(c, snapshot).await, [bytes("one")]);
    let runs = c.loose("as", "cont", "a").await.unwrap();
    assert!(c.merge(runs[0].clone(), ObjectKey("as-1".into())).await.unwrap());
    assert_eq!(pieces(c, snapshot).await, [object("as-1", 3)]);
    assert_eq!(pieces(c, Address::blob("as", "cont", "a")).await, [object("as-1", 6)]);
    assert_eq!(c.blob(snapshot).await.unwrap().kind, BlobKind::Append { blocks: 1 });
    add(c, "as", bytes("three")).await;
    let runs = c.loose("as", "cont", "a").await.unwrap();
    // The blob goes, its content stays for the snapshot, and may still be merged.
    c.put_blob(stamp("as", "e"), append_blob("a"), Guard::default()).await.unwrap();
    assert!(c.merge(runs[0].clone(), ObjectKey("as-2".into())).await.unwrap());
    assert_eq!(pieces(c, snapshot).await, [object("as-1", 3)]);
    assert!(lost(c, "as-").await.is_empty());
    c.delete_blob(stamp("as", ""), "cont", "a", Guard::default(), Deletion::WithSnapshots).await.unwrap();
    assert_eq!(lost(c, "as-").await.len(), 2);
}

async fn kinds_do_not_mix(c: &dyn Catalogue) {
    with_container(c, "km").await;
    c.put_blob(stamp("km", "e"), append_blob("a"), Guard::default()).await.unwrap();
    c.put_blob(stamp("km", "e"), small("b", b"x"), Guard::default()).await.unwrap();
    let wrong = "InvalidBlobType";
    let add = c.append(stamp("km", "e"), piece("b", bytes("x"), Position::default()), Guard::default()).await;
    assert_eq!(code(add), wrong);
    assert_eq!(code(c.put_block(stamp("km", "e"), block("a", "AAAA", "km-1"), Guard::default()).await), wrong);
    assert_eq!(code(c.put_block_list(stamp("km", "e"), list("a", &[]), Guard::default()).await), wrong);
    assert_eq!(code(c.blocks(Address::blob("km", "cont", "a")).await), wrong);
    // Put Blob may change the kind.
    c.put_blob(stamp("km", "e"), small("a", b"x"), Guard::default()).await.unwrap();
    assert_eq!(code(c.blocks(Address::blob("km", "cont", "a")).await), "ok");
}

/// A lease keeps others from writing; snapshots and tiers are open to all, unless they name a wrong lease.
async fn leases(c: &dyn Catalogue) {
    with_container(c, "lz").await;
    let held = |id: &str| Guard { lease: Some(id.into()), ..Guard::default() };
    c.put_blob(stamp("lz", "e"), append_blob("a"), Guard::default()).await.unwrap();
    c.put_blob(stamp("lz", "e"), small("b", b"x"), Guard::default()).await.unwrap();
    for name in ["a", "b"] {
        let action = LeaseAction::Acquire { proposed: None, fresh: "mine".into(), seconds: None };
        c.lease_blob(stamp("lz", ""), "cont", name, Conditions::default(), action).await.unwrap();
    }
    let (missing, wrong) = ("LeaseIdMissing", "LeaseIdMismatchWithBlobOperation");
    for (guard, append, others) in
        [(Guard::default(), missing, "ok"), (held("other"), wrong, wrong), (held("mine"), "ok", "ok")]
    {
        let added = c.append(stamp("lz", "e"), piece("a", bytes("x"), Position::default()), guard.clone()).await;
        assert_eq!(code(added), append);
        assert_eq!(code(c.take_snapshot(stamp("lz", "e"), "cont", "b", guard.clone(), None).await), others);
        let tier = c.set_tier(Address::blob("lz", "cont", "b"), NOW, Tier::Cool, guard.lease.clone()).await;
        assert_eq!(code(tier), others);
        let delete = |what| c.delete_blob(stamp("lz", ""), "cont", "b", guard.clone(), what);
        assert_eq!(code(delete(Deletion::Snapshots).await), others);
        assert_eq!(code(delete(Deletion::WithSnapshots).await), append);
    }
    assert!(c.blob(Address::blob("lz", "cont", "a")).await.unwrap().lease.id().is_some());
}

fn shown(entry: BlobEntry) -> String {
    match entry {
        BlobEntry::Blob(blob) => match blob.snapshot {
            None => blob.name,
            Some(at) => format!("{}@{}", blob.name, at.since(NOW).as_micros()),
        },
        BlobEntry::Uncommitted { name, time } => format!("{name}?{}", time.since(NOW).as_micros()),
        BlobEntry::Prefix(prefix) => format!("[{prefix}]"),
    }
}

async fn lists(c: &dyn Catalogue) {
    with_container(c, "lk").await;
    for name in ["a", "b", "b/1", "d"] {
        c.put_blob(stamp("lk", "e"), small(name, b""), Guard::default()).await.unwrap();
    }
    for (name, micros) in [("b", 1), ("b", 2), ("d", 3), ("b/1", 4), ("b", 5)] {
        take(c, "lk", name, later(micros), None).await;
    }
    for (name, micros) in [("b", 0), ("b/2", 7), ("c", 8), ("a0", 9)] {
        let stamp = Stamp { now: later(micros), ..stamp("lk", "") };
        c.put_block(stamp, block(name, "AAAA", &format!("lk-{name}")), Guard::default()).await.unwrap();
    }
    let all = ["a", "a0?9", "b@1", "b@2", "b@5", "b", "b/1@4", "b/1", "b/2?7", "c?8", "d@3", "d"];
    let cut = ["a", "a0?9", "b@1", "b@2", "b@5", "b", "[b/]", "c?8", "d@3", "d"];
    let query = |snapshots, uncommitted, delimiter: &str| BlobQuery {
        delimiter: delimiter.into(),
        limit: 100,
        snapshots,
        uncommitted,
        ..BlobQuery::default()
    };
    for (query, expected) in [
        (query(true, true, ""), all.to_vec()),
        (query(true, true, "/"), cut.to_vec()),
        (query(true, false, ""), all.iter().filter(|name| !name.contains('?')).copied().collect()),
        (query(false, true, ""), all.iter().filter(|name| !name.contains('@')).copied().collect()),
        (query(false, false, "/"), vec!["a", "b", "[b/]", "d"]),
    ] {
        for limit in 1..=expected.len() + 1 {
            let (mut joined, mut from) = (Vec::new(), None);
            loop {
                let query = BlobQuery { limit, from: from.clone(), ..query.clone() };
                let page = c.list_blobs("lk", "cont", query).await.unwrap();
                assert!(!page.entries.is_empty() && page.entries.len() <= limit);
                joined.extend(page.entries.into_iter().map(shown));
                match page.next {
                    Some(next) => from = Some(next),
                    None => break,
                }
            }
            assert_eq!(joined, expected, "limit {limit}");
        }
    }
    // A list may begin at a name; a prefix holds all the same.
    let from = |name: &str, prefix: &str| BlobQuery {
        from: Some(BlobPosition::before(name.into())),
        prefix: prefix.into(),
        ..query(true, true, "")
    };
    for (query, expected) in [
        (from("b/", ""), &all[6..]),
        (from("b", ""), &all[2..]),
        (from("", "b/"), &all[6..9]),
        (from("b/2", "b/"), &all[8..9]),
        (from("c", "b/"), &[]),
    ] {
        let page = c.list_blobs("lk", "cont", query).await.unwrap();
        assert_eq!(page.entries.into_iter().map(shown).collect::<Vec<_>>(), expected);
    }
}

async fn doomed(c: &dyn Catalogue) {
    with_container(c, "dm").await;
    c.put_blob(stamp("dm", "e"), append_blob("a"), Guard::default()).await.unwrap();
    add(c, "dm", bytes("x")).await;
    add(c, "dm", object("dm-1", 5)).await;
    take(c, "dm", "a", later(1), None).await;
    let extent = Extent { block_id: None, object: ObjectKey("dm-2".into()), length: 7 };
    let new = NewBlob { content: Content::Objects(vec![extent]), ..small("b", b"") };
    c.put_blob(stamp("dm", "e"), new, Guard::default()).await.unwrap();
    take(c, "dm", "b", later(2), None).await;
    c.put_blob(stamp("dm", "e"), large("b", "dm-3"), Guard::default()).await.unwrap();
    c.delete_container(stamp("dm", ""), "cont", Guard::default()).await.unwrap();
    while c.tidy(NOW).await.unwrap() {}
    assert_eq!(lost(c, "dm-").await, ["dm-1", "dm-2", "dm-3"].map(str::to_owned).into());
    assert!(c.garbage(NOW.plus(BLOCK_LIFE), 10_000).await.unwrap().len() >= 3);
}
