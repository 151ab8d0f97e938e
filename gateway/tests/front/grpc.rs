//! gRPC pass-through and the gateway's own services.

use std::sync::Arc;

use futures::StreamExt;
use kiln_auth::SecretKey;
use kiln_auth::token::{self, Claims, Principal};
use kiln_error::{Error, Kind};
use kiln_grpc::ServiceAuth;
use kiln_proto::common::v1::ByteRange;
use kiln_proto::gateway::v1::gateway_admin_service_client::GatewayAdminServiceClient;
use kiln_proto::gateway::v1::read_task_file_response::Part;
use kiln_proto::gateway::v1::{GetAccountRequest, ListTaskFilesRequest, PutAccountRequest, ReadTaskFileRequest};
use kiln_proto::job::v1::{AddTasksRequest, TaskSpec};
use kiln_proto::monitor::v1::ListEventsRequest;
use kiln_proto::pool::v1::node_control_service_client::NodeControlServiceClient;
use kiln_proto::pool::v1::pool_service_client::PoolServiceClient;
use kiln_proto::pool::v1::{GetPoolRequest, ListPoolsRequest, ReadNodeFileRequest, RegisterRequest};
use kiln_testkit::eventually;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::fakes::CONTENT;
use crate::harness::{ACCOUNT, Harness};

pub fn bearer(gateway: &Harness) -> String {
    let principal = Principal::Account { account: ACCOUNT.into() };
    let claims = Claims { principal, expires: kiln_grpc::caller::now_seconds() + 60 };
    format!("Bearer {}", token::mint(&gateway.key, &claims))
}

#[tokio::test]
async fn errors_come_through_with_their_details() {
    let gateway = Harness::start().await;
    let message = GetPoolRequest { id: "none".into(), precondition: None };
    let error = Error::from(gateway.grpc().pools().get_pool(message).await.unwrap_err());
    assert_eq!((error.kind(), error.reason()), (Kind::NotFound, "PoolNotFound"));
    assert_eq!(error.details(), [("Id".to_owned(), "none".to_owned())]);
}

#[tokio::test]
async fn an_account_cannot_be_chosen_by_the_caller() {
    let gateway = Harness::start().await;
    let mut pools = PoolServiceClient::new(kiln_grpc::connect_lazy(&gateway.url).unwrap());
    let mut request = tonic::Request::new(ListPoolsRequest { page_size: 10, ..ListPoolsRequest::default() });
    request.metadata_mut().insert("authorization", bearer(&gateway).parse().unwrap());
    request.metadata_mut().insert("kiln-account", "victim".parse().unwrap());
    request.metadata_mut().append("kiln-account", "victim2".parse().unwrap());
    pools.list_pools(request).await.unwrap();
    assert_eq!(gateway.state.accounts.lock().unwrap().as_slice(), [ACCOUNT]);
}

#[tokio::test]
async fn callers_without_an_account_are_refused() {
    let gateway = Harness::start().await;
    let channel = kiln_grpc::connect_lazy(&gateway.url).unwrap();
    let service = ServiceAuth::new("spy", gateway.cluster_key.clone());
    for authorization in
        [None, Some("Bearer rubbish".to_owned()), Some(service.authorization().to_str().unwrap().to_owned())]
    {
        let mut request = tonic::Request::new(ListPoolsRequest::default());
        if let Some(text) = &authorization {
            request.metadata_mut().insert("authorization", text.parse().unwrap());
        }
        let status = PoolServiceClient::new(channel.clone()).list_pools(request).await.unwrap_err();
        assert_eq!(Error::from(status).kind(), Kind::Unauthenticated, "{authorization:?}");
    }
    assert!(gateway.state.accounts.lock().unwrap().is_empty());
}

#[tokio::test]
async fn services_of_agents_and_admins_are_closed() {
    let gateway = Harness::start().await;
    let channel = kiln_grpc::connect_lazy(&gateway.url).unwrap();
    let mut request = tonic::Request::new(RegisterRequest::default());
    request.metadata_mut().insert("authorization", bearer(&gateway).parse().unwrap());
    let status = NodeControlServiceClient::new(channel.clone()).register(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented);
    // A user's token does not open the admin service, nor does a forged one.
    let forged = ServiceAuth::new("forged", Arc::new(SecretKey::generate()));
    for authorization in [bearer(&gateway), forged.authorization().to_str().unwrap().to_owned()] {
        let mut request = tonic::Request::new(PutAccountRequest::default());
        request.metadata_mut().insert("authorization", authorization.parse().unwrap());
        let status = GatewayAdminServiceClient::new(channel.clone()).put_account(request).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
    }
}

#[tokio::test]
async fn streams_flow_both_ways_at_once() {
    let gateway = Harness::start().await;
    let (sender, receiver) = mpsc::channel(1);
    let mut answers = gateway.grpc().jobs().add_tasks(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    for sequence in 1..=20 {
        let task = TaskSpec { id: format!("t{sequence}"), command_line: "x".repeat(10_000), ..TaskSpec::default() };
        sender.send(AddTasksRequest { job_id: "j".into(), sequence, tasks: vec![task] }).await.unwrap();
        // The next message is only sent when this one was answered.
        assert_eq!(answers.next().await.unwrap().unwrap().sequence, sequence);
    }
    drop(sender);
    assert!(answers.next().await.is_none());
    assert_eq!(gateway.state.tasks.lock().unwrap().len(), 20);
}

#[tokio::test]
async fn a_caller_that_hangs_up_stops_the_service() {
    let gateway = Harness::start().await;
    let message = ReadNodeFileRequest { path: "stdout.txt".into(), follow: true, ..ReadNodeFileRequest::default() };
    let mut stream = gateway.grpc().pools().read_node_file(message).await.unwrap().into_inner();
    for _ in 0..10 {
        stream.next().await.unwrap().unwrap();
    }
    assert!(!gateway.state.hung_up.is_cancelled());
    drop(stream);
    let hung_up = gateway.state.hung_up.clone();
    eventually("the service hears that the caller hung up", || async { hung_up.is_cancelled().then_some(()) }).await;
}

#[tokio::test]
async fn a_service_that_is_down_is_unavailable() {
    let gateway = Harness::start().await;
    let status = gateway.grpc().monitor().list_events(ListEventsRequest::default()).await.unwrap_err();
    let error = Error::from(status);
    assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, "ServerBusy"));
    assert!(error.message().contains("monitor-svc"), "{error}");
}

#[tokio::test]
async fn an_account_with_too_many_open_calls_waits() {
    let gateway = Harness::with(|config| config.max_open_requests = 1).await;
    let message = ReadNodeFileRequest { path: "stdout.txt".into(), follow: true, ..ReadNodeFileRequest::default() };
    let client = gateway.grpc();
    let mut stream = client.pools().read_node_file(message).await.unwrap().into_inner();
    stream.next().await.unwrap().unwrap();
    let error = Error::from(gateway.grpc().pools().list_pools(ListPoolsRequest::default()).await.unwrap_err());
    assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, "ServerBusy"));
    let answer = gateway.get("/pools?api-version=2025-06-01").await;
    assert_eq!(answer.error(), (503, "ServerBusy".into()));
    assert_eq!(answer.header("retry-after"), "1");
    drop(stream);
    eventually("the place is free again", || async {
        (gateway.get("/pools?api-version=2025-06-01").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_account_and_files_of_tasks() {
    let gateway = Harness::start().await;
    let account = gateway.grpc().account().get_account(GetAccountRequest {}).await.unwrap().into_inner();
    assert_eq!((account.account.as_str(), account.blob_endpoint.as_str()), (ACCOUNT, "http://blob:1/demo"));

    let message = ListTaskFilesRequest { job_id: "j1".into(), task_id: "t1".into(), ..ListTaskFilesRequest::default() };
    let files = gateway.grpc().task_files().list_task_files(message).await.unwrap().into_inner().files;
    assert_eq!(files[0].name, "stdout.txt");

    let message = ReadTaskFileRequest {
        job_id: "j1".into(),
        task_id: "t1".into(),
        path: "stdout.txt".into(),
        range: Some(ByteRange { start: 6, end: Some(10) }),
        follow: false,
    };
    let mut stream = gateway.grpc().task_files().read_task_file(message.clone()).await.unwrap().into_inner();
    assert!(matches!(stream.next().await.unwrap().unwrap().part, Some(Part::File(_))));
    let mut data = Vec::new();
    while let Some(answer) = stream.next().await {
        if let Some(Part::Data(bytes)) = answer.unwrap().part {
            data.extend_from_slice(&bytes);
        }
    }
    assert!(data.starts_with(&CONTENT[6..=10]));

    let message = ReadTaskFileRequest { task_id: "new".into(), ..message };
    let error = Error::from(gateway.grpc().task_files().read_task_file(message).await.unwrap_err());
    assert_eq!(error.reason(), "OperationInvalidForCurrentState");
}

/// HTTP/2 ends a connection with too many small frames that nobody reads.
#[tokio::test]
async fn a_client_that_does_not_read_harms_only_its_own_account() {
    let gateway = Harness::start().await;
    let other = SecretKey::generate();
    gateway.put_account_as("other", &other).await;
    let other = kiln_client::Client::connect(&gateway.url, "other", &other.to_base64()).unwrap();
    let follow = |path: &str| ReadNodeFileRequest { path: path.into(), follow: true, ..ReadNodeFileRequest::default() };
    let mut good = other.pools().read_node_file(follow("stdout.txt")).await.unwrap().into_inner();
    good.next().await.unwrap().unwrap();

    let stuck = gateway.grpc();
    let _unread = stuck.pools().read_node_file(follow("tiny-stdout.txt")).await.unwrap().into_inner();
    let hung_up = gateway.state.hung_up.clone();
    eventually("the connection of the reader that does not read ends", || async {
        hung_up.is_cancelled().then_some(())
    })
    .await;
    good.next().await.unwrap().unwrap();
    other.pools().list_pools(ListPoolsRequest { page_size: 1, ..ListPoolsRequest::default() }).await.unwrap();
    assert_eq!(gateway.get("/pools?api-version=2025-06-01").await.status, 200);
}

/// Each of an account's thousand calls could hold a workflow of 64 MiB.
#[tokio::test]
async fn few_large_requests_are_read_at_once() {
    use tower::ServiceExt;
    let gateway = Harness::start().await;
    let channel = kiln_grpc::connect_lazy(&gateway.url).unwrap();
    let (refused, mut refusals) = mpsc::channel(16);
    for _ in 0..9 {
        // A request whose message never comes to its end.
        let body = tonic::body::Body::new(axum::body::Body::from_stream(
            futures::stream::iter([Ok::<_, std::io::Error>(vec![0, 0, 0, 1])]).chain(futures::stream::pending()),
        ));
        let request = http::Request::post("/kiln.gateway.v1.WorkflowService/Run")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", bearer(&gateway))
            .body(body)
            .unwrap();
        let (channel, refused) = (channel.clone(), refused.clone());
        kiln_telemetry::spawn(async move {
            let answer = channel.oneshot(request).await.unwrap();
            refused.send(answer.headers()["grpc-status"].clone()).await.unwrap();
        });
    }
    assert_eq!(refusals.recv().await.unwrap(), "14");
    assert!(refusals.try_recv().is_err(), "the others are being read");
    gateway.grpc().pools().list_pools(ListPoolsRequest::default()).await.unwrap();
}
