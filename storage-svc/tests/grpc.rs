//! The gRPC front, events, and what a restart finds.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use bytes::Bytes;
use common::{ACCOUNT, Service, files, pattern};
use kiln_bus::{Bus, QueueSpec};
use kiln_error::Error;
use kiln_grpc::{ServiceAuth, ServiceChannel, with_account};
use kiln_proto::common::v1::{ByteRange, Precondition};
use kiln_proto::events::v1::EventBatch;
use kiln_proto::storage::v1::storage_service_client::StorageServiceClient;
use kiln_proto::storage::v1::upload_request::Part;
use kiln_proto::storage::v1::*;
use prost::Message;

fn client(service: &Service) -> StorageServiceClient<ServiceChannel> {
    let auth = ServiceAuth::new("test", service.cluster_key.clone());
    StorageServiceClient::new(auth.connect(&service.grpc).unwrap())
}

fn asked<T>(message: T) -> tonic::Request<T> {
    with_account(message, ACCOUNT).unwrap()
}

fn upload(
    name: &str,
    request_id: &str,
    body: &[u8],
) -> tonic::Request<impl futures::Stream<Item = UploadRequest> + use<>> {
    let header = UploadHeader {
        request_id: request_id.into(),
        container: "cont".into(),
        name: name.into(),
        if_absent: true,
        ..UploadHeader::default()
    };
    let mut parts = vec![Part::Header(header)];
    parts.extend(body.chunks(100_000).map(|piece| Part::Data(Bytes::copy_from_slice(piece))));
    asked(futures::stream::iter(parts.into_iter().map(|part| UploadRequest { part: Some(part) })))
}

async fn download(client: &mut StorageServiceClient<ServiceChannel>, name: &str, range: Option<ByteRange>) -> Vec<u8> {
    let request = DownloadRequest { container: "cont".into(), name: name.into(), range, precondition: None };
    let mut stream = client.download(asked(request)).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap().part.unwrap();
    assert!(matches!(first, download_response::Part::Blob(_)));
    let mut all = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        match message.part.unwrap() {
            download_response::Part::Data(data) => all.extend_from_slice(&data),
            download_response::Part::Blob(_) => panic!("two heads"),
        }
    }
    all
}

async fn create(client: &mut StorageServiceClient<ServiceChannel>) {
    let request = CreateContainerRequest { name: "cont".into(), ..CreateContainerRequest::default() };
    client.create_container(asked(request)).await.unwrap();
}

#[tokio::test]
async fn uploads_downloads_and_events() {
    let dir = tempfile::tempdir().unwrap();
    let s = Service::start(dir.path()).await;
    let queue = QueueSpec { name: "t".into(), bindings: vec!["storage.blob.*".into()], prefetch: 10 };
    let mut events = s.bus.subscribe(&queue).await.unwrap();
    let mut c = client(&s);
    create(&mut c).await;
    for length in [0, 10, 1_000_000] {
        let body = pattern(length);
        let name = format!("b{length}");
        let first = c.upload(upload(&name, "r", &body)).await;
        // One request id is one request: the second length is another blob.
        let blob = match length {
            0 => first.unwrap().into_inner().blob.unwrap(),
            _ => c.upload(upload(&name, &name, &body)).await.unwrap().into_inner().blob.unwrap(),
        };
        assert_eq!((blob.content_length, blob.name.as_str()), (length as u64, name.as_str()));
        let again = c.upload(upload(&name, if length == 0 { "r" } else { &name }, &body)).await.unwrap();
        assert_eq!(again.into_inner().blob.unwrap().etag, blob.etag);
        assert_eq!(download(&mut c, &name, None).await, body);
    }
    let range = Some(ByteRange { start: 999_990, end: None });
    assert_eq!(download(&mut c, "b1000000", range).await, pattern(1_000_000)[999_990..]);
    let exists = Error::from(c.upload(upload("b10", "", b"x")).await.unwrap_err());
    assert_eq!(exists.reason(), "BlobAlreadyExists");
    let list = ListBlobsRequest { container: "cont".into(), page_size: 2, ..ListBlobsRequest::default() };
    let page = c.list_blobs(asked(list.clone())).await.unwrap().into_inner();
    assert_eq!(page.blobs.len(), 2);
    let rest = ListBlobsRequest { page_token: page.next_page_token, ..list };
    assert_eq!(c.list_blobs(asked(rest)).await.unwrap().into_inner().blobs[0].name, "b1000000");
    let delete = DeleteBlobRequest { container: "cont".into(), name: "b10".into(), ..DeleteBlobRequest::default() };
    let stale = DeleteBlobRequest {
        precondition: Some(Precondition { if_match: "\"0x1\"".into(), ..Precondition::default() }),
        ..delete.clone()
    };
    let refused = Error::from(c.delete_blob(asked(stale)).await.unwrap_err());
    assert_eq!(refused.reason(), "ConditionNotMet");
    c.delete_blob(asked(delete)).await.unwrap();

    let mut seen = Vec::new();
    while seen.len() < 4 {
        let delivery = events.next().await.unwrap();
        let batch = EventBatch::decode(delivery.message.body.clone()).unwrap();
        seen.extend(batch.events.into_iter().map(|event| (event.r#type, event.subject)));
        delivery.ack().await.unwrap();
    }
    let event = |kind: &str, name: &str| (format!("storage.blob.{kind}"), format!("containers/cont/blobs/{name}"));
    assert_eq!(
        seen,
        [event("created", "b0"), event("created", "b10"), event("created", "b1000000"), event("deleted", "b10")]
    );
    s.stop().await;
}

#[tokio::test]
async fn signatures_and_accounts() {
    let dir = tempfile::tempdir().unwrap();
    let s = Service::start(dir.path()).await;
    let mut c = client(&s);
    create(&mut c).await;
    c.upload(upload("a b/ü", "", b"hello")).await.unwrap();
    let expires = prost_types::Timestamp { seconds: 4_000_000_000, nanos: 0 };
    let request = CreateSasRequest {
        container: "cont".into(),
        blob: "a b/ü".into(),
        permissions: "r".into(),
        starts: None,
        expires: Some(expires),
    };
    let made = c.create_sas(asked(request.clone())).await.unwrap().into_inner();
    let target = made.url.strip_prefix(&format!("http://{}", s.blob)).unwrap();
    assert_eq!(s.raw("GET", target, &[], b"").await.text(), "hello");
    let unlimited = CreateSasRequest { expires: None, ..request };
    assert_eq!(Error::from(c.create_sas(asked(unlimited)).await.unwrap_err()).reason(), "MissingRequiredProperty");

    let account = s.admin().get_account(GetAccountRequest { account: "ACCT".into() }).await.unwrap().into_inner();
    assert_eq!(account.blob_endpoint, format!("http://{}/acct", s.blob));
    let short = PutAccountRequest { account: "x".into(), key1: "AAAA".into(), key2: "AAAA".into() };
    let error = Error::from(s.admin().put_account(short).await.unwrap_err());
    assert!(error.reason() == "InvalidPropertyValue" && !error.to_string().contains("AAAA"), "{error}");
    // Without the cluster key nobody gets in.
    let auth = ServiceAuth::new("test", std::sync::Arc::new(kiln_auth::SecretKey::generate()));
    let mut stranger = StorageServiceClient::new(auth.connect(&s.grpc).unwrap());
    let refused = stranger.list_containers(asked(ListContainersRequest::default())).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    s.stop().await;
}

#[tokio::test]
async fn a_broken_stream_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let s = Service::start(dir.path()).await;
    let mut c = client(&s);
    create(&mut c).await;
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let header = UploadHeader { container: "cont".into(), name: "b".into(), ..UploadHeader::default() };
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut other = c.clone();
    let call = kiln_telemetry::spawn(async move { other.upload(asked(stream)).await });
    sender.send(UploadRequest { part: Some(Part::Header(header)) }).await.unwrap();
    sender.send(UploadRequest { part: Some(Part::Data(Bytes::from(pattern(200_000)))) }).await.unwrap();
    let blobs = dir.path().join("blobs");
    kiln_testkit::eventually("the upload begins", || async { (files(&blobs) > 0).then_some(()) }).await;
    call.abort();
    kiln_testkit::eventually("the upload leaves nothing", || async { (files(&blobs) == 0).then_some(()) }).await;
    let get = GetBlobRequest { container: "cont".into(), name: "b".into() };
    assert_eq!(Error::from(c.get_blob(asked(get)).await.unwrap_err()).reason(), "BlobNotFound");
    s.stop().await;
}

fn any_shard(dir: &Path) -> std::path::PathBuf {
    dir.join("blobs").join("00")
}

#[tokio::test]
async fn a_restart_finds_what_was_acknowledged_and_sweeps_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let s = Service::start(dir.path()).await;
    let mut c = client(&s);
    create(&mut c).await;
    c.upload(upload("large", "", &pattern(500_000))).await.unwrap();
    c.upload(upload("small", "", b"x")).await.unwrap();
    drop(c);
    s.stop().await;
    // As if a process had died between its bytes and its row.
    std::fs::write(any_shard(dir.path()).join("0123456789abcdef-7"), b"orphan").unwrap();
    assert_eq!(files(&dir.path().join("blobs")), 2);

    let s = Service::start(dir.path()).await;
    let blobs = dir.path().join("blobs");
    kiln_testkit::eventually("the orphan goes", || async { (files(&blobs) == 1).then_some(()) }).await;
    let mut c = client(&s);
    assert_eq!(download(&mut c, "large", None).await, pattern(500_000));
    assert_eq!(download(&mut c, "small", None).await, b"x");
    // Deleted bytes go too, with the container around them.
    let delete = DeleteContainerRequest { name: "cont".into(), ..DeleteContainerRequest::default() };
    c.delete_container(asked(delete)).await.unwrap();
    kiln_testkit::eventually("the bytes go", || async { (files(&blobs) == 0).then_some(()) }).await;
    drop(c);
    s.stop().await;
}

#[tokio::test]
async fn a_second_process_on_the_same_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let s = Service::start(dir.path()).await;
    let bind = || tokio::net::TcpListener::bind("127.0.0.1:0");
    let listeners = storage_svc::Listeners { grpc: bind().await.unwrap().into(), blob: bind().await.unwrap().into() };
    let deps = storage_svc::Deps { cluster_key: s.cluster_key.clone(), bus: s.bus.clone() };
    let config = storage_svc::Config::new(dir.path(), "http://x");
    let error =
        storage_svc::run(config, deps, listeners, tokio_util::sync::CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().contains("another storage-svc"), "{error}");
    s.stop().await;
}
