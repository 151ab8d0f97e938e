//! Watch streams.
//!
//! A watcher owns nothing but its place in the log: it reads a page, hands it
//! over, and reads the next when the client has taken it. A slow client costs a
//! page of memory, not a growing queue. When it has read everything it waits
//! until the hub tells of a commit to its topic; when that takes long it sends
//! a message that says it is alive.

use std::sync::Arc;
use std::time::Duration;

use kiln_error::Error;
use kiln_proto::events::v1::Event;
use kiln_proto::monitor::v1::{LoggedEvent, WatchResponse};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::cursor;
use crate::domain::fact::Logged;
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::store::Store;

/// Events of one message.
const PAGE: u32 = 200;

/// One stream of one client.
#[derive(Debug)]
pub struct Watcher {
    /// Where the events are.
    pub store: Arc<dyn Store>,
    /// Tells of new ones.
    pub hub: Hub,
    /// Whose.
    pub account: String,
    /// What about, for example `jobs/j1`.
    pub topic: String,
    /// Goes on behind this position.
    pub position: i64,
    /// Part of every cursor.
    pub log_id: String,
    /// End with the job.
    pub until_completed: bool,
    /// When to say that nothing happens.
    pub keep_alive: Duration,
    /// Counts streams.
    pub metrics: Metrics,
    /// One of the streams that may be open.
    pub permit: OwnedSemaphorePermit,
}

/// Why a stream ended.
enum Ended {
    /// The job is over.
    Completed,
    /// The client is gone.
    Gone,
    /// Something is wrong; the client hears it.
    Failed(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Watcher {
    /// Sends events until the client goes, the job is over, or `shutdown`.
    pub async fn run(mut self, client: mpsc::Sender<Result<WatchResponse, Status>>, shutdown: CancellationToken) {
        self.metrics.watchers.inc();
        let ended = tokio::select! {
            ended = self.follow(&client) => ended,
            () = client.closed() => Ended::Gone,
            () = shutdown.cancelled() => {
                Ended::Failed(Error::unavailable("the service stops; watch again from the last cursor"))
            }
        };
        if let Ended::Failed(error) = ended {
            // Only if there is room: a client that takes nothing sees the end of the stream.
            let _ = client.try_send(Err(error.into()));
        }
        self.metrics.watchers.dec();
        drop(self.permit);
    }

    async fn follow(&mut self, client: &mpsc::Sender<Result<WatchResponse, Status>>) -> Ended {
        // Before the first read, so that nothing falls between read and wait.
        let mut interest = self.hub.watch(&self.account, &self.topic);
        // A client that has seen the end of the job and comes back.
        let mut over = match self.is_over().await {
            Ok(over) => over,
            Err(error) => return error.into(),
        };
        loop {
            let events = match self.store.topic(&self.account, &self.topic, self.position, PAGE).await {
                Ok(events) => events,
                Err(error) => return Error::from(error).into(),
            };
            if events.is_empty() {
                if over {
                    return Ended::Completed;
                }
                tokio::select! {
                    () = interest.changed() => {}
                    () = tokio::time::sleep(self.keep_alive) => {
                        let alive = WatchResponse { events: Vec::new(), keep_alive: true };
                        if client.send(Ok(alive)).await.is_err() {
                            return Ended::Gone;
                        }
                    }
                }
                continue;
            }
            let ends = match self.end_in(&events).await {
                Ok(ends) => ends,
                Err(error) => return error.into(),
            };
            let taken = ends.map_or(events.len(), |at| at + 1);
            let mut response = WatchResponse::default();
            for event in events.into_iter().take(taken) {
                self.position = event.position;
                match logged_event(&self.log_id, &event) {
                    Ok(event) => response.events.push(event),
                    Err(error) => return error.into(),
                }
            }
            if client.send(Ok(response)).await.is_err() {
                return Ended::Gone;
            }
            if ends.is_some() {
                return Ended::Completed;
            }
            over = false;
        }
    }

    /// Whether the job's last event says that it is over.
    async fn is_over(&self) -> Result<bool, Error> {
        if !self.until_completed {
            return Ok(false);
        }
        let last = self.store.last_of(&self.account, &self.topic, &JOB_LIFE).await?;
        // Events behind the end (of tasks) are still sent.
        last.map_or(Ok(false), |event| Ok(event.position <= self.position && ends_job(&event)?))
    }

    /// The place of the event that ends the job, unless the job was made again
    /// since: then an earlier job of the same id ended.
    async fn end_in(&self, events: &[Logged]) -> Result<Option<usize>, Error> {
        if !self.until_completed {
            return Ok(None);
        }
        for (at, event) in events.iter().enumerate() {
            if event.subject != self.topic || !ends_job(event)? {
                continue;
            }
            let created = self.store.last_of(&self.account, &self.topic, &["job.job.created"]).await?;
            if created.is_none_or(|created| created.position < event.position) {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }
}

/// Events that make, end, or change the state of a job.
const JOB_LIFE: [&str; 3] = ["job.job.created", "job.job.state", "job.job.deleted"];

fn ends_job(event: &Logged) -> Result<bool, Error> {
    use kiln_proto::events::v1::event::Payload;
    use kiln_proto::job::v1::JobState;

    if event.event_type == "job.job.deleted" {
        return Ok(true);
    }
    if event.event_type != "job.job.state" {
        return Ok(false);
    }
    Ok(match decode(event)?.payload {
        Some(Payload::Job(job)) => job.new_state() == JobState::Completed,
        _ => false,
    })
}

/// The event as it was published.
///
/// # Errors
/// If the log is damaged.
pub fn decode(event: &Logged) -> Result<Event, Error> {
    Event::decode(event.bytes.as_slice()).map_err(|error| {
        tracing::error!(position = event.position, %error, "an event of the log cannot be read");
        Error::internal("an event of the log cannot be read")
    })
}

/// The event with its cursor.
///
/// # Errors
/// If the log is damaged.
pub fn logged_event(log_id: &str, event: &Logged) -> Result<LoggedEvent, Error> {
    Ok(LoggedEvent { cursor: cursor::write(log_id, event.position), event: Some(decode(event)?) })
}
