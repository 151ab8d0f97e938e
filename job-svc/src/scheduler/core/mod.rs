//! The scheduler of one pool, without clock, network or database.
//!
//! [`Core::step`] takes one input and the time and adds to [`Effects`] what has
//! to happen: changes to commit, messages to send after that commit, replies.
//! [`Core::place`] then fills free slots. The core's picture runs ahead of the
//! store by the commits that are under way; if one fails, the picture is thrown
//! away and loaded again.
//!
//! - [`jobs`]: waiting tasks and the states of jobs;
//! - [`depends`]: who waits for whom; [`dependants`]: what that does to jobs;
//! - [`nodes`]: agents, leases, attempts that run;
//! - [`place`]: which task runs where;
//! - [`explain`]: why tasks wait, and which wait for ever;
//! - [`preempt`]: room for what is more urgent;
//! - [`prep`]: preparation and release of jobs;
//! - [`gangs`]: attempts with several instances;
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
mod nodes;
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

pub use explain::WaitReason;
use prep::Prep;
pub use prep::{NodeChange, NodeWord, OnNode};
use shapes::{Shape, Shapes};

/// Row of a task in the store.
pub type Row = u64;
/// Row of a job in the store.
pub type JobKey = u64;
/// One work stream; numbers are never used twice.
pub type Conn = u64;
/// Who waits for an answer.
pub type ReplyId = u64;

/// The time, twice: leases must not move when somebody sets the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For records.
    pub wall: Timestamp,
    /// Since some moment of the past; never goes back.
    pub mono: Duration,
}

/// Times the core works with.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// After so much silence of a node its tasks run elsewhere (lease and margin).
    pub patience: Duration,
    /// How long a transitional state caused by a call stays visible.
    pub linger: Duration,
}

/// What the scheduler knows of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobView {
    /// Its row.
    pub key: JobKey,
    /// Version of the row this was read from.
    pub version: u64,
    /// Where it stands.
    pub state: JobState,
    /// Higher goes first.
    pub priority: i32,
    /// Tasks that may run at once.
    pub max_parallel: Option<u32>,
    /// When it was created.
    pub created: Timestamp,
    /// It ends when all its tasks have.
    pub ends_when_complete: bool,
    /// It performs the job actions of exit conditions.
    pub exit_actions: bool,
    /// It ends with its manager.
    pub ends_with_manager: bool,
    /// Retries of tasks that say nothing.
    pub default_retries: i32,
    /// When its wall clock runs out.
    pub wall_clock_end: Option<Timestamp>,
    /// Its tasks may be displaced by those of jobs with a higher priority.
    pub preemptible: bool,
    /// It prepares its nodes, and may release them.
    pub preparation: Option<Rules>,
}

/// A task that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadyTask {
    /// Its row.
    pub row: Row,
    /// What it needs of a node.
    pub needs: Needs,
    /// Number of the latest attempt.
    pub attempt: u32,
    /// Retries so far.
    pub retry_count: u32,
    /// Requeues that the service decided so far.
    pub internal_retries: u32,
    /// Retries it may have; [`INHERIT_RETRIES`](crate::domain::spec::INHERIT_RETRIES) means the job's.
    pub max_retries: i32,
    /// Hash of the node it would like; 0 for none.
    pub affinity: u32,
}

/// What a node that takes no new tasks does with those it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunningTasks {
    /// Stopped and given back.
    Requeue,
    /// Stopped for good.
    Terminate,
    /// Run to their end.
    Wait,
}

/// What an agent says about its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeStatus {
    /// Slots it has.
    pub slots: u16,
    /// It takes new tasks.
    pub accepting: bool,
    /// If not: what becomes of the ones it has.
    pub running_tasks: RunningTasks,
    /// The pool fills a node before it uses the next.
    pub pack: bool,
    /// The pool prefers older jobs over an equal share.
    pub by_creation: bool,
    /// It is not taken away at any time.
    pub dedicated: bool,
    /// What it has beside slots.
    pub capacity: Capacity,
}

/// An attempt in an agent's view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Place in the agent's list, to name it in effects.
    pub token: u32,
    /// Row of the task, if we know an attempt of that name.
    pub row: Option<Row>,
    /// Its attempt.
    pub attempt: u32,
    /// Which instance of it.
    pub instance: u32,
    /// It has ended; its report follows.
    pub ended: bool,
}

/// Tasks that have not started and wait for others, with what has to be known
/// of those.
#[derive(Debug, Clone, Default)]
pub struct Dependants {
    /// Where parents stand: all that the tasks name and nobody waited for, and
    /// all to which something happened that somebody waits for.
    pub news: depends::News,
    /// The tasks.
    pub tasks: Vec<depends::NewDependant>,
}

/// What happens to the scheduler.
#[derive(Debug, Clone)]
pub enum Input {
    /// A job with all its open tasks, as the store has them.
    Loaded {
        /// The job.
        view: JobView,
        /// Tasks that wait.
        ready: Vec<ReadyTask>,
        /// Tasks that run, with the instances that may still do so and their nodes.
        running: Vec<(ReadyTask, Vec<(u32, Arc<NodeId>)>)>,
        /// What is known of its preparation and release on nodes of this pool.
        nodes: Vec<(Arc<NodeId>, OnNode)>,
        /// Tasks that wait for others.
        dependants: Dependants,
    },
    /// The job's row changed. `answer`: this is what became of a [`JobWrite`].
    Job {
        /// As it is now.
        view: JobView,
        /// Whether the core asked for the change itself.
        answer: bool,
    },
    /// The job's row is gone, or the job belongs to another pool now.
    JobGone(JobKey),
    /// New or reactivated tasks.
    Added {
        /// Their job.
        job: JobKey,
        /// The tasks.
        tasks: Vec<ReadyTask>,
    },
    /// New tasks that wait for others, and what became of parents.
    Dependants {
        /// Their job.
        job: JobKey,
        /// The tasks and the parents.
        dependants: Dependants,
    },
    /// A task that was activated again after a user had ended its former
    /// attempt, or whose last attempt had several instances. It may still run.
    Held {
        /// Its job.
        job: JobKey,
        /// The task; its attempt is the former one.
        task: ReadyTask,
        /// Instances that may, with their nodes.
        nodes: Vec<(u32, Arc<NodeId>)>,
    },
    /// What a task's exit conditions say about its job, of one that was given up.
    ExitAction {
        /// The job.
        job: JobKey,
        /// What to do.
        action: JobAction,
    },
    /// An attempt was booked that cannot be sent to its agent.
    Unrunnable {
        /// The task.
        row: Row,
        /// The attempt.
        attempt: u32,
    },
    /// A task got another limit of retries.
    Retries {
        /// Its job.
        job: JobKey,
        /// The task.
        row: Row,
        /// What it needs.
        needs: Needs,
        /// The limit.
        max_retries: i32,
    },
    /// A user ends a task.
    Terminate {
        /// Its job.
        job: JobKey,
        /// The task.
        row: Row,
        /// What it needs.
        needs: Needs,
        /// Who asks.
        reply: ReplyId,
    },
    /// A user removes a task that waits or runs.
    Delete {
        /// Its job.
        job: JobKey,
        /// The task.
        row: Row,
        /// What it needs.
        needs: Needs,
        /// Who asks.
        reply: ReplyId,
    },
    /// A new stream of a node.
    Hello {
        /// The stream.
        conn: Conn,
        /// The node.
        node: Arc<NodeId>,
        /// This life of its agent.
        incarnation: String,
        /// Number of the stream in that life; 0 is not compared.
        stream: u64,
        /// What it says about itself.
        status: NodeStatus,
        /// What it holds.
        seen: Vec<Seen>,
    },
    /// The agent says something new about its node.
    Status {
        /// Its stream.
        conn: Conn,
        /// What.
        status: NodeStatus,
    },
    /// The agent wants to go on.
    Lease {
        /// Its stream.
        conn: Conn,
        /// Comes back in the grant.
        sequence: u64,
    },
    /// The agent ends in order; nothing runs there any more.
    Goodbye {
        /// Its stream.
        conn: Conn,
    },
    /// The stream is gone; the agent may come back.
    Disconnected {
        /// The stream.
        conn: Conn,
    },
    /// The agent began with an attempt.
    Started {
        /// Its stream.
        conn: Conn,
        /// The task.
        row: Row,
        /// The attempt.
        attempt: u32,
        /// The instance.
        instance: u32,
        /// When.
        at: Timestamp,
    },
    /// An instance of an attempt is ready for the command of its task.
    Ready {
        /// Its stream.
        conn: Conn,
        /// The task.
        row: Row,
        /// The attempt.
        attempt: u32,
        /// The instance.
        instance: u32,
    },
    /// An attempt ended.
    Ended {
        /// The agent's stream.
        conn: Conn,
        /// The task.
        row: Row,
        /// The attempt.
        attempt: u32,
        /// The instance.
        instance: u32,
        /// How.
        end: AttemptEnd,
        /// What its exit conditions say about the job, if this is final.
        action: JobAction,
    },
    /// An agent speaks of a job's preparation or release on its node.
    JobNode {
        /// Its stream.
        conn: Conn,
        /// The job.
        job: JobKey,
        /// What it says.
        word: NodeWord,
    },
    /// An attempt that we do not know (any more) ended on this stream's node.
    ForeignEnded {
        /// The agent's stream.
        conn: Conn,
    },
    /// Time has passed.
    Tick,
}

/// A message for an agent, sent when the commit of its step is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Send {
    /// The stream is accepted.
    Welcome(Conn),
    /// Run this attempt, this instance of it.
    Assign(Conn, Row, u32, u32),
    /// Stop this attempt, this instance of it.
    Stop(Conn, Row, u32, u32),
    /// All instances of this attempt are ready.
    Proceed(Conn, Row, u32),
    /// Stop the attempt at this place of the agent's list.
    StopSeen(Conn, u32),
    /// Run the release of this job.
    Release(Conn, JobKey),
}

/// Why a command was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The core has no such task: it is completed, or not known yet.
    Unknown,
    /// The task has completed already.
    Completed,
}

/// Something about the instances of an attempt.
#[derive(Debug, Clone, PartialEq)]
pub enum InstanceChange {
    /// They were placed on these nodes, in the order of their numbers.
    Assigned {
        /// The attempt.
        attempt: u32,
        /// The nodes.
        nodes: Vec<Arc<NodeId>>,
    },
    /// One of them has gone on.
    Happened(u32, SubtaskEvent),
}

/// What has to happen after steps.
#[derive(Debug, Default)]
pub struct Effects {
    /// Events to apply to tasks, in order.
    pub tasks: Vec<(Row, JobKey, TaskEvent)>,
    /// Tasks to remove, after the events.
    pub deleted: Vec<(Row, JobKey)>,
    /// Events of jobs.
    pub jobs: Vec<JobWrite>,
    /// Messages, after the commit.
    pub sends: Vec<Send>,
    /// Answers to commands, after the commit.
    pub replies: Vec<(ReplyId, Result<(), Refused>)>,
    /// What happened to instances of multi-instance tasks, in order, after the
    /// events of tasks.
    pub subtasks: Vec<(Row, InstanceChange)>,
    /// Attempts that gave up their slots without an event.
    pub forget: Vec<Row>,
    /// What is to be remembered of jobs with preparation on nodes.
    pub nodes: Vec<(JobKey, Arc<NodeId>, NodeChange)>,
    /// Jobs whose rows can be removed, after the commit.
    pub purge: Vec<JobKey>,
    /// Lease grants; need no commit.
    pub grants: Vec<(Conn, u64)>,
    /// Streams to close; needs no commit.
    pub close: Vec<Conn>,
    /// Tasks that wait and can never run as things are: those that no node could
    /// run as the oldest of their kind, those that others block each by itself.
    pub unschedulable: Vec<(Row, JobKey, WaitReason)>,
    /// Nodes whose lease ran out, for logs and metrics.
    pub expired: Vec<Arc<NodeId>>,
}

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
    /// The node said that it has less than it holds.
    overbooked: bool,
    /// Attempts that only the agent knows, until they have ended.
    foreign: u32,
    /// Tasks that were activated again, whose former attempts may be among those.
    doubtful: Vec<Row>,
    lease_end: Duration,
    /// Where it is in `free`.
    queued: Option<u16>,
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
    jobs: HashMap<JobKey, Job>,
    /// Jobs that have something to run, by what their tasks need: a
    /// job whose tasks fit nowhere costs nothing.
    eligible: BTreeMap<Shape, BTreeSet<(Order, JobKey)>>,
    nodes: Vec<Option<Node>>,
    unused: Vec<u32>,
    by_name: HashMap<Arc<NodeId>, u32>,
    by_hash: HashMap<u32, u32>,
    by_conn: HashMap<Conn, u32>,
    lives: HashMap<Arc<NodeId>, Life>,
    /// Nodes with free slots, by how many.
    free: BTreeSet<(u16, u32)>,
    live: HashMap<Row, Live>,
    after: HashMap<Row, After>,
    gangs: HashMap<Row, gangs::Gang>,
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
            jobs: HashMap::new(),
            eligible: BTreeMap::new(),
            nodes: Vec::new(),
            unused: Vec::new(),
            by_name: HashMap::new(),
            by_hash: HashMap::new(),
            by_conn: HashMap::new(),
            lives: HashMap::new(),
            free: BTreeSet::new(),
            live: HashMap::new(),
            after: HashMap::new(),
            gangs: HashMap::new(),
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
