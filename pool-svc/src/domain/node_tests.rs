//! The table of transitions cell by cell, and what else the rules of a node promise.

use super::*;

const NOW: Timestamp = Timestamp::from_micros(1_000_000);
const REQUEUE: DeallocationOption = DeallocationOption::Requeue;
const LEAVING: NodeState = NodeState::LeavingPool { option: REQUEUE, drained: false };
const GONE: NodeState = NodeState::LeavingPool { option: REQUEUE, drained: true };
const SILENT: NodeState = NodeState::Unusable { cause: Cause::Silence };
const BROKEN: NodeState = NodeState::Unusable { cause: Cause::Agent };
const LATE: NodeState = NodeState::Unusable { cause: Cause::Start };

fn node(state: NodeState) -> Node {
    let mut node = Node::create(NodeId::parse("p-1").unwrap(), true, NOW);
    node.state = state;
    node.incarnation = "i1".into();
    node.view.phase = Phase::Ready;
    node
}

fn view(phase: Phase, running_tasks: u32) -> View {
    View { phase, running_tasks, ..View::default() }
}

fn reported(phase: Phase, tasks: u32) -> NodeEvent {
    NodeEvent::Reported { incarnation: "i1".into(), view: view(phase, tasks), report: vec![7] }
}

fn registered(incarnation: &str) -> NodeEvent {
    NodeEvent::Registered { incarnation: incarnation.into(), facts: AgentFacts::default(), start_task: Vec::new() }
}

#[test]
fn every_cell_of_the_table_holds() {
    use NodeState::WaitingForStartTask as Waiting;
    use NodeState::{Creating, Idle, Offline, Rebooting, Running, StartTaskFailed, Starting, Unknown};
    // Columns: registered, reported (ready), made, agent gone, silent, silent
    // too long, start timed out, heard, reboot, remove. `None` is refused.
    #[rustfmt::skip]
    let table: [(NodeState, [Option<NodeState>; 10]); 14] = [
        (Creating, [Some(Starting), Some(Idle), Some(Creating), Some(Creating), Some(Creating), Some(Creating), Some(LATE), Some(Creating), None, Some(LEAVING)]),
        (Starting, [Some(Starting), Some(Idle), Some(Starting), Some(Unknown), Some(Unknown), Some(Starting), Some(LATE), Some(Starting), None, Some(LEAVING)]),
        (Waiting, [Some(Starting), Some(Idle), Some(Starting), Some(Unknown), Some(Unknown), Some(Waiting), Some(Waiting), Some(Waiting), None, Some(LEAVING)]),
        (StartTaskFailed, [Some(Starting), Some(Idle), Some(Starting), Some(Unknown), Some(Unknown), Some(StartTaskFailed), Some(StartTaskFailed), Some(StartTaskFailed), Some(Rebooting), Some(LEAVING)]),
        (Idle, [Some(Starting), Some(Idle), Some(Starting), Some(Unknown), Some(Unknown), Some(Idle), Some(Idle), Some(Idle), Some(Rebooting), Some(LEAVING)]),
        (Running, [Some(Starting), Some(Idle), Some(Starting), Some(Unknown), Some(Unknown), Some(Running), Some(Running), Some(Running), Some(Rebooting), Some(LEAVING)]),
        (Offline, [Some(Starting), Some(Idle), Some(Starting), Some(Unknown), Some(Unknown), Some(Offline), Some(Offline), Some(Offline), Some(Rebooting), Some(LEAVING)]),
        (Rebooting, [Some(Starting), Some(Rebooting), Some(Starting), Some(Unknown), Some(Unknown), Some(Rebooting), Some(Rebooting), Some(Rebooting), None, Some(LEAVING)]),
        (Unknown, [Some(Starting), Some(Idle), Some(Starting), Some(Unknown), Some(Unknown), Some(SILENT), Some(Unknown), Some(Idle), None, Some(LEAVING)]),
        (SILENT, [Some(Starting), Some(Idle), Some(Starting), Some(Unknown), Some(SILENT), Some(SILENT), Some(SILENT), Some(Idle), Some(Rebooting), Some(LEAVING)]),
        (LATE, [Some(Starting), Some(Idle), Some(Starting), Some(Unknown), Some(LATE), Some(LATE), Some(LATE), Some(Idle), Some(Rebooting), Some(LEAVING)]),
        (BROKEN, [Some(Starting), Some(Idle), Some(Starting), Some(Unknown), Some(BROKEN), Some(BROKEN), Some(BROKEN), Some(BROKEN), Some(Rebooting), Some(LEAVING)]),
        (LEAVING, [Some(LEAVING), Some(LEAVING), Some(LEAVING), Some(GONE), Some(GONE), Some(LEAVING), Some(LEAVING), Some(LEAVING), None, Some(LEAVING)]),
        (GONE, [Some(GONE), Some(GONE), Some(GONE), Some(GONE), Some(GONE), Some(GONE), Some(GONE), Some(GONE), None, Some(GONE)]),
    ];
    for (from, row) in table {
        let events = [
            registered("i2"),
            reported(Phase::Ready, 0),
            NodeEvent::Made { incarnation: "i1".into() },
            NodeEvent::AgentGone,
            NodeEvent::Silent,
            NodeEvent::SilentTooLong,
            NodeEvent::StartTimedOut,
            NodeEvent::Heard,
            NodeEvent::RebootRequested(REQUEUE),
            NodeEvent::RemovalRequested(REQUEUE),
        ];
        for (event, expected) in events.into_iter().zip(row) {
            let before = node(from);
            let mut after = before.clone();
            let result = after.apply(event.clone(), NOW.plus(std::time::Duration::from_secs(1)));
            match (result, expected) {
                (Ok(changed), Some(expected)) => {
                    assert_eq!(after.state, expected, "{from:?} {event:?}");
                    let renamed = from.name() != expected.name();
                    assert_eq!(changed.is_some(), renamed, "{from:?} {event:?}");
                    assert_eq!(after.state_since == before.state_since, !renamed, "{from:?} {event:?}");
                }
                (Err(_), None) => assert_eq!(after, before, "a refusal changes nothing"),
                (result, expected) => panic!("{from:?} {event:?}: {result:?}, expected {expected:?}"),
            }
        }
    }
}

#[test]
fn reports_say_the_state() {
    let cases = [
        (Phase::Starting, 0, false, NodeState::Starting),
        (Phase::WaitingForStartTask, 0, false, NodeState::WaitingForStartTask),
        (Phase::StartTaskFailed, 0, false, NodeState::StartTaskFailed),
        (Phase::Ready, 0, false, NodeState::Idle),
        (Phase::Ready, 2, false, NodeState::Running),
        (Phase::Ready, 2, true, NodeState::Running),
        (Phase::Ready, 0, true, NodeState::Offline),
        (Phase::Drained, 0, false, NodeState::Offline),
        (Phase::Unusable, 0, false, BROKEN),
    ];
    for (phase, tasks, disabled, expected) in cases {
        let mut node = node(NodeState::Starting);
        node.scheduling_disabled = disabled;
        node.apply(reported(phase, tasks), NOW).unwrap();
        assert_eq!(node.state, expected, "{phase:?}");
    }
}

#[test]
fn an_older_agent_is_refused_and_a_repeated_registration_changes_nothing() {
    let mut node = node(NodeState::Idle);
    let before = node.clone();
    let stale = NodeEvent::Reported { incarnation: "i0".into(), view: View::default(), report: vec![] };
    assert!(matches!(node.apply(stale, NOW), Err(Refused::StaleIncarnation(_))));
    assert_eq!(node, before);
    assert_eq!(node.apply(registered("i1"), NOW), Ok(None));
    assert_eq!(node.state, NodeState::Idle);
}

#[test]
fn news_of_the_start_that_come_after_the_agent_change_nothing() {
    let mut node = node(NodeState::Idle);
    node.apply(NodeEvent::Made { incarnation: "i0".into() }, NOW).unwrap();
    assert_eq!(node.state, NodeState::Idle);
    assert!(node.allocated);
}

#[test]
fn orders_are_numbered_kept_until_confirmed_and_restated_to_a_new_agent() {
    let mut node = node(NodeState::Idle);
    node.apply(NodeEvent::DisableRequested(REQUEUE), NOW).unwrap();
    assert_eq!(node.state, NodeState::Offline);
    assert_eq!(node.command, Some(Command { id: 1, order: Order::DisableScheduling(REQUEUE) }));
    assert!(matches!(node.apply(NodeEvent::DisableRequested(REQUEUE), NOW), Err(Refused::AlreadyInSchedulingState(_))));
    let mut done = view(Phase::Ready, 0);
    done.done_command = 1;
    node.apply(NodeEvent::Reported { incarnation: "i1".into(), view: done, report: vec![] }, NOW).unwrap();
    assert_eq!(node.command, None);
    node.apply(registered("i2"), NOW).unwrap();
    assert_eq!(node.command, Some(Command { id: 2, order: Order::DisableScheduling(REQUEUE) }));
    node.apply(NodeEvent::EnableRequested, NOW).unwrap();
    assert_eq!(node.command, Some(Command { id: 3, order: Order::EnableScheduling }));
    node.apply(NodeEvent::RemovalRequested(REQUEUE), NOW).unwrap();
    assert_eq!(node.command, Some(Command { id: 4, order: Order::Drain(REQUEUE) }));
    assert!(node.apply(NodeEvent::DisableRequested(REQUEUE), NOW).is_err());
}

#[test]
fn a_node_that_waits_for_its_tasks_can_be_hurried_but_not_slowed_down() {
    let later = NOW.plus(std::time::Duration::from_secs(100));
    let mut node = node(NodeState::Running);
    node.apply(NodeEvent::RemovalRequested(DeallocationOption::TaskCompletion), NOW).unwrap();
    node.apply(NodeEvent::RemovalRequested(REQUEUE), later).unwrap();
    assert_eq!((node.state, node.state_since), (LEAVING, later));
    assert_eq!(node.command, Some(Command { id: 2, order: Order::Drain(REQUEUE) }));
    node.apply(NodeEvent::RemovalRequested(DeallocationOption::TaskCompletion), later).unwrap();
    assert_eq!((node.state, node.last_command), (LEAVING, 2));
}

#[test]
fn an_agent_that_keeps_dying_is_started_less_and_less_often() {
    let mut node = node(NodeState::Unknown);
    let mut pauses = Vec::new();
    for _ in 0..12 {
        node.apply(NodeEvent::Made { incarnation: "i1".into() }, NOW).unwrap();
        pauses.push(node.next_start.since(NOW).as_millis());
    }
    assert_eq!(pauses[..4], [0, 500, 1000, 2000]);
    assert_eq!(pauses[11], 60_000);
    node.apply(reported(Phase::Ready, 0), NOW).unwrap();
    assert_eq!(node.starts, 0);
}
