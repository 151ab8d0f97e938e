//! What the token of a task opens, and what not.

use http::Method;
use kiln_auth::token::{self, Claims, Principal};
use kiln_error::{Error, Kind};
use kiln_proto::gateway::v1::account_service_client::AccountServiceClient;
use kiln_proto::gateway::v1::task_file_service_client::TaskFileServiceClient;
use kiln_proto::gateway::v1::{GetAccountRequest, GetTaskFileRequest};
use kiln_proto::job::v1::job_service_client::JobServiceClient;
use kiln_proto::job::v1::*;
use kiln_proto::pool::v1::ListPoolsRequest;
use kiln_proto::pool::v1::pool_service_client::PoolServiceClient;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use crate::harness::{ACCOUNT, Answer, Harness, VERSION};

const CREATED: i64 = 1_769_860_800_000_000;

/// A gateway with the jobs `j1` and `j2`.
async fn start() -> Harness {
    let gateway = Harness::start().await;
    for id in ["j1", "j2"] {
        add_job(&gateway, id, CREATED);
    }
    gateway
}

fn add_job(gateway: &Harness, id: &str, created_micros: i64) {
    let creation_time = Some(kiln_proto::time::timestamp(created_micros));
    let job = Job { id: id.into(), creation_time, spec: Some(JobSpec::default()), ..Job::default() };
    gateway.state.jobs.lock().unwrap().insert(id.into(), job);
}

fn job_token(gateway: &Harness, job: &str) -> String {
    let principal = Principal::Job { account: ACCOUNT.into(), job: job.into(), created_micros: CREATED };
    let claims = Claims { principal, expires: kiln_grpc::caller::now_seconds() + 60 };
    format!("Bearer {}", token::mint(&gateway.cluster_key, &claims))
}

async fn rest(gateway: &Harness, authorization: &str, method: &str, path: &str, body: &str) -> Answer {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    gateway.send(method, path, body, &[("authorization", authorization)]).await
}

fn refused(answer: &Answer) -> bool {
    // HEAD has no body; nothing else answers 403 to a good token.
    answer.status == 403
}

#[tokio::test]
async fn every_route_is_open_to_the_tasks_of_its_job_or_to_accounts_only() {
    let gateway = start().await;
    let (own, other) = (job_token(&gateway, "J1"), job_token(&gateway, "j2"));
    let account = crate::grpc::bearer(&gateway);
    let mut open = 0;
    for (method, pattern) in gateway::rest::router::routes() {
        let mut names = ["j1", "t1", "x"].into_iter();
        let segments = pattern.split('/').map(|segment| match segment {
            "*" | "**" => names.next().unwrap(),
            fixed => fixed,
        });
        let path = format!("/{}?{VERSION}", segments.collect::<Vec<_>>().join("/"));
        let of_job = pattern.starts_with("jobs/*");
        open += usize::from(of_job);
        for (who, token, expected) in [("own", &own, of_job), ("other", &other, false), ("account", &account, true)] {
            add_job(&gateway, "j1", CREATED);
            let answer = rest(&gateway, token, method, &path, "{}").await;
            assert_eq!(!refused(&answer), expected, "{who}: {method} {path}: {:?}", answer.body);
        }
    }
    assert_eq!(open, 22, "a new route below jobs/* is open to tasks: is that meant?");
    let denied = rest(&gateway, &other, "GET", &format!("/jobs/j1?{VERSION}"), "").await;
    assert_eq!(denied.error(), (403, "InsufficientAccountPermissions".into()));
    let text = denied.json()["message"]["value"].as_str().unwrap().to_owned();
    assert!(text.contains("token of a task, for operations of its own job (j2)"), "{text}");
}

#[tokio::test]
async fn a_task_adds_tasks_to_its_job_over_rest() {
    let gateway = start().await;
    let own = job_token(&gateway, "j1");
    let body = json!({"value": [{"id": "a", "commandLine": "true"}]}).to_string();
    let answer = rest(&gateway, &own, "POST", &format!("/jobs/j1/addtaskcollection?{VERSION}"), &body).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["value"][0]["status"]), (200, &json!("success")));
    assert!(gateway.state.tasks.lock().unwrap().contains_key("a"));
    assert!(gateway.state.accounts.lock().unwrap().iter().all(|account| account == ACCOUNT));
}

#[tokio::test]
async fn a_later_job_of_the_id_is_closed_to_the_token() {
    let gateway = start().await;
    let (own, path) = (job_token(&gateway, "j1"), format!("/jobs/j1?{VERSION}"));
    assert_eq!(rest(&gateway, &own, "GET", &path, "").await.status, 200);
    gateway.state.jobs.lock().unwrap().remove("j1");
    assert_eq!(rest(&gateway, &own, "GET", &path, "").await.error(), (404, "JobNotFound".into()));
    add_job(&gateway, "j1", CREATED + 1);
    assert_eq!(rest(&gateway, &own, "GET", &path, "").await.error(), (403, "AuthenticationFailed".into()));
    let error = get_job(&gateway, &own, "j1").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthenticated);
}

fn with_token<T>(message: T, authorization: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", authorization.parse().unwrap());
    request
}

fn jobs(gateway: &Harness) -> JobServiceClient<tonic::transport::Channel> {
    JobServiceClient::new(kiln_grpc::connect_lazy(&gateway.url).unwrap())
}

async fn get_job(gateway: &Harness, token: &str, id: &str) -> Result<Job, Error> {
    let message = GetJobRequest { id: id.into(), precondition: None };
    let answer = jobs(gateway).get_job(with_token(message, token)).await?;
    Ok(answer.into_inner().job.unwrap())
}

#[tokio::test]
async fn calls_of_grpc_are_limited_by_what_their_messages_name() {
    let gateway = start().await;
    let own = job_token(&gateway, "j1");
    assert_eq!(get_job(&gateway, &own, "j1").await.unwrap().id, "j1");
    let denied = |error: Error| assert_eq!(error.kind(), Kind::PermissionDenied, "{error}");
    denied(get_job(&gateway, &own, "j2").await.unwrap_err());
    denied(get_job(&gateway, &own, "").await.unwrap_err());
    denied(jobs(&gateway).list_jobs(with_token(ListJobsRequest::default(), &own)).await.unwrap_err().into());
    let mut creating = jobs(&gateway);
    let created = Box::pin(creating.create_job(with_token(CreateJobRequest::default(), &own))).await;
    denied(created.unwrap_err().into());

    let channel = kiln_grpc::connect_lazy(&gateway.url).unwrap();
    let mut files = TaskFileServiceClient::new(channel.clone());
    let file = |job: &str| GetTaskFileRequest { job_id: job.into(), task_id: "t1".into(), path: "stdout.txt".into() };
    assert!(files.get_task_file(with_token(file("j1"), &own)).await.is_ok());
    denied(files.get_task_file(with_token(file("j2"), &own)).await.unwrap_err().into());

    let mut pools = PoolServiceClient::new(channel.clone());
    denied(pools.list_pools(with_token(ListPoolsRequest::default(), &own)).await.unwrap_err().into());
    let mut accounts = AccountServiceClient::new(channel);
    denied(accounts.get_account(with_token(GetAccountRequest::default(), &own)).await.unwrap_err().into());
}

#[tokio::test]
async fn a_stream_of_tasks_ends_at_the_first_message_of_another_job() {
    let gateway = start().await;
    let own = job_token(&gateway, "j1");
    let message = |job: &str, sequence: u64, id: &str| AddTasksRequest {
        job_id: job.into(),
        sequence,
        tasks: vec![TaskSpec { id: id.into(), command_line: "x".into(), ..TaskSpec::default() }],
    };
    let (send, receive) = mpsc::channel(4);
    // The head of the answer comes before the first message.
    let request = with_token(ReceiverStream::new(receive), &own);
    let mut answers = jobs(&gateway).add_tasks(request).await.unwrap().into_inner();
    send.send(message("j1", 1, "a")).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().sequence, 1);
    send.send(message("", 2, "b")).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().sequence, 2);
    send.send(message("j2", 3, "c")).await.unwrap();
    let error = Error::from(answers.message().await.unwrap_err());
    assert_eq!((error.kind(), error.reason()), (Kind::PermissionDenied, "InsufficientAccountPermissions"));
    let added: Vec<String> = gateway.state.tasks.lock().unwrap().keys().cloned().collect();
    assert_eq!(added, ["a", "b"]);

    // A stream that never names its job is one of no job.
    let nameless = with_token(tokio_stream::iter([message("", 1, "d")]), &own);
    let outcome = match jobs(&gateway).add_tasks(nameless).await {
        Ok(answers) => answers.into_inner().message().await.map(|_| ()),
        Err(status) => Err(status),
    };
    assert_eq!(Error::from(outcome.unwrap_err()).kind(), Kind::PermissionDenied);
}
