//! What the gRPC API refuses, with which status and reason, and that nothing is left of it.
#![allow(clippy::unwrap_used)]

use kiln_auth::SecretKey;
use kiln_e2e::inventory::inventory;
use kiln_e2e::server::Server;
use kiln_e2e::work::{request_id, shell_task};
use kiln_error::{Error, Kind};
use kiln_proto::job::v1::{
    AddTaskCollectionRequest, AddTaskRequest, AddTasksRequest, CreateJobRequest, GetJobRequest, GetTaskRequest,
    JobSpec, ListJobsRequest,
};
use kiln_proto::pool::v1::{CreatePoolRequest, GetPoolRequest, PoolSpec, ResizePoolRequest};
use kiln_proto::storage::v1::{CreateSasRequest, DownloadRequest, UploadHeader, UploadRequest, upload_request};
use tonic::{Response, Status};

#[track_caller]
fn refused<T>(answer: Result<Response<T>, Status>, kind: Kind, reason: &str) {
    let error = Error::from(answer.err().expect("the call is refused"));
    assert_eq!((error.kind(), error.reason()), (kind, reason), "{error}");
    assert!(!error.message().is_empty());
}

fn job(id: &str) -> CreateJobRequest {
    let spec = JobSpec { pool_id: "p".to_owned(), ..Default::default() };
    CreateJobRequest { request_id: request_id(), id: id.to_owned(), spec: Some(spec) }
}

fn pool(id: &str, nodes: i32) -> CreatePoolRequest {
    let spec = PoolSpec { vm_size: "local".to_owned(), target_dedicated_nodes: nodes, ..Default::default() };
    CreatePoolRequest { request_id: request_id(), id: id.to_owned(), spec: Some(spec) }
}

#[tokio::test]
async fn callers_who_cannot_prove_who_they_are() {
    let server = Server::start().await;
    let before = inventory(&server.client()).await;
    let stranger = server.client_with_key(&SecretKey::generate().to_base64());
    let answer = stranger.jobs().list_jobs(ListJobsRequest::default()).await;
    refused(answer, Kind::Unauthenticated, "AuthenticationFailed");
    refused(stranger.pools().create_pool(pool("x", 1)).await, Kind::Unauthenticated, "AuthenticationFailed");
    let nobody =
        kiln_client::Client::connect(server.variable("KILN_ENDPOINT"), "nobody", &SecretKey::generate().to_base64());
    let answer = nobody.unwrap().jobs().list_jobs(ListJobsRequest::default()).await;
    refused(answer, Kind::Unauthenticated, "AuthenticationFailed");
    assert_eq!(inventory(&server.client()).await, before);
    server.stop().await;
}

#[tokio::test]
async fn things_that_do_not_exist_or_exist_already() {
    let server = Server::start().await;
    let client = server.client();
    let (mut pools, mut jobs) = (client.pools(), client.jobs());
    pools.create_pool(pool("p", 0)).await.unwrap();
    jobs.create_job(job("j")).await.unwrap();
    let add = |job: &str, task: &str| AddTaskRequest {
        request_id: request_id(),
        job_id: job.to_owned(),
        task: Some(shell_task(task, "true")),
    };
    jobs.add_task(add("j", "t")).await.unwrap();
    let before = inventory(&client).await;

    refused(pools.create_pool(pool("P", 0)).await, Kind::AlreadyExists, "PoolExists");
    refused(jobs.create_job(job("J")).await, Kind::AlreadyExists, "JobExists");
    refused(jobs.add_task(add("j", "T")).await, Kind::AlreadyExists, "TaskExists");
    refused(jobs.add_task(add("none", "t")).await, Kind::NotFound, "JobNotFound");
    let none = GetPoolRequest { id: "none".to_owned(), precondition: None };
    refused(pools.get_pool(none).await, Kind::NotFound, "PoolNotFound");
    let none = GetJobRequest { id: "none".to_owned(), precondition: None };
    refused(jobs.get_job(none).await, Kind::NotFound, "JobNotFound");
    let none = GetTaskRequest { job_id: "j".to_owned(), task_id: "none".to_owned(), precondition: None };
    refused(jobs.get_task(none).await, Kind::NotFound, "TaskNotFound");
    let none = DownloadRequest { container: "none".to_owned(), name: "b".to_owned(), ..Default::default() };
    refused(client.storage().download(none).await, Kind::NotFound, "ContainerNotFound");
    assert_eq!(inventory(&client).await, before);
    server.stop().await;
}

#[tokio::test]
async fn values_that_make_no_sense() {
    let server = Server::start().await;
    let client = server.client();
    let (mut pools, mut jobs) = (client.pools(), client.jobs());
    jobs.create_job(job("j")).await.unwrap();
    let before = inventory(&client).await;

    for id in ["", "a b", "../x", "a/b", &"x".repeat(65), "ä"] {
        for error in [pools.create_pool(pool(id, 0)).await.unwrap_err(), jobs.create_job(job(id)).await.unwrap_err()] {
            assert_eq!(Error::from(error).kind(), Kind::InvalidArgument, "id {id:?}");
        }
    }
    refused(pools.create_pool(pool("q", -1)).await, Kind::InvalidArgument, "InvalidPropertyValue");
    let resize = ResizePoolRequest { request_id: request_id(), id: "none".to_owned(), ..Default::default() };
    assert!(pools.resize_pool(resize).await.is_err());
    let page = ListJobsRequest { page_size: 100_000, ..Default::default() };
    refused(jobs.list_jobs(page).await, Kind::InvalidArgument, "InvalidPropertyValue");
    let page = ListJobsRequest { page_token: "not one of ours".to_owned(), ..Default::default() };
    refused(jobs.list_jobs(page).await, Kind::InvalidArgument, "InvalidPropertyValue");
    let filter = ListJobsRequest { filter: "state ~ 1".to_owned(), ..Default::default() };
    assert_eq!(Error::from(jobs.list_jobs(filter).await.unwrap_err()).kind(), Kind::InvalidArgument);
    let sas = CreateSasRequest { container: "c".to_owned(), permissions: "no".to_owned(), ..Default::default() };
    assert!(client.storage().create_sas(sas).await.is_err());
    assert_eq!(inventory(&client).await, before);
    server.stop().await;
}

#[tokio::test]
async fn each_task_of_a_collection_fails_by_itself() {
    let server = Server::start().await;
    let client = server.client();
    client.jobs().create_job(job("j")).await.unwrap();
    let mut escape = shell_task("escape", "true");
    escape.resource_files.push(kiln_proto::common::v1::ResourceFile {
        source: Some(kiln_proto::common::v1::resource_file::Source::HttpUrl("http://127.0.0.1:9/f".to_owned())),
        file_path: "../../../f".to_owned(),
        ..Default::default()
    });
    let tasks = vec![shell_task("a", "true"), shell_task("b c", "true"), shell_task("A", "true"), escape];
    let request = AddTaskCollectionRequest { request_id: request_id(), job_id: "j".to_owned(), tasks };
    let results = client.jobs().add_task_collection(request).await.unwrap().into_inner().results;
    let reasons: Vec<_> =
        results.iter().map(|result| result.error.as_ref().map_or("added", |error| error.reason.as_str())).collect();
    assert_eq!(reasons, ["added", "InvalidPropertyValue", "TaskExists", "InvalidPropertyValue"]);
    assert!(inventory(&client).await.contains("task j/a"));
    server.stop().await;
}

#[tokio::test]
async fn messages_that_are_too_large_or_break_off() {
    let server = Server::start().await;
    let client = server.client();
    client.jobs().create_job(job("j")).await.unwrap();
    let before = inventory(&client).await;
    // 20 MiB in one message.
    let tasks = (0..20).map(|n| shell_task(&format!("t{n}"), &"x".repeat(1024 * 1024))).collect();
    let message = AddTasksRequest { job_id: "j".to_owned(), sequence: 1, tasks };
    let answer = client.jobs().add_tasks(tokio_stream::iter([message])).await;
    let status = match answer {
        Err(status) => status,
        Ok(answers) => answers.into_inner().message().await.expect_err("20 MiB in one message are refused"),
    };
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status:?}");
    // A header without bytes behind it, and bytes without a header.
    let storage = || client.storage();
    let data = UploadRequest { part: Some(upload_request::Part::Data(vec![1].into())) };
    assert!(storage().upload(tokio_stream::iter([data])).await.is_err(), "bytes without a header");
    let header = UploadHeader { container: "none".to_owned(), name: "b".to_owned(), ..Default::default() };
    let header = UploadRequest { part: Some(upload_request::Part::Header(header)) };
    assert!(storage().upload(tokio_stream::iter([header])).await.is_err(), "a container that does not exist");
    assert_eq!(inventory(&client).await, before);
    server.stop().await;
}

#[tokio::test]
async fn bytes_that_are_no_message() {
    let server = Server::start().await;
    let before = inventory(&server.client()).await;
    let endpoint = server.variable("KILN_ENDPOINT");
    let claims = kiln_auth::token::Claims {
        principal: kiln_auth::token::Principal::Account { account: server.variable("AZURE_BATCH_ACCOUNT").to_owned() },
        expires: jiff::Timestamp::now().as_second() + 600,
    };
    let key = SecretKey::from_base64(server.variable("AZURE_BATCH_ACCESS_KEY")).unwrap();
    let token = format!("Bearer {}", kiln_auth::token::mint(&key, &claims));
    // HTTP/2 from the start, as gRPC speaks it.
    let http = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    // Nothing, no protobuf, 4 GiB announced, no gRPC frame. 13 is INTERNAL, 11 OUT_OF_RANGE, 12 UNIMPLEMENTED.
    let bodies: [(&[u8], &str); 4] = [
        (b"", "13"),
        (b"\0\0\0\0\x05\xff\xff\xff\xff\xff", "13"),
        (b"\0\xff\xff\xff\xff", "11"),
        (b"\x07garbage", "13"),
    ];
    for (body, code) in bodies {
        let calls = [
            ("kiln.job.v1.JobService/CreateJob", code),
            ("kiln.job.v1.JobService/NoSuchMethod", "12"),
            ("no.such.Service/Call", "12"),
            ("kiln.job.v1.WorkService/Work", "12"),
        ];
        for (method, code) in calls {
            let answer = http
                .post(format!("{endpoint}/{method}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .header("authorization", &token)
                .body(body.to_vec())
                .send()
                .await
                .unwrap();
            let status = answer.headers().get("grpc-status").map(|value| value.to_str().unwrap());
            assert_eq!(status, Some(code), "{method} {body:?}");
        }
    }
    assert_eq!(inventory(&server.client()).await, before);
    server.stop().await;
}
