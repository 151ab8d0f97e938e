//! Copies that name the objects of their sources.

use super::*;
use crate::domain::model::CopySource;

fn from(account: &str, name: &str) -> CopyFrom {
    CopyFrom {
        account: account.into(),
        container: "cont".into(),
        name: name.into(),
        snapshot: None,
        conditions: Conditions::default(),
        etag: None,
    }
}

fn into(name: &str) -> CopyInto {
    CopyInto {
        container: "cont".into(),
        name: name.into(),
        metadata: None,
        properties: None,
        copy: None,
        tier: None,
        keep_blocks: true,
    }
}

pub async fn all(c: &dyn Catalogue) {
    with_container(c, "cp").await;
    with_container(c, "cq").await;
    refused(c).await;
    shared(c).await;
}

async fn refused(c: &dyn Catalogue) {
    c.put_blob(stamp("cp", "e1"), small("s", b"hello"), Guard::default()).await.unwrap();
    let copy = |from, into, guard| c.copy_blob(stamp("cq", "x"), from, into, guard);
    let matching = |etag: &str| Conditions { if_match: Some(EtagSet::parse(etag)), ..Conditions::default() };
    let other = |conditions| CopyFrom { conditions, ..from("cp", "s") };
    let no_container = CopyFrom { container: "none".into(), ..from("cp", "s") };
    assert_eq!(code(copy(from("cp", "none"), into("s"), Guard::default()).await), "BlobNotFound");
    assert_eq!(code(copy(no_container, into("s"), Guard::default()).await), "BlobNotFound");
    let nowhere = CopyInto { container: "none".into(), ..into("s") };
    assert_eq!(code(copy(from("cp", "s"), nowhere, Guard::default()).await), "ContainerNotFound");
    for conditions in [matching("e9"), Conditions { if_none_match: Some(EtagSet::Any), ..Conditions::default() }] {
        assert_eq!(code(copy(other(conditions), into("s"), Guard::default()).await), "SourceConditionNotMet");
    }
    let changed = CopyFrom { etag: Some("e9".into()), ..from("cp", "s") };
    assert_eq!(code(copy(changed, into("s"), Guard::default()).await), "SourceConditionNotMet");
    assert_eq!(code(c.blob(Address::blob("cq", "cont", "s")).await), "BlobNotFound");
    assert_eq!(code(copy(other(matching("e1")), into("s"), Guard::default()).await), "ok");
    let absent = Guard::from(Conditions::absent());
    assert_eq!(code(copy(from("cp", "s"), into("s"), absent).await), "BlobAlreadyExists");
    let only_new = Guard { only_new: true, ..Guard::default() };
    assert_eq!(code(copy(from("cp", "s"), into("s"), only_new).await), "AuthorizationPermissionMismatch");
    let leased = Guard { lease: Some("a".into()), ..Guard::default() };
    assert_eq!(code(copy(from("cp", "s"), into("s"), leased).await), "LeaseNotPresentWithBlobOperation");
    let (_, content) = c.blob_content(Address::blob("cq", "cont", "s")).await.unwrap();
    assert_eq!(content, Content::Inline(Bytes::from_static(b"hello")));
}

async fn shared(c: &dyn Catalogue) {
    c.put_block(stamp("cp", ""), block("b", "AAAA", "y1"), Guard::default()).await.unwrap();
    c.put_block(stamp("cp", ""), block("b", "BBBB", "y2"), Guard::default()).await.unwrap();
    let blocks = list("b", &[(BlockSource::Latest, "AAAA"), (BlockSource::Latest, "BBBB")]);
    let source = c.put_block_list(stamp("cp", "e2"), blocks, Guard::default()).await.unwrap();

    // Of another account, with what it says of itself.
    let told = CopySource { id: "c1".into(), source: "http://h/b".into(), completed: NOW };
    let told = CopyInto { copy: Some(told), ..into("b") };
    let copy = c.copy_blob(stamp("cq", "e3"), from("cp", "b"), told.clone(), Guard::default()).await.unwrap();
    assert_eq!((copy.length, &copy.properties, &copy.copy), (20, &source.properties, &told.copy));
    assert_eq!(objects_of(c, "cq", "b").await, ["y1", "y2"]);
    let found = c.blocks(Address::blob("cq", "cont", "b")).await.unwrap();
    assert_eq!(found.committed.iter().map(|block| block.id.as_str()).collect::<Vec<_>>(), ["AAAA", "BBBB"]);
    let properties = BlobProperties { content_type: "c/d".into(), ..BlobProperties::default() };
    let whole = CopyInto { keep_blocks: false, properties: Some(properties), ..into("w") };
    let whole = c.copy_blob(stamp("cq", "e4"), from("cp", "b"), whole, Guard::default()).await.unwrap();
    assert_eq!(whole.properties.content_type, "c/d");
    assert_eq!(c.blocks(Address::blob("cq", "cont", "w")).await.unwrap().committed, []);
    // Who changes the headers of a copy makes it something of its own.
    let change = BlobChange::Properties(BlobProperties::default());
    let changed = c.change_blob(stamp("cq", "e5"), "cont", "b", Guard::default(), change).await.unwrap();
    assert_eq!(changed.copy, None);
    assert_eq!(c.blob(Address::blob("cq", "cont", "b")).await.unwrap().copy, None);

    // Onto itself: nothing is lost.
    c.copy_blob(stamp("cp", "e6"), from("cp", "b"), into("b"), Guard::default()).await.unwrap();
    assert_eq!(objects_of(c, "cp", "b").await, ["y1", "y2"]);
    assert!(lost(c, "y").await.is_empty());

    // Objects go with the last blob that names them.
    c.delete_blob(stamp("cp", ""), "cont", "b", Guard::default(), Deletion::Blob).await.unwrap();
    c.put_blob(stamp("cq", "e7"), small("b", b""), Guard::default()).await.unwrap();
    assert!(lost(c, "y").await.is_empty());
    assert_eq!(objects_of(c, "cq", "w").await, ["y1", "y2"]);
    c.copy_blob(stamp("cq", "e8"), from("cp", "s"), into("w"), Guard::default()).await.unwrap();
    assert_eq!(lost(c, "y").await, ["y1", "y2"].map(str::to_owned).into());
}
