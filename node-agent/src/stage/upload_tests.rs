use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::fake_server::{FakeServer, Reply, Seen, content};
use super::*;

async fn send(server: &FakeServer, bytes: &[u8], headers: &[NameValue]) -> Result<u64, TransferError> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    std::fs::write(&file, bytes).unwrap();
    let (http, connections) = (FakeServer::http(), Semaphore::new(8));
    Target { http: &http, url: &server.url, headers, connections: &connections }.send(&file).await
}

fn md5(content: &[u8]) -> String {
    BASE64_STANDARD.encode(Md5::digest(content))
}

fn block_of(seen: &Seen) -> Option<String> {
    let url = Url::parse(&format!("http://h{}", seen.target)).unwrap();
    url.query_pairs().find(|(name, _)| name == "blockid").map(|(_, id)| id.into_owned())
}

/// The blob that the requests made.
fn blob(server: &FakeServer) -> Vec<u8> {
    let seen = server.seen();
    let list = String::from_utf8(seen.last().unwrap().body.clone()).unwrap();
    let ids = list.split("<Latest>").skip(1).map(|part| part.split('<').next().unwrap().to_owned());
    ids.flat_map(|id| seen.iter().rfind(|seen| block_of(seen).as_ref() == Some(&id)).unwrap().body.clone()).collect()
}

fn header(name: &str, value: &str) -> NameValue {
    NameValue { name: name.into(), value: value.into() }
}

#[tokio::test]
async fn only_blocks_that_broke_are_sent_again() {
    let bytes = content(10 * BLOCK as usize + 5, 1);
    let broken = AtomicUsize::new(0);
    let server = FakeServer::start(move |_, seen| {
        // Some blocks fail once, in two ways.
        let third = block_of(seen).is_some_and(|id| id == block_id(3) || id == block_id(10));
        match (third, broken.load(Ordering::SeqCst)) {
            (true, 0) => {
                broken.store(1, Ordering::SeqCst);
                Reply::new(503).with("retry-after", "0")
            }
            (true, 1) => {
                broken.store(2, Ordering::SeqCst);
                Reply::new(400).with("x-ms-error-code", "Md5Mismatch")
            }
            _ => Reply::new(201),
        }
    })
    .await;
    assert_eq!(send(&server, &bytes, &[header("Content-Type", "text/x")]).await, Ok(bytes.len() as u64));
    assert!(blob(&server) == bytes);
    let seen = server.seen();
    assert_eq!(seen.len(), 11 + 2 + 1);
    for block in seen.iter().filter(|seen| block_of(seen).is_some()) {
        assert_eq!(block.header("content-md5"), Some(&*md5(&block.body)));
    }
    let list = seen.last().unwrap();
    assert_eq!(list.header("x-ms-blob-content-md5"), Some(&*md5(&bytes)));
    assert_eq!(list.header("x-ms-blob-content-type"), Some("text/x"));
}

#[tokio::test]
async fn small_files_are_one_request_with_their_md5() {
    for length in [0, 1, 2 * BLOCK as usize] {
        let bytes = content(length, 2);
        let server = FakeServer::start(|_, _| Reply::new(201)).await;
        assert_eq!(send(&server, &bytes, &[]).await, Ok(length as u64));
        let [seen] = &server.seen()[..] else { panic!("{:?}", server.seen().len()) };
        assert_eq!((&*seen.method, seen.header("x-ms-blob-type")), ("PUT", Some("BlockBlob")));
        assert_eq!(seen.header("content-md5"), Some(&*md5(&bytes)));
        assert!(seen.body == bytes);
    }
}

#[tokio::test]
async fn a_service_that_stays_broken_is_an_error() {
    let bytes = content(5 * BLOCK as usize, 3);
    for (status, code) in [(400, "Md5Mismatch"), (500, "InternalError")] {
        let server = FakeServer::start(move |_, seen| match block_of(seen) {
            Some(id) if id == block_id(2) => Reply::new(status).with("x-ms-error-code", code),
            _ => Reply::new(201),
        })
        .await;
        let error = send(&server, &bytes, &[]).await.unwrap_err();
        assert!(error.to_string().contains(code), "{error}");
        assert!(server.seen().iter().all(|seen| !seen.target.contains("blocklist")), "nothing was committed");
    }
    let server = FakeServer::start(|_, _| Reply::new(403)).await;
    assert!(matches!(send(&server, &bytes, &[]).await, Err(TransferError::Denied(_))));
}
