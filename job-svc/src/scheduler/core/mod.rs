//! The scheduler of one pool, without clock, network or database.
//!
//! [`Core::step`] takes one input and the time and adds to [`Effects`] what has
//! to happen: changes to commit, messages to send after that commit, replies.
//! [`Core::place`] then fills free slots. The core's picture runs ahead of the
//! store by the commits that are under way; if one fails, the picture is thrown
//! away and loaded again.
//!
//! - [`messages`]: what the core is told and what it answers;
//! - [`jobs`]: waiting tasks and the states of jobs;
//! - [`depends`]: who waits for whom; [`dependants`]: what that does to jobs;
//! - [`nodes`]: agents and their leases; [`attempts`]: what runs there;
//! - [`place`]: which task runs where;
//! - [`explain`]: why tasks wait, and which wait for ever;
//! - [`preempt`]: room for what is more urgent;
//! - [`prep`]: preparation and release of jobs;
//! - [`gangs`]: attempts with several instances;
//! - [`ahead`]: short tasks that stand in line at busy nodes;
//! - [`shapes`]: the different needs of tasks that wait.
//!
//! Rules that hold after every step ([`Core::check`] tests them):
//! - a task is at most once in the core: waiting, or with one attempt on one node;
//! - the instances of an attempt are placed together, and a task has no next
//!   attempt while one of them may run;
//! - the slots of the attempts on a node are never given to others, also while
//!   an attempt that was terminated has not confirmed its end (a *zombie*: its
//!   task is completed already, its process may still run);
//! - a terminated task that a user activates again waits until its zombie has
//!   gone, and one that is deleted is removed only then: no two attempts of a
//!   task are ever alive. After a restart nobody remembers zombies, so a task
//!   that was activated again waits for a word of its former node
//!   ([`Input::Held`]).

mod ahead;
mod attempts;
mod check;
mod dependants;
pub mod depends;
mod explain;
#[cfg(test)]
mod explain_tests;
#[cfg(test)]
mod gang_tests;
mod gangs;
mod jobs;
mod messages;
mod nodes;
mod numbers;
mod place;
mod preempt;
mod prep;
mod shapes;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use kiln_ids::NodeId;
use kiln_time::Timestamp;

use crate::domain::exit::JobAction;
use crate::domain::job::JobState;
use crate::domain::job_tasks::{Progress, Rules};
use crate::domain::needs::{Capacity, Held, Needs};
use crate::domain::subtask::SubtaskEvent;
use crate::domain::task::{AttemptEnd, EndCause, GiveUpCause, RequeueCause, TaskEvent};
use crate::store::JobWrite;

use ahead::Pace;
pub use explain::WaitReason;
pub use messages::*;
use numbers::NumberMap;
use prep::Prep;
pub use prep::{NodeChange, NodeWord, OnNode};
use shapes::{Shape, Shapes};

/// Row of a task in the store.
pub type Row = u64;
/// Row of a job in the store.
pub type JobKey = u64;
/// One work stream; numbers are never used twice.
pub type Conn = u64;
/// Instances of an attempt that may run, with their nodes; 0 is all that most
/// tasks have.
pub type Places = Vec<(u32, Arc<NodeId>)>;
/// Who waits for an answer.
pub type ReplyId = u64;

/// Place of a job among those that have something to run: smallest first.
type Order = (i32, u64, u64);

#[derive(Debug)]
struct Job {
    view: JobView,
    /// Waiting tasks by what they need, then by age.
    ready: BTreeMap<Shape, BTreeMap<Row, Waiting>>,
    ready_count: usize,
    /// Attempts whose task is running.
    running: u32,
    running_slots: u64,
    zombies: u32,
    /// When it was served last, to take turns with its equals.
    served: u64,
    /// Where it is in `eligible`, and under which shapes.
    queued: Option<Order>,
    queued_shapes: Vec<Shape>,
    /// Needs of waiting tasks that no node could run and that were told of.
    reported: Vec<Shape>,
    /// A [`JobWrite`] is under way.
    pending: bool,
    asked_to_complete: bool,
    /// "All complete" was denied: tasks were added that we have not heard of yet.
    more_to_come: bool,
    linger_until: Duration,
    /// Where it is in [`Core::soft`].
    soft: Option<i32>,
    prep: Option<Box<Prep>>,
    /// Tasks that wait for others; absent if there are none.
    graph: Option<Box<depends::Graph>>,
    pace: Pace,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    attempt: u32,
    retry_count: u32,
    internal_retries: u32,
    max_retries: i32,
    affinity: u32,
}

/// Former lives of an agent that are remembered, so that their late hellos are
/// not taken for news.
const MAX_FORMER: usize = 8;

/// What was heard of a node's agent, to tell late hellos from new ones.
#[derive(Debug, Default)]
struct Life {
    incarnation: String,
    /// Latest stream of this incarnation.
    stream: u64,
    /// Incarnations that were replaced, the latest last.
    former: VecDeque<String>,
}

#[derive(Debug)]
struct Node {
    name: Arc<NodeId>,
    conn: Option<Conn>,
    status: NodeStatus,
    /// Attempts that hold slots here.
    rows: Vec<Row>,
    held: Held,
    /// Those of them that stand in line and hold nothing yet, in the agent's order.
    ahead: VecDeque<Row>,
    /// The node said that it has less than it holds.
    overbooked: bool,
    /// Attempts that only the agent knows, until they have ended.
    foreign: u32,
    /// Tasks that were activated again, whose former attempts may be among those.
    doubtful: Vec<Row>,
    lease_end: Duration,
    /// Where it is in `free`.
    queued: Option<u16>,
    /// Where it is in `busy`.
    line_place: Option<u32>,
}

/// Where a node has room for an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Booking {
    /// It has a free slot.
    Slot,
    /// All slots are taken: it stands in line.
    Line,
    /// It is there, whether there is room or not: after a restart nobody knows who
    /// stood in line.
    Found,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// Asked to stop, to be given back when it has.
    Requeuing(RequeueCause),
    /// Asked to stop; the task is completed already.
    Zombie,
}

#[derive(Debug, Clone, Copy)]
struct Live {
    job: JobKey,
    node: u32,
    attempt: u32,
    needs: Needs,
    retry_count: u32,
    internal_retries: u32,
    max_retries: i32,
    affinity: u32,
    phase: Phase,
    /// Grows with every attempt: the younger the larger.
    since: u64,
}

/// What follows when a zombie has gone.
#[derive(Debug)]
enum After {
    Ready(ReadyTask),
    Delete(Vec<ReplyId>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Lease(u32),
    Job(JobKey),
    Untold,
}

/// See the module.
#[derive(Debug)]
pub struct Core {
    settings: Settings,
    /// When the first input came: leases from before may run until a patience
    /// later.
    began: Option<Duration>,
    jobs: NumberMap<Job>,
    /// Jobs that have something to run, by what their tasks need: a
    /// job whose tasks fit nowhere costs nothing.
    eligible: BTreeMap<Shape, BTreeSet<(Order, JobKey)>>,
    nodes: Vec<Option<Node>>,
    unused: Vec<u32>,
    by_name: HashMap<Arc<NodeId>, u32>,
    by_hash: HashMap<u32, u32>,
    by_conn: NumberMap<u32>,
    lives: HashMap<Arc<NodeId>, Life>,
    /// Nodes with free slots, by how many.
    free: BTreeSet<(u16, u32)>,
    /// Nodes without free slots that tasks may be bound to ahead, by the length of their lines.
    busy: BTreeSet<(u32, u32)>,
    live: NumberMap<Live>,
    after: NumberMap<After>,
    gangs: NumberMap<gangs::Gang>,
    shapes: Shapes,
    /// Tasks that wait with needs too different from all that are considered.
    parked: BTreeMap<Row, (JobKey, ReadyTask)>,
    /// Needs that are new in their job: no one has looked whether a node could
    /// ever run them.
    unjudged: BTreeSet<(JobKey, Shape)>,
    /// A node has gone or changed: look at all of them.
    judge_all: bool,
    timers: BTreeSet<(Duration, Timer)>,
    /// Jobs that run tasks which may be displaced, the least important first.
    soft: BTreeSet<(i32, JobKey)>,
    /// Nodes on which room is made for a task; nothing else is placed there.
    claims: BTreeMap<u32, Vec<preempt::Claim>>,
    /// Jobs that wait for their releases.
    releasing: BTreeSet<JobKey>,
    /// Goes up when nodes come, go or change.
    nodes_version: u64,
    /// Tasks that wait for a node, of all jobs.
    waiting: usize,
    /// Tasks that wait for others.
    held: usize,
    /// Jobs in which something may have become impossible or possible.
    rechecks: BTreeSet<JobKey>,
    /// Tasks that others block, to be told of.
    untold: VecDeque<(JobKey, Row)>,
    served: u64,
    pack: bool,
    by_creation: bool,
}

impl Core {
    /// An empty scheduler.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            began: None,
            jobs: NumberMap::default(),
            eligible: BTreeMap::new(),
            nodes: Vec::new(),
            unused: Vec::new(),
            by_name: HashMap::new(),
            by_hash: HashMap::new(),
            by_conn: NumberMap::default(),
            lives: HashMap::new(),
            free: BTreeSet::new(),
            busy: BTreeSet::new(),
            live: NumberMap::default(),
            after: NumberMap::default(),
            gangs: NumberMap::default(),
            shapes: Shapes::default(),
            parked: BTreeMap::new(),
            unjudged: BTreeSet::new(),
            judge_all: false,
            timers: BTreeSet::new(),
            soft: BTreeSet::new(),
            claims: BTreeMap::new(),
            releasing: BTreeSet::new(),
            nodes_version: 0,
            waiting: 0,
            held: 0,
            rechecks: BTreeSet::new(),
            untold: VecDeque::new(),
            served: 0,
            pack: false,
            by_creation: false,
        }
    }

    /// Forgets everything but which hellos are old: streams may outlive the
    /// picture.
    pub fn reset(&mut self) {
        *self = Self { lives: std::mem::take(&mut self.lives), ..Self::new(self.settings) };
    }

    /// Takes one input. [`Core::place`] is called once after several.
    pub fn step(&mut self, input: Input, now: Now, fx: &mut Effects) {
        self.began.get_or_insert(now.mono);
        match input {
            Input::Loaded { view, ready, running, nodes, dependants } => {
                let key = view.key;
                self.jobs.entry(key).or_insert_with(|| Job::new(view, nodes));
                self.load_dependants(key, dependants);
                self.load(key, ready, running, now, fx);
            }
            Input::Job { view, answer } => self.change_job(view, answer, now, fx),
            Input::JobGone(job) => self.drop_job(job, fx),
            Input::Added { job, tasks } => self.add(job, tasks, now, fx),
            Input::Dependants { job, dependants } => self.depend(job, dependants, now, fx),
            Input::Held { job, task, nodes } => self.hold(job, task, &nodes, now, fx),
            Input::ExitAction { job, action } => {
                self.exit_action(job, action, fx);
                self.settle(job, now, fx);
            }
            Input::Unrunnable { row, attempt } => self.unrunnable(row, attempt, now, fx),
            Input::Retries { job, row, needs, max_retries } => self.set_retries(job, row, &needs, max_retries),
            Input::Terminate { job, row, needs, reply } => self.terminate(job, row, &needs, reply, now, fx),
            Input::Delete { job, row, needs, reply } => self.delete(job, row, &needs, reply, now, fx),
            Input::Hello { conn, node, incarnation, stream, status, seen } => {
                self.hello(conn, &node, (incarnation, stream), status, &seen, now, fx);
            }
            Input::Status { conn, status } => self.set_status(conn, status, now, fx),
            Input::Lease { conn, sequence } => self.renew(conn, sequence, now, fx),
            Input::Goodbye { conn } => self.goodbye(conn, now, fx),
            Input::Disconnected { conn } => self.disconnect(conn),
            Input::Started { conn, row, attempt, instance, at } => self.started(conn, row, attempt, instance, at, fx),
            Input::Ready { conn, row, attempt, instance } => self.instance_ready(conn, row, attempt, instance, fx),
            Input::Ended { conn, row, attempt, instance, end, action } => {
                self.ended(conn, row, (attempt, instance), end, action, now, fx);
            }
            Input::ForeignEnded { conn } => self.foreign_ended(conn, now, fx),
            Input::JobNode { conn, job, word } => self.heard_of(conn, job, word, now, fx),
            Input::Tick => self.tick(now, fx),
        }
    }

    /// When [`Input::Tick`] is needed next.
    pub fn next_tick(&self) -> Option<Duration> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Whether the scheduler has this job.
    pub fn has_job(&self, job: JobKey) -> bool {
        self.jobs.contains_key(&job)
    }

    /// Whether an attempt of this task holds slots.
    pub fn is_live(&self, row: Row) -> bool {
        self.live.contains_key(&row)
    }

    /// Whether the scheduler has nothing at all.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.by_name.is_empty()
    }

    /// Tasks that wait and attempts that hold slots, for metrics.
    pub fn depth(&self) -> (usize, usize) {
        (self.waiting + self.held, self.live.len())
    }

    /// Streams that are open.
    pub fn conns(&self) -> impl Iterator<Item = Conn> + '_ {
        self.by_conn.keys().copied()
    }

    /// The stream of a node.
    pub fn conn_of(&self, node: &NodeId) -> Option<Conn> {
        self.nodes[*self.by_name.get(node)? as usize].as_ref()?.conn
    }

    fn tick(&mut self, now: Now, fx: &mut Effects) {
        while let Some((at, timer)) = self.timers.first().copied() {
            if at > now.mono {
                break;
            }
            self.timers.pop_first();
            match timer {
                Timer::Lease(node) => self.lease_timer(node, now, fx),
                Timer::Job(job) => self.job_timer(job, now, fx),
                Timer::Untold => self.tell_stuck(now, fx),
            }
        }
    }
}
