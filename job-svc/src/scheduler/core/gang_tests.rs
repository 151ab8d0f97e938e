//! Attempts with several instances, step by step.

use super::tests::{job_view, load, node_status, now, placed, ready, ready_with, rich_node, settings};
use super::*;

const GANG: Needs = Needs { instances: 3, ..Needs::slots(1) };

struct World {
    core: Core,
    fx: Effects,
}

impl World {
    fn new(nodes: usize) -> Self {
        let mut core = Core::new(settings());
        for at in 0..nodes {
            rich_node(&mut core, at, node_status(2));
        }
        Self { core, fx: Effects::default() }
    }

    /// Everything that followed from this.
    fn step(&mut self, input: Input) -> Effects {
        self.core.step(input, now(), &mut self.fx);
        self.core.place(&mut self.fx);
        self.core.check().unwrap();
        std::mem::take(&mut self.fx)
    }

    fn add(&mut self, view: JobView, tasks: Vec<ReadyTask>) -> Effects {
        load(&mut self.core, view, tasks);
        self.core.place(&mut self.fx);
        self.core.check().unwrap();
        std::mem::take(&mut self.fx)
    }

    fn ended(&mut self, conn: Conn, attempt: u32, instance: u32, cause: EndCause, code: i32) -> Effects {
        let (end, exit_code) = (Timestamp::from_micros(9), Some(code));
        let end = AttemptEnd { start: None, end, exit_code, failure: None, cause, outputs_kept: false };
        self.step(Input::Ended { conn, row: 1, attempt, instance, end, action: JobAction::None })
    }

    fn ready(&mut self, conn: Conn, instance: u32) -> Effects {
        self.step(Input::Ready { conn, row: 1, attempt: 1, instance })
    }
}

/// Streams that are told to stop which instance.
fn stops(fx: &Effects) -> Vec<(Conn, u32)> {
    let stops = fx.sends.iter().filter_map(|send| match send {
        Send::Stop(conn, 1, _, instance) => Some((*conn, *instance)),
        _ => None,
    });
    let mut stops: Vec<_> = stops.collect();
    stops.sort_unstable();
    stops
}

/// Which instance runs on which stream, by its number.
fn assigned(fx: &Effects) -> Vec<Conn> {
    let mut places: Vec<(u32, Conn)> = fx
        .sends
        .iter()
        .filter_map(|send| match send {
            Send::Assign(conn, 1, _, instance) => Some((*instance, *conn)),
            _ => None,
        })
        .collect();
    places.sort_unstable();
    assert!(places.iter().zip(0..).all(|((instance, _), number)| *instance == number), "{places:?}");
    places.into_iter().map(|(_, conn)| conn).collect()
}

fn events(fx: &Effects) -> Vec<&TaskEvent> {
    fx.tasks.iter().filter(|(row, _, _)| *row == 1).map(|(_, _, event)| event).collect()
}

#[test]
fn all_nodes_or_none_and_the_primary_goes_on_when_all_are_ready() {
    let mut world = World::new(2);
    let fx = world.add(job_view(1), vec![ready_with(1, GANG), ready(2, 1)]);
    assert_eq!(placed(&fx).len(), 1, "the other task does not wait for the third node");
    assert_eq!(world.core.explain(1, 1, &GANG), WaitReason::TooFewNodes { fitting: 2 });
    rich_node(&mut world.core, 2, node_status(2));
    let fx = world.step(Input::Tick);
    let on = assigned(&fx);
    assert_eq!(on.len(), 3);
    assert!(matches!(&fx.subtasks[..], [(1, InstanceChange::Assigned { attempt: 1, nodes })] if nodes.len() == 3));
    assert!(world.ready(on[0], 0).sends.is_empty());
    assert!(world.ready(on[2], 2).sends.is_empty());
    let went_on = [Send::Proceed(on[0], 1, 1)];
    assert_eq!(world.ready(on[1], 1).sends, went_on);
    // Said again after a reconnect: only the primary is told again.
    assert!(world.ready(on[1], 1).sends.is_empty());
    assert_eq!(world.ready(on[0], 0).sends, went_on);
    // Its end is the end of the task; the others are stopped and hold their
    // slots until they are gone.
    let fx = world.ended(on[0], 1, 0, EndCause::Exited, 0);
    assert!(matches!(events(&fx)[..], [TaskEvent::Finish { .. }]));
    assert_eq!(stops(&fx), {
        let mut rest = vec![(on[1], 1), (on[2], 2)];
        rest.sort_unstable();
        rest
    });
    assert!(world.core.is_live(1));
    world.ended(on[1], 1, 1, EndCause::Stopped, 137);
    assert!(world.core.is_live(1));
    world.ended(on[2], 1, 2, EndCause::Stopped, 137);
    assert!(!world.core.is_live(1));
}

#[test]
fn one_that_fails_ends_all_and_the_next_attempt_waits_for_the_last_of_them() {
    let mut world = World::new(4);
    let on = assigned(&world.add(job_view(1), vec![ready_with(1, GANG)]));
    let fx = world.ended(on[2], 1, 2, EndCause::Exited, 7);
    assert!(matches!(events(&fx)[..], [TaskEvent::Retry { attempt: 1, .. }]), "{:?}", fx.tasks);
    assert_eq!(stops(&fx).len(), 2);
    assert!(placed(&fx).is_empty());
    assert!(placed(&world.ended(on[0], 1, 0, EndCause::Stopped, 137)).is_empty());
    let fx = world.ended(on[1], 1, 1, EndCause::Stopped, 137);
    assert_eq!(assigned(&fx).len(), 3);
    // The second attempt loses a node: that is not its fault.
    let on = assigned(&fx);
    let fx = world.step(Input::Goodbye { conn: on[1] });
    assert!(matches!(events(&fx)[..], [TaskEvent::Requeue { cause: RequeueCause::NodeLost, attempt: 2 }]));
    assert!(placed(&fx).is_empty());
    world.ended(on[0], 2, 0, EndCause::Stopped, 137);
    let fx = world.ended(on[2], 2, 2, EndCause::Stopped, 137);
    // The third, on the three nodes that are left, may not be tried again.
    let on = assigned(&fx);
    world.ended(on[1], 3, 1, EndCause::Exited, 1);
    world.ended(on[0], 3, 0, EndCause::Stopped, 137);
    let on = assigned(&world.ended(on[2], 3, 2, EndCause::Stopped, 137));
    let fx = world.ended(on[1], 4, 1, EndCause::Exited, 1);
    assert!(matches!(events(&fx)[..], [TaskEvent::Finish { .. }]), "two retries were allowed: {:?}", fx.tasks);
}

#[test]
fn a_reload_knows_all_nodes_and_waits_for_each() {
    let mut world = World { core: Core::new(settings()), fx: Effects::default() };
    let at = |node: usize| super::tests::name(node);
    let task = ReadyTask { attempt: 1, ..ready_with(1, GANG) };
    let running = vec![(task, vec![(0, at(0)), (1, at(1)), (2, at(2))])];
    world.step(Input::Loaded {
        view: job_view(1),
        ready: Vec::new(),
        running,
        nodes: Vec::new(),
        dependants: Dependants::default(),
    });
    let hello = |node: usize, instance: u32, has: bool| {
        let seen = Seen { token: 0, row: Some(1), attempt: 1, instance, ended: false };
        let seen = if has { vec![seen] } else { Vec::new() };
        let (conn, incarnation) = (node as Conn + 1, "1".to_owned());
        Input::Hello { conn, node: at(node), incarnation, stream: 1, status: node_status(2), seen }
    };
    assert_eq!(events(&world.step(hello(0, 0, true))).len(), 0);
    assert_eq!(events(&world.step(hello(1, 1, true))).len(), 0);
    // The third died with its agent: the attempt is over, the others stop.
    let fx = world.step(hello(2, 2, false));
    assert!(matches!(events(&fx)[..], [TaskEvent::Requeue { cause: RequeueCause::NodeLost, .. }]));
    assert_eq!(stops(&fx), [(1, 0), (2, 1)]);
    // Once more from the store, which does not know that they have ended.
    let mut world = World { core: Core::new(settings()), fx: Effects::default() };
    world.add(job_view(1), Vec::new());
    world.step(Input::Held { job: 1, task, nodes: vec![(0, at(0)), (1, at(1))] });
    assert!(placed(&world.step(hello(2, 0, false))).is_empty());
    assert!(placed(&world.step(hello(1, 1, false))).is_empty());
    let fx = world.step(hello(0, 0, true));
    assert_eq!(stops(&fx), [(1, 0)]);
    assert_eq!(assigned(&world.ended(1, 1, 0, EndCause::Stopped, 137)).len(), 3);
}

#[test]
fn a_user_ends_all_of_it() {
    let mut world = World::new(3);
    assigned(&world.add(job_view(1), vec![ready_with(1, GANG)]));
    let fx = world.step(Input::Terminate { job: 1, row: 1, needs: GANG, reply: 5 });
    assert_eq!((stops(&fx).len(), &fx.replies[..]), (3, &[(5, Ok(()))][..]));
    let fx = world.step(Input::Delete { job: 1, row: 1, needs: GANG, reply: 6 });
    assert!(fx.replies.is_empty());
    for (conn, instance) in [(3, 0), (2, 1)] {
        assert!(world.ended(conn, 1, instance, EndCause::Stopped, 137).replies.is_empty());
    }
    let fx = world.ended(1, 1, 2, EndCause::Stopped, 137);
    assert_eq!((&fx.deleted[..], &fx.replies[..]), (&[(1, 1)][..], &[(6, Ok(()))][..]));
}
