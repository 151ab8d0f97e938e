//! Machines that join a pool by a token, and nodes' tokens.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use kiln_auth::token::{self, Claims, Principal};
use kiln_error::{Error, Kind};
use kiln_node::{JoinConfig, JoinInvitation};
use kiln_proto::pool::v1::control_down::Message as Down;
use kiln_proto::pool::v1::node_control_service_client::NodeControlServiceClient;
use kiln_proto::pool::v1::*;
use kiln_testkit::eventually;
use support::{ACCOUNT, Agent, Service, call, invitation, join, registration, try_register, with_token};

async fn leave(service: &Service, token: &str) -> Result<(), Error> {
    let mut client = NodeControlServiceClient::connect(service.endpoint.clone()).await.unwrap();
    client.leave(with_token(LeaveRequest {}, token)).await.map(drop).map_err(Into::into)
}

async fn gone(service: &Service, pool: &str, node: &str) {
    eventually("the node is gone", || async {
        service.node(pool, node).await.err().filter(|error| error.reason() == "NodeNotFound")
    })
    .await;
}

#[tokio::test]
async fn a_machine_joins_works_and_leaves() {
    let service = Service::start().await;
    service.create("p", 0).await;
    let invitation = invitation(&service, "p", 2).await.unwrap();
    let first = join(&service, &invitation, "r1").await.unwrap();
    let again = join(&service, &invitation, "r1").await.unwrap();
    assert_eq!((first.node_id.as_str(), &first.node_id), ("p-1", &again.node_id), "a repeated call joins once");
    let second = join(&service, &invitation, "r2").await.unwrap();
    let error = join(&service, &invitation, "r3").await.unwrap_err();
    assert_eq!((error.kind(), error.reason()), (Kind::FailedPrecondition, "JoinTokenUsedUp"), "{error}");
    assert!(error.to_string().contains("kiln node token"), "{error}");

    let mut agent = Agent::register(&service, &first, "i1").await;
    agent.report(AgentPhase::Ready, 0).await;
    service.wait_node("p", "p-1", NodeState::Idle).await;
    let pool = service.pool("p").await.unwrap();
    assert_eq!(pool.allocation_state(), AllocationState::Steady);
    assert_eq!((pool.spec.unwrap().target_dedicated_nodes, pool.current_dedicated_nodes), (0, 2));

    // Targets are about the provider's nodes.
    service.resize("p", 1, kiln_proto::common::v1::DeallocationOption::Requeue).await;
    service.wait_steady("p").await;
    assert_eq!(service.nodes("p").await.len(), 3);
    service.resize("p", 0, kiln_proto::common::v1::DeallocationOption::Requeue).await;
    gone(&service, "p", "p-3").await;
    assert_eq!(service.nodes("p").await.len(), 2);

    // One leaves by itself, the other is removed, as any node.
    leave(&service, &second.join_token).await.unwrap();
    gone(&service, "p", &second.node_id).await;
    leave(&service, &second.join_token).await.unwrap();
    service.wait_steady("p").await;
    let remove =
        RemoveNodesRequest { pool_id: "p".into(), node_ids: vec!["p-1".into()], ..RemoveNodesRequest::default() };
    service.client().remove_nodes(call(remove)).await.unwrap();
    assert!(matches!(agent.command().await, Down::Drain(_)));
    agent.report(AgentPhase::Drained, 0).await;
    assert!(matches!(agent.command().await, Down::Leave(_)));
    gone(&service, "p", "p-1").await;
    assert_eq!(
        try_register(&service, &first.join_token, registration(&first, "i2")).await.unwrap_err().reason(),
        "NodeNotFound"
    );
    service.stop().await;
}

#[tokio::test]
async fn join_tokens_are_for_their_pool_and_their_time() {
    let service = Service::start().await;
    let error = invitation(&service, "p", 1).await.unwrap_err();
    assert_eq!(error.reason(), "PoolNotFound");
    service.create("p", 0).await;
    for (uses, valid) in [(-1, 60), (1001, 60), (1, 0), (1, 8 * 86_400)] {
        let valid = Some(prost_types::Duration { seconds: valid, nanos: 0 });
        let request = CreateJoinTokenRequest { pool_id: "p".into(), uses, valid, ..CreateJoinTokenRequest::default() };
        let error = Error::from(service.client().create_join_token(call(request)).await.unwrap_err());
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
    }
    let of_first = invitation(&service, "p", 5).await.unwrap();
    let joined = join(&service, &of_first, "r").await.unwrap();
    // Neither opens what the other, or a service, may do.
    let error = try_register(&service, &of_first.token, registration(&joined, "i")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::PermissionDenied, "{error}");
    let wrong = JoinInvitation { token: joined.join_token.clone(), ..of_first.clone() };
    assert_eq!(join(&service, &wrong, "x").await.unwrap_err().kind(), Kind::PermissionDenied);

    // A later pool of the same id has other tokens, and other nodes of the same names.
    service.delete("p").await;
    service.wait_gone("p").await;
    service.create("p", 0).await;
    let error = join(&service, &of_first, "r9").await.unwrap_err();
    assert_eq!(error.reason(), "JoinTokenExpired", "{error}");
    let second = join(&service, &invitation(&service, "p", 1).await.unwrap(), "r").await.unwrap();
    assert_eq!(second.node_id, joined.node_id);
    let error = try_register(&service, &joined.join_token, registration(&joined, "i")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthenticated, "{error}");
    assert!(error.to_string().contains("earlier node"), "{error}");
    let error = leave(&service, &joined.join_token).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthenticated, "{error}");

    // An expired one: the clocks of machines may differ by a minute, the pool's own does not.
    let principal = |id: &str| Principal::PoolJoin { account: ACCOUNT.into(), pool: "p".into(), id: id.into() };
    let minted = token::mint(&service.key, &Claims { principal: principal("none"), expires: 1 });
    let old = JoinInvitation { token: minted, ..of_first };
    let error = join(&service, &old, "r").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthenticated, "{error}");
    assert!(error.to_string().contains("expired"), "{error}");
    service.stop().await;
}

#[tokio::test]
async fn a_machine_that_joined_and_vanished_is_forgotten() {
    let service = Service::start_with(|config| {
        config.heartbeat_interval = Duration::from_millis(100);
        config.missed_heartbeats = 3;
        config.unusable_after = Duration::from_millis(500);
    })
    .await;
    service.create("p", 0).await;
    let joined = join(&service, &invitation(&service, "p", 1).await.unwrap(), "r").await.unwrap();
    let agent = Agent::register(&service, &joined, "i").await;
    agent.report(AgentPhase::Ready, 0).await;
    service.wait_node("p", "p-1", NodeState::Idle).await;
    drop(agent);
    gone(&service, "p", "p-1").await;
    service.stop().await;
}

#[tokio::test]
async fn a_node_token_is_of_one_life_and_is_renewed_for_that_alone() {
    let service = Service::start().await;
    service.create("p", 0).await;
    let joined = join(&service, &invitation(&service, "p", 1).await.unwrap(), "r").await.unwrap();
    let mut agent = Agent::register(&service, &joined, "i1").await;
    let lives = |text: &str| {
        let claims = token::verify(text, [&*service.key], 0).unwrap();
        let Principal::Node { pool, node, incarnation, .. } = claims.principal else { panic!("{claims:?}") };
        let left = claims.expires - kiln_grpc::caller::now_seconds();
        assert!((3000..=3600).contains(&left), "{left}");
        (pool, node, incarnation)
    };
    assert_eq!(lives(&agent.registered.node_token), ("p".into(), "p-1".into(), "i1".into()));

    // Without an accepted report nobody gets another token.
    agent.heartbeat().await;
    assert!(matches!(agent.next().await.unwrap(), Some(Down::HeartbeatAck(ack)) if ack.node_token.is_empty()));
    agent.report(AgentPhase::Ready, 0).await;
    service.wait_node("p", "p-1", NodeState::Idle).await;
    agent.heartbeat().await;
    let Some(Down::HeartbeatAck(ack)) = agent.next().await.unwrap() else { panic!("no acknowledgement") };
    assert_eq!(lives(&ack.node_token), ("p".into(), "p-1".into(), "i1".into()));

    // It does not register, and speaks for no other life.
    let error = try_register(&service, &agent.registered.node_token, registration(&joined, "i2")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::PermissionDenied, "{error}");
    let mut other = Agent::connect(&service, agent.registered.clone(), "i2").await;
    other.report(AgentPhase::Ready, 0).await;
    let error = Error::from(other.next().await.unwrap_err());
    assert_eq!(error.kind(), Kind::PermissionDenied, "{error}");
    assert!(error.to_string().contains("another life"), "{error}");
    service.stop().await;
}

#[tokio::test]
async fn nodes_of_a_provider_do_not_leave() {
    let service = Service::start().await;
    service.create("p", 1).await;
    service.wait_steady("p").await;
    let join = JoinConfig::read(&service.node_dir("p", "p-1").join("join.json")).unwrap();
    let error = leave(&service, &join.join_token).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    service.stop().await;
}
