//! Preparation and release, step by step.

use super::*;
use crate::domain::job::JobEvent;
use crate::domain::task::EndCause;
use crate::scheduler::core::tests::{job_view, name, node_status, ready, settings};

const LIMIT: Duration = Duration::from_secs(60);
const RULES: Rules = Rules { wait_for_success: true, rerun: true, release: Some(LIMIT) };

/// A core, the time, and what it decided last.
struct Bench {
    core: Core,
    mono: Duration,
    fx: Effects,
    conns: Conn,
}

impl Bench {
    fn new(nodes: usize) -> Self {
        let mut bench = Self { core: Core::new(settings()), mono: Duration::ZERO, fx: Effects::default(), conns: 0 };
        for at in 0..nodes {
            bench.hello(at, "1");
        }
        bench
    }

    fn now(&self) -> Now {
        Now { wall: Timestamp::from_micros(1).plus(self.mono), mono: self.mono }
    }

    /// Takes an input; what was decided before is forgotten.
    fn step(&mut self, input: Input) {
        self.fx = Effects::default();
        let now = self.now();
        self.core.step(input, now, &mut self.fx);
        self.core.place(&mut self.fx);
        self.core.check().unwrap();
    }

    fn hello(&mut self, at: usize, life: &str) -> Conn {
        self.conns += 1;
        let (conn, incarnation) = (self.conns, life.to_owned());
        let status = node_status(1);
        self.step(Input::Hello { conn, node: name(at), incarnation, stream: 0, status, seen: Vec::new() });
        conn
    }

    fn load(&mut self, rules: Rules, tasks: u64, nodes: Vec<(Arc<NodeId>, OnNode)>) {
        let view = JobView { preparation: Some(rules), ..job_view(1) };
        let ready = (1..=tasks).map(|row| ready(row, 1)).collect();
        self.step(Input::Loaded { view, ready, running: Vec::new(), nodes, dependants: Dependants::default() });
    }

    fn becomes(&mut self, state: JobState, version: u64) {
        let view = JobView { state, version, preparation: Some(RULES), ..job_view(1) };
        self.step(Input::Job { view, answer: false });
        self.pass(Duration::from_secs(1));
    }

    fn pass(&mut self, by: Duration) {
        self.mono += by;
        // Other nodes go on.
        for conn in 1..=self.conns {
            self.core.step(Input::Lease { conn, sequence: 1 }, self.now(), &mut Effects::default());
        }
        let sends = std::mem::take(&mut self.fx.sends);
        self.step(Input::Tick);
        self.fx.sends.splice(0..0, sends);
    }

    fn says(&mut self, conn: Conn, word: NodeWord) {
        self.step(Input::JobNode { conn, job: 1, word });
    }

    fn begins(&mut self, conn: Conn, row: Row, attempt: u32) {
        self.step(Input::Started { conn, row, attempt, instance: 0, at: Timestamp::from_micros(1) });
    }

    fn ends(&mut self, conn: Conn, row: Row, attempt: u32, cause: EndCause) {
        let end = AttemptEnd {
            start: None,
            end: Timestamp::from_micros(1),
            exit_code: (cause == EndCause::Exited).then_some(0),
            failure: None,
            cause,
            outputs_kept: false,
        };
        self.step(Input::Ended { conn, row, attempt, instance: 0, end, action: JobAction::None });
    }

    /// Tasks that were placed: row, node, whether they wait there.
    fn placed(&self) -> Vec<(Row, String, bool)> {
        let placed = self.fx.tasks.iter().filter_map(|(row, _, event)| match event {
            TaskEvent::Assign { node, preparing } => Some((*row, node.to_string(), *preparing)),
            _ => None,
        });
        placed.collect()
    }

    fn releases(&self) -> Vec<Conn> {
        let mut conns: Vec<Conn> = self
            .fx
            .sends
            .iter()
            .filter_map(|send| match send {
                Send::Release(conn, _) => Some(*conn),
                _ => None,
            })
            .collect();
        conns.sort_unstable();
        conns
    }

    fn is_drained(&self) -> bool {
        self.fx.jobs.iter().any(|write| write.event == JobEvent::Drained)
    }
}

fn prepared(life: &str) -> OnNode {
    OnNode { prepared: Some(life.to_owned()), ran: true, ..OnNode::default() }
}

#[test]
fn the_first_task_of_a_node_waits_for_the_preparation() {
    let mut bench = Bench::new(1);
    bench.load(RULES, 2, Vec::new());
    assert_eq!(bench.placed(), [(1, "n0".into(), true)]);
    bench.says(1, NodeWord::Preparation(Progress::Running));
    bench.says(1, NodeWord::Preparation(Progress::Succeeded));
    bench.begins(1, 1, 1);
    assert_eq!(bench.fx.nodes, [(1, name(0), NodeChange::Ran)]);
    bench.ends(1, 1, 1, EndCause::Exited);
    assert_eq!(bench.placed(), [(2, "n0".into(), false)]);
    bench.begins(1, 2, 1);
    assert!(bench.fx.nodes.is_empty(), "that is known");
    // Beside it, if the job says so.
    let mut bench = Bench::new(1);
    bench.load(Rules { wait_for_success: false, ..RULES }, 1, Vec::new());
    assert_eq!(bench.placed(), [(1, "n0".into(), false)]);
}

#[test]
fn a_new_life_of_a_node_prepares_again_unless_the_job_says_otherwise() {
    for (life, rerun, waits, for_good) in
        [("1", true, false, false), ("0", true, true, false), ("0", false, false, true), ("1", false, false, true)]
    {
        let mut bench = Bench::new(1);
        bench.load(Rules { rerun, ..RULES }, 1, vec![(name(0), prepared(life))]);
        assert_eq!(bench.placed(), [(1, "n0".into(), waits)], "{life} {rerun}");
        assert_eq!(bench.core.is_prepared_for_good(1, &name(0)), for_good, "{life} {rerun}");
    }
}

#[test]
fn a_node_on_which_it_failed_is_barred_for_this_life_and_this_job() {
    let mut bench = Bench::new(2);
    bench.load(RULES, 3, Vec::new());
    assert_eq!(bench.placed().len(), 2);
    let on_first = bench.placed().iter().find(|(_, node, _)| node == "n0").unwrap().0;
    bench.ends(1, on_first, 1, EndCause::PreparationFailed);
    let requeued = TaskEvent::Requeue { attempt: 1, cause: RequeueCause::PreparationFailed };
    assert_eq!(bench.fx.tasks[..], [(on_first, 1, requeued)], "and nothing is placed there");
    assert_eq!(bench.fx.nodes, [(1, name(0), NodeChange::Barred("1".into()))]);
    assert!(bench.fx.unschedulable.is_empty(), "there is another node");
    // Other jobs may go there.
    bench.step(Input::Loaded {
        view: job_view(2),
        ready: vec![ready(9, 1)],
        running: vec![],
        nodes: vec![],
        dependants: Dependants::default(),
    });
    assert_eq!(bench.placed(), [(9, "n0".into(), false)]);
    bench.ends(1, 9, 1, EndCause::Exited);
    assert!(bench.placed().is_empty());
    // It fails on the other, too: that is told once.
    let on_second = 3 - on_first;
    bench.ends(2, on_second, 1, EndCause::PreparationFailed);
    assert_eq!(bench.fx.unschedulable.len(), 1);
    assert_eq!(bench.fx.unschedulable[0].2, WaitReason::PreparationFailed);
    let needs = Needs::slots(1);
    assert_eq!(bench.core.explain(1, 3, &needs), WaitReason::PreparationFailed);
    bench.step(Input::Status { conn: 2, status: node_status(1) });
    assert!(bench.fx.unschedulable.is_empty());
    // The same life says hello again: still barred. A new one is not.
    bench.hello(0, "1");
    assert!(bench.placed().is_empty());
    bench.hello(0, "2");
    assert_eq!(bench.placed().len(), 1);
    assert_eq!(bench.core.explain(1, 3, &needs), WaitReason::NoFreeSlots);
}

#[test]
fn bars_survive_a_restart_and_another_node_is_chosen() {
    let mut bench = Bench::new(2);
    let barred = OnNode { barred: Some("1".into()), ..OnNode::default() };
    bench.load(RULES, 3, vec![(name(1), barred)]);
    assert_eq!(bench.placed(), [(1, "n0".into(), true)]);
}

/// A job of which tasks began on all of so many nodes, and that is ending.
fn ending(nodes: usize) -> Bench {
    let mut bench = Bench::new(nodes);
    bench.load(RULES, nodes as u64, Vec::new());
    for (row, node, _) in bench.placed() {
        let conn = node[1..].parse::<Conn>().unwrap() + 1;
        bench.says(conn, NodeWord::Preparation(Progress::Succeeded));
        bench.begins(conn, row, 1);
        bench.ends(conn, row, 1, EndCause::Exited);
    }
    bench.becomes(JobState::Terminating, 2);
    bench
}

#[test]
fn the_release_runs_where_tasks_ran_and_the_job_ends_after_it() {
    let mut bench = ending(3);
    assert_eq!(bench.releases(), [1, 2, 3]);
    assert!(!bench.is_drained());
    bench.says(1, NodeWord::Released);
    bench.says(1, NodeWord::Released);
    bench.says(3, NodeWord::Released);
    assert!(!bench.is_drained());
    bench.says(2, NodeWord::Released);
    assert!(bench.is_drained());
}

#[test]
fn nobody_waits_for_nodes_that_ran_nothing_or_have_gone() {
    let mut bench = Bench::new(2);
    bench.load(RULES, 0, Vec::new());
    bench.becomes(JobState::Terminating, 2);
    assert!(bench.is_drained());

    let mut bench = ending(2);
    bench.step(Input::Goodbye { conn: 2 });
    assert!(!bench.is_drained());
    bench.says(1, NodeWord::Released);
    assert!(bench.is_drained());

    let mut bench = ending(1);
    bench.step(Input::Disconnected { conn: 1 });
    bench.pass(settings().patience + Duration::from_secs(1));
    assert!(bench.is_drained(), "its lease is over");
}

#[test]
fn nodes_that_are_away_are_asked_when_they_come_back_within_the_time() {
    let mut bench = Bench::new(2);
    bench.load(RULES, 0, vec![(name(0), prepared("1")), (name(1), prepared("1"))]);
    bench.step(Input::Disconnected { conn: 2 });
    bench.becomes(JobState::Terminating, 2);
    assert_eq!(bench.releases(), [1]);
    let conn = bench.hello(1, "2");
    assert_eq!(bench.releases(), [conn]);
    bench.says(1, NodeWord::Released);
    assert!(!bench.is_drained());
    bench.pass(LIMIT + settings().patience);
    assert!(bench.is_drained(), "it had its time");
}

#[test]
fn a_restart_goes_on_with_the_nodes_that_are_not_released() {
    let released = OnNode { released: true, ..prepared("1") };
    let mut bench = Bench::new(0);
    let view = JobView { state: JobState::Terminating, preparation: Some(RULES), ..job_view(1) };
    let nodes = vec![(name(0), released), (name(1), prepared("1")), (name(2), prepared("1"))];
    bench.step(Input::Loaded { view, ready: vec![], running: vec![], nodes, dependants: Dependants::default() });
    assert!(!bench.is_drained());
    bench.hello(0, "1");
    assert!(bench.releases().is_empty());
    let conn = bench.hello(1, "1");
    assert_eq!(bench.releases(), [conn]);
    bench.says(conn, NodeWord::Released);
    assert!(!bench.is_drained(), "the third may still come");
    bench.pass(settings().patience + Duration::from_secs(1));
    assert!(bench.is_drained());
}

#[test]
fn a_release_waits_for_attempts_that_should_not_be_there() {
    let mut bench = Bench::new(1);
    bench.load(RULES, 0, vec![(name(0), prepared("1"))]);
    let seen = vec![Seen { token: 0, row: Some(77), attempt: 1, instance: 0, ended: false }];
    let (conn, status) = (9, node_status(1));
    bench.step(Input::Hello { conn, node: name(0), incarnation: "1".into(), stream: 0, status, seen });
    bench.becomes(JobState::Deleting, 2);
    assert!(bench.releases().is_empty());
    bench.step(Input::ForeignEnded { conn });
    assert_eq!(bench.releases(), [conn]);
    assert!(bench.fx.purge.is_empty());
    bench.says(conn, NodeWord::Released);
    assert_eq!(bench.fx.purge, [1]);
}
