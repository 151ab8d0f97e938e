//! Several replicas of the service on one PostgreSQL: every one takes calls and agents.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Instant;

use kiln_auth::SecretKey;
use kiln_error::Kind;
use kiln_proto::common::v1::FileEntry;
use kiln_proto::pool::v1::control_down::Message as Down;
use kiln_proto::pool::v1::file_answer::Part;
use kiln_proto::pool::v1::*;
use kiln_store::testing::TestStore;
use kiln_testkit::eventually;
use support::{Agent, Service, call, invitation, join};

fn spec() -> PoolSpec {
    PoolSpec { task_slots_per_node: 1, ..PoolSpec::default() }
}

/// The first of them serves.
async fn replicas(count: usize) -> (TestStore, Vec<Service>) {
    let (place, key) = (TestStore::postgres(), Arc::new(SecretKey::generate()));
    let mut all = vec![Service::replica(&place, key.clone()).await];
    all[0].create_with("first", spec()).await.unwrap();
    for _ in 1..count {
        let replica = Service::replica(&place, key.clone()).await;
        eventually("it answers", || async { replica.pool("first").await.ok() }).await;
        all.push(replica);
    }
    (place, all)
}

/// An agent whose stream is at `service`, and its node is idle.
async fn agent(service: &Service, pool: &str, node: &str) -> Agent {
    let invited = invitation(service, pool, 1).await.unwrap();
    let joined = join(service, &invited, node).await.unwrap();
    assert_eq!(joined.node_id, node);
    let agent = Agent::register(service, &joined, "life").await;
    agent.report(AgentPhase::Ready, 0).await;
    service.wait_node(pool, node, NodeState::Idle).await;
    agent
}

async fn reboot(service: &Service, request_id: &str) -> Result<(), kiln_error::Error> {
    let request = RebootNodeRequest {
        request_id: request_id.into(),
        pool_id: "p".into(),
        node_id: "p-1".into(),
        ..RebootNodeRequest::default()
    };
    service.client().reboot_node(call(request)).await.map(drop).map_err(Into::into)
}

/// Asks for a file through one replica; the agent answers through another.
async fn read_file(service: &Service, agent: &mut Agent) {
    let mut client = service.client();
    let request =
        ReadNodeFileRequest { pool_id: "p".into(), node_id: "p-1".into(), path: "f".into(), ..Default::default() };
    let asked = kiln_telemetry::spawn(async move {
        let mut stream = client.read_node_file(call(request)).await?.into_inner();
        let mut bytes = 0;
        while let Some(part) = stream.message().await? {
            if let Some(read_node_file_response::Part::Data(data)) = part.part {
                bytes += data.len();
            }
        }
        Ok::<_, tonic::Status>(bytes)
    });
    let request = agent.file_request().await;
    let mut answer = agent.answer(&request.transfer_id);
    answer.part(Part::File(FileEntry { name: "f".into(), content_length: 2_000_000, ..FileEntry::default() })).await;
    for _ in 0..20 {
        answer.part(Part::Data(vec![7; 100_000].into())).await;
    }
    answer.part(Part::Done(FileDone {})).await;
    answer.end().await.unwrap();
    assert_eq!(asked.await.unwrap().unwrap(), 2_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_replica_takes_calls_and_agents() {
    let (_place, all) = replicas(3).await;
    let [serving, second, third] = &all[..] else { panic!("three") };
    // A pool that is made at one, and read at all, at once.
    second.create_with("p", spec()).await.unwrap();
    for service in &all {
        assert_eq!(service.pool("p").await.unwrap().id, "p");
    }
    let twice = third.create_with("p", spec()).await.unwrap_err();
    assert_eq!((twice.kind(), twice.reason()), (Kind::AlreadyExists, "PoolExists"), "errors come back as they are");

    // The agent is at the second, the questions come to the third, commands to all.
    let mut node = agent(second, "p", "p-1").await;
    for service in &all {
        assert_eq!(service.nodes("p").await.len(), 1);
        assert!(service.node("p", "p-1").await.unwrap().agent_last_contact.is_some());
    }
    read_file(third, &mut node).await;
    read_file(serving, &mut node).await;
    reboot(third, "r1").await.unwrap();
    reboot(serving, "r1").await.unwrap();
    assert!(matches!(node.command().await, Down::Reboot(_)));
    drop(node);
    for service in all {
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_outlives_the_replica_that_served() {
    let (_place, mut all) = replicas(3).await;
    let (second, third) = (&all[1], &all[2]);
    third.create_with("p", spec()).await.unwrap();
    let mut node = agent(second, "p", "p-1").await;
    let registered = node.registered.clone();
    let incarnation = node.incarnation.clone();
    reboot(third, "r1").await.unwrap();
    assert!(matches!(node.command().await, Down::Reboot(_)));

    let begun = Instant::now();
    all[0].kill();
    let (second, third) = (&all[1], &all[2]);
    // The stream that was passed on ends as one that the agent itself had would.
    let ended = loop {
        match node.next().await {
            Ok(message) => assert!(message.is_some(), "it ends with a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), tonic::Code::Unavailable, "{ended}");
    // Calls wait for the next one, which knows everything; the request was answered already.
    reboot(second, "r1").await.unwrap();
    reboot(third, "r1").await.unwrap();
    println!("taken over after {:?}", begun.elapsed());
    let mut node = Agent::connect(third, registered, &incarnation).await;
    node.report(AgentPhase::Ready, 0).await;
    assert!(matches!(node.command().await, Down::Reboot(_)), "the command that was not confirmed comes again");
    node.report(AgentPhase::Ready, 0).await;
    read_file(second, &mut node).await;
    assert_eq!(third.pool("first").await.unwrap().id, "first");
    // The last one is alone, and serves.
    all.remove(1).kill();
    let last = all.pop().unwrap();
    eventually("it serves", || async { last.create_with("q", spec()).await.ok() }).await;
    last.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_on_while_replicas_are_restarted_in_order() {
    let (place, mut all) = replicas(2).await;
    let key = all[0].key.clone();
    for round in 0..3 {
        // Whoever serves is stopped; the other takes every call meanwhile.
        let begun = Instant::now();
        let (stopped, other) = (all.remove(0), &all[0]);
        let stopping = kiln_telemetry::spawn(stopped.stop());
        let mut calls = 0;
        while !stopping.is_finished() || calls < 5 {
            other.create_with(&format!("p-{round}-{calls}"), spec()).await.unwrap();
            calls += 1;
        }
        stopping.await.unwrap();
        println!("round {round}: {calls} calls in {:?}", begun.elapsed());
        all.push(Service::replica(&place, key.clone()).await);
    }
    for service in all {
        service.stop().await;
    }
}
