//! The data plane over real connections.

#![allow(clippy::unwrap_used)]

mod common;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use common::{Service, pattern};
use kiln_auth::SecretKey;
use kiln_auth::token::{Claims, Principal, mint};
use tokio::io::AsyncWriteExt;

const BLOCK: (&str, &str) = ("x-ms-blob-type", "BlockBlob");

async fn service() -> (tempfile::TempDir, Service) {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path()).await;
    service.create("cont").await;
    (dir, service)
}

#[tokio::test]
async fn blobs_come_back_as_they_were_put() {
    let (_dir, s) = service().await;
    for length in [0, 1, 65_536, 65_537, 3_000_000] {
        let body = pattern(length);
        let path = format!("/acct/cont/b{length}");
        let put = s
            .signed(
                "PUT",
                &path,
                &[BLOCK, ("content-type", "text/x"), ("x-ms-meta-a_1", "ü"), ("x-ms-meta-ab", "2")],
                &body,
            )
            .await;
        assert_eq!(put.status, 201, "{}", put.text());
        assert!(put.header("etag").starts_with("\"0x8D"), "{put:?}");
        let got = s.signed("GET", &path, &[], b"").await;
        assert_eq!((got.status, got.body == body), (200, true));
        assert_eq!(got.header("content-length"), length.to_string());
        assert_eq!(got.header("content-md5"), put.header("content-md5"));
        assert_eq!(got.header("etag"), put.header("etag"));
        assert_eq!((got.header("content-type"), got.header("x-ms-meta-ab")), ("text/x", "2"));
        assert_eq!(got.header("x-ms-blob-type"), "BlockBlob");
        let head = s.signed("HEAD", &path, &[], b"").await;
        assert_eq!((head.status, head.header("content-length")), (200, length.to_string().as_str()));
        assert!(head.body.is_empty());
    }
    s.stop().await;
}

#[tokio::test]
async fn ranges() {
    let (_dir, running) = service().await;
    let s = &running;
    let body = pattern(200_000);
    s.put("/acct/cont/b", &body).await;
    s.put("/acct/cont/empty", b"").await;
    let get = |path: &'static str, range: &'static str| async move {
        s.signed("GET", path, &[("x-ms-range", range)], b"").await
    };
    for (range, from, to) in [
        ("bytes=0-33554431", 0, 200_000),
        ("bytes=10-19", 10, 20),
        ("bytes=199999-", 199_999, 200_000),
        ("bytes=65530-65545", 65_530, 65_546),
    ] {
        let got = get("/acct/cont/b", range).await;
        assert_eq!((got.status, got.body == body[from..to]), (206, true), "{range}");
        assert_eq!(got.header("content-range"), format!("bytes {from}-{}/200000", to - 1));
        assert_eq!(got.header("content-md5"), "");
        assert_ne!(got.header("x-ms-blob-content-md5"), "");
    }
    for range in ["bytes=5-4", "bytes=1-2,4-5", "bytes=x"] {
        assert_eq!(get("/acct/cont/b", range).await.status, 200, "{range}");
    }
    for (path, range) in [("/acct/cont/b", "bytes=200000-"), ("/acct/cont/empty", "bytes=0-33554431")] {
        let got = get(path, range).await;
        assert_eq!(got.outcome(), (416, "InvalidRange"));
        assert!(got.header("content-range").starts_with("bytes */"), "{got:?}");
    }
    let md5 =
        s.signed("GET", "/acct/cont/b", &[("range", "bytes=0-9"), ("x-ms-range-get-content-md5", "true")], b"").await;
    assert_ne!(md5.header("content-md5"), "");
    running.stop().await;
}

#[tokio::test]
async fn blocks_make_a_blob() {
    let (_dir, s) = service().await;
    let parts = [pattern(70_000), pattern(5), pattern(300_000)];
    for (id, part) in ["QUFB", "QkJC", "Q0ND"].iter().zip(&parts) {
        let put = s.signed("PUT", &format!("/acct/cont/b?comp=block&blockid={id}"), &[], part).await;
        assert_eq!(put.status, 201, "{}", put.text());
    }
    assert_eq!(s.signed("GET", "/acct/cont/b", &[], b"").await.outcome(), (404, "BlobNotFound"));
    let list =
        b"<?xml version='1.0' encoding='utf-8'?><BlockList><Latest>Q0ND</Latest><Latest>QUFB</Latest></BlockList>";
    let commit = s
        .signed("PUT", "/acct/cont/b?comp=blocklist", &[("x-ms-blob-content-type", "a/b"), ("x-ms-meta-k", "v")], list)
        .await;
    assert_eq!(commit.status, 201, "{}", commit.text());
    let whole = [parts[2].clone(), parts[0].clone()].concat();
    let got = s.signed("GET", "/acct/cont/b", &[], b"").await;
    assert!(got.body == whole);
    assert_eq!((got.header("content-type"), got.header("content-md5"), got.header("x-ms-meta-k")), ("a/b", "", "v"));
    let middle = s.signed("GET", "/acct/cont/b", &[("range", "bytes=299990-300009")], b"").await;
    assert!(middle.body == whole[299_990..300_010]);
    let blocks = s.signed("GET", "/acct/cont/b?comp=blocklist&blocklisttype=all", &[], b"").await;
    assert!(blocks.text().contains("<Name>Q0ND</Name><Size>300000</Size>"), "{}", blocks.text());
    assert!(!blocks.text().contains("QkJC"));

    let wrong =
        s.signed("PUT", "/acct/cont/b?comp=blocklist", &[], b"<BlockList><Latest>QQ==</Latest></BlockList>").await;
    assert_eq!(wrong.outcome(), (400, "InvalidBlockList"));
    for (query, body, code) in [
        ("comp=block", "x", "MissingRequiredQueryParameter"),
        ("comp=block&blockid=!", "x", "InvalidBlockId"),
        ("comp=blocklist", "<BlockList", "InvalidXmlDocument"),
        ("comp=blocklist", "hello", "InvalidXmlDocument"),
    ] {
        let refused = s.signed("PUT", &format!("/acct/cont/b?{query}"), &[], body.as_bytes()).await;
        assert_eq!(refused.outcome(), (400, code));
    }
    s.signed("PUT", "/acct/cont/b?comp=block&blockid=QUFB", &[], b"x").await;
    let other = s.signed("PUT", "/acct/cont/b?comp=block&blockid=QUFBQUFB", &[], b"x").await;
    assert_eq!(other.outcome(), (400, "InvalidBlobOrBlock"));
    s.stop().await;
}

#[tokio::test]
async fn lists() {
    let (_dir, running) = service().await;
    let s = &running;
    for name in ["a", "dir/1", "dir/2", "z%3C%26", "%C3%BC"] {
        s.put(&format!("/acct/cont/{name}"), b"x").await;
    }
    let list = |query: &'static str| async move {
        s.signed("GET", &format!("/acct/cont?restype=container&comp=list{query}"), &[], b"").await
    };
    let all = list("&include=metadata%2Csnapshots&prefix=").await.text();
    assert!(all.contains("<Name>z&lt;&amp;</Name>") && all.contains("<Name>ü</Name>"), "{all}");
    let top = list("&delimiter=%2F").await.text();
    assert!(top.contains("<BlobPrefix><Name>dir/</Name></BlobPrefix>") && !top.contains("dir/1"), "{top}");
    let first = list("&maxresults=2").await.text();
    let marker = first.split("<NextMarker>").nth(1).unwrap().split('<').next().unwrap().to_owned();
    assert!(first.contains("<Name>a</Name>") && !first.contains("dir/2"));
    let target = format!("/acct/cont?restype=container&comp=list&marker={marker}");
    let second = s.signed("GET", &target, &[], b"").await.text();
    assert!(second.contains("dir/2") && second.contains("<NextMarker />") && !second.contains("<Name>a</Name>"));
    for (query, code) in [
        ("&maxresults=0", "OutOfRangeQueryParameterValue"),
        ("&maxresults=x", "InvalidQueryParameterValue"),
        ("&include=all", "InvalidQueryParameterValue"),
        ("&marker=zzz", "InvalidQueryParameterValue"),
    ] {
        assert_eq!(list(query).await.outcome(), (400, code));
    }
    s.create("other").await;
    let containers = s.signed("GET", "/acct/?comp=list&prefix=o", &[], b"").await.text();
    assert!(containers.contains("<Name>other</Name>") && !containers.contains("<Name>cont</Name>"));
    running.stop().await;
}

#[tokio::test]
async fn odd_paths_name_what_they_say_and_nothing_else() {
    let (dir, s) = service().await;
    let odd = ["..", "../../etc/passwd", "/x", "a//b/", "a%2Fb", "a%252Fb", "%E6%97%A5%E6%9C%AC", "a+b", "%00", "."];
    for (at, name) in odd.iter().enumerate() {
        s.put(&format!("/acct/cont/{name}"), at.to_string().as_bytes()).await;
    }
    for (at, name) in odd.iter().enumerate() {
        let got = s.signed("GET", &format!("/acct/cont/{name}"), &[], b"").await;
        assert_eq!(got.text(), at.to_string(), "{name}");
    }
    let same = s.signed("GET", "/acct/cont/a/b", &[], b"").await;
    assert_eq!(same.text(), "4", "%2F is a slash");
    assert!(!dir.path().join("etc").exists());
    let list = s.signed("GET", "/acct/cont?restype=container&comp=list", &[], b"").await.text();
    assert!(list.contains("<Name>../../etc/passwd</Name>") && list.contains("Encoded=\"true\">%00<"), "{list}");
    let long = "x".repeat(1025);
    for (target, status, code) in [
        ("/acct/cont/%ff", 400, "InvalidUri"),
        (&*format!("/acct/cont/{long}"), 400, "OutOfRangeInput"),
        ("/acct/CONT/b", 400, "InvalidResourceName"),
        ("/acct/x/b", 400, "OutOfRangeInput"),
        ("/acct/../b", 400, "OutOfRangeInput"),
        ("/nobody/cont/b", 404, "ResourceNotFound"),
        ("/acct/none/b", 404, "ContainerNotFound"),
        ("/acct/cont/none", 404, "BlobNotFound"),
        ("/acct/cont/b?comp=nonsense", 400, "InvalidQueryParameterValue"),
        ("/acct/cont/b?comp=lease", 405, "UnsupportedHttpVerb"),
        ("/acct/cont/b?comp=pagelist", 501, "NotImplemented"),
    ] {
        let got = s.raw("GET", target, &[], b"").await;
        let signed = if target.starts_with("/acct/") { s.signed("GET", target, &[], b"").await } else { got };
        assert_eq!(signed.outcome(), (status, code), "{target}");
        assert!(signed.text().contains(&format!("<Code>{code}</Code>")), "{}", signed.text());
        assert_eq!(signed.header("content-type"), "application/xml");
    }
    s.stop().await;
}

#[tokio::test]
async fn conditions() {
    let (_dir, running) = service().await;
    let s = &running;
    let etag = s.put("/acct/cont/b", b"1").await.header("etag").to_owned();
    let get = |name: &'static str, value: String| async move {
        s.signed("GET", "/acct/cont/b", &[(name, &value)], b"").await.outcome().0
    };
    assert_eq!(get("if-match", etag.clone()).await, 200);
    assert_eq!(get("if-match", "\"0x1\"".into()).await, 412);
    assert_eq!(get("if-none-match", etag.clone()).await, 304);
    assert_eq!(get("if-none-match", "*".into()).await, 400);
    assert_eq!(get("if-modified-since", "Fri, 20 Nov 2093 08:00:00 GMT".into()).await, 304);
    assert_eq!(get("if-unmodified-since", "Fri, 20 Nov 1992 08:00:00 GMT".into()).await, 412);
    assert_eq!(get("if-modified-since", "yesterday".into()).await, 400);
    let put = |name: &'static str, value: String| async move {
        let reply = s.signed("PUT", "/acct/cont/b", &[BLOCK, (name, &value)], b"2").await;
        (reply.status, reply.header("x-ms-error-code").to_owned())
    };
    assert_eq!(put("if-none-match", "*".into()).await, (409, "BlobAlreadyExists".into()));
    assert_eq!(put("if-match", "\"0x1\"".into()).await, (412, "ConditionNotMet".into()));
    assert_eq!(put("if-match", etag.clone()).await.0, 201);
    assert_eq!(put("if-match", etag.clone()).await.0, 412);
    let stale = s.signed("DELETE", "/acct/cont/b", &[("if-match", &etag)], b"").await;
    assert_eq!(stale.outcome(), (412, "ConditionNotMet"));
    let both = s.signed("DELETE", "/acct/cont/b", &[("if-match", &etag), ("if-none-match", &etag)], b"").await;
    assert_eq!(both.outcome(), (400, "MultipleConditionHeadersNotSupported"));
    assert_eq!(s.signed("DELETE", "/acct/cont/b", &[], b"").await.status, 202);
    assert_eq!(s.signed("DELETE", "/acct/cont/b", &[], b"").await.outcome(), (404, "BlobNotFound"));
    running.stop().await;
}

#[tokio::test]
async fn metadata_properties_and_copies() {
    let (_dir, s) = service().await;
    s.put("/acct/cont/b", &pattern(100_000)).await;
    let set = s.signed("PUT", "/acct/cont/b?comp=metadata", &[("x-ms-meta-x", "1")], b"").await;
    assert_eq!(set.status, 200);
    let typed = s.signed("PUT", "/acct/cont/b?comp=properties", &[("x-ms-blob-content-type", "a/b")], b"").await;
    assert_eq!(typed.status, 200);
    let source = format!("http://{}/acct/cont/b", s.blob);
    let copied = s.signed("PUT", "/acct/cont/copy", &[("x-ms-copy-source", &source)], b"").await;
    assert_eq!((copied.status, copied.header("x-ms-copy-status")), (202, "success"));
    s.signed("DELETE", "/acct/cont/b", &[], b"").await;
    let got = s.signed("GET", "/acct/cont/copy", &[], b"").await;
    assert!(got.body == pattern(100_000));
    assert_eq!((got.header("x-ms-meta-x"), got.header("content-type")), ("1", "a/b"));
    assert_eq!(got.header("content-md5"), "", "Set Properties cleared it");
    let missing = s.signed("PUT", "/acct/cont/copy", &[("x-ms-copy-source", &source)], b"").await;
    assert_eq!(missing.outcome(), (404, "BlobNotFound"));
    for (name, value, code) in [
        ("x-ms-meta-1a", "x", "InvalidMetadata"),
        ("x-ms-meta-a", &*"x".repeat(9000), "MetadataTooLarge"),
        ("x-ms-blob-content-md5", "AAAA", "InvalidMd5"),
        ("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==", "Md5Mismatch"),
        ("x-ms-content-crc64", "AAAAAAAAAAA=", "Crc64Mismatch"),
        ("x-ms-lease-id", "00000000-0000-0000-0000-000000000001", "LeaseNotPresentWithBlobOperation"),
        ("x-ms-lease-id", "x", "InvalidHeaderValue"),
        ("x-ms-version", "latest", "InvalidHeaderValue"),
    ] {
        let refused = s.signed("PUT", "/acct/cont/new", &[BLOCK, (name, value)], b"abc").await;
        assert_eq!(refused.header("x-ms-error-code"), code, "{name}");
    }
    let crc = s.signed("PUT", "/acct/cont/new", &[BLOCK, ("x-ms-content-crc64", "6/rBP7vK5QU=")], b"abc").await;
    assert_eq!(crc.status, 201);
    let untyped = s.signed("PUT", "/acct/cont/b", &[], b"abc").await;
    assert_eq!(untyped.outcome(), (400, "MissingRequiredHeader"));
    s.stop().await;
}

#[tokio::test]
async fn wrong_keys_and_old_dates_are_refused() {
    let (_dir, s) = service().await;
    let wrong = s.signed_with(&SecretKey::generate(), "GET", "/acct/cont/b", &[], b"").await;
    assert_eq!(wrong.outcome(), (403, "AuthenticationFailed"));
    assert!(wrong.text().contains("<AuthenticationErrorDetail>"));
    let head = s.signed_with(&SecretKey::generate(), "HEAD", "/acct/cont/b", &[], b"").await;
    assert_eq!((head.status, head.body.len(), head.header("content-type")), (403, 0, ""));
    let old = s.signed("GET", "/acct/cont/b", &[("x-ms-date", "Fri, 20 Nov 2020 08:00:00 GMT")], b"").await;
    assert_eq!(old.outcome(), (403, "AuthenticationFailed"));
    for value in ["SharedKey acct", "SharedKey other:AAAA", "Basic AAAA", "Bearer x", "SharedKeyLite acct:AAAA"] {
        let got = s.raw("GET", "/acct/cont/b", &[("Authorization", value)], b"").await;
        assert_eq!(got.outcome(), (403, "AuthenticationFailed"), "{value}");
    }
    // The answer comes although the body is large and unread.
    let body = pattern(8_000_000);
    let large = s.signed_with(&SecretKey::generate(), "PUT", "/acct/cont/b", &[BLOCK], &body).await;
    assert_eq!(large.outcome(), (403, "AuthenticationFailed"));
    let huge = "x".repeat(200_000);
    assert_eq!(s.raw("GET", "/acct/cont/b", &[("x-ms-meta-a", &huge)], b"").await.status, 431);
    s.stop().await;
}

#[tokio::test]
async fn signatures_in_the_url() {
    let (_dir, s) = service().await;
    s.put("/acct/cont/b%20c", b"hello").await;
    let read = s.sas("cont", Some("b c"), "r", 60);
    let target = format!("/acct/cont/b%20c?{read}");
    assert_eq!(s.raw("GET", &target, &[], b"").await.text(), "hello");
    for (method, target, status, code) in [
        ("GET", format!("/acct/cont/other?{read}"), 403, "AuthenticationFailed"),
        ("DELETE", target.clone(), 403, "AuthorizationPermissionMismatch"),
        ("GET", format!("/acct/cont/b%20c?{}", s.sas("cont", Some("b c"), "r", -60)), 403, "AuthenticationFailed"),
        ("GET", format!("/acct/cont/b%20c?{}", s.sas("cont", None, "wl", 60)), 403, "AuthorizationPermissionMismatch"),
        (
            "GET",
            format!("/acct/cont?restype=container&comp=list&{}", s.sas("cont", None, "r", 60)),
            403,
            "AuthorizationPermissionMismatch",
        ),
        (
            "DELETE",
            format!("/acct/cont?restype=container&{}", s.sas("cont", None, "rwdl", 60)),
            403,
            "AuthorizationFailure",
        ),
        ("GET", format!("{target}&sig=x"), 403, "AuthenticationFailed"),
        ("GET", "/acct/cont/b%20c?sv=2021-12-02&sr=b&sig=AAAA".to_owned(), 403, "AuthenticationFailed"),
    ] {
        assert_eq!(s.raw(method, &target, &[], b"").await.outcome(), (status, code), "{method} {target}");
    }
    let listed = format!("/acct/cont?restype=container&comp=list&{}", s.sas("cont", None, "l", 60));
    assert_eq!(s.raw("GET", &listed, &[], b"").await.status, 200);
    // Create makes new blobs and replaces none.
    let create = s.sas("cont", None, "c", 60);
    let put = |name: &'static str| {
        let target = format!("/acct/cont/{name}?{create}");
        let s = &s;
        async move { s.raw("PUT", &target, &[BLOCK, ("content-length", "1")], b"x").await }
    };
    assert_eq!(put("fresh").await.status, 201);
    assert_eq!(put("fresh").await.outcome(), (403, "AuthorizationPermissionMismatch"));
    // Stored policies.
    let acl = b"<SignedIdentifiers><SignedIdentifier><Id>p</Id><AccessPolicy><Expiry>2093-01-01</Expiry>\
        <Permission>r</Permission></AccessPolicy></SignedIdentifier></SignedIdentifiers>";
    let set = s.signed("PUT", "/acct/cont?restype=container&comp=acl", &[], acl).await;
    assert_eq!(set.status, 200, "{}", set.text());
    let text = "\n\n\n/blob/acct/cont\np\n\n\n2021-12-02\nc\n\n\n\n\n\n\n";
    let sig = s.key.sign_base64(text.as_bytes()).replace('+', "%2B");
    let policy = format!("/acct/cont/b%20c?sv=2021-12-02&sr=c&si=p&sig={sig}");
    assert_eq!(s.raw("GET", &policy, &[], b"").await.text(), "hello");
    s.signed("PUT", "/acct/cont?restype=container&comp=acl", &[], b"").await;
    assert_eq!(s.raw("GET", &policy, &[], b"").await.outcome(), (403, "AuthenticationFailed"));
    s.stop().await;
}

#[tokio::test]
async fn anonymous_callers_and_nodes() {
    let (_dir, s) = service().await;
    s.put("/acct/cont/b", b"hello").await;
    let version = [("x-ms-version", "2021-12-02")];
    assert_eq!(s.raw("GET", "/acct/cont/b", &version, b"").await.outcome(), (401, "NoAuthenticationInformation"));
    assert_eq!(s.raw("GET", "/acct/cont/b", &[], b"").await.outcome(), (404, "ResourceNotFound"));
    let open = [("x-ms-blob-public-access", "blob")];
    s.signed("PUT", "/acct/cont?restype=container&comp=acl", &open, b"").await;
    assert_eq!(s.raw("GET", "/acct/cont/b", &version, b"").await.text(), "hello");
    assert_eq!(s.raw("GET", "/acct/cont/none", &version, b"").await.outcome(), (404, "BlobNotFound"));
    assert_eq!(s.raw("GET", "/acct/cont?restype=container&comp=list", &version, b"").await.status, 401);

    let node = |account: &str, expires: i64| {
        let (pool, node) = ("p".into(), "n".into());
        let principal = Principal::Node { account: account.into(), pool, node, incarnation: "i".into() };
        format!("Bearer {}", mint(&s.cluster_key, &Claims { principal, expires }))
    };
    s.create("private").await;
    s.put("/acct/private/in.txt", b"input").await;
    let good = node("acct", i64::MAX);
    let get = |target: &'static str, token: String| {
        let s = &s;
        async move { s.raw("GET", target, &[("Authorization", &token)], b"").await }
    };
    assert_eq!(get("/acct/private/in.txt", good.clone()).await.text(), "input");
    assert_eq!(get("/acct/private?restype=container&comp=list", good.clone()).await.status, 200);
    assert_eq!(get("/acct?comp=list", good.clone()).await.outcome(), (403, "AuthorizationPermissionMismatch"));
    assert_eq!(get("/acct/private/in.txt", node("other", i64::MAX)).await.status, 403);
    assert_eq!(get("/acct/private/in.txt", node("acct", 1000)).await.status, 403);
    let headers = [("Authorization", good.as_str()), BLOCK, ("content-length", "1")];
    let write = s.raw("PUT", "/acct/private/x", &headers, b"x").await;
    assert_eq!(write.outcome(), (403, "AuthorizationPermissionMismatch"));
    s.stop().await;
}

#[tokio::test]
async fn host_style() {
    let (_dir, s) = service().await;
    s.put("/acct/cont/b", b"hello").await;
    let host = ("Host", "acct.blob.example.org");
    assert_eq!(s.signed("GET", "/cont/b", &[host], b"").await.text(), "hello");
    let sas = s.sas("cont", Some("b"), "r", 60);
    assert_eq!(s.raw("GET", &format!("/cont/b?{sas}"), &[host], b"").await.text(), "hello");
    // Another domain whose first label is no account is path style.
    let other = ("Host", "store.example.org");
    assert_eq!(s.signed("GET", "/acct/cont/b", &[other], b"").await.text(), "hello");
    s.stop().await;
}

#[tokio::test]
async fn broken_and_oversized_uploads_leave_nothing() {
    let (dir, s) = service().await;
    let sas = s.sas("cont", None, "w", 600);
    for target in [format!("/acct/cont/b?{sas}"), format!("/acct/cont/b?comp=block&blockid=QUFB&{sas}")] {
        let mut stream = tokio::net::TcpStream::connect(s.blob).await.unwrap();
        let head =
            format!("PUT {target} HTTP/1.1\r\nHost: x\r\nx-ms-blob-type: BlockBlob\r\nContent-Length: 9000000\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&pattern(4_000_000)).await.unwrap();
        kiln_testkit::eventually("the upload begins", || async {
            (common::files(&dir.path().join("blobs")) > 0).then_some(())
        })
        .await;
        drop(stream);
        kiln_testkit::eventually("the upload leaves nothing", || async {
            (common::files(&dir.path().join("blobs")) == 0).then_some(())
        })
        .await;
    }
    assert_eq!(s.signed("HEAD", "/acct/cont/b", &[], b"").await.status, 404);
    let md5 = BASE64_STANDARD.encode([0; 16]);
    let wrong = s.signed("PUT", "/acct/cont/b", &[BLOCK, ("content-md5", &md5)], &pattern(1_000_000)).await;
    assert_eq!(wrong.outcome(), (400, "Md5Mismatch"));
    let headers = [BLOCK, ("content-length", "6000000000")];
    let huge = s.raw("PUT", &format!("/acct/cont/b?{sas}"), &headers, b"").await;
    assert_eq!(huge.outcome(), (413, "RequestBodyTooLarge"));
    let chunked = [BLOCK, ("Transfer-Encoding", "chunked")];
    let unknown = s.raw("PUT", &format!("/acct/cont/b?{sas}"), &chunked, b"1\r\nx\r\n0\r\n\r\n").await;
    assert_eq!(unknown.outcome(), (411, "MissingContentLengthHeader"));
    kiln_testkit::eventually("nothing is left", || async {
        (common::files(&dir.path().join("blobs")) == 0).then_some(())
    })
    .await;
    s.stop().await;
}
