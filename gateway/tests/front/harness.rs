//! A gateway with fakes behind it, and clients for both of its fronts.

use std::sync::Arc;

use base64::Engine;
use bytes::Bytes;
use gateway::{Config, Deps};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kiln_auth::SecretKey;
use kiln_grpc::{Readiness, Server, ServiceAuth};
use kiln_proto::gateway::v1::PutAccountRequest;
use kiln_proto::gateway::v1::gateway_admin_service_client::GatewayAdminServiceClient;
use kiln_proto::job::v1::job_schedule_service_server::JobScheduleServiceServer;
use kiln_proto::job::v1::job_service_server::JobServiceServer;
use kiln_proto::pool::v1::pool_service_server::PoolServiceServer;
use kiln_time::Timestamp;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::fakes::{Fakes, State};

pub const ACCOUNT: &str = "demo";
pub const VERSION: &str = "api-version=2024-02-01.19.0";

pub struct Harness {
    pub url: String,
    pub key: SecretKey,
    pub state: Arc<State>,
    pub cluster_key: Arc<SecretKey>,
    http: HttpClient<HttpConnector, Full<Bytes>>,
    shutdown: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// (status, code) of an error.
    pub fn error(&self) -> (u16, String) {
        (self.status.as_u16(), self.json()["code"].as_str().unwrap_or_default().to_owned())
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Harness {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(adjust: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cluster_key = Arc::new(SecretKey::generate());
        let shutdown = CancellationToken::new();
        let state = Arc::new(State::default());
        let fakes = Fakes(state.clone());
        let routes = Routes::new(PoolServiceServer::new(fakes.clone()))
            .add_service(JobScheduleServiceServer::new(fakes.clone()))
            .add_service(JobServiceServer::new(fakes));
        let (listener, behind) = listen().await;
        let server = Server {
            name: "fakes",
            cluster_key: cluster_key.clone(),
            metrics: kiln_telemetry::prometheus::Registry::new(),
            readiness: Readiness::default(),
        };
        kiln_telemetry::spawn(server.serve(listener, routes, shutdown.clone()));

        let (listener, url) = listen().await;
        // Nobody listens at the endpoints of storage-svc and monitor-svc.
        let nobody = "http://127.0.0.1:1";
        let mut config = Config::new(dir.path(), nobody, &*behind, &*behind, nobody, "http://blob:1", &*url);
        adjust(&mut config);
        let deps = Deps { cluster_key: cluster_key.clone(), tls: None };
        kiln_telemetry::spawn(gateway::run(config, deps, listener, shutdown.clone()));

        let http = HttpClient::builder(TokioExecutor::new()).build_http();
        let key = SecretKey::generate();
        let harness = Self { url, key, state, cluster_key, http, shutdown, _dir: dir };
        harness.put_account(&harness.key).await;
        harness
    }

    /// Sets `key` as the account's first key; the second is nobody's.
    pub async fn put_account(&self, key: &SecretKey) {
        self.put_account_as(ACCOUNT, key).await;
    }

    pub async fn put_account_as(&self, account: &str, key: &SecretKey) {
        let auth = ServiceAuth::new("test", self.cluster_key.clone());
        let message = PutAccountRequest {
            account: account.into(),
            key1: key.to_base64(),
            key2: SecretKey::generate().to_base64(),
            storage_account: String::new(),
        };
        let mut admin = GatewayAdminServiceClient::new(auth.connect(&self.url).unwrap());
        admin.put_account(message).await.unwrap();
    }

    pub fn grpc(&self) -> kiln_client::Client {
        kiln_client::Client::connect(&self.url, ACCOUNT, &self.key.to_base64()).unwrap()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, "", &[]).await
    }

    pub async fn post(&self, path: &str, body: &str) -> Answer {
        self.call(Method::POST, path, body, &[]).await
    }

    /// A signed request; `path` has the query.
    pub async fn call(&self, method: Method, path: &str, body: &str, headers: &[(&str, &str)]) -> Answer {
        let date = Timestamp::now().to_http_date();
        let mut all = vec![("ocp-date", date.as_str())];
        all.extend_from_slice(headers);
        if !body.is_empty() {
            all.push(("content-type", "application/json; odata=minimalmetadata"));
        }
        let authorization = sign(&self.key, &method, path, body, &all);
        all.push(("authorization", &authorization));
        self.send(method, path, body, &all).await
    }

    pub async fn send(&self, method: Method, path: &str, body: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.http.request(request.body(Full::from(body.to_owned())).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        Answer { status: parts.status, headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
    }
}

/// Listener and its URL.
async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

/// SharedKey as a client of today makes it.
fn sign(key: &SecretKey, method: &Method, path: &str, body: &str, headers: &[(&str, &str)]) -> String {
    let value = |name: &str| headers.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value);
    let length = match (body.len(), method) {
        (0, &Method::GET | &Method::HEAD) => String::new(),
        (length, _) => length.to_string(),
    };
    let mut text = format!("{method}\n\n\n{length}\n\n{}\n{}\n", value("content-type"), value("date"));
    for name in ["if-modified-since", "if-match", "if-none-match", "if-unmodified-since", "range"] {
        text.push_str(value(name));
        text.push('\n');
    }
    let mut ocp: Vec<_> = headers.iter().filter(|(name, _)| name.starts_with("ocp-")).collect();
    ocp.sort();
    for (name, value) in ocp {
        text.push_str(&format!("{name}:{value}\n"));
    }
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    text.push_str(&format!("/{ACCOUNT}{path}"));
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| {
            (name.to_owned(), percent_encoding::percent_decode_str(value).decode_utf8().unwrap().into_owned())
        })
        .collect();
    pairs.sort();
    for (name, value) in pairs {
        text.push_str(&format!("\n{name}:{value}"));
    }
    let signature = base64::prelude::BASE64_STANDARD.encode(key.sign(text.as_bytes()));
    format!("SharedKey {ACCOUNT}:{signature}")
}
