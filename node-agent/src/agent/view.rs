//! What pool-svc and people see of the node: its phase, its start task, its
//! problems and its latest tasks.

use std::collections::VecDeque;

use kiln_proto::common::v1::{ExecutionResult, FailureInfo};
use kiln_proto::pool::v1::{AgentPhase, NodeError, NodeReport, RecentTask, SchedulingState, StartTaskInfo};

use super::drain::is_drained;
use super::{Agent, timestamp};
use crate::domain::attempt::Ended;
use crate::domain::failure::Failure;
use crate::domain::ledger::Key;
use crate::wire;

/// Tasks that the view shows.
const RECENT_TASKS: usize = 10;
/// Problems that the view shows.
const MAX_ERRORS: usize = 10;

impl Agent {
    /// Enters a phase.
    pub fn enter(&self, phase: AgentPhase) {
        tracing::info!(node.id = self.config.join.node_id, phase = phase.as_str_name(), "phase");
        self.state().phase = phase;
        self.control_due.notify_one();
    }

    /// How the start task stands; `live` while its process may write files.
    pub fn start_task_is(&self, info: StartTaskInfo, live: bool) {
        {
            let mut state = self.state();
            state.start_task = Some(info);
            state.start_task_live = live;
        }
        if !live {
            self.ended.notify_waiters();
        }
        self.control_due.notify_one();
    }

    /// A problem of the node that people should see.
    pub fn add_error(&self, failure: &Failure) {
        let mut state = self.state();
        state.errors.retain(|error| error.code != failure.code);
        if state.errors.len() < MAX_ERRORS {
            let FailureInfo { code, message, details, .. } = wire::failure(failure);
            state.errors.push(NodeError { code, message, details });
        }
        drop(state);
        self.control_due.notify_one();
    }

    /// The full view for pool-svc.
    pub fn report(&self) -> NodeReport {
        let state = self.state();
        let phase = if state.draining && is_drained(&state) { AgentPhase::Drained } else { state.phase };
        let scheduling = if state.accepting { SchedulingState::Enabled } else { SchedulingState::Disabled };
        NodeReport {
            incarnation: self.incarnation.clone(),
            phase: phase.into(),
            scheduling_state: scheduling.into(),
            start_task_info: state.start_task.clone(),
            errors: state.errors.clone(),
            running_tasks: i32::try_from(state.ledger.live()).unwrap_or(i32::MAX),
            running_task_slots: state.stops.values().map(|(_, slots)| *slots).sum(),
            total_tasks_run: state.total_run,
            total_tasks_succeeded: state.total_succeeded,
            recent_tasks: state.recent.iter().cloned().collect(),
            boot_time: Some(timestamp(self.machine.boot_time)),
            done_command_id: state.done_command,
        }
    }
}

/// Puts a task on top of the latest.
pub(super) fn remember(
    recent: &mut VecDeque<RecentTask>,
    key: &Key,
    state: &str,
    start_time: Option<prost_types::Timestamp>,
    ended: Option<&Ended>,
) {
    recent.retain(|task| task.job_id != *key.job || task.task_id != *key.task);
    recent.push_front(RecentTask {
        job_id: key.job.to_string(),
        task_id: key.task.to_string(),
        state: state.to_owned(),
        start_time,
        end_time: ended.map(|ended| timestamp(ended.end)),
        exit_code: ended.and_then(|ended| ended.exit_code),
        result: match ended {
            None => ExecutionResult::Unspecified,
            Some(Ended { failure: None, .. }) => ExecutionResult::Success,
            Some(_) => ExecutionResult::Failure,
        }
        .into(),
    });
    recent.truncate(RECENT_TASKS);
}
