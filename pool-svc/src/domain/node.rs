//! A node and its state machine.
//!
//! The state follows from what the service decided (make, reboot, remove), what
//! the agent reports, and whether the agent is there at all. Rows are states,
//! columns events; "=" stays, "x" is refused, "rep" is the state the report says:
//! `starting`, `waitingforstarttask`, `starttaskfailed`, `unusable` as reported;
//! when ready, `running` with tasks, else `offline` if scheduling is disabled,
//! else `idle`; `offline` when drained.
//!
//! | state | registered | reported | restarted | agent gone | silent | silent too long | start timed out | heard | reboot | remove |
//! |---|---|---|---|---|---|---|---|---|---|---|
//! | creating | starting | rep | = | = | = | = | unusable | = | x | leaving |
//! | starting | starting | rep | = | unknown | unknown | = | unusable | = | x | leaving |
//! | waitingforstarttask | starting | rep | starting | unknown | unknown | = | = | = | x | leaving |
//! | starttaskfailed | starting | rep | starting | unknown | unknown | = | = | = | rebooting | leaving |
//! | idle, running, offline | starting | rep | starting | unknown | unknown | = | = | = | rebooting | leaving |
//! | rebooting | starting | = | starting | unknown | unknown | = | = | = | x | leaving |
//! | unknown | starting | rep | starting | = | = | unusable | = | rep | x | leaving |
//! | unusable | starting | rep | starting | unknown | = | = | = | rep unless the agent said unusable | rebooting | leaving |
//! | leavingpool | = | = (drained: noted) | = | drained | drained | = | = | = | x | = (no longer waits for tasks) |
//!
//! An agent that registers again with the incarnation it had changes nothing.

use kiln_ids::NodeId;
use kiln_time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::domain::agent::{AgentFacts, Command, Order, Phase, View};
use crate::domain::{DeallocationOption, Refused};

/// Why a node is unusable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Cause {
    /// Its agent said so.
    Agent,
    /// Nothing was heard of it for too long.
    Silence,
    /// Its agent did not register in time.
    Start,
}

/// States of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NodeState {
    /// Being made; its agent has not registered.
    Creating,
    /// The agent prepares the node.
    Starting,
    /// Tasks wait for the start task.
    WaitingForStartTask,
    /// The start task failed, and tasks must not run without it.
    StartTaskFailed,
    /// Ready, nothing runs.
    Idle,
    /// Tasks run.
    Running,
    /// Scheduling is disabled and nothing runs.
    Offline,
    /// On the way to a new incarnation.
    Rebooting,
    /// Nothing was heard of it lately.
    Unknown,
    /// It cannot take tasks.
    Unusable {
        /// Why.
        cause: Cause,
    },
    /// On the way out of the pool.
    LeavingPool {
        /// What happens to its tasks.
        option: DeallocationOption,
        /// No task runs there any more, and none will.
        drained: bool,
    },
}

impl NodeState {
    /// As clients write it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Starting => "starting",
            Self::WaitingForStartTask => "waitingforstarttask",
            Self::StartTaskFailed => "starttaskfailed",
            Self::Idle => "idle",
            Self::Running => "running",
            Self::Offline => "offline",
            Self::Rebooting => "rebooting",
            Self::Unknown => "unknown",
            Self::Unusable { .. } => "unusable",
            Self::LeavingPool { .. } => "leavingpool",
        }
    }

    /// Whether the node is on its way out.
    pub fn is_leaving(&self) -> bool {
        matches!(self, Self::LeavingPool { .. })
    }
}

/// What happens to a node.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeEvent {
    /// An agent introduced itself.
    Registered {
        /// One life of the agent.
        incarnation: String,
        /// What it says of itself.
        facts: AgentFacts,
        /// The start task it will run, encoded for the wire.
        start_task: Vec<u8>,
    },
    /// The agent's full view.
    Reported {
        /// Must be the node's present one.
        incarnation: String,
        /// As far as rules depend on it.
        view: View,
        /// All of it, encoded for the wire.
        report: Vec<u8>,
    },
    /// The provider was asked successfully to make it (again).
    Made {
        /// The agent's life before that. If another one has registered since,
        /// the new agent was faster than this news.
        incarnation: String,
    },
    /// The provider could not make it.
    NotMade,
    /// The provider has no living agent for it.
    AgentGone,
    /// No heartbeat for too long.
    Silent,
    /// And not for a long time after that.
    SilentTooLong,
    /// It should have registered by now.
    StartTimedOut,
    /// Heartbeats come again.
    Heard,
    /// A client reboots it.
    RebootRequested(DeallocationOption),
    /// It has to go.
    RemovalRequested(DeallocationOption),
    /// A client disables scheduling.
    DisableRequested(DeallocationOption),
    /// A client enables scheduling.
    EnableRequested,
}

/// A node's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its id, stable for its life.
    pub id: NodeId,
    /// Whether it stays (else it may be taken away by the provider).
    pub dedicated: bool,
    /// Its state.
    pub state: NodeState,
    /// When that began.
    pub state_since: Timestamp,
    /// The provider has made it, or it has joined.
    pub allocated: bool,
    /// It came by itself, with a join token: no provider knows it, the pool's
    /// targets do not count it, and its record goes when it does.
    #[serde(default)]
    pub joined: bool,
    /// When its record was made.
    pub allocation_time: Timestamp,
    /// Clients have disabled scheduling.
    pub scheduling_disabled: bool,
    /// What the agent has to do and has not confirmed.
    pub command: Option<Command>,
    /// Number of the latest command.
    pub last_command: u64,
    /// The agent's present life; empty before the first.
    pub incarnation: String,
    /// From the registration.
    pub facts: AgentFacts,
    /// From the latest report.
    pub view: View,
    /// Times the agent was started since the node was last ready.
    pub starts: u32,
    /// The provider is not asked to make it before this time.
    pub next_start: Timestamp,
    /// The latest report, encoded for the wire. Kept beside the record.
    #[serde(skip)]
    pub report: Vec<u8>,
    /// The start task of this incarnation, encoded for the wire.
    #[serde(skip)]
    pub start_task: Vec<u8>,
    /// Counts the writes of the record; 0 before the first.
    #[serde(skip)]
    pub revision: i64,
}

/// Waits between starts of an agent that does not become ready: none before the
/// first two, then doubling from this (ms).
const RESTART_PAUSE_MS: u64 = 500;
/// And at most this (ms).
const MAX_RESTART_PAUSE_MS: u64 = 60_000;

impl Node {
    /// The record of a node that is to be made.
    pub fn create(id: NodeId, dedicated: bool, now: Timestamp) -> Self {
        Self {
            id,
            dedicated,
            state: NodeState::Creating,
            state_since: now,
            allocated: false,
            joined: false,
            allocation_time: now,
            scheduling_disabled: false,
            command: None,
            last_command: 0,
            incarnation: String::new(),
            facts: AgentFacts::default(),
            view: View::default(),
            starts: 0,
            next_start: now,
            report: Vec::new(),
            start_task: Vec::new(),
            revision: 0,
        }
    }

    /// The record of a node that has joined and will register.
    pub fn join(id: NodeId, now: Timestamp) -> Self {
        Self { allocated: true, joined: true, ..Self::create(id, true, now) }
    }

    /// Applies what happened; returns the state before if it changed. Stale and
    /// repeated reports change nothing.
    ///
    /// # Errors
    /// [`Refused`] if the state does not allow it; nothing is changed then.
    pub fn apply(&mut self, event: NodeEvent, now: Timestamp) -> Result<Option<NodeState>, Refused> {
        let to = self.next_state(&event)?;
        self.absorb(event, now)?;
        if to == self.state {
            return Ok(None);
        }
        let from = std::mem::replace(&mut self.state, to);
        // Being drained is a detail of leaving, not another state; another option
        // gives the agent its time again.
        let drained_now = matches!((from, to), (NodeState::LeavingPool { option: a, .. }, NodeState::LeavingPool { option: b, .. }) if a == b);
        if !drained_now {
            self.state_since = now;
        }
        Ok((from.name() != to.name()).then_some(from))
    }

    /// The table of the module's documentation.
    fn next_state(&self, event: &NodeEvent) -> Result<NodeState, Refused> {
        use NodeState as S;
        let state = self.state;
        let refused = |what| Refused::NodeState { node: self.id.clone(), state, what };
        Ok(match event {
            NodeEvent::Registered { incarnation, .. } => match state {
                _ if *incarnation == self.incarnation => state,
                S::LeavingPool { .. } => state,
                S::Creating
                | S::Starting
                | S::WaitingForStartTask
                | S::StartTaskFailed
                | S::Idle
                | S::Running
                | S::Offline
                | S::Rebooting
                | S::Unknown
                | S::Unusable { .. } => S::Starting,
            },
            NodeEvent::Reported { incarnation, view, .. } => match state {
                _ if *incarnation != self.incarnation => return Err(Refused::StaleIncarnation(self.id.clone())),
                S::LeavingPool { option, drained } => {
                    S::LeavingPool { option, drained: drained || view.phase == Phase::Drained }
                }
                S::Rebooting => state,
                S::Creating
                | S::Starting
                | S::WaitingForStartTask
                | S::StartTaskFailed
                | S::Idle
                | S::Running
                | S::Offline
                | S::Unknown
                | S::Unusable { .. } => reported_state(view, self.scheduling_disabled),
            },
            NodeEvent::Made { incarnation } => match state {
                _ if *incarnation != self.incarnation => state,
                S::Creating | S::Starting | S::LeavingPool { .. } => state,
                S::WaitingForStartTask
                | S::StartTaskFailed
                | S::Idle
                | S::Running
                | S::Offline
                | S::Rebooting
                | S::Unknown
                | S::Unusable { .. } => S::Starting,
            },
            NodeEvent::NotMade => state,
            NodeEvent::AgentGone => match state {
                S::Creating | S::Unknown => state,
                S::LeavingPool { option, .. } => S::LeavingPool { option, drained: true },
                S::Starting
                | S::WaitingForStartTask
                | S::StartTaskFailed
                | S::Idle
                | S::Running
                | S::Offline
                | S::Rebooting
                | S::Unusable { .. } => S::Unknown,
            },
            NodeEvent::Silent => match state {
                S::Creating | S::Unknown | S::Unusable { .. } => state,
                S::LeavingPool { option, .. } => S::LeavingPool { option, drained: true },
                S::Starting
                | S::WaitingForStartTask
                | S::StartTaskFailed
                | S::Idle
                | S::Running
                | S::Offline
                | S::Rebooting => S::Unknown,
            },
            NodeEvent::SilentTooLong => match state {
                S::Unknown => S::Unusable { cause: Cause::Silence },
                S::Creating
                | S::Starting
                | S::WaitingForStartTask
                | S::StartTaskFailed
                | S::Idle
                | S::Running
                | S::Offline
                | S::Rebooting
                | S::Unusable { .. }
                | S::LeavingPool { .. } => state,
            },
            NodeEvent::StartTimedOut => match state {
                S::Creating | S::Starting => S::Unusable { cause: Cause::Start },
                S::WaitingForStartTask
                | S::StartTaskFailed
                | S::Idle
                | S::Running
                | S::Offline
                | S::Rebooting
                | S::Unknown
                | S::Unusable { .. }
                | S::LeavingPool { .. } => state,
            },
            NodeEvent::Heard => match state {
                S::Unknown | S::Unusable { cause: Cause::Silence | Cause::Start } => {
                    reported_state(&self.view, self.scheduling_disabled)
                }
                S::Creating
                | S::Starting
                | S::WaitingForStartTask
                | S::StartTaskFailed
                | S::Idle
                | S::Running
                | S::Offline
                | S::Rebooting
                | S::Unusable { cause: Cause::Agent }
                | S::LeavingPool { .. } => state,
            },
            NodeEvent::RebootRequested(_) => match state {
                S::StartTaskFailed | S::Idle | S::Running | S::Offline | S::Unusable { .. } => S::Rebooting,
                S::Creating
                | S::Starting
                | S::WaitingForStartTask
                | S::Rebooting
                | S::Unknown
                | S::LeavingPool { .. } => return Err(refused("a reboot")),
            },
            NodeEvent::RemovalRequested(wanted) => match state {
                S::LeavingPool { option, drained } => {
                    let option = if hurries(option, *wanted) { *wanted } else { option };
                    S::LeavingPool { option, drained }
                }
                S::Creating
                | S::Starting
                | S::WaitingForStartTask
                | S::StartTaskFailed
                | S::Idle
                | S::Running
                | S::Offline
                | S::Rebooting
                | S::Unknown
                | S::Unusable { .. } => S::LeavingPool { option: *wanted, drained: false },
            },
            NodeEvent::DisableRequested(_) | NodeEvent::EnableRequested => {
                let disable = matches!(event, NodeEvent::DisableRequested(_));
                if state.is_leaving() {
                    return Err(refused("a change of scheduling"));
                }
                if disable == self.scheduling_disabled {
                    return Err(Refused::AlreadyInSchedulingState(self.id.clone()));
                }
                match state {
                    S::Idle if disable => S::Offline,
                    S::Offline if !disable => reported_state(&self.view, false),
                    _ => state,
                }
            }
        })
    }

    /// Keeps what the event brings beside the state.
    fn absorb(&mut self, event: NodeEvent, now: Timestamp) -> Result<(), Refused> {
        match event {
            NodeEvent::Registered { incarnation, facts, start_task } => {
                self.allocated = true;
                self.facts = facts;
                if incarnation != self.incarnation {
                    self.incarnation = incarnation;
                    self.start_task = start_task;
                    self.view = View::default();
                    self.report.clear();
                    self.command = None;
                    self.restate_orders();
                }
            }
            NodeEvent::Reported { view, report, .. } => {
                if view.phase == Phase::Ready {
                    self.starts = 0;
                }
                if self.command.is_some_and(|command| command.id <= view.done_command) {
                    self.command = None;
                }
                self.view = view;
                self.report = report;
            }
            NodeEvent::Made { .. } => {
                self.allocated = true;
                self.count_start(now);
            }
            NodeEvent::NotMade => self.count_start(now),
            NodeEvent::RebootRequested(option) => self.order(Order::Reboot(option)),
            NodeEvent::RemovalRequested(wanted) => match self.state {
                NodeState::LeavingPool { option, .. } if !hurries(option, wanted) => {}
                _ => self.order(Order::Drain(wanted)),
            },
            NodeEvent::DisableRequested(option) => {
                self.scheduling_disabled = true;
                self.order(Order::DisableScheduling(option));
            }
            NodeEvent::EnableRequested => {
                self.scheduling_disabled = false;
                self.order(Order::EnableScheduling);
            }
            NodeEvent::AgentGone
            | NodeEvent::Silent
            | NodeEvent::SilentTooLong
            | NodeEvent::StartTimedOut
            | NodeEvent::Heard => {}
        }
        Ok(())
    }

    /// A new life of the agent knows nothing of what was decided before.
    fn restate_orders(&mut self) {
        match self.state {
            NodeState::LeavingPool { option, .. } => self.order(Order::Drain(option)),
            _ if self.scheduling_disabled => self.order(Order::DisableScheduling(DeallocationOption::Requeue)),
            _ => {}
        }
    }

    fn order(&mut self, order: Order) {
        self.last_command += 1;
        self.command = Some(Command { id: self.last_command, order });
    }

    fn count_start(&mut self, now: Timestamp) {
        self.starts = self.starts.saturating_add(1);
        let pause = match self.starts {
            0 | 1 => 0,
            starts => (RESTART_PAUSE_MS << (starts - 2).min(16)).min(MAX_RESTART_PAUSE_MS),
        };
        self.next_start = now.plus(std::time::Duration::from_millis(pause));
    }
}

/// Whether a node that waits for its tasks is told not to.
fn hurries(option: DeallocationOption, wanted: DeallocationOption) -> bool {
    option.waits_for_tasks() && !wanted.waits_for_tasks()
}

/// The state a report says.
fn reported_state(view: &View, scheduling_disabled: bool) -> NodeState {
    match view.phase {
        Phase::Starting => NodeState::Starting,
        Phase::WaitingForStartTask => NodeState::WaitingForStartTask,
        Phase::StartTaskFailed => NodeState::StartTaskFailed,
        Phase::Ready if view.running_tasks > 0 => NodeState::Running,
        Phase::Ready if scheduling_disabled => NodeState::Offline,
        Phase::Ready => NodeState::Idle,
        Phase::Drained => NodeState::Offline,
        Phase::Unusable => NodeState::Unusable { cause: Cause::Agent },
    }
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
