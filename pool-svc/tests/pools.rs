//! Pools through the service's own port.

// Helpers outside of test functions.
#![allow(clippy::unwrap_used)]

mod support;

use kiln_error::Kind;
use kiln_proto::common::v1::{DeallocationOption, NameValue, Precondition};
use kiln_proto::pool::v1::*;
use kiln_testkit::eventually;
use support::{ACCOUNT, Agent, Service, call};

#[tokio::test]
async fn a_pool_becomes_idle_nodes_and_goes_again() {
    let service = Service::start().await;
    let created = service.create("Two", 2).await;
    assert_eq!(created.allocation_state(), AllocationState::Resizing);
    assert!(created.etag.starts_with("0x8D"), "{}", created.etag);
    let steady = service.wait_steady("two").await;
    assert_eq!((steady.id.as_str(), steady.current_dedicated_nodes, steady.resize_errors.len()), ("Two", 2, 0));
    assert_eq!(steady.etag, created.etag, "allocation states do not change the ETag");

    let mut agents = Vec::new();
    for node in ["Two-1", "Two-2"] {
        let key = node.to_lowercase();
        let agent = Agent::join(&service, "two", &key, "first").await;
        service.wait_node("two", node, NodeState::Starting).await;
        agent.report(AgentPhase::Ready, 0).await;
        let idle = service.wait_node("two", node, NodeState::Idle).await;
        assert_eq!((idle.task_slots, idle.id.as_str(), idle.ip_address.as_str()), (4, node, "127.0.0.1"));
        assert_eq!(agent.registered.account, ACCOUNT);
        assert_eq!(agent.registered.blob_endpoint, "http://127.0.0.1:2/demo");
        assert_eq!(agent.registered.settings.as_ref().unwrap().task_slots, 4);
        agents.push(agent);
    }
    agents[0].report(AgentPhase::Ready, 3).await;
    assert_eq!(service.wait_node("two", "two-1", NodeState::Running).await.running_tasks, 3);
    let count = CountNodesRequest { pool_id: "two".into(), ..CountNodesRequest::default() };
    let counts = service.client().count_nodes(call(count)).await.unwrap().into_inner().pools;
    let dedicated = counts[0].dedicated.clone().unwrap();
    assert_eq!((dedicated.total, dedicated.by_state["idle"], dedicated.by_state["running"]), (2, 1, 1));

    service.delete("two").await;
    assert_eq!(service.pool("two").await.unwrap().state(), PoolState::Deleting);
    for agent in &mut agents {
        assert!(matches!(agent.command().await, control_down::Message::Drain(_)));
        agent.report(AgentPhase::Drained, 0).await;
    }
    service.wait_gone("two").await;
    assert!(!service.node_dir("two", "two-1").exists());
    service.stop().await;
}

#[tokio::test]
async fn a_smaller_target_drains_idle_nodes_first_and_waits_for_tasks() {
    let service = Service::start().await;
    service.create("p", 2).await;
    service.wait_steady("p").await;
    let mut busy = Agent::join(&service, "p", "p-2", "a").await;
    busy.report(AgentPhase::Ready, 1).await;
    let mut idle = Agent::join(&service, "p", "p-1", "b").await;
    idle.report(AgentPhase::Ready, 0).await;
    service.wait_node("p", "p-1", NodeState::Idle).await;
    service.wait_node("p", "p-2", NodeState::Running).await;

    service.resize("p", 1, DeallocationOption::TaskCompletion).await;
    let control_down::Message::Drain(drain) = idle.command().await else { panic!("the idle node is drained") };
    assert_eq!(drain.option(), DeallocationOption::TaskCompletion);
    service.wait_node("p", "p-1", NodeState::LeavingPool).await;
    assert_eq!(service.pool("p").await.unwrap().allocation_state(), AllocationState::Resizing);
    let again = ResizePoolRequest { id: "p".into(), target_dedicated_nodes: Some(2), ..Default::default() };
    let error = kiln_error::Error::from(service.client().resize_pool(call(again)).await.unwrap_err());
    assert_eq!((error.kind(), error.reason()), (Kind::FailedPrecondition, "PoolBeingResized"));
    idle.report(AgentPhase::Drained, 0).await;
    assert!(matches!(idle.command().await, control_down::Message::Leave(_)));
    let steady = service.wait_steady("p").await;
    assert_eq!((steady.current_dedicated_nodes, steady.resize_errors.len()), (1, 0));
    assert_eq!(service.node("p", "p-1").await.unwrap_err().reason(), "NodeNotFound");

    // Named nodes lower the target; new nodes have new numbers.
    let remove = RemoveNodesRequest {
        pool_id: "p".into(),
        node_ids: vec!["p-2".into()],
        deallocation_option: DeallocationOption::Terminate as i32,
        ..RemoveNodesRequest::default()
    };
    service.client().remove_nodes(call(remove)).await.unwrap();
    assert!(matches!(busy.command().await, control_down::Message::Drain(_)));
    busy.report(AgentPhase::Drained, 0).await;
    let steady = service.wait_steady("p").await;
    assert_eq!(steady.spec.unwrap().target_dedicated_nodes, 0);
    service.resize("p", 1, DeallocationOption::Requeue).await;
    service.wait_steady("p").await;
    assert_eq!(service.nodes("p").await[0].id, "p-3");
    service.stop().await;
}

#[tokio::test]
async fn a_resize_can_be_stopped_and_a_provider_that_refuses_ends_it() {
    let service = Service::start_with(|config| {
        if let Some(local) = &mut config.local {
            local.agent_command = vec!["/nowhere/agent".into()];
        }
    })
    .await;
    service.create("p", 1).await;
    let steady = service.wait_steady("p").await;
    assert_eq!(steady.resize_errors[0].code, "AllocationFailed");
    assert!(steady.resize_errors[0].values[0].value.contains("/nowhere/agent"));
    assert_eq!(steady.current_dedicated_nodes, 0);
    eventually("nodes that were never made are forgotten", || async {
        service.nodes("p").await.is_empty().then_some(())
    })
    .await;
    let stop = StopResizeRequest { id: "p".into(), ..StopResizeRequest::default() };
    let error = kiln_error::Error::from(service.client().stop_resize(call(stop)).await.unwrap_err());
    assert_eq!(error.reason(), "OperationInvalidForCurrentState");
    service.stop().await;
}

#[tokio::test]
async fn stopping_a_resize_keeps_what_leaves_and_says_so() {
    let service = Service::start().await;
    service.create("p", 1).await;
    service.wait_steady("p").await;
    let mut agent = Agent::join(&service, "p", "p-1", "a").await;
    agent.report(AgentPhase::Ready, 1).await;
    service.wait_node("p", "p-1", NodeState::Running).await;
    service.resize("p", 0, DeallocationOption::TaskCompletion).await;
    assert!(matches!(agent.command().await, control_down::Message::Drain(_)));
    let stop = StopResizeRequest { id: "p".into(), ..StopResizeRequest::default() };
    let stopping = service.client().stop_resize(call(stop)).await.unwrap().into_inner().pool.unwrap();
    assert_eq!(stopping.allocation_state(), AllocationState::Stopping);
    let steady = service.wait_steady("p").await;
    assert_eq!(steady.resize_errors[0].code, "ResizeStopped");
    service.stop().await;
}

#[tokio::test]
async fn requests_are_checked_answered_once_and_guarded_by_etags() {
    let service = Service::start().await;
    let mut client = service.client();
    let create = |id: &str, request_id: &str| CreatePoolRequest {
        request_id: request_id.into(),
        id: id.into(),
        spec: Some(PoolSpec::default()),
    };
    let first = client.create_pool(call(create("p", "r1"))).await.unwrap().into_inner();
    let again = client.create_pool(call(create("p", "r1"))).await.unwrap().into_inner();
    assert_eq!(first, again);
    let reason = |result: Result<_, tonic::Status>| match result {
        Ok(()) => panic!("this has to be refused"),
        Err(status) => kiln_error::Error::from(status).reason().to_owned(),
    };
    assert_eq!(reason(client.create_pool(call(create("P", "r2"))).await.map(drop)), "PoolExists");
    assert_eq!(reason(client.create_pool(call(create("a b", "r3"))).await.map(drop)), "InvalidPropertyValue");
    assert_eq!(reason(client.create_pool(call(create("", "r4"))).await.map(drop)), "MissingRequiredProperty");
    let scaling = PoolSpec { enable_auto_scale: true, ..PoolSpec::default() };
    assert_eq!(service.create_with("s", scaling).await.unwrap_err().reason(), "UnsupportedProperty");
    assert_eq!(service.pool("none").await.unwrap_err().reason(), "PoolNotFound");

    let etag = first.pool.unwrap().etag;
    let metadata =
        |value: &str| Some(MetadataList { items: vec![NameValue { name: "owner".into(), value: value.into() }] });
    let update = |if_match: &str| UpdatePoolRequest {
        id: "p".into(),
        metadata: metadata("me"),
        precondition: Some(Precondition { if_match: if_match.into(), ..Precondition::default() }),
        ..UpdatePoolRequest::default()
    };
    let quoted = format!("\"{etag}\"");
    let updated = client.update_pool(call(update(&quoted))).await.unwrap().into_inner().pool.unwrap();
    assert_ne!(updated.etag, etag);
    assert_eq!(updated.spec.unwrap().metadata[0].value, "me");
    let stale = kiln_error::Error::from(client.update_pool(call(update(&quoted))).await.unwrap_err());
    assert_eq!((stale.kind(), stale.reason()), (Kind::ConditionNotMet, "ConditionNotMet"));
    client.update_pool(call(update("*"))).await.unwrap();
    let unchanged = GetPoolRequest {
        id: "p".into(),
        precondition: Some(Precondition { if_none_match: "*".into(), ..Precondition::default() }),
    };
    assert_eq!(reason(client.get_pool(call(unchanged)).await.map(drop)), "ConditionNotMet");
    let nothing = ResizePoolRequest { id: "p".into(), ..ResizePoolRequest::default() };
    assert_eq!(reason(client.resize_pool(call(nothing)).await.map(drop)), "MissingRequiredProperty");
    let strangers = RemoveNodesRequest { pool_id: "p".into(), node_ids: vec!["p-9".into()], ..Default::default() };
    assert_eq!(reason(client.remove_nodes(call(strangers)).await.map(drop)), "NodeNotFound");
    service.stop().await;
}

#[tokio::test]
async fn lists_are_paged_filtered_and_per_account() {
    let service = Service::start().await;
    for number in 0..5 {
        service.create(&format!("pool-{number}"), 0).await;
    }
    service.create("other", 0).await;
    let list = |filter: &str, page_token: &str| ListPoolsRequest {
        filter: filter.into(),
        page_size: 2,
        page_token: page_token.into(),
    };
    let (mut ids, mut token) = (Vec::new(), String::new());
    loop {
        let filter = "startswith(id,'POOL') and state eq 'active' and allocationState eq 'steady'";
        let page = service.client().list_pools(call(list(filter, &token))).await.unwrap().into_inner();
        ids.extend(page.pools.into_iter().map(|pool| pool.id));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(ids, ["pool-0", "pool-1", "pool-2", "pool-3", "pool-4"]);
    let error =
        kiln_error::Error::from(service.client().list_pools(call(list("colour eq 'red'", ""))).await.unwrap_err());
    assert_eq!(error.reason(), "InvalidQueryParameterValue");
    let foreign = kiln_grpc::with_account(list("", ""), "somebody").unwrap();
    assert!(service.client().list_pools(foreign).await.unwrap().into_inner().pools.is_empty());
    let count = CountNodesRequest { page_size: 4, ..CountNodesRequest::default() };
    let counted = service.client().count_nodes(call(count)).await.unwrap().into_inner();
    assert_eq!((counted.pools.len(), counted.next_page_token.is_empty()), (4, false));
    service.stop().await;
}

/// A caller may have a thousand calls open: each must be small.
#[tokio::test]
async fn requests_that_no_pool_needs_are_refused_before_they_are_read() {
    let service = Service::start().await;
    let display_name = "x".repeat(5 * 1024 * 1024);
    let spec = PoolSpec { display_name, ..PoolSpec::default() };
    let request = CreatePoolRequest { id: "p".into(), spec: Some(spec), ..CreatePoolRequest::default() };
    let refused = service.client().create_pool(call(request)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::OutOfRange, "{refused}");
    service.stop().await;
}
