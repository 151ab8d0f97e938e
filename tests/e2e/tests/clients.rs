//! The main example through every door: `kiln run`, the SDKs of 2017 and of today, gRPC. Each client checks its results
//! against a second count and ends with an error if they differ; here it is checked that nothing stays behind.
#![allow(clippy::unwrap_used)]

use kiln_e2e::inventory::inventory;
use kiln_e2e::programs::{command, kiln, python, root, run_client, run_kiln, text, top_words};
use kiln_e2e::server::Server;

async fn runs_and_leaves_nothing(program: &std::path::Path, arguments: &[&str]) {
    runs_says_so_and_leaves_nothing(program, arguments, "6 results, 0 problems").await;
}

async fn runs_says_so_and_leaves_nothing(program: &std::path::Path, arguments: &[&str], says: &str) {
    let server = Server::start().await;
    let before = inventory(&server.client()).await;
    let output = run_client(&server, program, arguments).await;
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains(says), "{}", text(&output));
    assert_eq!(inventory(&server.client()).await, before);
    server.stop().await;
}

#[tokio::test]
async fn the_sdk_of_2017_runs_the_main_example() {
    runs_and_leaves_nothing(&python("2017"), &["examples/top-words/client_2017.py"]).await;
}

#[tokio::test]
async fn the_sdk_of_today_runs_the_main_example() {
    runs_and_leaves_nothing(&python("today"), &["examples/top-words/client_today.py"]).await;
}

#[tokio::test]
async fn the_sdk_of_today_finds_all_kinds_of_blobs() {
    runs_says_so_and_leaves_nothing(&python("today"), &["tests/e2e/clients/blobs_today.py"], "lists ok").await;
}

#[tokio::test]
async fn the_grpc_client_runs_the_main_example() {
    runs_and_leaves_nothing(&top_words(), &["examples/top-words"]).await;
}

#[tokio::test]
async fn kiln_run_runs_the_main_example_against_a_server() {
    let server = Server::start().await;
    let before = inventory(&server.client()).await;
    // A copy, so that the results do not land in the work tree.
    let example = server.dir().join("top-words");
    copy_example(&example);
    let output = run_kiln(&server, &["run", example.join("workflow.yaml").to_str().unwrap()]).await;
    assert!(output.status.success(), "{}", text(&output));
    let check = root().join("examples/top-words/check.py");
    let results = example.join("results");
    let check = run_client(&server, "python3".as_ref(), &[check.to_str().unwrap(), results.to_str().unwrap()]).await;
    assert!(check.status.success(), "{}", text(&check));
    assert_eq!(inventory(&server.client()).await, before);
    server.stop().await;
}

#[tokio::test]
async fn kiln_run_brings_its_own_server_and_takes_it_away() {
    let dir = tempfile::Builder::new().prefix("kiln-e2e-").tempdir().unwrap();
    let example = dir.path().join("top-words");
    copy_example(&example);
    let output = command(&kiln())
        .args(["run", "workflow.yaml", "--set", "top=3"])
        .current_dir(&example)
        .env("TMPDIR", dir.path())
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let results = std::fs::read_dir(example.join("results")).unwrap().count();
    assert_eq!(results, 6);
    let left = kiln_e2e::server::processes_of(dir.path());
    assert!(left.is_empty(), "left running: {left:?}");
    let entries: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(entries, ["top-words"], "left on disk");
}

fn copy_example(to: &std::path::Path) {
    let from = root().join("examples/top-words");
    std::fs::create_dir_all(to.join("data")).unwrap();
    for name in ["workflow.yaml", "top_words.py"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
    for entry in std::fs::read_dir(from.join("data")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join("data").join(path.file_name().unwrap())).unwrap();
    }
}
