//! The shape of a cluster on one machine: replicas of the services over PostgreSQL and RabbitMQ, and what their deaths and
//! restarts mean to those who work with them.
#![allow(clippy::unwrap_used)]

use std::process::Stdio;
use std::time::Duration;

use kiln_e2e::cluster::Cluster;
use kiln_e2e::marks::Marks;
use kiln_e2e::work::{self, add_tasks, by_subject, job, pool, until_counts};
use kiln_e2e::{LONG, programs, until};
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};

const TASKS: usize = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_process_may_be_killed_while_tasks_run() {
    let cluster = Cluster::start().await;
    let workflow = cluster.kiln(&["run", "examples/top-words/workflow.yaml"]).await;
    assert!(programs::text(&workflow).contains("6 of 6 tasks succeeded"), "{}", programs::text(&workflow));

    let client = cluster.client();
    let marks = Marks::new(cluster.dir());
    pool(&client, "p", 2, 2).await;
    job(&client, "j", "p", &[marks.environment()]).await;
    add_tasks(&client, "j", (0..TASKS).map(|n| Marks::task(&format!("t{n}"), "0.1")).collect()).await;
    for process in cluster.processes() {
        cluster.replace(&process.name, Signal::SIGKILL).await;
    }
    let counts = until_counts(&client, "j", LONG, |counts| counts.completed == TASKS as i64).await;
    assert_eq!(counts.succeeded, TASKS as i64, "{counts:?}");
    let tries = marks.read();
    assert_eq!(tries.len(), TASKS);
    // A try that was given up ends early; another one may follow, but never beside it.
    let wrong: Vec<_> = tries.iter().filter(|(_, tries)| tries.ends != 1 || tries.overlaps != 0).collect();
    assert!(wrong.is_empty(), "{wrong:?}");

    let finished = until("every completion is in the event log", Duration::from_secs(60), async || {
        let events = work::events(&client, "jobs/j/tasks/", "job.task.finished").await;
        (events.len() >= TASKS).then_some(events)
    })
    .await;
    assert_eq!((finished.len(), by_subject(&finished).len()), (TASKS, TASKS), "each completion is recorded once");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_is_hidden_by_the_usual_retries_of_the_sdk() {
    let cluster = Cluster::start().await;
    pool(&cluster.client(), "p", 2, 2).await;
    let over = cluster.dir().join("over");
    let mut client = cluster
        .command(&programs::python("today"))
        .arg("tests/e2e/clients/rolling_today.py")
        .arg(&over)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("begun"));
    for process in cluster.processes() {
        cluster.replace(&process.name, Signal::SIGTERM).await;
        assert_eq!(client.try_wait().unwrap(), None, "{} was restarted, and the client failed", process.name);
    }
    std::fs::write(&over, "").unwrap();
    let status = tokio::time::timeout(LONG, client.wait()).await.expect("the client ends").unwrap();
    assert!(status.success(), "the client ended with {status}");
    let tasks: usize = std::fs::read_to_string(&over).unwrap().parse().unwrap();
    println!("{tasks} tasks were submitted meanwhile");
    assert!(tasks > 0);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_end_with_their_supervisor_and_nodes_wait_for_the_next() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    pool(&client, "p", 2, 1).await;
    job(&client, "j", "p", &[]).await;
    let agents = kiln_e2e::server::agents_below(cluster.dir());
    let before = cluster.processes();
    cluster.kill_9().await;
    until("the services have ended", LONG, async || {
        let left =
            |pid: nix::unistd::Pid| kiln_e2e::server::processes_of(cluster.dir()).iter().any(|(one, _)| *one == pid);
        before.iter().all(|process| !left(process.pid.unwrap())).then_some(())
    })
    .await;
    assert_eq!(kiln_e2e::server::agents_below(cluster.dir()), agents, "agents go on");
    cluster.restart().await;
    let task = work::run_task(&client, "j", work::shell_task("t", "true")).await;
    assert_eq!(task.state(), kiln_proto::job::v1::TaskState::Completed);
    assert_eq!(kiln_e2e::server::agents_below(cluster.dir()), agents, "they are the same");
    cluster.stop().await;
}
