use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::fake_server::{FakeServer, Reply, content};
use super::*;

fn cache(dir: &Path, limit: u64) -> Arc<Cache> {
    Arc::new(Cache::create(dir.join("cache"), limit, FakeServer::http(), 4).unwrap())
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("cache")).unwrap().count()
}

#[test]
fn signatures_do_not_make_another_file_and_snapshots_do() {
    let key = |text: &str| content_key(&Url::parse(text).unwrap());
    let plain = key("http://h/a/c/b");
    assert_eq!(plain, key("http://h/a/c/b?sv=1&sr=b&sig=xyz&se=2030&sp=r"));
    assert_ne!(plain, key("http://h/a/c/b?snapshot=1&sig=xyz"));
    assert_ne!(plain, key("http://h/a/c/c"));
}

#[test]
fn what_was_not_used_for_the_longest_time_makes_room() {
    let mut entries = Entries::default();
    let entry = |name: &str, bytes| Entry { etag: "1".into(), path: name.into(), bytes, last_use: 0 };
    assert!(entries.add("a", entry("a", 40), 100).is_empty());
    assert!(entries.add("b", entry("b", 40), 100).is_empty());
    assert_eq!(entries.find("a", "1"), Some("a".into()));
    assert_eq!(entries.find("a", "2"), None);
    assert_eq!(entries.add("c", entry("c", 40), 100), [PathBuf::from("b")]);
    assert_eq!(entries.add("a", entry("a2", 50), 100), [PathBuf::from("a")]);
    assert_eq!(entries.remove("a", "2"), Vec::<PathBuf>::new());
    assert_eq!(entries.remove("a", "1"), [PathBuf::from("a2")]);
    assert_eq!((entries.bytes, entries.uses.len(), entries.by_key.len()), (40, 1, 1));
    for number in 0..=MAX_ENTRIES {
        entries.add(&number.to_string(), entry("x", 0), 100);
    }
    assert_eq!((entries.by_key.len(), entries.uses.len()), (MAX_ENTRIES, MAX_ENTRIES));
}

/// Many at once, with one URL or each with a signature of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_is_read_once_however_many_want_it() {
    for own_signatures in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let bytes = content(400_000, 1);
        let version = Arc::new(AtomicUsize::new(1));
        let (sent, now) = (bytes.clone(), version.clone());
        let server = FakeServer::start(move |_, seen| {
            let version = now.load(Ordering::SeqCst);
            let mut sent = sent.clone();
            sent[0] = version as u8;
            Reply::honest(&sent, &format!("\"v{version}\""), seen)
        })
        .await;
        let cache = cache(dir.path(), 1 << 30);
        let everybody = async |round: usize| {
            let fetches = (0..100).map(|number| {
                let (cache, mut url) = (cache.clone(), server.url.clone());
                if own_signatures {
                    url.set_query(Some(&format!("sig={number}")));
                }
                let target = dir.path().join(format!("{round}-{number}"));
                kiln_telemetry::spawn(async move {
                    let length = cache.fetch(&url, Access::Url, &target).await.unwrap();
                    assert_eq!(length, 400_000);
                    std::fs::read(target).unwrap()[0]
                })
            });
            for found in futures::future::join_all(fetches).await {
                assert_eq!(usize::from(found.unwrap()), version.load(Ordering::SeqCst), "what was written is seen");
            }
        };
        let whole = || server.seen().iter().filter(|seen| seen.header("if-none-match").is_none()).count();
        everybody(1).await;
        assert_eq!(whole(), 1, "one reads, the others wait for it");
        if !own_signatures {
            assert!(server.seen().len() < 100, "an answer counts for all who wait: {}", server.seen().len());
        }
        version.store(2, Ordering::SeqCst);
        everybody(2).await;
        assert_eq!(files(dir.path()), 1, "the old version is gone");
        assert!(cache.questions.of("x".into()).wait().await.is_some_and(|answer| answer.is_none()));
    }
}

#[tokio::test]
async fn failures_are_shared_by_those_who_wait_and_by_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let server = FakeServer::start(|_, seen| match seen.target.contains("sig=good") {
        true => Reply::whole(b"secret", "\"v1\""),
        false => Reply::new(403),
    })
    .await;
    let cache = cache(dir.path(), 1 << 30);
    let mut good = server.url.clone();
    good.set_query(Some("sig=good"));
    let target = dir.path().join("f");
    assert_eq!(cache.fetch(&good, Access::Url, &target).await, Ok(6));
    let denied = (0..50).map(|number| {
        let target = dir.path().join(number.to_string());
        let (cache, url) = (cache.clone(), server.url.clone());
        async move { cache.fetch(&url, Access::Url, &target).await }
    });
    for result in futures::future::join_all(denied).await {
        assert!(matches!(result, Err(TransferError::Denied(_))), "{result:?}");
    }
    assert!(server.seen().len() <= 1 + 2, "{}", server.seen().len());
    assert_eq!(cache.fetch(&good, Access::Url, &target).await, Ok(6));
}

#[tokio::test]
async fn damage_and_disuse_cost_only_speed() {
    let dir = tempfile::tempdir().unwrap();
    let server = FakeServer::start(|_, seen| Reply::honest(b"0123456789", "\"v1\"", seen)).await;
    let target = dir.path().join("f");
    let fetch = async |cache: &Cache| {
        let _ = std::fs::remove_file(&target);
        assert_eq!(cache.fetch(&server.url, Access::Url, &target).await, Ok(10));
        assert_eq!(std::fs::read(&target).unwrap(), b"0123456789");
    };
    let good = cache(dir.path(), 100);
    fetch(&good).await;
    for file in std::fs::read_dir(dir.path().join("cache")).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    fetch(&good).await;
    fetch(&good).await;
    assert_eq!(files(dir.path()), 1);
    // Larger than half of the cache; turned off.
    for limit in [19, 0] {
        let none = cache(dir.path(), limit);
        fetch(&none).await;
        fetch(&none).await;
        assert_eq!(files(dir.path()), 0, "{limit}");
    }
}
