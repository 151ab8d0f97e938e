//! What passes between the service and the agent of a node: the agent's views of
//! itself one way, orders the other.

use kiln_time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::domain::DeallocationOption;

/// What the agent says it is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Phase {
    /// Preparing.
    #[default]
    Starting,
    /// See [`super::NodeState::WaitingForStartTask`].
    WaitingForStartTask,
    /// See [`super::NodeState::StartTaskFailed`].
    StartTaskFailed,
    /// Takes tasks unless scheduling is disabled.
    Ready,
    /// Nothing runs and nothing will be accepted.
    Drained,
    /// Something is broken.
    Unusable,
}

/// The agent's latest full view, as far as rules depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct View {
    /// What it is doing.
    pub phase: Phase,
    /// Scheduling as it has applied it.
    pub scheduling_disabled: bool,
    /// Tasks that run.
    pub running_tasks: u32,
    /// Slots they take.
    pub running_slots: u32,
    /// Tasks since the node joined.
    pub total_run: u32,
    /// Those of them that succeeded.
    pub total_succeeded: u32,
    /// When this life of the machine or agent began.
    pub boot_time: Option<Timestamp>,
    /// Highest command that was carried out.
    pub done_command: u64,
}

/// What an agent has to do, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Take no new tasks; deal with running ones as told.
    DisableScheduling(DeallocationOption),
    /// Take tasks again.
    EnableScheduling,
    /// As disabling, for good; then report that nothing runs.
    Drain(DeallocationOption),
    /// Deal with tasks, then begin a new incarnation.
    Reboot(DeallocationOption),
}

/// An order with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Increasing per node.
    pub id: u64,
    /// What to do.
    pub order: Order,
}

/// Facts of the machine and the agent, from its registration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AgentFacts {
    /// Version of the agent.
    pub version: String,
    /// Address of the machine.
    pub ip_address: String,
    /// Processors.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Absolute path of the node root.
    pub root_dir: String,
}
