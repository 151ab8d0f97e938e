//! The services as processes of their own with TLS between them, to their users and to their agents.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, SystemTime};

use kiln_e2e::processes::{Deployment, Options};
use kiln_e2e::work::{job, pool, request_id, run_task, shell_task};
use kiln_e2e::{programs, until};
use kiln_error::{Error, Kind};
use kiln_grpc::{ServiceAuth, with_account};
use kiln_proto::common::v1::{ExecutionResult, ResourceFile, resource_file::Source};
use kiln_proto::pool::v1::ListPoolsRequest;
use kiln_proto::pool::v1::pool_service_client::PoolServiceClient;
use kiln_proto::storage::v1::{CreateContainerRequest, UploadHeader, UploadRequest, upload_request::Part};
use kiln_tls::authority::{Authority, Issued, Kind as For, Request};
use kiln_tls::{ClientTls, Files};

const POOL_SVC: u16 = 7462;
const DAY: Duration = Duration::from_secs(86_400);

/// A call that is between services, as the service `e2e` with what it shows in `tls`.
async fn call_pool_svc(deployment: &Deployment, tls: ClientTls) -> Result<(), Error> {
    let auth = ServiceAuth::new("e2e", deployment.cluster_key()).with_tls(Some(tls));
    let channel = auth.connect_to(&deployment.url(POOL_SVC), "pool-svc")?;
    PoolServiceClient::new(channel).list_pools(with_account(ListPoolsRequest::default(), "alpha")?).await?;
    Ok(())
}

fn showing(deployment: &Deployment, own: Option<&Files>) -> ClientTls {
    let authority = std::fs::read_to_string(deployment.certificate("ca.crt").unwrap()).unwrap();
    ClientTls::with_authority(&authority, own).unwrap()
}

fn written(deployment: &Deployment, name: &str, issued: &Issued) -> Files {
    let file = |ending: &str| deployment.dir().join(format!("{name}.{ending}"));
    let files = Files { certificate: file("crt"), key: file("key"), authority: None };
    std::fs::write(&files.certificate, &issued.certificate).unwrap();
    std::fs::write(&files.key, &issued.key).unwrap();
    files
}

async fn refusals(deployment: &Deployment) {
    call_pool_svc(deployment, showing(deployment, Some(&deployment.files("e2e")))).await.unwrap();
    let without = call_pool_svc(deployment, showing(deployment, None)).await.unwrap_err();
    assert_eq!(without.kind(), Kind::PermissionDenied, "{without}");
    assert!(without.to_string().contains("this connection has shown no certificate"), "{without}");

    deployment.certs(&["issue", "node"]).await;
    let node = call_pool_svc(deployment, showing(deployment, Some(&deployment.files("node")))).await.unwrap_err();
    assert!(node.to_string().contains("a certificate of kiln://node"), "{node}");

    let request = Request { kind: For::Service, name: "e2e".to_owned(), hosts: Vec::new() };
    let other = Authority::create("other", DAY).unwrap().issue(&request, DAY).unwrap();
    let other = showing(deployment, Some(&written(deployment, "other", &other)));
    let other = call_pool_svc(deployment, other).await.unwrap_err();
    assert!(other.to_string().contains("does not trust the authority that issued our certificate"), "{other}");

    // It expires while it is in use: before that it could not be loaded.
    let read = |name: &str| std::fs::read_to_string(deployment.certificate(name).unwrap()).unwrap();
    let authority = Authority::load(&read("ca.crt"), &read("ca.key")).unwrap();
    let now = SystemTime::now();
    let expiring = authority.issue_between(&request, now - DAY, now + Duration::from_secs(3)).unwrap();
    let expiring = showing(deployment, Some(&written(deployment, "expiring", &expiring)));
    let expired = until("the certificate has expired", Duration::from_secs(60), async || {
        call_pool_svc(deployment, expiring.clone()).await.err()
    })
    .await;
    assert!(expired.to_string().contains("it says that our certificate has expired"), "{expired}");
}

/// The time at which the certificate that pool-svc shows expires, as its metrics have it.
async fn expires_in(deployment: &Deployment) -> i64 {
    let url = format!("https://pool-svc:{POOL_SVC}/metrics");
    let text = deployment.http().get(url).send().await.unwrap().text().await.unwrap();
    let line = text.lines().find(|line| line.starts_with("kiln_certificate_expires_in_seconds")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn services_with_tls_do_the_same_work_and_let_nobody_else_in() {
    let deployment =
        Deployment::start_with(&Deployment::free_host(), Options { tls: true, ..Options::default() }).await;
    let client = deployment.client();

    // The agent knows the services by the authority it was given, and fetches over TLS with its token.
    let container = CreateContainerRequest { request_id: request_id(), name: "input".to_owned(), ..Default::default() };
    client.storage().create_container(container).await.unwrap();
    let header = UploadHeader { container: "input".to_owned(), name: "b".to_owned(), ..Default::default() };
    let parts = [Part::Header(header), Part::Data(b"over tls\n".to_vec().into())];
    let parts = parts.map(|part| UploadRequest { part: Some(part) });
    client.storage().upload(tokio_stream::iter(parts)).await.unwrap();
    pool(&client, "p", 1, 2).await;
    job(&client, "j", "p", &[]).await;
    let mut task = shell_task("t1", "grep -q tls b");
    let source = Some(Source::AutoStorageContainerName("input".to_owned()));
    task.resource_files.push(ResourceFile { source, ..Default::default() });
    let done = run_task(&client, "j", task).await;
    assert_eq!(done.execution.as_ref().unwrap().result(), ExecutionResult::Success, "{:?}", done.execution);

    refusals(&deployment).await;

    // Everything new, without a restart.
    let before = expires_in(&deployment).await;
    deployment.certs(&["renew", "--days", "700"]).await;
    until("pool-svc shows the new certificate", Duration::from_secs(60), async || {
        (expires_in(&deployment).await > before + 300 * 86_400).then_some(())
    })
    .await;
    // New connections of everybody, also of a new agent.
    let again = deployment.client();
    pool(&again, "p2", 1, 1).await;
    job(&again, "j2", "p2", &[]).await;
    let done = run_task(&again, "j2", shell_task("t", "true")).await;
    assert_eq!(done.execution.as_ref().unwrap().result(), ExecutionResult::Success, "{:?}", done.execution);

    // The program, with and without the authority.
    let endpoint = deployment.url(7450);
    let list = |trusting: bool| {
        let mut command = programs::command(&programs::kiln());
        command.args(["pool", "list", "--endpoint", &endpoint, "--account", "alpha"]);
        command.env("KILN_ACCOUNT_KEY", deployment.account_key());
        if trusting {
            command.env("KILN_CA_FILE", deployment.certificate("ca.crt").unwrap());
        }
        async move { command.output().await.unwrap() }
    };
    let listed = list(true).await;
    assert!(listed.status.success(), "{}", programs::text(&listed));
    let refused = programs::text(&list(false).await);
    assert!(refused.contains("authority that is not trusted here") && refused.contains("--ca-file"), "{refused}");
    let shown = deployment.certs(&["show"]).await;
    assert!(shown.contains("kiln://service/pool-svc") && shown.contains("authority"), "{shown}");
    deployment.stop().await;
}
