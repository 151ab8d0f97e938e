//! Whether the node takes tasks: disabling, draining, rebooting, and what job-svc
//! is told of it.

use kiln_proto::common::v1::{DeallocationOption, Resources};
use kiln_proto::job::v1::WorkerStatus;
use kiln_proto::pool::v1::{JobDefaultOrder, NodeFillType};

use super::{Agent, Outcome, State};
use crate::clock;

impl Agent {
    /// Takes tasks again, unless the node is being drained.
    pub fn enable_scheduling(&self) {
        self.change_status(|state| {
            if !state.draining {
                state.accepting = true;
                state.option = DeallocationOption::Unspecified;
            }
        });
    }

    /// Takes no tasks; job-svc deals with running ones as `option` says.
    pub fn disable_scheduling(&self, option: DeallocationOption) {
        self.change_status(|state| {
            state.accepting = false;
            state.option = option;
        });
    }

    /// Takes no tasks any more. With `reboot` the next life begins when drained.
    pub fn drain(&self, option: DeallocationOption, reboot: Option<u64>) {
        self.change_status(|state| {
            state.accepting = false;
            state.draining = true;
            state.option = option;
            state.reboot = reboot.or(state.reboot);
        });
        self.check_drained();
    }

    fn change_status(&self, change: impl FnOnce(&mut State)) {
        {
            let mut state = self.state();
            change(&mut state);
            state.status_version += 1;
        }
        if !self.state().accepting {
            self.give_line_back();
        }
        self.work_due.notify_one();
        self.control_due.notify_one();
    }

    /// The command was carried out, or is on its way for good.
    pub fn command_done(&self, id: u64) {
        let mut state = self.state();
        state.done_command = state.done_command.max(id);
        drop(state);
        self.control_due.notify_one();
    }

    /// The last command that was carried out.
    pub fn done_command(&self) -> u64 {
        self.state().done_command
    }

    /// Status for job-svc, with its version.
    pub fn status(&self) -> (u64, WorkerStatus) {
        let registration = self.registration();
        let settings = &registration.settings;
        let state = self.state();
        let status = WorkerStatus {
            task_slots: settings.task_slots.max(1),
            accepting: state.accepting,
            running_tasks: state.option.into(),
            is_dedicated: settings.is_dedicated,
            pack: settings.node_fill_type() == NodeFillType::Pack,
            order_jobs_by_creation: settings.job_default_order() == JobDefaultOrder::CreationTime,
            version: state.status_version,
            resources: Some(self.resources()),
        };
        (state.status_version, status)
    }

    /// All that the machine has. Several nodes of one machine share it, and each
    /// says the whole: who places them there knows.
    fn resources(&self) -> Resources {
        let amount = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        Resources {
            cpu_millis: i64::from(self.machine.cpus) * 1000,
            memory_bytes: amount(self.machine.memory_bytes),
            disk_bytes: amount(self.machine.disk_bytes),
            gpus: i32::try_from(self.machine.gpus).unwrap_or(i32::MAX),
        }
    }

    /// job-svc has applied this version of the status, and every assignment it
    /// sent before has arrived.
    pub fn status_confirmed(&self, version: u64) {
        {
            let mut state = self.state();
            state.status_confirmed = state.status_confirmed.max(version);
        }
        self.check_drained();
    }

    /// job-svc may give this node tasks from now on.
    pub fn work_begins(&self) {
        self.state().work_connected = true;
    }

    pub(super) fn check_drained(&self) {
        let reboot = {
            let state = self.state();
            if !state.draining || !is_drained(&state) {
                return;
            }
            state.reboot
        };
        self.control_due.notify_one();
        if let Some(command) = reboot {
            self.finish(Outcome::Reboot(command));
        }
    }

    /// The lease may be over: a drain that waits for job-svc can go on.
    pub fn recheck_drained(&self) {
        self.check_drained();
    }
}

/// Nothing runs, and job-svc knows that nothing may come: or nothing can come,
/// because it was never asked or the lease is over.
pub(super) fn is_drained(state: &State) -> bool {
    if state.ledger.live() > 0 || state.start_task_live {
        return false;
    }
    if !state.work_connected || !state.lease.is_valid(clock::since_boot()) {
        return true;
    }
    state.status_confirmed >= state.status_version && state.ledger.unacknowledged() == 0
}
