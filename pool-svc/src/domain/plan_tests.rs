//! The plan against single situations and against random ones.

use proptest::prelude::*;

use super::*;
use crate::domain::DeallocationOption;
use crate::domain::agent::{AgentFacts, Phase, View};
use crate::domain::node::Cause;
use crate::domain::pool::{Counts, NewPool};

const NOW: Timestamp = Timestamp::from_micros(1_763_600_000_000_000);
const REQUEUE: DeallocationOption = DeallocationOption::Requeue;

fn pool(dedicated: u32, low_priority: u32) -> Pool {
    Pool::create(
        NewPool {
            account: kiln_ids::AccountName::parse("a").unwrap(),
            id: kiln_ids::PoolId::parse("p").unwrap(),
            target: Counts { dedicated, low_priority },
            resize_timeout: Duration::from_secs(900),
            task_slots: 1,
            settings: Vec::new(),
        },
        NOW,
    )
}

fn node(number: u64, state: NodeState) -> Node {
    let mut node = Node::create(NodeId::parse(&format!("p-{number}")).unwrap(), true, NOW);
    node.state = state;
    node.allocated = state != NodeState::Creating;
    if node.allocated {
        node.incarnation = "i".into();
        node.view.phase = Phase::Ready;
    }
    node
}

fn seen() -> Sight {
    Sight { exists: true, alive: true, connected: true, last_contact: NOW }
}

fn sights(nodes: &[Node], sight: Sight) -> BTreeMap<NodeId, Sight> {
    nodes.iter().map(|node| (node.id.clone(), sight)).collect()
}

fn planned(pool: &Pool, nodes: &[Node], sight: Sight, now: Timestamp) -> Vec<Decision> {
    plan(pool, nodes, &sights(nodes, sight), now, &Limits::default())
}

fn later(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

#[test]
fn a_new_pool_gets_its_nodes_then_is_steady() {
    let pool = pool(2, 1);
    assert_eq!(
        planned(&pool, &[], seen(), NOW),
        [Decision::Add { dedicated: true, count: 2 }, Decision::Add { dedicated: false, count: 1 }]
    );
    let mut low = node(3, NodeState::Idle);
    low.dedicated = false;
    let nodes = [node(1, NodeState::Idle), node(2, NodeState::Starting), low];
    assert_eq!(planned(&pool, &nodes, seen(), NOW), [Decision::EndResize(vec![])]);
}

#[test]
fn nodes_that_joined_are_nobodys_to_make_or_to_count() {
    let joined = |state| {
        let mut node = node(9, state);
        (node.joined, node.allocated) = (true, true);
        node
    };
    // A resize wants its own nodes, and shrinks by its own.
    let nodes = [joined(NodeState::Idle), node(1, NodeState::Idle)];
    assert_eq!(planned(&pool(2, 0), &nodes, seen(), NOW), [Decision::Add { dedicated: true, count: 1 }]);
    assert_eq!(planned(&pool(1, 0), &nodes, seen(), NOW), [Decision::EndResize(vec![])]);
    let shrunk = planned(&pool(0, 0), &nodes, seen(), NOW);
    assert!(shrunk.is_empty(), "a pool without a target is steady: {shrunk:?}");

    let mut pool = pool(0, 0);
    let silent = Sight { exists: true, alive: true, connected: false, last_contact: NOW };
    let one = |state, sight, now| planned(&pool, &[joined(state)], sight, now);
    assert_eq!(one(NodeState::Running, silent, later(14)), []);
    assert!(matches!(
        &one(NodeState::Running, silent, later(15))[..],
        [Decision::Apply { event: NodeEvent::Silent, .. }]
    ));
    assert!(matches!(
        &one(NodeState::Rebooting, silent, later(15))[..],
        [Decision::Apply { event: NodeEvent::Silent, .. }]
    ));
    assert_eq!(one(NodeState::Unknown, silent, later(599)), []);
    let off = [Decision::SeeOff(NodeId::parse("p-9").unwrap())];
    assert_eq!(one(NodeState::Unknown, silent, later(600)), off, "nobody brings it back");
    let back = Sight { last_contact: later(600), ..seen() };
    assert!(matches!(
        &one(NodeState::Unknown, back, later(600))[..],
        [Decision::Apply { event: NodeEvent::Heard, .. }]
    ));
    assert_eq!(one(NodeState::Unusable { cause: Cause::Agent }, silent, later(600)), off);
    assert_eq!(one(NodeState::Creating, silent, later(299)), []);
    assert_eq!(one(NodeState::Creating, silent, later(300)), off, "it never came");
    let leaving = |drained| NodeState::LeavingPool { option: REQUEUE, drained };
    assert_eq!(one(leaving(false), seen(), NOW), [], "it is told to drain");
    assert_eq!(one(leaving(true), seen(), NOW), off);

    pool.delete(NOW).unwrap();
    let nodes = [joined(NodeState::Idle)];
    let decisions = planned(&pool, &nodes, seen(), NOW);
    assert!(matches!(&decisions[..], [Decision::Apply { event: NodeEvent::RemovalRequested(_), .. }]), "{decisions:?}");
}

#[test]
fn nodes_without_an_agent_are_started_again_under_their_name() {
    let mut pool = pool(1, 0);
    pool.end_resize(vec![], NOW);
    let gone = Sight { exists: true, alive: false, connected: false, last_contact: NOW };
    let decisions = planned(&pool, &[node(1, NodeState::Running)], gone, NOW);
    assert_eq!(decisions.len(), 2);
    assert!(matches!(&decisions[0], Decision::Apply { event: NodeEvent::AgentGone, .. }));
    assert!(matches!(&decisions[1], Decision::Start(id) if id.as_str() == "p-1"));
    let mut tired = node(1, NodeState::Unknown);
    tired.next_start = later(5);
    assert_eq!(planned(&pool, &[tired.clone()], gone, later(4)), []);
    assert_eq!(planned(&pool, &[tired], gone, later(5)).len(), 1);
}

#[test]
fn silence_makes_unknown_then_unusable_and_contact_brings_back() {
    let mut pool = pool(1, 0);
    pool.end_resize(vec![], NOW);
    let quiet = Sight { connected: false, ..seen() };
    let event = |state, sight, now| match planned(&pool, &[node(1, state)], sight, now).as_slice() {
        [] => None,
        [Decision::Apply { event, .. }] => Some(event.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(event(NodeState::Idle, quiet, later(14)), None);
    assert_eq!(event(NodeState::Idle, quiet, later(15)), Some(NodeEvent::Silent));
    assert_eq!(event(NodeState::Unknown, quiet, later(599)), None);
    assert_eq!(event(NodeState::Unknown, quiet, later(600)), Some(NodeEvent::SilentTooLong));
    assert_eq!(event(NodeState::Unknown, seen(), NOW), Some(NodeEvent::Heard));
    assert_eq!(event(NodeState::Unusable { cause: Cause::Silence }, seen(), NOW), Some(NodeEvent::Heard));
    assert_eq!(event(NodeState::Unusable { cause: Cause::Agent }, seen(), NOW), None);
    assert_eq!(event(NodeState::Starting, quiet, later(299)), None, "an agent needs time to register");
    assert_eq!(event(NodeState::Starting, quiet, later(300)), Some(NodeEvent::Silent));
}

#[test]
fn victims_go_in_the_documented_order() {
    let running = |number, tasks| {
        let mut node = node(number, NodeState::Running);
        node.view.running_tasks = tasks;
        node
    };
    let nodes = [
        running(1, 3),
        running(2, 1),
        node(3, NodeState::Idle),
        node(4, NodeState::Idle),
        node(5, NodeState::Offline),
        node(6, NodeState::Starting),
        node(7, NodeState::StartTaskFailed),
        node(8, NodeState::LeavingPool { option: REQUEUE, drained: false }),
    ];
    let order: Vec<&str> = victims(&nodes, true, 99).into_iter().map(|node| node.id.as_str()).collect();
    assert_eq!(order, ["p-7", "p-6", "p-5", "p-4", "p-3", "p-2", "p-1"]);
    assert_eq!(victims(&nodes, true, 2).len(), 2);
    assert!(victims(&nodes, false, 2).is_empty());
}

#[test]
fn a_leaving_node_is_drained_then_taken_away_then_forgotten() {
    let mut pool = pool(0, 0);
    pool.delete(NOW).unwrap();
    let leaving = |drained, option| [node(1, NodeState::LeavingPool { option, drained })];
    let away = [Decision::TakeAway(NodeId::parse("p-1").unwrap())];
    assert_eq!(planned(&pool, &leaving(false, REQUEUE), seen(), NOW), []);
    assert_eq!(planned(&pool, &leaving(true, REQUEUE), seen(), NOW), away);
    assert_eq!(planned(&pool, &leaving(false, REQUEUE), seen(), later(60)), away, "it had its time");
    let waits = leaving(false, DeallocationOption::TaskCompletion);
    let hurried = planned(&pool, &waits, seen(), NOW);
    assert!(
        matches!(&hurried[..], [Decision::Apply { event: NodeEvent::RemovalRequested(REQUEUE), .. }]),
        "deletion waits for no task: {hurried:?}"
    );
    pool.state = PoolState::Active;
    pool.allocation = Allocation::Steady;
    assert_eq!(planned(&pool, &waits, seen(), later(3600)), []);
    assert_eq!(planned(&pool, &waits, Sight { connected: false, ..seen() }, later(15)), away, "nobody is there");
    assert_eq!(planned(&pool, &waits, Sight { alive: false, ..seen() }, NOW), away);
    let nothing = Sight { exists: false, alive: false, ..seen() };
    assert_eq!(planned(&pool, &waits, nothing, NOW), [Decision::Forget(NodeId::parse("p-1").unwrap())]);
    pool.delete(NOW).unwrap();
    assert_eq!(planned(&pool, &[], seen(), NOW), [Decision::ForgetPool]);
}

#[test]
fn a_resize_ends_by_timeout_or_stop_and_unmade_nodes_are_forgotten() {
    let mut pool = pool(2, 0);
    let nodes = [node(1, NodeState::Idle), node(2, NodeState::Creating)];
    let sight = BTreeMap::from([(nodes[0].id.clone(), seen())]);
    let at = |pool: &Pool, now| plan(pool, &nodes, &sight, now, &Limits::default());
    let fresh = [nodes[0].clone(), nodes[1].clone()];
    let silent_free = BTreeMap::from([(fresh[0].id.clone(), Sight { last_contact: later(900), ..seen() })]);
    let decisions = plan(&pool, &fresh, &silent_free, later(900), &Limits::default());
    assert_eq!(decisions[0], Decision::Forget(nodes[1].id.clone()));
    assert!(matches!(&decisions[1], Decision::EndResize(errors) if errors[0].code == "AllocationTimedout"));
    assert_eq!(at(&pool, NOW), [Decision::Start(nodes[1].id.clone())]);
    pool.stop_resize(NOW).unwrap();
    let decisions = at(&pool, NOW);
    assert_eq!(decisions[0], Decision::Forget(nodes[1].id.clone()));
    assert!(matches!(&decisions[1], Decision::EndResize(errors) if errors[0].code == "ResizeStopped"));
}

/// A provider and agents that do what they are told, after random trouble.
#[derive(Debug, Default)]
struct World {
    nodes: Vec<Node>,
    sights: BTreeMap<NodeId, Sight>,
    forgotten: Vec<NodeId>,
    pool_gone: bool,
}

impl World {
    /// Carries decisions out as the reconciler does; returns how many nodes were added.
    fn carry_out(&mut self, pool: &mut Pool, decisions: Vec<Decision>, now: Timestamp) -> u32 {
        let mut added = 0;
        for decision in decisions {
            match decision {
                Decision::Add { dedicated, count } => {
                    added += count;
                    for _ in 0..count {
                        let id = pool.take_node_id();
                        assert!(!self.forgotten.contains(&id), "{id} is used twice");
                        self.nodes.push(Node::create(id, dedicated, now));
                    }
                }
                Decision::Apply { node, event, .. } => {
                    let record = self.nodes.iter_mut().find(|record| record.id == node).unwrap();
                    record.apply(event, now).unwrap();
                    // A connected agent drains at once.
                    if self.sights.get(&node).is_some_and(|sight| sight.connected)
                        && let NodeState::LeavingPool { option, .. } = record.state
                    {
                        record.state = NodeState::LeavingPool { option, drained: true };
                    }
                }
                Decision::Start(id) => {
                    let record = self.nodes.iter_mut().find(|record| record.id == id).unwrap();
                    record.apply(NodeEvent::Made { incarnation: record.incarnation.clone() }, now).unwrap();
                    let incarnation = format!("i{}", record.last_command + u64::from(record.starts));
                    record
                        .apply(
                            NodeEvent::Registered {
                                incarnation: incarnation.clone(),
                                facts: AgentFacts::default(),
                                start_task: vec![],
                            },
                            now,
                        )
                        .unwrap();
                    let view = View { phase: Phase::Ready, ..View::default() };
                    record.apply(NodeEvent::Reported { incarnation, view, report: vec![] }, now).unwrap();
                    self.sights.insert(id, Sight { exists: true, alive: true, connected: true, last_contact: now });
                }
                Decision::TakeAway(id) => {
                    self.sights.remove(&id);
                }
                Decision::Forget(id) | Decision::SeeOff(id) => {
                    self.nodes.retain(|node| node.id != id);
                    self.forgotten.push(id);
                }
                Decision::EndResize(errors) => pool.end_resize(errors, now),
                Decision::ForgetPool => self.pool_gone = true,
            }
        }
        added
    }
}

fn any_state() -> impl Strategy<Value = NodeState> {
    prop_oneof![
        Just(NodeState::Creating),
        Just(NodeState::Starting),
        Just(NodeState::WaitingForStartTask),
        Just(NodeState::StartTaskFailed),
        Just(NodeState::Idle),
        Just(NodeState::Running),
        Just(NodeState::Offline),
        Just(NodeState::Rebooting),
        Just(NodeState::Unknown),
        Just(NodeState::Unusable { cause: Cause::Agent }),
        Just(NodeState::Unusable { cause: Cause::Silence }),
        (any::<bool>()).prop_map(|drained| NodeState::LeavingPool { option: REQUEUE, drained }),
    ]
}

fn any_node() -> impl Strategy<Value = (NodeState, bool, bool, Sight, u32)> {
    let sight =
        (any::<bool>(), any::<bool>(), any::<bool>(), 0u64..2000).prop_map(|(exists, alive, connected, ago)| Sight {
            exists,
            alive: exists && alive,
            connected: exists && alive && connected,
            last_contact: NOW.minus(Duration::from_secs(ago)),
        });
    (any_state(), any::<bool>(), any::<bool>(), sight, 0u32..5)
}

fn world(pool: &mut Pool, made: Vec<(NodeState, bool, bool, Sight, u32)>) -> World {
    let mut world = World::default();
    for (state, dedicated, allocated, sight, tasks) in made {
        let id = pool.take_node_id();
        let mut node = Node::create(id.clone(), dedicated, NOW.minus(Duration::from_secs(10)));
        node.state = state;
        node.allocated = allocated || state != NodeState::Creating;
        node.view.running_tasks = tasks;
        world.nodes.push(node);
        world.sights.insert(id, sight);
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn never_more_nodes_than_asked_for(
        made in proptest::collection::vec(any_node(), 0..12), dedicated in 0u32..8, low in 0u32..4, seconds in 0u64..2000,
    ) {
        let mut pool = pool(dedicated, low);
        let mut world = world(&mut pool, made);
        let before: Vec<u32> = [true, false].into_iter().map(|kind| staying(&world.nodes, kind).count() as u32).collect();
        let decisions = plan(&pool, &world.nodes, &world.sights, later(seconds), &Limits::default());
        world.carry_out(&mut pool, decisions, later(seconds));
        for (kind, before) in [true, false].into_iter().zip(before) {
            let after = staying(&world.nodes, kind).count() as u32;
            prop_assert!(after <= pool.target.of(kind).max(before));
        }
    }

    #[test]
    fn from_any_situation_the_pool_becomes_what_was_asked_for(
        made in proptest::collection::vec(any_node(), 0..12), dedicated in 0u32..8, low in 0u32..4,
    ) {
        let mut pool = pool(0, 0);
        let target = Counts { dedicated, low_priority: low };
        pool.resize(target, Duration::from_secs(900), REQUEUE, NOW).unwrap();
        let mut world = world(&mut pool, made);
        let mut now = NOW;
        for _ in 0..60 {
            let decisions = plan(&pool, &world.nodes, &world.sights, now, &Limits::default());
            let settled = decisions.is_empty();
            world.carry_out(&mut pool, decisions, now);
            // Connected agents send heartbeats.
            now = now.plus(Duration::from_secs(5));
            for sight in world.sights.values_mut().filter(|sight| sight.connected) {
                sight.last_contact = now;
            }
            if settled && pool.allocation == Allocation::Steady {
                break;
            }
        }
        prop_assert_eq!(pool.allocation, Allocation::Steady, "{:?}", world);
        prop_assert!(pool.resize_errors.is_empty(), "{:?}", pool.resize_errors);
        prop_assert_eq!(staying(&world.nodes, true).count() as u32, dedicated);
        prop_assert_eq!(staying(&world.nodes, false).count() as u32, low);
        prop_assert_eq!(world.nodes.len() as u32, dedicated + low);
    }

    #[test]
    fn a_deleted_pool_vanishes_and_starts_nothing(made in proptest::collection::vec(any_node(), 0..12)) {
        let mut pool = pool(3, 1);
        let mut world = world(&mut pool, made);
        pool.delete(NOW).unwrap();
        let mut now = NOW;
        for _ in 0..30 {
            let decisions = plan(&pool, &world.nodes, &world.sights, now, &Limits::default());
            prop_assert!(decisions.iter().all(|decision| !matches!(decision, Decision::Start(_))), "a deleted pool starts nothing");
            prop_assert_eq!(world.carry_out(&mut pool, decisions, now), 0);
            if world.pool_gone {
                break;
            }
            now = now.plus(Duration::from_secs(5));
        }
        prop_assert!(world.pool_gone && world.nodes.is_empty(), "{:?}", world);
    }

    #[test]
    fn only_the_worst_nodes_are_victims(made in proptest::collection::vec(any_node(), 0..12), count in 0usize..12) {
        let mut pool = pool(0, 0);
        let world = world(&mut pool, made);
        let all = victims(&world.nodes, true, usize::MAX);
        let some = victims(&world.nodes, true, count);
        prop_assert_eq!(&all[..count.min(all.len())], &some[..]);
        let idle_goes = some.iter().any(|node| node.state == NodeState::Running);
        let idle_stays = all.iter().skip(some.len()).any(|node| node.state == NodeState::Idle);
        prop_assert!(!(idle_goes && idle_stays));
    }
}
