//! The work stream of the agents.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use kiln_error::{Error, Kind};
use kiln_grpc::Caller;
use kiln_ids::{AccountName, NodeId, PoolId};
use kiln_proto::common::v1::DeallocationOption;
use kiln_proto::job::v1 as wire;
use kiln_proto::job::v1::work_service_server::WorkService;
use kiln_proto::time::micros;
use kiln_time::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::domain::needs::Capacity;
use crate::domain::task::{AttemptEnd, EndCause};
use crate::scheduler::core::{Conn, NodeStatus, RunningTasks};
use crate::scheduler::link::OUTGOING;
use crate::scheduler::note::{Hello, Note, Report, Up};
use crate::scheduler::registry::{Place, Registry};

/// An agent says hello at once.
const HELLO_PATIENCE: Duration = Duration::from_secs(30);
/// And goes when it is sent elsewhere.
const REDIRECT_PATIENCE: Duration = Duration::from_secs(5);

/// `WorkService`.
#[derive(Debug, Clone)]
pub struct Work {
    /// The schedulers.
    pub registry: Arc<Registry>,
    /// Ends all streams, so that a stop of the service does not wait for agents.
    pub shutdown: CancellationToken,
}

fn invalid(field: &str, why: impl Into<String>) -> Error {
    Error::invalid_property(field, "", why)
}

#[tonic::async_trait]
impl WorkService for Work {
    type WorkStream = BoxStream<'static, Result<wire::WorkDown, Status>>;

    async fn work(&self, request: Request<Streaming<wire::WorkUp>>) -> Result<Response<Self::WorkStream>, Status> {
        let caller = Caller::of(&request)?;
        let (account, pool, node) = caller.node()?;
        let claims = (account.to_owned(), pool.to_owned(), node.to_owned());
        let mut up = request.into_inner();
        let (out, down) = mpsc::channel(OUTGOING);
        let work = self.clone();
        let closer = self.shutdown.child_token();
        let ended = closer.clone();
        kiln_telemetry::spawn(async move {
            if let Err(error) = work.serve((caller, claims), &mut up, out, closer).await {
                tracing::warn!(%error, "a work stream was refused");
            }
        });
        // The reader tells by closing `out` that the stream is over.
        let messages = ReceiverStream::new(down).map(Ok).take_until(ended.cancelled_owned());
        Ok(Response::new(Box::pin(messages)))
    }
}

impl Work {
    async fn serve(
        &self,
        claims: (Caller, (String, String, String)),
        up: &mut Streaming<wire::WorkUp>,
        out: mpsc::Sender<wire::WorkDown>,
        closer: CancellationToken,
    ) -> Result<(), Error> {
        let result = self.greet_and_read(claims, up, out, &closer).await;
        closer.cancel();
        result
    }

    async fn greet_and_read(
        &self,
        (caller, (account, pool, node)): (Caller, (String, String, String)),
        up: &mut Streaming<wire::WorkUp>,
        out: mpsc::Sender<wire::WorkDown>,
        closer: &CancellationToken,
    ) -> Result<(), Error> {
        let first = tokio::select! {
            first = tokio::time::timeout(HELLO_PATIENCE, up.message()) => first,
            () = closer.cancelled() => return Ok(()),
        };
        let first = match first {
            Ok(Ok(Some(message))) => message.message,
            Ok(Ok(None)) | Ok(Err(_)) | Err(_) => None,
        };
        let Some(wire::work_up::Message::Hello(hello)) = first else {
            return Err(invalid("hello", "must be the first message of a work stream"));
        };
        let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
        if !same(&hello.account, &account) || !same(&hello.pool_id, &pool) || !same(&hello.node_id, &node) {
            return Err(Error::new(
                Kind::PermissionDenied,
                "InsufficientAccountPermissions",
                format!("the token is that of node {node} in pool {pool}"),
            ));
        }
        caller.require_incarnation(&hello.incarnation)?;
        let account = AccountName::parse(&account).map_err(|why| invalid("account", why.to_string()))?;
        let pool = PoolId::parse(&pool).map_err(|why| invalid("pool_id", why.to_string()))?;
        let node = NodeId::parse(&node).map_err(|why| invalid("node_id", why.to_string()))?;
        let actor = match self.registry.find(&account, &pool).await? {
            Place::Here(actor) => actor,
            Place::There(owner) => return redirect(owner.endpoint, up, &out, closer).await,
        };
        let conn = self.registry.new_conn();
        let status = status(hello.status.as_ref())?;
        let ended = i32::from(wire::AttemptPhase::Ended);
        let views = hello.attempts.into_iter();
        let attempts = views.filter_map(|view| Some((view.key?, view.phase == ended))).collect();
        let hello = Hello {
            conn,
            node: Arc::new(node),
            incarnation: hello.incarnation,
            stream: hello.stream,
            status,
            ip: hello.ip_address,
            attempts,
            out,
            closer: closer.clone(),
        };
        if actor.send(Note::Hello(Box::new(hello))).await.is_err() {
            return Ok(());
        }
        let result = self.read(up, conn, &actor, closer).await;
        // Fails only if the service stops or has lost the pool.
        let _ = actor.send(Note::Up(conn, Up::Gone)).await;
        result
    }

    async fn read(
        &self,
        up: &mut Streaming<wire::WorkUp>,
        conn: Conn,
        actor: &mpsc::Sender<Note>,
        closer: &CancellationToken,
    ) -> Result<(), Error> {
        loop {
            let message = tokio::select! {
                message = up.message() => message,
                () = closer.cancelled() => return Ok(()),
            };
            let message = match message {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(()),
                Err(status) => {
                    tracing::debug!(%status, "a work stream broke");
                    return Ok(());
                }
            };
            let note = match message.message {
                None => continue,
                Some(wire::work_up::Message::Hello(_)) => {
                    return Err(invalid("hello", "is only the first message of a work stream"));
                }
                Some(wire::work_up::Message::LeaseRequest(lease)) => Up::Lease(lease.sequence),
                Some(wire::work_up::Message::Status(new)) => Up::Status(status(Some(&new))?, new.version),
                Some(wire::work_up::Message::Goodbye(wire::Goodbye {})) => Up::Goodbye,
                Some(wire::work_up::Message::JobNodeReports(reports)) => Up::JobNodes(
                    reports.reports.into_iter().filter_map(|report| Some((report.key?, report.info?))).collect(),
                ),
                Some(wire::work_up::Message::Reports(reports)) => {
                    Up::Reports(reports.reports.into_iter().filter_map(report).collect())
                }
            };
            if actor.send(Note::Up(conn, note)).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Sends the agent to the replica that has its pool. The stream is left open until
/// the agent has gone, so that it gets the word.
async fn redirect(
    endpoint: String,
    up: &mut Streaming<wire::WorkUp>,
    out: &mpsc::Sender<wire::WorkDown>,
    closer: &CancellationToken,
) -> Result<(), Error> {
    tracing::debug!(endpoint, "an agent is sent to the replica that schedules its pool");
    let message = Some(wire::work_down::Message::Redirect(wire::Redirect { endpoint }));
    if out.send(wire::WorkDown { message }).await.is_err() {
        return Ok(());
    }
    let gone = async { while let Ok(Some(_)) = up.message().await {} };
    tokio::select! {
        // Longer than it needs; it ends one way or the other.
        _ = tokio::time::timeout(REDIRECT_PATIENCE, gone) => {}
        () = closer.cancelled() => {}
    }
    Ok(())
}

fn status(status: Option<&wire::WorkerStatus>) -> Result<NodeStatus, Error> {
    let status = status.ok_or_else(|| Error::missing_property("status"))?;
    let slots = u16::try_from(status.task_slots).map_err(|_| invalid("task_slots", "must be between 0 and 65535"))?;
    let running_tasks = match status.running_tasks() {
        DeallocationOption::Unspecified | DeallocationOption::Requeue => RunningTasks::Requeue,
        DeallocationOption::Terminate => RunningTasks::Terminate,
        DeallocationOption::TaskCompletion | DeallocationOption::RetainedData => RunningTasks::Wait,
    };
    Ok(NodeStatus {
        slots,
        accepting: status.accepting,
        running_tasks,
        pack: status.pack,
        by_creation: status.order_jobs_by_creation,
        dedicated: status.is_dedicated,
        capacity: Capacity::of(status.resources.as_ref()),
    })
}

/// A report that says nothing is dropped: there is nothing to acknowledge.
fn report(report: wire::AttemptReport) -> Option<(wire::AttemptKey, Report)> {
    let time = |time: &prost_types::Timestamp| Timestamp::from_micros(micros(time));
    let what = match report.what? {
        wire::attempt_report::What::Started(started) => {
            Report::Started(started.start_time.as_ref().map_or_else(Timestamp::now, time))
        }
        wire::attempt_report::What::Ended(ended) => {
            let cause = match ended.cause() {
                wire::EndCause::Unspecified | wire::EndCause::Exited => EndCause::Exited,
                wire::EndCause::PreProcessingError => EndCause::PreProcessingError,
                wire::EndCause::FileUploadError => EndCause::FileUploadError,
                wire::EndCause::WallClockExpired => EndCause::WallClockExpired,
                wire::EndCause::Stopped => EndCause::Stopped,
                wire::EndCause::AgentFailure => EndCause::AgentFailure,
                wire::EndCause::PreparationFailed => EndCause::PreparationFailed,
                wire::EndCause::NotStarted => EndCause::NotStarted,
            };
            Report::Ended(AttemptEnd {
                start: ended.start_time.as_ref().map(time),
                end: ended.end_time.as_ref().map_or_else(Timestamp::now, time),
                exit_code: ended.exit_code,
                failure: ended.failure,
                cause,
                outputs_kept: ended.outputs_kept,
            })
        }
        wire::attempt_report::What::Ready(wire::AttemptReady {}) => Report::Ready,
    };
    Some((report.key?, what))
}
