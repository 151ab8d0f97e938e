//! What the `kiln` program refuses, and that it says where.
#![allow(clippy::unwrap_used)]

use kiln_e2e::inventory::inventory;
use kiln_e2e::programs::{self, command, run_kiln, text};
use kiln_e2e::server::Server;

/// Workflow files that are wrong, and words the message must have.
const FILES: [(&str, &[&str]); 6] = [
    ("tasks: [", &["w.yaml"]),
    ("tasks:\n  - id: a\n    command: true\n   id: b\n", &["w.yaml", "4"]),
    ("tasks:\n  - id: a\n    comand: \"true\"\n", &["w.yaml", "3", "comand"]),
    ("tasks:\n  - id: a\n    command: \"true\"\n    resources: [nothing]\n", &["w.yaml", "4", "nothing"]),
    ("inputs:\n  x:\n    files: no/such/*.txt\ntasks:\n  - {id: a, command: \"true\"}\n", &["w.yaml", "3", "no/such"]),
    ("pool:\n  nodes: many\ntasks:\n  - {id: a, command: \"true\"}\n", &["w.yaml", "2", "nodes"]),
];

#[tokio::test]
async fn workflow_files_that_are_wrong_start_nothing() {
    let server = Server::start().await;
    let before = inventory(&server.client()).await;
    let file = server.dir().join("w.yaml");
    for (content, words) in FILES {
        std::fs::write(&file, content).unwrap();
        let output = run_kiln(&server, &["run", file.to_str().unwrap()]).await;
        assert_eq!(output.status.code(), Some(2), "{content}\n{}", text(&output));
        for word in words {
            assert!(text(&output).contains(word), "no {word:?} for\n{content}\n{}", text(&output));
        }
    }
    assert_eq!(inventory(&server.client()).await, before);
    server.stop().await;
}

#[tokio::test]
async fn a_workflow_whose_task_fails_ends_with_one_and_leaves_nothing() {
    let server = Server::start().await;
    let before = inventory(&server.client()).await;
    let file = server.dir().join("w.yaml");
    std::fs::write(&file, "tasks:\n  - {id: good, command: \"true\"}\n  - {id: bad, command: \"exit 3\"}\n").unwrap();
    let output = run_kiln(&server, &["run", file.to_str().unwrap()]).await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("bad"), "{}", text(&output));
    assert_eq!(inventory(&server.client()).await, before);
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_key_and_an_unreachable_server_are_said() {
    let server = Server::start().await;
    let kiln = |endpoint: &str, key: &str| {
        command(&programs::kiln())
            .args(["job", "list"])
            .envs(server.variables())
            .env("KILN_ENDPOINT", endpoint)
            .env("AZURE_BATCH_ACCESS_KEY", key)
            .env("KILN_ACCOUNT_KEY", key)
            .output()
    };
    let endpoint = server.variable("KILN_ENDPOINT");
    let wrong = kiln(endpoint, &kiln_auth::SecretKey::generate().to_base64()).await.unwrap();
    assert!(!wrong.status.success());
    assert!(text(&wrong).contains("AuthenticationFailed"), "{}", text(&wrong));
    let nobody = kiln("http://127.0.0.1:9", server.variable("AZURE_BATCH_ACCESS_KEY")).await.unwrap();
    assert!(!nobody.status.success());
    assert!(text(&nobody).contains("127.0.0.1:9"), "{}", text(&nobody));
    server.stop().await;
}
