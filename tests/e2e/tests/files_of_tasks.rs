//! Files that cannot come in or go out: the task fails with the documented code, and nothing lands where it should not.
#![allow(clippy::unwrap_used)]

use kiln_client::Client;
use kiln_e2e::LONG;
use kiln_e2e::programs::{command, kiln};
use kiln_e2e::rest::Blobs;
use kiln_e2e::server::{Server, find_files};
use kiln_e2e::work::{add_tasks, job, pool, run_task, shell_task};
use kiln_proto::common::v1::resource_file::Source;
use kiln_proto::common::v1::{ExecutionResult, OutputFile, ResourceFile};
use kiln_proto::job::v1::{Task, TaskSpec};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::ChildStdout;

const BLOCK_BLOB: (&str, &str) = ("x-ms-blob-type", "BlockBlob");

/// A server with a pool `p`, a job `j`, and a container `con` with the blob `b`.
async fn world() -> (Server, Client, Blobs) {
    let server = Server::start().await;
    let client = server.client();
    let blobs = Blobs::of(&server);
    assert_eq!(blobs.send("PUT", "con?restype=container", &[], b"").await.status, 201);
    assert_eq!(blobs.send("PUT", "con/b", &[BLOCK_BLOB], b"content").await.status, 201);
    pool(&client, "p", 1, 1).await;
    job(&client, "j", "p", &[]).await;
    (server, client, blobs)
}

fn with_input(id: &str, source: Source, file_path: &str) -> TaskSpec {
    let mut task = shell_task(id, "echo ran; cat b");
    task.resource_files.push(ResourceFile {
        source: Some(source),
        file_path: file_path.to_owned(),
        ..Default::default()
    });
    task
}

fn with_output(id: &str, pattern: &str, container_url: String) -> TaskSpec {
    let mut task = shell_task(id, "echo result > out.txt");
    task.output_files.push(OutputFile {
        file_pattern: pattern.to_owned(),
        path: format!("{id}/"),
        container_url,
        ..Default::default()
    });
    task
}

fn failure(task: &Task) -> &str {
    let execution = task.execution.as_ref().unwrap();
    execution.failure.as_ref().map_or("", |failure| failure.code.as_str())
}

#[tokio::test]
async fn files_that_cannot_come_in() {
    let (server, client, blobs) = world().await;
    let url = |path: &str, sas: String| blobs.url(&format!("{path}?{sas}"));
    let blob = |path: &str, sas: String| Source::HttpUrl(url(path, sas));
    let cases = [
        ("expired", blob("con/b", blobs.sas("con", "b", "r", -5)), "b", "BlobAccessDenied"),
        ("unreadable", blob("con/b", blobs.sas("con", "b", "w", 60)), "b", "BlobAccessDenied"),
        ("unsigned", Source::HttpUrl(blobs.url("con/b")), "b", "BlobAccessDenied"),
        ("missing", blob("con/none", blobs.sas("con", "none", "r", 60)), "b", "BlobNotFound"),
        (
            "missing-container",
            Source::StorageContainerUrl(url("none", blobs.sas("none", "", "rl", 60))),
            "",
            "ResourceContainerNotFound",
        ),
        (
            "unlistable",
            Source::StorageContainerUrl(url("con", blobs.sas("con", "", "r", 60))),
            "",
            "ResourceContainerAccessDenied",
        ),
        ("missing-auto", Source::AutoStorageContainerName("none".to_owned()), "", "ResourceContainerNotFound"),
    ];
    for (id, source, file_path, code) in cases {
        let task = run_task(&client, "j", with_input(id, source, file_path)).await;
        assert_eq!(failure(&task), code, "{id}: {:?}", task.execution);
        let execution = task.execution.unwrap();
        assert_eq!((execution.exit_code, execution.result()), (None, ExecutionResult::Failure), "{id} did not run");
    }
    // The same with everything right.
    let good = with_input("good", blob("con/b", blobs.sas("con", "b", "r", 60)), "b");
    assert_eq!(run_task(&client, "j", good).await.execution.unwrap().result(), ExecutionResult::Success);
    server.stop().await;
}

#[tokio::test]
async fn files_that_cannot_go_out() {
    let (server, client, blobs) = world().await;
    let container =
        |permissions: &str, minutes| blobs.url(&format!("con?{}", blobs.sas("con", "", permissions, minutes)));
    let none = blobs.url(&format!("none?{}", blobs.sas("none", "", "w", 60)));
    let cases = [
        ("expired", container("w", -5), "FileUploadAccessDenied"),
        ("unwritable", container("r", 60), "FileUploadAccessDenied"),
        ("missing", none, "FileUploadContainerNotFound"),
    ];
    for (id, url, code) in cases {
        let task = run_task(&client, "j", with_output(id, "*.txt", url)).await;
        assert_eq!(failure(&task), code, "{id}: {:?}", task.execution);
        assert_eq!(task.execution.unwrap().result(), ExecutionResult::Failure, "{id}");
    }
    let good = run_task(&client, "j", with_output("good", "*.txt", container("w", 60))).await;
    assert_eq!(good.execution.unwrap().result(), ExecutionResult::Success);
    assert_eq!(blobs.send("GET", "con/good/out.txt", &[], b"").await.text(), "result\n");
    server.stop().await;
}

#[tokio::test]
async fn patterns_and_names_that_lead_out_of_the_node() {
    let (server, client, blobs) = world().await;
    let container = || blobs.url(&format!("con?{}", blobs.sas("con", "", "rwl", 60)));
    for (id, pattern) in [("up", "../../../../../*.json"), ("deep", "../../../../../**"), ("absolute", "/etc/host*")] {
        let request = with_output(id, pattern, container());
        let messages = kiln_proto::job::v1::AddTaskRequest {
            request_id: kiln_e2e::work::request_id(),
            job_id: "j".to_owned(),
            task: Some(request.clone()),
        };
        // Refused at once, or run without taking anything from outside.
        if client.jobs().add_task(messages).await.is_ok() {
            kiln_e2e::until("the task completes", kiln_e2e::LONG, async || {
                let task = kiln_e2e::work::task(&client, "j", id).await;
                (task.state() == kiln_proto::job::v1::TaskState::Completed).then_some(())
            })
            .await;
        }
        let list = kiln_proto::storage::v1::ListBlobsRequest { container: "con".to_owned(), ..Default::default() };
        let names: Vec<_> = client
            .storage()
            .list_blobs(list)
            .await
            .unwrap()
            .into_inner()
            .blobs
            .into_iter()
            .map(|blob| blob.name)
            .collect();
        let leaked: Vec<_> = names.iter().filter(|name| name.contains("join") || name.contains("host")).collect();
        assert!(leaked.is_empty(), "{pattern}: {leaked:?}");
    }
    // A blob may be called like a way out; it must not become one.
    let put = blobs.send("PUT", "con/..%2F..%2F..%2F..%2F..%2F..%2Fescaped.txt", &[BLOCK_BLOB], b"x").await;
    if put.status == 201 {
        let source = Source::StorageContainerUrl(container());
        let task = run_task(&client, "j", with_input("way-out", source, "")).await;
        assert_eq!(failure(&task), "ResourceFileCreateFailed", "{:?}", task.execution);
    }
    for escaped in find_files(server.dir(), "escaped.txt") {
        assert!(escaped.components().any(|part| part.as_os_str() == "way-out"), "{}", escaped.display());
    }
    server.stop().await;
}

#[tokio::test]
async fn what_a_task_writes_is_followed_while_it_runs() {
    let (server, client, _) = world().await;
    let go = server.dir().join("go");
    let script = format!("echo one; until [ -e {} ]; do sleep 0.02; done; echo two", go.display());
    // Who follows may come before the task has a node.
    job(&client, "follow", "p", &[]).await;
    let blocker = shell_task("blocker", &script);
    add_tasks(&client, "follow", vec![blocker, shell_task("behind", "echo three")]).await;
    let logs = |task: &str| {
        let mut child = command(&kiln())
            .args(["logs", "follow", task, "-f"])
            .envs(server.variables())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines)
    };
    let (mut first, mut lines) = logs("blocker");
    let (mut second, mut lines_behind) = logs("behind");
    let next = async |lines: &mut Lines<BufReader<ChildStdout>>| {
        tokio::time::timeout(LONG, lines.next_line()).await.expect("a line comes").unwrap()
    };
    // It has not ended, and cannot before this line was seen.
    assert_eq!(next(&mut lines).await.as_deref(), Some("one"));
    std::fs::write(&go, "").unwrap();
    assert_eq!(next(&mut lines).await.as_deref(), Some("two"));
    assert_eq!(next(&mut lines).await, None);
    assert_eq!(next(&mut lines_behind).await.as_deref(), Some("three"));
    assert_eq!(next(&mut lines_behind).await, None);
    assert!(first.wait().await.unwrap().success() && second.wait().await.unwrap().success());
    server.stop().await;
}
