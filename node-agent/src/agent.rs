//! What the loops of the agent share: one life (incarnation) of it.
//!
//! - here: registration, contact, the ledger of tasks, the end of the life;
//! - [`drain`]: whether the node takes tasks;
//! - [`line`]: tasks that wait for a free slot;
//! - [`view`]: what others see of the node.

mod drain;
pub mod line;
mod view;

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use kiln_proto::common::v1::DeallocationOption;
use kiln_proto::pool::v1::{AgentPhase, NodeError, NodeSettings, RecentTask, StartTaskInfo};
use kiln_time::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::config::NodeAgentConfig;
use crate::confine::Confiner;
use crate::domain::attempt::{Attempt, Effect, Ended, Event, Rejected, StopCause};
use crate::domain::environment::NodeFacts;
use crate::domain::lease::Lease;
use crate::domain::ledger::{Key, Ledger};
use crate::instance::Proceeds;
use crate::job_tasks::Jobs;
use crate::machine::Machine;
use crate::packages::Packages;
use crate::process::supervisor::Supervisor;
use crate::record::Record;
use crate::retention::kept::Kept;
use crate::stage::input::Input;
use crate::stage::output::Output;
use view::remember;

/// Assumed until the service tells its own.
const DEFAULT_LEASE: Duration = Duration::from_secs(30);

/// What pool-svc told at registration.
#[derive(Debug, Clone, Default)]
pub struct Registration {
    /// Account of the pool.
    pub account: String,
    /// URL of job-svc's work stream.
    pub work_endpoint: String,
    /// Data plane of the account.
    pub blob_endpoint: String,
    /// Public URL of the service.
    pub batch_endpoint: String,
    /// Pause between heartbeats.
    pub heartbeat_interval: Duration,
    /// What of its pool a node has to know.
    pub settings: NodeSettings,
}

/// How a life of the agent ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Asked to by whoever runs the machine.
    Stopped,
    /// The node has left its pool.
    Left(String),
    /// The next life begins; the command is done then.
    Reboot(u64),
    /// No contact for too long, or refused for good.
    GaveUp(String),
}

/// One life of the agent.
#[derive(Debug)]
pub struct Agent {
    /// How it was started.
    pub config: NodeAgentConfig,
    /// Names this life.
    pub incarnation: String,
    /// AZ_BATCH_NODE_ROOT_DIR.
    pub root: PathBuf,
    /// What the machine has.
    pub machine: Machine,
    /// Runs processes.
    pub supervisor: Arc<Supervisor>,
    /// Fetches resource files.
    pub input: Input,
    /// Uploads output files.
    pub output: Output,
    /// Installs packages of applications.
    pub packages: Packages,
    /// Bearer token of the node.
    pub node_token: Arc<RwLock<String>>,
    /// Until when directories of tasks stay.
    pub kept: Kept,
    /// Users and limits of processes.
    pub confiner: Arc<Confiner>,
    /// What ran here, if somebody wants to know.
    pub record: Record,
    /// Primaries of multi-instance tasks that wait.
    pub proceeds: Proceeds,
    /// Preparation and release of jobs.
    pub jobs: Jobs,
    /// Reports or status wait for job-svc.
    pub work_due: Notify,
    /// Something that pool-svc should know at once.
    pub control_due: Notify,
    /// Counters changed; pool-svc may hear of it a moment later.
    pub control_soon: Notify,
    /// An attempt stands in line, the first.
    line_began: Notify,
    /// An attempt or the start task has ended.
    pub ended: Notify,
    /// Tasks are stopped: the loops say goodbye and end.
    pub closing: CancellationToken,
    registration: RwLock<Arc<Registration>>,
    state: Mutex<State>,
    outcome: Mutex<Option<Outcome>>,
    finished: CancellationToken,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    lease: Lease,
    last_contact: Duration,
    /// Of all live attempts, with the slots that they hold.
    stops: HashMap<Key, (CancellationToken, i32)>,
    line: VecDeque<line::Waiting>,
    /// How long the line was when assignments came last.
    line_mark: usize,
    phase: AgentPhase,
    start_task_live: bool,
    work_connected: bool,
    accepting: bool,
    draining: bool,
    reboot: Option<u64>,
    option: DeallocationOption,
    /// Counts changes of the status; job-svc has applied `status_confirmed`.
    status_version: u64,
    status_confirmed: u64,
    start_task: Option<StartTaskInfo>,
    errors: Vec<NodeError>,
    total_run: i32,
    total_succeeded: i32,
    recent: VecDeque<RecentTask>,
    done_command: u64,
}

/// What a life is made of.
#[derive(Debug)]
pub struct Parts {
    /// Runs processes.
    pub supervisor: Arc<Supervisor>,
    /// Fetches resource files.
    pub input: Input,
    /// Uploads output files.
    pub output: Output,
    /// Installs packages of applications.
    pub packages: Packages,
    /// Until when directories of tasks stay.
    pub kept: Kept,
    /// Users and limits of processes.
    pub confiner: Arc<Confiner>,
    /// What ran here, if somebody wants to know.
    pub record: Record,
    /// Bearer token of the node.
    pub node_token: Arc<RwLock<String>>,
}

impl Agent {
    /// A new life. `done_command` is the last command that was carried out.
    pub fn new(config: NodeAgentConfig, root: PathBuf, incarnation: String, parts: Parts, done_command: u64) -> Self {
        let state = State {
            ledger: Ledger::default(),
            lease: Lease::new(DEFAULT_LEASE),
            last_contact: clock::since_boot(),
            stops: HashMap::new(),
            line: VecDeque::new(),
            line_mark: 0,
            phase: AgentPhase::Starting,
            start_task_live: false,
            work_connected: false,
            accepting: true,
            draining: false,
            reboot: None,
            option: DeallocationOption::Unspecified,
            status_version: 1,
            status_confirmed: 0,
            start_task: None,
            errors: Vec::new(),
            total_run: 0,
            total_succeeded: 0,
            recent: VecDeque::new(),
            done_command,
        };
        Self {
            config,
            incarnation,
            machine: Machine::read(&root),
            root,
            supervisor: parts.supervisor,
            input: parts.input,
            output: parts.output,
            packages: parts.packages,
            node_token: parts.node_token,
            kept: parts.kept,
            confiner: parts.confiner,
            record: parts.record,
            proceeds: Proceeds::default(),
            jobs: Jobs::default(),
            work_due: Notify::new(),
            control_due: Notify::new(),
            control_soon: Notify::new(),
            line_began: Notify::new(),
            ended: Notify::new(),
            closing: CancellationToken::new(),
            registration: RwLock::default(),
            state: Mutex::new(state),
            outcome: Mutex::new(None),
            finished: CancellationToken::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- registration and contact

    /// What pool-svc told.
    pub fn registration(&self) -> Arc<Registration> {
        self.registration.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// pool-svc told this.
    pub fn registered(&self, registration: Registration) {
        *self.registration.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(registration);
    }

    /// A new node token.
    pub fn renew_token(&self, token: &str) {
        token.clone_into(&mut self.node_token.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// A service has answered.
    pub fn heard(&self) {
        self.state().last_contact = clock::since_boot();
    }

    /// Whether nobody has answered for so long that the agent shall end.
    pub fn is_lost(&self) -> bool {
        let state = self.state();
        let limit = state.lease.length() + self.config.settings.grace;
        clock::since_boot().saturating_sub(state.last_contact) > limit
    }

    /// What every process of the node sees.
    pub fn facts(&self) -> NodeFacts {
        let registration = self.registration();
        NodeFacts {
            account: registration.account.clone(),
            batch_url: registration.batch_endpoint.clone(),
            pool_id: self.config.join.pool_id.clone(),
            node_id: self.config.join.node_id.clone(),
            is_dedicated: registration.settings.is_dedicated,
            root_dir: self.root.to_string_lossy().into_owned(),
            path: self.config.settings.task_path.clone(),
            packages: self.packages.of_pool(),
        }
    }

    // --- end of this life

    /// This life ends; the first reason counts.
    pub fn finish(&self, outcome: Outcome) {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(outcome);
        self.finished.cancel();
    }

    /// Completes when this life shall end.
    pub async fn finished(&self) -> Outcome {
        self.finished.cancelled().await;
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or(Outcome::Stopped)
    }

    // --- attempts

    /// Works on the ledger and the lease.
    pub fn with_work<T>(&self, work: impl FnOnce(&mut Ledger, &mut Lease) -> T) -> T {
        let state = &mut *self.state();
        work(&mut state.ledger, &mut state.lease)
    }

    /// Something happened to an attempt; does what follows for it. Gives the
    /// state of the attempt afterwards.
    pub fn apply(&self, key: &Key, event: Event) -> Option<Attempt> {
        let (result, next, wakes) = {
            let mut state = self.state();
            // While the line is long, the first report of several wakes the work loop.
            let wakes = !state.line_is_long() || !state.ledger.has_reports();
            let result = state.ledger.apply(key, event, Timestamp::now());
            let next = state.ledger.get(key).cloned();
            if let Some(Attempt::Ended(ended)) = &next
                && state.stops.remove(key).is_some()
            {
                state.total_succeeded = state.total_succeeded.saturating_add(i32::from(ended.failure.is_none()));
                remember(&mut state.recent, key, "completed", Some(timestamp(ended.start)), Some(ended));
                drop(state);
                self.attempt_ended(key, ended);
            } else if let Ok(Some(Effect::Kill)) = result
                && let Some((stop, _)) = state.stops.get(key)
            {
                stop.cancel();
            }
            (result, next, wakes)
        };
        match result {
            Ok(Some(Effect::Report)) if wakes => self.work_due.notify_one(),
            // One that stands in line has nobody else to end it.
            Ok(Some(Effect::Kill)) => self.leave_line(key),
            Ok(Some(Effect::Report | Effect::None) | None) => {}
            Err(Rejected { state, event }) => {
                tracing::debug!(
                    job.id = &*key.job,
                    task.id = &*key.task,
                    attempt = key.attempt,
                    state,
                    event,
                    "event ignored"
                );
            }
        }
        next
    }

    fn attempt_ended(&self, key: &Key, ended: &Ended) {
        tracing::debug!(
            job.id = &*key.job,
            task.id = &*key.task,
            attempt = key.attempt,
            cause = ?ended.cause,
            exit_code = ended.exit_code,
            failure = ended.failure.as_ref().map(|failure| failure.code),
            "attempt ended"
        );
        self.ended.notify_waiters();
        self.control_soon.notify_one();
        self.check_drained();
    }

    /// Whatever there is to report is sent now.
    pub fn tell_reports(&self) {
        self.state().ledger.tell();
        self.work_due.notify_one();
    }

    /// Stops every attempt.
    pub fn stop_all(&self, cause: StopCause) {
        self.give_line_back();
        for key in self.with_work(|ledger, _| ledger.live_keys()) {
            self.apply(&key, Event::Stop(cause));
        }
    }

    /// job-svc has these results.
    pub fn acknowledged(&self, keys: &[Key]) {
        for key in keys {
            self.apply(key, Event::Acknowledged);
        }
        self.check_drained();
    }

    /// How many attempts run.
    pub fn live(&self) -> usize {
        self.state().ledger.live()
    }

    /// Whether something writes below this directory (relative to the root).
    pub fn is_live_path(&self, path: &str) -> bool {
        let state = self.state();
        let is_below = |dir: &str| path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if state.start_task_live && is_below(kiln_node::STARTUP_DIR) {
            return true;
        }
        if !path.starts_with(kiln_node::WORKITEMS_DIR) {
            return false;
        }
        self.jobs.is_running(|job, task| is_below(&kiln_node::task_dir(job, task)))
            || state
                .ledger
                .all()
                .any(|(key, attempt)| attempt.is_live() && is_below(&kiln_node::task_dir(&key.job, &key.task)))
    }

    /// The directory (absolute) of a task that has ended now stays for as long
    /// as the task says, or as usual.
    pub fn keep(&self, dir: PathBuf, said: Option<Duration>) {
        let until = Timestamp::now().plus(said.unwrap_or(self.config.settings.retention));
        self.kept.keep(dir, until, said.is_some());
    }
}

/// For messages.
pub fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    kiln_proto::time::timestamp(time.as_micros())
}
