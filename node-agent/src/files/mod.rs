//! Answers questions about the node's files.
//!
//! - [`resolve`]: a path of a caller becomes a file below the node root.
//! - [`list`]: entries of directories.
//! - [`read`]: content, also of files that still grow, which [`watch`] tells.
//!
//! An answer is a stream of its own to pool-svc, out of the way of heartbeats.

pub mod list;
pub mod read;
pub mod resolve;
mod watch;

use std::path::Path;
use std::sync::Arc;

use kiln_proto::pool::v1::file_answer::Part;
use kiln_proto::pool::v1::file_request::Operation;
use kiln_proto::pool::v1::node_control_service_client::NodeControlServiceClient;
use kiln_proto::pool::v1::{FileAnswer, FileDone, FileError, FileList, FileRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::agent::Agent;
use crate::wire::NodeAuth;

/// Pieces on their way at the same time.
const WINDOW: usize = 4;
/// Entries in one part of a list: names may be long, messages may not.
const LIST_PART: usize = 500;

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct FileFailure {
    /// Stable word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl FileFailure {
    /// With reason and message.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// What the file system says about `path`.
    pub fn io(path: &Path, error: &std::io::Error) -> Self {
        let reason = match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => "FileNotFound",
            _ => "IOError",
        };
        Self::new(reason, format!("{}: {error}", path.display()))
    }
}

/// Where the parts of an answer go.
#[derive(Debug)]
pub struct Answer {
    sender: mpsc::Sender<FileAnswer>,
    /// Empty after the first part.
    transfer_id: String,
}

impl Answer {
    /// Sends one part; false if nobody listens any more.
    pub async fn send(&mut self, part: Part) -> bool {
        let transfer_id = std::mem::take(&mut self.transfer_id);
        self.sender.send(FileAnswer { transfer_id, part: Some(part) }).await.is_ok()
    }
}

/// Answers one request. `free` is false if too many are being answered.
pub async fn answer(
    agent: Arc<Agent>,
    mut client: NodeControlServiceClient<InterceptedService<Channel, NodeAuth>>,
    request: FileRequest,
    cancel: CancellationToken,
    free: bool,
) {
    let (sender, receiver) = mpsc::channel(WINDOW);
    let mut answer = Answer { sender, transfer_id: request.transfer_id.clone() };
    let work = async move {
        let result = if free {
            operate(&agent, &request, &mut answer, &cancel).await
        } else {
            Err(FileFailure::new("ServerBusy", "the node answers too many file requests; try again"))
        };
        if let Err(failure) = result {
            let error = FileError { reason: failure.reason.to_owned(), message: failure.message };
            answer.send(Part::Error(error)).await;
        }
    };
    let (result, ()) = tokio::join!(client.answer_file(ReceiverStream::new(receiver)), work);
    if let Err(status) = result {
        tracing::debug!(error = %kiln_error::Error::from(status), "the answer to a file request was not taken");
    }
}

async fn operate(
    agent: &Arc<Agent>,
    request: &FileRequest,
    answer: &mut Answer,
    cancel: &CancellationToken,
) -> Result<(), FileFailure> {
    let root = agent.root.clone();
    let path = request.path.clone();
    match &request.operation {
        Some(Operation::List(options)) => {
            let options = options.clone();
            let (files, more) = blocking(move || list::list(&root, &path, &options)).await?;
            let mut files = files.into_iter();
            loop {
                let part: Vec<_> = files.by_ref().take(LIST_PART).collect();
                if part.is_empty() || !answer.send(Part::List(FileList { files: part, more })).await {
                    break;
                }
            }
            answer.send(Part::Done(FileDone {})).await;
            Ok(())
        }
        Some(Operation::Stat(_)) => {
            let entry = blocking(move || list::stat(&root, &path)).await?;
            answer.send(Part::File(entry)).await;
            Ok(())
        }
        Some(Operation::Read(options)) => read::read(agent, &path, options, answer, cancel).await,
        Some(Operation::Remove(options)) => {
            let recursive = options.recursive;
            blocking(move || resolve::remove(&root, &path, recursive)).await?;
            answer.send(Part::Done(FileDone {})).await;
            Ok(())
        }
        Some(Operation::Cancel(_)) | None => Err(FileFailure::new("InvalidRequest", "the request has no operation")),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FileFailure> + Send + 'static,
) -> Result<T, FileFailure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(FileFailure::new("IOError", format!("the request failed: {error}"))))
}
