//! Applications over gRPC, zips put by URL, and what a node is told.

// Helpers outside of test functions.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Cursor, Write};

use bytes::Bytes;
use common::{ACCOUNT, Reply, Service, files};
use kiln_auth::token::{self, Claims, Principal};
use kiln_error::Error;
use kiln_grpc::{ServiceAuth, ServiceChannel, with_account};
use kiln_proto::common::v1::ApplicationPackageReference;
use kiln_proto::storage::v1::application_service_client::ApplicationServiceClient;
use kiln_proto::storage::v1::storage_service_client::StorageServiceClient;
use kiln_proto::storage::v1::upload_package_request::Part;
use kiln_proto::storage::v1::*;
use kiln_testkit::eventually;
use prost::Message;

fn client(service: &Service) -> ApplicationServiceClient<ServiceChannel> {
    let auth = ServiceAuth::new("test", service.cluster_key.clone());
    ApplicationServiceClient::new(auth.connect(&service.grpc).unwrap())
}

fn asked<T>(message: T) -> tonic::Request<T> {
    with_account(message, ACCOUNT).unwrap()
}

fn zip_with(text: &str) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    writer.start_file("text", stored).unwrap();
    writer.write_all(text.as_bytes()).unwrap();
    writer.finish().unwrap().into_inner()
}

fn upload(
    version: &str,
    request_id: &str,
    body: &[u8],
) -> tonic::Request<impl futures::Stream<Item = UploadPackageRequest> + use<>> {
    let header = UploadPackageHeader {
        request_id: request_id.into(),
        application_id: "Tool".into(),
        version: version.into(),
        content_md5: Vec::new(),
    };
    let mut parts = vec![Part::Header(header)];
    parts.extend(body.chunks(50_000).map(|piece| Part::Data(Bytes::copy_from_slice(piece))));
    asked(futures::stream::iter(parts.into_iter().map(|part| UploadPackageRequest { part: Some(part) })))
}

async fn create(client: &mut ApplicationServiceClient<ServiceChannel>) {
    let request = CreateApplicationRequest { id: "Tool".into(), ..CreateApplicationRequest::default() };
    client.create_application(asked(request)).await.unwrap();
}

fn reason<T: std::fmt::Debug>(result: Result<T, tonic::Status>) -> String {
    Error::from(result.unwrap_err()).reason().to_owned()
}

/// As a node asks.
async fn ask(service: &Service, target: &str) -> Reply {
    let principal =
        Principal::Node { account: ACCOUNT.into(), pool: "p".into(), node: "n".into(), incarnation: "i".into() };
    let token = token::mint(&service.cluster_key, &Claims { principal, expires: i64::from(u32::MAX) });
    service.raw("GET", target, &[("Authorization", &format!("Bearer {token}"))], b"").await
}

async fn resolve(service: &Service, version: &str) -> ResolvedPackage {
    let target = format!("/{ACCOUNT}/$packages?restype=package&application=tool&version={version}");
    let reply = ask(service, &target).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    ResolvedPackage::decode(&*reply.body).unwrap()
}

fn reference(version: &str) -> CheckPackagesRequest {
    let package = ApplicationPackageReference { application_id: "tool".into(), version: version.into() };
    CheckPackagesRequest { packages: vec![package] }
}

#[tokio::test]
async fn a_node_finds_what_was_uploaded() {
    let dir = tempfile::tempdir().unwrap();
    let s = Service::start(dir.path()).await;
    let mut c = client(&s);
    assert_eq!(reason(c.upload_package(upload("1.0", "", b"x")).await), "ApplicationNotFound");
    create(&mut c).await;
    // Small zips are kept in the catalogue, large ones are objects.
    for (version, text) in [("1.0", "small".to_owned()), ("2.0-RC", "large ".repeat(50_000))] {
        let bytes = zip_with(&text);
        let made = c.upload_package(upload(version, version, &bytes)).await.unwrap().into_inner().package.unwrap();
        assert_eq!(
            (made.state(), made.content_length, &*made.format),
            (PackageState::Active, bytes.len() as u64, "zip")
        );
        let again = c.upload_package(upload(version, version, &bytes)).await.unwrap().into_inner().package.unwrap();
        assert_eq!(again, made, "one request uploads once");
        let found = resolve(&s, &version.to_lowercase()).await;
        assert_eq!((&*found.application_id, &*found.version), ("Tool", version));
        let blob = ask(&s, &format!("/{ACCOUNT}/$packages/{}", found.blob)).await;
        assert_eq!((blob.status, &blob.body, blob.header("etag")), (200, &bytes, &*format!("\"{}\"", found.etag)));
    }
    let get = GetApplicationRequest { id: "TOOL".into() };
    let tool = c.get_application(asked(get)).await.unwrap().into_inner().application.unwrap();
    assert_eq!(tool.packages.iter().map(|package| &*package.version).collect::<Vec<_>>(), ["1.0", "2.0-RC"]);
    let all = c.list_applications(asked(ListApplicationsRequest::default())).await.unwrap().into_inner();
    assert_eq!((all.applications, &*all.next_page_token), (vec![tool], ""));

    let target = format!("/{ACCOUNT}/$packages?restype=package&application=tool");
    assert_eq!(ask(&s, &target).await.outcome(), (409, "ApplicationHasNoDefaultVersion"));
    assert_eq!(reason(c.check_packages(asked(reference(""))).await), "InvalidApplicationPackageReferences");
    let set = UpdateApplicationRequest {
        id: "tool".into(),
        default_version: Some("2.0-rc".into()),
        ..UpdateApplicationRequest::default()
    };
    c.update_application(asked(set)).await.unwrap();
    assert_eq!(resolve(&s, "").await.version, "2.0-RC");
    for good in ["", "1.0"] {
        c.check_packages(asked(reference(good))).await.unwrap();
    }
    assert_eq!(reason(c.check_packages(asked(reference("3"))).await), "InvalidApplicationPackageReferences");

    let gone = |version: &str| DeletePackageRequest {
        request_id: String::new(),
        application_id: "tool".into(),
        version: version.into(),
    };
    c.delete_package(asked(gone("2.0-RC"))).await.unwrap();
    assert_eq!(ask(&s, &target).await.outcome(), (409, "ApplicationHasNoDefaultVersion"));
    assert_eq!(ask(&s, &format!("{target}&version=2.0-RC")).await.outcome(), (404, "ApplicationPackageNotFound"));
    let delete = DeleteApplicationRequest { request_id: String::new(), id: "tool".into() };
    assert_eq!(reason(c.delete_application(asked(delete.clone())).await), "ApplicationHasPackages");
    c.delete_package(asked(gone("1.0"))).await.unwrap();
    c.delete_application(asked(delete)).await.unwrap();
    let objects = dir.path().join("blobs");
    eventually("the bytes go", || async { (files(&objects) == 0).then_some(()) }).await;
    s.stop().await;
}

#[tokio::test]
async fn a_zip_is_put_by_url_and_used_when_it_is_activated() {
    let dir = tempfile::tempdir().unwrap();
    let s = Service::start(dir.path()).await;
    let mut c = client(&s);
    create(&mut c).await;
    let announce =
        || CreatePackageRequest { request_id: String::new(), application_id: "tool".into(), version: "1".into() };
    let activate =
        || ActivatePackageRequest { request_id: String::new(), application_id: "tool".into(), version: "1".into() };
    let block_blob = [("x-ms-blob-type", "BlockBlob"), ("x-ms-version", common::VERSION)];
    let put = async |url: &str, body: &[u8]| {
        let target = url.split_once("//").unwrap().1.split_once('/').unwrap().1;
        let length = body.len().to_string();
        let headers: Vec<_> = block_blob.into_iter().chain([("content-length", length.as_str())]).collect();
        s.raw("PUT", &format!("/{target}"), &headers, body).await
    };
    let announced = c.create_package(asked(announce())).await.unwrap().into_inner();
    assert_eq!(announced.package.unwrap().state(), PackageState::Pending);
    let url = announced.upload_url;
    assert_eq!(reason(c.activate_package(asked(activate())).await), "ApplicationPackageNotUploaded");
    for bad in [&b""[..], b"no zip", &zip_with("x")[10..]] {
        assert_eq!(put(&url, bad).await.status, 201);
        assert_eq!(reason(c.activate_package(asked(activate())).await), "InvalidApplicationPackage", "{bad:?}");
    }
    assert_eq!(put(&url, &zip_with("first")).await.status, 201);
    let target = format!("/{ACCOUNT}/$packages?restype=package&application=tool&version=1");
    assert_eq!(ask(&s, &target).await.outcome(), (409, "ApplicationPackageNotActive"));
    for _ in 0..2 {
        let active = c.activate_package(asked(activate())).await.unwrap().into_inner().package.unwrap();
        assert_eq!((active.state(), active.upload_pending), (PackageState::Active, false));
    }
    // The URL is of no use any more, nor are the account's keys.
    assert_eq!(put(&url, &zip_with("late")).await.outcome(), (403, "AuthorizationFailure"));
    let first = resolve(&s, "1").await;
    let path = format!("/{ACCOUNT}/$packages/{}", first.blob);
    let forced = s.signed("PUT", &path, &block_blob[..1], b"x").await;
    assert_eq!(forced.outcome(), (403, "AuthorizationFailure"));
    let staged = s.signed("PUT", &format!("{path}?comp=block&blockid=AAAA"), &[], b"x").await;
    assert_eq!(staged.outcome(), (403, "AuthorizationFailure"));
    let piece = ResumableUpload { upload_id: "u".into(), block_bytes: 1 << 20, ..ResumableUpload::default() };
    let header = UploadHeader {
        container: "$packages".into(),
        name: first.blob.clone(),
        resumable: Some(piece),
        ..UploadHeader::default()
    };
    let parts = [upload_request::Part::Header(header), upload_request::Part::Data(Bytes::from_static(b"x"))];
    let parts = futures::stream::iter(parts.map(|part| UploadRequest { part: Some(part) }));
    let auth = ServiceAuth::new("test", s.cluster_key.clone());
    let mut storage = StorageServiceClient::new(auth.connect(&s.grpc).unwrap());
    assert_eq!(reason(storage.upload(asked(parts)).await), "AuthorizationFailure");
    assert_eq!(s.signed("DELETE", &path, &[], b"").await.outcome(), (403, "AuthorizationFailure"));
    let container = format!("/{ACCOUNT}/$packages?restype=container");
    assert_eq!(s.signed("DELETE", &container, &[], b"").await.outcome(), (403, "AuthorizationFailure"));
    assert_eq!(s.raw("GET", &target, &[], b"").await.status, 404, "nobody may ask but nodes and owners");

    // The next zip: the first is used until it is activated.
    let url = c.create_package(asked(announce())).await.unwrap().into_inner().upload_url;
    assert_eq!(put(&url, &zip_with("second")).await.status, 201);
    assert_eq!(resolve(&s, "1").await, first);
    c.activate_package(asked(activate())).await.unwrap();
    assert_ne!(resolve(&s, "1").await.blob, first.blob);
    assert_eq!(ask(&s, &path).await.status, 404);
    s.stop().await;
}
