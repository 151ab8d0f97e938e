//! The same checks for every place of the bytes, plain and encrypted; the remote
//! ones against servers of other makers.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use common::buckets::{Buckets, pattern_bytes as pattern};
use futures::TryStreamExt;
use kiln_time::Timestamp;
use md5::{Digest, Md5};
use storage_svc::collect;
use storage_svc::domain::model::{Content, ObjectKey, OpenUpload};
use storage_svc::domain::range::Span;
use storage_svc::metrics::Metrics;
use storage_svc::objects::place::ObjectsPlace;
use storage_svc::objects::remote::UploadLog;
use storage_svc::objects::sealing::{CHUNK, Keyring};
use storage_svc::objects::{Objects, Options, Written};
use storage_svc::service::{Storage, UploadNotes, keys};
use storage_svc::store::{Catalogue, SqlCatalogue};

/// More than two parts of an upload.
const LARGE: usize = 20_000_000;

/// Notes of uploads, in memory.
#[derive(Debug, Default)]
struct Notes(Mutex<BTreeSet<String>>);

#[async_trait]
impl UploadLog for Notes {
    async fn note(&self, upload: &OpenUpload) -> io::Result<()> {
        self.0.lock().unwrap().insert(upload.object.0.clone());
        Ok(())
    }

    async fn forget(&self, object: &ObjectKey) -> io::Result<()> {
        self.0.lock().unwrap().remove(&object.0);
        Ok(())
    }
}

impl Notes {
    fn open(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

fn keyring(lines: &[(&str, u8)]) -> Arc<Keyring> {
    use base64::Engine;
    let line = |(id, byte): &(&str, u8)| format!("{id} {}\n", base64::prelude::BASE64_STANDARD.encode([*byte; 32]));
    Arc::new(Keyring::parse(&lines.iter().map(line).collect::<String>()).unwrap())
}

fn sealed() -> Options {
    Options { keyring: Some(keyring(&[("k1", 1)])), ..Options::default() }
}

async fn open(place: &ObjectsPlace, options: Options) -> (Objects, Arc<Notes>) {
    let notes = Arc::new(Notes::default());
    (Objects::open(place, options, notes.clone()).await.unwrap(), notes)
}

async fn write(objects: &Objects, bytes: &Bytes) -> Written {
    let mut writer = objects.create(true).await.unwrap();
    for at in (0..bytes.len()).step_by(700_001) {
        writer.write(bytes.slice(at..bytes.len().min(at + 700_001))).await.unwrap();
    }
    writer.finish().await.unwrap()
}

async fn kept(objects: &Objects, bytes: &Bytes) -> ObjectKey {
    let written = write(objects, bytes).await;
    let key = written.key.clone();
    written.keep();
    key
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

/// What every place does.
async fn behaves(place: &ObjectsPlace, options: Options) {
    let (objects, notes) = open(place, options).await;
    let chunk = CHUNK as usize;
    for size in [0, 1, chunk - 1, chunk, chunk + 1, 3_000_000, LARGE] {
        let bytes = pattern(size);
        let written = write(&objects, &bytes).await;
        assert_eq!((written.length, written.checksums.md5), (size as u64, Md5::digest(&bytes).into()));
        let key = written.key.clone();
        written.keep();
        assert_eq!(read(&objects, &key, 0, size as u64).await.unwrap(), bytes, "{size} bytes");
        for (start, length) in [(0, 1), (size / 3, size / 2), (chunk - 2, 4), (size.saturating_sub(1), 1), (5, 0)] {
            if start + length <= size {
                let found = read(&objects, &key, start as u64, length as u64).await.unwrap();
                assert!(found == bytes[start..start + length], "{length} at {start} of {size} bytes");
            }
        }
        for (start, length) in [(size.saturating_sub(1), 2), (size, 1), (0, size + 1)] {
            let found = read(&objects, &key, start as u64, length as u64).await;
            assert!(found.is_err(), "{length} at {start} of {size} bytes: a short object is an error");
        }
        objects.delete(&key).await.unwrap();
        objects.delete(&key).await.unwrap();
        assert!(read(&objects, &key, 0, 1).await.is_err());
    }
    assert_eq!(notes.open(), 0, "no upload is left");

    let unused = write(&objects, &pattern(10)).await;
    let key = unused.key.clone();
    drop(unused);
    kiln_testkit::eventually("an object nobody keeps goes", || async {
        read(&objects, &key, 0, 10).await.is_err().then_some(())
    })
    .await;

    // Of others, and old enough.
    let key = kept(&objects, &pattern(1)).await;
    let other = open(place, Options::default()).await.0;
    kept(&other, &pattern(1)).await;
    let hour = std::time::Duration::from_secs(3600);
    let listed =
        async |until| -> Vec<ObjectKey> { other.earlier(10, until).try_collect::<Vec<_>>().await.unwrap().concat() };
    assert_eq!(listed(Timestamp::now().plus(hour)).await, [key]);
    assert!(listed(Timestamp::now().minus(hour)).await.is_empty(), "young ones are not listed");

    // One owner, whose mark is no object.
    objects.claim("me").await.unwrap();
    other.claim("me").await.unwrap();
    let refused = other.claim("you").await.unwrap_err().to_string();
    assert!(refused.contains("another catalogue (me, this one is you)"), "{refused}");
    assert_eq!(listed(Timestamp::now().plus(hour)).await.len(), 1);
}

#[tokio::test]
async fn files() {
    for options in [Options::default(), sealed()] {
        let dir = tempfile::tempdir().unwrap();
        behaves(&ObjectsPlace::Own(dir.path().join("a/b/blobs")), options).await;
    }
}

#[tokio::test]
async fn amazon_s3() {
    let server = Buckets::s3().await;
    behaves(&server.place("plain/x"), Options::default()).await;
    behaves(&server.place("sealed"), sealed()).await;
}

#[tokio::test]
async fn azure_blob_storage() {
    let server = Buckets::azure().await;
    behaves(&server.place(""), Options::default()).await;
    behaves(&server.place("sealed"), sealed()).await;
}

/// Here other processes have memories of their own.
#[tokio::test]
async fn memory() {
    for options in [Options::default(), sealed()] {
        let (objects, notes) = open(&ObjectsPlace::Memory, options).await;
        let bytes = pattern(LARGE);
        let key = kept(&objects, &bytes).await;
        assert_eq!(read(&objects, &key, 1_234_567, 10_000_000).await.unwrap(), bytes[1_234_567..11_234_567]);
        objects.delete(&key).await.unwrap();
        assert!(read(&objects, &key, 0, 1).await.is_err());
        assert_eq!(notes.open(), 0);
    }
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (objects, _) = open(&ObjectsPlace::Own(dir.path().join("blobs")), Options::default()).await;
    let mut writer = objects.create(false).await.unwrap();
    writer.write(pattern(5_000_000)).await.unwrap();
    drop(writer);
    kiln_testkit::eventually("no file is left", || async { (common::files(dir.path()) == 0).then_some(()) }).await;

    let server = Buckets::s3().await;
    let (objects, notes) = open(&server.place("x"), Options::default()).await;
    let mut writer = objects.create(false).await.unwrap();
    writer.write(pattern(LARGE)).await.unwrap();
    assert_eq!((notes.open(), server.uploads().await), (1, 1));
    drop(writer);
    kiln_testkit::eventually("the upload is aborted", || async {
        (notes.open() == 0 && server.uploads().await == 0).then_some(())
    })
    .await;
}

/// The process is gone, and with it whoever would abort its upload.
#[tokio::test]
async fn an_upload_of_a_dead_process_is_aborted() {
    let server = Buckets::s3().await;
    let dir = tempfile::tempdir().unwrap();
    let catalogue: Arc<dyn Catalogue> = Arc::new(SqlCatalogue::open(dir.path().join("c.db")).await.unwrap());
    let open = async || {
        let notes = Arc::new(UploadNotes(catalogue.clone()));
        Objects::open(&server.place("x"), Options::default(), notes).await.unwrap()
    };
    let mut writer = open().await.create(false).await.unwrap();
    writer.write(pattern(LARGE)).await.unwrap();
    std::mem::forget(writer);
    assert_eq!(server.uploads().await, 1);

    let storage = Storage::new(catalogue.clone(), open().await, Metrics::new().unwrap(), common::nowhere());
    let grace = std::time::Duration::ZERO;
    collect::collect_some(&storage, Timestamp::now(), grace).await.unwrap();
    assert_eq!(server.uploads().await, 1, "it may still go on");
    collect::collect_some(&storage, Timestamp::now().plus(2 * collect::ABANDONED), grace).await.unwrap();
    assert_eq!(server.uploads().await, 0);
    assert!(catalogue.open_uploads(Timestamp::now().plus(collect::ABANDONED), 10).await.unwrap().is_empty());
}

fn file(root: &Path, key: &ObjectKey) -> PathBuf {
    root.join(&key.0)
}

#[tokio::test]
async fn what_was_changed_on_the_disk_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    let (objects, _) = open(&ObjectsPlace::Own(root.clone()), sealed()).await;
    let (bytes, sealed_chunk) = (pattern(4 * CHUNK as usize), CHUNK as usize + 16);
    let fresh = async || {
        let key = kept(&objects, &bytes).await;
        (file(&root, &key), key)
    };
    let all = bytes.len() as u64;

    let (path, key) = fresh().await;
    let stored = std::fs::read(&path).unwrap();
    assert_eq!(stored.len(), 4 * sealed_chunk);
    assert!(!stored.windows(32).any(|window| window == &bytes[..32]), "nothing is in the clear");

    // One bit: its chunk is lost, the others are not.
    let mut changed = stored.clone();
    changed[sealed_chunk + 100] ^= 1;
    std::fs::write(&path, changed).unwrap();
    let error = read(&objects, &key, 0, all).await.unwrap_err();
    assert!(error.to_string().contains("chunk 1"), "{error}");
    let third = 2 * CHUNK as usize;
    assert_eq!(read(&objects, &key, 2 * CHUNK, 10).await.unwrap(), bytes[third..third + 10]);
    assert_eq!(read(&objects, &key, 0, CHUNK).await.unwrap(), bytes[..CHUNK as usize]);

    // Chunks in another order, or from another object.
    let mut swapped = stored[sealed_chunk..2 * sealed_chunk].to_vec();
    swapped.extend_from_slice(&stored[..sealed_chunk]);
    swapped.extend_from_slice(&stored[2 * sealed_chunk..]);
    std::fs::write(&path, swapped).unwrap();
    assert!(read(&objects, &key, 0, all).await.is_err());
    let (other, _) = fresh().await;
    std::fs::copy(other, &path).unwrap();
    assert!(read(&objects, &key, 0, all).await.is_err());

    // Shorter: between chunks, and within one.
    for length in [3 * sealed_chunk, 4 * sealed_chunk - 1, 10, 0] {
        std::fs::write(&path, &stored[..length]).unwrap();
        assert!(read(&objects, &key, 0, all).await.is_err(), "{length} bytes are left");
    }
    std::fs::write(&path, &stored).unwrap();
    assert_eq!(read(&objects, &key, 0, all).await.unwrap(), bytes);
}

#[tokio::test]
async fn keys_are_replaced_one_by_one_and_wrong_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let place = ObjectsPlace::Own(dir.path().join("blobs"));
    let with = async |keyring| open(&place, Options { keyring, ..Options::default() }).await.0;
    let bytes = pattern(100_000);
    let plain = kept(&with(None).await, &bytes).await;
    let old = with(Some(keyring(&[("k1", 1)]))).await;
    let first = kept(&old, &bytes).await;
    let small = old.inline(pattern(100)).unwrap();
    let Content::Sealed(small) = small else { panic!("{small:?}") };
    assert_eq!(small.length(), 100);

    let both = with(Some(keyring(&[("k2", 2), ("k1", 1)]))).await;
    let second = kept(&both, &bytes).await;
    assert_eq!((first.sealed_with(), second.sealed_with(), plain.sealed_with()), (Some("k1"), Some("k2"), None));
    for key in [&plain, &first, &second] {
        assert_eq!(read(&both, key, 0, 100_000).await.unwrap(), bytes);
    }
    assert_eq!(both.unseal(&small).unwrap(), pattern(100));

    for (keyring, why) in [
        (None, "set encryption_key_file"),
        (Some(keyring(&[("k2", 2)])), "the key file has only k2"),
        (Some(keyring(&[("k1", 9)])), "not the one they were encrypted with"),
    ] {
        let objects = with(keyring).await;
        let error = read(&objects, &first, 0, 1).await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        let error = objects.unseal(&small).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[tokio::test]
async fn a_start_with_the_wrong_keys_says_so() {
    for store in kiln_store::testing::TestStore::each() {
        let catalogue = SqlCatalogue::open(store.config()).await.unwrap();
        let check = async |keyring: Option<Arc<Keyring>>| keys::check(&catalogue, keyring.as_deref()).await;
        check(None).await.unwrap();
        check(Some(keyring(&[("k1", 1)]))).await.unwrap();
        check(Some(keyring(&[("k2", 2), ("k1", 1)]))).await.unwrap();
        let error = check(Some(keyring(&[("k1", 7)]))).await.unwrap_err().to_string();
        assert!(error.contains("the key k1 in encryption_key_file is not the one"), "{error}");
        // Nothing is encrypted with k1 yet: it may go. Then something is.
        check(Some(keyring(&[("k2", 2)]))).await.unwrap();
        check(Some(keyring(&[("k1", 7)]))).await.unwrap();
        let content = Content::Sealed(keyring(&[("k1", 7)]).seal_small(b"hello").unwrap());
        common::put_content(&catalogue, content).await;
        for keyring in [None, Some(keyring(&[("k2", 2)]))] {
            let error = check(keyring).await.unwrap_err().to_string();
            assert!(error.contains("encrypted with the key k1"), "{error}");
        }
        check(Some(keyring(&[("k2", 2), ("k1", 7)]))).await.unwrap();
    }
}

#[tokio::test]
async fn blobs_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("blobs");
    for _ in 0..2 {
        Objects::local(&root, Options::default()).await.unwrap();
        assert_eq!(std::fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
        // As an older one left it.
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn key_files_are_read_or_say_which_line_is_wrong() {
    use base64::Engine;
    let key = base64::prelude::BASE64_STANDARD.encode([3; 32]);
    let ring = Keyring::parse(&format!("# ours\n\nnew-1 {key}\nold {key}\n")).unwrap();
    assert_eq!((ring.current(), ring.ids().collect::<Vec<_>>()), ("new-1", vec!["new-1", "old"]));
    assert!(!format!("{ring:?}").contains(&key));
    for (text, why) in [
        (String::new(), "no key"),
        ("k1".into(), "line 1"),
        (format!("\nK {key}"), "line 2: an id"),
        ("k abcd".into(), "line 1: the key k is not 32 bytes"),
        (format!("k {key}\nk {key}"), "line 2: the id k is there twice"),
    ] {
        let error = Keyring::parse(&text).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}
