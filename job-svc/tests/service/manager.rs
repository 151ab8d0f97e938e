//! Job managers, over the wire.

use kiln_auth::token::{self, Principal};
use kiln_proto::job::v1::*;

use crate::harness::*;

fn managed(change: impl FnOnce(&mut JobManagerTask)) -> JobSpec {
    let mut manager = JobManagerTask { task: Some(spec("manager")), ..JobManagerTask::default() };
    change(&mut manager);
    JobSpec { job_manager_task: Some(manager), ..JobSpec::default() }
}

async fn one(agent: &mut Agent) -> Assignment {
    let mut given = agent.assignments().await;
    assert_eq!(given.len(), 1, "{given:?}");
    given.remove(0)
}

#[tokio::test]
async fn the_manager_goes_first_alone_and_its_end_ends_the_job() {
    let service = Service::start().await;
    let client = service.client();
    let constraints = Some(TaskConstraints { max_task_retry_count: Some(1), ..TaskConstraints::default() });
    let job = managed(|manager| manager.task.as_mut().unwrap().constraints = constraints);
    client.create_job("j1", job).await;
    assert_eq!(client.counts("j1").await.active, 1, "it is a task of the job");
    let same = AddTaskRequest { job_id: "j1".into(), task: Some(spec("MANAGER")), ..Default::default() };
    assert_eq!(reason(call!(client, add_task, same).unwrap_err()), "TaskExists");
    client.add_many("j1", 3).await;
    let mut agent = service.agent("n1", 4).await;
    let key = one(&mut agent).await.key.unwrap();
    assert_eq!(key.task_id, "manager");
    // Tried again, it goes first again.
    agent.end(&key, 3).await;
    let key = one(&mut agent).await.key.unwrap();
    assert_eq!((key.task_id.as_str(), key.attempt), ("manager", 2));
    agent.end(&key, 3).await;
    let job = client.job_becomes("j1", JobState::Completed).await;
    assert_eq!(job.terminate_reason, "JMComplete", "a manager that failed is over, too");
    assert_eq!(client.counts("j1").await.active, 3);
}

#[tokio::test]
async fn a_job_can_outlive_its_manager() {
    let service = Service::start().await;
    let client = service.client();
    let job = JobSpec {
        on_all_tasks_complete: OnAllTasksComplete::TerminateJob.into(),
        on_task_failure: OnTaskFailure::PerformExitOptionsJobAction.into(),
        ..managed(|manager| {
            manager.kill_job_on_completion = Some(false);
            manager.run_exclusive = Some(false);
        })
    };
    client.create_job("j1", job).await;
    let mut agent = service.agent("n1", 4).await;
    let manager = one(&mut agent).await.key.unwrap();
    client.add("j1", spec("work")).await;
    let work = one(&mut agent).await.key.unwrap();
    agent.end(&manager, 5).await;
    client.task_becomes("j1", "manager", TaskState::Completed).await;
    assert_eq!(client.job("j1").await.unwrap().state(), JobState::Active, "it has no exit conditions");
    agent.end(&work, 0).await;
    let job = client.job_becomes("j1", JobState::Completed).await;
    assert_eq!(job.terminate_reason, "AllTasksComplete");
}

#[tokio::test]
async fn a_manager_that_is_ended_ends_the_job_and_its_other_tasks() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", managed(|manager| manager.run_exclusive = Some(false))).await;
    client.add("j1", spec("work")).await;
    let mut agent = service.agent("n1", 4).await;
    let mut given = 0;
    while given < 2 {
        given += agent.assignments().await.len();
    }
    let end = TerminateTaskRequest { job_id: "j1".into(), task_id: "manager".into(), ..Default::default() };
    call!(client, terminate_task, end).unwrap();
    let mut stopped = 0;
    while stopped < 2 {
        for key in agent.stops().await {
            agent.stopped(&key).await;
            stopped += 1;
        }
    }
    let job = client.job_becomes("j1", JobState::Completed).await;
    assert_eq!(job.terminate_reason, "JMComplete");
}

#[tokio::test]
async fn tasks_that_may_work_on_their_job_get_a_token_for_it() {
    let service = Service::start().await;
    let client = service.client();
    let job = client.create_job("Job-1", managed(|manager| manager.task.as_mut().unwrap().job_access = true)).await;
    let mut agent = service.agent("n1", 4).await;
    let given = one(&mut agent).await;
    let created = job.creation_time.unwrap();
    let claims = token::verify(&given.authentication_token, [&*service.key], created.seconds).unwrap();
    let created_micros = kiln_proto::time::micros(&created);
    let principal = Principal::Job { account: ACCOUNT.into(), job: "Job-1".into(), created_micros };
    assert_eq!((claims.principal, claims.expires), (principal, created.seconds + 180 * 24 * 60 * 60));
    client.create_job("j2", JobSpec::default()).await;
    client.add("j2", spec("plain")).await;
    let mut other = service.agent("n2", 1).await;
    assert_eq!(one(&mut other).await.authentication_token, "");
}
