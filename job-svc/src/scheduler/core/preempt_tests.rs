//! Who has to go for whom.

use super::*;
use crate::domain::task::EndCause;
use crate::scheduler::core::tests::{job_view, name, node_status, now, ready, ready_with, settings};

/// A core with nodes of so many slots each.
fn core(nodes: &[u16]) -> Core {
    let mut core = Core::new(settings());
    for (at, slots) in nodes.iter().enumerate() {
        let (conn, node, status) = (at as u64 + 1, name(at), node_status(*slots));
        let hello = Input::Hello { conn, node, incarnation: "1".into(), stream: 0, status, seen: Vec::new() };
        step(&mut core, hello);
    }
    core
}

fn step(core: &mut Core, input: Input) -> Effects {
    let mut fx = Effects::default();
    core.step(input, now(), &mut fx);
    core.place(&mut fx);
    core.check().unwrap();
    fx
}

fn job(key: JobKey, priority: i32, preemptible: bool) -> JobView {
    JobView { priority, preemptible, ..job_view(key) }
}

fn load(core: &mut Core, view: JobView, ready: Vec<ReadyTask>) -> Effects {
    step(core, Input::Loaded { view, ready, running: Vec::new(), dependants: Dependants::default(), nodes: Vec::new() })
}

fn stops(fx: &Effects) -> Vec<Row> {
    let mut rows: Vec<Row> = fx
        .sends
        .iter()
        .filter_map(|send| match send {
            Send::Stop(_, row, ..) => Some(*row),
            _ => None,
        })
        .collect();
    rows.sort_unstable();
    rows
}

fn placed(fx: &Effects) -> Vec<Row> {
    let rows = fx.tasks.iter().filter(|(_, _, event)| matches!(event, TaskEvent::Assign { .. }));
    rows.map(|(row, _, _)| *row).collect()
}

fn end(core: &mut Core, row: Row, cause: EndCause) -> Effects {
    let live = core.live[&row];
    let conn = core.nodes[live.node as usize].as_ref().unwrap().conn.unwrap();
    let end = AttemptEnd {
        start: None,
        end: Timestamp::from_micros(1),
        exit_code: Some(if cause == EndCause::Exited { 0 } else { 137 }),
        failure: None,
        cause,
        outputs_kept: false,
    };
    step(core, Input::Ended { conn, row, attempt: live.attempt, instance: 0, end, action: JobAction::None })
}

#[test]
fn the_least_important_and_youngest_go_and_no_more_than_needed() {
    let mut core = core(&[4]);
    load(&mut core, job(1, 0, true), vec![ready(1, 1), ready(2, 1)]);
    load(&mut core, job(2, -5, true), vec![ready(11, 1), ready(12, 1)]);
    let fx = load(&mut core, job(3, 10, false), vec![ready(21, 1)]);
    assert_eq!(stops(&fx), [12], "the younger one of the lower priority");
    let fx = step(&mut core, Input::Tick);
    assert!(stops(&fx).is_empty(), "room is being made already");
    let fx = end(&mut core, 12, EndCause::Stopped);
    let requeued = TaskEvent::Requeue { attempt: 1, cause: RequeueCause::Preempted };
    assert!(fx.tasks.contains(&(12, 2, requeued)));
    assert_eq!(placed(&fx), [21]);
    assert!(stops(&fx).is_empty(), "what was displaced displaces nobody");
    let fx = end(&mut core, 21, EndCause::Exited);
    assert_eq!(placed(&fx), [12]);
    assert_eq!(core.live[&12].internal_retries, 0);
}

#[test]
fn nobody_goes_for_equals_for_what_still_does_not_fit_or_without_leave() {
    let mut core = core(&[2]);
    load(&mut core, job(1, 0, true), vec![ready(1, 1), ready(2, 1)]);
    assert!(stops(&load(&mut core, job(2, 0, false), vec![ready(11, 1)])).is_empty());
    assert!(stops(&load(&mut core, job(3, 5, false), vec![ready(21, 3)])).is_empty());
    assert!(stops(&load(&mut core, job(4, -5, false), vec![ready(31, 1)])).is_empty());
    let mut other = core_of_hard_tasks();
    assert!(stops(&load(&mut other, job(2, 9, false), vec![ready(11, 1)])).is_empty());
    // Until the job allows it.
    let view = JobView { version: 2, ..job(1, 0, true) };
    assert_eq!(stops(&step(&mut other, Input::Job { view, answer: false })).len(), 1);
}

fn core_of_hard_tasks() -> Core {
    let mut core = core(&[2]);
    load(&mut core, job(1, 0, false), vec![ready(1, 1), ready(2, 1)]);
    core
}

#[test]
fn the_room_is_kept_until_all_of_it_is_there() {
    let mut core = core(&[3]);
    load(&mut core, job(1, 0, true), (1..=5).map(|row| ready(row, 1)).collect());
    let fx = load(&mut core, job(2, 5, false), vec![ready(11, 2), ready(12, 1)]);
    assert_eq!(stops(&fx).len(), 3);
    for (at, row) in stops(&fx).into_iter().enumerate() {
        let fx = end(&mut core, row, EndCause::Stopped);
        assert_eq!(placed(&fx), [vec![], vec![11], vec![12]][at], "{row}");
    }
    // The one it was made for does not come: others get it.
    let mut core = super::tests::core(&[2]);
    load(&mut core, job(1, 0, true), (1..=4).map(|row| ready(row, 1)).collect());
    let fx = load(&mut core, job(2, 5, false), vec![ready(11, 2)]);
    let gone = stops(&fx);
    end(&mut core, gone[0], EndCause::Stopped);
    let needs = Needs::slots(2);
    let fx = step(&mut core, Input::Terminate { job: 2, row: 11, needs, reply: 1 });
    assert_eq!(placed(&fx).len(), 1);
}

#[test]
fn one_node_with_the_fewest_victims_is_chosen_and_limits_are_kept() {
    let mut core = core(&[2, 2]);
    // One node has a task of two slots, the other two of one.
    load(&mut core, job(1, 0, true), vec![ready(1, 2)]);
    load(&mut core, job(2, 0, true), vec![ready(2, 1), ready(3, 1)]);
    let wanted = JobView { max_parallel: Some(1), ..job(3, 5, false) };
    let fx = load(&mut core, wanted, vec![ready(11, 2), ready(12, 2)]);
    assert_eq!(stops(&fx), [1], "one of them, and only for as many as may run");
}

#[test]
fn amounts_of_resources_count() {
    let mut core = core(&[4]);
    let capacity = Capacity { memory_bytes: 100, ..Capacity::UNKNOWN };
    step(&mut core, Input::Status { conn: 1, status: NodeStatus { capacity, ..node_status(4) } });
    let memory = |row, memory_bytes| ready_with(row, Needs { memory_bytes, ..Needs::slots(1) });
    load(&mut core, job(1, 0, true), vec![memory(1, 60), memory(2, 10), memory(3, 10)]);
    let fx = load(&mut core, job(2, 5, false), vec![memory(11, 70)]);
    assert_eq!(stops(&fx), [1], "the others would not help");
}

#[test]
fn a_job_manager_that_runs_again_may_displace_one_task() {
    let manager = Needs { manager: true, ..Needs::slots(1) };
    for (attempt, priority, expected) in [(1, 0, 1), (1, -1, 0), (0, 0, 0)] {
        let mut core = core_of_hard_tasks();
        let again = ReadyTask { attempt, ..ready_with(11, manager) };
        let fx = load(&mut core, job(2, priority, false), vec![again]);
        assert_eq!(stops(&fx).len(), expected, "attempt {attempt} priority {priority}");
    }
    // Its own job's tasks, whatever they allow; and it is not displaced itself.
    let mut core = core(&[1]);
    load(&mut core, job(1, 0, true), vec![ReadyTask { attempt: 1, ..ready_with(1, manager) }]);
    assert!(stops(&load(&mut core, job(2, 9, false), vec![ready(11, 1)])).is_empty());
}

#[test]
fn a_node_that_a_job_is_barred_from_is_not_cleared_for_it() {
    let mut core = core(&[1]);
    load(&mut core, job(1, 0, true), vec![ready(1, 1)]);
    let rules = Rules { wait_for_success: true, rerun: true, release: None };
    let view = JobView { preparation: Some(rules), ..job(2, 5, false) };
    let nodes = vec![(name(0), OnNode { barred: Some("1".into()), ..OnNode::default() })];
    let fx = step(
        &mut core,
        Input::Loaded { view, ready: vec![ready(11, 1)], running: vec![], dependants: Dependants::default(), nodes },
    );
    assert!(stops(&fx).is_empty());
}
