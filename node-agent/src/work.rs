//! The work loop: the stream to job-svc, again and again until the life of the
//! agent ends; and the watch over the lease.

use std::sync::Arc;
use std::time::Duration;

use kiln_error::Error;
use kiln_proto::job::v1::work_down::Message as Down;
use kiln_proto::job::v1::work_service_client::WorkServiceClient;
use kiln_proto::job::v1::work_up::Message as Up;
use kiln_proto::job::v1::{
    Assignment, AttemptKey, Goodbye, JobNodeReports, LeaseRequest, Reports, WorkDown, WorkUp, WorkerHello,
};
use kiln_time::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use crate::agent::line::Turn;
use crate::agent::{Agent, Outcome};
use crate::clock;
use crate::domain::attempt::{Event, StopCause};
use crate::domain::ledger::Key;
use crate::job_tasks;
use crate::retention;
use crate::run_attempt::run_attempt;
use crate::run_process::on_own_thread;
use crate::stage::transfer::jittered;
use crate::trust;
use crate::wire::{self, NodeAuth};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// Reports in one message. More wait in the ledger while the stream is full,
/// and go together.
const MAX_BATCH: usize = 1000;
/// While the line is long, nobody waits for what has ended: reports gather, but not longer than this.
const GATHER: Duration = Duration::from_millis(25);
/// An assignment carries whole task descriptions, and there may be many.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;
/// How long the service may take to acknowledge the last results.
const FAREWELL: Duration = Duration::from_secs(3);
/// The lease is looked at at least this often.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// Keeps the work stream until `agent.closing`.
pub async fn work_loop(agent: Arc<Agent>) {
    let mut redirect: Option<String> = None;
    let mut pause = FIRST_PAUSE;
    let mut number = 0;
    agent.work_begins();
    while !agent.closing.is_cancelled() {
        let endpoint = redirect.take().unwrap_or_else(|| agent.registration().work_endpoint.clone());
        number += 1;
        match stream(&agent, &endpoint, number, &mut pause).await {
            Ok(Some(other)) => {
                tracing::info!(endpoint = other, "job-svc sends this node to another replica");
                redirect = Some(other);
                continue;
            }
            Ok(None) => tracing::debug!("the work stream has ended"),
            Err(status) => {
                let error = Error::from(status);
                tracing::debug!(%error, endpoint, "the work stream is broken");
            }
        }
        if agent.closing.is_cancelled() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => {}
            () = agent.closing.cancelled() => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One work stream from hello to its end; gives the endpoint of a redirect.
async fn stream(
    agent: &Arc<Agent>,
    endpoint: &str,
    number: u64,
    pause: &mut Duration,
) -> Result<Option<String>, tonic::Status> {
    let channel = trust::channel(&agent.config, endpoint, trust::JOB_SVC).await.map_err(tonic::Status::from)?;
    let mut client = WorkServiceClient::with_interceptor(channel, NodeAuth(agent.node_token.clone()))
        .max_decoding_message_size(MAX_MESSAGE);
    // Small on purpose: while it is full, reports gather in the ledger.
    let (sender, receiver) = mpsc::channel(2);
    let (version, status) = agent.status();
    let hello = hello(agent, status, number);
    let hello_sent = clock::since_boot();
    // Room for one: the channel is new.
    let _ = sender.try_send(up(Up::Hello(hello)));
    let response = tokio::select! {
        response = client.work(ReceiverStream::new(receiver)) => response?,
        () = agent.closing.cancelled() => return Ok(None),
    };
    let mut inbound = response.into_inner();
    agent.with_work(|ledger, lease| {
        lease.reconnected();
        ledger.requeue_reports();
    });
    agent.jobs.requeue_words();
    let mut session = Session {
        hello: Some((hello_sent, version)),
        status_sent: version,
        lease_due: false,
        reported: Instant::now(),
    };
    loop {
        let next_request =
            agent.with_work(|_, lease| lease.next_request(clock::since_boot())).saturating_sub(clock::since_boot());
        let (version, _) = agent.status();
        let has_reports = agent.with_work(|ledger, _| ledger.has_reports());
        let gathered = session.reported + GATHER;
        let gathers = has_reports && agent.line_is_long() && Instant::now() < gathered;
        let due =
            version != session.status_sent || session.lease_due || (has_reports && !gathers) || agent.jobs.has_words();
        tokio::select! {
            biased;
            message = inbound.message() => {
                let Some(WorkDown { message }) = message? else { return Ok(None) };
                agent.heard();
                *pause = FIRST_PAUSE;
                if let Some(message) = message
                    && let Some(endpoint) = session.receive(agent, message)
                {
                    return Ok(Some(endpoint));
                }
            }
            () = tokio::time::sleep(next_request), if !session.lease_due => session.lease_due = true,
            permit = sender.reserve(), if due => {
                let Ok(permit) = permit else { return Ok(None) };
                match session.next(agent) {
                    Some(message) => permit.send(up(message)),
                    None => drop(permit),
                }
            }
            () = tokio::time::sleep_until(gathered), if gathers => {}
            () = agent.work_due.notified(), if !due => {}
            () = agent.closing.cancelled() => break,
        }
    }
    farewell(agent, sender, &mut inbound, &mut session).await;
    Ok(None)
}

fn up(message: Up) -> WorkUp {
    WorkUp { message: Some(message) }
}

fn hello(agent: &Agent, status: kiln_proto::job::v1::WorkerStatus, stream: u64) -> WorkerHello {
    let join = &agent.config.join;
    let registration = agent.registration();
    WorkerHello {
        account: registration.account.clone(),
        pool_id: join.pool_id.clone(),
        node_id: join.node_id.clone(),
        incarnation: agent.incarnation.clone(),
        status: Some(status),
        attempts: agent.with_work(|ledger, _| ledger.all().map(|(key, attempt)| wire::view(key, attempt)).collect()),
        ip_address: trust::first(&registration.work_endpoint)
            .and_then(|url| Some(crate::machine::own_address(url.host_str()?, url.port_or_known_default()?)))
            .unwrap_or_default(),
        stream,
    }
}

/// What is known about one stream.
struct Session {
    /// When the hello was sent, and with which status; until the welcome.
    hello: Option<(Duration, u64)>,
    status_sent: u64,
    /// A third of the lease is over.
    lease_due: bool,
    /// When reports were sent last.
    reported: Instant,
}

impl Session {
    /// The next message that is due.
    fn next(&mut self, agent: &Agent) -> Option<Up> {
        let (version, status) = agent.status();
        if version != self.status_sent {
            self.status_sent = version;
            return Some(Up::Status(status));
        }
        if self.lease_due {
            let sequence = agent.with_work(|_, lease| lease.request(clock::since_boot()));
            self.lease_due = false;
            return Some(Up::LeaseRequest(LeaseRequest { sequence }));
        }
        let words = agent.jobs.take_words(MAX_BATCH);
        if !words.is_empty() {
            return Some(Up::JobNodeReports(JobNodeReports { reports: words }));
        }
        let reports = agent.with_work(|ledger, _| ledger.take_reports(MAX_BATCH));
        self.reported = Instant::now();
        (!reports.is_empty()).then(|| {
            Up::Reports(Reports { reports: reports.iter().map(|(key, report)| wire::report(key, report)).collect() })
        })
    }

    /// Works on one message; gives the endpoint of a redirect.
    fn receive(&mut self, agent: &Arc<Agent>, message: Down) -> Option<String> {
        match message {
            Down::Welcome(welcome) => {
                if let Some((sent, version)) = self.hello.take() {
                    let length = wire::limit(welcome.lease.as_ref()).unwrap_or_default();
                    agent.with_work(|_, lease| lease.welcome(sent, length));
                    tell_guard(agent);
                    agent.status_confirmed(version);
                }
            }
            Down::LeaseGrant(grant) => {
                let length = wire::limit(grant.lease.as_ref()).unwrap_or_default();
                agent.with_work(|_, lease| lease.grant(grant.sequence, length));
                tell_guard(agent);
            }
            Down::StatusApplied(applied) => agent.status_confirmed(applied.version),
            Down::Assignments(assignments) => {
                for assignment in assignments.assignments {
                    assign(agent, assignment);
                }
                agent.line_grown();
            }
            Down::Stop(stop) => {
                for key in keys(&stop.attempts) {
                    stop_attempt(agent, &key);
                }
            }
            Down::Acks(acks) => agent.acknowledged(&keys(&acks.attempts)),
            Down::Cleanup(cleanup) => {
                for key in keys(&cleanup.tasks) {
                    retention::remove_when_ended(agent, &key.job, Some(&key.task));
                }
                for job in cleanup.job_ids {
                    if kiln_ids::JobId::parse(&job).is_ok() {
                        retention::remove_when_ended(agent, &job, None);
                    }
                }
            }
            Down::Redirect(redirect) => return Some(redirect.endpoint),
            Down::Release(asked) => job_tasks::release(agent, asked),
            Down::JobNodeAcks(acks) => agent.jobs.acknowledged(&acks.keys),
            Down::Proceed(proceed) => agent.proceeds.proceed(&keys(&proceed.attempts)),
        }
        None
    }
}

fn tell_guard(agent: &Agent) {
    if let Some(end) = agent.with_work(|_, lease| lease.valid_until()) {
        agent.supervisor.lease_until(end);
    }
}

fn keys(keys: &[AttemptKey]) -> Vec<Key> {
    keys.iter()
        .filter_map(|key| {
            let valid = wire::key(key);
            if valid.is_none() {
                tracing::warn!(job.id = key.job_id, task.id = key.task_id, "job-svc names an attempt by an invalid id");
            }
            valid
        })
        .collect()
}

fn assign(agent: &Arc<Agent>, assignment: Assignment) {
    let Some(key) = assignment.key.as_ref().and_then(|key| keys(std::slice::from_ref(key)).pop()) else { return };
    if let Some(turn) = agent.assign(key, assignment) {
        take_turn(agent, turn);
    }
}

/// Runs an attempt on a thread of its own, then those that stand in line, as long as their
/// slots are free: the thread is warm, and nobody has to be woken.
fn take_turn(agent: &Arc<Agent>, turn: Turn) {
    job_tasks::join(agent, &turn.key, &turn.assignment);
    let agent = agent.clone();
    kiln_telemetry::spawn(on_own_thread(async move {
        let mut next = Some(turn);
        while let Some(Turn { key, assignment, stop }) = next {
            run_attempt(agent.clone(), key, assignment, stop).await;
            next = agent.next_turn();
            if let Some(turn) = &next {
                job_tasks::join(&agent, &turn.key, &turn.assignment);
            }
            // It may have held more than one slot.
            while next.is_some()
                && let Some(other) = agent.next_turn()
            {
                take_turn(&agent, other);
            }
        }
    }));
}

fn stop_attempt(agent: &Arc<Agent>, key: &Key) {
    if agent.with_work(|ledger, _| ledger.get(key).is_none()) {
        agent.with_work(|ledger, _| ledger.stop_unknown(key, Timestamp::now()));
        agent.work_due.notify_one();
    } else {
        agent.apply(key, Event::Stop(StopCause::Requested));
    }
}

/// The last results, the goodbye, and a moment for acknowledgements. The stream
/// must not be dropped before the service has closed it: what is on its way
/// would be lost.
async fn farewell(
    agent: &Agent,
    sender: mpsc::Sender<WorkUp>,
    inbound: &mut tonic::Streaming<WorkDown>,
    session: &mut Session,
) {
    let work = async {
        while let Some(message) = session.next(agent) {
            if sender.send(up(message)).await.is_err() {
                return;
            }
        }
        if sender.send(up(Up::Goodbye(Goodbye {}))).await.is_err() {
            return;
        }
        drop(sender);
        while let Ok(Some(WorkDown { message })) = inbound.message().await {
            match message {
                Some(Down::Acks(acks)) => agent.acknowledged(&keys(&acks.attempts)),
                Some(Down::JobNodeAcks(acks)) => agent.jobs.acknowledged(&acks.keys),
                _ => {}
            }
        }
    };
    let in_time = tokio::time::timeout(FAREWELL, work).await.is_ok();
    let unacknowledged = agent.with_work(|ledger, _| ledger.unacknowledged());
    if !in_time || unacknowledged > 0 {
        tracing::info!(unacknowledged, in_time, "the work stream has ended without an answer to the goodbye");
    }
}

/// Kills all tasks when the lease is over; ends the agent when nobody answers
/// for much longer than that. A task of its own, so that nothing can hold it up.
pub async fn watch_lease(agent: Arc<Agent>) {
    let mut was_valid = false;
    loop {
        let now = clock::since_boot();
        let until = agent.with_work(|_, lease| lease.valid_until());
        let valid = until.is_some_and(|until| now < until);
        let live = agent.live();
        if was_valid && !valid {
            tracing::warn!(live, "the lease is over");
            agent.recheck_drained();
        }
        // Not only when it ends: what was on its way then may begin later.
        if !valid && (live > 0 || agent.jobs.running() > 0) {
            agent.stop_all(StopCause::LeaseLost);
            agent.jobs.stop_all();
        }
        was_valid = valid;
        if agent.is_lost() {
            agent.finish(Outcome::GaveUp("the service could not be reached for too long".to_owned()));
        }
        let pause = match until {
            Some(until) if valid => (until - now).min(WATCH_PAUSE),
            _ => WATCH_PAUSE,
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = agent.closing.cancelled() => return,
        }
    }
}
