//! Several replicas of the service on one PostgreSQL.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use kiln_auth::SecretKey;
use kiln_proto::job::v1::*;
use kiln_store::testing::TestStore;
use kiln_testkit::eventually;

use crate::harness::*;

/// An agent that keeps results until they are acknowledged.
#[derive(Default)]
struct Node {
    results: BTreeMap<(String, u32), AttemptKey>,
    ran: BTreeMap<(String, u32), u32>,
    redirects: usize,
}

impl Node {
    /// Opens a stream, first to `first`, then where it is sent.
    async fn connect(&mut self, services: &[&Service], first: usize) -> Agent {
        let redirects = std::cell::Cell::new(0);
        let results = &self.results;
        let agent = eventually("a stream to the owner", || async {
            let mut at = first;
            for _ in 0..4 {
                let view = |key: &AttemptKey| AttemptView { key: Some(key.clone()), phase: AttemptPhase::Ended.into() };
                let hello = WorkerHello {
                    account: ACCOUNT.into(),
                    pool_id: "p1".into(),
                    node_id: "n1".into(),
                    incarnation: "life-1".into(),
                    status: Some(status(10, true)),
                    attempts: results.values().map(view).collect(),
                    ..WorkerHello::default()
                };
                let mut agent = services[at].connect("n1", hello).await.ok()?;
                match agent.try_next().await? {
                    work_down::Message::Welcome(_) => return Some(agent),
                    work_down::Message::Redirect(to) => {
                        redirects.set(redirects.get() + 1);
                        // The former owner, perhaps, until its lease is over.
                        at = services.iter().position(|service| service.endpoint == to.endpoint)?;
                    }
                    other => panic!("{other:?}"),
                }
            }
            None
        })
        .await;
        self.redirects += redirects.get();
        let again = self.results.values().map(|key| ended(key.clone(), Some(0), EndCause::Exited)).collect();
        agent.report(again).await;
        agent
    }

    /// Runs tasks until so many were begun, or the stream ends.
    async fn work(&mut self, agent: &mut Agent, target: usize) {
        while self.ran.len() < target {
            match agent.try_next().await {
                Some(work_down::Message::Assignments(given)) => {
                    let mut reports = Vec::new();
                    for assignment in given.assignments {
                        let key = assignment.key.unwrap();
                        *self.ran.entry((key.task_id.clone(), key.attempt)).or_default() += 1;
                        self.results.insert((key.task_id.clone(), key.attempt), key.clone());
                        reports.push(started(key.clone()));
                        reports.push(ended(key, Some(0), EndCause::Exited));
                    }
                    agent.report(reports).await;
                }
                Some(work_down::Message::Acks(acks)) => {
                    for key in acks.attempts {
                        self.results.remove(&(key.task_id, key.attempt));
                    }
                }
                Some(_) => {}
                None => return,
            }
        }
    }
}

#[tokio::test]
async fn the_owner_of_a_pool_dies_and_another_replica_goes_on() {
    let (place, key) = (TestStore::postgres(), Arc::new(SecretKey::generate()));
    let mut first = Service::replica(&place, key.clone()).await;
    // The pool is that of the replica that has its first job.
    first.client().create_job("j1", JobSpec::default()).await;
    let second = Service::replica(&place, key).await;
    eventually("the second replica", || async { second.client().job("j1").await.ok() }).await;
    let mut node = Node::default();
    let mut agent = node.connect(&[&first, &second], 1).await;
    assert_eq!(node.redirects, 1, "the agent was sent to the owner");
    // Tasks that come in by the one are placed by the other.
    second.client().add_many("j1", 300).await;
    node.work(&mut agent, 120).await;
    assert!(node.ran.len() >= 120);
    let begun = Instant::now();
    first.kill();
    drop(agent);
    // What comes in while nobody has the pool.
    second.client().add("j1", spec("late")).await;
    let mut agent = node.connect(&[&second], 0).await;
    let taken_over = begun.elapsed();
    let work = async { node.work(&mut agent, usize::MAX).await };
    let client = second.client();
    tokio::select! {
        () = work => panic!("the stream ended"),
        () = client.completed("j1", 301) => {}
    }
    println!("taken over after {taken_over:?}, all tasks done after {:?}", begun.elapsed());
    let tasks: BTreeSet<&String> = node.ran.keys().map(|(task, _)| task).collect();
    assert_eq!(tasks.len(), 301);
    assert!(node.ran.values().all(|times| *times == 1), "an attempt was given out twice");
    let counts = client.counts("j1").await;
    assert_eq!((counts.active, counts.running, counts.succeeded, counts.failed), (0, 0, 301, 0));
}

#[tokio::test]
async fn calls_do_the_same_at_every_replica() {
    let (place, key) = (TestStore::postgres(), Arc::new(SecretKey::generate()));
    let first = Service::replica(&place, key.clone()).await;
    first.client().create_job("j1", JobSpec::default()).await;
    let second = Service::replica(&place, key).await;
    let client = second.client();
    eventually("the second replica", || async { client.job("j1").await.ok() }).await;
    let mut agent = first.agent("n1", 1).await;
    client.add("j1", spec("runs")).await;
    let runs = agent.assignments().await[0].key.clone().unwrap();
    for id in ["waits", "goes"] {
        client.add("j1", spec(id)).await;
    }
    let explain = ExplainTaskRequest { job_id: "j1".into(), task_id: "waits".into() };
    eventually("the owner knows the task and says why it waits", || async {
        let why = call!(client, explain_task, explain.clone()).unwrap();
        (why.reason == "NoFreeSlots").then_some(())
    })
    .await;
    let delete = DeleteTaskRequest { job_id: "j1".into(), task_id: "goes".into(), ..Default::default() };
    call!(client, delete_task, delete).unwrap();
    assert!(first.client().task("j1", "goes").await.is_err());
    let terminate = |id: &str| TerminateTaskRequest { job_id: "j1".into(), task_id: id.into(), ..Default::default() };
    call!(client, terminate_task, terminate("waits")).unwrap();
    call!(client, terminate_task, terminate("runs")).unwrap();
    assert_eq!(agent.stops().await, std::slice::from_ref(&runs));
    agent.stopped(&runs).await;
    let again = reason(call!(client, terminate_task, terminate("runs")).unwrap_err());
    assert_eq!(again, "TaskCompleted", "errors come back as they are");
    // Activated again by the replica that does not place it.
    let reactivate = ReactivateTaskRequest { job_id: "j1".into(), task_id: "runs".into(), ..Default::default() };
    call!(client, reactivate_task, reactivate).unwrap();
    let runs = agent.assignments().await[0].key.clone().unwrap();
    assert_eq!(runs.attempt, 2);
    // The job ends by a call at the other replica, and is gone for both.
    let delete = DeleteJobRequest { id: "j1".into(), ..Default::default() };
    call!(client, delete_job, delete).unwrap();
    assert_eq!(agent.stops().await, std::slice::from_ref(&runs));
    agent.stopped(&runs).await;
    eventually("the job is gone", || async { client.job("j1").await.err() }).await;
    assert!(first.client().job("j1").await.is_err());
}

#[tokio::test]
async fn a_replica_that_stops_in_order_hands_its_pools_over_at_once() {
    let (place, key) = (TestStore::postgres(), Arc::new(SecretKey::generate()));
    let first = Service::replica(&place, key.clone()).await;
    first.client().create_job("j1", JobSpec::default()).await;
    let second = Service::replica(&place, key).await;
    eventually("the second replica", || async { second.client().job("j1").await.ok() }).await;
    let mut node = Node::default();
    let agent = node.connect(&[&first, &second], 1).await;
    let begun = Instant::now();
    first.shutdown.cancel();
    drop(agent);
    let mut agent = node.connect(&[&second], 0).await;
    println!("handed over after {:?}", begun.elapsed());
    second.client().add("j1", spec("t")).await;
    let key = agent.assignments().await[0].key.clone().unwrap();
    agent.end(&key, 0).await;
    second.client().completed("j1", 1).await;
}
