//! The core against a small world of agents, a store and accidents.
//!
//! [`World`] is a simulation: streams keep their order but break at any moment,
//! and what was said on a broken one may still arrive after the next hello;
//! commits become durable later than decided or fail, the service and the agents
//! crash or end in order, leases run out, nodes are drained, users disable,
//! terminate and delete jobs and tasks and activate them again, and the
//! scheduler hears of that late. After every step the rules are checked:
//! no two processes of one task, no slot used twice, no result lost or applied
//! twice. A seed that fails prints itself; `KILN_SIM_SEED` replays it, and
//! `KILN_SIM_SEEDS` sets how many are tried.

use std::collections::{HashSet, VecDeque};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::domain::job::{DisableTasks, JobEvent};
use crate::domain::task::{AttemptRecord, EndCause, Outcome, Phase as TaskPhase, Task, TaskState};

const LEASE: Duration = Duration::from_secs(30);
const MARGIN: Duration = Duration::from_secs(5);

fn settings() -> Settings {
    Settings { patience: LEASE + MARGIN, linger: Duration::from_millis(50) }
}

fn job_view(key: JobKey) -> JobView {
    JobView {
        key,
        version: 1,
        state: JobState::Active,
        priority: 0,
        max_parallel: None,
        created: Timestamp::from_micros(i64::try_from(key).unwrap()),
        ends_when_complete: false,
        exit_actions: false,
        default_retries: 2,
        wall_clock_end: None,
    }
}

fn ready(row: Row, slots: u16) -> ReadyTask {
    let max_retries = crate::domain::spec::INHERIT_RETRIES;
    ReadyTask { row, slots, attempt: 0, retry_count: 0, internal_retries: 0, max_retries, affinity: 0 }
}

fn node_status(slots: u16) -> NodeStatus {
    NodeStatus { slots, accepting: true, running_tasks: RunningTasks::Requeue, pack: false, by_creation: false }
}

fn name(node: usize) -> Arc<NodeId> {
    Arc::new(NodeId::parse(&format!("n{node}")).unwrap())
}

#[derive(Debug, Clone)]
enum Up {
    Hello(Hello),
    Lease(u64),
    Status(NodeStatus),
    Started(Row, u32),
    Ended(Row, u32, AttemptEnd),
    Goodbye,
}

#[derive(Debug, Clone)]
struct Hello {
    incarnation: u32,
    stream: u64,
    status: NodeStatus,
    /// Task, attempt, ended.
    attempts: Vec<(Row, u32, bool)>,
}

/// What the scheduler will be told.
#[derive(Debug, Clone)]
enum Note {
    Added(JobKey, Vec<ReadyTask>),
    Reactivated(JobKey, Row),
    JobChanged(JobKey),
}

#[derive(Debug, Clone)]
enum Down {
    Assign(Row, u32),
    Stop(Row, u32),
    Ack(Row, u32),
    Grant(u64),
}

#[derive(Debug, Default)]
struct FakeAgent {
    conn: Option<Conn>,
    incarnation: u32,
    stream: u64,
    /// None: it accepts.
    draining: Option<RunningTasks>,
    /// It has said goodbye.
    leaving: bool,
    up: VecDeque<Up>,
    down: VecDeque<Down>,
    /// Processes.
    alive: Vec<(Row, u32)>,
    /// Results that were not acknowledged.
    results: Vec<(Row, u32, AttemptEnd)>,
    lease_end: Duration,
    requests: HashMap<u64, Duration>,
    sequence: u64,
}

/// Reports to acknowledge.
type Acks = Vec<(Conn, Row, u32)>;

/// What the store has.
struct Stored {
    job: JobKey,
    slots: u16,
    task: Task,
    finishes: u32,
    /// The latest attempt that is history.
    former: Option<AttemptRecord>,
}

struct World {
    rng: StdRng,
    mono: Duration,
    core: Core,
    /// Effects that are not durable, with the acks that wait for them.
    pending: VecDeque<(Effects, Acks)>,
    tasks: BTreeMap<Row, Stored>,
    jobs: BTreeMap<JobKey, JobView>,
    agents: Vec<FakeAgent>,
    seen: HashMap<Conn, Vec<(Row, u32)>>,
    foreign: HashMap<Conn, Vec<(Row, u32)>>,
    /// Streams that broke; what was said on them may still arrive.
    ghosts: Vec<(usize, Conn, VecDeque<Up>)>,
    /// Streams that the scheduler has not closed.
    links: HashSet<Conn>,
    notes: VecDeque<Note>,
    loaded_to: HashMap<JobKey, Row>,
    highest: Row,
    purged: HashSet<JobKey>,
    next_job: JobKey,
    next_conn: Conn,
    next_row: Row,
    deleted: Vec<Row>,
}

const SLOTS: u16 = 4;

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            rng: StdRng::seed_from_u64(seed),
            mono: Duration::ZERO,
            core: Core::new(settings()),
            pending: VecDeque::new(),
            tasks: BTreeMap::new(),
            jobs: BTreeMap::new(),
            agents: (0..3).map(|_| FakeAgent::default()).collect(),
            seen: HashMap::new(),
            foreign: HashMap::new(),
            ghosts: Vec::new(),
            links: HashSet::new(),
            notes: VecDeque::new(),
            loaded_to: HashMap::new(),
            highest: 0,
            purged: HashSet::new(),
            next_job: 1,
            next_conn: 1,
            next_row: 1,
            deleted: Vec::new(),
        };
        for _ in 0..3 {
            world.create_job();
        }
        world
    }

    fn create_job(&mut self) {
        let mut view = job_view(self.next_job);
        self.next_job += 1;
        view.priority = self.rng.random_range(-1..=1);
        view.max_parallel = self.rng.random_bool(0.3).then_some(2);
        self.notes.push_back(Note::JobChanged(view.key));
        self.jobs.insert(view.key, view);
    }

    fn any_job(&mut self) -> Option<JobKey> {
        let keys: Vec<JobKey> = self.jobs.keys().copied().collect();
        (!keys.is_empty()).then(|| keys[self.rng.random_range(0..keys.len())])
    }

    fn now(&self) -> Now {
        let wall = Timestamp::from_micros(1_000_000_000_000).plus(self.mono);
        Now { wall, mono: self.mono }
    }

    fn input(&mut self, input: Input) {
        self.input_with_ack(input, Vec::new());
    }

    fn input_with_ack(&mut self, input: Input, acks: Vec<(Conn, Row, u32)>) {
        let mut fx = Effects::default();
        let now = self.now();
        self.core.step(input, now, &mut fx);
        self.core.place(&mut fx);
        self.core.check().unwrap();
        for (conn, sequence) in std::mem::take(&mut fx.grants) {
            self.mail(conn, Down::Grant(sequence));
        }
        for conn in std::mem::take(&mut fx.close) {
            self.links.remove(&conn);
            self.break_stream(conn);
        }
        self.purged.extend(fx.purge.iter());
        self.pending.push_back((fx, acks));
    }

    fn agent_of(&mut self, conn: Conn) -> Option<&mut FakeAgent> {
        self.agents.iter_mut().find(|agent| agent.conn == Some(conn))
    }

    fn mail(&mut self, conn: Conn, message: Down) {
        if let Some(agent) = self.agent_of(conn) {
            agent.down.push_back(message);
        }
    }

    fn break_stream(&mut self, conn: Conn) {
        if let Some(at) = self.agents.iter().position(|agent| agent.conn == Some(conn)) {
            let agent = &mut self.agents[at];
            agent.conn = None;
            agent.up.clear();
            agent.down.clear();
            agent.requests.clear();
            if agent.leaving {
                self.new_life(at);
            }
        }
        self.ghosts.retain(|(_, ghost, _)| *ghost != conn);
    }

    /// The agent sees that its stream is broken; the service may see it later.
    fn lose_stream(&mut self, at: usize) {
        let Some(conn) = self.agents[at].conn else { return };
        let up = self.agents[at].up.clone();
        self.break_stream(conn);
        self.ghosts.push((at, conn, up));
    }

    /// The former life and all it had is gone.
    fn new_life(&mut self, at: usize) {
        let agent = &mut self.agents[at];
        agent.alive.clear();
        agent.results.clear();
        agent.lease_end = Duration::ZERO;
        agent.incarnation += 1;
        agent.stream = 0;
        agent.leaving = false;
        agent.draining = None;
    }

    /// Something that was said on a broken stream arrives, or its end.
    fn take_ghost(&mut self) {
        if self.ghosts.is_empty() {
            return;
        }
        let place = self.rng.random_range(0..self.ghosts.len());
        let (at, conn, up) = &mut self.ghosts[place];
        let (at, conn) = (*at, *conn);
        match up.pop_front() {
            Some(message) => self.hear(at, conn, message),
            None => {
                self.ghosts.swap_remove(place);
                if self.links.remove(&conn) {
                    self.input(Input::Disconnected { conn });
                }
            }
        }
    }

    fn status(&self, at: usize) -> NodeStatus {
        let draining = self.agents[at].draining;
        NodeStatus {
            accepting: draining.is_none(),
            running_tasks: draining.unwrap_or(RunningTasks::Requeue),
            ..node_status(SLOTS)
        }
    }

    fn drain(&mut self, at: usize, how: Option<RunningTasks>) {
        self.agents[at].draining = how;
        let status = self.status(at);
        if self.agents[at].conn.is_some() && !self.agents[at].leaving {
            self.agents[at].up.push_back(Up::Status(status));
        }
    }

    fn say_goodbye(&mut self, at: usize) {
        if self.agents[at].conn.is_none() || self.agents[at].leaving {
            return;
        }
        for key in self.agents[at].alive.clone() {
            self.end(at, key, EndCause::AgentFailure, 137);
        }
        self.agents[at].up.push_back(Up::Goodbye);
        self.agents[at].leaving = true;
    }

    /// Whether the scheduler has changed a task, which is not durable yet.
    fn is_ahead(&self, row: Row) -> bool {
        self.pending.iter().any(|(fx, _)| {
            fx.tasks.iter().any(|(touched, _, _)| *touched == row) || fx.deleted.iter().any(|(gone, _)| *gone == row)
        })
    }

    /// The scheduler is told the oldest thing that users did.
    fn take_notes(&mut self) {
        match self.notes.pop_front() {
            None => {}
            Some(Note::Added(job, tasks)) => {
                let loaded_to = self.loaded_to.get(&job).copied().unwrap_or(0);
                self.highest = tasks.iter().map(|task| task.row).fold(self.highest, Row::max);
                let tasks = tasks.into_iter().filter(|task| task.row > loaded_to).collect();
                self.input(Input::Added { job, tasks });
            }
            Some(Note::Reactivated(job, row)) => {
                let Some(stored) = self.tasks.get(&row) else { return };
                if stored.task.state != TaskState::Active || self.is_ahead(row) {
                    return;
                }
                self.ready_again(job, row);
            }
            Some(Note::JobChanged(job)) => match self.jobs.get(&job).cloned() {
                Some(view) if self.core.has_job(job) => self.input(Input::Job { view, answer: false }),
                Some(_) if self.purged.contains(&job) => {}
                Some(view) if view.state != JobState::Completed => self.load_job(view),
                Some(_) => {}
                None => self.input(Input::JobGone(job)),
            },
        }
    }

    fn ready_again(&mut self, job: JobKey, row: Row) {
        let stored = &self.tasks[&row];
        let task = ready_of(row, stored);
        let held = stored.former.clone().filter(|former| former.outcome == Outcome::Terminated);
        match held.filter(|_| !self.core.is_live(row)) {
            Some(former) => self.input(Input::Held { job, task, node: former.run.node }),
            None => self.input(Input::Added { job, tasks: vec![task] }),
        }
    }

    fn load_job(&mut self, view: JobView) {
        let (mut waiting, mut running, mut again) = (Vec::new(), Vec::new(), Vec::new());
        let over = matches!(view.state, JobState::Terminating | JobState::Deleting);
        let mut last = self.highest;
        for (row, stored) in self.tasks.iter().filter(|(_, stored)| stored.job == view.key) {
            let task = ready_of(*row, stored);
            match &stored.task.state {
                TaskState::Active if !over && matches!(stored.task.previous, Some((TaskPhase::Completed, _))) => {
                    again.push(*row);
                }
                TaskState::Active => waiting.push(task),
                TaskState::Running { node, .. } => running.push((task, node.clone())),
                TaskState::Completed { .. } => continue,
            }
            last = last.max(*row);
        }
        self.highest = last;
        let job = view.key;
        self.loaded_to.insert(job, last);
        self.input(Input::Loaded { view, ready: waiting, running });
        for row in again {
            self.ready_again(job, row);
        }
    }

    /// The oldest commit becomes durable, and what waited for it is sent.
    fn commit(&mut self) {
        let Some((mut fx, acks)) = self.pending.pop_front() else { return };
        let fates = self.write(&mut fx);
        for send in fx.sends {
            match send {
                Send::Welcome(_) => {}
                Send::Assign(_, row, attempt) if self.rng.random_bool(0.002) => {
                    self.input(Input::Unrunnable { row, attempt });
                }
                Send::Assign(conn, row, attempt) => self.mail(conn, Down::Assign(row, attempt)),
                Send::Stop(conn, row, attempt) => self.mail(conn, Down::Stop(row, attempt)),
                Send::StopSeen(conn, token) => {
                    let (row, attempt) = self.seen[&conn][token as usize];
                    self.foreign.entry(conn).or_default().push((row, attempt));
                    self.mail(conn, Down::Stop(row, attempt));
                }
            }
        }
        for (conn, row, attempt) in acks {
            self.mail(conn, Down::Ack(row, attempt));
        }
        for job in fx.purge {
            self.jobs.remove(&job);
            self.tasks.retain(|_, stored| stored.job != job);
            self.create_job();
        }
        for fate in fates {
            match fate {
                Ok(view) => self.input(Input::Job { view, answer: true }),
                Err(gone) => self.input(Input::JobGone(gone)),
            }
        }
    }

    /// The transaction; gives what became of the jobs that were to be changed.
    fn write(&mut self, fx: &mut Effects) -> Vec<Result<JobView, JobKey>> {
        let now = self.now().wall;
        for (row, _, event) in std::mem::take(&mut fx.tasks) {
            let stored = self.tasks.get_mut(&row).unwrap_or_else(|| panic!("task {row} is gone: {event:?}"));
            if matches!(
                (&event, &stored.task.state),
                (TaskEvent::Start { .. }, TaskState::Running { started: Some(_), .. })
            ) {
                continue;
            }
            let transition = stored.task.apply(event.clone(), now);
            let transition = transition.unwrap_or_else(|why| panic!("task {row}: {event:?}: {why}"));
            stored.task = transition.task;
            stored.former = transition.history.or(stored.former.take());
            if matches!(event, TaskEvent::Finish { .. }) {
                stored.finishes += 1;
            }
        }
        for (row, _) in std::mem::take(&mut fx.deleted) {
            self.tasks.remove(&row);
            self.deleted.push(row);
        }
        let mut fates = Vec::new();
        for write in std::mem::take(&mut fx.jobs) {
            let open = |stored: &Stored| stored.job == write.job && stored.task.state.phase() != TaskPhase::Completed;
            let denied = write.only_if_all_complete && self.tasks.values().any(open);
            fates.push(match self.jobs.get_mut(&write.job) {
                Some(view) => {
                    if !denied && let Ok(state) = view.state.apply(&write.event) {
                        view.state = state;
                        view.version += 1;
                    }
                    Ok(view.clone())
                }
                None => Err(write.job),
            });
        }
        fates
    }

    /// The service dies: what was not durable is gone.
    fn crash(&mut self) {
        self.notes.clear();
        self.highest = 0;
        self.core = Core::new(settings());
        self.load();
        self.ghosts.clear();
    }

    /// A commit fails, or seems to: everything is read again.
    fn fail_commit(&mut self) {
        if self.rng.random_bool(0.5)
            && let Some((mut fx, _)) = self.pending.pop_front()
        {
            self.write(&mut fx);
        }
        self.core.reset();
        self.load();
    }

    fn load(&mut self) {
        let conns: Vec<Conn> = self.agents.iter().filter_map(|agent| agent.conn).collect();
        for conn in conns {
            // A hello that was not read yet still is.
            let read = self.links.contains(&conn);
            match self.agents.iter().position(|agent| agent.conn == Some(conn)) {
                Some(at) if !read => self.lose_stream(at),
                _ => self.break_stream(conn),
            }
        }
        self.links.clear();
        self.purged.clear();
        self.pending.clear();
        for view in self.jobs.clone().into_values() {
            if view.state != JobState::Completed {
                self.load_job(view);
            }
        }
    }

    fn connect(&mut self, at: usize) {
        if self.agents[at].conn.is_some() {
            return;
        }
        let status = self.status(at);
        let agent = &mut self.agents[at];
        agent.conn = Some(self.next_conn);
        agent.stream += 1;
        self.next_conn += 1;
        let mut view: Vec<(Row, u32, bool)> =
            agent.alive.iter().map(|(row, attempt)| (*row, *attempt, false)).collect();
        view.extend(agent.results.iter().map(|(row, attempt, _)| (*row, *attempt, true)));
        let hello = Hello { incarnation: agent.incarnation, stream: agent.stream, status, attempts: view };
        agent.up.push_back(Up::Hello(hello));
        for (row, attempt, end) in agent.results.clone() {
            agent.up.push_back(Up::Ended(row, attempt, end));
        }
        self.ask_lease(at);
    }

    fn ask_lease(&mut self, at: usize) {
        let mono = self.mono;
        let agent = &mut self.agents[at];
        if agent.conn.is_some() {
            agent.sequence += 1;
            agent.requests.insert(agent.sequence, mono);
            agent.up.push_back(Up::Lease(agent.sequence));
        }
    }

    /// One message of an agent reaches the service.
    fn take_up(&mut self, at: usize) {
        let Some(conn) = self.agents[at].conn else { return };
        let Some(message) = self.agents[at].up.pop_front() else { return };
        self.hear(at, conn, message);
    }

    fn hear(&mut self, at: usize, conn: Conn, message: Up) {
        let is_hello = matches!(message, Up::Hello(_));
        if is_hello {
            self.links.insert(conn);
        } else if !self.links.contains(&conn) {
            return;
        }
        match message {
            Up::Hello(hello) => {
                self.seen.insert(conn, hello.attempts.iter().map(|(row, attempt, _)| (*row, *attempt)).collect());
                let seen = hello.attempts.iter().enumerate().map(|(token, (row, attempt, ended))| Seen {
                    token: u32::try_from(token).unwrap(),
                    row: Some(*row),
                    attempt: *attempt,
                    ended: *ended,
                });
                let seen = seen.collect();
                let (incarnation, stream) = (hello.incarnation.to_string(), hello.stream);
                self.input(Input::Hello { conn, node: name(at), incarnation, stream, status: hello.status, seen });
            }
            Up::Lease(sequence) => self.input(Input::Lease { conn, sequence }),
            Up::Status(status) => self.input(Input::Status { conn, status }),
            Up::Goodbye => self.input(Input::Goodbye { conn }),
            Up::Started(row, attempt) => {
                let at = self.now().wall;
                self.input(Input::Started { conn, row, attempt, at });
            }
            Up::Ended(row, attempt, end) => {
                let foreign = self.foreign.entry(conn).or_default();
                if let Some(place) = foreign.iter().position(|known| *known == (row, attempt)) {
                    foreign.swap_remove(place);
                    self.input(Input::ForeignEnded { conn });
                }
                let input = Input::Ended { conn, row, attempt, end, action: JobAction::None };
                self.input_with_ack(input, vec![(conn, row, attempt)]);
            }
        }
    }

    /// One message of the service reaches an agent.
    fn take_down(&mut self, at: usize) {
        let agent = &mut self.agents[at];
        match agent.down.pop_front() {
            None => {}
            Some(Down::Assign(..) | Down::Stop(..)) if agent.leaving => {}
            Some(Down::Assign(row, attempt)) => {
                agent.alive.push((row, attempt));
                agent.up.push_back(Up::Started(row, attempt));
            }
            Some(Down::Stop(row, attempt)) => self.end(at, (row, attempt), EndCause::Stopped, 137),
            Some(Down::Ack(row, attempt)) => {
                agent.results.retain(|result| (result.0, result.1) != (row, attempt));
                let waits = |stored: &&Stored| {
                    stored.task.attempt == attempt && matches!(stored.task.state, TaskState::Running { .. })
                };
                assert!(self.tasks.get(&row).filter(waits).is_none(), "task {row}: a result was acknowledged and lost");
            }
            Some(Down::Grant(sequence)) => {
                if let Some(sent) = agent.requests.remove(&sequence) {
                    agent.lease_end = agent.lease_end.max(sent + LEASE);
                }
            }
        }
    }

    fn end(&mut self, at: usize, key: (Row, u32), cause: EndCause, code: i32) {
        let now = self.now().wall;
        let agent = &mut self.agents[at];
        if agent.results.iter().any(|result| (result.0, result.1) == key) {
            return;
        }
        agent.alive.retain(|alive| *alive != key);
        let end =
            AttemptEnd { start: None, end: now, exit_code: Some(code), failure: None, cause, outputs_kept: false };
        agent.results.push((key.0, key.1, end.clone()));
        if agent.conn.is_some() {
            agent.up.push_back(Up::Ended(key.0, key.1, end));
        }
    }

    fn pass_time(&mut self, by: Duration) {
        self.mono += by;
        for at in 0..self.agents.len() {
            if self.agents[at].lease_end <= self.mono {
                // Without a lease nothing may run.
                for key in self.agents[at].alive.clone() {
                    self.end(at, key, EndCause::AgentFailure, 137);
                }
            }
        }
        self.input(Input::Tick);
    }

    fn add(&mut self) {
        let Some(job) = self.any_job() else { return };
        let state = self.jobs.get(&job).map(|view| view.state);
        if state.is_none_or(|state| state.check_add().is_err()) {
            return;
        }
        let tasks: Vec<ReadyTask> = (0..self.rng.random_range(1..4))
            .map(|_| {
                let (row, slots) = (self.next_row, self.rng.random_range(1..=SLOTS));
                self.next_row += 1;
                let task = Task::new(self.now().wall);
                self.tasks.insert(row, Stored { job, slots, task, finishes: 0, former: None });
                ready(row, slots)
            })
            .collect();
        self.notes.push_back(Note::Added(job, tasks));
    }

    fn reactivate(&mut self) {
        let now = self.now().wall;
        let failed: Vec<Row> = self
            .tasks
            .iter()
            .filter(|(_, t)| t.task.clone().apply(TaskEvent::Reactivate, now).is_ok())
            .map(|(row, _)| *row)
            .collect();
        if failed.is_empty() {
            return;
        }
        // Rather one that may still run somewhere.
        let runs = |row: &&Row| self.agents.iter().any(|agent| agent.alive.iter().any(|alive| alive.0 == **row));
        let running = failed.iter().find(runs).copied();
        let row = running.unwrap_or(failed[self.rng.random_range(0..failed.len())]);
        let Some(stored) = self.tasks.get_mut(&row) else { return };
        if self.jobs[&stored.job].state.check_add().is_err() {
            return;
        }
        let Ok(transition) = stored.task.apply(TaskEvent::Reactivate, now) else { return };
        stored.task = transition.task;
        stored.former = transition.history.or(stored.former.take());
        stored.finishes = 0;
        self.notes.push_back(Note::Reactivated(stored.job, row));
    }

    fn end_when_complete(&mut self) {
        let Some(job) = self.any_job() else { return };
        if let Some(view) = self.jobs.get_mut(&job)
            && view.state.check_update().is_ok()
            && self.tasks.values().any(|stored| stored.job == job)
        {
            view.ends_when_complete = true;
            view.version += 1;
            self.notes.push_back(Note::JobChanged(job));
        }
    }

    fn change_job(&mut self, event: &JobEvent) {
        let Some(job) = self.any_job() else { return };
        if let Some(view) = self.jobs.get_mut(&job)
            && let Ok(state) = view.state.apply(event)
        {
            view.state = state;
            view.version += 1;
            self.notes.push_back(Note::JobChanged(job));
        }
    }

    fn command(&mut self) {
        let rows: Vec<(Row, JobKey, u16)> = self.tasks.iter().map(|(row, task)| (*row, task.job, task.slots)).collect();
        if rows.is_empty() {
            return;
        }
        let (row, job, slots) = rows[self.rng.random_range(0..rows.len())];
        if self.rng.random_bool(0.7) {
            self.input(Input::Terminate { job, row, slots, reply: 0 });
        } else {
            self.input(Input::Delete { job, row, slots, reply: 0 });
        }
    }

    fn accident(&mut self) {
        let at = self.rng.random_range(0..self.agents.len());
        match self.rng.random_range(0..100) {
            0..=24 => self.take_up(at),
            25..=49 => self.take_down(at),
            50..=64 => self.commit(),
            65..=69 => self.add(),
            70..=77 => {
                let alive = &self.agents[at].alive;
                if let Some(key) = alive.first().copied() {
                    let code = i32::from(self.rng.random_bool(0.3));
                    self.end(at, key, EndCause::Exited, code);
                }
            }
            78..=80 => self.connect(at),
            81..=83 => self.ask_lease(at),
            84 => self.lose_stream(at),
            85 => {
                if let Some(conn) = self.agents[at].conn {
                    self.break_stream(conn);
                    if self.links.remove(&conn) {
                        self.input(Input::Disconnected { conn });
                    }
                }
            }
            86 => match self.rng.random_range(0..4) {
                // The agent dies, and its processes and results with it.
                0 => {
                    self.lose_stream(at);
                    self.new_life(at);
                }
                1 => self.say_goodbye(at),
                2 => self.drain(at, None),
                _ => {
                    let how = [RunningTasks::Requeue, RunningTasks::Terminate, RunningTasks::Wait];
                    let how = how[self.rng.random_range(0..how.len())];
                    self.drain(at, Some(how));
                }
            },
            87 => match self.rng.random_range(0..4) {
                0 | 1 => {
                    self.crash();
                    // Before any agent has come back.
                    for _ in 0..self.rng.random_range(0..4) {
                        self.reactivate();
                    }
                }
                2 => self.fail_commit(),
                _ => self.end_when_complete(),
            },
            88 => self.command(),
            89 => self.reactivate(),
            90 => match self.rng.random_range(0..8) {
                0 => self.change_job(&JobEvent::Terminate(String::new())),
                1 => self.change_job(&JobEvent::Delete),
                2 => self.change_job(&JobEvent::Disable(DisableTasks::Wait)),
                3 | 4 => self.change_job(&JobEvent::Disable(DisableTasks::Terminate)),
                _ => self.change_job(&JobEvent::Disable(DisableTasks::Requeue)),
            },
            91 => self.change_job(&JobEvent::Enable),
            92..=93 => {
                self.take_ghost();
                self.take_notes();
            }
            94..=97 => {
                let by = Duration::from_millis(self.rng.random_range(10..3000));
                self.pass_time(by);
            }
            98 => {
                let by = Duration::from_secs(self.rng.random_range(5..20));
                self.pass_time(by);
            }
            _ => {
                if let Some(up) = self.agents[at].up.iter().find(|up| matches!(up, Up::Ended(..))).cloned() {
                    self.agents[at].up.push_back(up);
                }
            }
        }
    }

    fn check(&self) {
        let mut alive: HashMap<Row, u32> = HashMap::new();
        for agent in &self.agents {
            let mut used = 0;
            for (row, _) in &agent.alive {
                *alive.entry(*row).or_default() += 1;
                used += self.tasks.get(row).map_or(0, |task| task.slots);
            }
            assert!(used <= SLOTS, "a node uses {used} slots");
        }
        for (row, count) in alive {
            assert_eq!(count, 1, "task {row} has two processes");
            assert!(!self.deleted.contains(&row), "task {row} is deleted and has a process");
        }
        assert!(self.tasks.values().all(|task| task.finishes <= 1), "a task finished twice");
    }

    /// Whether everything has come to its end.
    fn is_done(&self) -> bool {
        let open = |task: &Stored| match task.task.state.phase() {
            TaskPhase::Completed => false,
            TaskPhase::Running => true,
            // In a job that has ended they stay as they are.
            TaskPhase::Active => self.jobs[&task.job].state != JobState::Completed,
        };
        let unsettled = |view: &JobView| {
            view.state.is_transitional() || (view.ends_when_complete && view.state != JobState::Completed)
        };
        !self.tasks.values().any(open)
            && !self.jobs.values().any(unsettled)
            && self.agents.iter().all(|agent| agent.results.is_empty())
    }

    /// No more accidents: everything has to come to its end.
    fn calm_down(&mut self) {
        for round in 0..4000 {
            for at in 0..self.agents.len() {
                self.connect(at);
                if self.agents[at].draining.is_some() {
                    self.drain(at, None);
                }
                if round % 5 == 0 {
                    self.ask_lease(at);
                }
                while !self.agents[at].up.is_empty() {
                    self.take_up(at);
                }
            }
            self.change_job(&JobEvent::Enable);
            while !self.ghosts.is_empty() {
                self.take_ghost();
            }
            while !self.notes.is_empty() {
                self.take_notes();
            }
            while !self.pending.is_empty() {
                self.commit();
            }
            for at in 0..self.agents.len() {
                while !self.agents[at].down.is_empty() {
                    self.take_down(at);
                    self.check();
                }
                for key in self.agents[at].alive.clone() {
                    self.end(at, key, EndCause::Exited, 0);
                }
            }
            self.pass_time(Duration::from_secs(1));
            if self.is_done() {
                return;
            }
        }
        let open: Vec<_> = self.tasks.iter().filter(|(_, t)| t.task.state.phase() != TaskPhase::Completed).collect();
        let open: Vec<_> = open.iter().map(|(row, stored)| (row, stored.job, &stored.task.state)).collect();
        panic!("never finished: {open:?} jobs {:?}", self.jobs.values().map(|view| view.state).collect::<Vec<_>>());
    }
}

fn ready_of(row: Row, stored: &Stored) -> ReadyTask {
    ReadyTask {
        attempt: stored.task.attempt,
        retry_count: stored.task.retry_count,
        internal_retries: stored.task.internal_retry_count,
        ..ready(row, stored.slots)
    }
}

fn simulate(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..1500 {
        world.accident();
        world.check();
    }
    world.calm_down();
}

#[test]
fn a_world_of_accidents_loses_and_doubles_nothing() {
    let number = |variable: &str| std::env::var(variable).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("KILN_SIM_SEED") {
        simulate(seed);
        return;
    }
    for seed in 0..number("KILN_SIM_SEEDS").unwrap_or(300) {
        let outcome = std::panic::catch_unwind(|| simulate(seed));
        assert!(outcome.is_ok(), "seed {seed} fails; KILN_SIM_SEED={seed} replays it");
    }
}

/// A core with nodes of so many slots each.
fn core_with(nodes: &[u16]) -> (Core, Effects) {
    let (mut core, mut fx) = (Core::new(settings()), Effects::default());
    let now = Now { wall: Timestamp::from_micros(1), mono: Duration::ZERO };
    for (at, slots) in nodes.iter().enumerate() {
        let status = node_status(*slots);
        let conn = at as u64 + 1;
        core.step(
            Input::Hello { conn, node: name(at), incarnation: "1".into(), stream: 0, status, seen: Vec::new() },
            now,
            &mut fx,
        );
    }
    fx = Effects::default();
    (core, fx)
}

fn now() -> Now {
    Now { wall: Timestamp::from_micros(1), mono: Duration::ZERO }
}

fn load(core: &mut Core, view: JobView, ready: Vec<ReadyTask>) {
    core.step(Input::Loaded { view, ready, running: Vec::new() }, now(), &mut Effects::default());
}

fn placed(fx: &Effects) -> Vec<(JobKey, Row, String)> {
    let assigned = fx.tasks.iter().filter_map(|(row, job, event)| match event {
        TaskEvent::Assign { node } => Some((*job, *row, node.to_string())),
        _ => None,
    });
    assigned.collect()
}

#[test]
fn priority_then_an_equal_share_then_age() {
    let (mut core, mut fx) = core_with(&[5]);
    load(&mut core, JobView { priority: -5, ..job_view(1) }, (1..=3).map(|row| ready(row, 1)).collect());
    load(&mut core, job_view(2), (11..=13).map(|row| ready(row, 1)).collect());
    load(&mut core, job_view(3), (21..=23).map(|row| ready(row, 1)).collect());
    core.place(&mut fx);
    let rows: Vec<Row> = placed(&fx).into_iter().map(|(_, row, _)| row).collect();
    assert_eq!(rows, [11, 21, 12, 22, 13]);
}

#[test]
fn older_jobs_first_if_the_pool_says_so() {
    let (mut core, mut fx) = core_with(&[4]);
    let status = NodeStatus { by_creation: true, ..node_status(4) };
    core.step(Input::Status { conn: 1, status }, now(), &mut fx);
    load(&mut core, job_view(2), (11..=13).map(|row| ready(row, 1)).collect());
    load(&mut core, job_view(1), (21..=23).map(|row| ready(row, 1)).collect());
    core.place(&mut fx);
    let rows: Vec<Row> = placed(&fx).into_iter().map(|(_, row, _)| row).collect();
    assert_eq!(rows, [21, 22, 23, 11]);
}

#[test]
fn pack_and_spread_and_affinity() {
    for (pack, expected) in [(true, [1, 3, 0]), (false, [1, 1, 2])] {
        let (mut core, mut fx) = core_with(&[4, 4, 4]);
        let status = NodeStatus { pack, ..node_status(4) };
        core.step(Input::Status { conn: 1, status }, now(), &mut fx);
        let liked = ReadyTask { affinity: crate::domain::spec::affinity_hash("N0"), ..ready(1, 1) };
        let tasks = std::iter::once(liked).chain((2..=4).map(|row| ready(row, 1))).collect();
        load(&mut core, job_view(1), tasks);
        core.place(&mut fx);
        let on = placed(&fx);
        assert_eq!(on[0].2, "n0", "the hint is followed");
        let mut counts: Vec<usize> =
            (0..3).map(|node| on.iter().filter(|(_, _, name)| *name == format!("n{node}")).count()).collect();
        counts.sort_unstable();
        let mut wanted = if pack { vec![0, 0, 4] } else { expected.to_vec() };
        wanted.sort_unstable();
        assert_eq!(counts, wanted, "pack {pack}");
    }
}

#[test]
fn a_wide_task_does_not_block_narrow_ones_and_limits_hold() {
    let (mut core, mut fx) = core_with(&[2]);
    load(&mut core, JobView { priority: 5, ..job_view(1) }, vec![ready(1, 4)]);
    load(&mut core, JobView { max_parallel: Some(1), ..job_view(2) }, vec![ready(2, 1), ready(3, 1)]);
    core.place(&mut fx);
    assert_eq!(placed(&fx).len(), 1);
    assert_eq!(core.explain(1, 1, 4), WaitReason::RequiredSlotsTooLarge { largest: 2 });
    assert_eq!(core.explain(2, 3, 1), WaitReason::MaxParallelTasks);
    assert_eq!(core.explain(2, 9, 1), WaitReason::NotWaiting);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 200, ..Default::default() })]

    /// Whatever waits: nothing is placed twice, no node gets more than it has,
    /// and no task of a lower priority is placed while one of a higher would fit.
    #[test]
    fn placements_are_sound(
        nodes in proptest::collection::vec(1_u16..6, 1..6),
        tasks in proptest::collection::vec((0_u64..4, 1_u16..5), 0..60),
    ) {
        let (mut core, mut fx) = core_with(&nodes);
        let mut by_job: BTreeMap<JobKey, Vec<ReadyTask>> = BTreeMap::new();
        for (at, (job, slots)) in tasks.iter().enumerate() {
            by_job.entry(*job).or_default().push(ready(at as u64 + 1, *slots));
        }
        for (job, tasks) in by_job {
            load(&mut core, JobView { priority: i32::try_from(job).unwrap(), ..job_view(job) }, tasks);
        }
        core.place(&mut fx);
        core.check().unwrap();
        let placed = placed(&fx);
        let mut rows: Vec<Row> = placed.iter().map(|(_, row, _)| *row).collect();
        rows.sort_unstable();
        rows.dedup();
        proptest::prop_assert_eq!(rows.len(), placed.len());
        let mut free: Vec<u16> = nodes.clone();
        for (_, row, node) in &placed {
            let node: usize = node[1..].parse().unwrap();
            let slots = tasks[usize::try_from(*row).unwrap() - 1].1;
            proptest::prop_assert!(free[node] >= slots);
            free[node] -= slots;
        }
        // What still waits fits nowhere.
        let most = free.iter().max().copied().unwrap_or(0);
        for (at, (_, slots)) in tasks.iter().enumerate() {
            if !rows.contains(&(at as u64 + 1)) {
                proptest::prop_assert!(*slots > most);
            }
        }
        // A task of the highest priority that fits an empty node is not left out
        // for one below it: the first placement is of the highest job.
        if let Some((first, _, _)) = placed.first() {
            let largest = nodes.iter().max().copied().unwrap_or(0);
            let best = tasks.iter().filter(|(_, slots)| *slots <= largest).map(|(job, _)| *job).max();
            proptest::prop_assert_eq!(Some(*first), best);
        }
    }
}

/// How many placements a second the core alone makes; run in release.
#[test]
#[ignore = "a measurement"]
fn placements_per_second() {
    let (mut core, _) = core_with(&[256; 40]);
    let count = 1_000_000_u64;
    load(&mut core, job_view(1), (1..=count).map(|row| ready(row, 1)).collect());
    let end = AttemptEnd {
        start: None,
        end: Timestamp::from_micros(1),
        exit_code: Some(0),
        failure: None,
        cause: EndCause::Exited,
        outputs_kept: false,
    };
    let began = std::time::Instant::now();
    let mut done = 0;
    while done < count {
        let mut fx = Effects::default();
        core.place(&mut fx);
        let sends: Vec<(Conn, Row, u32)> = fx
            .sends
            .iter()
            .filter_map(|send| match send {
                Send::Assign(conn, row, attempt) => Some((*conn, *row, *attempt)),
                _ => None,
            })
            .collect();
        let mut ended = Effects::default();
        for (conn, row, attempt) in sends {
            let input = Input::Ended { conn, row, attempt, end: end.clone(), action: JobAction::None };
            core.step(input, now(), &mut ended);
            done += 1;
        }
    }
    let rate = count as f64 / began.elapsed().as_secs_f64();
    println!("{rate:.0} placements (with their ends) a second");
}
