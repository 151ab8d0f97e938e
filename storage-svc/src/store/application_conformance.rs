//! What every catalogue does with applications.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

use kiln_etag::Conditions;
use kiln_ids::{ApplicationId, PackageVersion};
use kiln_time::Timestamp;

use super::conformance::{block, lost, small, stamp};
use super::*;
use crate::domain::application::{
    Application, ApplicationChange, CONTAINER, MAX_APPLICATIONS, MAX_PACKAGES, Package, PackageContent, blob_name,
};
use crate::domain::lease::{Lease, LeaseAction};
use crate::domain::model::{Address, Extent, ObjectKey};

/// Runs this part of the suite.
pub async fn all(c: &dyn Catalogue) {
    applications(c).await;
    packages(c).await;
    defaults(c).await;
    limits(c).await;
    reserved(c).await;
}

fn id(text: &str) -> ApplicationId {
    ApplicationId::parse(text).unwrap()
}

fn v(text: &str) -> PackageVersion {
    PackageVersion::parse(text).unwrap()
}

fn application(name: &str) -> Application {
    Application {
        id: id(name),
        display_name: "For people".into(),
        allow_updates: true,
        default_version: None,
        packages: Vec::new(),
        created: Timestamp::default(),
        modified: Timestamp::default(),
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, StorageError>) -> &'static str {
    result.map_or_else(|error| error.code(), |_| "ok")
}

fn asked(account: &str, request_id: &str) -> Stamp {
    Stamp { request_id: request_id.into(), ..stamp(account, "e1") }
}

fn change() -> ApplicationChange {
    ApplicationChange::default()
}

async fn applications(c: &dyn Catalogue) {
    let made = c.create_application(asked("Ap", "r1"), application("Tool")).await.unwrap();
    let again = c.create_application(asked("ap", "r1"), application("Tool")).await.unwrap();
    assert_eq!((made.repeated, again.repeated, &again.answer), (false, true, &made.answer));
    assert_eq!(code(c.create_application(stamp("ap", "e"), application("TOOL")).await), "ApplicationExists");
    let found = c.application("AP", &id("tool")).await.unwrap();
    assert_eq!((&found, found.id.as_str(), found.created), (&made.answer, "Tool", stamp("", "").now));
    assert_eq!(code(c.application("other", &id("tool")).await), "ApplicationNotFound");

    let named = ApplicationChange { display_name: Some("New".into()), allow_updates: Some(false), ..change() };
    let changed = c.change_application(stamp("ap", "e"), &id("tool"), named).await.unwrap();
    assert_eq!((&*changed.display_name, changed.allow_updates), ("New", false));
    assert_eq!(c.application("ap", &id("tool")).await.unwrap(), changed);
    assert_eq!(code(c.change_application(stamp("ap", "e"), &id("no"), change()).await), "ApplicationNotFound");

    for name in ["b", "A", "c"] {
        c.create_application(stamp("ap", "e"), application(name)).await.unwrap();
    }
    let (mut names, mut after) = (Vec::new(), String::new());
    loop {
        let page = c.list_applications("ap", &after, 2).await.unwrap();
        names.extend(page.entries.into_iter().map(|found| found.id.to_string()));
        let Some(next) = page.next else { break };
        after = next;
    }
    assert_eq!(names, ["A", "b", "c", "Tool"]);
    for _ in 0..2 {
        c.delete_application(asked("ap", "r2"), &id("B")).await.unwrap();
    }
    assert_eq!(code(c.delete_application(asked("ap", "r3"), &id("B")).await), "ApplicationNotFound");
}

/// Announces and puts a zip; gives what would be activated.
async fn put(c: &dyn Catalogue, account: &str, version: &str, unique: &str) -> PackageContent {
    let name = blob_name(&id("tool"), &v(version), unique);
    c.create_package(stamp(account, "e"), &id("tool"), &v(version), name.clone()).await.unwrap();
    let extent = Extent { block_id: None, object: ObjectKey(format!("pk-{account}-{unique}")), length: 9 };
    let content = Content::Objects(vec![extent]);
    let blob = NewBlob { container: CONTAINER.into(), content, ..small(&name, b"") };
    let blob = c.put_blob(stamp(account, unique), blob, Guard::default()).await.unwrap().answer;
    PackageContent { blob: name, etag: blob.etag, md5: Some([1; 16]), length: 9, activated: Timestamp::default() }
}

async fn activate(c: &dyn Catalogue, account: &str, version: &str, content: &PackageContent) -> Package {
    c.activate_package(stamp(account, "e"), &id("tool"), &v(version), content.clone()).await.unwrap()
}

async fn packages(c: &dyn Catalogue) {
    let pending = blob_name(&id("tool"), &v("1.0-A"), "x");
    let announced = c.create_package(stamp("pk", "e"), &id("tool"), &v("1.0-A"), pending).await;
    assert_eq!(code(announced), "ApplicationNotFound");
    c.create_application(stamp("pk", "e"), application("tool")).await.unwrap();

    // Announced again, the first zip goes; its request said again gives the first answer.
    let first = put(c, "pk", "1.0-A", "u1").await;
    let second = put(c, "pk", "1.0-a", "u2").await;
    assert_eq!(lost(c, "pk-pk").await, HashSet::from(["pk-pk-u1".to_owned()]));
    let stale = c.activate_package(stamp("pk", "e"), &id("tool"), &v("1.0-a"), first).await;
    assert_eq!(code(stale), "ApplicationPackageReplaced");
    let other = PackageContent { etag: "other".into(), ..second.clone() };
    let stale = c.activate_package(stamp("pk", "e"), &id("tool"), &v("1.0-a"), other).await;
    assert_eq!(code(stale), "ApplicationPackageReplaced");
    let active = activate(c, "pk", "1.0-a", &second).await;
    assert_eq!((active.version.as_str(), active.pending.as_ref()), ("1.0-A", None));
    let content = active.content.clone().unwrap();
    assert_eq!((&content.blob, content.activated), (&second.blob, stamp("", "").now));
    assert_eq!(activate(c, "pk", "1.0-a", &second).await, active, "the same again changes nothing");
    assert_eq!(c.application("pk", &id("tool")).await.unwrap().packages, [active]);

    // What is active stays until the next is.
    let third = put(c, "pk", "1.0-A", "u3").await;
    let both = c.application("pk", &id("tool")).await.unwrap().packages.remove(0);
    assert_eq!((both.content, both.pending), (Some(content), Some(third.blob.clone())));
    assert!(!lost(c, "pk-pk").await.contains("pk-pk-u2"));
    activate(c, "pk", "1.0-A", &third).await;
    assert!(lost(c, "pk-pk").await.contains("pk-pk-u2"));

    let locked = ApplicationChange { allow_updates: Some(false), ..change() };
    c.change_application(stamp("pk", "e"), &id("tool"), locked).await.unwrap();
    let name = blob_name(&id("tool"), &v("1.0-A"), "u4");
    let refused = c.create_package(stamp("pk", "e"), &id("tool"), &v("1.0-A"), name).await;
    assert_eq!(code(refused), "ApplicationUpdatesNotAllowed");
    let refused = c.delete_package(stamp("pk", "e"), &id("tool"), &v("1.0-A")).await;
    assert_eq!(code(refused), "ApplicationUpdatesNotAllowed");
    let open = ApplicationChange { allow_updates: Some(true), ..change() };
    c.change_application(stamp("pk", "e"), &id("tool"), open).await.unwrap();
    assert_eq!(code(c.delete_application(stamp("pk", "e"), &id("tool")).await), "ApplicationHasPackages");
    for _ in 0..2 {
        c.delete_package(asked("pk", "r"), &id("tool"), &v("1.0-a")).await.unwrap();
    }
    let gone = c.delete_package(stamp("pk", "e"), &id("tool"), &v("1.0-a")).await;
    assert_eq!(code(gone), "ApplicationPackageNotFound");
    assert_eq!(lost(c, "pk-pk").await.len(), 3);
    c.delete_application(stamp("pk", "e"), &id("tool")).await.unwrap();
}

async fn defaults(c: &dyn Catalogue) {
    c.create_application(stamp("pd", "e"), application("tool")).await.unwrap();
    let set = |version: &str| {
        let wanted = (!version.is_empty()).then(|| v(version));
        ApplicationChange { default_version: Some(wanted), ..change() }
    };
    let content = put(c, "pd", "2.X", "u").await;
    let early = c.change_application(stamp("pd", "e"), &id("tool"), set("2.x")).await;
    assert_eq!(code(early), "ApplicationPackageNotActive");
    activate(c, "pd", "2.X", &content).await;
    let missing = c.change_application(stamp("pd", "e"), &id("tool"), set("3")).await;
    assert_eq!(code(missing), "ApplicationPackageNotFound");
    let changed = c.change_application(stamp("pd", "e"), &id("tool"), set("2.x")).await.unwrap();
    assert_eq!(changed.default_version.unwrap().as_str(), "2.X");
    c.change_application(stamp("pd", "e"), &id("tool"), set("")).await.unwrap();
    assert_eq!(c.application("pd", &id("tool")).await.unwrap().default_version, None);
    c.change_application(stamp("pd", "e"), &id("tool"), set("2.x")).await.unwrap();
    c.delete_package(stamp("pd", "e"), &id("tool"), &v("2.x")).await.unwrap();
    assert_eq!(c.application("pd", &id("tool")).await.unwrap().default_version, None);
}

async fn limits(c: &dyn Catalogue) {
    for n in 0..MAX_APPLICATIONS {
        c.create_application(stamp("pl", "e"), application(&format!("a{n}"))).await.unwrap();
    }
    let one_more = c.create_application(stamp("pl", "e"), application("more")).await;
    assert_eq!(code(one_more), "ApplicationQuotaReached");
    for n in 0..MAX_PACKAGES {
        let version = v(&n.to_string());
        c.create_package(stamp("pl", "e"), &id("a0"), &version, blob_name(&id("a0"), &version, "u")).await.unwrap();
    }
    let more = c.create_package(stamp("pl", "e"), &id("a0"), &v("more"), blob_name(&id("a0"), &v("more"), "u")).await;
    assert_eq!(code(more), "ApplicationPackageQuotaReached");
    assert_eq!(c.application("pl", &id("a0")).await.unwrap().packages.len(), MAX_PACKAGES);
}

/// Nobody writes to blobs of packages past their announcement.
async fn reserved(c: &dyn Catalogue) {
    let no = "AuthorizationFailure";
    c.create_application(stamp("pr", "e"), application("tool")).await.unwrap();
    let content = put(c, "pr", "1", "u").await;
    let blob = |name: &str| NewBlob { container: CONTAINER.into(), ..small(name, b"x") };
    let list = |name: &str| BlockList {
        container: CONTAINER.into(),
        name: name.into(),
        properties: BlobProperties::default(),
        metadata: Metadata::new(),
        blocks: Vec::new(),
        tier: None,
    };
    let own = || CopyFrom {
        account: "pr".into(),
        container: CONTAINER.into(),
        name: content.blob.clone(),
        snapshot: None,
        conditions: Conditions::default(),
        etag: None,
    };
    let into = |name: &str| CopyInto {
        container: CONTAINER.into(),
        name: name.into(),
        metadata: None,
        properties: None,
        copy: None,
        tier: None,
        keep_blocks: false,
    };
    let block = |name: &str| NewBlock { container: CONTAINER.into(), ..block(name, "AAAA", "pr-block") };
    for other in ["x", "tool/1/other.zip", "tool/2/u.zip"] {
        assert_eq!(code(c.put_blob(stamp("pr", "e"), blob(other), Guard::default()).await), no, "{other}");
        assert_eq!(code(c.put_block_list(stamp("pr", "e"), list(other), Guard::default()).await), no, "{other}");
        assert_eq!(code(c.copy_blob(stamp("pr", "e"), own(), into(other), Guard::default()).await), no, "{other}");
        assert_eq!(code(c.put_block(stamp("pr", "e"), block(other), Guard::default()).await), no, "{other}");
    }
    activate(c, "pr", "1", &content).await;
    assert_eq!(code(c.put_blob(stamp("pr", "e"), blob(&content.blob), Guard::default()).await), no);
    assert_eq!(code(c.put_block_list(stamp("pr", "e"), list(&content.blob), Guard::default()).await), no);
    assert_eq!(code(c.copy_blob(stamp("pr", "e"), own(), into(&content.blob), Guard::default()).await), no);
    assert_eq!(code(c.put_block(stamp("pr", "e"), block(&content.blob), Guard::default()).await), no);
    let all = Guard::default;
    for what in [Deletion::Blob, Deletion::WithSnapshots, Deletion::Snapshots, Deletion::Snapshot(Timestamp::default())]
    {
        assert_eq!(code(c.delete_blob(stamp("pr", "e"), CONTAINER, &content.blob, all(), what).await), no, "{what:?}");
    }
    assert_eq!(code(c.take_snapshot(stamp("pr", "e"), CONTAINER, &content.blob, all(), None).await), no);
    let piece = NewPiece {
        container: CONTAINER.into(),
        blob: content.blob.clone(),
        piece: Piece::Bytes(vec![1].into()),
        position: Position::default(),
    };
    assert_eq!(code(c.append(stamp("pr", "e"), piece, all()).await), no);
    let blob_itself = Address::blob("pr", CONTAINER, &content.blob);
    assert_eq!(code(c.set_tier(blob_itself, Timestamp::default(), Tier::Cool, None).await), no);
    assert_eq!(code(c.delete_container(stamp("pr", "e"), CONTAINER, all()).await), no);
    let metadata = BlobChange::Metadata(Metadata::new());
    assert_eq!(code(c.change_blob(stamp("pr", "e"), CONTAINER, &content.blob, all(), metadata).await), no);
    let open = ContainerChange::Acl { public_access: PublicAccess::Container, policies: Vec::new() };
    assert_eq!(code(c.change_container(stamp("pr", "e"), CONTAINER, all(), open).await), no);
    let lease = || LeaseAction::Break { seconds: None };
    assert_eq!(code(c.lease_container(stamp("pr", "e"), CONTAINER, Conditions::default(), lease()).await), no);
    assert_eq!(
        code(c.lease_blob(stamp("pr", "e"), CONTAINER, &content.blob, Conditions::default(), lease()).await),
        no
    );
    let made = Container {
        name: CONTAINER.into(),
        etag: String::new(),
        last_modified: Timestamp::default(),
        metadata: Metadata::new(),
        public_access: PublicAccess::Container,
        policies: Vec::new(),
        lease: Lease::default(),
    };
    assert_eq!(code(c.create_container(stamp("new", "e"), made).await), no);
    assert_eq!(code(c.blob(Address::blob("pr", CONTAINER, &content.blob)).await), "ok");
}
