//! Questions about the files of nodes that wait for their answers.
//!
//! A caller's question goes down the node's control stream with a transfer id;
//! the agent answers on a stream of its own (`AnswerFile`) that names the id.
//! Parts pass through a short queue: a slow caller slows the agent down. When
//! the caller hangs up, its [`Transfer`] is dropped and the agent is told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_error::{Error, Kind};
use kiln_proto::pool::v1::control_down::Message;
use kiln_proto::pool::v1::file_answer::Part;
use kiln_proto::pool::v1::file_request::Operation;
use kiln_proto::pool::v1::{CancelTransfer, FileError, FileRequest};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::domain::NodeName;
use crate::sessions::{NotSent, Sessions};

/// Transfers at once, of all nodes.
const MAX_TRANSFERS: usize = 1024;
/// Transfers at once of one account: there is room for others.
const MAX_PER_ACCOUNT: usize = MAX_TRANSFERS / 4;
/// Transfers at once of one node.
const MAX_PER_NODE: usize = 64;
/// Parts between agent and caller.
const QUEUE: usize = 8;
/// An agent that does not go on for this long is given up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// All transfers of this process.
#[derive(Debug)]
pub struct Transfers {
    sessions: Arc<Sessions>,
    waiting: Mutex<HashMap<String, Waiting>>,
    closing: CancellationToken,
}

#[derive(Debug)]
struct Waiting {
    node: NodeName,
    /// Taken by the answer stream.
    parts: Option<mpsc::Sender<Part>>,
}

/// One question, on the side of the caller.
#[derive(Debug)]
pub struct Transfer {
    id: String,
    node: NodeName,
    transfers: Arc<Transfers>,
    parts: mpsc::Receiver<Part>,
    done: bool,
}

impl Transfers {
    /// None yet.
    pub fn new(sessions: Arc<Sessions>) -> Self {
        Self { sessions, waiting: Mutex::default(), closing: CancellationToken::new() }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Transfers that are open.
    pub fn count(&self) -> usize {
        self.waiting().len()
    }

    /// Asks a node. `None` if its agent is not connected.
    ///
    /// # Errors
    /// If too many questions are open.
    pub fn ask(self: &Arc<Self>, node: &NodeName, path: &str, operation: Operation) -> Result<Option<Transfer>, Error> {
        let id = uuid::Uuid::new_v4().to_string();
        let (sender, parts) = mpsc::channel(QUEUE);
        {
            let mut waiting = self.waiting();
            let of_account = waiting.values().filter(|other| other.node.account == node.account).count();
            let of_node = waiting.values().filter(|other| other.node == *node).count();
            let full = waiting.len() >= MAX_TRANSFERS || of_account >= MAX_PER_ACCOUNT || of_node >= MAX_PER_NODE;
            if full {
                return Err(busy("too many files are being read; repeat later"));
            }
            waiting.insert(id.clone(), Waiting { node: node.clone(), parts: Some(sender) });
        }
        let transfer = Transfer { id, node: node.clone(), transfers: self.clone(), parts, done: false };
        let request =
            FileRequest { transfer_id: transfer.id.clone(), path: path.to_owned(), operation: Some(operation) };
        match self.sessions.send(node, Message::FileRequest(request)) {
            Ok(()) => Ok(Some(transfer)),
            Err(NotSent::NotConnected) => Ok(None),
            Err(NotSent::Stalled) => Err(busy("the node does not keep up with its requests; repeat later")),
        }
    }

    /// Ends all: callers learn that the answer broke off.
    pub fn close_all(&self) {
        self.closing.cancel();
    }

    /// The node's stream has ended: questions that nobody has begun to answer may
    /// have been lost with it, and their callers need not wait.
    pub fn give_up(&self, node: &NodeName) {
        for waiting in self.waiting().values_mut().filter(|waiting| waiting.node == *node) {
            waiting.parts = None;
        }
    }

    /// Where the parts of an answer go. Each transfer has one answer.
    pub fn answer(&self, node: &NodeName, id: &str) -> Option<mpsc::Sender<Part>> {
        let mut waiting = self.waiting();
        waiting.get_mut(id).filter(|entry| entry.node == *node)?.parts.take()
    }
}

impl Transfer {
    /// The answer is complete for its caller; the agent is not told to stop.
    pub fn finish(&mut self) {
        self.done = true;
    }

    /// The next part; `None` when the answer is complete. `patient` waits
    /// without end (following a file).
    ///
    /// # Errors
    /// What the agent said, or that it is silent or gone.
    pub async fn next(&mut self, patient: bool) -> Result<Option<Part>, Error> {
        let limit = async { if patient { std::future::pending().await } else { tokio::time::sleep(PATIENCE).await } };
        let closing = self.transfers.closing.clone();
        let part = tokio::select! {
            part = self.parts.recv() => {
                // An answer that has ended need not be told to stop.
                self.done |= part.is_none();
                part
            }
            () = limit => {
                let why = "the node did not answer in time";
                return Err(Error::new(Kind::DeadlineExceeded, "OperationTimedOut", why));
            }
            () = closing.cancelled() => None,
        };
        match part {
            Some(Part::Error(error)) => {
                self.done = true;
                Err(from_agent(error))
            }
            Some(Part::Done(_)) => {
                self.done = true;
                Ok(None)
            }
            Some(part) => Ok(Some(part)),
            None => Err(Error::unavailable("the node's answer broke off; repeat")),
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.transfers.waiting().remove(&self.id);
        if !self.done {
            let cancel = FileRequest {
                transfer_id: self.id.clone(),
                path: String::new(),
                operation: Some(Operation::Cancel(CancelTransfer {})),
            };
            // If it cannot be sent, the agent notices when its answer is refused.
            if let Err(why) = self.transfers.sessions.send(&self.node, Message::FileRequest(cancel)) {
                tracing::debug!(node.id = %self.node.node, ?why, "a cancelled transfer could not be announced");
            }
        }
    }
}

fn busy(message: &str) -> Error {
    Error::new(Kind::ResourceExhausted, "TooManyRequests", message).with_retry_after(Duration::from_secs(1))
}

/// What an agent refused, in the words of clients.
fn from_agent(error: FileError) -> Error {
    let FileError { reason, message } = error;
    match reason.as_str() {
        "FileNotFound" | "PathNotFound" => Error::new(Kind::NotFound, reason, message),
        "InvalidRange" => Error::new(Kind::OutOfRange, reason, message),
        "PathNotAllowed" => Error::invalid_property("path", "", message),
        "IOError" => Error::new(Kind::PermissionDenied, reason, message),
        "" => Error::new(Kind::FailedPrecondition, "OperationNotValidOnNode", message),
        _ => Error::new(Kind::FailedPrecondition, reason, message),
    }
}

#[cfg(test)]
mod tests {
    use kiln_ids::{AccountName, NodeId, PoolId};
    use kiln_proto::pool::v1::StatFile;
    use kiln_time::Timestamp;

    use super::*;

    #[test]
    fn one_account_cannot_take_the_places_of_all() {
        let sessions = Arc::new(Sessions::default());
        let transfers = Arc::new(Transfers::new(sessions.clone()));
        let node = |account: &str, number: usize| NodeName {
            account: AccountName::parse(account).unwrap(),
            pool: PoolId::parse("p").unwrap(),
            node: NodeId::parse(&format!("n{number}")).unwrap(),
        };
        let ask = |account: &str, number| {
            let opened = sessions.open(node(account, number), Timestamp::now());
            let transfer = transfers.ask(&node(account, number), "x", Operation::Stat(StatFile {}));
            transfer.map(|transfer| (transfer.unwrap(), opened))
        };
        let held: Vec<_> = (0..MAX_PER_ACCOUNT).map(|number| ask("one", number).unwrap()).collect();
        let refused = ask("one", MAX_PER_ACCOUNT).unwrap_err();
        assert_eq!(refused.kind(), Kind::ResourceExhausted);
        ask("two", 0).unwrap();
        drop(held);
        ask("one", 0).unwrap();
    }
}
