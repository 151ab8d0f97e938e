//! `kiln.monitor.v1.MonitorService`.

mod history;
mod timeline;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use kiln_error::{Error, Kind};
use kiln_grpc::{Caller, page};
use kiln_ids::{JobId, PoolId};
use kiln_proto::monitor::v1 as wire;
use kiln_proto::monitor::v1::monitor_service_server::MonitorService;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::cursor;
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::store::{Filter, Store};
use crate::watch::{Watcher, logged_event};

/// Messages on their way to a client that has not taken them.
const STREAM_BUFFER: usize = 2;
/// Longest prefix of a filter.
const MAX_PREFIX: usize = 1024;

/// Answers the RPCs.
#[derive(Debug)]
pub struct Api {
    /// The event log.
    pub store: Arc<dyn Store>,
    /// Wakes watch streams.
    pub hub: Hub,
    /// What is counted.
    pub metrics: Metrics,
    /// Streams that may be open.
    pub watchers: Arc<Semaphore>,
    /// When to say that nothing happens.
    pub keep_alive: Duration,
    /// Ends watch streams.
    pub shutdown: CancellationToken,
}

type WatchStream = Pin<Box<dyn Stream<Item = Result<wire::WatchResponse, Status>> + Send>>;

impl Api {
    async fn watch(
        &self,
        account: String,
        topic: String,
        from: &str,
        until_completed: bool,
    ) -> Result<Response<WatchStream>, Status> {
        let log = self.store.log().await.map_err(Error::from)?;
        let position = cursor::read(&log, "cursor", from)?;
        let permit = self.watchers.clone().try_acquire_owned().map_err(|_| {
            Error::new(
                Kind::ResourceExhausted,
                "TooManyRequests",
                "too many watch streams are open; close some or retry",
            )
        })?;
        let watcher = Watcher {
            store: self.store.clone(),
            hub: self.hub.clone(),
            account,
            topic,
            position,
            log_id: log.id,
            until_completed,
            keep_alive: self.keep_alive,
            metrics: self.metrics.clone(),
            permit,
        };
        let (sender, receiver) = mpsc::channel(STREAM_BUFFER);
        kiln_telemetry::spawn(watcher.run(sender, self.shutdown.clone()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[tonic::async_trait]
impl MonitorService for Api {
    type WatchJobStream = WatchStream;
    type WatchPoolStream = WatchStream;

    async fn watch_job(&self, request: Request<wire::WatchJobRequest>) -> Result<Response<WatchStream>, Status> {
        let account = account(&request)?;
        let request = request.into_inner();
        let job = job_id(&request.job_id)?;
        self.watch(account, format!("jobs/{}", job.key()), &request.cursor, request.until_completed).await
    }

    async fn watch_pool(&self, request: Request<wire::WatchPoolRequest>) -> Result<Response<WatchStream>, Status> {
        let account = account(&request)?;
        let request = request.into_inner();
        let pool = pool_id(&request.pool_id)?;
        self.watch(account, format!("pools/{}", pool.key()), &request.cursor, false).await
    }

    async fn list_events(
        &self,
        request: Request<wire::ListEventsRequest>,
    ) -> Result<Response<wire::ListEventsResponse>, Status> {
        let account = account(&request)?;
        let request = request.into_inner();
        for (field, prefix) in [("subject_prefix", &request.subject_prefix), ("type_prefix", &request.type_prefix)] {
            if prefix.len() > MAX_PREFIX {
                return Err(Error::invalid_property(field, "", format!("is longer than {MAX_PREFIX} bytes")).into());
            }
        }
        let size = page::size(request.page_size, 100, 1000)?;
        let log = self.store.log().await.map_err(Error::from)?;
        let after = cursor::read(&log, "page_token", &request.page_token)?;
        let filter = Filter { subject_prefix: request.subject_prefix.to_lowercase(), type_prefix: request.type_prefix };
        let listed = self.store.list(&account, filter, after, size).await.map_err(Error::from)?;
        let events = listed.events.iter().map(|event| logged_event(&log.id, event)).collect::<Result<_, _>>()?;
        let next_page_token = listed.next.map(|position| cursor::write(&log.id, position)).unwrap_or_default();
        Ok(Response::new(wire::ListEventsResponse { events, next_page_token }))
    }

    async fn get_job_timeline(
        &self,
        request: Request<wire::GetJobTimelineRequest>,
    ) -> Result<Response<wire::GetJobTimelineResponse>, Status> {
        let account = account(&request)?;
        Ok(Response::new(timeline::get(&*self.store, &account, request.into_inner()).await?))
    }

    async fn get_task_count_history(
        &self,
        request: Request<wire::GetTaskCountHistoryRequest>,
    ) -> Result<Response<wire::GetTaskCountHistoryResponse>, Status> {
        let account = account(&request)?;
        Ok(Response::new(history::task_counts(&*self.store, &account, request.into_inner()).await?))
    }

    async fn get_node_use_history(
        &self,
        request: Request<wire::GetNodeUseHistoryRequest>,
    ) -> Result<Response<wire::GetNodeUseHistoryResponse>, Status> {
        let account = account(&request)?;
        Ok(Response::new(history::node_use(&*self.store, &account, request.into_inner()).await?))
    }
}

fn account<T>(request: &Request<T>) -> Result<String, Error> {
    Ok(Caller::of(request)?.service_account()?.to_owned())
}

fn job_id(text: &str) -> Result<JobId, Error> {
    JobId::parse(text).map_err(|error| Error::invalid_property("job_id", text, error.to_string()))
}

fn pool_id(text: &str) -> Result<PoolId, Error> {
    PoolId::parse(text).map_err(|error| Error::invalid_property("pool_id", text, error.to_string()))
}
