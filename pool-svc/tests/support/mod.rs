//! A running pool-svc, clients of it, and agents that do what a test says.
// Helpers outside of test functions; not every test file uses all of them.
#![allow(clippy::unwrap_used, dead_code)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kiln_auth::SecretKey;
use kiln_bus::memory::MemoryBus;
use kiln_grpc::{ServiceAuth, ServiceChannel, with_account};
use kiln_node::{JoinConfig, JoinInvitation};
use kiln_proto::pool::v1::control_up::Message as Up;
use kiln_proto::pool::v1::node_control_service_client::NodeControlServiceClient;
use kiln_proto::pool::v1::pool_service_client::PoolServiceClient;
use kiln_proto::pool::v1::*;
use kiln_testkit::eventually;
use pool_svc::{Config, Deps, LocalProviderConfig};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

/// A process that holds the lock as an agent does, and nothing else. It ends by
/// itself, so that a test that fails leaves nothing for long.
const IDLE_AGENT: &str = "exec 9<>agent.lock; flock -xn 9 || exit 1; echo $$ >&9; exec sleep 300";

pub const ACCOUNT: &str = "demo";

pub struct Service {
    pub dir: Arc<tempfile::TempDir>,
    pub key: Arc<SecretKey>,
    pub bus: Arc<MemoryBus>,
    pub endpoint: String,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
    /// Its own, so that it can be killed with everything it does.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn idle_agents(dir: &std::path::Path) -> LocalProviderConfig {
    let command = ["sh", "-c", IDLE_AGENT, "agent"].map(str::to_owned).to_vec();
    LocalProviderConfig { stop_grace: Duration::from_secs(5), ..LocalProviderConfig::new(dir.join("nodes"), command) }
}

impl Service {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Self::open(dir, Arc::new(SecretKey::generate()), change).await
    }

    async fn open(dir: Arc<tempfile::TempDir>, key: Arc<SecretKey>, change: impl FnOnce(&mut Config)) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.spawn(TcpListener::bind("127.0.0.1:0")).await.unwrap().unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let mut config = Config {
            control_endpoint: endpoint.clone(),
            work_endpoint: "http://127.0.0.1:1".into(),
            public_blob_endpoint: "http://127.0.0.1:2".into(),
            batch_endpoint: "http://127.0.0.1:3".into(),
            local: Some(idle_agents(dir.path())),
            stop_nodes_on_shutdown: true,
            ..Config::new(dir.path())
        };
        change(&mut config);
        let bus = Arc::new(MemoryBus::new());
        let shutdown = CancellationToken::new();
        let deps = Deps { cluster_key: key.clone(), bus: bus.clone(), tls: None };
        let task = runtime.spawn(pool_svc::run(config, deps, listener, shutdown.clone()));
        Self { dir, key, bus, endpoint, shutdown, task, runtime: Some(runtime) }
    }

    /// Another replica, on a PostgreSQL that others may have, too; makes no nodes.
    pub async fn replica(store: &kiln_store::testing::TestStore, key: Arc<SecretKey>) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Self::open(dir, key, |config| {
            config.store = store.config().clone();
            config.local = None;
        })
        .await
    }

    /// Stops the service in an orderly way.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        (&mut self.task).await.unwrap().unwrap();
    }

    /// Stops the service in the middle of whatever it does, as a crash would.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Stops the service and starts it on the same data.
    pub async fn restart(self, change: impl FnOnce(&mut Config)) -> Self {
        let (dir, key) = (self.dir.clone(), self.key.clone());
        self.stop().await;
        Self::open(dir, key, change).await
    }

    pub fn client(&self) -> PoolServiceClient<ServiceChannel> {
        let auth = ServiceAuth::new("test", self.key.clone());
        PoolServiceClient::new(auth.connect(&self.endpoint).unwrap())
    }

    pub fn node_dir(&self, pool: &str, node: &str) -> PathBuf {
        self.dir.path().join("nodes").join(ACCOUNT).join(pool).join(node)
    }

    pub fn agent_pid(&self, pool: &str, node: &str) -> Option<i32> {
        std::fs::read_to_string(self.node_dir(pool, node).join(kiln_node::LOCK_FILE)).ok()?.trim().parse().ok()
    }

    pub async fn create(&self, id: &str, nodes: i32) -> Pool {
        let spec = PoolSpec { target_dedicated_nodes: nodes, task_slots_per_node: 4, ..PoolSpec::default() };
        self.create_with(id, spec).await.unwrap()
    }

    pub async fn create_with(&self, id: &str, spec: PoolSpec) -> Result<Pool, kiln_error::Error> {
        let request = CreatePoolRequest { request_id: String::new(), id: id.to_owned(), spec: Some(spec) };
        Ok(self.client().create_pool(call(request)).await?.into_inner().pool.unwrap())
    }

    pub async fn pool(&self, id: &str) -> Result<Pool, kiln_error::Error> {
        let request = GetPoolRequest { id: id.to_owned(), precondition: None };
        Ok(self.client().get_pool(call(request)).await?.into_inner().pool.unwrap())
    }

    pub async fn node(&self, pool: &str, node: &str) -> Result<Node, kiln_error::Error> {
        let request = GetNodeRequest { pool_id: pool.to_owned(), node_id: node.to_owned() };
        Ok(self.client().get_node(call(request)).await?.into_inner().node.unwrap())
    }

    pub async fn nodes(&self, pool: &str) -> Vec<Node> {
        let request = ListNodesRequest { pool_id: pool.to_owned(), ..ListNodesRequest::default() };
        self.client().list_nodes(call(request)).await.unwrap().into_inner().nodes
    }

    pub async fn wait_steady(&self, pool: &str) -> Pool {
        eventually("the pool is steady", || async {
            self.pool(pool).await.ok().filter(|pool| pool.allocation_state() == AllocationState::Steady)
        })
        .await
    }

    pub async fn wait_node(&self, pool: &str, node: &str, state: NodeState) -> Node {
        eventually(&format!("{node} is {state:?}"), || async {
            self.node(pool, node).await.ok().filter(|node| node.state() == state)
        })
        .await
    }

    pub async fn resize(&self, pool: &str, nodes: i32, option: kiln_proto::common::v1::DeallocationOption) {
        let request = ResizePoolRequest {
            id: pool.to_owned(),
            target_dedicated_nodes: Some(nodes),
            deallocation_option: option as i32,
            ..ResizePoolRequest::default()
        };
        self.client().resize_pool(call(request)).await.unwrap();
    }

    pub async fn delete(&self, pool: &str) {
        let request = DeletePoolRequest { id: pool.to_owned(), ..DeletePoolRequest::default() };
        self.client().delete_pool(call(request)).await.unwrap();
    }

    pub async fn wait_gone(&self, pool: &str) {
        eventually("the pool is gone", || async {
            self.pool(pool).await.err().filter(|error| error.reason() == "PoolNotFound")
        })
        .await;
    }
}

pub fn call<T>(message: T) -> Request<T> {
    with_account(message, ACCOUNT).unwrap()
}

pub fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

/// A token for machines that join a pool.
pub async fn invitation(service: &Service, pool: &str, uses: i32) -> Result<JoinInvitation, kiln_error::Error> {
    let request = CreateJoinTokenRequest { pool_id: pool.into(), uses, ..CreateJoinTokenRequest::default() };
    let made = service.client().create_join_token(call(request)).await?.into_inner();
    Ok(JoinInvitation::parse(&made.token).unwrap())
}

/// Makes a machine a node; it speaks to where the invitation leads.
pub async fn join(
    service: &Service,
    invitation: &JoinInvitation,
    request_id: &str,
) -> Result<JoinConfig, kiln_error::Error> {
    let mut client = NodeControlServiceClient::connect(invitation.control_endpoint.clone()).await.unwrap();
    let request = JoinRequest { request_id: request_id.into() };
    let joined = client.join(with_token(request, &invitation.token)).await?.into_inner();
    Ok(JoinConfig {
        control_endpoint: invitation.control_endpoint.clone(),
        account: joined.account,
        pool_id: joined.pool_id,
        node_id: joined.node_id,
        join_token: joined.join_token,
        ca_pem: None,
        node_dir: service.dir.path().join("joined"),
    })
}

/// An agent of a node, as far as the service can tell.
pub struct Agent {
    pub registered: RegisterResponse,
    pub incarnation: String,
    client: NodeControlServiceClient<Channel>,
    up: mpsc::Sender<ControlUp>,
    down: Streaming<ControlDown>,
    done: u64,
    sequence: AtomicU64,
}

impl Agent {
    /// Registers with what the provider wrote and opens the control stream.
    pub async fn join(service: &Service, pool: &str, node: &str, incarnation: &str) -> Self {
        let file = service.node_dir(pool, node).join(kiln_node::JOIN_FILE);
        let join = eventually("the join file", || async { JoinConfig::read(&file).ok() }).await;
        Self::register(service, &join, incarnation).await
    }

    /// Registers with a join token and opens the control stream.
    pub async fn register(service: &Service, join: &JoinConfig, incarnation: &str) -> Self {
        let mut client = NodeControlServiceClient::connect(service.endpoint.clone()).await.unwrap();
        let registered =
            client.register(with_token(registration(join, incarnation), &join.join_token)).await.unwrap().into_inner();
        Self::connect(service, registered, incarnation).await
    }

    /// Opens a control stream with a token from an earlier registration.
    pub async fn connect(service: &Service, registered: RegisterResponse, incarnation: &str) -> Self {
        let mut client = NodeControlServiceClient::connect(service.endpoint.clone()).await.unwrap();
        let (up, messages) = mpsc::channel(16);
        let request = with_token(ReceiverStream::new(messages), &registered.node_token);
        let down = client.control(request).await.unwrap().into_inner();
        Self { registered, incarnation: incarnation.to_owned(), client, up, down, done: 0, sequence: AtomicU64::new(0) }
    }

    pub async fn report(&self, phase: AgentPhase, running_tasks: i32) {
        self.report_with(phase, running_tasks, |_| {}).await;
    }

    pub async fn report_with(&self, phase: AgentPhase, running_tasks: i32, change: impl FnOnce(&mut NodeReport)) {
        let mut report = NodeReport {
            incarnation: self.incarnation.clone(),
            phase: phase as i32,
            scheduling_state: SchedulingState::Enabled as i32,
            running_tasks,
            running_task_slots: running_tasks,
            done_command_id: self.done,
            ..NodeReport::default()
        };
        change(&mut report);
        self.up.send(ControlUp { message: Some(Up::Report(report)) }).await.unwrap();
    }

    pub async fn heartbeat(&self) {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let heartbeat = Heartbeat { sequence, ..Heartbeat::default() };
        self.up.send(ControlUp { message: Some(Up::Heartbeat(heartbeat)) }).await.unwrap();
    }

    /// The next message, whatever it is.
    pub async fn next(&mut self) -> Result<Option<control_down::Message>, Status> {
        let message = tokio::time::timeout(kiln_testkit::PATIENCE, self.down.message()).await.expect("a message")?;
        Ok(message.and_then(|down| {
            self.done = self.done.max(down.command_id);
            down.message
        }))
    }

    /// The next message that is not an acknowledgement.
    pub async fn command(&mut self) -> control_down::Message {
        loop {
            match self.next().await.unwrap().expect("a command") {
                control_down::Message::HeartbeatAck(_) => {}
                other => return other,
            }
        }
    }

    pub async fn file_request(&mut self) -> FileRequest {
        match self.command().await {
            control_down::Message::FileRequest(request) => request,
            other => panic!("expected a file request, got {other:?}"),
        }
    }

    /// Begins an answer; what is sent goes to the caller.
    pub fn answer(&self, transfer_id: &str) -> Answer {
        let (parts, messages) = mpsc::channel(1);
        let mut client = self.client.clone();
        let request = with_token(ReceiverStream::new(messages), &self.registered.node_token);
        let call = kiln_telemetry::spawn(async move { client.answer_file(request).await.map(drop) });
        Answer { transfer_id: Some(transfer_id.to_owned()), parts, call }
    }
}

pub struct Answer {
    transfer_id: Option<String>,
    parts: mpsc::Sender<FileAnswer>,
    pub call: tokio::task::JoinHandle<Result<(), Status>>,
}

impl Answer {
    /// Sends a part; false when the service has ended the stream.
    pub async fn part(&mut self, part: file_answer::Part) -> bool {
        let transfer_id = self.transfer_id.take().unwrap_or_default();
        self.parts.send(FileAnswer { transfer_id, part: Some(part) }).await.is_ok()
    }

    pub async fn end(self) -> Result<(), Status> {
        drop(self.parts);
        self.call.await.unwrap()
    }
}

pub fn registration(join: &JoinConfig, incarnation: &str) -> RegisterRequest {
    RegisterRequest {
        pool_id: join.pool_id.clone(),
        node_id: join.node_id.clone(),
        incarnation: incarnation.to_owned(),
        agent_version: "test".into(),
        ip_address: "127.0.0.1".into(),
        cpus: 2,
        memory_bytes: 1 << 30,
        root_dir: join.root_dir().to_string_lossy().into_owned(),
    }
}

/// Registers with any token, for what is refused.
pub async fn try_register(service: &Service, token: &str, request: RegisterRequest) -> Result<(), kiln_error::Error> {
    let mut client = NodeControlServiceClient::connect(service.endpoint.clone()).await.unwrap();
    client.register(with_token(request, token)).await.map(drop).map_err(Into::into)
}
