//! A real job-svc on loopback, and agents that are only as real as the wire.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use job_svc::clock::Clock;
use job_svc::{Config, Deps};
use kiln_auth::SecretKey;
use kiln_auth::token::{self, Claims, Principal};
use kiln_bus::memory::MemoryBus;
use kiln_grpc::{ServiceAuth, ServiceChannel};
use kiln_proto::common::v1::DeallocationOption;
use kiln_proto::job::v1::job_schedule_service_client::JobScheduleServiceClient;
use kiln_proto::job::v1::job_service_client::JobServiceClient;
use kiln_proto::job::v1::work_service_client::WorkServiceClient;
use kiln_proto::job::v1::*;
use kiln_proto::time::timestamp;
use kiln_testkit::eventually;
use kiln_time::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

pub const ACCOUNT: &str = "acct";

/// One life of the service on a data directory.
pub struct Service {
    pub endpoint: String,
    pub bus: Arc<MemoryBus>,
    pub key: Arc<SecretKey>,
    pub shutdown: CancellationToken,
    pub dir: Arc<tempfile::TempDir>,
    pub config: Config,
    pub clock: Clock,
    runtime: Option<tokio::runtime::Runtime>,
}

pub fn config(dir: &tempfile::TempDir) -> Config {
    Config { transition_linger: Duration::from_millis(500), ..Config::new(dir.path().to_owned()) }
}

impl Service {
    pub async fn start() -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let config = config(&dir);
        Self::start_on(dir, config, Arc::new(SecretKey::generate())).await
    }

    /// Its schedules go by `clock`.
    pub async fn start_by(clock: Clock) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let config = Config { transition_linger: Duration::ZERO, ..config(&dir) };
        Self::open(dir, config, Arc::new(SecretKey::generate()), clock).await
    }

    pub async fn start_on(dir: Arc<tempfile::TempDir>, config: Config, key: Arc<SecretKey>) -> Self {
        Self::open(dir, config, key, Clock::System).await
    }

    /// On its own runtime, so that it can be killed with everything it does.
    async fn open(dir: Arc<tempfile::TempDir>, config: Config, key: Arc<SecretKey>, clock: Clock) -> Self {
        let bus = Arc::new(MemoryBus::new());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on_elsewhere(TcpListener::bind("127.0.0.1:0")).await;
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let deps = Deps { cluster_key: key.clone(), bus: bus.clone(), clock: clock.clone(), tls: None };
        let run = job_svc::run(config.clone(), deps, listener, shutdown.clone());
        runtime.spawn(async move {
            run.await.unwrap();
        });
        Self { endpoint, bus, key, shutdown, dir, config, clock, runtime: Some(runtime) }
    }

    /// Another replica, on a PostgreSQL that others may have, too.
    pub async fn replica(store: &kiln_store::testing::TestStore, key: Arc<SecretKey>) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let config = Config { store: store.config().clone(), ..config(&dir) };
        Self::start_on(dir, config, key).await
    }

    /// Stops it in the middle of whatever it does, as a crash would.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Stops it in the middle of whatever it does, as a crash would, and starts
    /// it again on the same data.
    pub async fn crash_and_restart(mut self) -> Self {
        self.kill();
        let (dir, config, key) = (self.dir.clone(), self.config.clone(), self.key.clone());
        let clock = self.clock.clone();
        drop(self);
        Self::open(dir, config, key, clock).await
    }

    pub fn client(&self) -> Client {
        let channel = ServiceAuth::new("gateway", self.key.clone()).connect(&self.endpoint).unwrap();
        Client { inner: JobServiceClient::new(channel).max_decoding_message_size(64 << 20) }
    }

    pub fn schedules(&self) -> Schedules {
        let channel = ServiceAuth::new("gateway", self.key.clone()).connect(&self.endpoint).unwrap();
        Schedules { inner: JobScheduleServiceClient::new(channel) }
    }

    pub async fn agent(&self, node: &str, slots: i32) -> Agent {
        self.agent_with(node, "life-1", slots, Vec::new()).await
    }

    pub async fn agent_with(&self, node: &str, incarnation: &str, slots: i32, attempts: Vec<AttemptView>) -> Agent {
        let hello = WorkerHello {
            account: ACCOUNT.into(),
            pool_id: "p1".into(),
            node_id: node.into(),
            incarnation: incarnation.into(),
            status: Some(status(slots, true)),
            attempts,
            ip_address: String::new(),
            stream: 0,
        };
        let mut agent = eventually("a stream", || async { self.connect(node, hello.clone()).await.ok() }).await;
        let first = agent.next().await;
        assert!(matches!(first, work_down::Message::Welcome(_)), "{first:?}");
        agent
    }

    pub async fn connect(&self, node: &str, hello: WorkerHello) -> Result<Agent, Status> {
        let token = self.node_token(node, &hello.incarnation);
        self.connect_with(&token, hello).await
    }

    /// The token of a node's agent.
    pub fn node_token(&self, node: &str, incarnation: &str) -> String {
        let (account, pool) = (ACCOUNT.into(), "p1".into());
        let principal = Principal::Node { account, pool, node: node.into(), incarnation: incarnation.into() };
        let claims = Claims { principal, expires: Timestamp::now().as_micros() / 1_000_000 + 600 };
        token::mint(&self.key, &claims)
    }

    pub async fn connect_with(&self, token: &str, hello: WorkerHello) -> Result<Agent, Status> {
        let bearer = format!("Bearer {token}");
        let channel = kiln_grpc::connect_lazy(&self.endpoint).unwrap();
        let (up, messages) = mpsc::channel(1024);
        up.try_send(WorkUp { message: Some(work_up::Message::Hello(hello)) }).unwrap();
        let mut request = tonic::Request::new(ReceiverStream::new(messages));
        request.metadata_mut().insert("authorization", bearer.parse().unwrap());
        let mut client = WorkServiceClient::new(channel).max_decoding_message_size(64 << 20);
        let down = client.work(request).await?.into_inner();
        Ok(Agent { up, down, runs: HashMap::new() })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

trait Elsewhere {
    fn block_on_elsewhere<F>(&self, work: F) -> impl Future<Output = TcpListener>
    where
        F: Future<Output = std::io::Result<TcpListener>> + Send + 'static;
}

impl Elsewhere for tokio::runtime::Runtime {
    async fn block_on_elsewhere<F>(&self, work: F) -> TcpListener
    where
        F: Future<Output = std::io::Result<TcpListener>> + Send + 'static,
    {
        self.spawn(work).await.unwrap().unwrap()
    }
}

pub fn status(slots: i32, accepting: bool) -> WorkerStatus {
    WorkerStatus {
        task_slots: slots,
        accepting,
        running_tasks: DeallocationOption::Requeue.into(),
        is_dedicated: true,
        pack: false,
        order_jobs_by_creation: false,
        version: 1,
        resources: None,
    }
}

/// What a test does over the public API.
#[derive(Clone)]
pub struct Client {
    pub inner: JobServiceClient<ServiceChannel>,
}

/// The same for schedules.
#[derive(Clone)]
pub struct Schedules {
    pub inner: JobScheduleServiceClient<ServiceChannel>,
}

pub fn spec(id: &str) -> TaskSpec {
    TaskSpec { id: id.into(), command_line: "true".into(), ..TaskSpec::default() }
}

pub fn reason(status: Status) -> String {
    kiln_error::Error::from(status).reason().to_owned()
}

macro_rules! call {
    ($client:expr, $method:ident, $message:expr) => {
        $client
            .inner
            .clone()
            .$method(kiln_grpc::with_account($message, $crate::harness::ACCOUNT).unwrap())
            .await
            .map(tonic::Response::into_inner)
    };
}
pub(crate) use call;

impl Client {
    pub async fn create_job(&self, id: &str, spec: JobSpec) -> Job {
        let spec = JobSpec { pool_id: "p1".into(), ..spec };
        let request = CreateJobRequest { request_id: String::new(), id: id.into(), spec: Some(spec) };
        eventually("the service", || async {
            match call!(self, create_job, request.clone()) {
                Ok(created) => created.job,
                Err(status) if status.code() == tonic::Code::Unavailable => None,
                Err(status) => panic!("{status:?}"),
            }
        })
        .await
    }

    pub async fn add(&self, job: &str, task: TaskSpec) {
        let request = AddTaskRequest { request_id: String::new(), job_id: job.into(), task: Some(task) };
        call!(self, add_task, request).unwrap();
    }

    pub async fn add_many(&self, job: &str, count: usize) {
        let tasks: Vec<TaskSpec> = (0..count).map(|at| spec(&format!("t{at}"))).collect();
        for tasks in tasks.chunks(1000) {
            let request =
                AddTaskCollectionRequest { request_id: String::new(), job_id: job.into(), tasks: tasks.to_vec() };
            let results = call!(self, add_task_collection, request).unwrap().results;
            assert!(results.iter().all(|result| result.error.is_none()));
        }
    }

    pub async fn job(&self, id: &str) -> Result<Job, Status> {
        let request = GetJobRequest { id: id.into(), precondition: None };
        call!(self, get_job, request).map(|response| response.job.unwrap())
    }

    pub async fn task(&self, job: &str, task: &str) -> Result<Task, Status> {
        let request = GetTaskRequest { job_id: job.into(), task_id: task.into(), precondition: None };
        call!(self, get_task, request).map(|response| response.task.unwrap())
    }

    pub async fn counts(&self, job: &str) -> TaskCounts {
        call!(self, count_tasks, CountTasksRequest { job_id: job.into() }).unwrap().tasks.unwrap()
    }

    pub async fn job_becomes(&self, id: &str, state: JobState) -> Job {
        eventually(&format!("job {id} {state:?}"), || async {
            self.job(id).await.ok().filter(|job| job.state() == state)
        })
        .await
    }

    pub async fn task_becomes(&self, job: &str, task: &str, state: TaskState) -> Task {
        eventually(&format!("task {task} {state:?}"), || async {
            self.task(job, task).await.ok().filter(|task| task.state() == state)
        })
        .await
    }

    pub async fn completed(&self, job: &str, count: i64) {
        eventually(&format!("{count} tasks of {job} completed"), || async {
            match call!(self, count_tasks, CountTasksRequest { job_id: job.into() }) {
                Ok(counts) => counts.tasks.filter(|tasks| tasks.completed >= count),
                Err(_) => None,
            }
        })
        .await;
    }
}

/// An agent that runs nothing.
pub struct Agent {
    pub up: mpsc::Sender<WorkUp>,
    pub down: tonic::Streaming<WorkDown>,
    /// Attempts it was given, and how often each.
    pub runs: HashMap<(String, String, u32), u32>,
}

impl Agent {
    pub async fn next(&mut self) -> work_down::Message {
        self.try_next().await.expect("the stream goes on")
    }

    pub async fn try_next(&mut self) -> Option<work_down::Message> {
        let wait = tokio::time::timeout(kiln_testkit::PATIENCE, self.down.message());
        let message = wait.await.expect("a message in time").ok()??.message.unwrap();
        if let work_down::Message::Assignments(given) = &message {
            for assignment in &given.assignments {
                let key = assignment.key.clone().unwrap();
                *self.runs.entry((key.job_id, key.task_id, key.attempt)).or_default() += 1;
            }
        }
        Some(message)
    }

    pub async fn send(&self, message: work_up::Message) {
        // A stream that broke is noticed when reading.
        let _ = self.up.send(WorkUp { message: Some(message) }).await;
    }

    pub async fn assignments(&mut self) -> Vec<Assignment> {
        loop {
            if let work_down::Message::Assignments(given) = self.next().await {
                return given.assignments;
            }
        }
    }

    pub async fn stops(&mut self) -> Vec<AttemptKey> {
        loop {
            if let work_down::Message::Stop(stop) = self.next().await {
                return stop.attempts;
            }
        }
    }

    pub async fn acks(&mut self) -> Vec<AttemptKey> {
        loop {
            if let work_down::Message::Acks(acks) = self.next().await {
                return acks.attempts;
            }
        }
    }

    pub async fn report(&self, reports: Vec<AttemptReport>) {
        self.send(work_up::Message::Reports(Reports { reports })).await;
    }

    pub async fn end(&self, key: &AttemptKey, exit_code: i32) {
        self.report(vec![ended(key.clone(), Some(exit_code), EndCause::Exited)]).await;
    }

    pub async fn stopped(&self, key: &AttemptKey) {
        self.report(vec![ended(key.clone(), Some(137), EndCause::Stopped)]).await;
    }

    /// Finishes whatever it is given with exit code 0, until the stream ends.
    pub async fn work(&mut self) {
        while let Some(message) = self.try_next().await {
            if let work_down::Message::Assignments(given) = message {
                let mut reports = Vec::new();
                for assignment in given.assignments {
                    let key = assignment.key.unwrap();
                    reports.push(started(key.clone()));
                    reports.push(ended(key, Some(0), EndCause::Exited));
                }
                self.report(reports).await;
            }
        }
    }
}

pub fn started(key: AttemptKey) -> AttemptReport {
    let start_time = Some(timestamp(Timestamp::now().as_micros()));
    AttemptReport { key: Some(key), what: Some(attempt_report::What::Started(AttemptStarted { start_time })) }
}

pub fn ended(key: AttemptKey, exit_code: Option<i32>, cause: EndCause) -> AttemptReport {
    let now = Timestamp::now().as_micros();
    let ended = AttemptEnded {
        // Long enough that the next task of the job is not assigned ahead of a free slot.
        start_time: Some(timestamp(now - 1_000_000)),
        end_time: Some(timestamp(now)),
        exit_code,
        failure: None,
        cause: cause.into(),
        outputs_kept: false,
    };
    AttemptReport { key: Some(key), what: Some(attempt_report::What::Ended(ended)) }
}
