//! The scheduler's end of a work stream.

use std::collections::{HashMap, HashSet};

use kiln_proto::job::v1::work_down::Message;
use kiln_proto::job::v1::{
    Assignment, Assignments, AttemptKey, Cleanup, JobNodeAcks, JobNodeKey, Proceed, ReleaseJob, ReportAcks,
    StatusApplied, Stop, WorkDown,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::core::Conn;

/// Messages that may wait for a slow agent before its stream is closed.
pub const OUTGOING: usize = 256;
/// Assignments of one message at most, so that it stays below the size limit
/// of messages with specs of usual size.
const MAX_ASSIGNMENTS: usize = 64;
/// Encoded specs of one message at most.
const MAX_MESSAGE_BYTES: usize = 2 * 1024 * 1024;

/// An open stream.
#[derive(Debug)]
pub struct Link {
    /// To the agent.
    pub out: mpsc::Sender<WorkDown>,
    /// Ends the stream.
    pub closer: CancellationToken,
    /// Attempts that only the agent has and that have not ended.
    pub foreign: HashSet<(String, String, u32, u64, u32)>,
    /// Where other nodes reach this one; may be empty.
    pub ip: String,
    /// The agent's list of its hello, until the stops for it were sent.
    pub seen: Vec<AttemptKey>,
}

impl Link {
    /// Sends without waiting; `false` if the agent does not keep up.
    pub fn send(&self, message: Message) -> bool {
        self.out.try_send(WorkDown { message: Some(message) }).is_ok()
    }
}

/// Messages for agents that wait for a commit.
#[derive(Debug, Default)]
pub struct Mail {
    /// By stream, in the order they are to be sent.
    pub links: HashMap<Conn, LinkMail>,
}

/// Messages for one agent.
#[derive(Debug, Default)]
pub struct LinkMail {
    /// The first message of a stream.
    pub welcome: Option<Message>,
    /// Attempts that begin, with the size of their spec.
    pub assignments: Vec<(usize, Assignment)>,
    /// Primaries that go on with the command of their task.
    pub proceeds: Vec<AttemptKey>,
    /// Attempts to stop.
    pub stops: Vec<AttemptKey>,
    /// Reports that are durable.
    pub acks: Vec<AttemptKey>,
    /// The latest status that was applied.
    pub status: Option<u64>,
    /// Words about jobs that are durable.
    pub job_node_acks: Vec<JobNodeKey>,
    /// Jobs that are to be released.
    pub releases: Vec<ReleaseJob>,
    /// Directories to remove.
    pub cleanup: Cleanup,
}

impl Mail {
    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// The messages for one agent.
    pub fn to(&mut self, conn: Conn) -> &mut LinkMail {
        self.links.entry(conn).or_default()
    }
}

impl LinkMail {
    /// Gathers everything into as few messages as possible. Assignments go
    /// before stops: an attempt may be assigned and stopped in one step.
    pub fn into_messages(self) -> Vec<Message> {
        let mut messages: Vec<Message> = self.welcome.into_iter().collect();
        if !self.cleanup.tasks.is_empty() || !self.cleanup.job_ids.is_empty() {
            messages.push(Message::Cleanup(self.cleanup));
        }
        if !self.acks.is_empty() {
            messages.push(Message::Acks(ReportAcks { attempts: self.acks }));
        }
        if !self.job_node_acks.is_empty() {
            messages.push(Message::JobNodeAcks(JobNodeAcks { keys: self.job_node_acks }));
        }
        let mut bytes = 0;
        let mut group = Vec::new();
        for (size, assignment) in self.assignments {
            if group.len() >= MAX_ASSIGNMENTS || (bytes + size > MAX_MESSAGE_BYTES && !group.is_empty()) {
                messages.push(Message::Assignments(Assignments { assignments: std::mem::take(&mut group) }));
                bytes = 0;
            }
            bytes += size;
            group.push(assignment);
        }
        if !group.is_empty() {
            messages.push(Message::Assignments(Assignments { assignments: group }));
        }
        if !self.proceeds.is_empty() {
            messages.push(Message::Proceed(Proceed { attempts: self.proceeds }));
        }
        if !self.stops.is_empty() {
            messages.push(Message::Stop(Stop { attempts: self.stops }));
        }
        messages.extend(self.releases.into_iter().map(Message::Release));
        // Last: it says that no assignment from before is still to come.
        if let Some(version) = self.status {
            messages.push(Message::StatusApplied(StatusApplied { version }));
        }
        messages
    }
}
