//! Right histories of any shape.

use kiln_chaos_check::History;
use kiln_chaos_check::history::{Final, FinalAttempt, Logged, Said, TaskName, Watched};
use kiln_node::record::{AttemptName, Event, Line};
use proptest::prelude::*;

/// How an attempt that is not the last one ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// With an exit code, and it is tried again.
    Code,
    /// Its agent was killed; the guard wrote so.
    AgentKilled,
    /// Agent and guard were killed; the node's next life tells.
    NodeKilled,
}

/// What becomes of a task.
#[derive(Debug, Clone)]
pub struct TaskShape {
    pub failed: Vec<Failed>,
    pub exit_code: i32,
    pub instances: u32,
    pub added_acknowledged: bool,
    /// Deleted after its end, and whether that was acknowledged.
    pub deleted: Option<bool>,
}

/// A history.
#[derive(Debug, Clone)]
pub struct Shape {
    pub nodes: usize,
    pub tasks: Vec<TaskShape>,
    pub watchers: usize,
}

pub fn shapes() -> impl Strategy<Value = Shape> {
    let failed = prop_oneof![Just(Failed::Code), Just(Failed::AgentKilled), Just(Failed::NodeKilled)];
    let task = (
        prop::collection::vec(failed, 0..3),
        prop_oneof![4 => Just(0), 1 => 1..100_i32],
        prop_oneof![5 => Just(1_u32), 1 => 2..4_u32],
        prop::bool::weighted(0.9),
        prop_oneof![6 => Just(None), 1 => any::<bool>().prop_map(Some)],
    )
        .prop_map(|(failed, exit_code, instances, added_acknowledged, deleted)| TaskShape {
            failed,
            exit_code,
            instances,
            added_acknowledged,
            deleted,
        });
    // The first task is one to hold on to: acknowledged, not deleted.
    let first = TaskShape { failed: vec![], exit_code: 0, instances: 1, added_acknowledged: true, deleted: None };
    (1..4_usize, prop::collection::vec(task, 0..12), 0..3_usize).prop_map(move |(nodes, mut tasks, watchers)| {
        tasks.insert(0, first.clone());
        Shape { nodes, tasks, watchers }
    })
}

/// A task of one job, that nothing happens to.
pub fn plain() -> TaskShape {
    TaskShape { failed: vec![], exit_code: 0, instances: 1, added_acknowledged: true, deleted: None }
}

#[derive(Debug)]
struct Builder {
    history: History,
    now: u64,
    /// Of each node.
    incarnations: Vec<u32>,
    sequences: [u64; 2],
}

pub const JOB: &str = "j";

pub fn history(shape: &Shape) -> History {
    let mut builder =
        Builder { history: History::default(), now: 1_000_000, incarnations: vec![0; shape.nodes], sequences: [0; 2] };
    for node in 0..shape.nodes {
        builder.begin_life(node);
    }
    for (number, task) in (1..).zip(&shape.tasks) {
        builder.task(number, task);
    }
    for watcher in 0..shape.watchers {
        let watcher = format!("w{watcher}");
        builder.history.watched.push(Watched::Job { watcher: watcher.clone(), job: JOB.into() });
        for event in &builder.history.events {
            builder.history.watched.push(Watched::Saw { watcher: watcher.clone(), event: event.clone() });
        }
    }
    builder.history
}

impl Builder {
    fn tick(&mut self) -> u64 {
        self.now += 10;
        self.now
    }

    fn line(&mut self, node: usize, event: Event) {
        let time = self.tick();
        let incarnation = format!("n{node}-{}", self.incarnations[node]);
        self.history.nodes.push(Line { time, node: format!("a/p/n{node}"), incarnation, event });
    }

    fn begin_life(&mut self, node: usize) {
        self.incarnations[node] += 1;
        self.line(node, Event::LifeBegan { pid: 1 });
        self.event(1, "pool.node.state", format!("pools/p/nodes/n{node}"), None, None);
    }

    fn event(&mut self, source: usize, kind: &str, subject: String, attempt: Option<u32>, exit_code: Option<i32>) {
        self.sequences[source] += 1;
        self.history.events.push(Logged {
            source: ["job-svc/x", "pool-svc/y"][source].to_owned(),
            sequence: self.sequences[source],
            kind: kind.to_owned(),
            subject,
            attempt,
            exit_code,
        });
    }

    fn task(&mut self, number: u64, shape: &TaskShape) {
        let name = TaskName { job: JOB.into(), task: format!("t{number}") };
        let nodes = self.incarnations.len();
        self.event(0, "job.task.added", name.subject(), None, None);
        let time = self.tick();
        let acknowledged = shape.added_acknowledged;
        self.history.clients.push(Said::Added {
            name: name.clone(),
            time,
            acknowledged,
            exit_code: Some(shape.exit_code),
        });
        let mut attempts = Vec::new();
        for (attempt, failed) in (1..).zip(shape.failed.iter().map(Some).chain([None])) {
            let node = (number as usize + attempt as usize) % nodes;
            let named = |instance| AttemptName { job: JOB.into(), task: name.task.clone(), number, attempt, instance };
            self.event(0, "job.task.assigned", name.subject(), Some(attempt), None);
            for instance in 0..shape.instances {
                self.line(node, Event::Starting { attempt: named(instance) });
                self.line(node, Event::Running { attempt: named(instance), pid: 100 + instance });
            }
            let code = match failed {
                None => Some(shape.exit_code),
                Some(Failed::Code) => Some(7),
                Some(Failed::AgentKilled | Failed::NodeKilled) => None,
            };
            match code {
                Some(code) => {
                    for instance in 0..shape.instances {
                        self.line(node, Event::Ended { attempt: named(instance), exit_code: Some(code) });
                    }
                }
                None => {
                    if failed == Some(&Failed::AgentKilled) {
                        self.line(node, Event::LifeOver);
                    }
                    self.begin_life(node);
                }
            }
            attempts.push(FinalAttempt { attempt, exit_code: code });
            match failed {
                None => self.event(0, "job.task.finished", name.subject(), Some(attempt), code),
                Some(_) => self.event(0, "job.task.requeued", name.subject(), Some(attempt), None),
            }
        }
        if let Some(acknowledged) = shape.deleted {
            self.event(0, "job.task.deleted", name.subject(), None, None);
            let time = self.tick();
            self.history.clients.push(Said::Deleted { name, time, acknowledged });
        } else {
            let word = Final { name, state: "completed".into(), exit_code: Some(shape.exit_code), attempts };
            self.history.finals.push(word);
        }
    }
}
