//! What an actor is told.

use std::sync::Arc;

use kiln_ids::NodeId;
use kiln_proto::job::v1::{AttemptKey, JobNodeKey, NodeTaskInfo, WorkDown};
use kiln_time::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::core::WaitReason;
use super::core::{Conn, JobKey, NodeStatus, Refused, Row};
use crate::domain::needs::Needs;
use crate::domain::task::AttemptEnd;
use crate::store::leases::Change;
use crate::store::{NewAnswer, TaskRow};

/// One message to the actor of a pool.
#[derive(Debug)]
pub enum Note {
    /// A client created or changed a job, or moved it into or out of this pool.
    JobChanged(JobKey),
    /// A client added tasks.
    Added {
        /// Their job.
        job: JobKey,
        /// The new rows.
        tasks: Vec<TaskRow>,
    },
    /// A client activated a task again.
    Reactivated {
        /// Its job.
        job: JobKey,
        /// Its row.
        row: Row,
    },
    /// A client changed a task's constraints.
    Constraints(Box<TaskRow>),
    /// A client ends a task.
    Terminate(Command),
    /// A client removes a task.
    Delete(Command),
    /// A task was removed that ran here.
    Cleanup {
        /// Where it ran.
        node: Arc<NodeId>,
        /// Its name.
        key: AttemptKey,
    },
    /// A client removed a completed task that others may wait for.
    ParentDeleted {
        /// Its job.
        job: JobKey,
        /// Its row.
        row: Row,
        /// Key of its id.
        key: String,
    },
    /// Why does this task wait? Answered with the tasks it waits for, if that is why.
    Explain {
        /// Its job.
        job: JobKey,
        /// Its row.
        row: Row,
        /// What it needs.
        needs: Needs,
        /// Who asks.
        reply: oneshot::Sender<(WaitReason, Vec<String>)>,
    },
    /// A client changed something through another replica.
    Elsewhere(Change),
    /// An agent opened a stream.
    Hello(Box<Hello>),
    /// An agent says something.
    Up(Conn, Up),
}

/// A client's command about a task that may wait or run.
#[derive(Debug)]
pub struct Command {
    /// Its job.
    pub job: JobKey,
    /// Its row.
    pub row: Row,
    /// What it needs.
    pub needs: Needs,
    /// Remembered in the same commit if the command is done.
    pub answer: Option<NewAnswer>,
    /// Who asks.
    pub reply: oneshot::Sender<Result<(), Refused>>,
}

/// See [`Note::Hello`].
#[derive(Debug)]
pub struct Hello {
    /// The stream.
    pub conn: Conn,
    /// The node.
    pub node: Arc<NodeId>,
    /// This life of its agent.
    pub incarnation: String,
    /// Number of the stream in that life.
    pub stream: u64,
    /// What it says about itself.
    pub status: NodeStatus,
    /// Where other nodes reach it; may be empty.
    pub ip: String,
    /// What it holds, and whether that has ended.
    pub attempts: Vec<(AttemptKey, bool)>,
    /// To the agent.
    pub out: mpsc::Sender<WorkDown>,
    /// Ends the stream.
    pub closer: CancellationToken,
}

/// What an agent says.
#[derive(Debug)]
pub enum Up {
    /// It wants to go on.
    Lease(u64),
    /// About its node, with the number it gave this.
    Status(NodeStatus, u64),
    /// About its attempts.
    Reports(Vec<(AttemptKey, Report)>),
    /// About preparations and releases of jobs.
    JobNodes(Vec<(JobNodeKey, NodeTaskInfo)>),
    /// It ends in order.
    Goodbye,
    /// Its stream has ended.
    Gone,
}

/// One report.
#[derive(Debug)]
pub enum Report {
    /// The attempt began.
    Started(Timestamp),
    /// The instance is ready for the command of its task.
    Ready,
    /// The attempt ended.
    Ended(AttemptEnd),
}
