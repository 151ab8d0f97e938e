//! A running service, and a client that sends exactly what it is told: no
//! library in between that tidies up paths or headers.
// Not every test file uses all of it; helpers of tests may panic.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

pub mod buckets;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kiln_auth::SecretKey;
use kiln_bus::memory::MemoryBus;
use kiln_grpc::ServiceAuth;
use kiln_proto::storage::v1::PutAccountRequest;
use kiln_proto::storage::v1::storage_admin_service_client::StorageAdminServiceClient;
use kiln_time::Timestamp;
use storage_svc::domain::copy_source::CopySources;
use storage_svc::domain::lease::Lease;
use storage_svc::domain::model::{BlobKind, BlobProperties, Container, Content, PublicAccess};
use storage_svc::domain::names::Metadata;
use storage_svc::domain::query::Query;
use storage_svc::domain::sas::{self, NewSas};
use storage_svc::domain::shared_key::{Scheme, SignedRequest, string_forms};
use storage_svc::service::Remote;
use storage_svc::store::{Catalogue, Guard, NewBlob, Stamp};
use storage_svc::{Config, Deps, Listeners};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// For a storage without copies from other servers.
pub fn nowhere() -> Remote {
    Remote::new(CopySources::parse("none", &[]).unwrap(), Duration::from_secs(5))
}

/// Puts a blob with this content, of an account of its own.
pub async fn put_content(catalogue: &dyn Catalogue, content: Content) {
    let stamp = || Stamp {
        account: "keys".into(),
        now: Timestamp::now(),
        etag: "e".into(),
        traceparent: String::new(),
        request_id: String::new(),
    };
    let container = Container {
        name: "cont".into(),
        etag: String::new(),
        last_modified: Timestamp::now(),
        metadata: Metadata::new(),
        public_access: PublicAccess::Private,
        policies: Vec::new(),
        lease: Lease::Available,
    };
    catalogue.create_container(stamp(), container).await.unwrap();
    let blob = NewBlob {
        container: "cont".into(),
        name: "b".into(),
        properties: BlobProperties::default(),
        metadata: Metadata::new(),
        content,
        copy: None,
        kind: BlobKind::Block,
        tier: None,
    };
    catalogue.put_blob(stamp(), blob, Guard::default()).await.unwrap();
}

pub const ACCOUNT: &str = "acct";
pub const VERSION: &str = "2021-12-02";

pub struct Service {
    pub blob: SocketAddr,
    pub grpc: String,
    pub key: SecretKey,
    pub cluster_key: Arc<SecretKey>,
    pub bus: Arc<MemoryBus>,
    shutdown: CancellationToken,
    served: tokio::task::JoinHandle<anyhow::Result<()>>,
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HashMap<String, String>,
    /// The head as it came.
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Status and error code.
    pub fn outcome(&self) -> (u16, &str) {
        (self.status, self.header("x-ms-error-code"))
    }
}

impl Service {
    pub async fn start(data_dir: &Path) -> Self {
        Self::start_with(data_dir, |_| {}).await
    }

    /// As [`Service::start`], with other settings.
    pub async fn start_with(data_dir: &Path, change: impl FnOnce(&mut Config)) -> Self {
        let grpc_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let blob_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let blob = blob_listener.local_addr().unwrap();
        let grpc = format!("http://{}", grpc_listener.local_addr().unwrap());
        let (cluster_key, bus) = (Arc::new(SecretKey::generate()), Arc::new(MemoryBus::new()));
        let mut config = Config::new(data_dir, format!("http://{blob}"));
        config.collect_interval = Duration::from_millis(20);
        config.garbage_grace = Duration::ZERO;
        config.idle_timeout = Duration::from_secs(5);
        change(&mut config);
        let deps = Deps { cluster_key: cluster_key.clone(), bus: bus.clone() };
        let shutdown = CancellationToken::new();
        let listeners = Listeners { grpc: grpc_listener.into(), blob: blob_listener.into() };
        let served = kiln_telemetry::spawn(storage_svc::run(config, deps, listeners, shutdown.clone()));
        let key = SecretKey::generate();
        let service = Self { blob, grpc, key, cluster_key, bus, shutdown, served };
        let account = PutAccountRequest {
            account: ACCOUNT.into(),
            key1: SecretKey::generate().to_base64(),
            key2: service.key.to_base64(),
        };
        service.admin().put_account(account).await.unwrap();
        service
    }

    pub fn admin(&self) -> StorageAdminServiceClient<kiln_grpc::ServiceChannel> {
        let auth = ServiceAuth::new("test", self.cluster_key.clone());
        StorageAdminServiceClient::new(auth.connect(&self.grpc).unwrap())
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.served.await.unwrap().unwrap();
    }

    /// Sends a request as it is.
    pub async fn raw(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut text = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            text.push_str(&format!("Host: {}\r\n", self.blob));
        }
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        let stream = TcpStream::connect(self.blob).await.unwrap();
        let (mut reader, mut writer) = stream.into_split();
        let mut all = Vec::new();
        let send = async {
            // A refused upload may be cut off; the answer still counts.
            if writer.write_all(text.as_bytes()).await.is_ok() {
                let _ = writer.write_all(body).await;
            }
        };
        let (_, read) = tokio::join!(send, reader.read_to_end(&mut all));
        if let Err(error) = read {
            assert!(!all.is_empty(), "{error}");
        }
        parse(&all)
    }

    /// Sends a request signed with the account's second key.
    pub async fn signed(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.signed_with(&self.key, method, target, headers, body).await
    }

    pub async fn signed_with(
        &self,
        key: &SecretKey,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        let date = Timestamp::now().to_http_date();
        let length = body.len().to_string();
        let mut all = headers.to_vec();
        for (name, value) in
            [("x-ms-date", date.as_str()), ("x-ms-version", VERSION), ("content-length", length.as_str())]
        {
            if !all.iter().any(|(known, _)| known.eq_ignore_ascii_case(name)) {
                all.push((name, value));
            }
        }
        let map: http::HeaderMap = all
            .iter()
            .map(|(name, value)| (http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap()))
            .collect();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = Query::parse(query).unwrap();
        let request = SignedRequest { method, account: ACCOUNT, path, query: &query, headers: &map };
        let signature = key.sign_base64(string_forms(Scheme::Full, &request)[0].as_bytes());
        let authorization = format!("SharedKey {ACCOUNT}:{signature}");
        all.push(("Authorization", &authorization));
        self.raw(method, target, &all, body).await
    }

    pub async fn create(&self, container: &str) {
        let made = self.signed("PUT", &format!("/acct/{container}?restype=container"), &[], b"").await;
        assert_eq!(made.status, 201, "{}", made.text());
    }

    pub async fn put(&self, path: &str, body: &[u8]) -> Reply {
        let reply = self.signed("PUT", path, &[("x-ms-blob-type", "BlockBlob")], body).await;
        assert_eq!(reply.status, 201, "{path}: {}", reply.text());
        reply
    }

    /// The query string of a token that is valid for `seconds` from now.
    pub fn sas(&self, container: &str, blob: Option<&str>, permissions: &str, seconds: i64) -> String {
        let expires = Timestamp::from_micros(Timestamp::now().as_micros() + seconds * 1_000_000);
        let new = NewSas { account: ACCOUNT, container, blob, permissions, starts: None, expires };
        sas::create(&new, &self.key).unwrap()
    }
}

fn parse(bytes: &[u8]) -> Reply {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("a complete head");
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut body = bytes[end + 4..].to_vec();
    if headers.get("transfer-encoding").is_some_and(|v| v == "chunked") {
        body = unchunk(&body);
    }
    Reply { status, headers, head, body }
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = rest.windows(2).position(|w| w == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..at]).unwrap(), 16).unwrap();
        body.extend_from_slice(&rest[at + 2..at + 2 + length]);
        rest = &rest[at + 4 + length..];
    }
    body
}

/// Files below `dir`.
pub fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| if path.is_dir() { files(&path) } else { 1 })
        .sum()
}

pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 % 251) as u8).collect()
}
