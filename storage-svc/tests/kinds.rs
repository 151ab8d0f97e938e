//! Snapshots, append blobs, tiers and limits over real connections.

#![allow(clippy::unwrap_used)]

mod common;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use common::{Reply, Service, pattern};
use futures::future::join_all;
use storage_svc::domain::append::{MAX_LOOSE_BYTES, MERGE_PIECES};

const BLOCK: (&str, &str) = ("x-ms-blob-type", "BlockBlob");
const APPEND: (&str, &str) = ("x-ms-blob-type", "AppendBlob");

async fn service() -> (tempfile::TempDir, Service) {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path()).await;
    service.create("cont").await;
    (dir, service)
}

async fn snapshot(s: &Service, path: &str, headers: &[(&str, &str)]) -> String {
    let taken = s.signed("PUT", &format!("{path}?comp=snapshot"), headers, b"").await;
    assert_eq!(taken.status, 201, "{}", taken.text());
    taken.header("x-ms-snapshot").to_owned()
}

async fn list(s: &Service, query: &str) -> String {
    s.signed("GET", &format!("/acct/cont?restype=container&comp=list{query}"), &[], b"").await.text()
}

#[tokio::test]
async fn snapshots_stay_as_they_were() {
    let (dir, s) = service().await;
    let (old, new) = (pattern(100_000), pattern(70_000));
    let put = s.signed("PUT", "/acct/cont/b", &[BLOCK, ("x-ms-meta-a", "1"), ("content-type", "t/old")], &old).await;
    let first = snapshot(&s, "/acct/cont/b", &[]).await;
    let second = snapshot(&s, "/acct/cont/b", &[("x-ms-meta-b", "2")]).await;
    assert!(first < second && first.ends_with('Z') && first.len() == 28, "{first} {second}");
    assert_eq!(common::files(&dir.path().join("blobs")), 1, "the bytes are shared");
    s.put("/acct/cont/b", &new).await;
    s.signed("PUT", "/acct/cont/b?comp=properties", &[("x-ms-blob-content-type", "t/new")], b"").await;

    let got = s.signed("GET", &format!("/acct/cont/b?snapshot={first}"), &[], b"").await;
    assert!(got.body == old);
    assert_eq!((got.header("content-type"), got.header("x-ms-meta-a")), ("t/old", "1"));
    assert_eq!((got.header("etag"), got.header("last-modified")), (put.header("etag"), put.header("last-modified")));
    let range = [("range", "bytes=99990-")];
    let tail = s.signed("GET", &format!("/acct/cont/b?snapshot={first}"), &range, b"").await;
    assert_eq!((tail.status, tail.body == old[99_990..]), (206, true));
    let head = s.signed("HEAD", &format!("/acct/cont/b?snapshot={second}"), &[], b"").await;
    assert_eq!((head.header("x-ms-meta-a"), head.header("x-ms-meta-b")), ("", "2"));
    assert_ne!(head.header("etag"), put.header("etag"));
    assert!(s.signed("GET", "/acct/cont/b", &[], b"").await.body == new);

    let listed = list(&s, "&include=snapshots%2Cmetadata").await;
    let places = [&format!("<Snapshot>{first}<"), &format!("<Snapshot>{second}<"), "t/new"]
        .map(|text| listed.find(text).unwrap_or_else(|| panic!("{text} is not in {listed}")));
    assert!(places.is_sorted(), "{listed}");
    assert!(!list(&s, "").await.contains("Snapshot"));
    let page = list(&s, "&include=snapshots&maxresults=1").await;
    let marker = page.split("<NextMarker>").nth(1).unwrap().split('<').next().unwrap().to_owned();
    let page = list(&s, &format!("&include=snapshots&maxresults=5&marker={marker}")).await;
    assert!(page.contains(&second) && !page.contains(&first), "{page}");

    // A token may be for one snapshot alone.
    let expires = "2093-01-01T00:00:00Z";
    let text = format!("r\n\n{expires}\n/blob/acct/cont/b\n\n\n\n2021-12-02\nbs\n{first}\n\n\n\n\n\n");
    let sig = s.key.sign_base64(text.as_bytes()).replace('+', "%2B");
    let sas = format!("sv=2021-12-02&sr=bs&sp=r&se={expires}&sig={sig}");
    let by_token = |snapshot: String| {
        let target = format!("/acct/cont/b?{sas}{snapshot}");
        let s = &s;
        async move { s.raw("GET", &target, &[], b"").await }
    };
    assert!(by_token(format!("&snapshot={first}")).await.body == old);
    for other in [format!("&snapshot={second}"), String::new()] {
        assert_eq!(by_token(other).await.outcome(), (403, "AuthenticationFailed"));
    }

    for (method, target, headers, status, code) in [
        ("GET", "snapshot=2026-01-01T00:00:00.0000000Z", vec![], 404, "BlobNotFound"),
        ("GET", "snapshot=yesterday", vec![], 400, "InvalidQueryParameterValue"),
        ("PUT", &format!("snapshot={first}"), vec![BLOCK], 400, "InvalidQueryParameterValue"),
        ("PUT", &format!("comp=metadata&snapshot={first}"), vec![], 400, "InvalidQueryParameterValue"),
        ("DELETE", "", vec![], 409, "SnapshotsPresent"),
        ("DELETE", "", vec![("x-ms-delete-snapshots", "all")], 400, "InvalidHeaderValue"),
        ("DELETE", &format!("snapshot={first}"), vec![("x-ms-delete-snapshots", "only")], 400, "UnsupportedHeader"),
        ("DELETE", &format!("snapshot={first}"), vec![], 202, ""),
        ("GET", &format!("snapshot={first}"), vec![], 404, "BlobNotFound"),
        ("GET", &format!("snapshot={second}"), vec![], 200, ""),
        ("DELETE", "", vec![("x-ms-delete-snapshots", "only")], 202, ""),
        ("GET", &format!("snapshot={second}"), vec![], 404, "BlobNotFound"),
        ("GET", "", vec![], 200, ""),
        ("PUT", "comp=snapshot", vec![("if-match", "\"0x1\"")], 412, "ConditionNotMet"),
        ("PUT", "comp=snapshot", vec![], 201, ""),
        ("DELETE", "", vec![("x-ms-delete-snapshots", "include")], 202, ""),
        ("GET", "", vec![], 404, "BlobNotFound"),
    ] {
        let got = s.signed(method, &format!("/acct/cont/b?{target}"), &headers, b"").await;
        assert_eq!(got.outcome(), (status, code), "{method} {target} {headers:?}");
    }
    kiln_testkit::eventually("all bytes are collected", || async {
        (common::files(&dir.path().join("blobs")) == 0).then_some(())
    })
    .await;
    s.stop().await;
}

async fn append(s: &Service, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    s.signed("PUT", &format!("{path}?comp=appendblock"), headers, body).await
}

#[tokio::test]
async fn append_blobs_grow_at_their_end() {
    let (_dir, s) = service().await;
    assert_eq!(append(&s, "/acct/cont/a", &[], b"x").await.outcome(), (404, "BlobNotFound"));
    let body = s.signed("PUT", "/acct/cont/a", &[APPEND], b"x").await;
    assert_eq!(body.outcome(), (400, "InvalidHeaderValue"));
    let made = s.signed("PUT", "/acct/cont/a", &[APPEND, ("x-ms-blob-content-type", "text/log")], b"").await;
    assert_eq!(made.status, 201, "{}", made.text());
    let one = append(&s, "/acct/cont/a", &[], b"abc").await;
    assert_eq!(one.status, 201, "{}", one.text());
    assert_eq!(one.header("x-ms-content-crc64"), "6/rBP7vK5QU=");
    let counts = |reply: &Reply| {
        ["x-ms-blob-append-offset", "x-ms-blob-committed-block-count"].map(|name| reply.header(name).to_owned())
    };
    assert_eq!(counts(&one), ["0", "1"]);
    let md5 = BASE64_STANDARD.encode([0; 16]);
    let large = pattern(200_000);
    for (headers, body, status, code) in [
        (vec![("content-md5", md5.as_str())], &b"abc"[..], 400, "Md5Mismatch"),
        (vec![("content-md5", "kAFQmDzST7DWlj99KOF/cg==")], b"abc", 201, ""),
        (vec![("x-ms-content-crc64", "AAAAAAAAAAA=")], b"abc", 400, "Crc64Mismatch"),
        (vec![("x-ms-blob-condition-appendpos", "5")], b"abc", 412, "AppendPositionConditionNotMet"),
        (vec![("x-ms-blob-condition-maxsize", "8")], b"abc", 412, "MaxBlobSizeConditionNotMet"),
        (vec![("x-ms-blob-condition-appendpos", "six")], b"abc", 400, "InvalidHeaderValue"),
        (vec![("x-ms-blob-condition-appendpos", "6"), ("x-ms-blob-condition-maxsize", "9")], b"def", 201, ""),
        (vec![("if-match", "\"0x1\"")], b"abc", 412, "ConditionNotMet"),
        (vec![], b"", 400, "InvalidHeaderValue"),
        (vec![], &large, 201, ""),
        (vec![], b"end", 201, ""),
    ] {
        let got = append(&s, "/acct/cont/a", &headers, body).await;
        assert_eq!(got.outcome(), (status, code), "{headers:?}");
    }
    let whole = [&b"abcabcdef"[..], &large, b"end"].concat();
    let got = s.signed("GET", "/acct/cont/a", &[], b"").await;
    assert!(got.body == whole);
    assert_eq!((got.header("x-ms-blob-type"), got.header("content-type")), ("AppendBlob", "text/log"));
    assert_eq!((got.header("x-ms-blob-committed-block-count"), got.header("content-md5")), ("5", ""));
    for (from, to) in [(0, 4), (8, 11), (200_000, 200_012), (200_008, 200_009)] {
        let range = format!("bytes={from}-{}", to - 1);
        let got = s.signed("GET", "/acct/cont/a", &[("range", &range)], b"").await;
        assert_eq!((got.status, got.body == whole[from..to]), (206, true), "{range}");
    }
    assert!(list(&s, "").await.contains("<BlobType>AppendBlob</BlobType>"));
    s.put("/acct/cont/b", b"x").await;
    assert_eq!(append(&s, "/acct/cont/b", &[], b"x").await.outcome(), (409, "InvalidBlobType"));
    for query in ["comp=block&blockid=QUFB", "comp=tier"] {
        let headers = [("x-ms-access-tier", "Cool")];
        let refused = s.signed("PUT", &format!("/acct/cont/a?{query}"), &headers, b"x").await;
        assert_eq!(refused.outcome(), (409, "InvalidBlobType"), "{query}");
    }
    let source = format!("http://{}/acct/cont/a", s.blob);
    let copied = s.signed("PUT", "/acct/cont/copy", &[("x-ms-copy-source", &source)], b"").await;
    assert_eq!(copied.status, 202, "{}", copied.text());
    assert_eq!(append(&s, "/acct/cont/copy", &[], b"!").await.header("x-ms-blob-append-offset"), "200012");
    s.stop().await;
}

#[tokio::test]
async fn many_writers_of_one_blob_are_served_one_after_the_other() {
    const WRITERS: usize = 8;
    const LINES: usize = 25;
    let (_dir, s) = service().await;
    s.signed("PUT", "/acct/cont/log", &[APPEND], b"").await;
    let write = |writer: usize| {
        let s = &s;
        async move {
            for line in 0..LINES {
                let text = format!("{writer}:{line};");
                let reply = append(s, "/acct/cont/log", &[], text.as_bytes()).await;
                assert_eq!(reply.status, 201, "{}", reply.text());
                let offset: usize = reply.header("x-ms-blob-append-offset").parse().unwrap();
                let got = s.signed("GET", "/acct/cont/log", &[("range", &format!("bytes={offset}-"))], b"").await;
                assert!(got.body.starts_with(text.as_bytes()), "what was acknowledged is where it was said to be");
            }
        }
    };
    join_all((0..WRITERS).map(write)).await;
    let text = s.signed("GET", "/acct/cont/log", &[], b"").await.text();
    let mut lines: Vec<(usize, usize)> = Vec::new();
    for line in text.split_terminator(';') {
        let (writer, number) = line.split_once(':').unwrap();
        lines.push((writer.parse().unwrap(), number.parse().unwrap()));
    }
    assert_eq!(lines.len(), WRITERS * LINES);
    for writer in 0..WRITERS {
        let own: Vec<usize> = lines.iter().filter(|(w, _)| *w == writer).map(|(_, line)| *line).collect();
        assert_eq!(own, (0..LINES).collect::<Vec<_>>());
    }
    s.stop().await;
}

#[tokio::test]
async fn small_pieces_become_few_objects() {
    let (dir, s) = service().await;
    s.signed("PUT", "/acct/cont/log", &[APPEND], b"").await;
    // As many bytes as are merged several times, in pieces that are never objects of their own.
    let piece = pattern(60_000);
    let rounds = usize::try_from(MAX_LOOSE_BYTES).unwrap() / piece.len() / 2;
    let mut whole = Vec::new();
    for _ in 0..rounds {
        assert_eq!(append(&s, "/acct/cont/log", &[], &piece).await.status, 201);
        whole.extend_from_slice(&piece);
    }
    kiln_testkit::eventually("pieces are merged", || async {
        (common::files(&dir.path().join("blobs")) > 0).then_some(())
    })
    .await;
    assert!(common::files(&dir.path().join("blobs")) <= rounds / 4);
    assert!(MERGE_PIECES > rounds as u64, "it was for their size");
    assert!(s.signed("GET", "/acct/cont/log", &[], b"").await.body == whole);
    s.stop().await;
}

#[tokio::test]
async fn tiers_are_kept_and_the_archive_gives_nothing_out() {
    let (_dir, s) = service().await;
    let put = s.signed("PUT", "/acct/cont/b", &[BLOCK, ("x-ms-access-tier", "Cool")], b"x").await;
    let head = |reply: &Reply| {
        ["x-ms-access-tier", "x-ms-access-tier-inferred", "etag"].map(|name| reply.header(name).to_owned())
    };
    let got = s.signed("HEAD", "/acct/cont/b", &[], b"").await;
    assert_eq!(head(&got), ["Cool", "", put.header("etag")]);
    assert_ne!(got.header("x-ms-access-tier-change-time"), "");
    s.put("/acct/cont/hot", b"x").await;
    assert_eq!(head(&s.signed("HEAD", "/acct/cont/hot", &[], b"").await)[..2], ["Hot", "true"]);
    let set = |tier: &'static str| {
        let s = &s;
        async move { s.signed("PUT", "/acct/cont/b?comp=tier", &[("x-ms-access-tier", tier)], b"").await }
    };
    assert_eq!(set("Archive").await.status, 200);
    assert_eq!(s.signed("GET", "/acct/cont/b", &[], b"").await.outcome(), (409, "BlobArchived"));
    assert_eq!(head(&s.signed("HEAD", "/acct/cont/b", &[], b"").await), ["Archive", "", put.header("etag")]);
    assert!(list(&s, "").await.contains("<AccessTier>Archive</AccessTier><AccessTierChangeTime>"));
    assert_eq!(set("Hot").await.status, 200);
    assert_eq!(s.signed("GET", "/acct/cont/b", &[], b"").await.text(), "x");
    assert_eq!(set("Lukewarm").await.outcome(), (400, "InvalidHeaderValue"));
    let missing = s.signed("PUT", "/acct/cont/b?comp=tier", &[], b"").await;
    assert_eq!(missing.outcome(), (400, "MissingRequiredHeader"));
    s.signed("PUT", "/acct/cont/c?comp=block&blockid=QUFB", &[], b"x").await;
    let commit = [("x-ms-access-tier", "Cold")];
    let body = b"<BlockList><Latest>QUFB</Latest></BlockList>";
    assert_eq!(s.signed("PUT", "/acct/cont/c?comp=blocklist", &commit, body).await.status, 201);
    assert_eq!(s.signed("HEAD", "/acct/cont/c", &[], b"").await.header("x-ms-access-tier"), "Cold");
    s.stop().await;
}

#[tokio::test]
async fn sizes_and_checksums_have_limits() {
    let (_dir, s) = service().await;
    s.signed("PUT", "/acct/cont/a", &[APPEND], b"").await;
    let sas = s.sas("cont", None, "raw", 600);
    // (version, operation, largest, one more)
    const MIB: u64 = 1024 * 1024;
    for (version, target, most) in [
        ("2015-07-08", "b", 64 * MIB),
        ("2017-04-17", "b", 256 * MIB),
        ("2021-12-02", "b", 5000 * MIB),
        ("2015-07-08", "b?comp=block&blockid=QUFB", 4 * MIB),
        ("2017-04-17", "b?comp=block&blockid=QUFB", 100 * MIB),
        ("2021-12-02", "b?comp=block&blockid=QUFB", 4000 * MIB),
        ("2021-12-02", "a?comp=appendblock", 4 * MIB),
        ("2022-11-02", "a?comp=appendblock", 100 * MIB),
    ] {
        let join = if target.contains('?') { '&' } else { '?' };
        let target = format!("/acct/cont/{target}{join}{sas}");
        let length = (most + 1).to_string();
        let headers = [BLOCK, ("x-ms-version", version), ("content-length", &length)];
        let refused = s.raw("PUT", &target, &headers, b"").await;
        assert_eq!(refused.outcome(), (413, "RequestBodyTooLarge"), "{version} {target}");
        assert!(refused.text().contains(&most.to_string()), "{}", refused.text());
    }
    // A block may be repeated, but not without end.
    s.signed("PUT", "/acct/cont/blocks?comp=block&blockid=QUFB", &[], b"xy").await;
    for (blocks, status, code) in [(50_000, 201, ""), (50_001, 400, "BlockListTooLong")] {
        let body = format!("<BlockList>{}</BlockList>", "<Latest>QUFB</Latest>".repeat(blocks));
        let commit = s.signed("PUT", "/acct/cont/blocks?comp=blocklist", &[], body.as_bytes()).await;
        assert_eq!(commit.outcome(), (status, code), "{blocks}");
    }
    let head = s.signed("HEAD", "/acct/cont/blocks", &[], b"").await;
    assert_eq!(head.header("content-length"), "100000");
    s.put("/acct/cont/b", &pattern(5 * 1024 * 1024)).await;
    let get = |headers: &'static [(&'static str, &'static str)]| {
        let s = &s;
        async move { s.signed("GET", "/acct/cont/b", headers, b"").await }
    };
    let (md5, crc64) = (("x-ms-range-get-content-md5", "true"), ("x-ms-range-get-content-crc64", "true"));
    const FITS: (&str, &str) = ("range", "bytes=0-4194303");
    const LARGE: (&str, &str) = ("range", "bytes=0-4194304");
    assert_ne!(get(&[FITS, ("x-ms-range-get-content-md5", "true")]).await.header("content-md5"), "");
    let crc = get(&[FITS, ("x-ms-range-get-content-crc64", "true")]).await;
    assert_ne!((crc.status, crc.header("x-ms-content-crc64")), (206, ""));
    for headers in [vec![LARGE, md5], vec![LARGE, crc64], vec![FITS, md5, crc64], vec![md5], vec![crc64]] {
        let refused = s.signed("GET", "/acct/cont/b", &headers, b"").await;
        assert_eq!(refused.outcome(), (400, "InvalidHeaderValue"), "{headers:?}");
    }
    for (timeout, status) in [("30", 200), ("0", 200), ("99999999999", 200), ("soon", 400), ("-1", 400)] {
        let got = s.signed("GET", &format!("/acct/cont/a?timeout={timeout}"), &[], b"").await;
        assert_eq!(got.status, status, "{timeout}");
    }
    s.stop().await;
}

#[tokio::test]
async fn a_slow_sender_is_ended_by_its_own_timeout() {
    let (_dir, s) = service().await;
    let sas = s.sas("cont", None, "w", 600);
    let headers = [BLOCK, ("content-length", "5")];
    // The body never comes; the service itself would wait longer.
    let got = s.raw("PUT", &format!("/acct/cont/b?timeout=1&{sas}"), &headers, b"").await;
    assert_eq!(got.outcome(), (500, "OperationTimedOut"));
    s.stop().await;
}

#[tokio::test]
async fn lists_show_uncommitted_blobs_and_odd_names_and_begin_anywhere() {
    let (_dir, s) = service().await;
    for name in ["a", "b--1", "b--2", "c%EF%BF%BE", "d%01%3C"] {
        s.put(&format!("/acct/cont/{name}"), b"x").await;
    }
    s.signed("PUT", "/acct/cont/b0?comp=block&blockid=QUFB", &[], b"xyz").await;
    let all = list(&s, "").await;
    assert!(!all.contains("b0"));
    assert!(all.contains("<Name Encoded=\"true\">c%EF%BF%BE</Name>"), "{all}");
    assert!(all.contains("<Name Encoded=\"true\">d%01%3C</Name>"), "{all}");
    let all = list(&s, "&include=UncommittedBlobs,copy,metadata,snapshots,deleted").await;
    let place = |text: &str| all.find(text).unwrap_or_else(|| panic!("{text} is not in {all}"));
    assert!(place("<Name>b--2<") < place("<Name>b0<") && place("<Name>b0<") < place("Encoded"));
    let cut = list(&s, "&include=uncommittedblobs&delimiter=--").await;
    assert!(cut.contains("<BlobPrefix><Name>b--</Name></BlobPrefix><Blob><Name>b0</Name>"), "{cut}");
    let from = list(&s, "&startFrom=b--2").await;
    assert!(from.contains("<Name>b--2<") && !from.contains("b--1") && !from.contains("<Name>a<"), "{from}");
    for (query, code) in [
        ("&maxresults=0", "OutOfRangeQueryParameterValue"),
        ("&maxresults=x", "InvalidQueryParameterValue"),
        ("&include=everything", "InvalidQueryParameterValue"),
        ("&marker=a", "InvalidQueryParameterValue"),
    ] {
        let target = format!("/acct/cont?restype=container&comp=list{query}");
        assert_eq!(s.signed("GET", &target, &[], b"").await.outcome(), (400, code), "{query}");
    }
    s.stop().await;
}

#[tokio::test]
async fn names_of_metadata_keep_their_case() {
    let (_dir, s) = service().await;
    let headers = [BLOCK, ("x-ms-meta-CamelCase", "1"), ("X-Ms-Meta-SHOUT", "2"), ("x-ms-meta-low", "3")];
    assert_eq!(s.signed("PUT", "/acct/cont/b", &headers, b"x").await.status, 201);
    for (method, query) in [("GET", ""), ("HEAD", ""), ("GET", "?comp=metadata")] {
        let got = s.signed(method, &format!("/acct/cont/b{query}"), &[], b"").await;
        for line in ["x-ms-meta-CamelCase: 1", "x-ms-meta-SHOUT: 2", "x-ms-meta-low: 3"] {
            assert!(got.head.lines().any(|found| found == line), "{line} is not in {}", got.head);
        }
    }
    assert!(list(&s, "&include=metadata").await.contains("<CamelCase>1</CamelCase><SHOUT>2</SHOUT><low>3</low>"));
    // Names that differ in case alone are one name, the first.
    let twice = [("x-ms-meta-One", "1"), ("x-ms-meta-oNE", "2")];
    assert_eq!(s.signed("PUT", "/acct/cont/b?comp=metadata", &twice, b"").await.status, 200);
    let got = s.signed("HEAD", "/acct/cont/b", &[], b"").await;
    assert!(got.head.contains("x-ms-meta-One: 1,2") && !got.head.contains("SHOUT"), "{}", got.head);
    // Sizes: all names and values together.
    let (most, more) = ("v".repeat(8 * 1024 - 1), "v".repeat(8 * 1024));
    for (value, status, code) in [(&most, 200, ""), (&more, 400, "MetadataTooLarge")] {
        let set = s.signed("PUT", "/acct/cont/b?comp=metadata", &[("x-ms-meta-a", value)], b"").await;
        assert_eq!(set.outcome(), (status, code));
    }
    for (name, code) in [("x-ms-meta-", "EmptyMetadataKey"), ("x-ms-meta-1", "InvalidMetadata")] {
        let set = s.signed("PUT", "/acct/cont/b?comp=metadata", &[(name, "v")], b"").await;
        assert_eq!(set.outcome(), (400, code), "{name}");
    }
    s.signed("PUT", "/acct/cont?restype=container&comp=metadata", &[("x-ms-meta-Of", "c")], b"").await;
    let got = s.signed("GET", "/acct/cont?restype=container", &[], b"").await;
    assert!(got.head.contains("x-ms-meta-Of: c"), "{}", got.head);
    s.stop().await;
}
