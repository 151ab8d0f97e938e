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

/// What the agent says it is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Phase {
    /// Preparing.
    #[default]
    Starting,
    /// See [`NodeState::WaitingForStartTask`].
    WaitingForStartTask,
    /// See [`NodeState::StartTaskFailed`].
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
    /// The provider has made it.
    pub allocated: bool,
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
mod tests {
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
        assert!(matches!(
            node.apply(NodeEvent::DisableRequested(REQUEUE), NOW),
            Err(Refused::AlreadyInSchedulingState(_))
        ));
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
}
