//! Downloads from servers that misbehave.

use base64::prelude::BASE64_STANDARD;

use super::super::fake_server::{FakeServer, Reply, Seen, content};
use super::*;

const MIB: usize = 1024 * 1024;

/// Fetches as the cache does; gives what arrived, or why nothing did.
async fn fetch(server: &FakeServer) -> Result<Vec<u8>, TransferError> {
    let dir = tempfile::tempdir().unwrap();
    let (http, connections) = (FakeServer::http(), Semaphore::new(8));
    let target = dir.path().join("f");
    let source = Source { http: &http, url: &server.url, access: Access::Url, connections: &connections };
    let first = http.with_retries(|| source.request(None)).await?;
    let received = source.receive(first, &target).await?;
    let bytes = std::fs::read(&target).unwrap();
    assert_eq!(received.bytes, bytes.len() as u64);
    assert_eq!(connections.available_permits(), 8);
    Ok(bytes)
}

fn md5(content: &[u8]) -> String {
    BASE64_STANDARD.encode(Md5::digest(content))
}

fn ranges(server: &FakeServer) -> Vec<Option<(usize, usize)>> {
    server.seen().iter().map(Seen::range).collect()
}

#[tokio::test]
async fn only_the_missing_bytes_are_asked_for_again() {
    let bytes = content(3 * MIB / 2, 1);
    let sent = bytes.clone();
    let server = FakeServer::start(move |number, seen| {
        let reply = Reply::honest(&sent, "\"v1\"", seen).with("content-md5", md5(&sent));
        // Every answer breaks off; the last try would be used up long before the end.
        if number < 5 { reply.cut_after(300_000) } else { reply }
    })
    .await;
    assert!(fetch(&server).await.unwrap() == bytes);
    let expected: Vec<_> = (0..5)
        .map(|part| (part > 0).then_some((part * 300_000, bytes.len() - 1)))
        .chain([Some((1_500_000, bytes.len() - 1))])
        .collect();
    assert_eq!(ranges(&server), expected);
    assert!(server.seen()[1..].iter().all(|seen| seen.header("if-match") == Some("\"v1\"")));
}

#[tokio::test]
async fn large_content_comes_in_parts_of_one_version() {
    let bytes = content(5 * MIB + 77, 2);
    let sent = bytes.clone();
    let server = FakeServer::start(move |number, seen| {
        let reply = Reply::honest(&sent, "\"v1\"", seen).with("content-md5", md5(&sent));
        // Of each part a piece is missing at first.
        if number < 6 { reply.cut_after(MIB / 3) } else { reply }
    })
    .await;
    assert!(fetch(&server).await.unwrap() == bytes);
    let mut starts: Vec<_> = ranges(&server).into_iter().flatten().map(|(start, _)| start / MIB).collect();
    starts.sort_unstable();
    starts.dedup();
    assert_eq!(starts, [0, 1, 2, 3, 4, 5], "every part was read by itself");
    assert!(server.seen().iter().filter(|seen| seen.range().is_none()).count() == 1, "the whole only once");
}

#[tokio::test]
async fn two_versions_are_never_mixed() {
    for honest in [true, false] {
        for size in [3 * MIB / 2, 5 * MIB] {
            let (old, new) = (content(size, 3), content(size - MIB / 2, 4));
            let expected = new.clone();
            let server = FakeServer::start(move |number, seen| match number {
                0 => Reply::whole(&old, "\"v1\"").with("content-md5", md5(&old)).cut_after(500_000),
                // This one does not look at If-Match.
                _ if !honest && seen.range().is_some_and(|(start, _)| start < new.len()) => {
                    let (start, end) = seen.range().unwrap();
                    let end = end.min(new.len() - 1);
                    Reply::new(206)
                        .with("etag", "\"v2\"")
                        .with("content-range", format!("bytes {start}-{end}/{}", new.len()))
                        .body(new[start..=end].to_vec())
                }
                _ => Reply::honest(&new, "\"v2\"", seen).with("content-md5", md5(&new)),
            })
            .await;
            assert!(fetch(&server).await.unwrap() == expected, "{honest} {size}");
        }
    }
}

#[tokio::test]
async fn servers_without_ranges_or_versions_are_read_from_the_start() {
    let bytes = content(5 * MIB, 5);
    let plain = |content: &[u8]| Reply::new(200).body(content.to_vec());
    // It says it knows ranges, and does not; it names no version; only a weak one.
    for etag in [Some("\"v1\""), None, Some("W/\"v1\"")] {
        let sent = bytes.clone();
        let server = FakeServer::start(move |number, _| {
            let mut reply = plain(&sent).with("accept-ranges", "bytes");
            if let Some(etag) = etag {
                reply = reply.with("etag", etag);
            }
            if number == 0 { reply.cut_after(700_000) } else { reply }
        })
        .await;
        assert!(fetch(&server).await.unwrap() == bytes, "{etag:?}");
    }
}

#[tokio::test]
async fn what_stays_too_short_is_an_error() {
    for size in [1000, 3 * MIB / 2, 5 * MIB] {
        for ranges in [true, false] {
            let sent = content(size, 6);
            let server = FakeServer::start(move |_, seen| {
                let reply =
                    if ranges { Reply::honest(&sent, "\"v1\"", seen) } else { Reply::new(200).body(sent.clone()) };
                reply.cut_after(if seen.range().is_some() { 0 } else { size / 2 })
            })
            .await;
            let error = fetch(&server).await.unwrap_err();
            assert!(matches!(error, TransferError::Other(_)), "{error:?}");
            assert!(server.seen().len() <= 40, "{}", server.seen().len());
        }
    }
}

#[tokio::test]
async fn wrong_bytes_are_noticed() {
    for size in [1000, 3 * MIB / 2, 5 * MIB] {
        for wrong in [1, usize::MAX] {
            let bytes = content(size, 7);
            let sent = bytes.clone();
            let server = FakeServer::start(move |number, seen| {
                let mut sent = sent.clone();
                let sum = md5(&sent);
                if number < wrong {
                    sent[size / 10] ^= 1;
                }
                Reply::honest(&sent, "\"v1\"", seen).with("content-md5", sum)
            })
            .await;
            match fetch(&server).await {
                Ok(found) => assert!(wrong == 1 && found == bytes),
                Err(error) => {
                    assert_eq!(wrong, usize::MAX);
                    assert!(error.to_string().contains("Content-MD5"), "{error}");
                }
            }
        }
    }
}

#[tokio::test]
async fn wrong_ranges_and_busy_servers() {
    // A range that was not asked for.
    let bytes = content(3 * MIB / 2, 8);
    let sent = bytes.clone();
    let server = FakeServer::start(move |number, seen| match number {
        0 => Reply::whole(&sent, "\"v1\"").cut_after(300_000),
        1 => Reply::new(206).with("etag", "\"v1\"").with("content-range", "bytes 0-9/10").body(vec![0; 10]),
        2 | 3 => Reply::new(503).with("retry-after", "0"),
        _ => Reply::honest(&sent, "\"v1\"", seen),
    })
    .await;
    let result = fetch(&server).await;
    // Three tries are used up: that of the wrong range, and two by the busy server.
    assert!(result.is_err_and(|error| error.to_string().contains("503")), "{:?}", server.seen());

    let sent = bytes.clone();
    let server = FakeServer::start(move |number, seen| match number {
        0 => Reply::new(503).with("retry-after", "1"),
        1 => Reply::whole(&sent, "\"v1\"").cut_after(300_000),
        2 => Reply::new(503).with("retry-after", "1"),
        _ => Reply::honest(&sent, "\"v1\"", seen),
    })
    .await;
    assert!(fetch(&server).await.unwrap() == bytes);
    assert_eq!(server.seen().len(), 4);

    // The signature ended in between.
    let sent = bytes.clone();
    let server = FakeServer::start(move |number, _| match number {
        0 => Reply::whole(&sent, "\"v1\"").cut_after(300_000),
        _ => Reply::new(403),
    })
    .await;
    assert!(matches!(fetch(&server).await, Err(TransferError::Denied(_))));
    assert_eq!(server.seen().len(), 2);
}
