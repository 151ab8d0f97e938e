//! The REST dialect of Azure Batch.
//!
//! ```text
//! request -> router (operation) -> auth (account) -> place (limit) -> version
//!         -> body (bounded) -> handler: JSON -> proto -> service -> JSON -> reply
//! ```
//!
//! - [`router`]: paths to operations; [`auth`]: SharedKey and bearer;
//! - [`call`]: what a handler knows of its request; [`reply`]: what it answers;
//! - [`errors`]: errors in the dialect's form; [`version`]: generations;
//! - [`json`]: lenient readers; [`kept`]: settings that come back unchanged;
//! - [`odata`]: `$select`, `$filter` forms, pages;
//! - [`pool`], [`node`], [`job`], [`job_schedule`], [`task`], [`file`],
//!   [`account`]: handlers, with the JSON of each resource in `*_json`;
//!   [`pool_info`]: the pool of a job.

pub mod account;
mod application;
pub mod auth;
pub mod call;
pub mod common;
pub mod errors;
pub mod file;
pub mod job;
pub mod job_json;
pub mod job_node_json;
pub mod job_schedule;
pub mod job_schedule_json;
pub mod json;
pub mod kept;
pub mod node;
pub mod node_json;
pub mod odata;
pub mod pool;
pub mod pool_info;
pub mod pool_json;
pub mod reply;
pub mod router;
pub mod task;
pub mod task_json;
pub mod version;
pub mod view;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use http::request::Parts;
use http_body_util::BodyExt;
use kiln_error::{Error, Kind};
use kiln_telemetry::propagation;
use kiln_time::Timestamp;
use tracing::Instrument;

use crate::accounts::{Accounts, Caller};
use crate::backend::Backends;
use crate::config::Config;
use crate::job_access;
use crate::limit::AccountLimits;
use crate::metrics::Metrics;

use call::{Call, Query};
use reply::Reply;
use router::Operation;
use version::Version;

/// Largest body of a request. Clients halve a collection of tasks that is
/// larger, and try again.
pub const MAX_BODY: usize = 1_048_576;
/// What is read and dropped of a body that is not wanted, so that a client that
/// still sends sees the answer and not a broken connection.
const MAX_DRAIN: usize = 64 * 1_048_576;
/// How long a wanted body may take...
const BODY_TIME: Duration = Duration::from_secs(60);
/// ...and the services behind, until the head of the answer.
const ANSWER_TIME: Duration = Duration::from_secs(60);
/// How long a body that is not wanted may take.
const DRAIN_TIME: Duration = Duration::from_secs(10);

/// The front; clones share everything.
#[derive(Debug, Clone)]
pub struct Rest {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    accounts: Accounts,
    backends: Backends,
    limits: AccountLimits,
    metrics: Metrics,
}

impl Rest {
    /// With everything it calls.
    pub fn new(
        config: Config,
        accounts: Accounts,
        backends: Backends,
        limits: AccountLimits,
        metrics: Metrics,
    ) -> Self {
        Self { inner: Arc::new(Inner { config, accounts, backends, limits, metrics }) }
    }

    /// Answers one request.
    pub async fn answer(&self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let routed = router::route(parts.method.as_str(), parts.uri.path());
        let operation = routed.as_ref().map_or("other", |(operation, _)| operation.name());
        let span = tracing::info_span!(
            "rest",
            otel.name = operation,
            otel.kind = "server",
            service = "gateway",
            account = tracing::field::Empty,
        );
        propagation::continue_from_headers(&span, &parts.headers);
        let metrics = self.inner.metrics.clone();
        let response = self.respond(parts, body, routed).instrument(span).await;
        metrics.answered("rest", operation, response.status().as_str());
        response
    }

    async fn respond(&self, parts: Parts, body: Body, routed: Result<(Operation, Vec<String>), Error>) -> Response {
        let head = reply::Head::of(&parts, &self.inner.config);
        match self.outcome(&parts, &head, body, routed).await {
            Ok(reply) => head.finish(reply),
            Err(error) => errors::respond(&head, error),
        }
    }

    async fn outcome(
        &self,
        parts: &Parts,
        head: &reply::Head,
        body: Body,
        routed: Result<(Operation, Vec<String>), Error>,
    ) -> Result<Reply, Error> {
        let prepared = async {
            let (operation, arguments) = routed?;
            let Caller { account, job } = auth::authenticate(&self.inner.accounts, parts, Timestamp::now()).await?;
            tracing::Span::current().record("account", account.name.as_str());
            if let Some(scope) = &job {
                scope.check_operation(operation, arguments.first().map(String::as_str))?;
            }
            let place = self.inner.limits.enter(&account)?;
            let query = Query::parse(parts.uri.query().unwrap_or_default());
            let version = Version::parse(query.require("api-version")?)?;
            Ok((operation, arguments, account, job, place, query, version))
        };
        let (operation, arguments, account, job, place, query, version) = match prepared.await {
            Ok(prepared) => prepared,
            Err(error) => {
                drain(body).await;
                return Err(error);
            }
        };
        let late = |what: &str| Error::new(Kind::DeadlineExceeded, "OperationTimedOut", what);
        let body = tokio::time::timeout(BODY_TIME, read_body(body, parts))
            .await
            .map_err(|_| late("the body took too long to arrive"))??;
        let call = Call {
            backends: self.inner.backends.clone(),
            account,
            place: Arc::new(place),
            arguments,
            query,
            version,
            base: head.base.clone(),
            request_id: head.request_id.clone(),
            path: parts.uri.path().to_owned(),
            raw_query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers.clone(),
            body,
        };
        let answer = async {
            if let Some(scope) = &job {
                job_access::check_job(&call.backends, call.account.name.as_str(), scope).await?;
            }
            Box::pin(dispatch(operation, &call)).await
        };
        tokio::time::timeout(ANSWER_TIME, Box::pin(answer))
            .await
            .map_err(|_| late("the service did not answer in time; it may or may not have happened"))?
    }
}

async fn dispatch(operation: Operation, call: &Call) -> Result<Reply, Error> {
    use Operation as O;
    match operation {
        O::ApplicationList => application::list(call).await,
        O::ApplicationGet => application::get(call).await,
        O::SupportedImages => account::list_supported_images(call),
        O::NodeAgentSkus => account::list_node_agent_skus(call),
        O::NodeCounts => node::counts(call).await,
        O::PoolAdd => pool::add(call).await,
        O::PoolList => pool::list(call).await,
        O::PoolGet => pool::get(call).await,
        O::PoolExists => pool::exists(call).await,
        O::PoolDelete => pool::delete(call).await,
        O::PoolPatch => pool::patch(call).await,
        O::PoolUpdateProperties => pool::update_properties(call).await,
        O::PoolResize => pool::resize(call).await,
        O::PoolStopResize => pool::stop_resize(call).await,
        O::PoolRemoveNodes => pool::remove_nodes(call).await,
        O::NodeList => node::list(call).await,
        O::NodeGet => node::get(call).await,
        O::NodeReboot => node::reboot(call).await,
        O::NodeDisableScheduling => node::disable_scheduling(call).await,
        O::NodeEnableScheduling => node::enable_scheduling(call).await,
        O::NodeRemoteLogin => node::remote_login(call).await,
        O::JobAdd => job::add(call).await,
        O::JobList => job::list(call).await,
        O::JobGet => job::get(call).await,
        O::JobPatch => job::patch(call).await,
        O::JobPut => job::put(call).await,
        O::JobDelete => job::delete(call).await,
        O::JobDisable => job::disable(call).await,
        O::JobEnable => job::enable(call).await,
        O::JobTerminate => job::terminate(call).await,
        O::JobTaskCounts => job::task_counts(call).await,
        O::JobPrepRelease => job::preparation_status(call).await,
        O::JobScheduleAdd => job_schedule::add(call).await,
        O::JobScheduleList => job_schedule::list(call).await,
        O::JobScheduleGet => job_schedule::get(call).await,
        O::JobScheduleExists => job_schedule::exists(call).await,
        O::JobSchedulePatch => job_schedule::patch(call).await,
        O::JobSchedulePut => job_schedule::put(call).await,
        O::JobScheduleDelete => job_schedule::delete(call).await,
        O::JobScheduleDisable => job_schedule::disable(call).await,
        O::JobScheduleEnable => job_schedule::enable(call).await,
        O::JobScheduleTerminate => job_schedule::terminate(call).await,
        O::JobScheduleJobs => job_schedule::jobs(call).await,
        O::TaskAdd => task::add(call).await,
        O::TaskAddCollection => task::add_collection(call).await,
        O::TaskList => task::list(call).await,
        O::TaskGet => task::get(call).await,
        O::TaskPut => task::put(call).await,
        O::TaskDelete => task::delete(call).await,
        O::TaskTerminate => task::terminate(call).await,
        O::TaskReactivate => task::reactivate(call).await,
        O::TaskSubtasks => task::subtasks(call).await,
        O::TaskFileList | O::NodeFileList => file::list(operation, call).await,
        O::TaskFileGet | O::NodeFileGet => file::get(operation, call).await,
        O::TaskFileHead | O::NodeFileHead => file::head(operation, call).await,
        O::TaskFileDelete | O::NodeFileDelete => file::delete(operation, call).await,
        O::Unavailable(what) => Err(Error::new(
            Kind::Unimplemented,
            "NotImplemented",
            format!("{what}: this server does not do that (yet)"),
        )),
    }
}

/// The whole body, if it is not larger than [`MAX_BODY`].
async fn read_body(mut body: Body, parts: &Parts) -> Result<Bytes, Error> {
    let too_large = || {
        Error::new(Kind::TooLarge, "RequestBodyTooLarge", format!("the body is larger than {MAX_BODY} bytes"))
            .with_detail("MaxLimit", MAX_BODY.to_string())
    };
    let announced = parts
        .headers
        .get(http::header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<usize>().ok())
        .unwrap_or(0);
    if announced > MAX_BODY {
        drain(body).await;
        return Err(too_large());
    }
    let mut read = Vec::with_capacity(announced);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Error::new(Kind::InvalidArgument, "InvalidRequestBody", format!("the body broke off: {error}"))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if read.len() + data.len() > MAX_BODY {
            drain(body).await;
            return Err(too_large());
        }
        read.extend_from_slice(&data);
    }
    Ok(read.into())
}

/// Reads a body that nobody wants, within limits.
async fn drain(mut body: Body) {
    let reading = async {
        let mut dropped = 0;
        while let Some(Ok(frame)) = body.frame().await {
            dropped += frame.data_ref().map_or(0, Bytes::len);
            if dropped > MAX_DRAIN {
                return;
            }
        }
    };
    // A client that is slower than this sees its connection close.
    let _ = tokio::time::timeout(DRAIN_TIME, reading).await;
}
