//! Pools that jobs and schedules bring along.
#![allow(clippy::unwrap_used)]

use kiln_client::Client;
use kiln_e2e::server::Server;
use kiln_e2e::work::{add_tasks, request_id, shell_task, until_pool_gone};
use kiln_e2e::{LONG, until};
use kiln_proto::job::v1::*;
use kiln_proto::pool::v1::{DeletePoolRequest, GetPoolRequest, PoolSpec, PoolState};

fn with_pool(lifetime: AutoPoolLifetime, keep_alive: bool) -> JobSpec {
    let pool = PoolSpec { vm_size: "local".to_owned(), target_dedicated_nodes: 1, ..PoolSpec::default() };
    let auto = AutoPool { id_prefix: "made".to_owned(), lifetime: lifetime.into(), keep_alive, pool: Some(pool) };
    JobSpec { auto_pool: Some(auto), ..JobSpec::default() }
}

async fn create(client: &Client, id: &str, spec: JobSpec) -> Job {
    let request = CreateJobRequest { request_id: request_id(), id: id.to_owned(), spec: Some(spec) };
    client.jobs().create_job(request).await.unwrap().into_inner().job.unwrap()
}

async fn job(client: &Client, id: &str) -> Option<Job> {
    let request = GetJobRequest { id: id.to_owned(), precondition: None };
    client.jobs().get_job(request).await.ok()?.into_inner().job
}

async fn until_completed(client: &Client, id: &str) -> Job {
    let completed = async || job(client, id).await.filter(|job| job.state() == JobState::Completed);
    until(&format!("{id} completes"), LONG, completed).await
}

/// Runs one task; the job ends with it.
async fn run_to_its_end(client: &Client, id: &str) -> Job {
    add_tasks(client, id, vec![shell_task("t", "true")]).await;
    let request = UpdateJobRequest {
        request_id: request_id(),
        id: id.to_owned(),
        on_all_tasks_complete: OnAllTasksComplete::TerminateJob.into(),
        ..UpdateJobRequest::default()
    };
    client.jobs().update_job(request).await.unwrap();
    let job = until_completed(client, id).await;
    assert_eq!(job.terminate_reason, "AllTasksComplete");
    job
}

async fn pool_state(client: &Client, id: &str) -> Option<PoolState> {
    let request = GetPoolRequest { id: id.to_owned(), precondition: None };
    Some(client.pools().get_pool(request).await.ok()?.into_inner().pool?.state())
}

#[tokio::test]
async fn a_job_runs_on_a_pool_of_its_own_which_goes_with_it_or_stays_if_asked() {
    let server = Server::start().await;
    let client = server.client();
    let gone = create(&client, "gone", with_pool(AutoPoolLifetime::Job, false)).await;
    let kept = create(&client, "kept", with_pool(AutoPoolLifetime::Job, true)).await;
    assert!(gone.pool_id.starts_with("made_") && gone.pool_id != kept.pool_id);
    assert_eq!(run_to_its_end(&client, "kept").await.pool_id, kept.pool_id);
    run_to_its_end(&client, "gone").await;
    until_pool_gone(&client, &gone.pool_id).await;
    assert_eq!(pool_state(&client, &kept.pool_id).await, Some(PoolState::Active));
    let request = DeletePoolRequest { request_id: request_id(), id: kept.pool_id.clone(), precondition: None };
    client.pools().delete_pool(request).await.unwrap();
    until_pool_gone(&client, &kept.pool_id).await;
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn a_pool_that_cannot_be_made_ends_its_job_with_the_reason() {
    let server = Server::start().await;
    let client = server.client();
    let mut spec = with_pool(AutoPoolLifetime::Job, false);
    spec.auto_pool.as_mut().unwrap().pool.as_mut().unwrap().task_slots_per_node = 1000;
    let created = create(&client, "j", spec).await;
    let over = until_completed(&client, "j").await;
    let error = over.scheduling_error.unwrap();
    assert_eq!(error.code, "InvalidAutoPoolSettings");
    assert!(error.message.contains("task_slots_per_node") || error.message.contains("256"), "{error:?}");
    assert_eq!(pool_state(&client, &created.pool_id).await, None);
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn a_schedule_brings_a_pool_for_all_its_jobs_also_over_a_crash() {
    let mut server = Server::start().await;
    let client = server.client();
    let spec = JobScheduleSpec {
        schedule: Some(Schedule::default()),
        job: Some(with_pool(AutoPoolLifetime::JobSchedule, false)),
        ..JobScheduleSpec::default()
    };
    let request = CreateJobScheduleRequest { request_id: request_id(), id: "s".to_owned(), spec: Some(spec) };
    client.job_schedules().create_job_schedule(request).await.unwrap();
    let created = until("the job is created", LONG, async || job(&client, "s:job-1").await).await;
    assert_eq!(created.job_schedule_id, "s");
    server.kill_9().await;
    server.restart().await;
    let client = server.client();
    run_to_its_end(&client, "s:job-1").await;
    until("the schedule is completed", LONG, async || {
        let request = GetJobScheduleRequest { id: "s".to_owned(), precondition: None };
        let schedule = client.job_schedules().get_job_schedule(request).await.ok()?.into_inner().job_schedule?;
        (schedule.state() == JobScheduleState::Completed).then_some(())
    })
    .await;
    until_pool_gone(&client, &created.pool_id).await;
    drop(client);
    server.stop().await;
}
