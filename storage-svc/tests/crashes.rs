//! kill -9 of storage-svc, again and again, while clients write and delete: no blob
//! is torn, none that was acknowledged is lost, none that was deleted comes back,
//! and the space of all others does. Alone on files, and as two replicas on
//! PostgreSQL and S3.
//!
//! `KILN_CRASH_SEED` repeats a run as far as clients choose what to do;
//! `KILN_CRASH_KILLS` makes it longer.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use common::ACCOUNT;
use common::buckets::Buckets;
use futures::TryStreamExt;
use kiln_auth::SecretKey;
use kiln_grpc::{ServiceAuth, with_account};
use kiln_proto::storage::v1::storage_admin_service_client::StorageAdminServiceClient;
use kiln_proto::storage::v1::storage_service_client::StorageServiceClient;
use kiln_proto::storage::v1::{CreateContainerRequest, PutAccountRequest};
use kiln_store::StoreConfig;
use kiln_store::testing::TestStore;
use kiln_testkit::eventually;
use kiln_time::Timestamp;
use storage_svc::collect;
use storage_svc::domain::model::ObjectKey;
use storage_svc::domain::sas::{self, NewSas};
use storage_svc::metrics::Metrics;
use storage_svc::objects::place::ObjectsPlace;
use storage_svc::objects::{Objects, Options};
use storage_svc::service::{Storage, UploadNotes};
use storage_svc::store::{Catalogue, SqlCatalogue};
use tokio::sync::watch;

const CONTAINER: &str = "cont";
const WRITERS: u64 = 4;
/// Names of one writer; nobody else uses them.
const NAMES: u64 = 5;

/// Numbers that follow from a seed (SplitMix64).
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % most
    }
}

fn from_environment(name: &str, default: impl FnOnce() -> u64) -> u64 {
    std::env::var(name).ok().map_or_else(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

/// A process, started again on its ports when it was killed.
struct Replica {
    child: Child,
    config: std::path::PathBuf,
    blob: String,
    grpc: String,
}

impl Replica {
    fn start(dir: &Path, name: &str, cluster_key: &SecretKey, settings: &str) -> Self {
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (grpc, blob) = (free(), free());
        let config = dir.join(format!("{name}.toml"));
        let mut text = format!(
            "listen = \"{grpc}\"\nblob_listen = \"{blob}\"\ndata_dir = {:?}\ncluster_key = {:?}\namqp_url = \"memory\"\n\
             log_format = \"plain\"\ncollect_interval_seconds = 1\ngarbage_grace_seconds = 0\n",
            dir.join(name),
            cluster_key.to_base64()
        );
        text.push_str(settings);
        std::fs::write(&config, text).unwrap();
        let child = Self::spawn(&config);
        Self { child, config, blob: format!("http://{blob}"), grpc: format!("http://{grpc}") }
    }

    fn spawn(config: &Path) -> Child {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(config.with_extension("log")).unwrap();
        Command::new(env!("CARGO_BIN_EXE_storage-svc"))
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    async fn ready(&mut self, http: &reqwest::Client) {
        let url = format!("{}/readyz", self.grpc);
        for _ in 0..3000 {
            if let Ok(Some(status)) = self.child.try_wait() {
                let log = std::fs::read_to_string(self.config.with_extension("log")).unwrap_or_default();
                panic!("storage-svc ended with {status}:\n{}", &log[log.len().saturating_sub(3000)..]);
            }
            if http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("storage-svc is not ready");
    }

    fn kill_9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The bytes of a write follow from its number.
fn content(number: u64, length: usize) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend((8..length.max(8)).map(|at| ((at as u64).wrapping_mul(number | 1) >> 3) as u8));
    bytes
}

/// What a name may have: nothing, or the bytes of one of these writes.
type Possible = BTreeSet<Option<(u64, usize)>>;

struct Writer {
    dice: Dice,
    next: u64,
    names: BTreeMap<String, Possible>,
    http: reqwest::Client,
    sas: String,
    largest: usize,
    done: Arc<AtomicU64>,
}

impl Writer {
    fn url(&self, base: &str, name: &str, more: &str) -> String {
        format!("{base}/{ACCOUNT}/{CONTAINER}/{name}?{}{more}", self.sas)
    }

    /// One change of one name. Refusals are mistakes of the service; no answer, or that it is busy, is not.
    async fn step(&mut self, base: &str) -> bool {
        let names: Vec<String> = self.names.keys().cloned().collect();
        let name = names[self.dice.below(names.len() as u64) as usize].clone();
        self.next += 1;
        let size = match self.dice.below(4) {
            0 => self.dice.below(60_000) as usize,
            1 => 64 * 1024 + self.dice.below(3) as usize,
            2 => 70_000 + self.dice.below(400_000) as usize,
            _ => 500_000 + self.dice.below(self.largest as u64) as usize,
        }
        .max(8);
        let (after, answer) = match self.dice.below(10) {
            0 | 1 => (None, self.delete(base, &name).await),
            2..=4 => (Some((self.next, size)), self.blocks(base, &name, size).await),
            _ => (Some((self.next, size)), self.put(base, &name, "", content(self.next, size)).await),
        };
        let possible = self.names.get_mut(&name).unwrap();
        if answer {
            possible.clear();
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        possible.insert(after);
        answer
    }

    async fn sent(&self, request: reqwest::RequestBuilder, fine: &[u16]) -> bool {
        match request.send().await {
            Ok(answer) if fine.contains(&answer.status().as_u16()) => true,
            Ok(answer) if answer.status().is_server_error() => false,
            Ok(answer) => panic!("{answer:?}"),
            Err(_) => false,
        }
    }

    async fn put(&self, base: &str, name: &str, more: &str, body: Vec<u8>) -> bool {
        let request = self.http.put(self.url(base, name, more)).header("x-ms-blob-type", "BlockBlob").body(body);
        self.sent(request, &[201]).await
    }

    async fn delete(&self, base: &str, name: &str) -> bool {
        self.sent(self.http.delete(self.url(base, name, "")), &[202, 404]).await
    }

    async fn blocks(&self, base: &str, name: &str, size: usize) -> bool {
        let bytes = content(self.next, size);
        let mut list = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>");
        for (number, piece) in bytes.chunks(bytes.len().div_ceil(3)).enumerate() {
            let id = BASE64_STANDARD.encode(format!("{:012}{number:03}", self.next));
            if !self.put(base, name, &format!("&comp=block&blockid={id}"), piece.to_vec()).await {
                return false;
            }
            let _ = write!(list, "<Latest>{id}</Latest>");
        }
        list.push_str("</BlockList>");
        self.put(base, name, "&comp=blocklist", list.into_bytes()).await
    }

    /// Reads all names; what they have is certain from then on.
    async fn verify(&mut self, base: &str) {
        for name in self.names.keys().cloned().collect::<Vec<_>>() {
            let answer = self.http.get(self.url(base, &name, "")).send().await.unwrap();
            let status = answer.status().as_u16();
            let found = match status {
                404 => None,
                200 => Some(answer.bytes().await.unwrap_or_else(|error| panic!("{name} is torn: {error}"))),
                _ => panic!("{name}: {answer:?}"),
            };
            let possible = self.names.get_mut(&name).unwrap();
            let state = match &found {
                None => None,
                Some(bytes) => {
                    let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                    assert!(*bytes == content(number, bytes.len()), "{name} is torn: write {number}");
                    Some((number, bytes.len()))
                }
            };
            assert!(possible.contains(&state), "{name} has {state:?}, and may have {possible:?}");
            *possible = Possible::from([state]);
        }
    }
}

struct World {
    replicas: Vec<Replica>,
    http: reqwest::Client,
    key: SecretKey,
    seed: u64,
    done: Arc<AtomicU64>,
}

impl World {
    async fn start(mut replicas: Vec<Replica>, cluster_key: Arc<SecretKey>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let seed = from_environment("KILN_CRASH_SEED", || Timestamp::now().as_micros() as u64);
        println!("KILN_CRASH_SEED={seed}");
        let http = reqwest::Client::new();
        for replica in &mut replicas {
            replica.ready(&http).await;
        }
        let channel = ServiceAuth::new("test", cluster_key).connect(&replicas[0].grpc).unwrap();
        let key = SecretKey::generate();
        let (key1, key2) = (key.to_base64(), key.to_base64());
        let account = PutAccountRequest { account: ACCOUNT.into(), key1, key2 };
        StorageAdminServiceClient::new(channel.clone()).put_account(account).await.unwrap();
        let container = CreateContainerRequest { name: CONTAINER.into(), ..CreateContainerRequest::default() };
        StorageServiceClient::new(channel).create_container(with_account(container, ACCOUNT).unwrap()).await.unwrap();
        Self { replicas, http, key, seed, done: Arc::default() }
    }

    fn writers(&self, largest: usize) -> Vec<Writer> {
        let expires = Timestamp::now().plus(Duration::from_secs(24 * 3600));
        let permissions = "racwdl";
        let new = NewSas { account: ACCOUNT, container: CONTAINER, blob: None, permissions, starts: None, expires };
        let sas = sas::create(&new, &self.key).unwrap();
        (0..WRITERS)
            .map(|writer| Writer {
                dice: Dice(self.seed ^ (writer << 32)),
                next: writer << 32,
                names: (0..NAMES).map(|name| (format!("w{writer}-{name}"), Possible::from([None]))).collect(),
                http: self.http.clone(),
                sas: sas.clone(),
                largest,
                done: self.done.clone(),
            })
            .collect()
    }

    /// Kills a replica again and again while all write; after each start everything is read.
    async fn survive(&mut self, kills: u64, largest: usize) -> Vec<Writer> {
        let mut dice = Dice(self.seed);
        let mut writers = self.writers(largest);
        for _ in 0..kills {
            let bases: Vec<String> = self.replicas.iter().map(|replica| replica.blob.clone()).collect();
            let (stop, stopped) = watch::channel(false);
            let running: Vec<_> = writers
                .drain(..)
                .map(|mut writer| {
                    let (bases, stopped) = (bases.clone(), stopped.clone());
                    kiln_telemetry::spawn(async move {
                        while !*stopped.borrow() {
                            let base = &bases[writer.dice.below(bases.len() as u64) as usize];
                            if !writer.step(base).await {
                                // The killed one refuses at once; the others get their turn.
                                tokio::task::yield_now().await;
                            }
                        }
                        writer
                    })
                })
                .collect();
            let until = self.done.load(Ordering::Relaxed) + 3 + dice.below(40);
            eventually("clients get on", || async { (self.done.load(Ordering::Relaxed) >= until).then_some(()) }).await;
            let victim = dice.below(self.replicas.len() as u64) as usize;
            self.replicas[victim].kill_9();
            if self.replicas.len() > 1 {
                let until = self.done.load(Ordering::Relaxed) + 5;
                let go_on = || async { (self.done.load(Ordering::Relaxed) >= until).then_some(()) };
                eventually("clients get on with the other replica", go_on).await;
            }
            let _ = stop.send(true);
            for writer in running {
                writers.push(writer.await.unwrap());
            }
            self.replicas[victim].child = Replica::spawn(&self.replicas[victim].config);
            self.replicas[victim].ready(&self.http).await;
            for writer in &mut writers {
                let reader = &self.replicas[dice.below(self.replicas.len() as u64) as usize].blob;
                writer.verify(reader).await;
            }
        }
        println!("{} changes were acknowledged, {kills} kills", self.done.load(Ordering::Relaxed));
        writers
    }
}

/// Names of all objects that are there, and of those that rows name.
async fn objects_and_rows(objects: &Objects, catalogue: &dyn Catalogue) -> (BTreeSet<ObjectKey>, BTreeSet<ObjectKey>) {
    let later = Timestamp::now().plus(Duration::from_secs(3600));
    let there: Vec<ObjectKey> = objects.earlier(100, later).try_collect::<Vec<_>>().await.unwrap().concat();
    let named = catalogue.known(there.clone()).await.unwrap();
    (there.into_iter().collect(), named.into_iter().collect())
}

/// A directory without the process: what its own collection has left.
async fn nothing_is_left_over(store: &StoreConfig, place: &ObjectsPlace, options: Options) {
    let catalogue: Arc<dyn Catalogue> = Arc::new(SqlCatalogue::open(store).await.unwrap());
    let log = Arc::new(UploadNotes(catalogue.clone()));
    let objects = Objects::open(place, options, log).await.unwrap();
    let later = Timestamp::now().plus(Duration::from_secs(3600));
    eventually("space comes back", || async {
        let garbage = catalogue.garbage(later, 10).await.unwrap();
        let (there, named) = objects_and_rows(&objects, &*catalogue).await;
        (garbage.is_empty() && there == named).then_some(())
    })
    .await;
}

fn key_file(dir: &Path) -> String {
    let file = dir.join("keys");
    std::fs::write(&file, format!("k1 {}\n", BASE64_STANDARD.encode([5; 32]))).unwrap();
    format!("encryption_key_file = {file:?}\n")
}

async fn survives_on_files(settings: &str, dir: &Path) {
    let cluster_key = Arc::new(SecretKey::generate());
    let replica = Replica::start(dir, "svc", &cluster_key, settings);
    let mut world = World::start(vec![replica], cluster_key).await;
    let kills = from_environment("KILN_CRASH_KILLS", || 12);
    world.survive(kills, 2_000_000).await;
    let place = ObjectsPlace::Own(dir.join("svc/blobs"));
    nothing_is_left_over(&dir.join("svc/storage-svc.db").into(), &place, Options::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_loses_nothing_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    survives_on_files("", dir.path()).await;
}

/// What is relaxed is the loss of power, not kill -9. With encryption, to have both in one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relaxed_and_encrypted_too() {
    let dir = tempfile::tempdir().unwrap();
    let settings = format!("durability = \"relaxed\"\n{}", key_file(dir.path()));
    survives_on_files(&settings, dir.path()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_share_a_bucket() {
    let (dir, server, store) = (tempfile::tempdir().unwrap(), Buckets::s3().await, TestStore::postgres());
    let options = dir.path().join("objects.options");
    let lines: Vec<String> = server.options.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    std::fs::write(&options, lines.concat()).unwrap();
    let settings = format!(
        "database_url = {:?}\ndatabase_schema = {:?}\ndatabase_connections = 4\nobjects = {:?}\nobjects_options_file = \
         {options:?}\n",
        TestStore::url(),
        store.postgres_config().schema(),
        server.url("kiln"),
    );
    let cluster_key = Arc::new(SecretKey::generate());
    let replica = |name: &str| Replica::start(dir.path(), name, &cluster_key, &settings);
    let replicas = vec![replica("a"), replica("b")];
    let mut world = World::start(replicas, cluster_key.clone()).await;
    let kills = from_environment("KILN_CRASH_KILLS", || 6);
    let mut writers = world.survive(kills, 9_000_000).await;

    // Both collect, at the same time and beside each other's uploads; then what dead processes left is
    // swept, as an hour later, and everything that has a name is still there.
    let catalogue: Arc<dyn Catalogue> = Arc::new(SqlCatalogue::open(store.config()).await.unwrap());
    let later = Timestamp::now().plus(Duration::from_secs(7200));
    eventually("garbage is collected", || async {
        catalogue.garbage(later, 10).await.unwrap().is_empty().then_some(())
    })
    .await;
    let log = Arc::new(UploadNotes(catalogue.clone()));
    let objects = Objects::open(&server.place("kiln"), Options::default(), log).await.unwrap();
    let storage = Storage::new(catalogue.clone(), objects.clone(), Metrics::new().unwrap(), common::nowhere());
    collect::sweep(&storage, Duration::ZERO).await.unwrap();
    while collect::collect_some(&storage, later, Duration::ZERO).await.unwrap() {}
    let (there, named) = objects_and_rows(&objects, &*catalogue).await;
    assert_eq!(there, named);
    assert_eq!(server.uploads().await, 0, "uploads in parts that were left half-way are aborted");
    for writer in &mut writers {
        writer.verify(&world.replicas[0].blob).await;
    }
}
