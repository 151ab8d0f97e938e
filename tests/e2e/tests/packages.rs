//! Application packages: made with `kiln app`, used through every door.
#![allow(clippy::unwrap_used)]

use std::io::{Cursor, Write};
use std::path::PathBuf;

use kiln_e2e::programs::{python, run_client, run_kiln, text};
use kiln_e2e::server::Server;
use kiln_e2e::work::{job, nodes, request_id, run_task, shell_task};
use kiln_e2e::{LONG, until};
use kiln_proto::common::v1::ApplicationPackageReference;
use kiln_proto::job::v1::TaskSpec;
use kiln_proto::pool::v1::{
    CreatePoolRequest, NodeState, PoolSpec, ReadNodeFileRequest, RebootNodeRequest, read_node_file_response,
};
use nix::sys::signal::{Signal, kill};

/// A zip with a program that says `word`.
fn zip(server: &Server, word: &str) -> PathBuf {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    writer.start_file("bin/say", zip::write::SimpleFileOptions::default().unix_permissions(0o755)).unwrap();
    writer.write_all(format!("#!/bin/sh\necho {word}\n").as_bytes()).unwrap();
    let path = server.dir().join(format!("{word}.zip"));
    std::fs::write(&path, writer.finish().unwrap().into_inner()).unwrap();
    path
}

async fn kiln_ok(server: &Server, arguments: &[&str]) -> String {
    let output = run_kiln(server, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// "Tool" 1.0, the default, says one; 2.0 says two.
async fn make_tool(server: &Server) {
    kiln_ok(server, &["app", "create", "Tool", "--display-name", "For tests"]).await;
    let (one, two) = (zip(server, "one"), zip(server, "two"));
    kiln_ok(server, &["app", "upload", "tool", "1.0", one.to_str().unwrap(), "--default"]).await;
    kiln_ok(server, &["app", "upload", "tool", "2.0", two.to_str().unwrap()]).await;
}

fn reference(application: &str, version: &str) -> ApplicationPackageReference {
    ApplicationPackageReference { application_id: application.to_owned(), version: version.to_owned() }
}

async fn stdout(server: &Server, task: &str) -> String {
    kiln_ok(server, &["task", "cat", "j", task, "stdout.txt"]).await
}

async fn until_idle(server: &Server) -> String {
    until("a node is idle", LONG, async || {
        let found = nodes(&server.client(), "p").await;
        found.into_iter().find(|node| node.state() == NodeState::Idle).map(|node| node.id)
    })
    .await
}

#[tokio::test]
async fn packages_through_kiln_and_over_restarts() {
    let mut server = Server::start().await;
    make_tool(&server).await;
    let shown = kiln_ok(&server, &["app", "ls"]).await;
    assert!(shown.contains("Tool") && shown.contains("1.0, 2.0"), "{shown}");
    kiln_ok(&server, &["pool", "create", "p", "--package", "tool"]).await;
    let node = until_idle(&server).await;
    let client = server.client();
    job(&client, "j", "p", &[]).await;
    let say = "$AZ_BATCH_APP_PACKAGE_Tool/bin/say";
    run_task(&client, "j", shell_task("t1", say)).await;
    assert_eq!(stdout(&server, "t1").await, "one\n");

    // Another default: tasks that ask by default get it at once, the pool's nodes with their next life.
    kiln_ok(&server, &["app", "set", "tool", "--default-version", "2.0"]).await;
    let by_default = TaskSpec { application_packages: vec![reference("tool", "")], ..shell_task("t2", say) };
    run_task(&client, "j", by_default).await;
    run_task(&client, "j", shell_task("t3", say)).await;
    assert_eq!((stdout(&server, "t2").await, stdout(&server, "t3").await), ("two\n".to_owned(), "one\n".to_owned()));
    let reboot = RebootNodeRequest { pool_id: "p".into(), node_id: node.clone(), ..RebootNodeRequest::default() };
    client.pools().reboot_node(reboot).await.unwrap();
    until_idle(&server).await;
    run_task(&client, "j", shell_task("t4", say)).await;
    assert_eq!(stdout(&server, "t4").await, "two\n");

    // The server and the agents are killed: packages and references stay, and nothing is fetched again.
    let inode = |server: &Server| {
        let files = kiln_e2e::server::find_files(&server.data(), "say");
        let ids = files.into_iter().map(|file| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(file).unwrap()));
        ids.collect::<Vec<_>>()
    };
    let before = inode(&server);
    assert_eq!(before.len(), 2);
    let agents = server.agents();
    server.kill_9().await;
    for agent in agents.values() {
        kill(*agent, Signal::SIGKILL).unwrap();
    }
    server.restart().await;
    let client = server.client();
    until_idle(&server).await;
    run_task(&client, "j", shell_task("t5", say)).await;
    assert_eq!(stdout(&server, "t5").await, "two\n");
    assert_eq!(inode(&server), before);

    // Deleted while it is in use: what is there stays, whoever comes later fails.
    kiln_ok(&server, &["app", "rm", "tool", "2.0"]).await;
    run_task(&client, "j", shell_task("t6", say)).await;
    assert_eq!(stdout(&server, "t6").await, "two\n");
    let gone = TaskSpec { application_packages: vec![reference("tool", "")], ..shell_task("t7", say) };
    let failure = run_task(&client, "j", gone).await.execution.unwrap().failure.unwrap();
    assert_eq!(failure.code, "ApplicationPackageError");
    kiln_ok(&server, &["app", "rm", "tool", "--all"]).await;
    assert!(!kiln_ok(&server, &["app", "ls"]).await.contains("Tool"));
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn a_pool_whose_package_is_missing_has_unusable_nodes_that_say_so() {
    let server = Server::start().await;
    let client = server.client();
    let spec = PoolSpec {
        target_dedicated_nodes: 1,
        application_packages: vec![reference("nothing", "1")],
        ..PoolSpec::default()
    };
    let request = CreatePoolRequest { request_id: request_id(), id: "p".to_owned(), spec: Some(spec) };
    client.pools().create_pool(request).await.unwrap();
    let node = until("the node is unusable", LONG, async || {
        nodes(&client, "p").await.into_iter().find(|node| node.state() == NodeState::Unusable)
    })
    .await;
    let error = &node.errors[0];
    assert_eq!((error.code.as_str(), error.details[0].value.as_str()), ("ApplicationPackageError", "nothing:1"));

    // Somebody uploads it; the node is rebooted and works.
    let zip = zip(&server, "late");
    kiln_ok(&server, &["app", "upload", "nothing", "1", zip.to_str().unwrap()]).await;
    let reboot = RebootNodeRequest { pool_id: "p".into(), node_id: node.id, ..RebootNodeRequest::default() };
    client.pools().reboot_node(reboot).await.unwrap();
    let idle = until_idle(&server).await;
    let read = ReadNodeFileRequest {
        pool_id: "p".into(),
        node_id: idle,
        path: "applications/nothing/1/bin/say".into(),
        ..ReadNodeFileRequest::default()
    };
    let mut file = client.pools().read_node_file(read).await.unwrap().into_inner();
    let mut content = Vec::new();
    while let Some(message) = file.message().await.unwrap() {
        if let Some(read_node_file_response::Part::Data(data)) = message.part {
            content.extend_from_slice(&data);
        }
    }
    assert_eq!(content, b"#!/bin/sh\necho late\n");
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn a_workflow_names_packages() {
    let server = Server::start().await;
    make_tool(&server).await;
    let workflow = server.dir().join("w.yaml");
    let say = "$${AZ_BATCH_APP_PACKAGE_Tool}/bin/say; $${AZ_BATCH_APP_PACKAGE_Tool_2_0}/bin/say";
    let text = format!(
        "pool: {{packages: tool}}\ntasks:\n  - id: t\n    command: {say}\n    packages: [\"tool:2.0\"]\n    \
         outputs: [{{files: ../stdout.txt, to: out, path: said.txt}}]\noutputs:\n  out: {{fetch: results}}\n"
    );
    std::fs::write(&workflow, text).unwrap();
    kiln_ok(&server, &["run", workflow.to_str().unwrap()]).await;
    assert_eq!(std::fs::read_to_string(server.dir().join("results/said.txt")).unwrap(), "one\ntwo\n");
    server.stop().await;
}

async fn sdk(environment: &str) {
    let server = Server::start().await;
    make_tool(&server).await;
    let script = format!("tests/e2e/clients/packages_{environment}.py");
    let output = run_client(&server, &python(environment), &[&script]).await;
    assert!(output.status.success(), "{}\n{}", text(&output), server.log_tail());
    server.stop().await;
}

#[tokio::test]
async fn packages_with_the_sdk_of_today() {
    sdk("today").await;
}

#[tokio::test]
async fn packages_with_the_sdk_of_2017() {
    sdk("2017").await;
}
