//! Leases over the data plane.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Reply, Service};

const A: &str = "11111111-1111-4111-8111-1111111111aa";
const B: &str = "22222222-2222-4222-8222-222222222222";
const BLOCK: (&str, &str) = ("x-ms-blob-type", "BlockBlob");

/// Method, target, headers, body.
type Write<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a [u8]);

async fn service() -> (tempfile::TempDir, Service) {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path()).await;
    service.create("cont").await;
    (dir, service)
}

fn lease_headers(reply: &Reply) -> (&str, &str, &str) {
    (reply.header("x-ms-lease-status"), reply.header("x-ms-lease-state"), reply.header("x-ms-lease-duration"))
}

#[tokio::test]
async fn the_life_of_a_lease() {
    let (_dir, s) = service().await;
    let etag = s.put("/acct/cont/b", b"hello").await.header("etag").to_owned();
    let lease = async |headers: &[(&str, &str)]| s.signed("PUT", "/acct/cont/b?comp=lease", headers, b"").await;
    let head = async || s.signed("HEAD", "/acct/cont/b", &[], b"").await;

    // In braces and capitals it is the same id.
    let proposed = format!("{{{}}}", A.to_uppercase());
    let made = lease(&[
        ("x-ms-lease-action", "acquire"),
        ("x-ms-lease-duration", "60"),
        ("x-ms-proposed-lease-id", &proposed),
    ])
    .await;
    assert_eq!((made.status, made.header("x-ms-lease-id"), made.header("etag")), (201, A, etag.as_str()), "{made:?}");
    assert_eq!(lease_headers(&head().await), ("locked", "leased", "fixed"));
    let listed = s.signed("GET", "/acct/cont?restype=container&comp=list", &[], b"").await.text();
    let elements =
        "<LeaseStatus>locked</LeaseStatus><LeaseState>leased</LeaseState><LeaseDuration>fixed</LeaseDuration>";
    assert!(listed.contains(elements), "{listed}");
    let again = lease(&[("x-ms-lease-action", "acquire"), ("x-ms-lease-duration", "-1")]).await;
    assert_eq!(again.outcome(), (409, "LeaseAlreadyPresent"));
    let renewed = lease(&[("x-ms-lease-action", "renew"), ("x-ms-lease-id", A)]).await;
    assert_eq!((renewed.status, renewed.header("x-ms-lease-id")), (200, A));
    let changed = lease(&[("x-ms-lease-action", "change"), ("x-ms-lease-id", A), ("x-ms-proposed-lease-id", B)]).await;
    assert_eq!((changed.status, changed.header("x-ms-lease-id")), (200, B));
    let broken = lease(&[("x-ms-lease-action", "break"), ("x-ms-lease-break-period", "0")]).await;
    assert_eq!((broken.status, broken.header("x-ms-lease-time")), (202, "0"));
    assert_eq!(lease_headers(&head().await), ("unlocked", "broken", ""));
    let renewed = lease(&[("x-ms-lease-action", "renew"), ("x-ms-lease-id", B)]).await;
    assert_eq!(renewed.outcome(), (409, "LeaseIsBrokenAndCannotBeRenewed"));
    let released = lease(&[("x-ms-lease-action", "release"), ("x-ms-lease-id", B)]).await;
    assert_eq!((released.status, released.header("x-ms-lease-id")), (200, ""));
    assert_eq!(lease_headers(&head().await), ("unlocked", "available", ""));
    let fresh = lease(&[("x-ms-lease-action", "acquire"), ("x-ms-lease-duration", "-1")]).await;
    assert_eq!((fresh.status, fresh.header("x-ms-lease-id").len()), (201, 36));
    assert_eq!(lease_headers(&head().await), ("locked", "leased", "infinite"));

    for (headers, status, code) in [
        (&[][..], 400, "MissingRequiredHeader"),
        (&[("x-ms-lease-action", "steal")], 400, "InvalidHeaderValue"),
        (&[("x-ms-lease-action", "acquire")], 400, "MissingRequiredHeader"),
        (&[("x-ms-lease-action", "acquire"), ("x-ms-lease-duration", "14")], 400, "InvalidHeaderValue"),
        (&[("x-ms-lease-action", "acquire"), ("x-ms-lease-duration", "61")], 400, "InvalidHeaderValue"),
        (&[("x-ms-lease-action", "acquire"), ("x-ms-lease-duration", "long")], 400, "InvalidHeaderValue"),
        (
            &[("x-ms-lease-action", "acquire"), ("x-ms-lease-duration", "15"), ("x-ms-proposed-lease-id", "me")],
            400,
            "InvalidHeaderValue",
        ),
        (&[("x-ms-lease-action", "renew")], 400, "MissingRequiredHeader"),
        (&[("x-ms-lease-action", "change"), ("x-ms-lease-id", A)], 400, "MissingRequiredHeader"),
        (&[("x-ms-lease-action", "break"), ("x-ms-lease-break-period", "61")], 400, "InvalidHeaderValue"),
        (&[("x-ms-lease-action", "break"), ("if-match", "\"0x1\"")], 412, "ConditionNotMet"),
        (&[("x-ms-lease-action", "break"), ("x-ms-if-tags", "a = 'b'")], 400, "UnsupportedHeader"),
    ] {
        assert_eq!(lease(headers).await.outcome(), (status, code), "{headers:?}");
    }
    assert_eq!(lease_headers(&head().await), ("locked", "leased", "infinite"), "refused, so unchanged");
    let missing = s.signed("PUT", "/acct/cont/x?comp=lease", &[("x-ms-lease-action", "break")], b"").await;
    assert_eq!(missing.outcome(), (404, "BlobNotFound"));
    s.stop().await;
}

#[tokio::test]
async fn only_the_holder_writes() {
    let (_dir, s) = service().await;
    s.put("/acct/cont/b", b"hello").await;
    let acquire = [("x-ms-lease-action", "acquire"), ("x-ms-lease-duration", "-1"), ("x-ms-proposed-lease-id", A)];
    assert_eq!(s.signed("PUT", "/acct/cont/b?comp=lease", &acquire, b"").await.status, 201);
    let source = format!("http://{}/acct/cont/b", s.blob);
    let list: &[u8] = b"<BlockList><Latest>QUFB</Latest></BlockList>";
    let writes: [Write<'_>; 7] = [
        ("PUT", "/acct/cont/b", &[BLOCK], b"x"),
        ("PUT", "/acct/cont/b?comp=block&blockid=QUFB", &[], b"x"),
        ("PUT", "/acct/cont/b?comp=blocklist", &[], list),
        ("PUT", "/acct/cont/b?comp=metadata", &[], b""),
        ("PUT", "/acct/cont/b?comp=properties", &[], b""),
        ("PUT", "/acct/cont/b", &[("x-ms-copy-source", &source)], b""),
        ("DELETE", "/acct/cont/b", &[], b""),
    ];
    for (method, target, headers, body) in writes {
        assert_eq!(s.signed(method, target, headers, body).await.outcome(), (412, "LeaseIdMissing"), "{target}");
        let wrong = [headers, &[("x-ms-lease-id", B)]].concat();
        let refused = s.signed(method, target, &wrong, body).await;
        assert_eq!(refused.outcome(), (412, "LeaseIdMismatchWithBlobOperation"), "{target}");
    }
    assert_eq!(s.signed("GET", "/acct/cont/b", &[], b"").await.text(), "hello");
    for method in ["GET", "HEAD"] {
        assert_eq!(s.signed(method, "/acct/cont/b", &[("x-ms-lease-id", A)], b"").await.status, 200);
        let wrong = s.signed(method, "/acct/cont/b", &[("x-ms-lease-id", B)], b"").await;
        assert_eq!(wrong.outcome(), (412, "LeaseIdMismatchWithBlobOperation"));
    }
    for (method, target, headers, body) in writes {
        let right = [headers, &[("x-ms-lease-id", A)]].concat();
        let done = s.signed(method, target, &right, body).await;
        assert!(done.status < 300, "{method} {target}: {}", done.text());
    }
    s.stop().await;
}

#[tokio::test]
async fn a_leased_container_stays() {
    let (_dir, s) = service().await;
    let target = "/acct/cont?restype=container";
    let lease =
        async |headers: &[(&str, &str)]| s.signed("PUT", "/acct/cont?restype=container&comp=lease", headers, b"").await;
    let acquire = [("x-ms-lease-action", "acquire"), ("x-ms-lease-duration", "15"), ("x-ms-proposed-lease-id", A)];
    assert_eq!(lease(&acquire).await.status, 201);
    let got = s.signed("GET", target, &[], b"").await;
    assert_eq!(lease_headers(&got), ("locked", "leased", "fixed"));
    let containers = s.signed("GET", "/acct/?comp=list", &[], b"").await.text();
    assert!(containers.contains("<LeaseState>leased</LeaseState>"), "{containers}");
    assert_eq!(s.signed("DELETE", target, &[], b"").await.outcome(), (412, "LeaseIdMissing"));
    let wrong = s.signed("DELETE", target, &[("x-ms-lease-id", B)], b"").await;
    assert_eq!(wrong.outcome(), (412, "LeaseIdMismatchWithContainerOperation"));
    s.put("/acct/cont/b", b"blobs are not locked").await;
    let broken = lease(&[("x-ms-lease-action", "break"), ("x-ms-lease-break-period", "10")]).await;
    assert_eq!(broken.status, 202);
    assert!(["9", "10"].contains(&broken.header("x-ms-lease-time")), "{broken:?}");
    assert_eq!(lease_headers(&s.signed("HEAD", target, &[], b"").await), ("locked", "breaking", ""));
    assert_eq!(lease(&acquire).await.outcome(), (409, "LeaseIsBreakingAndCannotBeAcquired"));
    assert_eq!(s.signed("DELETE", target, &[("x-ms-lease-id", A)], b"").await.status, 202);
    s.stop().await;
}

#[tokio::test]
async fn conditions_of_containers() {
    let (_dir, s) = service().await;
    let (old, new) = ("Fri, 20 Nov 1992 08:00:00 GMT", "Fri, 20 Nov 2093 08:00:00 GMT");
    let acquire = ("x-ms-lease-action", "acquire");
    let unsupported = (400, "UnsupportedHeader");
    let unmet = (412, "ConditionNotMet");
    // Each operation with what it takes beside conditions, and what it says to If-Unmodified-Since in the past.
    for (method, query, more, unmodified) in [
        ("PUT", "&comp=metadata", vec![], unsupported),
        ("PUT", "&comp=acl", vec![], unmet),
        ("PUT", "&comp=lease", vec![acquire, ("x-ms-lease-duration", "15")], unmet),
        ("DELETE", "", vec![], unmet),
    ] {
        let target = format!("/acct/cont?restype=container{query}");
        let with = async |name: &'static str, value: &'static str| {
            s.signed(method, &target, &[&more[..], &[(name, value)]].concat(), b"").await
        };
        assert_eq!(with("if-match", "*").await.outcome(), unsupported, "{query}");
        assert_eq!(with("if-none-match", "\"0x1\"").await.outcome(), unsupported, "{query}");
        assert_eq!(with("if-unmodified-since", old).await.outcome(), unmodified, "{query}");
        assert_eq!(with("if-modified-since", new).await.outcome(), unmet, "{query}");
        assert_eq!(with("if-modified-since", "soon").await.outcome(), (400, "InvalidHeaderValue"), "{query}");
        if method == "PUT" && !query.ends_with("lease") {
            assert_eq!(with("if-modified-since", old).await.status, 200, "{query}");
        }
    }
    assert_eq!(s.signed("HEAD", "/acct/cont?restype=container", &[], b"").await.status, 200);
    s.stop().await;
}

#[tokio::test]
async fn breaking_needs_less_permission() {
    let (_dir, s) = service().await;
    s.put("/acct/cont/b", b"hello").await;
    let lease = async |permissions: &str, headers: &[(&str, &str)]| {
        let target = format!("/acct/cont/b?comp=lease&{}", s.sas("cont", Some("b"), permissions, 60));
        s.raw("PUT", &target, &[&[("content-length", "0")], headers].concat(), b"").await
    };
    let refused = (403, "AuthorizationPermissionMismatch");
    let acquire = [("x-ms-lease-action", "acquire"), ("x-ms-lease-duration", "15")];
    assert_eq!(lease("rcd", &acquire).await.outcome(), refused);
    assert_eq!(lease("w", &acquire).await.status, 201);
    assert_eq!(lease("rc", &[("x-ms-lease-action", "break")]).await.outcome(), refused);
    assert_eq!(lease("d", &[("x-ms-lease-action", "Break")]).await.status, 202);
    s.stop().await;
}
