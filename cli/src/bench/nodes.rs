//! Simulated nodes: agents without processes.
//!
//! Each speaks the real work stream (hello, lease, assignments, reports,
//! acknowledgements) and, with heartbeats, the real control stream. An
//! assignment is reported as started and as ended at once. They are not made by
//! pool-svc and have no record there: they hold node tokens signed with the
//! deployment's key. Up to [`CONNECTIONS`] each has a connection of its own;
//! more share them, because 10,000 of each kind would be more open files than a
//! machine usually allows.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use kiln_auth::token::Principal;
use kiln_grpc::channel::TokenAuth;
use kiln_proto::job::v1::attempt_report::What;
use kiln_proto::job::v1::work_down::Message as Down;
use kiln_proto::job::v1::work_service_client::WorkServiceClient;
use kiln_proto::job::v1::work_up::Message as Up;
use kiln_proto::job::v1::{
    AttemptEnded, AttemptKey, AttemptReport, AttemptStarted, EndCause, LeaseRequest, Reports, WorkDown, WorkUp,
    WorkerHello, WorkerStatus,
};
use kiln_proto::pool::v1::control_up::Message as ControlUpMessage;
use kiln_proto::pool::v1::node_control_service_client::NodeControlServiceClient;
use kiln_proto::pool::v1::{ControlUp, Heartbeat};
use kiln_time::Timestamp;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::server::Inside;
use crate::failure::Outcome;

/// Connections of each kind at most.
const CONNECTIONS: usize = 100;
/// Nodes say that they live this often, as pool-svc tells real ones.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Messages that may wait to be sent.
const OUTGOING: usize = 64;
const TOKEN_SECONDS: i64 = 3600;
const MAX_MESSAGE: usize = 64 * 1024 * 1024;
/// All nodes together may take so long until they are welcome.
const WELCOME: Duration = Duration::from_secs(120);

/// Nodes to simulate.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Their pool; it need not exist.
    pub pool: String,
    /// How many.
    pub nodes: usize,
    /// Slots of each.
    pub slots: i32,
    /// Whether they have control streams, too.
    pub heartbeats: bool,
}

/// What simulated nodes have seen.
#[derive(Debug, Default)]
pub struct Seen {
    welcomes: AtomicUsize,
    acknowledged: AtomicUsize,
    heartbeats: AtomicU64,
    broken: Mutex<Option<String>>,
    changed: Notify,
    /// When results of single tasks were acknowledged, if somebody asks.
    ends: Mutex<Option<HashMap<String, Instant>>>,
}

impl Seen {
    /// Results that job-svc has acknowledged as durable.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Heartbeats that pool-svc has answered.
    pub fn heartbeats(&self) -> u64 {
        self.heartbeats.load(Ordering::Relaxed)
    }

    /// From now on the moment of every acknowledgement is kept.
    pub fn keep_ends(&self) {
        *self.ends.lock().unwrap_or_else(PoisonError::into_inner) = Some(HashMap::new());
    }

    /// The moments kept so far, by task.
    pub fn take_ends(&self) -> HashMap<String, Instant> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).replace(HashMap::new()).unwrap_or_default()
    }

    fn acks(&self, keys: &[AttemptKey]) {
        if let Some(ends) = &mut *self.ends.lock().unwrap_or_else(PoisonError::into_inner) {
            let now = Instant::now();
            ends.extend(keys.iter().map(|key| (format!("{}/{}", key.job_id, key.task_id), now)));
        }
        self.acknowledged.fetch_add(keys.len(), Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    fn broke(&self, why: String) {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        self.changed.notify_waiters();
    }

    /// Waits until `holds`.
    ///
    /// # Errors
    /// If a stream of a node has ended.
    pub async fn until(&self, holds: impl Fn(&Self) -> bool) -> Outcome {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(why) = self.broken.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return Err(anyhow::anyhow!("a simulated node lost its stream: {why}").into());
            }
            if holds(self) {
                return Ok(());
            }
            changed.await;
        }
    }
}

/// Simulated nodes; they end when this is dropped.
#[derive(Debug)]
pub struct Fleet {
    /// What they have seen.
    pub seen: Arc<Seen>,
    stop: CancellationToken,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Fleet {
    /// Connects all nodes; returns when job-svc knows all of them.
    ///
    /// # Errors
    /// If one is refused.
    pub async fn start(inside: &Inside, plan: &Plan) -> Outcome<Self> {
        let seen = Arc::new(Seen::default());
        let fleet = Self { seen: seen.clone(), stop: CancellationToken::new() };
        let work = Arc::new(Channels::default());
        let control = Channels::default();
        for number in 0..plan.nodes {
            let node = format!("{}-{number}", plan.pool);
            let principal = Principal::Node {
                account: inside.account.clone(),
                pool: plan.pool.clone(),
                node: node.clone(),
                incarnation: INCARNATION.to_owned(),
            };
            let auth = TokenAuth::new(principal, inside.cluster_key.clone(), TOKEN_SECONDS);
            let worker = Worker {
                hello: hello(inside, plan, node),
                endpoint: one_of(&inside.job, number)?,
                channels: work.clone(),
                number,
                auth: auth.clone(),
                seen: seen.clone(),
            };
            spawn(&fleet, worker.run());
            if plan.heartbeats {
                let channel = control.get(&one_of(&inside.pool, number)?, number)?;
                let offset = HEARTBEAT.mul_f64(number as f64 / plan.nodes as f64);
                spawn(&fleet, beat(channel, auth, offset, seen.clone()));
            }
        }
        let nodes = plan.nodes;
        tokio::time::timeout(WELCOME, seen.until(move |seen| seen.welcomes.load(Ordering::Acquire) == nodes))
            .await
            .context("the simulated nodes were not welcomed in time")??;
        Ok(fleet)
    }
}

/// Connections that nodes share, by endpoint.
#[derive(Debug, Default)]
struct Channels(Mutex<HashMap<String, Vec<Channel>>>);

impl Channels {
    /// That of a node.
    fn get(&self, endpoint: &str, node: usize) -> Result<Channel, kiln_error::Error> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = all.entry(endpoint.to_owned()).or_default();
        let at = node % CONNECTIONS;
        while of.len() <= at {
            // It connects when it is used.
            of.push(kiln_grpc::connect_lazy(endpoint)?);
        }
        Ok(of[at].clone())
    }
}

fn one_of(urls: &[String], node: usize) -> Outcome<String> {
    Ok(urls.get(node % urls.len().max(1)).context("the server has no process of this service")?.clone())
}

fn spawn(fleet: &Fleet, work: impl Future<Output = Result<(), tonic::Status>> + Send + 'static) {
    let (stop, seen) = (fleet.stop.clone(), fleet.seen.clone());
    kiln_telemetry::spawn(async move {
        tokio::select! {
            ended = work => seen.broke(ended.map_or_else(|status| status.to_string(), |()| "it has ended".to_owned())),
            () = stop.cancelled() => {}
        }
    });
}

/// All of these agents live once.
const INCARNATION: &str = "simulated";

fn hello(inside: &Inside, plan: &Plan, node: String) -> WorkerHello {
    WorkerHello {
        account: inside.account.clone(),
        pool_id: plan.pool.clone(),
        node_id: node,
        incarnation: INCARNATION.to_owned(),
        status: Some(WorkerStatus {
            task_slots: plan.slots,
            accepting: true,
            is_dedicated: true,
            ..WorkerStatus::default()
        }),
        stream: 1,
        ..WorkerHello::default()
    }
}

struct Worker {
    hello: WorkerHello,
    /// Where job-svc is, until it says that the pool is elsewhere.
    endpoint: String,
    channels: Arc<Channels>,
    number: usize,
    auth: TokenAuth,
    seen: Arc<Seen>,
}

impl Worker {
    async fn run(mut self) -> Result<(), tonic::Status> {
        while let Some(elsewhere) = self.stream().await? {
            self.endpoint = elsewhere;
            self.hello.stream += 1;
        }
        Ok(())
    }

    /// One stream; gives the endpoint of a redirect.
    async fn stream(&self) -> Result<Option<String>, tonic::Status> {
        let channel = self.channels.get(&self.endpoint, self.number)?;
        let mut client =
            WorkServiceClient::with_interceptor(channel, self.auth.clone()).max_decoding_message_size(MAX_MESSAGE);
        let (up, receiver) = mpsc::channel(OUTGOING);
        let send = |message| WorkUp { message: Some(message) };
        // Room for one: the channel is new.
        let _ = up.try_send(send(Up::Hello(self.hello.clone())));
        let mut down = client.work(ReceiverStream::new(receiver)).await?.into_inner();
        let mut renew = Duration::from_secs(10);
        let mut sequence = 0;
        let mut due = tokio::time::Instant::now() + renew;
        loop {
            let message = tokio::select! {
                message = down.message() => message?,
                () = tokio::time::sleep_until(due) => {
                    sequence += 1;
                    due += renew;
                    if up.send(send(Up::LeaseRequest(LeaseRequest { sequence }))).await.is_err() {
                        return Ok(None);
                    }
                    continue;
                }
            };
            let Some(WorkDown { message }) = message else { return Ok(None) };
            let answer = match message {
                Some(Down::Welcome(welcome)) => {
                    if let Some(lease) = welcome.lease.as_ref().and_then(kiln_proto::time::std_duration) {
                        renew = lease / 3;
                    }
                    self.seen.welcomes.fetch_add(1, Ordering::AcqRel);
                    self.seen.changed.notify_waiters();
                    continue;
                }
                Some(Down::Assignments(assignments)) => {
                    let keys = assignments.assignments.into_iter().filter_map(|assignment| assignment.key);
                    life(keys, EndCause::Exited)
                }
                // What is to be stopped has ended already, or was never here.
                Some(Down::Stop(stop)) => life(stop.attempts.into_iter(), EndCause::Stopped),
                Some(Down::Acks(acks)) => {
                    self.seen.acks(&acks.attempts);
                    continue;
                }
                Some(Down::Redirect(redirect)) => return Ok(Some(redirect.endpoint)),
                Some(_) | None => continue,
            };
            if up.send(send(Up::Reports(Reports { reports: answer }))).await.is_err() {
                return Ok(None);
            }
        }
    }
}

/// The whole life of attempts that take no time.
fn life(keys: impl Iterator<Item = AttemptKey>, cause: EndCause) -> Vec<AttemptReport> {
    let now = kiln_proto::time::timestamp(Timestamp::now().as_micros());
    let mut reports = Vec::with_capacity(keys.size_hint().0 * 2);
    for key in keys {
        if cause == EndCause::Exited {
            let started = What::Started(AttemptStarted { start_time: Some(now) });
            reports.push(AttemptReport { key: Some(key.clone()), what: Some(started) });
        }
        let ended = AttemptEnded {
            start_time: Some(now),
            end_time: Some(now),
            exit_code: (cause == EndCause::Exited).then_some(0),
            cause: cause.into(),
            ..AttemptEnded::default()
        };
        reports.push(AttemptReport { key: Some(key), what: Some(What::Ended(ended)) });
    }
    reports
}

async fn beat(channel: Channel, auth: TokenAuth, offset: Duration, seen: Arc<Seen>) -> Result<(), tonic::Status> {
    let mut client = NodeControlServiceClient::with_interceptor(channel, auth);
    let (up, receiver) = mpsc::channel(4);
    let mut sequence = 0;
    let mut message = move || {
        sequence += 1;
        let beat = Heartbeat { sequence, cpu_fraction: 0.5, memory_used_bytes: 1 << 30, disk_free_bytes: 1 << 40 };
        ControlUp { message: Some(ControlUpMessage::Heartbeat(beat)) }
    };
    // Room for one: the channel is new.
    let _ = up.try_send(message());
    let mut down = client.control(ReceiverStream::new(receiver)).await?.into_inner();
    let mut beats = tokio::time::interval_at(tokio::time::Instant::now() + offset, HEARTBEAT);
    loop {
        tokio::select! {
            answer = down.message() => {
                if answer?.is_none() {
                    return Ok(());
                }
                seen.heartbeats.fetch_add(1, Ordering::Relaxed);
            }
            _ = beats.tick() => {
                if up.send(message()).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}
