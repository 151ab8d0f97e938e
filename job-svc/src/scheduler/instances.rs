//! Instances of multi-instance tasks, as the actor keeps them.

use std::sync::Arc;

use kiln_ids::NodeId;
use kiln_proto::job::v1::{Instance, InstanceHost};
use kiln_time::Timestamp;

use super::actor::Actor;
use super::core::{InstanceChange, Row};
use crate::domain::subtask::Subtask;
use crate::domain::task::TaskState;
use crate::store::TaskRow;

impl Actor {
    /// Notes what the instances of a task do.
    pub(super) fn change_instance(&mut self, row: Row, change: InstanceChange, now: Timestamp) {
        let writes = &mut self.batch.commit.subtasks;
        match change {
            InstanceChange::Assigned { attempt, nodes } => {
                let new = |(instance, node)| Subtask::new(instance, attempt, node, now);
                let subtasks: Vec<Subtask> = (0..).zip(nodes).map(new).collect();
                writes.extend(subtasks.iter().map(|subtask| (row, subtask.clone())));
                self.subtasks.insert(row, subtasks);
            }
            InstanceChange::Happened(instance, event) => {
                let subtask = self.subtasks.get_mut(&row).and_then(|all| all.get_mut(instance as usize));
                if let Some(subtask) = subtask
                    && let Some(changed) = subtask.apply(event, now)
                {
                    *subtask = changed;
                    writes.push((row, subtask.clone()));
                }
            }
        }
    }

    /// The place of an instance among all of its task.
    pub(super) fn place_of(&self, task: &TaskRow, instance: u32) -> Instance {
        let host = |node: &Arc<NodeId>| {
            let link = self.core.conn_of(node).and_then(|conn| self.links.get(&conn));
            InstanceHost {
                node_id: node.as_str().to_owned(),
                ip_address: link.map(|link| link.ip.clone()).unwrap_or_default(),
            }
        };
        let hosts = match (self.subtasks.get(&task.row), &task.task.state) {
            (Some(subtasks), _) => subtasks.iter().map(|subtask| host(&subtask.node)).collect(),
            (None, TaskState::Running { node, .. }) => vec![host(node)],
            (None, TaskState::Active | TaskState::Completed { .. }) => Vec::new(),
        };
        Instance { number: instance, hosts }
    }

    /// Where this instance of a task that runs was bound to.
    pub(super) fn node_of_instance<'a>(&'a self, task: &'a TaskRow, instance: u32) -> Option<&'a Arc<NodeId>> {
        match (self.subtasks.get(&task.row), &task.task.state) {
            (Some(subtasks), _) => subtasks.get(instance as usize).map(|subtask| &subtask.node),
            (None, TaskState::Running { node, .. }) => Some(node),
            (None, TaskState::Active | TaskState::Completed { .. }) => None,
        }
    }
}
