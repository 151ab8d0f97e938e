//! pool-svc and job-svc as the agent sees them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{Stream, StreamExt};
use kiln_node::JoinConfig;
use kiln_proto::job::v1::attempt_report::What;
use kiln_proto::job::v1::work_service_server::{WorkService, WorkServiceServer};
use kiln_proto::job::v1::{
    Assignment, Assignments, AttemptEnded, AttemptKey, AttemptReport, JobNodeAcks, JobNodeReport, JobNodeTask,
    LeaseGrant, NodeTaskInfo, NodeTaskState, ReportAcks, StatusApplied, TaskSpec, Welcome, WorkDown, WorkUp, work_down,
    work_up,
};
use kiln_proto::pool::v1::node_control_service_server::{NodeControlService, NodeControlServiceServer};
use kiln_proto::pool::v1::{
    AnswerFileResponse, ControlDown, ControlUp, FileAnswer, FileRequest, HeartbeatAck, NodeReport, NodeSettings,
    RegisterRequest, RegisterResponse, control_down, control_up, file_answer, file_request,
};
use kiln_proto::pool::v1::{JoinRequest, JoinResponse, LeaveRequest, LeaveResponse};
use kiln_testkit::eventually;
use node_agent::{Config, run};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::blob::{self, Store};

pub const NODE_TOKEN: &str = "node-token";
type Down<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Everything the services have seen, and ways to talk to the agent.
#[derive(Default)]
pub struct Log {
    pub registrations: Mutex<Vec<RegisterRequest>>,
    pub reports: Mutex<Vec<NodeReport>>,
    pub work: Mutex<Vec<work_up::Message>>,
    ended: std::sync::atomic::AtomicUsize,
    pub answers: Mutex<HashMap<String, Vec<FileAnswer>>>,
    pub control_down: Mutex<Option<mpsc::UnboundedSender<Result<ControlDown, Status>>>>,
    pub work_down: Mutex<Option<mpsc::UnboundedSender<Result<WorkDown, Status>>>>,
    pub lease: Mutex<Duration>,
    pub granting: Mutex<bool>,
    pub acking: Mutex<bool>,
    pub refusing_work: Mutex<bool>,
    pub refusing_all: Mutex<bool>,
    work_streams: Mutex<u64>,
    settings: Mutex<NodeSettings>,
    blob_endpoint: Mutex<String>,
    endpoint: Mutex<String>,
}

struct Fake(Arc<Log>);

#[tonic::async_trait]
impl NodeControlService for Fake {
    async fn join(&self, _: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        Err(Status::unimplemented("agents do not join, whoever starts them does"))
    }

    async fn leave(&self, _: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        Err(Status::unimplemented("agents do not leave, whoever starts them does"))
    }

    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        assert_eq!(request.metadata().get("authorization").unwrap(), "Bearer join-token");
        self.0.registrations.lock().unwrap().push(request.into_inner());
        let endpoint = self.0.endpoint.lock().unwrap().clone();
        Ok(Response::new(RegisterResponse {
            account: "acc".into(),
            node_token: NODE_TOKEN.into(),
            node_token_expires: None,
            work_endpoint: endpoint.clone(),
            blob_endpoint: self.0.blob_endpoint.lock().unwrap().clone(),
            batch_endpoint: endpoint,
            heartbeat_interval: Some(kiln_proto::time::duration(Duration::from_millis(200))),
            settings: Some(self.0.settings.lock().unwrap().clone()),
        }))
    }

    type ControlStream = Down<ControlDown>;

    async fn control(&self, request: Request<Streaming<ControlUp>>) -> Result<Response<Self::ControlStream>, Status> {
        if *self.0.refusing_all.lock().unwrap() {
            return Err(Status::unavailable("not now"));
        }
        if request.metadata().get("authorization").unwrap() != &format!("Bearer {NODE_TOKEN}") {
            return Err(Status::unauthenticated("wrong token"));
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.0.control_down.lock().unwrap() = Some(sender.clone());
        let log = self.0.clone();
        let mut inbound = request.into_inner();
        kiln_telemetry::spawn(async move {
            while let Some(Ok(message)) = inbound.next().await {
                match message.message {
                    Some(control_up::Message::Report(report)) => log.reports.lock().unwrap().push(report),
                    Some(control_up::Message::Heartbeat(beat)) => {
                        let ack = HeartbeatAck { sequence: beat.sequence, ..HeartbeatAck::default() };
                        let message = Some(control_down::Message::HeartbeatAck(ack));
                        let _ = sender.send(Ok(ControlDown { command_id: 0, message }));
                    }
                    None => {}
                }
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(receiver))))
    }

    async fn answer_file(
        &self,
        request: Request<Streaming<FileAnswer>>,
    ) -> Result<Response<AnswerFileResponse>, Status> {
        let mut inbound = request.into_inner();
        let mut id = String::new();
        while let Some(answer) = inbound.message().await? {
            if !answer.transfer_id.is_empty() {
                id.clone_from(&answer.transfer_id);
            }
            self.0.answers.lock().unwrap().entry(id.clone()).or_default().push(answer);
        }
        Ok(Response::new(AnswerFileResponse {}))
    }
}

#[tonic::async_trait]
impl WorkService for Fake {
    type WorkStream = Down<WorkDown>;

    async fn work(&self, request: Request<Streaming<WorkUp>>) -> Result<Response<Self::WorkStream>, Status> {
        if *self.0.refusing_work.lock().unwrap() || *self.0.refusing_all.lock().unwrap() {
            return Err(Status::unavailable("not now"));
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let number = {
            let mut streams = self.0.work_streams.lock().unwrap();
            *streams += 1;
            *streams
        };
        *self.0.work_down.lock().unwrap() = Some(sender);
        let log = self.0.clone();
        let mut inbound = request.into_inner();
        kiln_telemetry::spawn(async move {
            while let Some(Ok(WorkUp { message: Some(message) })) = inbound.next().await {
                let lease = Some(kiln_proto::time::duration(*log.lease.lock().unwrap()));
                match &message {
                    work_up::Message::Hello(_) => log.send_work(work_down::Message::Welcome(Welcome { lease })),
                    work_up::Message::LeaseRequest(request) if *log.granting.lock().unwrap() => {
                        let grant = LeaseGrant { sequence: request.sequence, lease };
                        log.send_work(work_down::Message::LeaseGrant(grant));
                    }
                    work_up::Message::Status(status) => {
                        log.send_work(work_down::Message::StatusApplied(StatusApplied { version: status.version }));
                    }
                    work_up::Message::Reports(reports) if *log.acking.lock().unwrap() => {
                        let ended = reports.reports.iter().filter(|report| matches!(report.what, Some(What::Ended(_))));
                        let attempts: Vec<_> = ended.filter_map(|report| report.key.clone()).collect();
                        log.ended.fetch_add(attempts.len(), std::sync::atomic::Ordering::Relaxed);
                        log.send_work(work_down::Message::Acks(ReportAcks { attempts }));
                    }
                    work_up::Message::JobNodeReports(words) if *log.acking.lock().unwrap() => {
                        let keys = words.reports.iter().filter_map(|word| word.key.clone()).collect();
                        log.send_work(work_down::Message::JobNodeAcks(JobNodeAcks { keys }));
                    }
                    _ => {}
                }
                log.work.lock().unwrap().push(message);
            }
            // The other side has said all it wanted: close ours, too.
            if *log.work_streams.lock().unwrap() == number {
                log.work_down.lock().unwrap().take();
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(receiver))))
    }
}

impl Log {
    pub fn send_work(&self, message: work_down::Message) {
        if let Some(sender) = &*self.work_down.lock().unwrap() {
            let _ = sender.send(Ok(WorkDown { message: Some(message) }));
        }
    }

    pub fn command(&self, command_id: u64, message: control_down::Message) {
        let down = ControlDown { command_id, message: Some(message) };
        self.control_down.lock().unwrap().as_ref().unwrap().send(Ok(down)).unwrap();
    }

    /// The work stream breaks.
    pub fn break_work(&self) {
        if let Some(sender) = self.work_down.lock().unwrap().take() {
            let _ = sender.send(Err(Status::unavailable("broken by the test")));
        }
    }

    /// Results that were acknowledged.
    pub fn ended_count(&self) -> usize {
        self.ended.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The control stream breaks.
    pub fn break_control(&self) {
        if let Some(sender) = self.control_down.lock().unwrap().take() {
            let _ = sender.send(Err(Status::unavailable("broken by the test")));
        }
    }

    /// All results of an attempt that have arrived, repeated ones too.
    pub fn ended(&self, task: &str) -> Vec<AttemptEnded> {
        let work = self.work.lock().unwrap();
        work.iter()
            .filter_map(|message| match message {
                work_up::Message::Reports(reports) => Some(&reports.reports),
                _ => None,
            })
            .flatten()
            .filter(|report| report.key.as_ref().is_some_and(|key| key.task_id == task))
            .filter_map(|report| match &report.what {
                Some(What::Ended(ended)) => Some(ended.clone()),
                _ => None,
            })
            .collect()
    }

    /// All that was told about preparation and release tasks.
    pub fn words(&self, kind: JobNodeTask) -> Vec<JobNodeReport> {
        let work = self.work.lock().unwrap();
        work.iter()
            .filter_map(|message| match message {
                work_up::Message::JobNodeReports(words) => Some(words.reports.clone()),
                _ => None,
            })
            .flatten()
            .filter(|word| word.key.as_ref().is_some_and(|key| key.task() == kind))
            .collect()
    }

    /// Waits until a preparation or release task has ended; gives how.
    pub async fn node_task(&self, kind: JobNodeTask) -> NodeTaskInfo {
        eventually("the end of a job's task", || async {
            let info = self.words(kind).pop()?.info?;
            (info.state() == NodeTaskState::Completed).then_some(info)
        })
        .await
    }

    /// Whether job-svc has heard that an attempt began.
    pub fn has_started(&self, task: &str) -> bool {
        let work = self.work.lock().unwrap();
        work.iter().any(|message| match message {
            work_up::Message::Reports(reports) => reports.reports.iter().any(|report| {
                matches!(report.what, Some(What::Started(_)))
                    && report.key.as_ref().is_some_and(|key| key.task_id == task)
            }),
            _ => false,
        })
    }

    /// Waits until the instance of a task is ready.
    pub async fn ready(&self, task: &str) {
        eventually(&format!("{task} is ready"), || async {
            let work = self.work.lock().unwrap();
            let is_ready = |report: &AttemptReport| {
                matches!(report.what, Some(What::Ready(_)))
                    && report.key.as_ref().is_some_and(|key| key.task_id == task)
            };
            let found = work.iter().any(|message| match message {
                work_up::Message::Reports(reports) => reports.reports.iter().any(is_ready),
                _ => false,
            });
            found.then_some(())
        })
        .await;
    }

    pub async fn result(&self, task: &str) -> AttemptEnded {
        eventually(&format!("the end of {task}"), || async { self.ended(task).pop() }).await
    }

    pub async fn report(&self, what: &str, wanted: impl Fn(&NodeReport) -> bool) -> NodeReport {
        eventually(what, || async { self.reports.lock().unwrap().last().filter(|report| wanted(report)).cloned() })
            .await
    }

    /// Asks for a file; gives the parts when the answer is complete.
    pub async fn ask(&self, request: FileRequest) -> Vec<file_answer::Part> {
        let id = request.transfer_id.clone();
        // Of a file that is read the properties come first, then bytes.
        let reading = matches!(request.operation, Some(file_request::Operation::Read(_)));
        self.command(0, control_down::Message::FileRequest(request));
        eventually("the answer", || async {
            let answers = self.answers.lock().unwrap();
            let parts: Vec<_> = answers.get(&id)?.iter().filter_map(|answer| answer.part.clone()).collect();
            let complete = match parts.last()? {
                file_answer::Part::Data(_) | file_answer::Part::List(_) => false,
                file_answer::Part::File(_) => !reading,
                _ => true,
            };
            complete.then_some(parts)
        })
        .await
    }
}

/// One agent with its services.
pub struct World {
    pub log: Arc<Log>,
    pub store: Arc<Store>,
    pub blob_url: String,
    /// Removed at the end.
    _dir: tempfile::TempDir,
    pub shutdown: CancellationToken,
    pub join: JoinConfig,
    agent: Option<JoinHandle<anyhow::Result<()>>>,
}

impl World {
    /// Services only.
    pub async fn services(settings: NodeSettings) -> Self {
        let log = Arc::new(Log::default());
        let store = Arc::new(Store::default());
        let blob_url = blob::serve(store.clone()).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        // Whoever does not count slots has enough of them.
        let task_slots = if settings.task_slots == 0 { 256 } else { settings.task_slots };
        *log.settings.lock().unwrap() = NodeSettings { task_slots, ..settings };
        *log.lease.lock().unwrap() = Duration::from_secs(30);
        *log.granting.lock().unwrap() = true;
        *log.acking.lock().unwrap() = true;
        *log.blob_endpoint.lock().unwrap() = format!("{blob_url}/acc");
        log.endpoint.lock().unwrap().clone_from(&endpoint);
        let server = tonic::transport::Server::builder()
            .tcp_nodelay(true)
            .add_service(NodeControlServiceServer::new(Fake(log.clone())))
            .add_service(WorkServiceServer::new(Fake(log.clone())));
        kiln_telemetry::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        // Other users may pass through, as through most directories of a system.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        let dir = tempfile::Builder::new().permissions(mode).tempdir().unwrap();
        let join = JoinConfig {
            control_endpoint: endpoint,
            account: "acc".into(),
            pool_id: "p".into(),
            node_id: "n1".into(),
            join_token: "join-token".into(),
            ca_pem: None,
            node_dir: dir.path().join("node"),
        };
        Self { log, store, blob_url, _dir: dir, shutdown: CancellationToken::new(), join, agent: None }
    }

    /// Services and an agent in this process.
    pub async fn start_with(settings: NodeSettings) -> Self {
        Self::start_as(settings, |config| {
            config.shim_command = vec![env!("CARGO_BIN_EXE_node-agent").to_owned(), "--shim".to_owned()];
        })
        .await
    }

    /// Services and an agent with other settings.
    pub async fn start_as(settings: NodeSettings, change: impl FnOnce(&mut Config)) -> Self {
        let mut world = Self::services(settings).await;
        world.start_agent_as(change);
        world
    }

    /// The agent of the services.
    pub fn start_agent(&mut self) {
        self.start_agent_as(|_| {});
    }

    /// As [`World::start_agent`], with other settings.
    pub fn start_agent_as(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = Config::new(self.join.clone());
        config.settings.transfer_tries = 3;
        change(&mut config);
        self.agent = Some(kiln_telemetry::spawn(run(config, self.shutdown.clone())));
    }

    /// An agent that is ready for tasks.
    pub async fn start() -> Self {
        let world =
            Self::start_with(NodeSettings { task_slots: 256, is_dedicated: true, ..NodeSettings::default() }).await;
        world.connected().await;
        world
    }

    pub async fn connected(&self) {
        self.reconnected(1).await;
    }

    /// Waits for the work stream number `times`.
    pub async fn reconnected(&self, times: usize) {
        eventually("the work stream", || async {
            let work = self.log.work.lock().unwrap();
            let hellos = work.iter().filter(|message| matches!(message, work_up::Message::Hello(_))).count();
            (hellos >= times).then_some(())
        })
        .await;
    }

    pub fn assign(&self, spec: TaskSpec) {
        self.assign_attempt(spec, 1);
    }

    pub fn assign_attempt(&self, spec: TaskSpec, attempt: u32) {
        let assignment = Assignment { key: Some(key(&spec.id, attempt)), spec: Some(spec), ..Assignment::default() };
        self.give(assignment);
    }

    pub fn give(&self, assignment: Assignment) {
        self.log.send_work(work_down::Message::Assignments(Assignments { assignments: vec![assignment] }));
    }

    pub async fn run(&self, spec: TaskSpec) -> AttemptEnded {
        let id = spec.id.clone();
        self.assign(spec);
        self.log.result(&id).await
    }

    pub fn task_dir(&self, task: &str) -> PathBuf {
        self.join.root_dir().join(kiln_node::task_dir("j", task))
    }

    pub fn output(&self, task: &str, file: &str) -> String {
        std::fs::read_to_string(self.task_dir(task).join(file)).unwrap()
    }

    /// Waits for the agent's end.
    pub async fn end(&mut self) -> anyhow::Result<()> {
        self.agent.take().unwrap().await.unwrap()
    }

    pub async fn stop(mut self) {
        self.shutdown.cancel();
        self.end().await.unwrap();
    }
}

pub fn key(task: &str, attempt: u32) -> AttemptKey {
    AttemptKey { job_id: "j".into(), task_id: task.into(), attempt, task_number: 1, instance: 0 }
}

pub fn task(id: &str, command_line: &str) -> TaskSpec {
    TaskSpec { id: id.into(), command_line: command_line.into(), ..TaskSpec::default() }
}

pub fn failure_code(ended: &AttemptEnded) -> &str {
    ended.failure.as_ref().map_or("", |failure| &failure.code)
}

/// Whether the process runs (a zombie does not).
pub fn is_running(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with(['Z', 'X']))
}

/// Waits until a file has a complete line; gives it.
pub async fn line_of(path: PathBuf) -> String {
    eventually(&format!("{}", path.display()), || async {
        std::fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n')).map(|text| text.trim().to_owned())
    })
    .await
}
