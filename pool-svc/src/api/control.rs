//! Calls of agents: registration, the control stream, answers about files.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use kiln_auth::token::{self, Claims, Principal};
use kiln_error::{Error, Kind};
use kiln_grpc::Caller;
use kiln_grpc::caller::now_seconds;
use kiln_proto::pool::v1::control_down::Message as DownMessage;
use kiln_proto::pool::v1::control_up::Message as UpMessage;
use kiln_proto::pool::v1::node_control_service_server::NodeControlService;
use kiln_proto::pool::v1::{self as wire, ControlDown};
use kiln_time::Timestamp;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::api::{convert, joining};
use crate::core::Core;
use crate::domain::agent::View;
use crate::domain::node::NodeEvent;
use crate::domain::{NodeName, Refused};
use crate::sessions::{Down, Opened};

/// A node token is valid this long; it is renewed at half of that.
const NODE_TOKEN: Duration = Duration::from_secs(3600);
/// Reports that only count tasks are written at most this often per node.
const ACTIVITY_PAUSE: Duration = Duration::from_millis(250);
/// Longest incarnation an agent may choose.
const MAX_INCARNATION: usize = 128;

#[derive(Debug)]
pub struct ControlApi {
    pub core: Arc<Core>,
}

pub(super) fn node_name(account: &str, pool: &str, node: &str) -> Result<NodeName, Error> {
    Ok(convert::pool_name(account, "pool_id", pool)?.node(&convert::node_id("node_id", node)?))
}

/// A node token with the time it ends.
fn mint(core: &Core, name: &NodeName, incarnation: &str) -> (String, Option<prost_types::Timestamp>) {
    let expires = now_seconds() + NODE_TOKEN.as_secs().cast_signed();
    let principal = Principal::Node {
        account: name.account.as_str().to_owned(),
        pool: name.pool.as_str().to_owned(),
        node: name.node.as_str().to_owned(),
        incarnation: incarnation.to_owned(),
    };
    let token = token::mint(&core.cluster_key, &Claims { principal, expires });
    (token, Some(kiln_proto::time::timestamp(expires.saturating_mul(1_000_000))))
}

#[tonic::async_trait]
impl NodeControlService for ControlApi {
    async fn register(
        &self,
        request: Request<wire::RegisterRequest>,
    ) -> Result<Response<wire::RegisterResponse>, Status> {
        Ok(Response::new(register(&self.core, request).await?))
    }

    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::JoinResponse>, Status> {
        Ok(Response::new(joining::join(&self.core, request).await?))
    }

    async fn leave(&self, request: Request<wire::LeaveRequest>) -> Result<Response<wire::LeaveResponse>, Status> {
        Ok(Response::new(joining::leave(&self.core, request).await?))
    }

    type ControlStream = Pin<Box<dyn Stream<Item = Down> + Send>>;

    async fn control(
        &self,
        request: Request<Streaming<wire::ControlUp>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let caller = Caller::of(&request)?;
        let (account, pool, node) = caller.node()?;
        let name = node_name(account, pool, node)?;
        let up = request.into_inner();
        let Opened { stream, down, sender, end } = self.core.sessions.open(name.clone(), Timestamp::now());
        let session = Session {
            core: self.core.clone(),
            caller,
            name,
            stream,
            sender,
            end,
            written: None,
            pending: None,
            renew_token: Instant::now(),
        };
        kiln_telemetry::spawn(session.run(up));
        Ok(Response::new(Box::pin(ReceiverStream::new(down))))
    }

    async fn answer_file(
        &self,
        request: Request<Streaming<wire::FileAnswer>>,
    ) -> Result<Response<wire::AnswerFileResponse>, Status> {
        answer_file(&self.core, request).await?;
        Ok(Response::new(wire::AnswerFileResponse {}))
    }
}

async fn register(core: &Core, request: Request<wire::RegisterRequest>) -> Result<wire::RegisterResponse, Error> {
    let caller = Caller::of(&request)?;
    let message = request.get_ref();
    let (name, record) = joining::invited(core, &caller).await?;
    let asked = node_name(name.account.as_str(), &message.pool_id, &message.node_id)?;
    if asked != name {
        return Err(denied("the token is for another node"));
    }
    if record.is_none() {
        return Err(unknown_node(&name));
    }
    if message.incarnation.is_empty() || message.incarnation.len() > MAX_INCARNATION {
        let why = format!("must have 1 to {MAX_INCARNATION} characters");
        return Err(Error::invalid_property("incarnation", &message.incarnation, why));
    }
    let spec = convert::settings(&core.pool(&name.pool_name()).await?)?;
    let event = NodeEvent::Registered {
        incarnation: message.incarnation.clone(),
        facts: convert::facts(message),
        start_task: spec.start_task.as_ref().map(Message::encode_to_vec).unwrap_or_default(),
    };
    let (pool, node) = core.node_event(&name, event, "registered").await?.ok_or_else(|| unknown_node(&name))?;
    let (node_token, node_token_expires) = mint(core, &name, &message.incarnation);
    let account = name.account.as_str();
    Ok(wire::RegisterResponse {
        account: account.to_owned(),
        node_token,
        node_token_expires,
        work_endpoint: core.config.work_endpoint.clone(),
        blob_endpoint: format!("{}/{account}", core.config.public_blob_endpoint),
        batch_endpoint: core.config.batch_endpoint.clone(),
        heartbeat_interval: convert::duration(core.config.heartbeat_interval),
        settings: Some(convert::node_settings(spec, &node, pool.task_slots)),
    })
}

pub(super) fn denied(message: &str) -> Error {
    Error::new(Kind::PermissionDenied, "InsufficientAccountPermissions", message)
}

pub(super) fn unknown_node(name: &NodeName) -> Error {
    Refused::NodeNotFound { pool: name.pool.clone(), node: name.node.clone() }.into()
}

/// One control stream.
struct Session {
    core: Arc<Core>,
    caller: Caller,
    name: NodeName,
    stream: u64,
    sender: mpsc::Sender<Down>,
    end: CancellationToken,
    /// The latest report that was written, and when.
    written: Option<(wire::NodeReport, Instant)>,
    /// A report that waits because it only counts tasks.
    pending: Option<wire::NodeReport>,
    renew_token: Instant,
}

impl Session {
    async fn run(mut self, mut up: Streaming<wire::ControlUp>) {
        let ended = self.serve(&mut up).await;
        if self.core.sessions.close(&self.name, self.stream) {
            self.core.transfers.give_up(&self.name);
        }
        if let Err(error) = ended {
            tracing::debug!(account = %self.name.account, pool.id = %self.name.pool, node.id = %self.name.node,
                %error, "a control stream ends");
            // If its queue is full, the agent does not read anyway.
            let _ = self.sender.try_send(Err(Status::from(error)));
        }
        // Its agent may be gone, which the provider would show.
        self.core.wakeups.wake(self.name.pool_name());
    }

    async fn serve(&mut self, up: &mut Streaming<wire::ControlUp>) -> Result<(), Error> {
        let end = self.end.clone();
        loop {
            let write_at = self.pending.as_ref().map(|_| self.next_write());
            let message = tokio::select! {
                biased;
                () = end.cancelled() => {
                    return Err(Error::new(Kind::Aborted, "StreamReplaced", "a newer stream, or none, takes its place"));
                }
                () = until(write_at) => {
                    if let Some(report) = self.pending.take() {
                        self.write(report).await?;
                    }
                    continue;
                }
                message = up.message() => message?,
            };
            let Some(message) = message.and_then(|message| message.message) else { return self.flush().await };
            let now = Timestamp::now();
            if let Some(before) = self.core.sessions.heard(&self.name, self.stream, now)
                && now.since(before) >= self.core.config.silence_limit()
            {
                // It may count as lost; it is not.
                self.core.wakeups.wake(self.name.pool_name());
            }
            match message {
                UpMessage::Report(report) => self.take_in(report).await?,
                UpMessage::Heartbeat(heartbeat) => self.acknowledge(&heartbeat)?,
            }
        }
    }

    fn next_write(&self) -> Instant {
        self.written.as_ref().map_or_else(Instant::now, |(_, time)| *time + ACTIVITY_PAUSE)
    }

    /// The last thing an agent said must not be lost with its stream.
    async fn flush(&mut self) -> Result<(), Error> {
        match self.pending.take() {
            Some(report) => self.write(report).await,
            None => Ok(()),
        }
    }

    /// Writes a report now, or later if it says little and the last one is young.
    async fn take_in(&mut self, report: wire::NodeReport) -> Result<(), Error> {
        let can_wait = self.written.as_ref().is_some_and(|(last, _)| only_counts(last, &report));
        if can_wait && Instant::now() < self.next_write() {
            self.pending = Some(report);
            return Ok(());
        }
        self.pending = None;
        self.write(report).await
    }

    async fn write(&mut self, report: wire::NodeReport) -> Result<(), Error> {
        self.caller.require_incarnation(&report.incarnation)?;
        let view: View = convert::view(&report)?;
        let event =
            NodeEvent::Reported { incarnation: report.incarnation.clone(), view, report: report.encode_to_vec() };
        let drained = report.phase == wire::AgentPhase::Drained as i32;
        match self.core.node_event(&self.name, event, "reported").await {
            Ok(Some(_)) => {
                if drained {
                    self.core.wakeups.wake(self.name.pool_name());
                }
                self.written = Some((report, Instant::now()));
                Ok(())
            }
            Ok(None) => {
                self.leave("the pool does not have this node");
                Err(unknown_node(&self.name))
            }
            Err(error) if error.reason() == "StaleIncarnation" => {
                self.leave("a newer agent has this node");
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    fn leave(&self, reason: &str) {
        let leave = DownMessage::Leave(wire::Leave { reason: reason.to_owned() });
        // The stream's end tells the agent too.
        let _ = self.sender.try_send(Ok(ControlDown { command_id: 0, message: Some(leave) }));
    }

    fn acknowledge(&mut self, heartbeat: &wire::Heartbeat) -> Result<(), Error> {
        let mut ack = wire::HeartbeatAck { sequence: heartbeat.sequence, ..wire::HeartbeatAck::default() };
        // Only for an agent whose report was accepted: the node is there, and this is its present life.
        if let Some((report, _)) = self.written.as_ref().filter(|_| Instant::now() >= self.renew_token) {
            (ack.node_token, ack.node_token_expires) = mint(&self.core, &self.name, &report.incarnation);
            self.renew_token = Instant::now() + NODE_TOKEN / 2;
        }
        let message = Some(DownMessage::HeartbeatAck(ack));
        match self.sender.try_send(Ok(ControlDown { command_id: 0, message })) {
            // The next one will do.
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                Err(Error::new(Kind::Cancelled, "StreamClosed", "the agent does not listen any more"))
            }
        }
    }
}

/// Whether two reports differ in numbers of tasks only.
fn only_counts(last: &wire::NodeReport, next: &wire::NodeReport) -> bool {
    last.incarnation == next.incarnation
        && last.phase == next.phase
        && last.scheduling_state == next.scheduling_state
        && last.start_task_info == next.start_task_info
        && last.errors == next.errors
        && last.boot_time == next.boot_time
        && last.done_command_id == next.done_command_id
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Passes the parts of an answer to whoever asked; waits when they are slow.
async fn answer_file(core: &Core, request: Request<Streaming<wire::FileAnswer>>) -> Result<(), Error> {
    let caller = Caller::of(&request)?;
    let (account, pool, node) = caller.node()?;
    let name = node_name(account, pool, node)?;
    let mut answers = request.into_inner();
    let Some(first) = answers.message().await? else {
        return Err(Error::missing_property("transfer_id"));
    };
    let gone = || Error::new(Kind::Cancelled, "TransferCancelled", "nobody waits for this answer any more");
    let parts = core.transfers.answer(&name, &first.transfer_id).ok_or_else(gone)?;
    let mut next = Some(first);
    loop {
        let Some(answer) = next else { return Ok(()) };
        if let Some(part) = answer.part {
            parts.send(part).await.map_err(|_| gone())?;
        }
        next = tokio::select! {
            answer = answers.message() => answer?,
            () = parts.closed() => return Err(gone()),
        };
    }
}
