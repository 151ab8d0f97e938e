//! Machines that become nodes of a pool by `kiln node join`.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiln_e2e::server::Server;
use kiln_e2e::work::{job, nodes, pool, run_task, shell_task};
use kiln_e2e::{LONG, programs, until};
use kiln_proto::common::v1::ExecutionResult;
use kiln_proto::pool::v1::NodeState;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;

/// What `kiln node token` gives.
async fn token(server: &Server, arguments: &[&str]) -> String {
    let mut command = vec!["node", "token", "--pool", "p", "--output", "json"];
    command.extend(arguments);
    let output = programs::run_kiln(server, &command).await;
    assert!(output.status.success(), "{}", programs::text(&output));
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    made["token"].as_str().unwrap().to_owned()
}

/// `kiln node join` as on a machine that knows nothing of the server but the token.
fn join(dir: &Path, token: &str, more: &[&str]) -> Child {
    let mut command = programs::command(&programs::kiln());
    command.args(["node", "join", "--dir"]).arg(dir).args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
    if !token.is_empty() {
        command.args(["--token", token]);
    }
    command.spawn().unwrap()
}

/// How a join that is refused ends, and what it says.
async fn refused(child: Child) -> String {
    let output = tokio::time::timeout(LONG, child.wait_with_output()).await.expect("it ends").unwrap();
    assert!(!output.status.success(), "{}", programs::text(&output));
    programs::text(&output)
}

async fn interrupt(child: Child) -> String {
    kill(Pid::from_raw(child.id().unwrap().cast_signed()), Signal::SIGTERM).unwrap();
    let output = tokio::time::timeout(LONG, child.wait_with_output()).await.expect("it ends").unwrap();
    assert!(output.status.success(), "{}", programs::text(&output));
    programs::text(&output)
}

async fn until_idle(server: &Server, count: usize) {
    until("the nodes are idle", LONG, async || {
        let found = nodes(&server.client(), "p").await;
        (found.len() == count && found.iter().all(|node| node.state() == NodeState::Idle)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn another_agent_joins_by_a_token_runs_a_task_and_leaves() {
    let server = Server::start().await;
    let client = server.client();
    pool(&client, "p", 0, 1).await;
    let secret = token(&server, &["--uses", "1"]).await;
    let dir = server.dir().join("machine");
    let machine = join(&dir, &secret, &[]);
    until_idle(&server, 1).await;

    job(&client, "j", "p", &[]).await;
    let done = run_task(&client, "j", shell_task("t", "test -d $AZ_BATCH_NODE_ROOT_DIR && pwd")).await;
    assert_eq!(done.execution.as_ref().unwrap().result(), ExecutionResult::Success, "{:?}", done.execution);
    let logs = programs::run_kiln(&server, &["logs", "j", "t"]).await;
    let printed = String::from_utf8_lossy(&logs.stdout).into_owned();
    assert!(printed.contains(dir.to_str().unwrap()), "it ran on the machine that joined: {printed}");

    // Used up: nobody else joins, and nothing is left of the try.
    let text = refused(join(&server.dir().join("other"), &secret, &[])).await;
    assert!(text.contains("JoinTokenUsedUp") && text.contains("kiln node token"), "{text}");
    assert_eq!(nodes(&client, "p").await.len(), 1);

    let text = interrupt(machine).await;
    assert!(text.contains("node p-1 has left"), "{text}");
    assert_eq!(nodes(&client, "p").await, [], "it has left when its program ends");
    assert!(!dir.exists());

    let early = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let short = token(&server, &["--valid", "1s"]).await;
    until("it has expired", Duration::from_secs(60), async || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        (now > early + Duration::from_secs(3)).then_some(())
    })
    .await;
    let text = refused(join(&dir, &short, &[])).await;
    assert!(text.contains("this join token has expired") || text.contains("JoinTokenExpired"), "{text}");
    let text = refused(join(&dir, "something", &[])).await;
    assert!(text.contains("--token is not what `kiln node token` prints"), "{text}");
    server.stop().await;
}

#[tokio::test]
async fn a_node_that_is_kept_comes_back_without_a_token() {
    let server = Server::start().await;
    let client = server.client();
    pool(&client, "p", 0, 1).await;
    let dir = server.dir().join("machine");
    let machine = join(&dir, &token(&server, &[]).await, &["--keep"]);
    until_idle(&server, 1).await;
    interrupt(machine).await;
    assert_eq!(nodes(&client, "p").await.len(), 1);
    let machine = join(&dir, "", &["--keep"]);
    job(&client, "j", "p", &[]).await;
    let done = run_task(&client, "j", shell_task("t", "true")).await;
    assert_eq!(done.execution.as_ref().unwrap().result(), ExecutionResult::Success, "{:?}", done.execution);
    interrupt(machine).await;
    // Without --keep it leaves at the end.
    let machine = join(&dir, "", &[]);
    until("the agent holds its lock", LONG, async || {
        let pid = std::fs::read_to_string(dir.join("agent.lock")).ok()?;
        Path::new("/proc").join(pid.trim()).exists().then_some(())
    })
    .await;
    interrupt(machine).await;
    assert_eq!(nodes(&client, "p").await, []);
    server.stop().await;
}
