//! The whole workflow in one call.

use futures::StreamExt;
use kiln_error::Error;
use kiln_proto::gateway::v1::run_response::Progress;
use kiln_proto::gateway::v1::{RunFinished, RunRequest};
use kiln_proto::job::v1::TaskSpec;
use kiln_proto::pool::v1::PoolSpec;
use kiln_testkit::eventually;

use crate::harness::Harness;

fn request(tasks: usize) -> RunRequest {
    let task = |n| TaskSpec { id: format!("t{n}"), command_line: "true".into(), ..TaskSpec::default() };
    RunRequest {
        request_id: "r1".into(),
        pool_id: "p".into(),
        pool: Some(PoolSpec { vm_size: "local".into(), target_dedicated_nodes: 2, ..PoolSpec::default() }),
        job_id: "j".into(),
        job: None,
        tasks: (0..tasks).map(task).collect(),
        delete_pool: true,
    }
}

async fn run(gateway: &Harness, request: RunRequest) -> Result<(Vec<Progress>, RunFinished), Error> {
    let mut stream = gateway.grpc().workflows().run(request).await?.into_inner();
    let mut seen = Vec::new();
    while let Some(answer) = stream.next().await {
        match answer?.progress.unwrap() {
            Progress::Finished(finished) => return Ok((seen, finished)),
            other => seen.push(other),
        }
    }
    panic!("the stream ended without an end");
}

#[tokio::test]
async fn a_workflow_makes_everything_and_cleans_up() {
    let gateway = Harness::start().await;
    let (seen, finished) = Box::pin(run(&gateway, request(1_200))).await.unwrap();
    assert!(seen.iter().any(|event| matches!(event, Progress::TasksAdded(added) if added.count == 1_200)), "{seen:?}");
    assert!(seen.iter().any(|event| matches!(event, Progress::PoolReady(ready) if ready.idle_nodes == 2)));
    assert_eq!(finished.counts.unwrap().succeeded, 1_200);
    assert_eq!(finished.terminate_reason, "AllTasksComplete");
    assert!(gateway.state.pools.lock().unwrap().is_empty(), "the pool was made for this call only");
    assert_eq!(gateway.state.jobs.lock().unwrap()["j"].spec.as_ref().unwrap().pool_id, "p");
}

#[tokio::test]
async fn a_workflow_whose_tasks_are_refused_ends_its_job() {
    let gateway = Harness::start().await;
    let mut bad = request(10);
    bad.tasks[7].command_line.clear();
    let error = Box::pin(run(&gateway, bad)).await.unwrap_err();
    assert_eq!(error.reason(), "MissingRequiredProperty");
    assert_eq!(error.details(), [("TaskId".to_owned(), "t7".to_owned())]);
    let reason = gateway.state.jobs.lock().unwrap()["j"].terminate_reason.clone();
    assert_eq!(reason, "TasksRefused: MissingRequiredProperty");
    assert!(gateway.state.pools.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_workflow_needs_its_pool() {
    let gateway = Harness::start().await;
    let error = Box::pin(run(&gateway, RunRequest { pool: None, ..request(1) })).await.unwrap_err();
    assert_eq!(error.reason(), "PoolNotFound");
    let error = Box::pin(run(&gateway, RunRequest { job_id: String::new(), ..request(1) })).await.unwrap_err();
    assert_eq!(error.reason(), "MissingRequiredProperty");
    assert!(gateway.state.jobs.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_work_goes_on_when_the_caller_hangs_up() {
    let gateway = Harness::start().await;
    let stream = gateway.grpc().workflows().run(request(5_000)).await.unwrap();
    drop(stream);
    eventually("all tasks are added and the job ends with them", || async {
        let added = gateway.state.tasks.lock().unwrap().len() == 5_000;
        (added && gateway.state.job_update.lock().unwrap().is_some()).then_some(())
    })
    .await;
}
