//! What the blob data plane refuses, with which code, and that nothing is left of it.
#![allow(clippy::unwrap_used)]

use kiln_auth::SecretKey;
use kiln_e2e::inventory::inventory;
use kiln_e2e::rest::{Answer, Blobs};
use kiln_e2e::server::Server;

const BLOCK_BLOB: (&str, &str) = ("x-ms-blob-type", "BlockBlob");

fn is(what: &str, answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (status, code), "{what}: {}", answer.text());
}

/// A server with the container `con` and the blob `con/b`.
async fn server_with_blob() -> (Server, Blobs) {
    let server = Server::start().await;
    let blobs = Blobs::of(&server);
    assert_eq!(blobs.send("PUT", "con?restype=container", &[], b"").await.status, 201);
    assert_eq!(blobs.send("PUT", "con/b", &[BLOCK_BLOB], b"content").await.status, 201);
    (server, blobs)
}

#[tokio::test]
async fn callers_who_cannot_prove_who_they_are() {
    let (server, blobs) = server_with_blob().await;
    let before = inventory(&server.client()).await;
    let wrong = blobs.clone().with_key(SecretKey::generate());
    is("wrong key, read", &wrong.send("GET", "con/b", &[], b"").await, 403, "AuthenticationFailed");
    is("wrong key, write", &wrong.send("PUT", "con/n", &[BLOCK_BLOB], b"x").await, 403, "AuthenticationFailed");
    is("wrong key, delete", &wrong.send("DELETE", "con/b", &[], b"").await, 403, "AuthenticationFailed");
    for query in [wrong.sas("con", "b", "r", 60), blobs.sas("con", "b", "r", -1), blobs.sas("other", "", "r", 60)] {
        let answer = blobs.unsigned("GET", &format!("con/b?{query}"), &[], b"").await;
        is("a SAS of another key, an expired one, one of another container", &answer, 403, "AuthenticationFailed");
    }
    let more = blobs.sas("con", "b", "r", 60).replace("sp=r", "sp=rw");
    let answer = blobs.unsigned("PUT", &format!("con/b?{more}"), &[BLOCK_BLOB], b"x").await;
    is("a SAS with permissions added later", &answer, 403, "AuthenticationFailed");
    let anonymous = blobs.unsigned("GET", "con/b", &[], b"").await;
    assert!(matches!(anonymous.status, 401 | 403 | 404 | 409), "{}", anonymous.text());
    assert_eq!(inventory(&server.client()).await, before);
    assert_eq!(blobs.send("GET", "con/b", &[], b"").await.body, b"content");
    server.stop().await;
}

#[tokio::test]
async fn a_sas_gives_what_it_says_and_no_more() {
    let (server, blobs) = server_with_blob().await;
    let before = inventory(&server.client()).await;
    let with = |path: &str, query: String| format!("{path}{}{query}", if path.contains('?') { '&' } else { '?' });
    let read = |path: &str| with(path, blobs.sas("con", "b", "r", 60));
    let write = |path: &str| with(path, blobs.sas("con", "", "w", 60));
    assert_eq!(blobs.unsigned("GET", &read("con/b"), &[], b"").await.body, b"content");
    let denied = "AuthorizationPermissionMismatch";
    is("read only: write", &blobs.unsigned("PUT", &read("con/b"), &[BLOCK_BLOB], b"x").await, 403, denied);
    is("read only: delete", &blobs.unsigned("DELETE", &read("con/b"), &[], b"").await, 403, denied);
    is("write only: read", &blobs.unsigned("GET", &write("con/b"), &[], b"").await, 403, denied);
    is(
        "write only: list",
        &blobs.unsigned("GET", &write("con?restype=container&comp=list"), &[], b"").await,
        403,
        denied,
    );
    let other = blobs.unsigned("GET", &read("con/other"), &[], b"").await;
    assert_eq!(other.status, 403, "a blob's SAS on another blob: {}", other.text());
    let container = blobs.unsigned("DELETE", &write("con?restype=container"), &[], b"").await;
    assert_eq!(container.status, 403, "deleting the container: {}", container.text());
    assert_eq!(inventory(&server.client()).await, before);
    assert_eq!(blobs.send("GET", "con/b", &[], b"").await.body, b"content");
    server.stop().await;
}

#[tokio::test]
async fn requests_that_make_no_sense() {
    let (server, blobs) = server_with_blob().await;
    let before = inventory(&server.client()).await;
    let md5 = ("Content-MD5", "AAAAAAAAAAAAAAAAAAAAAA==");
    let no_match = ("If-None-Match", "*");
    let stale = ("If-Match", "\"0x8D0000000000000\"");
    let block = "con/n?comp=blocklist";
    let unknown = b"<?xml version=\"1.0\"?><BlockList><Latest>QUFB</Latest></BlockList>";
    is("missing container", &blobs.send("PUT", "none/b", &[BLOCK_BLOB], b"x").await, 404, "ContainerNotFound");
    is("missing blob", &blobs.send("GET", "con/none", &[], b"").await, 404, "BlobNotFound");
    is("container twice", &blobs.send("PUT", "con?restype=container", &[], b"").await, 409, "ContainerAlreadyExists");
    is("blob twice", &blobs.send("PUT", "con/b", &[BLOCK_BLOB, no_match], b"x").await, 409, "BlobAlreadyExists");
    is("stale version", &blobs.send("PUT", "con/b", &[BLOCK_BLOB, stale], b"x").await, 412, "ConditionNotMet");
    is("other bytes than said", &blobs.send("PUT", "con/n", &[BLOCK_BLOB, md5], b"x").await, 400, "Md5Mismatch");
    is("unknown block", &blobs.send("PUT", block, &[], unknown).await, 400, "InvalidBlockList");
    is("no XML", &blobs.send("PUT", block, &[], b"{}").await, 400, "InvalidXmlDocument");
    is("bad name", &blobs.send("PUT", "Not_A_Name?restype=container", &[], b"").await, 400, "InvalidResourceName");
    is("short name", &blobs.send("PUT", "xy?restype=container", &[], b"").await, 400, "OutOfRangeInput");
    is("range behind the end", &blobs.send("GET", "con/b", &[("Range", "bytes=7-")], b"").await, 416, "InvalidRange");
    let huge = blobs.send_announced("PUT", "con/n", &[BLOCK_BLOB], b"", Some(6 * 1024 * 1024 * 1024)).await;
    is("6 GiB in one piece", &huge, 413, "RequestBodyTooLarge");
    assert_eq!(inventory(&server.client()).await, before);
    assert_eq!(blobs.send("GET", "con/b", &[], b"").await.body, b"content");
    server.stop().await;
}

#[tokio::test]
async fn names_that_look_like_paths_stay_names() {
    let (server, blobs) = server_with_blob().await;
    let outside: Vec<_> = std::fs::read_dir(server.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    for name in ["..%2F..%2Fescaped", "%2Fetc%2Fescaped", "a%2F..%2F..%2F..%2Fescaped", "..", "a%2F%2E%2E%2Fescaped"] {
        let put = blobs.send("PUT", &format!("con/{name}"), &[BLOCK_BLOB], name.as_bytes()).await;
        if put.status == 201 {
            let get = blobs.send("GET", &format!("con/{name}"), &[], b"").await;
            assert_eq!((get.status, get.text()), (200, name.to_owned()));
        } else {
            assert_eq!(put.status, 400, "{name}: {}", put.text());
        }
    }
    assert_eq!(kiln_e2e::server::find_files(server.dir(), "escaped").len(), 0, "no file is called as a user wants");
    let now: Vec<_> = std::fs::read_dir(server.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(now, outside);
    server.stop().await;
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let (server, blobs) = server_with_blob().await;
    let before = inventory(&server.client()).await;
    let files = files_below(&server.data());
    for _ in 0..3 {
        kiln_e2e::rest::broken_upload(&blobs, "con/half", 1_000_000, 10_000_000).await;
    }
    kiln_e2e::until("the pieces are gone", kiln_e2e::LONG, async || {
        (files_below(&server.data()) <= files).then_some(())
    })
    .await;
    assert_eq!(blobs.send("GET", "con/half", &[], b"").await.status, 404);
    assert_eq!(inventory(&server.client()).await, before);
    server.stop().await;
}

/// Number of files with the bytes of blobs: everything but databases and logs.
fn files_below(dir: &std::path::Path) -> usize {
    let mut open = vec![dir.to_owned()];
    let mut count = 0;
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(_) if !name.contains(".db") => count += 1,
                _ => {}
            }
        }
    }
    count
}
