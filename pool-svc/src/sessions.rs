//! Control streams that are open, and when each node was last heard of.
//!
//! Nothing here is durable: agents connect again after a restart and send their
//! full view first.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kiln_proto::pool::v1::control_down::Message;
use kiln_proto::pool::v1::{self as wire, ControlDown};
use kiln_time::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::domain::NodeName;
use crate::domain::agent::{Command, Order};

/// Messages that may wait on the way down to one agent.
const QUEUE: usize = 64;

/// What goes down a control stream.
pub type Down = Result<ControlDown, Status>;

/// All control streams of this process.
#[derive(Debug, Default)]
pub struct Sessions {
    nodes: Mutex<HashMap<NodeName, Session>>,
    next_stream: AtomicU64,
}

#[derive(Debug)]
struct Session {
    stream: u64,
    down: Option<mpsc::Sender<Down>>,
    end: CancellationToken,
    last_contact: Timestamp,
    sent_command: u64,
}

/// A stream that was opened.
#[derive(Debug)]
pub struct Opened {
    /// Number of the stream.
    pub stream: u64,
    /// What to send to the agent.
    pub down: mpsc::Receiver<Down>,
    /// For the stream's own messages.
    pub sender: mpsc::Sender<Down>,
    /// Cancelled when the stream has to end.
    pub end: CancellationToken,
}

/// Why a message could not be sent to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotSent {
    /// No stream is open.
    NotConnected,
    /// The agent does not read what it is sent.
    Stalled,
}

impl Sessions {
    fn nodes(&self) -> MutexGuard<'_, HashMap<NodeName, Session>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new stream of a node; an older one has to end.
    pub fn open(&self, name: NodeName, now: Timestamp) -> Opened {
        let stream = self.next_stream.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, down) = mpsc::channel(QUEUE);
        let end = CancellationToken::new();
        let session =
            Session { stream, down: Some(sender.clone()), end: end.clone(), last_contact: now, sent_command: 0 };
        if let Some(older) = self.nodes().insert(name, session) {
            older.end.cancel();
        }
        Opened { stream, down, sender, end }
    }

    /// The stream has ended; the time of the last contact stays. Returns whether
    /// it was the node's latest.
    pub fn close(&self, name: &NodeName, stream: u64) -> bool {
        let mut nodes = self.nodes();
        let session = nodes.get_mut(name).filter(|session| session.stream == stream);
        session.map(|session| session.down = None).is_some()
    }

    /// Something was heard of a node; returns when that was before.
    pub fn heard(&self, name: &NodeName, stream: u64, now: Timestamp) -> Option<Timestamp> {
        let mut nodes = self.nodes();
        let session = nodes.get_mut(name).filter(|session| session.stream == stream)?;
        Some(std::mem::replace(&mut session.last_contact, now))
    }

    /// Whether a stream is open, and when something was last heard.
    pub fn contact(&self, name: &NodeName) -> Option<(bool, Timestamp)> {
        self.nodes().get(name).map(|session| (session.down.is_some(), session.last_contact))
    }

    /// Puts a message into the queue of a node's stream.
    ///
    /// # Errors
    /// If no stream is open or its queue is full.
    pub fn send(&self, name: &NodeName, message: Message) -> Result<(), NotSent> {
        self.send_numbered(name, 0, message)
    }

    fn send_numbered(&self, name: &NodeName, command_id: u64, message: Message) -> Result<(), NotSent> {
        let mut nodes = self.nodes();
        let session = nodes.get_mut(name).ok_or(NotSent::NotConnected)?;
        let down = session.down.as_ref().ok_or(NotSent::NotConnected)?;
        match down.try_send(Ok(ControlDown { command_id, message: Some(message) })) {
            Ok(()) => {
                session.sent_command = session.sent_command.max(command_id);
                Ok(())
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(NotSent::NotConnected),
            Err(mpsc::error::TrySendError::Full(_)) => Err(NotSent::Stalled),
        }
    }

    /// Sends a command unless this stream has carried it already. What cannot
    /// be sent now is sent after the agent's next report.
    pub fn deliver(&self, name: &NodeName, command: Command) {
        let already = self.nodes().get(name).is_some_and(|session| session.sent_command >= command.id);
        if already {
            return;
        }
        let message = match command.order {
            Order::DisableScheduling(option) => {
                Message::DisableScheduling(wire::DisableScheduling { option: wire_option(option) })
            }
            Order::EnableScheduling => Message::EnableScheduling(wire::EnableScheduling {}),
            Order::Drain(option) => Message::Drain(wire::Drain { option: wire_option(option) }),
            Order::Reboot(option) => Message::Reboot(wire::Reboot { option: wire_option(option) }),
        };
        if let Err(why) = self.send_numbered(name, command.id, message) {
            tracing::debug!(account = %name.account, pool.id = %name.pool, node.id = %name.node, ?why,
                "a command waits for the node's next report");
        }
    }

    /// Nodes that have been silent since before `limit`.
    pub fn silent_since(&self, limit: Timestamp) -> Vec<NodeName> {
        self.nodes().iter().filter(|(_, session)| session.last_contact <= limit).map(|(name, _)| name.clone()).collect()
    }

    /// The node is gone.
    pub fn forget(&self, name: &NodeName) {
        if let Some(session) = self.nodes().remove(name) {
            session.end.cancel();
        }
    }

    /// Ends all streams.
    pub fn close_all(&self) {
        for session in self.nodes().values_mut() {
            session.down = None;
            session.end.cancel();
        }
    }

    /// Ends all streams, and forgets when nodes were heard of.
    pub fn forget_all(&self) {
        for (_, session) in self.nodes().drain() {
            session.end.cancel();
        }
    }

    /// Streams that are open.
    pub fn connected(&self) -> usize {
        self.nodes().values().filter(|session| session.down.is_some()).count()
    }
}

fn wire_option(option: crate::domain::DeallocationOption) -> i32 {
    use crate::domain::DeallocationOption as Option_;
    use kiln_proto::common::v1::DeallocationOption as Wire;
    (match option {
        Option_::Requeue => Wire::Requeue,
        Option_::Terminate => Wire::Terminate,
        Option_::TaskCompletion => Wire::TaskCompletion,
        Option_::RetainedData => Wire::RetainedData,
    }) as i32
}
