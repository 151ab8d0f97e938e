//! Uploads and downloads over gRPC that go on after a break, and signatures for many.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{ACCOUNT, Service, pattern};
use futures::Stream;
use kiln_error::Error;
use kiln_grpc::{ServiceAuth, ServiceChannel, with_account};
use kiln_proto::common::v1::{ByteRange, Precondition};
use kiln_proto::storage::v1::storage_service_client::StorageServiceClient;
use kiln_proto::storage::v1::upload_request::Part;
use kiln_proto::storage::v1::*;
use md5::{Digest, Md5};
use tokio_stream::wrappers::ReceiverStream;

const BLOCK: usize = 100_000;

fn client(service: &Service) -> StorageServiceClient<ServiceChannel> {
    let auth = ServiceAuth::new("test", service.cluster_key.clone());
    StorageServiceClient::new(auth.connect(&service.grpc).unwrap())
}

fn asked<T>(message: T) -> tonic::Request<T> {
    with_account(message, ACCOUNT).unwrap()
}

async fn start(dir: &std::path::Path) -> (Service, StorageServiceClient<ServiceChannel>) {
    let service = Service::start(dir).await;
    let mut client = client(&service);
    let request = CreateContainerRequest { name: "cont".into(), ..CreateContainerRequest::default() };
    client.create_container(asked(request)).await.unwrap();
    (service, client)
}

fn header(piece: ResumableUpload) -> UploadHeader {
    UploadHeader { container: "cont".into(), name: "b".into(), resumable: Some(piece), ..UploadHeader::default() }
}

fn piece(offset: usize, finish: bool) -> ResumableUpload {
    ResumableUpload {
        upload_id: "u".into(),
        block_bytes: BLOCK as u64,
        offset: offset as u64,
        finish,
        ..ResumableUpload::default()
    }
}

/// Messages that do not fit the blocks.
fn stream(header: UploadHeader, bytes: &[u8]) -> tonic::Request<impl Stream<Item = UploadRequest> + use<>> {
    let mut parts = vec![Part::Header(header)];
    parts.extend(bytes.chunks(33_333).map(|piece| Part::Data(Bytes::copy_from_slice(piece))));
    asked(futures::stream::iter(parts.into_iter().map(|part| UploadRequest { part: Some(part) })))
}

async fn durable(client: &mut StorageServiceClient<ServiceChannel>) -> GetUploadResponse {
    let request = GetUploadRequest {
        container: "cont".into(),
        name: "b".into(),
        upload_id: "u".into(),
        block_bytes: BLOCK as u64,
    };
    client.get_upload(asked(request)).await.unwrap().into_inner()
}

/// The blob, or a part of it, and how it ended.
async fn download(
    client: &mut StorageServiceClient<ServiceChannel>,
    start: usize,
    if_match: &str,
) -> Result<(Blob, Vec<u8>), Error> {
    let request = DownloadRequest {
        container: "cont".into(),
        name: "b".into(),
        range: (start > 0).then_some(ByteRange { start: start as u64, end: None }),
        precondition: (!if_match.is_empty())
            .then(|| Precondition { if_match: if_match.into(), ..Precondition::default() }),
    };
    let mut stream = client.download(asked(request)).await?.into_inner();
    let (mut blob, mut bytes) = (None, Vec::new());
    while let Some(message) = stream.message().await? {
        match message.part.unwrap() {
            download_response::Part::Blob(head) => blob = Some(head),
            download_response::Part::Data(data) => bytes.extend_from_slice(&data),
        }
    }
    Ok((blob.unwrap(), bytes))
}

#[tokio::test]
async fn a_broken_upload_goes_on_where_it_was_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (service, mut c) = start(dir.path()).await;
    let bytes = pattern(5 * BLOCK + 7);
    assert_eq!(durable(&mut c).await, GetUploadResponse::default());

    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let mut other = c.clone();
    let call = kiln_telemetry::spawn(async move { other.upload(asked(ReceiverStream::new(receiver))).await });
    sender.send(UploadRequest { part: Some(Part::Header(header(piece(0, true)))) }).await.unwrap();
    // Two and a half blocks.
    for data in bytes[..5 * BLOCK / 2].chunks(50_000) {
        let part = Some(Part::Data(Bytes::copy_from_slice(data)));
        sender.send(UploadRequest { part }).await.unwrap();
    }
    kiln_testkit::eventually("two blocks are durable", || {
        let mut c = c.clone();
        async move { (durable(&mut c).await.durable == 2 * BLOCK as u64).then_some(()) }
    })
    .await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    service.stop().await;

    let service = Service::start(dir.path()).await;
    let mut c = client(&service);
    let there = durable(&mut c).await;
    assert_eq!((there.durable, there.blocks.len()), (2 * BLOCK as u64, 2));
    assert_eq!(download(&mut c, 0, "").await.unwrap_err().reason(), "BlobNotFound", "nothing is visible");

    let mut last = header(piece(2 * BLOCK, true));
    last.content_type = "text/x".into();
    last.metadata = [("a".to_owned(), "1".to_owned())].into();
    last.resumable.as_mut().unwrap().blob_md5 = Md5::digest(&bytes).to_vec();
    let finished = c.upload(stream(last.clone(), &bytes[2 * BLOCK..])).await.unwrap().into_inner().blob.unwrap();
    assert_eq!((finished.content_length, &*finished.content_type), (bytes.len() as u64, "text/x"));
    assert_eq!(finished.content_md5, Md5::digest(&bytes).to_vec());
    let (blob, found) = download(&mut c, 0, "").await.unwrap();
    assert!(found == bytes && blob == finished);

    // The answer was lost, and the end is sent again, with or without its bytes.
    last.resumable.as_mut().unwrap().offset = 6 * BLOCK as u64;
    let again = c.upload(stream(last, &[])).await.unwrap().into_inner().blob.unwrap();
    assert_eq!(again, finished);
    assert_eq!(durable(&mut c).await.durable, bytes.len() as u64);
    service.stop().await;
}

#[tokio::test]
async fn pieces_come_in_any_order_and_none_may_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (service, mut c) = start(dir.path()).await;
    let bytes = pattern(4 * BLOCK + 1);
    let ends = |at: usize| bytes.len().min(at + BLOCK);
    for at in [4 * BLOCK, BLOCK, 0, 3 * BLOCK] {
        let mut header = header(piece(at, false));
        header.content_md5 = Md5::digest(&bytes[at..ends(at)]).to_vec();
        let answer = c.upload(stream(header, &bytes[at..ends(at)])).await.unwrap().into_inner();
        assert_eq!(answer.blob, None);
    }
    assert_eq!(durable(&mut c).await.durable, 2 * BLOCK as u64);
    assert_eq!(durable(&mut c).await.blocks.len(), 4);
    let refused = Error::from(c.upload(stream(header(piece(5 * BLOCK, true)), &[])).await.unwrap_err());
    assert_eq!(refused.reason(), "InvalidBlockList");
    assert_eq!(refused.details(), [("offset".to_owned(), (2 * BLOCK).to_string())]);

    // Damaged on its way: it is not kept.
    let mut damaged = header(piece(2 * BLOCK, false));
    damaged.content_md5 = vec![0; 16];
    let refused = Error::from(c.upload(stream(damaged, &bytes[..BLOCK])).await.unwrap_err());
    assert_eq!((refused.reason(), durable(&mut c).await.blocks.len()), ("Md5Mismatch", 4));
    // One sum for two blocks.
    let mut two = header(piece(2 * BLOCK, false));
    two.content_md5 = Md5::digest(&bytes[2 * BLOCK..3 * BLOCK]).to_vec();
    let refused = Error::from(c.upload(stream(two, &bytes[2 * BLOCK..4 * BLOCK])).await.unwrap_err());
    assert_eq!(refused.details()[0].1, "content_md5");

    assert_eq!(durable(&mut c).await.durable, bytes.len() as u64);
    let exists = UploadHeader { if_absent: true, ..header(piece(5 * BLOCK, true)) };
    c.upload(stream(exists.clone(), &[])).await.unwrap();
    assert!(download(&mut c, 0, "").await.unwrap().1 == bytes);
    // Another upload of the same blob, which must not replace it.
    let mut other = exists;
    other.resumable.as_mut().unwrap().upload_id = "other".into();
    other.resumable.as_mut().unwrap().offset = 0;
    let refused = Error::from(c.upload(stream(other, b"x")).await.unwrap_err());
    assert_eq!(refused.reason(), "BlobAlreadyExists");

    for (wrong, field) in [
        (ResumableUpload { upload_id: String::new(), ..piece(0, false) }, "upload_id"),
        (piece(1, false), "offset"),
        (ResumableUpload { block_bytes: 1 << 40, ..piece(0, false) }, "block_bytes"),
    ] {
        let refused = Error::from(c.upload(stream(header(wrong), b"x")).await.unwrap_err());
        assert_eq!(refused.details()[0].1, field);
    }
    let empty = c.upload(stream(header(piece(0, true)), &[])).await.unwrap().into_inner();
    assert_eq!(empty.blob.unwrap().content_length, 0);
    service.stop().await;
}

#[tokio::test]
async fn a_download_goes_on_with_the_same_version_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let (service, mut c) = start(dir.path()).await;
    let whole = |bytes: &[u8]| {
        stream(UploadHeader { container: "cont".into(), name: "b".into(), ..UploadHeader::default() }, bytes)
    };
    let bytes = pattern(300_000);
    c.upload(whole(&bytes)).await.unwrap();
    let (blob, _) = download(&mut c, 0, "").await.unwrap();
    let (same, rest) = download(&mut c, 123_456, &blob.etag).await.unwrap();
    assert!(same == blob && rest == bytes[123_456..]);
    c.upload(whole(&pattern(400_000))).await.unwrap();
    let refused = download(&mut c, 123_456, &blob.etag).await.unwrap_err();
    assert_eq!(refused.reason(), "ConditionNotMet");
    service.stop().await;
}

#[tokio::test]
async fn signatures_for_many_are_those_for_one() {
    let dir = tempfile::tempdir().unwrap();
    let (service, mut c) = start(dir.path()).await;
    let expires = kiln_time::Timestamp::now().plus(Duration::from_secs(3600));
    let one = |blob: &str, permissions: &str| CreateSasRequest {
        container: "cont".into(),
        blob: blob.into(),
        permissions: permissions.into(),
        starts: None,
        expires: Some(kiln_proto::time::timestamp(expires.as_micros())),
    };
    let names = ["a b", "d/ü", ""];
    let requests: Vec<_> = names.iter().map(|name| one(name, "r")).collect();
    let batch = CreateSasBatchRequest { requests: requests.clone() };
    let signed = c.create_sas_batch(asked(batch)).await.unwrap().into_inner().responses;
    assert_eq!(signed.len(), 3);
    for (request, signed) in requests.into_iter().zip(signed) {
        assert_eq!(c.create_sas(asked(request)).await.unwrap().into_inner(), signed);
    }
    let batch = CreateSasBatchRequest { requests: vec![one("a", "r"), one("b", "?")] };
    let refused = Error::from(c.create_sas_batch(asked(batch)).await.unwrap_err());
    assert!(refused.details().contains(&("request".to_owned(), "1".to_owned())), "{refused:?}");
    for number in [0, 10_001] {
        let batch = CreateSasBatchRequest { requests: vec![one("a", "r"); number] };
        assert!(c.create_sas_batch(asked(batch)).await.is_err());
    }
    service.stop().await;
}
