//! What operators and their tools ask every service: life, readiness, metrics, health, reflection.
#![allow(clippy::unwrap_used)]

use kiln_e2e::server::Server;
use kiln_e2e::work::{add_tasks, job, pool, shell_task, until_counts};
use kiln_e2e::{LONG, work};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

/// Names and endpoints of the services behind `server`, from the deployment's own file.
fn services(server: &Server) -> Vec<(String, String)> {
    let text = std::fs::read(server.data().join("deployment.json")).unwrap();
    let deployment: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let ports = deployment["ports"].as_object().unwrap();
    let grpc = ports.iter().filter(|(name, _)| *name != "blob");
    grpc.map(|(name, port)| (name.clone(), format!("http://127.0.0.1:{port}"))).collect()
}

async fn get(url: String) -> (u16, String) {
    let answer = reqwest::get(url).await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn every_service_tells_that_it_lives_is_ready_and_counts() {
    let server = Server::start().await;
    let client = server.client();
    pool(&client, "p", 1, 2).await;
    job(&client, "j", "p", &[]).await;
    add_tasks(&client, "j", (0..10).map(|n| shell_task(&format!("t{n}"), "true")).collect()).await;
    until_counts(&client, "j", LONG, |counts| counts.completed == 10).await;
    assert_eq!(work::events(&client, "jobs/j", "job.job.created").await.len(), 1);
    let services = services(&server);
    assert_eq!(services.len(), 5, "{services:?}");
    for (name, endpoint) in services {
        for path in ["livez", "readyz"] {
            let (status, text) = get(format!("{endpoint}/{path}")).await;
            assert_eq!(status, 200, "{name} {path}: {text}");
        }
        let (status, metrics) = get(format!("{endpoint}/metrics")).await;
        let lines = metrics.lines().filter(|line| !line.starts_with('#')).count();
        println!("{name}: {lines} metrics");
        assert!(status == 200 && lines > 0, "{name}: {metrics}");
        assert!(metrics.contains("# HELP"), "{name}: metrics explain themselves");
    }
    server.stop().await;
}

#[tokio::test]
async fn every_service_answers_health_and_reflection() {
    let server = Server::start().await;
    for (name, endpoint) in services(&server) {
        let channel = tonic::transport::Endpoint::from_shared(endpoint).unwrap().connect().await.unwrap();
        let request = HealthCheckRequest { service: String::new() };
        let health = HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner();
        assert_eq!(health.status(), ServingStatus::Serving, "{name}");

        let list = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut reflection = ServerReflectionClient::new(channel);
        let mut answers = reflection.server_reflection_info(tokio_stream::iter([list])).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
        let MessageResponse::ListServicesResponse(list) = answer else { panic!("{name}: {answer:?}") };
        assert!(list.service.iter().any(|service| service.name.starts_with("kiln.")), "{name}: {list:?}");
    }
    server.stop().await;
}
