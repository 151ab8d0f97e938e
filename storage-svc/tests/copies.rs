//! Copies over the data plane: within the service, between its accounts, and from other servers.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use common::{Reply, Service, files, pattern};
use kiln_auth::SecretKey;
use kiln_proto::storage::v1::PutAccountRequest;
use kiln_time::Timestamp;
use md5::{Digest, Md5};
use storage_svc::domain::copy_source::CopySources;
use storage_svc::domain::sas::{self, NewSas};
use storage_svc::objects::sealing::Keyring;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const BLOCK: (&str, &str) = ("x-ms-blob-type", "BlockBlob");
const SOURCE: &str = "x-ms-copy-source";
const MD5: &str = "x-ms-source-content-md5";

async fn service() -> (tempfile::TempDir, Service) {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path()).await;
    service.create("cont").await;
    (dir, service)
}

/// One that may read from this machine.
async fn open_service() -> (tempfile::TempDir, Service) {
    let dir = tempfile::tempdir().unwrap();
    let rule = CopySources::parse("none", &["127.0.0.0/8".to_owned()]).unwrap();
    let service = Service::start_with(dir.path(), |config| config.copy_sources = rule).await;
    service.create("cont").await;
    (dir, service)
}

fn md5(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(Md5::digest(bytes))
}

/// A server that gives everybody the same answer, and closes.
async fn answers(head: &str, body: &[u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = [format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").as_bytes(), body].concat();
    kiln_telemetry::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => request.push(byte),
                    Err(_) => break,
                }
            }
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
        }
    });
    address
}

#[tokio::test]
async fn copies_within_the_service_move_no_bytes() {
    let (dir, s) = service().await;
    let body = pattern(300_000);
    s.signed("PUT", "/acct/cont/b", &[BLOCK, ("x-ms-meta-k", "v"), ("x-ms-blob-content-type", "a/b")], &body).await;
    let stored = files(&dir.path().join("blobs"));
    let source = format!("http://{}/acct/cont/b", s.blob);
    let copied = s.signed("PUT", "/acct/cont/copy", &[(SOURCE, &source)], b"").await;
    assert_eq!((copied.status, copied.header("x-ms-copy-status")), (202, "success"), "{}", copied.text());
    let sync = [(SOURCE, source.as_str()), ("x-ms-requires-sync", "true"), (MD5, &md5(&body)), ("x-ms-meta-n", "w")];
    let synced = s.signed("PUT", "/acct/cont/sync", &sync, b"").await;
    assert_eq!((synced.status, synced.header("content-md5")), (202, md5(&body).as_str()));
    let put =
        s.signed("PUT", "/acct/cont/put", &[(SOURCE, &source), BLOCK, ("x-ms-blob-content-type", "c/d")], b"").await;
    assert_eq!((put.status, put.header("content-md5"), put.header("x-ms-copy-id")), (201, md5(&body).as_str(), ""));
    let bare = [(SOURCE, source.as_str()), BLOCK, ("x-ms-copy-source-blob-properties", "false")];
    assert_eq!(s.signed("PUT", "/acct/cont/bare", &bare, b"").await.status, 201);
    assert_eq!(files(&dir.path().join("blobs")), stored, "no copy has bytes of its own");
    assert_eq!(s.signed("DELETE", "/acct/cont/b", &[], b"").await.status, 202);
    s.put("/acct/cont/other", b"a round of the collector").await;
    for (name, content_type, k, n, copy_id) in [
        ("copy", "a/b", "v", "", copied.header("x-ms-copy-id")),
        ("sync", "a/b", "", "w", synced.header("x-ms-copy-id")),
        ("put", "c/d", "v", "", ""),
        ("bare", "application/octet-stream", "", "", ""),
    ] {
        let got = s.signed("GET", &format!("/acct/cont/{name}"), &[], b"").await;
        assert!(got.body == body, "{name}");
        assert_eq!((got.header("content-type"), got.header("x-ms-copy-id")), (content_type, copy_id), "{name}");
        assert_eq!((got.header("x-ms-meta-k"), got.header("x-ms-meta-n")), (k, n), "{name}");
        if !copy_id.is_empty() {
            assert_eq!((got.header("x-ms-copy-source"), got.header("x-ms-copy-progress")), (&*source, "300000/300000"));
        }
    }
    for name in ["copy", "sync", "put", "bare"] {
        assert_eq!(s.signed("DELETE", &format!("/acct/cont/{name}"), &[], b"").await.status, 202);
    }
    kiln_testkit::eventually("the bytes go with the last copy", || async {
        (files(&dir.path().join("blobs")) == 0).then_some(())
    })
    .await;
    s.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_copy() {
    let (_dir, s) = service().await;
    let body = pattern(100_000);
    let etag = s.put("/acct/cont/b", &body).await.header("etag").to_owned();
    let host = format!("http://{}", s.blob);
    let source = format!("{host}/acct/cont/b");
    let (old, new) = ("Fri, 20 Nov 1992 08:00:00 GMT", "Fri, 20 Nov 2093 08:00:00 GMT");
    let unmet = (412, "SourceConditionNotMet");
    let wrong = BASE64_STANDARD.encode([0; 16]);
    for (name, value, expected) in [
        ("x-ms-source-if-match", "\"0x1\"", unmet),
        ("x-ms-source-if-none-match", etag.as_str(), unmet),
        ("x-ms-source-if-none-match", "*", unmet),
        ("x-ms-source-if-modified-since", new, unmet),
        ("x-ms-source-if-unmodified-since", old, unmet),
        ("x-ms-source-if-tags", "a = 'b'", (400, "UnsupportedHeader")),
        (MD5, &wrong, (400, "Md5Mismatch")),
        (MD5, "AAAA", (400, "InvalidMd5")),
        ("x-ms-copy-source-authorization", "Bearer x", (400, "UnsupportedHeader")),
        ("if-match", "\"0x1\"", (412, "ConditionNotMet")),
        ("if-match", "*", (412, "ConditionNotMet")),
    ] {
        let copy = s.signed("PUT", "/acct/cont/c", &[(SOURCE, &source), (name, value)], b"").await;
        assert_eq!(copy.outcome(), expected, "{name}: {value}");
        let put = s.signed("PUT", "/acct/cont/c", &[(SOURCE, &source), BLOCK, (name, value)], b"").await;
        assert_eq!(put.outcome(), expected, "{name}: {value}");
        if !name.starts_with("if-") {
            let target = "/acct/cont/c?comp=block&blockid=QUFB";
            let block = s.signed("PUT", target, &[(SOURCE, &source), (name, value)], b"").await;
            assert_eq!(block.outcome(), expected, "{name}: {value}");
        }
    }
    assert_eq!(s.signed("HEAD", "/acct/cont/c", &[], b"").await.status, 404, "nothing was made");
    for (value, expected) in [
        ("nothing", (400, "InvalidHeaderValue")),
        ("ftp://example.org/acct/cont/b", (400, "InvalidHeaderValue")),
        ("http://user@example.org/b", (400, "InvalidHeaderValue")),
        (&*format!("{host}/acct"), (400, "InvalidHeaderValue")),
        (&*format!("{host}/acct/cont/none"), (404, "BlobNotFound")),
        (&*format!("{host}/acct/none/b"), (404, "BlobNotFound")),
        (&*format!("{host}/nobody/cont/b"), (404, "CannotVerifyCopySource")),
        // Where this service does not read unless it is told to.
        ("http://127.0.0.1:1/x", (403, "CannotVerifyCopySource")),
        ("http://[::1]:1/x", (403, "CannotVerifyCopySource")),
        ("http://[::ffff:10.0.0.1]/x", (403, "CannotVerifyCopySource")),
        ("http://2130706433:1/x", (403, "CannotVerifyCopySource")),
        ("http://localhost:1/x", (403, "CannotVerifyCopySource")),
        ("http://169.254.169.254/latest/meta-data", (403, "CannotVerifyCopySource")),
        ("https://10.1.2.3/x?sig=SECRET", (403, "CannotVerifyCopySource")),
    ] {
        for more in [&[][..], &[BLOCK]] {
            let reply = s.signed("PUT", "/acct/cont/c", &[&[(SOURCE, value)], more].concat(), b"").await;
            assert_eq!(reply.outcome(), expected, "{value}");
            assert!(!reply.text().contains("SECRET"), "{}", reply.text());
        }
    }
    let some_body = s.signed("PUT", "/acct/cont/c", &[(SOURCE, &source), BLOCK], b"x").await;
    assert_eq!(some_body.outcome(), (400, "InvalidHeaderValue"));

    let abort = async |name: &str, query: &str, headers: &[(&str, &str)]| {
        let reply = s.signed("PUT", &format!("/acct/cont/{name}?comp=copy{query}"), headers, b"").await;
        (reply.status, reply.header("x-ms-error-code").to_owned())
    };
    let action = [("x-ms-copy-action", "abort")];
    assert_eq!(abort("b", "&copyid=x", &action).await, (409, "NoPendingCopyOperation".into()));
    assert_eq!(abort("b", "&copyid=x", &[]).await, (400, "MissingRequiredHeader".into()));
    assert_eq!(abort("b", "", &action).await, (400, "MissingRequiredQueryParameter".into()));
    assert_eq!(abort("none", "&copyid=x", &action).await, (404, "BlobNotFound".into()));
    s.stop().await;
}

#[tokio::test]
async fn blocks_from_urls() {
    let (_dir, s) = service().await;
    let body = pattern(200_000);
    s.put("/acct/cont/b", &body).await;
    let source = format!("http://{}/acct/cont/b", s.blob);
    let put = async |id: &str, headers: &[(&str, &str)]| -> Reply {
        let target = format!("/acct/cont/made?comp=block&blockid={id}");
        s.signed("PUT", &target, &[&[(SOURCE, source.as_str())], headers].concat(), b"").await
    };
    let range = ("x-ms-source-range", "bytes=100000-149999");
    let part = &body[100_000..150_000];
    assert_eq!(put("QUFB", &[range, (MD5, &md5(&body))]).await.outcome(), (400, "Md5Mismatch"), "of the range");
    let first = put("QUFB", &[range, (MD5, &md5(part))]).await;
    assert_eq!((first.status, first.header("content-md5")), (201, md5(part).as_str()), "{}", first.text());
    assert_eq!(put("QkJC", &[("x-ms-source-range", "bytes=199990-")]).await.status, 201);
    assert_eq!(put("Q0ND", &[]).await.status, 201);
    assert_eq!(put("Q0ND", &[("x-ms-source-range", "bytes=200000-")]).await.outcome(), (416, "InvalidRange"));
    assert_eq!(put("Q0ND", &[("x-ms-source-range", "some")]).await.outcome(), (400, "InvalidHeaderValue"));
    let list = b"<BlockList><Latest>QUFB</Latest><Latest>QkJC</Latest><Latest>Q0ND</Latest></BlockList>";
    assert_eq!(s.signed("PUT", "/acct/cont/made?comp=blocklist", &[], list).await.status, 201);
    let made = s.signed("GET", "/acct/cont/made", &[], b"").await;
    assert!(made.body == [part, &body[199_990..], &body].concat());
    s.stop().await;
}

#[tokio::test]
async fn sources_of_other_accounts_need_a_right_to_them() {
    let (_dir, s) = service().await;
    let other = SecretKey::generate();
    let key = other.to_base64();
    let account = PutAccountRequest { account: "other".into(), key1: key.clone(), key2: key };
    s.admin().put_account(account).await.unwrap();
    let expires = Timestamp::from_micros(Timestamp::now().as_micros() + 60_000_000);
    let token = |permissions: &str| {
        let new = NewSas { account: "other", container: "theirs", blob: None, permissions, starts: None, expires };
        sas::create(&new, &other).unwrap()
    };
    // Written with a token, as there is no helper for another account's key.
    let principal = kiln_auth::token::Principal::Account { account: "other".into() };
    let claims = kiln_auth::token::Claims { principal, expires: i64::from(u32::MAX) };
    let bearer = format!("Bearer {}", kiln_auth::token::mint(&other, &claims));
    let own = |length: &'static str| [("Authorization", bearer.clone()), ("content-length", length.to_owned())];
    let send = async |target: &str, more: &[(&str, &str)], body: &[u8], length: &'static str| {
        let own = own(length);
        let mut headers: Vec<(&str, &str)> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
        headers.extend_from_slice(more);
        s.raw("PUT", target, &headers, body).await
    };
    assert_eq!(send("/other/theirs?restype=container", &[], b"", "0").await.status, 201);
    assert_eq!(send("/other/theirs/b", &[BLOCK], b"hello", "5").await.status, 201);

    let url = format!("http://{}/other/theirs/b", s.blob);
    let copy = async |source: String| s.signed("PUT", "/acct/cont/c", &[(SOURCE, &source)], b"").await;
    let refused = (403, "CannotVerifyCopySource");
    assert_eq!(copy(url.clone()).await.outcome(), refused);
    assert_eq!(copy(format!("{url}?{}", token("wl"))).await.outcome(), refused);
    assert_eq!(copy(format!("{url}?{}", s.sas("theirs", None, "r", 60))).await.outcome(), refused, "our key");
    let good = copy(format!("{url}?{}", token("r"))).await;
    assert_eq!(good.status, 202, "{}", good.text());
    let got = s.signed("GET", "/acct/cont/c", &[], b"").await;
    assert_eq!((got.text().as_str(), got.header("x-ms-copy-source")), ("hello", url.as_str()), "without its signature");
    // A token that may write here may not read there, nor here.
    let target = format!("/acct/cont/d?{}", s.sas("cont", None, "w", 60));
    for source in [url.clone(), format!("http://{}/acct/cont/c", s.blob)] {
        let reply = s.raw("PUT", &target, &[(SOURCE, &source), ("content-length", "0")], b"").await;
        assert_eq!(reply.outcome(), refused, "{source}");
    }
    let open = [("x-ms-blob-public-access", "blob")];
    assert_eq!(send("/other/theirs?restype=container&comp=acl", &open, b"", "0").await.status, 200);
    assert_eq!(copy(url).await.status, 202, "what everybody may read");
    s.stop().await;
}

#[tokio::test]
async fn other_servers() {
    let (_far_dir, far) = service().await;
    let (dir, s) = open_service().await;
    let body = pattern(700_000);
    let headers = [BLOCK, ("x-ms-meta-k", "v"), ("x-ms-blob-content-type", "a/b")];
    let etag = far.signed("PUT", "/acct/cont/b", &headers, &body).await.header("etag").to_owned();
    let source = format!("http://{}/acct/cont/b?{}", far.blob, far.sas("cont", Some("b"), "r", 60));
    let copied = s.signed("PUT", "/acct/cont/copy", &[(SOURCE, &source), ("x-ms-source-if-match", &etag)], b"").await;
    assert_eq!((copied.status, copied.header("x-ms-copy-status")), (202, "success"), "{}", copied.text());
    let got = s.signed("GET", "/acct/cont/copy", &[], b"").await;
    assert!(got.body == body);
    assert_eq!((got.header("content-type"), got.header("x-ms-meta-k")), ("a/b", "v"));
    assert_eq!(got.header("content-md5"), md5(&body));
    assert!(!got.header("x-ms-copy-source").contains("sig="), "{}", got.header("x-ms-copy-source"));
    let put = s.signed("PUT", "/acct/cont/put", &[(SOURCE, &source), BLOCK, (MD5, &md5(&body))], b"").await;
    assert_eq!((put.status, put.header("content-md5")), (201, md5(&body).as_str()));
    let range = ("x-ms-source-range", "bytes=500000-599999");
    let block = s.signed("PUT", "/acct/cont/l?comp=block&blockid=QUFB", &[(SOURCE, &source), range], b"").await;
    assert_eq!((block.status, block.header("content-md5")), (201, md5(&body[500_000..600_000]).as_str()));

    let stored = files(&dir.path().join("blobs"));
    let unsigned = format!("http://{}/acct/cont/b", far.blob);
    let missing = format!("http://{}/acct/cont/x?{}", far.blob, far.sas("cont", None, "r", 60));
    let moved = answers("302 Found\r\nLocation: http://169.254.169.254/", b"").await;
    let cut = answers("200 OK\r\nContent-Length: 900000", &pattern(500_000)).await;
    let whole = answers("200 OK\r\nContent-Length: 5", b"hello").await;
    let broken = answers("503 Busy\r\nContent-Length: 0", b"").await;
    let wrong = BASE64_STANDARD.encode([0; 16]);
    for (source, header, expected) in [
        (unsigned, ("x-n", ""), (404, "CannotVerifyCopySource")),
        (missing, ("x-n", ""), (404, "CannotVerifyCopySource")),
        (source.clone(), ("x-ms-source-if-match", "\"0x1\""), (412, "SourceConditionNotMet")),
        (source.clone(), ("x-ms-source-if-none-match", etag.as_str()), (412, "SourceConditionNotMet")),
        (source.clone(), (MD5, wrong.as_str()), (400, "Md5Mismatch")),
        (format!("http://{moved}/"), ("x-n", ""), (400, "CannotVerifyCopySource")),
        (format!("http://{cut}/"), ("x-n", ""), (500, "CannotVerifyCopySource")),
        (format!("http://{broken}/"), ("x-n", ""), (503, "CannotVerifyCopySource")),
        ("http://127.0.0.1:1/".to_owned(), ("x-n", ""), (500, "CannotVerifyCopySource")),
        ("http://8.8.8.8/".to_owned(), ("x-n", ""), (403, "CannotVerifyCopySource")),
    ] {
        for more in [&[][..], &[BLOCK]] {
            let headers = [&[(SOURCE, source.as_str()), header], more].concat();
            let reply = s.signed("PUT", "/acct/cont/new", &headers, b"").await;
            assert_eq!(reply.outcome(), expected, "{source} {header:?}");
        }
    }
    let target = "/acct/cont/l?comp=block&blockid=QkJC";
    let no_ranges = format!("http://{whole}/");
    let reply = s.signed("PUT", target, &[(SOURCE, &no_ranges), range], b"").await;
    assert_eq!(reply.outcome(), (400, "CannotVerifyCopySource"), "all of it is not the part");
    assert_eq!(s.signed("HEAD", "/acct/cont/new", &[], b"").await.status, 404, "nothing was made");
    kiln_testkit::eventually("nothing is left", || async {
        (files(&dir.path().join("blobs")) == stored).then_some(())
    })
    .await;
    assert_eq!(s.signed("PUT", "/acct/cont/whole", &[(SOURCE, &no_ranges)], b"").await.status, 202);
    assert_eq!(s.signed("GET", "/acct/cont/whole", &[], b"").await.text(), "hello");
    s.stop().await;
    far.stop().await;
}

/// All bytes of the files below `dir`.
fn bytes_in(dir: &Path) -> Vec<u8> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { bytes_in(&path) } else { std::fs::read(path).unwrap() }).collect()
}

/// The copy of an encrypted blob shares its objects, also that of a snapshot; what comes from elsewhere is encrypted.
#[tokio::test]
async fn encrypted_blobs_and_their_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = dir.path().join("blobs");
    let ring = Keyring::parse(&format!("k1 {}\n", BASE64_STANDARD.encode([7; 32]))).unwrap();
    let s = Service::start_with(dir.path(), |config| {
        config.encryption = Some(Arc::new(ring));
        config.copy_sources = CopySources::parse("none", &["127.0.0.0/8".to_owned()]).unwrap();
    })
    .await;
    s.create("cont").await;
    let (large, small) = (pattern(300_000), pattern(1000));
    for (name, old) in [("large", &large), ("small", &small)] {
        let (path, target) = (format!("/acct/cont/{name}"), format!("/acct/cont/{name}-copy"));
        s.put(&path, old).await;
        let taken = s.signed("PUT", &format!("{path}?comp=snapshot"), &[], b"").await;
        s.put(&path, b"newer").await;
        let stored = files(&blobs);
        let source = format!("http://{}{path}?snapshot={}", s.blob, taken.header("x-ms-snapshot"));
        for more in [&[][..], &[BLOCK]] {
            let copied = s.signed("PUT", &target, &[&[(SOURCE, source.as_str())], more].concat(), b"").await;
            assert!(matches!(copied.status, 201 | 202), "{}", copied.text());
            assert!(s.signed("GET", &target, &[], b"").await.body == *old, "{name}");
        }
        let all = [("x-ms-delete-snapshots", "include")];
        assert_eq!(s.signed("DELETE", &path, &all, b"").await.status, 202);
        assert_eq!(files(&blobs), stored, "no copy has bytes of its own");
        assert!(s.signed("GET", &target, &[], b"").await.body == *old, "{name} without its source");
    }
    let far = answers("200 OK\r\nContent-Length: 300000", &large).await;
    let copied = s.signed("PUT", "/acct/cont/far", &[(SOURCE, &format!("http://{far}/"))], b"").await;
    assert_eq!(copied.status, 202, "{}", copied.text());
    assert!(s.signed("GET", "/acct/cont/far", &[], b"").await.body == large);
    let written = bytes_in(&blobs);
    assert!(written.len() > 2 * large.len(), "both are there");
    assert!(!written.windows(64).any(|bytes| *bytes == large[..64]), "neither as it was");
    s.stop().await;
}
