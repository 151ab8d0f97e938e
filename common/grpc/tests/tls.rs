//! TLS between services over real connections, with certificates in real files.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kiln_auth::SecretKey;
use kiln_auth::token::Principal;
use kiln_error::{Error, Kind as ErrorKind};
use kiln_grpc::channel::TokenAuth;
use kiln_grpc::{Caller, Port, Readiness, Security, Server, ServiceAuth, connect_secured};
use kiln_proto::gateway::v1::gateway_admin_service_client::GatewayAdminServiceClient;
use kiln_proto::gateway::v1::gateway_admin_service_server::{GatewayAdminService, GatewayAdminServiceServer};
use kiln_proto::gateway::v1::{PutAccountRequest, PutAccountResponse};
use kiln_testkit::eventually;
use kiln_tls::authority::{Authority, Issued, Kind, Request};
use kiln_tls::{ClientCertificates, ClientTls, Files, Live};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::interceptor::InterceptedService;
use tonic::service::{Interceptor, Routes};
use tonic::transport::Channel;

const DAY: Duration = Duration::from_secs(86_400);

/// For services only, as the calls behind the gateway are.
struct Inner;

#[tonic::async_trait]
impl GatewayAdminService for Inner {
    async fn put_account(
        &self,
        request: tonic::Request<PutAccountRequest>,
    ) -> Result<tonic::Response<PutAccountResponse>, tonic::Status> {
        Caller::of(&request)?.require_service()?;
        Ok(tonic::Response::new(PutAccountResponse::default()))
    }
}

struct Place {
    dir: tempfile::TempDir,
    authority: Authority,
    key: Arc<SecretKey>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, authority: Authority::create("test", DAY * 100).unwrap(), key: Arc::new(SecretKey::generate()) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, issued: &Issued) -> Files {
        let files = Files {
            certificate: self.path(&format!("{name}.crt")),
            key: self.path(&format!("{name}.key")),
            authority: Some(self.path("ca.crt")),
        };
        std::fs::write(&files.certificate, &issued.certificate).unwrap();
        std::fs::write(&files.key, &issued.key).unwrap();
        std::fs::write(self.path("ca.crt"), self.authority.certificate()).unwrap();
        files
    }

    fn issue(&self, kind: Kind, name: &str) -> Files {
        self.write(name, &self.authority.issue(&request(kind, name), DAY * 10).unwrap())
    }

    /// A server with the certificate in `files`; gives its URL.
    async fn serve(&self, files: Files, clients: ClientCertificates) -> (String, DropGuard) {
        let live = Live::service(files, clients).unwrap();
        let shutdown = CancellationToken::new();
        kiln_telemetry::spawn(live.clone().watch(shutdown.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let server = Server {
            name: "a-svc",
            cluster_key: self.key.clone(),
            metrics: kiln_telemetry::prometheus::Registry::new(),
            readiness: Readiness::default(),
        };
        let routes = Routes::new(GatewayAdminServiceServer::new(Inner));
        kiln_telemetry::spawn(server.serve(Port::new(listener, Some(live)), routes, shutdown.clone()));
        (url, shutdown.drop_guard())
    }

    /// Trusts the authority and shows the certificate of `own`.
    fn client(&self, own: Option<&Files>) -> ClientTls {
        ClientTls::with_authority(self.authority.certificate(), own).unwrap()
    }

    /// Calls `url` as the service b-svc.
    async fn call(&self, url: &str, tls: ClientTls) -> Result<(), Error> {
        let auth = ServiceAuth::new("b-svc", self.key.clone()).with_tls(Some(tls));
        let channel = auth.connect_to(url, "a-svc").unwrap();
        call(channel).await
    }
}

fn request(kind: Kind, name: &str) -> Request {
    Request { kind, name: name.to_owned(), hosts: Vec::new() }
}

async fn call<I>(channel: InterceptedService<Channel, I>) -> Result<(), Error>
where
    I: Interceptor + Send + Sync + 'static,
{
    GatewayAdminServiceClient::new(channel).put_account(PutAccountRequest::default()).await?;
    Ok(())
}

#[track_caller]
fn assert_refused(result: Result<(), Error>, kind: Option<ErrorKind>, words: &str) {
    let error = result.unwrap_err();
    assert!(error.to_string().contains(words), "{words:?} is not in {error}");
    if let Some(kind) = kind {
        assert_eq!(error.kind(), kind, "{error}");
    }
}

#[tokio::test]
async fn a_service_needs_its_own_certificate_beside_its_token() {
    let place = Place::new();
    let server = place.issue(Kind::Service, "a-svc");
    let (url, _serving) = place.serve(server.clone(), ClientCertificates::Optional).await;
    let own = place.issue(Kind::Service, "b-svc");
    place.call(&url, place.client(Some(&own))).await.unwrap();
    // The host's name is as good, where the certificate has it.
    let auth = ServiceAuth::new("b-svc", place.key.clone()).with_tls(Some(place.client(Some(&own))));
    call(auth.connect(&url).unwrap()).await.unwrap();

    let denied = Some(ErrorKind::PermissionDenied);
    assert_refused(place.call(&url, place.client(None)).await, denied, "has shown no certificate");
    let node = place.issue(Kind::Node, "n");
    assert_refused(place.call(&url, place.client(Some(&node))).await, denied, "a certificate of kiln://node");
    // Another service's does not make its token this one's.
    assert_refused(place.call(&url, place.client(Some(&server))).await, denied, "kiln://service/a-svc");

    // A node needs no certificate, and what is for services stays closed to it.
    let principal = Principal::PoolJoin { account: "a".into(), pool: "p".into(), id: "t".into() };
    let auth = TokenAuth::new(principal, place.key.clone(), 60);
    let security = Security { tls: Some(place.client(Some(&own))), name: Some("a-svc") };
    let channel = InterceptedService::new(connect_secured(&url, &security).unwrap(), auth);
    assert_refused(call(channel).await, denied, "only services may call this");
}

#[tokio::test]
async fn certificates_that_are_not_good_are_refused_with_the_reason() {
    let place = Place::new();
    let (url, _serving) = place.serve(place.issue(Kind::Service, "a-svc"), ClientCertificates::Optional).await;

    let now = SystemTime::now();
    let expired = place.authority.issue_between(&request(Kind::Service, "b-svc"), now - DAY * 2, now - DAY).unwrap();
    let own = place.write("expired", &expired);
    let error = ClientTls::with_authority(place.authority.certificate(), Some(&own)).unwrap_err();
    assert!(error.to_string().contains("has expired"), "{error}");
    // One that expires while it is in use.
    let soon = now + Duration::from_secs(2);
    let expiring = place.authority.issue_between(&request(Kind::Service, "b-svc"), now - DAY, soon).unwrap();
    let own = place.client(Some(&place.write("expiring", &expiring)));
    let refused = eventually("the certificate is refused", || async {
        place.call(&url, own.clone()).await.err().map(|error| error.to_string())
    })
    .await;
    assert!(refused.contains("it says that our certificate has expired"), "{refused}");

    let other = Authority::create("other", DAY).unwrap();
    let foreign = place.write("foreign", &other.issue(&request(Kind::Service, "b-svc"), DAY).unwrap());
    let refused = place.call(&url, place.client(Some(&foreign))).await;
    assert_refused(refused, None, "it does not trust the authority that issued our certificate");

    let untrusting = ClientTls::with_authority(other.certificate(), None).unwrap();
    let refused = place.call(&url, untrusting).await;
    assert_refused(refused, None, "its certificate was issued by an authority that is not trusted here");

    // Somebody else answers under the address of the service.
    let auth = ServiceAuth::new("b-svc", place.key.clone()).with_tls(Some(place.client(None)));
    let channel = auth.connect_to(&url, "c-svc").unwrap();
    assert_refused(call(channel).await, None, "its certificate is for another name");

    // Without TLS nobody gets an answer, and with it a plain port does not.
    let plain = url.replace("https", "http");
    let channel = ServiceAuth::new("b-svc", place.key.clone()).connect(&plain).unwrap();
    assert!(call(channel).await.is_err());
}

#[tokio::test]
async fn where_certificates_are_required_nobody_connects_without() {
    let place = Place::new();
    let (url, _serving) = place.serve(place.issue(Kind::Service, "a-svc"), ClientCertificates::Required).await;
    place.call(&url, place.client(Some(&place.issue(Kind::Service, "b-svc")))).await.unwrap();
    assert_refused(place.call(&url, place.client(None)).await, None, "it requires a client certificate");
}

/// The certificate a new connection is shown expires then.
async fn shown(place: &Place, url: &str) -> i64 {
    let address = url.trim_start_matches("https://");
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(place.client(None).config());
    let stream = connector.connect("a-svc".try_into().unwrap(), stream).await.unwrap();
    let certificate = &stream.get_ref().1.peer_certificates().unwrap()[0];
    kiln_tls::CertificateInfo::parse(certificate).unwrap().not_after
}

#[tokio::test]
async fn a_new_certificate_serves_new_connections_and_open_ones_go_on() {
    let place = Place::new();
    let files = place.issue(Kind::Service, "a-svc");
    let (url, _serving) = place.serve(files.clone(), ClientCertificates::Optional).await;
    let own = place.issue(Kind::Service, "b-svc");
    let auth = ServiceAuth::new("b-svc", place.key.clone()).with_tls(Some(place.client(Some(&own))));
    let open = auth.connect_to(&url, "a-svc").unwrap();
    call(open.clone()).await.unwrap();
    let first = shown(&place, &url).await;

    std::fs::write(&files.certificate, "nonsense").unwrap();
    let live = Live::service(place.issue(Kind::Service, "other-name"), ClientCertificates::Optional).unwrap();
    assert!(live.info().not_after > 0);
    assert_eq!(shown(&place, &url).await, first, "a bad file changes nothing");

    place.write("a-svc", &place.authority.issue(&request(Kind::Service, "a-svc"), DAY * 20).unwrap());
    let second = eventually("the new certificate is shown", || async {
        let expires = shown(&place, &url).await;
        (expires != first).then_some(expires)
    })
    .await;
    assert!(second > first);
    call(open).await.unwrap();
    let metrics = scrape(&place, &url).await;
    assert!(metrics.contains("kiln_certificate_expires_in_seconds{certificate=\"service\"}"), "{metrics}");
}

/// `/metrics`, which needs no certificate.
async fn scrape(place: &Place, url: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let stream = tokio::net::TcpStream::connect(url.trim_start_matches("https://")).await.unwrap();
    let mut config = rustls::ClientConfig::clone(&place.client(None).config());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect("a-svc".try_into().unwrap(), stream).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text).await;
    text
}

#[test]
fn keys_are_not_printed() {
    let place = Place::new();
    let files = place.issue(Kind::Service, "a-svc");
    let live = Live::service(files.clone(), ClientCertificates::Optional).unwrap();
    let key = std::fs::read_to_string(Path::new(&files.key)).unwrap();
    let secret = key.lines().nth(1).unwrap();
    assert!(!format!("{live:?}").contains(secret));
}
