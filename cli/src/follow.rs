//! Events of a job or a pool as they come. A broken connection is made again
//! and goes on behind the last event that was seen.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use kiln_client::Client;
use kiln_error::{Error, Kind};
use kiln_proto::events::v1::Event;
use kiln_proto::monitor::v1::{LoggedEvent, WatchJobRequest, WatchPoolRequest, WatchResponse};
use tonic::Streaming;

use crate::failure::{Failure, Outcome};

/// Connections in a row that may fail.
const TRIES: u32 = 12;

/// What is watched.
#[derive(Debug, Clone)]
enum Subject {
    Job { id: String, until_completed: bool },
    Pool { id: String },
}

/// A stream of events.
#[derive(Debug)]
pub struct Follow {
    client: Client,
    subject: Subject,
    cursor: String,
    stream: Option<Streaming<WatchResponse>>,
    failures: u32,
}

impl Follow {
    /// Events of a job from its beginning.
    pub fn job(client: &Client, id: &str, until_completed: bool) -> Self {
        Self::new(client, Subject::Job { id: id.to_owned(), until_completed })
    }

    /// Events of a pool from its beginning.
    pub fn pool(client: &Client, id: &str) -> Self {
        Self::new(client, Subject::Pool { id: id.to_owned() })
    }

    fn new(client: &Client, subject: Subject) -> Self {
        Self { client: client.clone(), subject, cursor: String::new(), stream: None, failures: 0 }
    }

    /// The batches as a stream, which ends after an error. Unlike the future of
    /// [`Follow::next`] it can be polled in turn with others: nothing that was
    /// begun is dropped.
    pub fn into_batches(self) -> BoxStream<'static, Outcome<Vec<Event>>> {
        futures::stream::unfold(Some(self), |follow| async {
            let mut follow = follow?;
            match follow.next().await {
                Ok(Some(events)) => Some((Ok(events), Some(follow))),
                Ok(None) => None,
                Err(failure) => Some((Err(failure), None)),
            }
        })
        .boxed()
    }

    /// The next events; none of them if nothing happened for a while; `None`
    /// when the stream has ended for good.
    ///
    /// # Errors
    /// What the service said, if trying again cannot help.
    pub async fn next(&mut self) -> Outcome<Option<Vec<Event>>> {
        let batch = self.next_logged().await?;
        Ok(batch.map(|events| events.into_iter().filter_map(|logged| logged.event).collect()))
    }

    /// As [`Follow::next`], with cursors.
    ///
    /// # Errors
    /// As there.
    pub async fn next_logged(&mut self) -> Outcome<Option<Vec<LoggedEvent>>> {
        loop {
            let result = match &mut self.stream {
                Some(stream) => stream.message().await,
                None => match self.open().await {
                    Ok(stream) => {
                        self.stream = Some(stream);
                        continue;
                    }
                    Err(status) => Err(status),
                },
            };
            match result {
                Ok(Some(response)) => {
                    self.failures = 0;
                    if let Some(last) = response.events.last() {
                        self.cursor.clone_from(&last.cursor);
                    }
                    return Ok(Some(response.events));
                }
                Ok(None) => return Ok(None),
                Err(status) => self.recover(status).await?,
            }
        }
    }

    async fn open(&self) -> Result<Streaming<WatchResponse>, tonic::Status> {
        let mut monitor = self.client.monitor();
        let cursor = self.cursor.clone();
        let response = match self.subject.clone() {
            Subject::Job { id: job_id, until_completed } => {
                monitor.watch_job(WatchJobRequest { job_id, cursor, until_completed }).await?
            }
            Subject::Pool { id: pool_id } => monitor.watch_pool(WatchPoolRequest { pool_id, cursor }).await?,
        };
        Ok(response.into_inner())
    }

    async fn recover(&mut self, status: tonic::Status) -> Outcome {
        self.stream = None;
        self.failures += 1;
        let broken = matches!(status.code(), tonic::Code::Unknown | tonic::Code::Cancelled | tonic::Code::Internal)
            && std::error::Error::source(&status).is_some();
        let retryable = broken || Error::from(status.clone()).kind() == Kind::Unavailable;
        if !retryable || self.failures > TRIES {
            return Err(Failure::from(status));
        }
        tokio::time::sleep(Duration::from_millis(20 << self.failures.min(7))).await;
        Ok(())
    }
}
