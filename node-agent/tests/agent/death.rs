//! The agent as a process of its own that dies.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use kiln_proto::job::v1::{TaskConstraints, TaskSpec, work_up};
use kiln_testkit::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncBufReadExt;
use tokio::process::{Child, Command};

use crate::service::{World, is_running, line_of, task};

fn start_agent(world: &World) -> Child {
    start_agent_with(world, &[])
}

/// As a process of its own, with more environment.
pub fn start_agent_with(world: &World, environment: &[(&str, &Path)]) -> Child {
    std::fs::create_dir_all(&world.join.node_dir).unwrap();
    let join = world.join.node_dir.join(kiln_node::JOIN_FILE);
    std::fs::write(&join, serde_json::to_vec(&world.join).unwrap()).unwrap();
    Command::new(env!("CARGO_BIN_EXE_node-agent"))
        .arg("--join")
        .arg(join)
        .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

pub fn signal(agent: &Child, signal: Signal) {
    kill(Pid::from_raw(agent.id().unwrap() as i32), signal).unwrap();
}

/// Starts three kinds of processes; gives their ids.
async fn start_tasks(world: &World) -> Vec<String> {
    world.assign(task("plain", "/bin/sh -c 'echo $$ > ../pid; sleep 1000; sleep 1000'"));
    world.assign(task(
        "escaped",
        "/bin/sh -c 'setsid sh -c \"echo \\$\\$ > ../pid; sleep 1000; sleep 1000\" & sleep 1000; sleep 1000'",
    ));
    world.assign(task("cleared", "env -i /bin/sh -c 'echo $$ > ../pid; sleep 1000; sleep 1000'"));
    let mut pids = Vec::new();
    for id in ["plain", "escaped", "cleared"] {
        pids.push(line_of(world.task_dir(id).join("pid")).await);
    }
    pids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_die_with_an_agent_that_is_killed() {
    let world = World::services(Default::default()).await;
    let mut agent = start_agent(&world);
    world.connected().await;
    let pids = start_tasks(&world).await;
    assert!(pids.iter().all(|pid| is_running(pid)));
    signal(&agent, Signal::SIGKILL);
    agent.wait().await.unwrap();
    for pid in &pids {
        eventually(&format!("the end of {pid}"), || async { (!is_running(pid)).then_some(()) }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_of_an_agent_that_stands_still_die_with_its_lease() {
    let world = World::services(Default::default()).await;
    *world.log.lease.lock().unwrap() = Duration::from_secs(3);
    let agent = start_agent(&world);
    world.connected().await;
    let pids = start_tasks(&world).await;
    signal(&agent, Signal::SIGSTOP);
    for pid in &pids {
        eventually(&format!("the end of {pid}"), || async { (!is_running(pid)).then_some(()) }).await;
    }
    signal(&agent, Signal::SIGCONT);
    let ended = world.log.result("plain").await;
    assert_eq!(ended.cause(), kiln_proto::job::v1::EndCause::AgentFailure, "not a failure of the task: {ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_that_was_killed_is_replaced() {
    let world = World::services(Default::default()).await;
    let mut agent = start_agent(&world);
    world.connected().await;
    let pids = start_tasks(&world).await;
    let id = agent.id().unwrap().to_string();
    let guard = || {
        let table = node_agent::process::table::scan();
        table.into_iter().filter(|process| process.parent.to_string() == id).map(|process| process.pid).find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("--guard"))
        })
    };
    let first = guard().unwrap();
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    eventually("another guard", || async { guard().filter(|pid| *pid != first) }).await;
    let mut lines = tokio::io::BufReader::new(agent.stderr.take().unwrap()).lines();
    while !lines.next_line().await.unwrap().unwrap().contains("was replaced") {}
    signal(&agent, Signal::SIGKILL);
    agent.wait().await.unwrap();
    for pid in &pids {
        eventually(&format!("the end of {pid}"), || async { (!is_running(pid)).then_some(()) }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_agent_kills_what_is_left_and_takes_over() {
    let world = World::services(Default::default()).await;
    // As if agent and guard had both been killed.
    let mut left = Command::new("sleep")
        .arg("1000")
        .env("AZ_BATCH_NODE_ROOT_DIR", world.join.root_dir())
        .env("KILN_ATTEMPT_ID", "old/j/t/1")
        .spawn()
        .unwrap();
    let mut agent = start_agent(&world);
    left.wait().await.unwrap();
    world.connected().await;
    // A second agent of the same node says why it ends.
    let second = start_agent(&world).wait_with_output().await.unwrap();
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(text.contains("already runs"), "{text}");
    let pids = start_tasks(&world).await;
    signal(&agent, Signal::SIGTERM);
    assert!(agent.wait().await.unwrap().success());
    for pid in &pids {
        assert!(!is_running(pid), "{pid}");
    }
    assert!(matches!(world.log.work.lock().unwrap().last(), Some(work_up::Message::Goodbye(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_agent_knows_how_long_directories_stay() {
    let world = World::services(Default::default()).await;
    let mut agent = start_agent(&world);
    world.connected().await;
    let short = TaskConstraints {
        retention_time: Some(kiln_proto::time::duration(Duration::from_millis(1))),
        ..TaskConstraints::default()
    };
    world.run(TaskSpec { constraints: Some(short), ..task("short", "true") }).await;
    world.run(task("usual", "true")).await;
    signal(&agent, Signal::SIGTERM);
    assert!(agent.wait().await.unwrap().success());
    assert!(world.task_dir("short").exists());
    // The next life looks at what is there when it begins.
    let _agent = start_agent(&world);
    eventually("the short one is gone", || async { (!world.task_dir("short").exists()).then_some(()) }).await;
    assert!(world.task_dir("usual").exists());
}
