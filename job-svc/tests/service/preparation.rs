//! Preparation and release of jobs over the wire.

use std::time::Duration;

use kiln_proto::common::v1::{EnvironmentSetting, ExecutionResult};
use kiln_proto::job::v1::*;
use kiln_testkit::eventually;

use crate::harness::*;

fn prepared_job() -> JobSpec {
    let task = |line: &str| Some(TaskSpec { command_line: line.into(), ..TaskSpec::default() });
    JobSpec {
        common_environment: vec![EnvironmentSetting { name: "SHARED".into(), value: "1".into() }],
        job_preparation_task: Some(JobPreparationTask { task: task("prepare"), ..JobPreparationTask::default() }),
        job_release_task: Some(JobReleaseTask { task: task("release") }),
        ..JobSpec::default()
    }
}

fn info(exit_code: Option<i32>) -> NodeTaskInfo {
    let over = exit_code.is_some();
    let state = if over { NodeTaskState::Completed } else { NodeTaskState::Running };
    let result = match exit_code {
        None => ExecutionResult::Unspecified,
        Some(0) => ExecutionResult::Success,
        Some(_) => ExecutionResult::Failure,
    };
    NodeTaskInfo { state: state.into(), exit_code, result: result.into(), ..NodeTaskInfo::default() }
}

/// Says how a task of the job goes and waits until that is acknowledged.
async fn say(agent: &mut Agent, job_number: u64, task: JobNodeTask, exit_code: Option<i32>) {
    let key = JobNodeKey { job_id: "j1".into(), job_number, task: task.into(), sequence: 1 };
    let reports = vec![JobNodeReport { key: Some(key.clone()), info: Some(info(exit_code)) }];
    agent.send(work_up::Message::JobNodeReports(JobNodeReports { reports })).await;
    loop {
        if let work_down::Message::JobNodeAcks(acks) = agent.next().await {
            assert_eq!(acks.keys, [key]);
            return;
        }
    }
}

async fn release(agent: &mut Agent) -> ReleaseJob {
    loop {
        if let work_down::Message::Release(release) = agent.next().await {
            return release;
        }
    }
}

/// Prepares the node and runs the task it was given.
async fn run(agent: &mut Agent) -> Assignment {
    let given = agent.assignments().await.remove(0);
    say(agent, given.job_number, JobNodeTask::Preparation, Some(0)).await;
    let key = given.key.clone().unwrap();
    agent.report(vec![started(key.clone()), ended(key, Some(0), EndCause::Exited)]).await;
    given
}

async fn nodes(client: &Client) -> Vec<JobNodeStatus> {
    let request = ListJobNodesRequest { job_id: "j1".into(), ..ListJobNodesRequest::default() };
    call!(client, list_job_nodes, request).unwrap().nodes
}

async fn terminate(client: &Client) {
    let request = TerminateJobRequest { id: "j1".into(), ..TerminateJobRequest::default() };
    call!(client, terminate_job, request).unwrap();
}

#[tokio::test]
async fn a_task_is_preparing_until_it_begins_and_the_release_ends_the_job() {
    let service = Service::start().await;
    let client = service.client();
    let job = client.create_job("j1", prepared_job()).await;
    assert_eq!(job.spec.unwrap().job_preparation_task.unwrap().task.unwrap().id, "jobpreparation");
    client.add("j1", spec("t")).await;
    let mut agent = service.agent("n1", 1).await;
    let given = agent.assignments().await.remove(0);
    let preparation = given.preparation.unwrap();
    assert!(preparation.wait_for_success && !preparation.done);
    assert_eq!(preparation.environment[0].name, "SHARED");
    client.task_becomes("j1", "t", TaskState::Preparing).await;
    assert_eq!(client.counts("j1").await.running, 1);
    let service = service.crash_and_restart().await;
    let client = service.client();
    let key = given.key.unwrap();
    let views = vec![AttemptView { key: Some(key.clone()), phase: AttemptPhase::StagingIn.into() }];
    let mut agent = service.agent_with("n1", "life-1", 1, views).await;
    assert_eq!(client.task("j1", "t").await.unwrap().state(), TaskState::Preparing);
    say(&mut agent, given.job_number, JobNodeTask::Preparation, None).await;
    assert_eq!(nodes(&client).await[0].preparation.as_ref().unwrap().state(), NodeTaskState::Running);
    say(&mut agent, given.job_number, JobNodeTask::Preparation, Some(0)).await;
    agent.report(vec![started(key.clone())]).await;
    let task = client.task_becomes("j1", "t", TaskState::Running).await;
    assert_eq!(task.previous_state(), TaskState::Preparing);
    agent.end(&key, 0).await;
    client.task_becomes("j1", "t", TaskState::Completed).await;

    terminate(&client).await;
    let asked = release(&mut agent).await;
    assert_eq!((asked.job_number, asked.preparation_task_id.as_str()), (given.job_number, "jobpreparation"));
    let limit = asked.spec.unwrap().constraints.unwrap().max_wall_clock_time.unwrap();
    assert_eq!((limit.seconds, asked.environment[0].name.as_str()), (900, "SHARED"));
    say(&mut agent, given.job_number, JobNodeTask::Release, None).await;
    assert_eq!(client.job("j1").await.unwrap().state(), JobState::Terminating);
    let seen = nodes(&client).await;
    assert_eq!((seen.len(), seen[0].node_id.as_str(), seen[0].pool_id.as_str()), (1, "n1", "p1"));
    assert_eq!(seen[0].release.as_ref().unwrap().state(), NodeTaskState::Running);
    say(&mut agent, given.job_number, JobNodeTask::Release, Some(3)).await;
    client.job_becomes("j1", JobState::Completed).await;
    assert_eq!(nodes(&client).await[0].release.as_ref().unwrap().exit_code, Some(3));

    // Its deletion does not release it again.
    let request = DeleteJobRequest { id: "j1".into(), ..DeleteJobRequest::default() };
    call!(client, delete_job, request).unwrap();
    eventually("the job is gone", || async { client.job("j1").await.err().map(reason) }).await;
    loop {
        match agent.next().await {
            work_down::Message::Release(release) => panic!("{release:?}"),
            work_down::Message::Cleanup(cleanup) if cleanup.job_ids == ["j1"] => break,
            _ => {}
        }
    }
}

#[tokio::test]
async fn what_is_refused_about_preparation_and_release() {
    let service = Service::start().await;
    let client = service.client();
    let release_alone = JobSpec { job_preparation_task: None, pool_id: "p1".into(), ..prepared_job() };
    let request = CreateJobRequest { request_id: String::new(), id: "j".into(), spec: Some(release_alone) };
    let refused = || async {
        match call!(client, create_job, request.clone()) {
            Err(status) if status.code() == tonic::Code::Unavailable => None,
            outcome => Some(reason(outcome.unwrap_err())),
        }
    };
    assert_eq!(eventually("the service", refused).await, "InvalidPropertyValue");
    client.create_job("j1", prepared_job()).await;
    for (id, expected) in
        [("JobPreparation", "TaskIdSameAsJobPreparationTask"), ("jobrelease", "TaskIdSameAsJobReleaseTask")]
    {
        let request = AddTaskRequest { request_id: String::new(), job_id: "j1".into(), task: Some(spec(id)) };
        assert_eq!(reason(call!(client, add_task, request).unwrap_err()), expected);
    }
    client.create_job("plain", JobSpec::default()).await;
    let request = ListJobNodesRequest { job_id: "plain".into(), ..ListJobNodesRequest::default() };
    assert_eq!(reason(call!(client, list_job_nodes, request).unwrap_err()), "JobPreparationTaskNotSpecified");
}

#[tokio::test]
async fn a_task_goes_elsewhere_when_the_preparation_fails_and_says_why_when_it_fails_everywhere() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", prepared_job()).await;
    client.add("j1", spec("t")).await;
    let mut first = service.agent("n1", 1).await;
    let given = first.assignments().await.remove(0);
    let mut second = service.agent("n2", 1).await;
    let fail = async |agent: &mut Agent, given: Assignment| {
        say(agent, given.job_number, JobNodeTask::Preparation, Some(1)).await;
        agent.report(vec![ended(given.key.unwrap(), None, EndCause::PreparationFailed)]).await;
    };
    fail(&mut first, given).await;
    let again = second.assignments().await.remove(0);
    assert_eq!(again.key.as_ref().unwrap().attempt, 2);
    fail(&mut second, again).await;
    let task = client.task_becomes("j1", "t", TaskState::Active).await;
    let execution = task.execution.unwrap();
    assert_eq!((execution.retry_count, execution.internal_retry_count, execution.requeue_count), (0, 0, 0));
    let explain = || async {
        let request = ExplainTaskRequest { job_id: "j1".into(), task_id: "t".into() };
        let answer = call!(client, explain_task, request).unwrap();
        (answer.reason == "PreparationFailed").then_some(answer)
    };
    let why = eventually("it is barred everywhere", explain).await;
    let named: Vec<&str> = why.details.iter().map(|detail| detail.value.as_str()).collect();
    assert_eq!((named, why.never), (vec!["n1", "n2"], true));
    let request = ListAttemptsRequest { job_id: "j1".into(), task_id: "t".into(), ..Default::default() };
    let attempts = call!(client, list_attempts, request).unwrap().attempts;
    let seen: Vec<_> = attempts.iter().map(|attempt| (attempt.node_id.as_str(), attempt.reason.as_str())).collect();
    assert_eq!(seen, [("n1", "PreparationFailed"), ("n2", "PreparationFailed")]);
    // That is remembered.
    let service = service.crash_and_restart().await;
    let client = service.client();
    let _first = service.agent("n1", 1).await;
    eventually("it is still barred", || async {
        let request = ExplainTaskRequest { job_id: "j1".into(), task_id: "t".into() };
        call!(client, explain_task, request).ok().filter(|answer| answer.reason == "PreparationFailed")
    })
    .await;
    // A new life is tried again.
    let mut first = service.agent_with("n1", "life-2", 1, Vec::new()).await;
    let given = run(&mut first).await;
    assert_eq!(given.key.unwrap().attempt, 3);
    client.task_becomes("j1", "t", TaskState::Completed).await;
}

#[tokio::test]
async fn a_restart_in_the_middle_of_the_release_asks_only_who_has_not_answered() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", prepared_job()).await;
    client.add_many("j1", 2).await;
    let (mut first, mut second) = (service.agent("n1", 1).await, service.agent("n2", 1).await);
    let number = run(&mut first).await.job_number;
    run(&mut second).await;
    client.completed("j1", 2).await;
    terminate(&client).await;
    release(&mut first).await;
    release(&mut second).await;
    say(&mut first, number, JobNodeTask::Release, Some(0)).await;
    let service = service.crash_and_restart().await;
    let client = service.client();
    let mut first = service.agent("n1", 1).await;
    let mut second = service.agent_with("n2", "life-2", 1, Vec::new()).await;
    assert_eq!(release(&mut second).await.job_number, number, "a new life has to run it");
    say(&mut second, number, JobNodeTask::Release, Some(0)).await;
    client.job_becomes("j1", JobState::Completed).await;
    // What came to the first ends with the answer to this.
    first.send(work_up::Message::Status(WorkerStatus { version: 7, ..status(1, true) })).await;
    loop {
        match first.next().await {
            work_down::Message::Release(release) => panic!("{release:?}"),
            work_down::Message::StatusApplied(StatusApplied { version: 7 }) => break,
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_node_that_is_lost_does_not_hold_up_the_end_of_a_job() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let config = job_svc::Config {
        lease: Duration::from_millis(1500),
        lease_margin: Duration::from_millis(500),
        ..config(&dir)
    };
    let service = Service::start_on(dir, config, std::sync::Arc::new(kiln_auth::SecretKey::generate())).await;
    let client = service.client();
    client.create_job("j1", prepared_job()).await;
    client.add("j1", spec("t")).await;
    let mut agent = service.agent("n1", 1).await;
    run(&mut agent).await;
    client.completed("j1", 1).await;
    drop(agent);
    terminate(&client).await;
    client.job_becomes("j1", JobState::Completed).await;
    let seen = nodes(&client).await;
    assert_eq!((seen.len(), &seen[0].release), (1, &None), "the node is gone, what it did is not");
}

#[tokio::test]
async fn a_preparation_that_need_not_run_again_is_called_done() {
    let service = Service::start().await;
    let client = service.client();
    let mut spec = prepared_job();
    spec.job_preparation_task.as_mut().unwrap().rerun_on_node_reboot_after_success = Some(false);
    client.create_job("j1", spec).await;
    client.add_many("j1", 2).await;
    let mut agent = service.agent("n1", 1).await;
    assert!(!run(&mut agent).await.preparation.unwrap().done);
    client.completed("j1", 1).await;
    let mut agent = service.agent_with("n1", "life-2", 1, Vec::new()).await;
    let given = agent.assignments().await.remove(0);
    assert!(given.preparation.unwrap().done);
    let key = given.key.unwrap();
    assert_eq!(client.task("j1", &key.task_id).await.unwrap().state(), TaskState::Running);
    agent.report(vec![started(key.clone()), ended(key, Some(0), EndCause::Exited)]).await;
    client.completed("j1", 2).await;
}
