//! The control loop: registration, then the control stream to pool-svc, again
//! and again until the life of the agent ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_error::{Error, Kind};
use kiln_proto::common::v1::DeallocationOption;
use kiln_proto::pool::v1::control_down::Message as Down;
use kiln_proto::pool::v1::control_up::Message as Up;
use kiln_proto::pool::v1::file_request::Operation;
use kiln_proto::pool::v1::node_control_service_client::NodeControlServiceClient;
use kiln_proto::pool::v1::{ControlDown, ControlUp, Heartbeat, RegisterRequest};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::agent::{Agent, Outcome, Registration};
use crate::files;
use crate::machine::{self, Load};
use crate::stage::transfer::jittered;
use crate::trust;
use crate::wire::{self, NodeAuth};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A registration that is refused this often in a row will not be accepted.
const MAX_REFUSALS: u32 = 5;
/// Counters change often; they are sent at most this often.
const REPORT_PAUSE: Duration = Duration::from_millis(200);
/// Heartbeats without an answer after which the stream counts as broken.
const MISSED_HEARTBEATS: u64 = 4;
/// File requests that are worked on at the same time.
const MAX_FILE_REQUESTS: usize = 32;
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(10);

type Client = NodeControlServiceClient<InterceptedService<Channel, NodeAuth>>;

/// Registers, then keeps the control stream until `agent.closing`.
pub async fn control_loop(agent: Arc<Agent>, registered: CancellationToken) {
    let transfers = Transfers::default();
    let mut pause = FIRST_PAUSE;
    let mut has_token = false;
    while !agent.closing.is_cancelled() {
        // A new one each time, for certificates that were replaced.
        let channel = trust::channel(&agent.config, &agent.config.join.control_endpoint, trust::POOL_SVC).await;
        let channel = match channel {
            Ok(channel) => channel,
            // Its files may be on the way to being replaced.
            Err(error) if error.kind() == Kind::FailedPrecondition => {
                tracing::warn!(%error, "pool-svc cannot be called; it is tried again");
                let waiting = tokio::time::sleep(jittered(LONGEST_PAUSE));
                agent.closing.run_until_cancelled(waiting).await;
                continue;
            }
            Err(error) => {
                agent.finish(Outcome::GaveUp(format!("pool-svc cannot be called: {error}")));
                agent.closing.cancelled().await;
                return;
            }
        };
        let client = NodeControlServiceClient::with_interceptor(channel.clone(), NodeAuth(agent.node_token.clone()));
        if !has_token {
            let closing = agent.closing.clone();
            let done = tokio::select! {
                done = register(&agent, &channel) => done,
                () = closing.cancelled() => return,
            };
            if let Err(reason) = done {
                agent.finish(Outcome::GaveUp(reason));
                agent.closing.cancelled().await;
                return;
            }
            has_token = true;
            registered.cancel();
        }
        match stream(&agent, client, &transfers, &mut pause).await {
            Ok(()) => tracing::debug!("the control stream has ended"),
            Err(status) => {
                let error = Error::from(status);
                tracing::debug!(%error, "the control stream is broken");
                // The token is too old, or pool-svc does not know this life.
                has_token = !matches!(error.kind(), Kind::Unauthenticated | Kind::PermissionDenied);
                if error.kind() == Kind::NotFound {
                    agent.finish(Outcome::Left("the pool does not have this node any more".to_owned()));
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => {}
            () = agent.closing.cancelled() => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Tries until it is registered.
///
/// # Errors
/// Why it never will be.
async fn register(agent: &Arc<Agent>, channel: &Channel) -> Result<(), String> {
    let join = &agent.config.join;
    let mut pause = FIRST_PAUSE;
    let mut refusals = 0;
    loop {
        let host = trust::first(&join.control_endpoint);
        let address = host
            .as_ref()
            .and_then(|url| Some((url.host_str()?.to_owned(), url.port_or_known_default()?)))
            .map_or_else(|| "127.0.0.1".to_owned(), |(host, port)| machine::own_address(&host, port));
        let mut request = tonic::Request::new(RegisterRequest {
            pool_id: join.pool_id.clone(),
            node_id: join.node_id.clone(),
            incarnation: agent.incarnation.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            ip_address: address,
            cpus: agent.machine.cpus,
            memory_bytes: agent.machine.memory_bytes,
            root_dir: agent.root.to_string_lossy().into_owned(),
        });
        request.set_timeout(Duration::from_secs(10));
        request.metadata_mut().insert(
            "authorization",
            wire::bearer(&join.join_token).map_err(|_| "the join token is not ASCII".to_owned())?,
        );
        match NodeControlServiceClient::new(channel.clone()).register(request).await {
            Ok(response) => {
                let response = response.into_inner();
                agent.renew_token(&response.node_token);
                agent.registered(Registration {
                    account: response.account,
                    work_endpoint: response.work_endpoint,
                    blob_endpoint: response.blob_endpoint,
                    batch_endpoint: response.batch_endpoint,
                    heartbeat_interval: wire::limit(response.heartbeat_interval.as_ref()).unwrap_or(DEFAULT_HEARTBEAT),
                    settings: response.settings.unwrap_or_default(),
                });
                agent.heard();
                tracing::info!(pool.id = join.pool_id, node.id = join.node_id, agent.incarnation, "registered");
                return Ok(());
            }
            Err(status) => {
                let error = Error::from(status);
                let refused = matches!(
                    error.kind(),
                    Kind::Unauthenticated | Kind::PermissionDenied | Kind::NotFound | Kind::InvalidArgument
                );
                refusals = if refused { refusals + 1 } else { 0 };
                if refusals >= MAX_REFUSALS {
                    return Err(format!("pool-svc does not accept this node: {error}"));
                }
                tracing::info!(%error, "registration failed; it is tried again");
            }
        }
        tokio::time::sleep(jittered(pause)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// File requests that are being answered.
#[derive(Debug, Clone)]
struct Transfers {
    running: Arc<Mutex<HashMap<String, CancellationToken>>>,
    permits: Arc<Semaphore>,
}

impl Default for Transfers {
    fn default() -> Self {
        Self { running: Arc::default(), permits: Arc::new(Semaphore::new(MAX_FILE_REQUESTS)) }
    }
}

/// One control stream from its first report to its end.
async fn stream(
    agent: &Arc<Agent>,
    mut client: Client,
    transfers: &Transfers,
    pause: &mut Duration,
) -> Result<(), tonic::Status> {
    let interval = agent.registration().heartbeat_interval;
    let (sender, receiver) = mpsc::channel(16);
    let up = |message| ControlUp { message: Some(message) };
    // Room for one: the channel is new.
    let _ = sender.try_send(up(Up::Report(agent.report())));
    let response = tokio::select! {
        response = client.control(ReceiverStream::new(receiver)) => response?,
        () = agent.closing.cancelled() => return Ok(()),
    };
    let mut inbound = response.into_inner();
    let mut heartbeat = tokio::time::interval(interval);
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut load = Load::default();
    let (mut sequence, mut acknowledged) = (0u64, 0u64);
    loop {
        tokio::select! {
            message = inbound.message() => {
                let Some(ControlDown { command_id, message }) = message? else { return Ok(()) };
                agent.heard();
                *pause = FIRST_PAUSE;
                match message {
                    Some(Down::HeartbeatAck(ack)) => {
                        acknowledged = acknowledged.max(ack.sequence);
                        if !ack.node_token.is_empty() {
                            agent.renew_token(&ack.node_token);
                        }
                    }
                    Some(Down::FileRequest(request)) => answer(agent, &client, transfers, request),
                    Some(command) => carry_out(agent, command_id, command),
                    None => {}
                }
            }
            _ = heartbeat.tick() => {
                if sequence >= acknowledged + MISSED_HEARTBEATS {
                    return Err(tonic::Status::unavailable("heartbeats are not answered"));
                }
                sequence += 1;
                let beat = Heartbeat {
                    sequence,
                    cpu_fraction: load.cpu_fraction(),
                    memory_used_bytes: machine::memory_used(),
                    disk_free_bytes: machine::disk_free(&agent.root),
                };
                if sender.send(up(Up::Heartbeat(beat))).await.is_err() {
                    return Ok(());
                }
            }
            () = report_due(agent) => {
                if sender.send(up(Up::Report(agent.report()))).await.is_err() {
                    return Ok(());
                }
            }
            () = agent.closing.cancelled() => {
                // Best effort: what the commands have done.
                let _ = sender.try_send(up(Up::Report(agent.report())));
                drop(sender);
                // Until the service has read it all and closes the stream.
                let rest = async { while let Ok(Some(_)) = inbound.message().await {} };
                let _ = tokio::time::timeout(Duration::from_millis(500), rest).await;
                return Ok(());
            }
        }
    }
}

/// Completes when a report should be sent: at once if something important has
/// changed, a moment later for counters.
async fn report_due(agent: &Agent) {
    tokio::select! {
        biased;
        () = agent.control_due.notified() => {}
        () = agent.control_soon.notified() => {
            tokio::select! {
                () = agent.control_due.notified() => {}
                () = tokio::time::sleep(REPORT_PAUSE) => {}
            }
        }
    }
}

fn option(value: i32) -> DeallocationOption {
    DeallocationOption::try_from(value).unwrap_or(DeallocationOption::Unspecified)
}

fn carry_out(agent: &Arc<Agent>, id: u64, command: Down) {
    if id != 0 && id <= agent.done_command() {
        // Repeated, because our report was on its way.
        agent.control_due.notify_one();
        return;
    }
    match command {
        Down::DisableScheduling(command) => {
            tracing::info!(option = command.option().as_str_name(), "scheduling is disabled");
            agent.disable_scheduling(option(command.option));
            agent.command_done(id);
        }
        Down::EnableScheduling(_) => {
            tracing::info!("scheduling is enabled");
            agent.enable_scheduling();
            agent.command_done(id);
        }
        Down::Drain(command) => {
            tracing::info!(option = command.option().as_str_name(), "the node is drained");
            agent.drain(option(command.option), None);
            agent.command_done(id);
        }
        Down::Reboot(command) => {
            tracing::info!(option = command.option().as_str_name(), "the node is drained and begins a new life");
            // Done only when the new life reports.
            agent.drain(option(command.option), Some(id));
        }
        Down::Leave(command) => {
            agent.command_done(id);
            agent.finish(Outcome::Left(command.reason));
        }
        Down::HeartbeatAck(_) | Down::FileRequest(_) => {}
    }
}

fn answer(agent: &Arc<Agent>, client: &Client, transfers: &Transfers, request: kiln_proto::pool::v1::FileRequest) {
    let id = request.transfer_id.clone();
    let mut running = transfers.running.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(request.operation, Some(Operation::Cancel(_))) {
        if let Some(cancel) = running.remove(&id) {
            cancel.cancel();
        }
        return;
    }
    let cancel = agent.closing.child_token();
    running.insert(id.clone(), cancel.clone());
    drop(running);
    let (agent, client, transfers) = (agent.clone(), client.clone(), transfers.clone());
    kiln_telemetry::spawn(async move {
        let permit = transfers.permits.clone().try_acquire_owned();
        let work = files::answer(agent, client, request, cancel.clone(), permit.is_ok());
        tokio::select! {
            () = work => {}
            () = cancel.cancelled() => {}
        }
        transfers.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    });
}
