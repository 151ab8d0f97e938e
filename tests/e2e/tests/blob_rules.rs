//! Leases, copies, conditions and service properties with the blob SDK of today. The cases are in
//! `clients/blob_rules_today.py`.
#![allow(clippy::unwrap_used)]

use kiln_e2e::programs::{python, run_client, text};
use kiln_e2e::server::Server;

async fn passes(case: &str) {
    let server = Server::start().await;
    let output = run_client(&server, &python("today"), &["tests/e2e/clients/blob_rules_today.py", case]).await;
    assert!(output.status.success() && text(&output).contains("as it should be"), "{}", text(&output));
    server.stop().await;
}

#[tokio::test]
async fn leases() {
    passes("leases").await;
}

#[tokio::test]
async fn copies() {
    passes("copies").await;
}

#[tokio::test]
async fn conditions() {
    passes("conditions").await;
}

#[tokio::test]
async fn service_properties() {
    passes("properties").await;
}
