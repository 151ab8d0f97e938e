//! Real processes of the local provider.

// Helpers outside of test functions.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use kiln_ids::{AccountName, NodeId, PoolId};
use kiln_node::JoinConfig;
use kiln_proto::pool::v1::*;
use kiln_testkit::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pool_svc::LocalProviderConfig;
use pool_svc::domain::{NodeName, PoolName};
use pool_svc::provider::local::LocalProvider;
use pool_svc::provider::{NodePlan, Provider, ProviderError};
use support::{Agent, Service, idle_agents};

fn is_running(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None).is_ok()
}

async fn pid_of(service: &Service, node: &str) -> i32 {
    eventually("the agent has its lock", || async { service.agent_pid("p", node).filter(|pid| is_running(*pid)) }).await
}

#[tokio::test]
async fn a_killed_agent_is_started_again_under_the_same_name() {
    let service = Service::start().await;
    service.create("p", 1).await;
    service.wait_steady("p").await;
    let pid = pid_of(&service, "p-1").await;
    let agent = Agent::join(&service, "p", "p-1", "first").await;
    agent.report(AgentPhase::Ready, 1).await;
    service.wait_node("p", "p-1", NodeState::Running).await;
    drop(agent);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let next = eventually("another process", || async {
        service.agent_pid("p", "p-1").filter(|next| *next != pid && is_running(*next))
    })
    .await;
    assert!(!is_running(pid), "the old one was reaped");
    service.wait_node("p", "p-1", NodeState::Starting).await;
    let agent = Agent::join(&service, "p", "p-1", "second").await;
    agent.report(AgentPhase::Ready, 0).await;
    service.wait_node("p", "p-1", NodeState::Idle).await;
    service.delete("p").await;
    drop(agent);
    // The drained report never comes; the end of the process does.
    kill(Pid::from_raw(next), Signal::SIGKILL).unwrap();
    service.wait_gone("p").await;
    service.stop().await;
}

#[tokio::test]
async fn a_restarted_service_adopts_the_agents_that_still_run() {
    let service = Service::start_with(|config| config.stop_nodes_on_shutdown = false).await;
    service.create("p", 2).await;
    service.wait_steady("p").await;
    let before = (pid_of(&service, "p-1").await, pid_of(&service, "p-2").await);
    let agent = Agent::join(&service, "p", "p-1", "first").await;
    agent.report(AgentPhase::Ready, 1).await;
    service.wait_node("p", "p-1", NodeState::Running).await;
    let registered = agent.registered.clone();
    let service = service.restart(|_| {}).await;
    assert_eq!(service.node("p", "p-1").await.unwrap().state(), NodeState::Running);
    let agent = Agent::connect(&service, registered, "first").await;
    agent.report(AgentPhase::Ready, 0).await;
    service.wait_node("p", "p-1", NodeState::Idle).await;
    assert_eq!((pid_of(&service, "p-1").await, pid_of(&service, "p-2").await), before);

    // This time in an orderly way: the agents stop, their nodes stay on record.
    let service = service.restart(|_| {}).await;
    assert!(!is_running(before.0) && !is_running(before.1));
    eventually("both run again", || async {
        let pids = (service.agent_pid("p", "p-1")?, service.agent_pid("p", "p-2")?);
        (is_running(pids.0) && is_running(pids.1) && pids != before).then_some(())
    })
    .await;
    assert_eq!(service.nodes("p").await.len(), 2);
    service.stop().await;
}

#[tokio::test]
async fn what_belongs_to_no_pool_is_taken_away() {
    let service = Service::start_with(|config| config.stop_nodes_on_shutdown = false).await;
    service.create("p", 1).await;
    service.wait_steady("p").await;
    let pid = pid_of(&service, "p-1").await;
    let dir = service.node_dir("p", "p-1");
    let service = service
        .restart(|config| {
            // As if the records had been lost.
            config.data_dir = config.data_dir.join("empty");
            config.store = config.data_dir.join("pool-svc.db").into();
        })
        .await;
    eventually("the stray is gone", || async { (!dir.exists() && !is_running(pid)).then_some(()) }).await;
    service.stop().await;
}

fn plan(node: &str) -> NodePlan {
    let pool = PoolName { account: AccountName::parse("acc").unwrap(), pool: PoolId::parse("Pool").unwrap() };
    NodePlan {
        name: pool.node(&NodeId::parse(node).unwrap()),
        vm_size: "local".into(),
        join: JoinConfig {
            control_endpoint: "http://127.0.0.1:1".into(),
            account: "acc".into(),
            pool_id: "Pool".into(),
            node_id: node.into(),
            join_token: "secret".into(),
            ca_pem: None,
            node_dir: "/".into(),
        },
    }
}

async fn alive(provider: &LocalProvider) -> Vec<(NodeName, bool)> {
    let mut seen: Vec<_> =
        provider.observe(None).await.unwrap().into_iter().map(|node| (node.name, node.alive)).collect();
    seen.sort();
    seen
}

fn pid_in(dir: &Path) -> Option<i32> {
    std::fs::read_to_string(dir.join("agent.lock")).ok()?.trim().parse().ok()
}

#[tokio::test]
async fn calls_may_be_repeated_and_other_providers_see_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let provider = LocalProvider::new(idle_agents(dir.path())).unwrap();
    let plan = plan("n-1");
    provider.create(&plan).await.unwrap();
    let node_dir = provider.node_dir(&plan.name);
    let pid = eventually("the lock", || async { pid_in(&node_dir) }).await;
    provider.create(&plan).await.unwrap();
    assert_eq!(pid_in(&node_dir), Some(pid), "one agent per node");
    assert_eq!(alive(&provider).await, [(plan.name.clone(), true)]);
    let join = JoinConfig::read(&node_dir.join("join.json")).unwrap();
    assert_eq!(join.node_dir, node_dir);

    let other = LocalProvider::new(idle_agents(dir.path())).unwrap();
    assert_eq!(alive(&other).await, [(plan.name.clone(), true)], "nothing depends on memory");
    other.create(&plan).await.unwrap();
    assert_eq!(pid_in(&node_dir), Some(pid));
    other.delete(&plan.name).await.unwrap();
    other.delete(&plan.name).await.unwrap();
    eventually("the node is gone", || async { alive(&provider).await.is_empty().then_some(()) }).await;
    assert!(!is_running(pid));
    // The node is gone from the view a moment before its directories are.
    eventually("empty directories go too", || async { (!dir.path().join("nodes/acc").exists()).then_some(()) }).await;
    provider.delete(&plan.name).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_does_not_stop_is_killed_with_its_group() {
    let dir = tempfile::tempdir().unwrap();
    let stubborn = "trap '' TERM; exec 9<>agent.lock; flock -xn 9 || exit 1; echo $$ >&9; sleep 300 9>&- & echo $! > child; wait; wait";
    let command = ["sh", "-c", stubborn, "agent"].map(str::to_owned).to_vec();
    let config = LocalProviderConfig {
        stop_grace: std::time::Duration::from_millis(200),
        ..LocalProviderConfig::new(dir.path().join("nodes"), command)
    };
    let provider = LocalProvider::new(config).unwrap();
    let plan = plan("n-1");
    provider.create(&plan).await.unwrap();
    let child_file = provider.node_dir(&plan.name).join("child");
    let child: i32 =
        eventually("the agent's child", || async { std::fs::read_to_string(&child_file).ok()?.trim().parse().ok() })
            .await;
    provider.delete(&plan.name).await.unwrap();
    eventually("all of it is gone", || async { (alive(&provider).await.is_empty() && !is_alive(child)).then_some(()) })
        .await;
}

/// An orphan that was killed stays a zombie where nobody reaps orphans.
fn is_alive(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = status.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z')
}

#[tokio::test]
async fn a_missing_program_is_refused_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let config = LocalProviderConfig::new(dir.path(), vec!["/nowhere/agent".into()]);
    let provider = LocalProvider::new(config).unwrap();
    let error = provider.create(&plan("n-1")).await.unwrap_err();
    assert!(matches!(error, ProviderError::Refused(_)), "{error}");
    assert_eq!(alive(&provider).await.len(), 1, "its directory stays until it is taken away");
}
