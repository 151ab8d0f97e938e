//! More important jobs take the place of others that allow it.

use kiln_proto::job::v1::*;

use crate::harness::*;

#[tokio::test]
async fn a_more_important_task_takes_the_place_of_one_that_comes_back_later() {
    let service = Service::start().await;
    let client = service.client();
    client.create_job("low", JobSpec { priority: -1, ..JobSpec::default() }).await;
    client.add("low", spec("t")).await;
    let mut agent = service.agent("n1", 1).await;
    let displaced = agent.assignments().await[0].key.clone().unwrap();
    agent.report(vec![started(displaced.clone())]).await;
    client.create_job("high", JobSpec::default()).await;
    client.add("high", spec("u")).await;
    // Not before its job allows it.
    let request = ExplainTaskRequest { job_id: "high".into(), task_id: "u".into() };
    assert_eq!(call!(client, explain_task, request).unwrap().reason, "NoFreeSlots");
    let allow = UpdateJobRequest { id: "low".into(), allow_task_preemption: Some(true), ..Default::default() };
    assert!(call!(client, update_job, allow).unwrap().job.unwrap().spec.unwrap().allow_task_preemption);
    assert_eq!(agent.stops().await, std::slice::from_ref(&displaced));
    agent.stopped(&displaced).await;
    let urgent = agent.assignments().await[0].key.clone().unwrap();
    assert_eq!(urgent.job_id, "high");
    agent.end(&urgent, 0).await;
    let again = agent.assignments().await[0].key.clone().unwrap();
    assert_eq!((again.job_id.as_str(), again.attempt), ("low", 2));
    agent.end(&again, 0).await;
    let task = client.task_becomes("low", "t", TaskState::Completed).await;
    let execution = task.execution.unwrap();
    let counts = (execution.retry_count, execution.internal_retry_count, execution.requeue_count);
    assert_eq!((counts, execution.exit_code), ((0, 0, 1), Some(0)));
    let request = ListAttemptsRequest { job_id: "low".into(), task_id: "t".into(), ..Default::default() };
    let attempts = call!(client, list_attempts, request).unwrap().attempts;
    assert_eq!((attempts[0].outcome(), attempts[0].reason.as_str()), (AttemptOutcome::Preempted, "Preempted"));
}
