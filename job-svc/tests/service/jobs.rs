//! Jobs over the wire.

use kiln_proto::common::v1::Precondition;
use kiln_proto::job::v1::*;
use kiln_testkit::eventually;

use crate::harness::*;

#[tokio::test]
async fn create_get_list_update_delete() {
    let service = Service::start().await;
    let client = service.client();
    let job = client.create_job("Job-A", JobSpec { priority: 5, ..JobSpec::default() }).await;
    assert_eq!((job.id.as_str(), job.state()), ("Job-A", JobState::Active));
    client.create_job("job-b", JobSpec::default()).await;
    let again = CreateJobRequest { request_id: String::new(), id: "job-a".into(), spec: job.spec.clone() };
    assert_eq!(reason(call!(client, create_job, again).unwrap_err()), "JobExists");
    let page = call!(client, list_jobs, ListJobsRequest { page_size: 1, ..Default::default() }).unwrap();
    assert_eq!(page.jobs[0].id, "Job-A");
    let next = ListJobsRequest { page_token: page.next_page_token, ..Default::default() };
    let page = call!(client, list_jobs, next).unwrap();
    assert_eq!((page.jobs[0].id.as_str(), page.next_page_token.as_str()), ("job-b", ""));

    let update = UpdateJobRequest {
        id: "JOB-A".into(),
        priority: Some(9),
        precondition: Some(Precondition { if_match: format!("\"{}\"", job.etag), ..Default::default() }),
        ..Default::default()
    };
    let updated = call!(client, update_job, update.clone()).unwrap().job.unwrap();
    assert_eq!(updated.spec.unwrap().priority, 9);
    assert_ne!(updated.etag, job.etag);
    assert_eq!(reason(call!(client, update_job, update).unwrap_err()), "ConditionNotMet");

    let delete = DeleteJobRequest { id: "job-a".into(), ..Default::default() };
    call!(client, delete_job, delete.clone()).unwrap();
    assert_eq!(client.job("job-a").await.unwrap().state(), JobState::Deleting, "the first look shows it");
    assert_eq!(reason(call!(client, delete_job, delete).unwrap_err()), "JobBeingDeleted");
    eventually("the job is gone", || async { client.job("job-a").await.err().map(reason) }).await;
    client.create_job("job-a", JobSpec::default()).await;
}

#[tokio::test]
async fn a_repeated_request_gets_the_first_answer() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("other", JobSpec::default()).await;
    let spec = JobSpec { pool_id: "p1".into(), ..JobSpec::default() };
    let request = CreateJobRequest { request_id: "r1".into(), id: "j1".into(), spec: Some(spec) };
    let first = call!(client, create_job, request.clone()).unwrap();
    assert_eq!(call!(client, create_job, request).unwrap(), first);
    let tasks = vec![spec_of("a"), spec_of("b"), spec_of("a")];
    let request = AddTaskCollectionRequest { request_id: "r2".into(), job_id: "j1".into(), tasks };
    let first = call!(client, add_task_collection, request.clone()).unwrap();
    let reasons: Vec<_> = first.results.iter().map(|r| r.error.as_ref().map(|e| e.reason.as_str())).collect();
    assert_eq!(reasons, [None, None, Some("TaskExists")]);
    assert_eq!(call!(client, add_task_collection, request).unwrap(), first);
    assert_eq!(client.counts("j1").await.active, 2);
}

fn spec_of(id: &str) -> TaskSpec {
    crate::harness::spec(id)
}

#[tokio::test]
async fn disable_requeues_and_enable_runs_again() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    client.add("j1", spec("t")).await;
    let mut agent = service.agent("n1", 1).await;
    let key = agent.assignments().await[0].key.clone().unwrap();
    let request = DisableJobRequest { id: "j1".into(), ..Default::default() };
    call!(client, disable_job, request).unwrap();
    assert_eq!(client.job("j1").await.unwrap().state(), JobState::Disabling);
    assert_eq!(agent.stops().await, std::slice::from_ref(&key));
    agent.stopped(&key).await;
    client.job_becomes("j1", JobState::Disabled).await;
    let task = client.task("j1", "t").await.unwrap();
    assert_eq!((task.state(), task.execution.unwrap().requeue_count), (TaskState::Active, 1));
    call!(client, enable_job, EnableJobRequest { id: "j1".into(), ..Default::default() }).unwrap();
    let key = agent.assignments().await[0].key.clone().unwrap();
    assert_eq!(key.attempt, 2);
    client.job_becomes("j1", JobState::Active).await;
}

#[tokio::test]
async fn disable_with_wait_and_with_terminate() {
    let service = Service::start().await;
    let client = service.client();
    let mut agent = service.agent("n1", 2).await;
    for (job, how) in [("wait", DisableTasks::Wait), ("end", DisableTasks::Terminate)] {
        client.create_job(job, JobSpec::default()).await;
        client.add(job, spec("t")).await;
        let key = agent.assignments().await[0].key.clone().unwrap();
        let request = DisableJobRequest { id: job.into(), disable_tasks: how.into(), ..Default::default() };
        call!(client, disable_job, request).unwrap();
        match how {
            DisableTasks::Wait => agent.end(&key, 0).await,
            _ => {
                assert_eq!(agent.stops().await, std::slice::from_ref(&key));
                let task = client.task_becomes(job, "t", TaskState::Completed).await;
                assert_eq!(task.execution.unwrap().failure.unwrap().code, "TaskEnded");
                agent.stopped(&key).await;
            }
        }
        client.job_becomes(job, JobState::Disabled).await;
        client.task_becomes(job, "t", TaskState::Completed).await;
    }
}

#[tokio::test]
async fn terminate_ends_running_tasks_and_leaves_waiting_ones() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("j1", JobSpec::default()).await;
    client.add("j1", spec("a")).await;
    client.add("j1", spec("b")).await;
    let mut agent = service.agent("n1", 1).await;
    let key = agent.assignments().await[0].key.clone().unwrap();
    let request = TerminateJobRequest { id: "j1".into(), reason: "enough".into(), ..Default::default() };
    call!(client, terminate_job, request).unwrap();
    assert_eq!(client.job("j1").await.unwrap().state(), JobState::Terminating);
    assert_eq!(agent.stops().await, std::slice::from_ref(&key));
    agent.stopped(&key).await;
    let job = client.job_becomes("j1", JobState::Completed).await;
    assert_eq!(job.terminate_reason, "enough");
    assert!(job.end_time.is_some());
    let counts = client.counts("j1").await;
    assert_eq!((counts.active, counts.failed), (1, 1));
    let request = AddTaskRequest { job_id: "j1".into(), task: Some(spec("c")), ..Default::default() };
    assert_eq!(reason(call!(client, add_task, request).unwrap_err()), "JobCompleted");
    let delete = DeleteJobRequest { id: "j1".into(), ..Default::default() };
    call!(client, delete_job, delete).unwrap();
    assert_eq!(client.job("j1").await.unwrap().state(), JobState::Deleting);
    loop {
        if let work_down::Message::Cleanup(cleanup) = agent.next().await {
            assert_eq!(cleanup.job_ids, ["j1"]);
            break;
        }
    }
    eventually("the job is gone", || async { client.job("j1").await.err() }).await;
}

#[tokio::test]
async fn jobs_end_when_all_tasks_have_or_one_fails() {
    let service = Service::start().await;
    let client = service.client();
    let mut agent = service.agent("n1", 4).await;
    client.create_job("all", JobSpec::default()).await;
    client.add("all", spec("a")).await;
    let update = UpdateJobRequest {
        id: "all".into(),
        on_all_tasks_complete: OnAllTasksComplete::TerminateJob.into(),
        ..Default::default()
    };
    call!(client, update_job, update.clone()).unwrap();
    let back = UpdateJobRequest { on_all_tasks_complete: OnAllTasksComplete::NoAction.into(), ..update };
    assert_eq!(reason(call!(client, update_job, back).unwrap_err()), "InvalidPropertyValue");
    let key = agent.assignments().await[0].key.clone().unwrap();
    agent.end(&key, 0).await;
    let job = client.job_becomes("all", JobState::Completed).await;
    assert_eq!(job.terminate_reason, "AllTasksComplete");

    let on_task_failure = OnTaskFailure::PerformExitOptionsJobAction.into();
    client.create_job("fail", JobSpec { on_task_failure, ..JobSpec::default() }).await;
    client.add("fail", spec("a")).await;
    let key = agent.assignments().await[0].key.clone().unwrap();
    agent.end(&key, 9).await;
    let job = client.job_becomes("fail", JobState::Completed).await;
    assert_eq!(job.terminate_reason, "TaskFailed");
}

#[tokio::test]
async fn the_wall_clock_of_a_job_ends_it() {
    let service = Service::start().await;
    let client = service.client();
    let limit = prost_types::Duration { seconds: 0, nanos: 200_000_000 };
    let constraints = Some(JobConstraints { max_wall_clock_time: Some(limit), max_task_retry_count: 0 });
    client.create_job("j1", JobSpec { constraints, ..JobSpec::default() }).await;
    client.add("j1", spec("a")).await;
    let mut agent = service.agent("n1", 1).await;
    let key = agent.assignments().await[0].key.clone().unwrap();
    assert_eq!(agent.stops().await, std::slice::from_ref(&key));
    agent.stopped(&key).await;
    let job = client.job_becomes("j1", JobState::Completed).await;
    assert_eq!(job.terminate_reason, "MaxWallClockTimeExpiry");
}

#[tokio::test]
async fn a_disabled_job_moves_to_another_pool() {
    let service = Service::start().await;
    let client = service.client();
    let mut agent = service.agent("n1", 1).await;
    let request = CreateJobRequest {
        id: "j1".into(),
        spec: Some(JobSpec { pool_id: "elsewhere".into(), ..JobSpec::default() }),
        ..Default::default()
    };
    call!(client, create_job, request).unwrap();
    client.add("j1", spec("a")).await;
    let explain = ExplainTaskRequest { job_id: "j1".into(), task_id: "a".into() };
    assert_eq!(call!(client, explain_task, explain).unwrap().reason, "NoNodes");
    let update = UpdateJobRequest { id: "j1".into(), pool_id: Some("p1".into()), ..Default::default() };
    assert_eq!(reason(call!(client, update_job, update.clone()).unwrap_err()), "OperationInvalidForCurrentState");
    call!(client, disable_job, DisableJobRequest { id: "j1".into(), ..Default::default() }).unwrap();
    client.job_becomes("j1", JobState::Disabled).await;
    call!(client, update_job, update).unwrap();
    call!(client, enable_job, EnableJobRequest { id: "j1".into(), ..Default::default() }).unwrap();
    assert_eq!(agent.assignments().await.len(), 1);
}

#[tokio::test]
async fn a_task_that_is_given_up_acts_on_its_job_as_other_failures() {
    let service = Service::start().await;
    let client = service.client();
    let on_task_failure = OnTaskFailure::PerformExitOptionsJobAction.into();
    let on_all_tasks_complete = OnAllTasksComplete::TerminateJob.into();
    client.create_job("j1", JobSpec { on_task_failure, ..JobSpec::default() }).await;
    client.add("j1", spec("t")).await;
    let all = UpdateJobRequest { id: "j1".into(), on_all_tasks_complete, ..Default::default() };
    call!(client, update_job, all).unwrap();
    for life in 0..=50 {
        let mut agent = service.agent_with("n1", &format!("life-{life}"), 1, Vec::new()).await;
        assert_eq!(agent.assignments().await[0].key.as_ref().unwrap().attempt, life + 1);
    }
    // Once more it takes its node down.
    let _agent = service.agent_with("n1", "the last", 1, Vec::new()).await;
    let task = client.task_becomes("j1", "t", TaskState::Completed).await;
    assert_eq!(task.execution.unwrap().failure.unwrap().code, "MaxInternalRetryCountReached");
    let job = client.job_becomes("j1", JobState::Completed).await;
    assert_eq!(job.terminate_reason, "TaskFailed");
}

/// A job with one running and one waiting task, whose agent keeps quiet.
async fn job_with_two(client: &Client, agent: &mut Agent, id: &str) -> AttemptKey {
    client.create_job(id, JobSpec::default()).await;
    client.add(id, spec("runs")).await;
    let key = agent.assignments().await[0].key.clone().unwrap();
    client.add(id, TaskSpec { required_slots: 9, ..spec("waits") }).await;
    key
}

#[tokio::test]
async fn what_a_job_refuses_depends_on_its_state() {
    let service = Service::start().await;
    let client = service.client();
    let mut agent = service.agent("n1", 4).await;
    assert_eq!(reason(call!(client, create_job, CreateJobRequest::default()).unwrap_err()), "MissingRequiredProperty");
    let ending = job_with_two(&client, &mut agent, "ending").await;
    job_with_two(&client, &mut agent, "going").await;
    for id in ["over", "off"] {
        client.create_job(id, JobSpec::default()).await;
    }
    let terminate = |id: &str| TerminateJobRequest { id: id.into(), ..Default::default() };
    call!(client, terminate_job, terminate("over")).unwrap();
    client.job_becomes("over", JobState::Completed).await;
    call!(client, disable_job, DisableJobRequest { id: "off".into(), ..Default::default() }).unwrap();
    client.job_becomes("off", JobState::Disabled).await;
    call!(client, terminate_job, terminate("ending")).unwrap();
    call!(client, delete_job, DeleteJobRequest { id: "going".into(), ..Default::default() }).unwrap();
    for (job, expected) in [
        ("ending", "JobBeingTerminated"),
        ("over", "JobCompleted"),
        ("going", "JobBeingDeleted"),
        ("none", "JobNotFound"),
    ] {
        let add = AddTaskRequest { job_id: job.into(), task: Some(spec("new")), ..Default::default() };
        let update = UpdateJobRequest { id: job.into(), priority: Some(1), ..Default::default() };
        let disable = DisableJobRequest { id: job.into(), ..Default::default() };
        let enable = EnableJobRequest { id: job.into(), ..Default::default() };
        let refused = [
            reason(call!(client, add_task, add).unwrap_err()),
            reason(call!(client, update_job, update).unwrap_err()),
            reason(call!(client, disable_job, disable).unwrap_err()),
            reason(call!(client, enable_job, enable).unwrap_err()),
            reason(call!(client, terminate_job, terminate(job)).unwrap_err()),
        ];
        assert_eq!(refused, [expected; 5], "{job}");
    }
    for (job, expected) in [("ending", "JobBeingTerminated"), ("going", "JobBeingDeleted")] {
        let task = || (job.to_owned(), "waits".to_owned());
        let (job_id, task_id) = task();
        let end = TerminateTaskRequest { job_id, task_id, ..Default::default() };
        let (job_id, task_id) = task();
        let update = UpdateTaskRequest { job_id, task_id, ..Default::default() };
        let (job_id, _) = task();
        let again = ReactivateTaskRequest { job_id, task_id: "runs".into(), ..Default::default() };
        let refused = [
            reason(call!(client, terminate_task, end).unwrap_err()),
            reason(call!(client, update_task, update).unwrap_err()),
            reason(call!(client, reactivate_task, again).unwrap_err()),
        ];
        assert_eq!(refused, [expected; 3], "{job}");
    }
    // Tasks can be added to a job that is disabled, and wait there.
    client.add("off", spec("t")).await;
    let explain = ExplainTaskRequest { job_id: "off".into(), task_id: "t".into() };
    assert_eq!(call!(client, explain_task, explain).unwrap().reason, "JobNotActive");
    agent.stopped(&ending).await;
    client.job_becomes("ending", JobState::Completed).await;
}

#[tokio::test]
async fn priority_and_limit_of_a_running_job_take_effect_at_once() {
    let service = Service::start().await;
    let client = service.client();
    let mut agent = service.agent("n1", 1).await;
    for id in ["first", "second"] {
        client.create_job(id, JobSpec::default()).await;
        for task in ["a", "b"] {
            client.add(id, spec(task)).await;
        }
    }
    let key = agent.assignments().await[0].key.clone().unwrap();
    assert_eq!(key.job_id, "first");
    let update = UpdateJobRequest { id: "second".into(), priority: Some(5), ..Default::default() };
    call!(client, update_job, update).unwrap();
    agent.end(&key, 0).await;
    let key = agent.assignments().await[0].key.clone().unwrap();
    assert_eq!(key.job_id, "second");
    let limit = |max| UpdateJobRequest { id: "second".into(), max_parallel_tasks: Some(max), ..Default::default() };
    assert_eq!(reason(call!(client, update_job, limit(0)).unwrap_err()), "InvalidPropertyValue");
    call!(client, update_job, limit(1)).unwrap();
    // A second slot: the limit gives it to the other job.
    let mut more = service.agent("n2", 2).await;
    let other = more.assignments().await[0].key.clone().unwrap();
    assert_eq!((other.job_id.as_str(), other.task_id.as_str()), ("first", "b"));
    let explain = ExplainTaskRequest { job_id: "second".into(), task_id: "b".into() };
    assert_eq!(call!(client, explain_task, explain).unwrap().reason, "MaxParallelTasks");
    call!(client, update_job, limit(-1)).unwrap();
    let last = more.assignments().await[0].key.clone().unwrap();
    assert_eq!((last.job_id.as_str(), last.task_id.as_str()), ("second", "b"));
}
