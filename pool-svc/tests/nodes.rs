//! Nodes and their agents through the service's own port.

// Helpers outside of test functions.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use kiln_auth::token::{self, Claims, Principal};
use kiln_bus::{Bus, QueueSpec};
use kiln_error::Kind;
use kiln_node::JoinConfig;
use kiln_proto::events::v1::EventBatch;
use kiln_proto::pool::v1::*;
use kiln_testkit::eventually;
use prost::Message;
use support::{Agent, Service, call, registration, try_register};

async fn one_idle_node(service: &Service) -> Agent {
    service.create("p", 1).await;
    let agent = Agent::join(service, "p", "p-1", "first").await;
    agent.report(AgentPhase::Ready, 0).await;
    service.wait_node("p", "p-1", NodeState::Idle).await;
    agent
}

#[tokio::test]
async fn a_silent_node_is_unknown_then_unusable_and_comes_back() {
    let service = Service::start_with(|config| {
        config.heartbeat_interval = Duration::from_millis(50);
        config.missed_heartbeats = 2;
        config.unusable_after = Duration::from_millis(200);
    })
    .await;
    let agent = one_idle_node(&service).await;
    service.wait_node("p", "p-1", NodeState::Unknown).await;
    service.wait_node("p", "p-1", NodeState::Unusable).await;
    // Heartbeats alone say that it is there again.
    eventually("the node is idle again", || async {
        agent.heartbeat().await;
        service.node("p", "p-1").await.ok().filter(|node| node.state() == NodeState::Idle)
    })
    .await;
    service.stop().await;
}

#[tokio::test]
async fn heartbeats_are_acknowledged_and_bring_a_new_token() {
    let service = Service::start().await;
    let mut agent = one_idle_node(&service).await;
    agent.heartbeat().await;
    let Some(control_down::Message::HeartbeatAck(ack)) = agent.next().await.unwrap() else { panic!("an ack") };
    assert_eq!(ack.sequence, 1);
    assert!(token::verify(&ack.node_token, [&*service.key], kiln_grpc::caller::now_seconds()).is_ok());
    agent.heartbeat().await;
    let Some(control_down::Message::HeartbeatAck(ack)) = agent.next().await.unwrap() else { panic!("an ack") };
    assert_eq!((ack.sequence, ack.node_token.as_str()), (2, ""));
    assert!(service.node("p", "p-1").await.unwrap().agent_last_contact.is_some());
    service.stop().await;
}

#[tokio::test]
async fn only_the_nodes_own_token_registers_it() {
    let service = Service::start().await;
    service.create("p", 2).await;
    service.wait_steady("p").await;
    let join = JoinConfig::read(&service.node_dir("p", "p-1").join("join.json")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(service.node_dir("p", "p-1").join("join.json")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    let other = RegisterRequest { node_id: "p-2".into(), ..registration(&join, "i") };
    let error = try_register(&service, &join.join_token, other).await.unwrap_err();
    assert_eq!(error.kind(), Kind::PermissionDenied);
    let claims = Claims { principal: Principal::Service { name: "x".into() }, expires: i64::MAX / 2 };
    let error =
        try_register(&service, &token::mint(&service.key, &claims), registration(&join, "i")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::PermissionDenied);
    let error = try_register(&service, "kiln1.e30.x", registration(&join, "i")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthenticated);
    let principal = Principal::Join { account: "demo".into(), pool: "p".into(), node: "p-9".into(), made_micros: 1 };
    let stranger = token::mint(&service.key, &Claims { principal, expires: i64::MAX / 2 });
    let request = RegisterRequest { node_id: "p-9".into(), ..registration(&join, "i") };
    assert_eq!(try_register(&service, &stranger, request).await.unwrap_err().reason(), "NodeNotFound");
    let empty = registration(&join, "");
    assert_eq!(try_register(&service, &join.join_token, empty).await.unwrap_err().kind(), Kind::InvalidArgument);
    try_register(&service, &join.join_token, registration(&join, "i")).await.unwrap();
    try_register(&service, &join.join_token, registration(&join, "i")).await.unwrap();
    service.stop().await;
}

#[tokio::test]
async fn a_newer_stream_replaces_an_older_one_and_a_stale_agent_has_to_leave() {
    let service = Service::start().await;
    let mut first = one_idle_node(&service).await;
    let mut second = Agent::connect(&service, first.registered.clone(), "first").await;
    second.report(AgentPhase::Ready, 2).await;
    service.wait_node("p", "p-1", NodeState::Running).await;
    let replaced = first.next().await.unwrap_err();
    assert_eq!(kiln_error::Error::from(replaced).reason(), "StreamReplaced");
    let third = Agent::join(&service, "p", "p-1", "second").await;
    assert_eq!(kiln_error::Error::from(second.next().await.unwrap_err()).reason(), "StreamReplaced");
    third.report(AgentPhase::Ready, 0).await;
    service.wait_node("p", "p-1", NodeState::Idle).await;
    let mut stale = Agent::connect(&service, first.registered.clone(), "first").await;
    stale.report(AgentPhase::Ready, 5).await;
    assert!(matches!(stale.next().await.unwrap(), Some(control_down::Message::Leave(_))));
    assert_eq!(kiln_error::Error::from(stale.next().await.unwrap_err()).reason(), "StaleIncarnation");
    assert_eq!(service.node("p", "p-1").await.unwrap().running_tasks, 0);
    service.stop().await;
}

#[tokio::test]
async fn start_tasks_are_seen_and_a_new_one_counts_after_a_reboot() {
    let service = Service::start().await;
    let task = |command: &str| Some(StartTask { command_line: command.into(), ..StartTask::default() });
    let spec = PoolSpec { target_dedicated_nodes: 1, start_task: task("one"), ..PoolSpec::default() };
    service.create_with("p", spec).await.unwrap();
    let mut agent = Agent::join(&service, "p", "p-1", "first").await;
    assert_eq!(agent.registered.settings.clone().unwrap().start_task.unwrap().command_line, "one");
    let update = UpdatePoolRequest { id: "p".into(), start_task: task("two"), ..UpdatePoolRequest::default() };
    service.client().update_pool(call(update)).await.unwrap();
    agent.report(AgentPhase::WaitingForStartTask, 0).await;
    service.wait_node("p", "p-1", NodeState::WaitingForStartTask).await;
    let reboot = || RebootNodeRequest { pool_id: "p".into(), node_id: "P-1".into(), ..RebootNodeRequest::default() };
    let error = kiln_error::Error::from(service.client().reboot_node(call(reboot())).await.unwrap_err());
    assert_eq!((error.kind(), error.reason()), (Kind::FailedPrecondition, "NodeBeingStarted"));
    agent
        .report_with(AgentPhase::StartTaskFailed, 0, |report| {
            report.start_task_info = Some(StartTaskInfo { exit_code: Some(3), ..StartTaskInfo::default() });
        })
        .await;
    let failed = service.wait_node("p", "p-1", NodeState::StartTaskFailed).await;
    assert_eq!(failed.start_task_info.unwrap().exit_code, Some(3));
    assert_eq!(failed.start_task.unwrap().command_line, "one", "the one this life of the node ran");
    let filter = ListNodesRequest {
        pool_id: "p".into(),
        filter: "startTaskInfo/exitCode ne 0 and state eq 'starttaskfailed'".into(),
        ..ListNodesRequest::default()
    };
    assert_eq!(service.client().list_nodes(call(filter)).await.unwrap().into_inner().nodes.len(), 1);
    service.client().reboot_node(call(reboot())).await.unwrap();
    service.wait_node("p", "p-1", NodeState::Rebooting).await;
    assert!(matches!(agent.command().await, control_down::Message::Reboot(_)));
    let again = Agent::join(&service, "p", "p-1", "second").await;
    assert_eq!(again.registered.settings.clone().unwrap().start_task.unwrap().command_line, "two");
    again.report(AgentPhase::Ready, 0).await;
    let idle = service.wait_node("p", "p-1", NodeState::Idle).await;
    assert_eq!(idle.start_task.unwrap().command_line, "two");
    service.stop().await;
}

#[tokio::test]
async fn scheduling_is_disabled_and_enabled_and_told_again_to_a_new_life() {
    let service = Service::start().await;
    let mut agent = one_idle_node(&service).await;
    let disable = || DisableNodeSchedulingRequest { pool_id: "p".into(), node_id: "p-1".into(), ..Default::default() };
    service.client().disable_node_scheduling(call(disable())).await.unwrap();
    let offline = service.wait_node("p", "p-1", NodeState::Offline).await;
    assert_eq!(offline.scheduling_state(), SchedulingState::Disabled);
    assert!(matches!(agent.command().await, control_down::Message::DisableScheduling(_)));
    let error = kiln_error::Error::from(service.client().disable_node_scheduling(call(disable())).await.unwrap_err());
    assert_eq!(error.reason(), "NodeAlreadyInTargetSchedulingState");
    let mut next = Agent::join(&service, "p", "p-1", "second").await;
    next.report(AgentPhase::Ready, 0).await;
    assert!(matches!(next.command().await, control_down::Message::DisableScheduling(_)));
    service.wait_node("p", "p-1", NodeState::Offline).await;
    next.report(AgentPhase::Ready, 0).await;
    let enable = EnableNodeSchedulingRequest { pool_id: "p".into(), node_id: "p-1".into(), ..Default::default() };
    service.client().enable_node_scheduling(call(enable)).await.unwrap();
    assert!(matches!(next.command().await, control_down::Message::EnableScheduling(_)));
    service.wait_node("p", "p-1", NodeState::Idle).await;
    service.stop().await;
}

#[tokio::test]
async fn what_happens_is_announced_in_order() {
    let service = Service::start().await;
    let queue = QueueSpec { name: "test".into(), bindings: vec!["pool.#".into()], prefetch: 100 };
    let mut events = service.bus.subscribe(&queue).await.unwrap();
    let mut agent = one_idle_node(&service).await;
    service.wait_steady("p").await;
    service.delete("p").await;
    assert!(matches!(agent.command().await, control_down::Message::Drain(_)));
    agent.report(AgentPhase::Drained, 0).await;
    service.wait_gone("p").await;
    let mut seen: Vec<(String, u64)> = Vec::new();
    while seen.last().is_none_or(|(name, _)| name != "pool.pool.deleted") {
        let delivery = tokio::time::timeout(kiln_testkit::PATIENCE, events.next()).await.unwrap().unwrap();
        let batch = EventBatch::decode(delivery.message.body.clone()).unwrap();
        seen.extend(batch.events.into_iter().map(|event| (event.r#type, event.sequence)));
        delivery.ack().await.unwrap();
    }
    assert!(seen.windows(2).all(|pair| pair[0].1 < pair[1].1), "{seen:?}");
    for name in [
        "pool.pool.created",
        "pool.pool.resize_started",
        "pool.node.created",
        "pool.node.state",
        "pool.pool.resize_completed",
        "pool.pool.deleting",
        "pool.node.removed",
    ] {
        assert!(seen.iter().any(|(event, _)| event == name), "{name} is missing in {seen:?}");
    }
    service.stop().await;
}
