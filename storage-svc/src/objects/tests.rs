//! The same checks for the local backend and for one that is not.

use futures::TryStreamExt;
use object_store::memory::InMemory;

use super::*;

fn pattern(length: usize) -> Bytes {
    (0..length).map(|at| (at * 31 % 251) as u8).collect()
}

async fn write(objects: &Objects, bytes: &Bytes) -> Written {
    let mut writer = objects.create(true).await.unwrap();
    for at in (0..bytes.len()).step_by(700_001) {
        writer.write(bytes.slice(at..bytes.len().min(at + 700_001))).await.unwrap();
    }
    writer.finish().await.unwrap()
}

async fn read(objects: &Objects, key: &ObjectKey, start: u64, length: u64) -> io::Result<Vec<u8>> {
    objects
        .read(key, Span { start, length })
        .try_fold(Vec::new(), |mut all, piece| async move {
            all.extend_from_slice(&piece);
            Ok(all)
        })
        .await
}

async fn behaves(objects: &Objects) {
    let bytes = pattern(3_000_000);
    let written = write(objects, &bytes).await;
    assert_eq!(written.length, 3_000_000);
    assert_eq!(written.checksums.md5, <[u8; 16]>::from(Md5::digest(&bytes)));
    let key = written.key.clone();
    written.keep();
    assert_eq!(read(objects, &key, 0, 3_000_000).await.unwrap(), bytes);
    assert_eq!(read(objects, &key, 1_234_567, 700_000).await.unwrap(), bytes[1_234_567..1_934_567]);
    assert_eq!(read(objects, &key, 5, 0).await.unwrap(), b"");
    assert!(read(objects, &key, 2_999_999, 2).await.is_err(), "a short object is an error");
    objects.delete(&key).await.unwrap();
    objects.delete(&key).await.unwrap();
    assert!(read(objects, &key, 0, 1).await.is_err());

    let unused = write(objects, &pattern(10)).await;
    let key = unused.key.clone();
    drop(unused);
    kiln_testkit::eventually("an object nobody keeps goes", || async {
        read(objects, &key, 0, 10).await.is_err().then_some(())
    })
    .await;
}

#[tokio::test]
async fn local_objects() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("blobs");
    let objects = Objects::local(&root).await.unwrap();
    behaves(&objects).await;
    let mut writer = objects.create(false).await.unwrap();
    writer.write(pattern(5_000_000)).await.unwrap();
    drop(writer);
    kiln_testkit::eventually("an aborted upload leaves no file", || async {
        let shards = std::fs::read_dir(&root).unwrap();
        let files = shards.flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap()).count();
        (files == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn remote_objects() {
    behaves(&Objects::remote(Arc::new(InMemory::new()))).await;
}

#[tokio::test]
async fn only_objects_of_earlier_processes_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let earlier = Objects::local(dir.path()).await.unwrap();
    let old = write(&earlier, &pattern(1)).await;
    let old_key = old.key.clone();
    old.keep();
    let objects = Objects::local(dir.path()).await.unwrap();
    write(&objects, &pattern(1)).await.keep();
    let now = Timestamp::now();
    let listed: Vec<Vec<ObjectKey>> = objects.earlier(10, now).try_collect().await.unwrap();
    assert_eq!(listed.concat(), [old_key]);
    // Written to since then: somebody may still be at it.
    let hour = std::time::Duration::from_secs(3600);
    let young: Vec<Vec<ObjectKey>> = objects.earlier(10, now.minus(hour)).try_collect().await.unwrap();
    assert!(young.is_empty(), "{young:?}");
}

#[tokio::test]
async fn blobs_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("blobs");
    for _ in 0..2 {
        Objects::local(&root).await.unwrap();
        assert_eq!(std::fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
        // As an older one left it.
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}
