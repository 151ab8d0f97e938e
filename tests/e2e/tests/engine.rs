//! The task engine through the SDKs of 2017 and of today: schedules, dependencies, preparation and release, instances,
//! pools made for a job, and job managers that work with the token of their task. The programs are in `clients/`.
#![allow(clippy::unwrap_used)]

use kiln_e2e::programs::{python, run_client, text};
use kiln_e2e::server::Server;

async fn case(environment: &str, case: &str) {
    let server = Server::start().await;
    let script = format!("tests/e2e/clients/engine_{environment}.py");
    let output = run_client(&server, &python(environment), &[&script, case]).await;
    assert!(output.status.success(), "{}\n{}", text(&output), server.log_tail());
    server.stop().await;
}

#[tokio::test]
async fn schedules_with_the_sdk_of_today() {
    case("today", "schedules").await;
}

#[tokio::test]
async fn schedules_with_the_sdk_of_2017() {
    case("2017", "schedules").await;
}

#[tokio::test]
async fn preparation_and_release_with_their_status() {
    case("today", "preparation").await;
}

#[tokio::test]
async fn dependencies_by_ids_and_ranges() {
    case("today", "dependencies").await;
}

#[tokio::test]
async fn a_task_of_three_instances() {
    case("today", "instances").await;
}

#[tokio::test]
async fn a_pool_made_for_a_job() {
    case("today", "autopool").await;
}

#[tokio::test]
async fn a_job_manager_with_the_sdk_of_today() {
    case("today", "manager").await;
}

#[tokio::test]
async fn a_job_manager_with_the_sdk_of_2017() {
    case("2017", "manager").await;
}
