//! Files of nodes, relayed through the control stream.

// Helpers outside of test functions.
#![allow(clippy::unwrap_used)]

mod support;

use kiln_error::{Error, Kind};
use kiln_proto::common::v1::{ByteRange, FileEntry};
use kiln_proto::pool::v1::file_answer::Part;
use kiln_proto::pool::v1::file_request::Operation;
use kiln_proto::pool::v1::*;
use kiln_testkit::eventually;
use support::{Agent, Service, call};

async fn ready(service: &Service) -> Agent {
    service.create("p", 1).await;
    let agent = Agent::join(service, "p", "p-1", "first").await;
    agent.report(AgentPhase::Ready, 0).await;
    service.wait_node("p", "p-1", NodeState::Idle).await;
    agent
}

fn read(path: &str) -> ReadNodeFileRequest {
    ReadNodeFileRequest { pool_id: "p".into(), node_id: "p-1".into(), path: path.into(), ..Default::default() }
}

fn entry(name: &str, content_length: u64) -> FileEntry {
    FileEntry { name: name.into(), content_length, ..FileEntry::default() }
}

#[tokio::test]
async fn a_file_is_read_with_its_properties_first() {
    let service = Service::start().await;
    let mut agent = ready(&service).await;
    let mut client = service.client();
    let asked = kiln_telemetry::spawn(async move {
        let range = Some(ByteRange { start: 2, end: Some(9) });
        let mut stream =
            client.read_node_file(call(ReadNodeFileRequest { range, ..read("a//b.txt") })).await?.into_inner();
        let mut parts = Vec::new();
        while let Some(part) = stream.message().await? {
            parts.push(part.part.unwrap());
        }
        Ok::<_, tonic::Status>(parts)
    });
    let request = agent.file_request().await;
    assert_eq!(request.path, "a/b.txt");
    let Some(Operation::Read(operation)) = request.operation else { panic!("a read") };
    assert_eq!(operation.range, Some(ByteRange { start: 2, end: Some(9) }));
    let mut answer = agent.answer(&request.transfer_id);
    answer.part(Part::File(entry("b.txt", 20))).await;
    for _ in 0..40 {
        answer.part(Part::Data(vec![7; 100_000].into())).await;
    }
    answer.part(Part::Done(FileDone {})).await;
    answer.end().await.unwrap();
    let parts = asked.await.unwrap().unwrap();
    assert!(matches!(&parts[0], read_node_file_response::Part::File(file) if file.content_length == 20));
    let bytes: usize = parts[1..]
        .iter()
        .map(|part| match part {
            read_node_file_response::Part::Data(data) => data.len(),
            read_node_file_response::Part::File(_) => panic!("properties come once"),
        })
        .sum();
    assert_eq!(bytes, 4_000_000);
    service.stop().await;
}

#[tokio::test]
async fn a_caller_that_hangs_up_stops_the_agent() {
    let service = Service::start().await;
    let mut agent = ready(&service).await;
    let mut client = service.client();
    let asked = kiln_telemetry::spawn(async move {
        let follow = ReadNodeFileRequest { follow: true, ..read("log") };
        let mut stream = client.read_node_file(call(follow)).await.unwrap().into_inner();
        stream.message().await.unwrap();
        stream
    });
    let request = agent.file_request().await;
    let mut answer = agent.answer(&request.transfer_id);
    answer.part(Part::File(entry("log", 1))).await;
    drop(asked.await.unwrap());
    let cancel = agent.file_request().await;
    assert_eq!(cancel.transfer_id, request.transfer_id);
    assert!(matches!(cancel.operation, Some(Operation::Cancel(_))));
    let refused = Error::from(answer.call.await.unwrap().unwrap_err());
    assert_eq!(refused.reason(), "TransferCancelled");
    service.stop().await;
}

#[tokio::test]
async fn a_slow_caller_slows_the_agent_down() {
    let service = Service::start().await;
    let mut agent = ready(&service).await;
    let mut client = service.client();
    let asked =
        kiln_telemetry::spawn(async move { client.read_node_file(call(read("big"))).await.unwrap().into_inner() });
    let request = agent.file_request().await;
    let mut answer = agent.answer(&request.transfer_id);
    answer.part(Part::File(entry("big", 1 << 30))).await;
    let unread = asked.await.unwrap();
    // Far more than all buffers between the two hold.
    let mut sent = 0;
    let flood = async {
        while sent < 2000 && answer.part(Part::Data(vec![0; 1 << 20].into())).await {
            sent += 1;
        }
    };
    let stalled = tokio::time::timeout(std::time::Duration::from_secs(1), flood).await;
    assert!(stalled.is_err() && sent < 500, "{sent} MiB were taken although nobody reads");
    drop(unread);
    service.stop().await;
}

#[tokio::test]
async fn errors_of_the_agent_reach_the_caller() {
    let service = Service::start().await;
    let mut agent = ready(&service).await;
    for (reason, kind) in [
        ("FileNotFound", Kind::NotFound),
        ("InvalidRange", Kind::OutOfRange),
        ("PathNotAllowed", Kind::InvalidArgument),
        ("IOError", Kind::PermissionDenied),
        ("OperationInvalidForCurrentState", Kind::FailedPrecondition),
    ] {
        let mut client = service.client();
        let asked = kiln_telemetry::spawn(async move { client.read_node_file(call(read("x"))).await.map(drop) });
        let request = agent.file_request().await;
        let mut answer = agent.answer(&request.transfer_id);
        answer.part(Part::Error(FileError { reason: reason.into(), message: "no".into() })).await;
        let error = Error::from(asked.await.unwrap().unwrap_err());
        assert_eq!(error.kind(), kind, "{reason}");
    }
    // An answer that breaks off before its end is not taken for a whole file.
    let mut client = service.client();
    let asked = kiln_telemetry::spawn(async move {
        let mut stream = client.read_node_file(call(read("x"))).await?.into_inner();
        while stream.message().await?.is_some() {}
        Ok::<_, tonic::Status>(())
    });
    let request = agent.file_request().await;
    let mut answer = agent.answer(&request.transfer_id);
    answer.part(Part::File(entry("x", 9))).await;
    answer.part(Part::Data(vec![1].into())).await;
    answer.end().await.unwrap();
    assert_eq!(Error::from(asked.await.unwrap().unwrap_err()).kind(), Kind::Unavailable);
    service.stop().await;
}

#[tokio::test]
async fn lists_are_paged_and_files_looked_at_and_removed() {
    let service = Service::start().await;
    let mut agent = ready(&service).await;
    let mut client = service.client();
    let list = ListNodeFilesRequest {
        pool_id: "p".into(),
        node_id: "p-1".into(),
        directory: "startup/".into(),
        page_size: 2,
        ..ListNodeFilesRequest::default()
    };
    let first = list.clone();
    let asked = kiln_telemetry::spawn(async move { client.list_node_files(call(first)).await });
    let request = agent.file_request().await;
    assert_eq!(request.path, "startup");
    let mut answer = agent.answer(&request.transfer_id);
    for name in ["a", "b"] {
        answer.part(Part::List(FileList { files: vec![entry(name, 1)], more: true })).await;
    }
    answer.part(Part::Done(FileDone {})).await;
    let page = asked.await.unwrap().unwrap().into_inner();
    assert_eq!(page.files.len(), 2);
    let mut client = service.client();
    let next = ListNodeFilesRequest { page_token: page.next_page_token, ..list.clone() };
    let asked = kiln_telemetry::spawn(async move { client.list_node_files(call(next)).await });
    let request = agent.file_request().await;
    assert!(matches!(request.operation, Some(Operation::List(list)) if list.after == "b" && list.limit == 2));
    let mut answer = agent.answer(&request.transfer_id);
    answer.part(Part::List(FileList { files: vec![entry("c", 1)], more: false })).await;
    answer.part(Part::Done(FileDone {})).await;
    let page = asked.await.unwrap().unwrap().into_inner();
    assert_eq!((page.files[0].name.as_str(), page.next_page_token.as_str()), ("c", ""));

    let mut client = service.client();
    let nothing = ListNodeFilesRequest { name_prefix: "none".into(), ..list.clone() };
    let asked = kiln_telemetry::spawn(async move { client.list_node_files(call(nothing)).await });
    let request = agent.file_request().await;
    agent.answer(&request.transfer_id).part(Part::Done(FileDone {})).await;
    assert!(asked.await.unwrap().unwrap().into_inner().files.is_empty());
    let long = ListNodeFilesRequest { name_prefix: "x".repeat(5000), ..list };
    let error = Error::from(service.client().list_node_files(call(long)).await.unwrap_err());
    assert_eq!(error.kind(), Kind::InvalidArgument);

    let mut client = service.client();
    let get = GetNodeFileRequest { pool_id: "p".into(), node_id: "p-1".into(), path: "f".into() };
    let asked = kiln_telemetry::spawn(async move { client.get_node_file(call(get)).await });
    let request = agent.file_request().await;
    assert!(matches!(request.operation, Some(Operation::Stat(_))));
    let mut answer = agent.answer(&request.transfer_id);
    answer.part(Part::File(entry("f", 5))).await;
    assert_eq!(asked.await.unwrap().unwrap().into_inner().file.unwrap().content_length, 5);

    let mut client = service.client();
    let remove = DeleteNodeFileRequest {
        pool_id: "p".into(),
        node_id: "p-1".into(),
        path: "d".into(),
        recursive: true,
        ..DeleteNodeFileRequest::default()
    };
    let asked = kiln_telemetry::spawn(async move { client.delete_node_file(call(remove)).await });
    let request = agent.file_request().await;
    assert!(matches!(request.operation, Some(Operation::Remove(remove)) if remove.recursive));
    let mut answer = agent.answer(&request.transfer_id);
    answer.part(Part::Done(FileDone {})).await;
    asked.await.unwrap().unwrap();
    service.stop().await;
}

#[tokio::test]
async fn paths_that_lead_out_and_nodes_that_cannot_be_reached_are_refused() {
    let service = Service::start().await;
    service.create("p", 1).await;
    service.wait_steady("p").await;
    let reason = |path: &'static str| {
        let mut client = service.client();
        async move { Error::from(client.read_node_file(call(read(path))).await.map(drop).unwrap_err()) }
    };
    for path in ["../x", "/etc/passwd", "a/../../x", ""] {
        assert_eq!(reason(path).await.kind(), Kind::InvalidArgument, "{path}");
    }
    let error = reason("x").await;
    assert_eq!((error.kind(), error.reason()), (Kind::FailedPrecondition, "NodeBeingCreated"));
    let agent = Agent::join(&service, "p", "p-1", "first").await;
    agent.report(AgentPhase::Ready, 0).await;
    service.wait_node("p", "p-1", NodeState::Idle).await;
    drop(agent);
    eventually("the stream's end is noticed", || async {
        let error = reason("x").await;
        (error.reason() == "OperationNotValidOnNode").then_some(())
    })
    .await;
    let stranger = ReadNodeFileRequest { node_id: "p-7".into(), ..read("x") };
    let error = service.client().read_node_file(call(stranger)).await.map(drop).unwrap_err();
    assert_eq!(Error::from(error).reason(), "NodeNotFound");
    service.stop().await;
}
