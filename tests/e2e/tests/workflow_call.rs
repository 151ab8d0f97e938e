//! A whole workflow in one gRPC call.
#![allow(clippy::unwrap_used)]

use kiln_e2e::server::Server;
use kiln_e2e::work::{request_id, shell_task, until_pool_gone};
use kiln_proto::gateway::v1::run_response::Progress;
use kiln_proto::gateway::v1::{RunRequest, RunResponse};
use kiln_proto::job::v1::{CountTasksRequest, JobSpec};
use kiln_proto::pool::v1::PoolSpec;

fn request(tasks: usize) -> RunRequest {
    RunRequest {
        request_id: request_id(),
        pool_id: "p".to_owned(),
        pool: Some(PoolSpec { vm_size: "local".to_owned(), target_dedicated_nodes: 2, ..Default::default() }),
        job_id: "j".to_owned(),
        job: Some(JobSpec::default()),
        tasks: (0..tasks).map(|n| shell_task(&format!("t{n}"), if n == 0 { "exit 3" } else { "true" })).collect(),
        delete_pool: true,
    }
}

#[tokio::test]
async fn one_call_makes_the_pool_and_the_job_and_tells_how_it_ends() {
    let server = Server::start().await;
    let client = server.client();
    let request = request(20);
    let mut progress = client.workflows().run(request.clone()).await.unwrap().into_inner();
    let (mut ready, mut added, mut finished) = (0, 0, None);
    while let Some(RunResponse { progress: Some(step) }) = progress.message().await.unwrap() {
        match step {
            Progress::PoolReady(pool) => ready += usize::from(pool.pool_id == "p"),
            Progress::TasksAdded(tasks) => added += tasks.count,
            Progress::Counts(counts) => assert!(counts.completed <= 20),
            Progress::Finished(end) => finished = Some(end),
        }
    }
    assert!(ready >= 1 && added == 20, "pool ready {ready}, tasks added {added}");
    let counts = finished.expect("the call tells the end").counts.unwrap();
    assert_eq!((counts.succeeded, counts.failed), (19, 1));
    until_pool_gone(&client, "p").await;

    // The same request again is the same workflow: nothing runs twice.
    let mut again = client.workflows().run(request).await.unwrap().into_inner();
    let mut last = None;
    while let Some(message) = again.message().await.unwrap() {
        last = message.progress;
    }
    assert!(matches!(last, Some(Progress::Finished(end)) if end.counts.unwrap().completed == 20));
    let counts = client.jobs().count_tasks(CountTasksRequest { job_id: "j".to_owned() }).await.unwrap().into_inner();
    assert_eq!(counts.tasks.unwrap().completed, 20);
    drop(client);
    server.stop().await;
}
