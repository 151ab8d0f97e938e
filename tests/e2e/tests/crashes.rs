//! kill -9 of the server and of agents in the middle of work: nothing acknowledged is lost, nothing runs twice at once.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use kiln_e2e::marks::Marks;
use kiln_e2e::programs::{command, kiln, text};
use kiln_e2e::server::Server;
use kiln_e2e::work::{add_tasks, attempts, by_subject, counts, events, job, pool, request_id, task, until_counts};
use kiln_e2e::{LONG, until};
use kiln_proto::job::v1::{AttemptOutcome, TaskState};
use nix::sys::signal::{Signal, kill};

const MANY: usize = 2000;

#[tokio::test]
async fn a_killed_server_goes_on_where_it_was() {
    let mut server = Server::start().await;
    let client = server.client();
    let marks = Marks::new(server.dir());
    pool(&client, "p", 2, 4).await;
    job(&client, "j", "p", &[marks.environment()]).await;
    let ids: Vec<_> = (0..MANY).map(|number| format!("t{number}")).collect();
    add_tasks(&client, "j", ids.iter().map(|id| Marks::task(id, "0.02")).collect()).await;
    let agents = server.agents();
    assert_eq!(agents.len(), 2);

    for completed in [50, 300, 700, 1200, 1700] {
        until_counts(&client, "j", LONG, |counts| counts.completed > completed).await;
        server.kill_9().await;
        assert_eq!(server.agents(), agents, "agents survive the server");
        server.restart().await;
    }

    let counts = until_counts(&client, "j", LONG, |counts| counts.completed == MANY as i64).await;
    assert_eq!((counts.succeeded, counts.failed, counts.running, counts.active), (MANY as i64, 0, 0, 0));
    assert_eq!(server.agents(), agents, "the same agents did all the work");
    each_ran_once(&marks, &ids);
    each_completion_is_recorded_once(&client, &ids).await;
    server.stop().await;
}

fn each_ran_once(marks: &Marks, ids: &[String]) {
    let marks = marks.read();
    for id in ids {
        let tries = marks.get(id).unwrap_or_else(|| panic!("{id} never ran"));
        assert_eq!((tries.starts, tries.ends, tries.overlaps), (1, 1, 0), "tries of {id}");
    }
}

async fn each_completion_is_recorded_once(client: &kiln_client::Client, ids: &[String]) {
    let finished = until("the log has every completion", LONG, async || {
        let finished = by_subject(&events(client, "jobs/j/tasks/", "job.task.finished").await);
        (finished.len() >= ids.len()).then_some(finished)
    })
    .await;
    for id in ids {
        assert_eq!(finished.get(&format!("jobs/j/tasks/{id}")), Some(&1), "completions of {id} in the log");
        let attempts = attempts(client, "j", id).await;
        let succeeded = attempts.iter().filter(|attempt| attempt.outcome() == AttemptOutcome::Succeeded).count();
        assert_eq!(succeeded, 1, "attempts of {id}: {attempts:?}");
    }
}

#[tokio::test]
async fn tasks_of_a_killed_agent_run_again() {
    let server = Server::start().await;
    let client = server.client();
    let marks = Marks::new(server.dir());
    pool(&client, "p", 2, 2).await;
    job(&client, "j", "p", &[marks.environment()]).await;
    let ids: Vec<_> = (0..40).map(|number| format!("t{number}")).collect();
    add_tasks(&client, "j", ids.iter().map(|id| Marks::task(id, "0.5")).collect()).await;
    until_counts(&client, "j", LONG, |counts| counts.completed >= 4 && counts.running >= 3).await;

    let (node, agent) = server.agents().pop_first().unwrap();
    kill(agent, Signal::SIGKILL).unwrap();
    until_counts(&client, "j", LONG, |counts| counts.completed == 40 && counts.succeeded == 40).await;

    let marks = marks.read();
    let again: Vec<_> = ids.iter().filter(|id| marks[*id].starts > 1).collect();
    assert!(!again.is_empty(), "the killed agent had tasks");
    for id in &ids {
        assert_eq!((marks[id].overlaps, marks[id].ends), (0, 1), "{id}: {:?}", marks[id]);
    }
    for id in again {
        let attempts = attempts(&client, "j", id).await;
        let lost = attempts.iter().find(|attempt| attempt.outcome() == AttemptOutcome::NodeLost).unwrap();
        assert_eq!(lost.node_id, node);
        let task = task(&client, "j", id).await;
        let execution = task.execution.unwrap();
        assert_eq!((execution.internal_retry_count, execution.retry_count, execution.requeue_count), (1, 0, 0), "{id}");
    }
    server.stop().await;
}

#[tokio::test]
async fn an_agent_that_dies_while_the_server_is_away_loses_nothing() {
    let mut server = Server::start().await;
    let client = server.client();
    let marks = Marks::new(server.dir());
    pool(&client, "p", 2, 2).await;
    job(&client, "j", "p", &[marks.environment()]).await;
    let ids: Vec<_> = (0..24).map(|number| format!("t{number}")).collect();
    add_tasks(&client, "j", ids.iter().map(|id| Marks::task(id, "0.3")).collect()).await;
    until_counts(&client, "j", LONG, |counts| counts.completed >= 4 && counts.running >= 3).await;

    server.kill_9().await;
    let (_, agent) = server.agents().pop_first().unwrap();
    kill(agent, Signal::SIGKILL).unwrap();
    server.restart().await;
    until_counts(&client, "j", LONG, |counts| counts.succeeded == 24).await;
    for (id, tries) in marks.read() {
        assert_eq!((tries.overlaps, tries.ends), (0, 1), "{id}: {tries:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn what_was_acknowledged_before_a_crash_is_there_after_it() {
    let mut server = Server::start().await;
    let client = server.client();
    job(&client, "j", "no-pool-yet", &[]).await;
    for round in 0..5 {
        let name = format!("container-{round}");
        let request = kiln_proto::storage::v1::CreateContainerRequest {
            request_id: request_id(),
            name: name.clone(),
            ..Default::default()
        };
        client.storage().create_container(request).await.unwrap();
        let blobs = kiln_e2e::rest::Blobs::of(&server);
        let content = vec![round; 1_000_000];
        let put = blobs.send("PUT", &format!("{name}/blob"), &[("x-ms-blob-type", "BlockBlob")], &content).await;
        assert_eq!(put.status, 201, "{}", put.text());
        add_tasks(&client, "j", vec![kiln_e2e::work::shell_task(&format!("t{round}"), "true")]).await;
        server.kill_9().await;
        server.restart().await;
        let get = blobs.send("GET", &format!("{name}/blob"), &[], b"").await;
        assert_eq!((get.status, get.body == content), (200, true), "the blob of round {round}");
        assert_eq!(task(&client, "j", &format!("t{round}")).await.state(), TaskState::Active);
    }
    assert_eq!(counts(&client, "j").await.unwrap().active, 5);
    server.stop().await;
}

#[tokio::test]
async fn a_second_server_on_the_same_data_says_so_and_ends() {
    let server = Server::start().await;
    let data = server.data();
    let second = tokio::time::timeout(
        Duration::from_secs(30),
        command(&kiln())
            .args(["up", "--listen", "127.0.0.1:0", "--blob-listen", "127.0.0.1:0", "--data"])
            .arg(&data)
            .output(),
    )
    .await
    .expect("the second server ends")
    .unwrap();
    assert!(!second.status.success());
    let text = text(&second);
    assert!(text.contains(data.to_str().unwrap()), "{text}");
    server.stop().await;
}
