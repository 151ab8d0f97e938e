//! What the events of a job and a pool add up to.
//!
//! Events may come again, and several of one task come in order; the tally
//! keeps the state of each task, so repetition changes nothing.

use std::collections::HashMap;

use kiln_proto::common::v1::ExecutionResult;
use kiln_proto::events::v1::{Event, event::Payload};
use kiln_proto::job::v1::{JobState, TaskState};
use kiln_proto::pool::v1::NodeState;

/// Tasks by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Waiting.
    pub active: usize,
    /// Preparing or running.
    pub running: usize,
    /// Completed with success.
    pub succeeded: usize,
    /// Completed otherwise.
    pub failed: usize,
}

impl Counts {
    /// Completed in any way.
    pub fn completed(self) -> usize {
        self.succeeded + self.failed
    }

    fn slot(&mut self, state: Seen) -> &mut usize {
        match state {
            Seen::Active => &mut self.active,
            Seen::Running => &mut self.running,
            Seen::Succeeded => &mut self.succeeded,
            Seen::Failed => &mut self.failed,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Active,
    Running,
    Succeeded,
    Failed,
}

/// Tasks and state of one job, as its events tell.
#[derive(Debug, Default)]
pub struct JobTally {
    tasks: HashMap<String, Seen>,
    counts: Counts,
    ended: Option<String>,
}

impl JobTally {
    /// Takes in one event; `true` if it is about a task that has just finished.
    pub fn apply(&mut self, event: &Event) -> bool {
        match &event.payload {
            Some(Payload::Task(task)) => {
                let state = match task.new_state() {
                    TaskState::Unspecified => return false,
                    TaskState::Active => Seen::Active,
                    TaskState::Preparing | TaskState::Running => Seen::Running,
                    TaskState::Completed if task.result() == ExecutionResult::Success => Seen::Succeeded,
                    TaskState::Completed => Seen::Failed,
                };
                let old = self.tasks.insert(task.task_id.to_ascii_lowercase(), state);
                if let Some(old) = old {
                    *self.counts.slot(old) -= 1;
                }
                *self.counts.slot(state) += 1;
                old != Some(state) && matches!(state, Seen::Succeeded | Seen::Failed)
            }
            Some(Payload::Job(job)) => {
                let over = matches!(job.new_state(), JobState::Terminating | JobState::Completed | JobState::Deleting)
                    || event.r#type.ends_with(".deleted");
                if over && self.ended.is_none() {
                    self.ended = Some(job.reason.clone());
                }
                false
            }
            _ => false,
        }
    }

    /// Tasks by state.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Why the job was ended, if somebody or a limit ended it.
    pub fn ended(&self) -> Option<&str> {
        self.ended.as_deref()
    }
}

/// Nodes of one pool, as its events tell.
#[derive(Debug, Default)]
pub struct PoolTally {
    nodes: HashMap<String, NodeState>,
    gone: bool,
}

impl PoolTally {
    /// Takes in one event.
    pub fn apply(&mut self, event: &Event) {
        match &event.payload {
            Some(Payload::Node(node)) => {
                if event.r#type.ends_with(".removed") {
                    self.nodes.remove(&node.node_id);
                } else {
                    self.nodes.insert(node.node_id.clone(), node.new_state());
                }
            }
            Some(Payload::Pool(_)) if event.r#type.ends_with(".deleted") => self.gone = true,
            _ => {}
        }
    }

    /// Nodes that can run tasks.
    pub fn usable(&self) -> usize {
        self.nodes.values().filter(|state| matches!(state, NodeState::Idle | NodeState::Running)).count()
    }

    /// Nodes that will not run tasks by themselves.
    pub fn broken(&self) -> Vec<(&str, NodeState)> {
        let mut broken: Vec<_> = self
            .nodes
            .iter()
            .filter(|(_, state)| matches!(state, NodeState::StartTaskFailed | NodeState::Unusable))
            .map(|(id, state)| (id.as_str(), *state))
            .collect();
        broken.sort_by_key(|(id, _)| id.to_owned());
        broken
    }

    /// All nodes.
    pub fn total(&self) -> usize {
        self.nodes.len()
    }

    /// The pool has been deleted.
    pub fn is_gone(&self) -> bool {
        self.gone
    }
}

#[cfg(test)]
mod tests {
    use kiln_proto::events::v1::{NodeChanged, TaskChanged};

    use super::*;

    fn task(id: &str, state: TaskState, result: ExecutionResult) -> Event {
        let payload = Payload::Task(TaskChanged {
            task_id: id.to_owned(),
            new_state: state.into(),
            result: result.into(),
            ..TaskChanged::default()
        });
        Event { payload: Some(payload), ..Event::default() }
    }

    #[test]
    fn repeated_events_count_once() {
        let mut tally = JobTally::default();
        let none = ExecutionResult::Unspecified;
        assert!(!tally.apply(&task("a", TaskState::Active, none)));
        assert!(!tally.apply(&task("b", TaskState::Active, none)));
        assert!(!tally.apply(&task("A", TaskState::Running, none)));
        let done = task("a", TaskState::Completed, ExecutionResult::Success);
        assert!(tally.apply(&done));
        assert!(!tally.apply(&done));
        assert_eq!(tally.counts(), Counts { active: 1, running: 0, succeeded: 1, failed: 0 });
        // A retry puts a failed task back.
        assert!(tally.apply(&task("b", TaskState::Completed, ExecutionResult::Failure)));
        assert!(!tally.apply(&task("b", TaskState::Active, none)));
        assert_eq!(tally.counts(), Counts { active: 1, running: 0, succeeded: 1, failed: 0 });
    }

    #[test]
    fn nodes_come_and_go() {
        let node = |id: &str, kind: &str, state: NodeState| Event {
            r#type: kind.to_owned(),
            payload: Some(Payload::Node(NodeChanged {
                node_id: id.to_owned(),
                new_state: state.into(),
                ..NodeChanged::default()
            })),
            ..Event::default()
        };
        let mut tally = PoolTally::default();
        tally.apply(&node("1", "pool.node.created", NodeState::Creating));
        tally.apply(&node("2", "pool.node.created", NodeState::Creating));
        tally.apply(&node("1", "pool.node.state", NodeState::Idle));
        tally.apply(&node("2", "pool.node.state", NodeState::StartTaskFailed));
        assert_eq!((tally.usable(), tally.total(), tally.broken().len()), (1, 2, 1));
        tally.apply(&node("2", "pool.node.removed", NodeState::LeavingPool));
        assert_eq!(tally.total(), 1);
    }
}
