//! What the core is told, and what it answers.

use super::*;

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
        running: Vec<(ReadyTask, Places)>,
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
        nodes: Places,
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
