//! The services as processes of their own, with RabbitMQ between them: what `deploy/config` describes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use kiln_auth::SecretKey;
use kiln_bus::{Bus, QueueSpec, RabbitBus, RabbitConfig};
use kiln_client::Client;
use kiln_grpc::ServiceAuth;
use kiln_proto::gateway::v1::gateway_admin_service_client::GatewayAdminServiceClient;
use kiln_proto::storage::v1::storage_admin_service_client::StorageAdminServiceClient;
use kiln_proto::{gateway, storage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;

use crate::{LONG, programs, until};

/// The account of these deployments.
const ACCOUNT: &str = "alpha";

/// Five service processes that share nothing but a key and a broker.
#[derive(Debug)]
pub struct Deployment {
    dir: tempfile::TempDir,
    /// A loopback address of its own, so that the usual ports are free there.
    host: String,
    prefix: String,
    cluster_key: SecretKey,
    account_key: SecretKey,
    services: Vec<(&'static str, Child)>,
}

impl Deployment {
    /// Starts all services, waits until they are ready, and makes the account.
    pub async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let number = std::process::id();
        let mut deployment = Self {
            dir: tempfile::Builder::new().prefix("kiln-e2e-").tempdir().unwrap(),
            host: format!("127.{}.{}.{}", 64 + (number >> 16 & 63), number >> 8 & 255, 1 + (number & 127)),
            prefix: format!("e2e-{}.", uuid::Uuid::new_v4().simple()),
            cluster_key: SecretKey::generate(),
            account_key: SecretKey::generate(),
            services: Vec::new(),
        };
        for service in ["monitor-svc", "storage-svc", "job-svc", "pool-svc", "gateway"] {
            let child = deployment.spawn(service);
            deployment.services.push((service, child));
        }
        deployment.until_ready().await;
        deployment.make_account().await;
        deployment
    }

    /// A gRPC client of the account.
    pub fn client(&self) -> Client {
        Client::connect(&self.url(7450), ACCOUNT, &self.account_key.to_base64()).unwrap()
    }

    /// Kills one service with -9 and starts it again on the same data.
    pub async fn kill_9_and_restart(&mut self, service: &'static str) {
        let child = self.spawn_after_kill(service).await;
        self.services.push((service, child));
        self.until_ready().await;
    }

    /// Asks every process to end, and checks that each does so in order.
    pub async fn stop(mut self) {
        // Front to back, as an operator would.
        for (service, mut child) in self.services.drain(..).rev() {
            let pid = child.id().expect("it runs");
            kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).unwrap();
            let status = tokio::time::timeout(LONG, child.wait()).await.expect("it ends").unwrap();
            assert!(status.success(), "{service} ended with {status}\n{}", log_tail(self.dir.path(), service));
        }
        let bus = RabbitBus::new(RabbitConfig::new(amqp_url(), "e2e").with_prefix(&self.prefix)).unwrap();
        let queue = QueueSpec { name: "monitor.events".to_owned(), bindings: vec!["#".to_owned()], prefetch: 64 };
        bus.declare(&queue).await.unwrap();
        bus.remove_everything().await.unwrap();
        bus.close();
    }

    fn url(&self, port: u16) -> String {
        format!("http://{}:{port}", self.host)
    }

    async fn spawn_after_kill(&mut self, service: &'static str) -> Child {
        let at = self.services.iter().position(|(name, _)| *name == service).expect("it was started");
        let (_, mut child) = self.services.remove(at);
        child.start_kill().unwrap();
        child.wait().await.unwrap();
        self.spawn(service)
    }

    fn spawn(&self, service: &'static str) -> Child {
        let dir = self.dir.path();
        let config = dir.join(format!("{service}.toml"));
        std::fs::write(&config, self.settings(service)).unwrap();
        let log = File::options().create(true).append(true).open(dir.join(format!("{service}.log"))).unwrap();
        programs::command(&programs::service(service))
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// The settings of one service, with the keys of `deploy/config/<service>.toml`.
    fn settings(&self, service: &str) -> String {
        let path = |name: &str| -> PathBuf { self.dir.path().join(name) };
        let (key, data) = (self.cluster_key.to_base64(), path(&format!("data-{service}")));
        std::fs::create_dir_all(&data).unwrap();
        let common =
            |port: u16| format!("listen = \"{}:{port}\"\ndata_dir = {data:?}\ncluster_key = {key:?}\n", self.host);
        let bus = format!("amqp_url = {:?}\namqp_prefix = {:?}\n", amqp_url(), self.prefix);
        let blobs = format!("public_blob_endpoint = {:?}\n", self.url(7451));
        match service {
            "storage-svc" => format!("{}{bus}{blobs}blob_listen = \"{}:7451\"\n", common(7461), self.host),
            "pool-svc" => format!(
                "{}{bus}{blobs}control_endpoint = {:?}\nwork_endpoint = {:?}\nbatch_endpoint = {:?}\n\
                 stop_nodes_on_shutdown = true\n[local]\nnodes_dir = {:?}\nagent_command = [{:?}, \"agent\"]\n",
                common(7462),
                self.url(7462),
                self.url(7463),
                self.url(7450),
                path("nodes"),
                programs::kiln(),
            ),
            "job-svc" => format!("{}{bus}", common(7463)),
            "monitor-svc" => format!("{}{bus}", common(7464)),
            "gateway" => format!(
                "{}{blobs}storage_endpoint = {:?}\npool_endpoint = {:?}\njob_endpoint = {:?}\nmonitor_endpoint = {:?}\n\
                 batch_endpoint = {:?}\n",
                common(7450),
                self.url(7461),
                self.url(7462),
                self.url(7463),
                self.url(7464),
                self.url(7450),
            ),
            other => panic!("there is no service {other}"),
        }
    }

    async fn until_ready(&mut self) {
        let urls: Vec<_> = [7450, 7461, 7462, 7463, 7464].map(|port| format!("{}/readyz", self.url(port))).into();
        let dir = self.dir.path();
        let services = &mut self.services;
        until("all services are ready", Duration::from_secs(60), async || {
            for (service, child) in services.iter_mut() {
                if let Some(status) = child.try_wait().unwrap() {
                    panic!("{service} ended with {status}\n{}", log_tail(dir, service));
                }
            }
            for url in &urls {
                reqwest::get(url).await.ok()?.error_for_status().ok()?;
            }
            Some(())
        })
        .await;
    }

    async fn make_account(&self) {
        let auth = ServiceAuth::new("e2e", Arc::new(self.cluster_key.clone()));
        let (key1, key2) = (self.account_key.to_base64(), SecretKey::generate().to_base64());
        let request =
            storage::v1::PutAccountRequest { account: ACCOUNT.to_owned(), key1: key1.clone(), key2: key2.clone() };
        let channel = auth.connect(&self.url(7461)).unwrap();
        StorageAdminServiceClient::new(channel).put_account(request).await.unwrap();
        let (account, storage_account) = (ACCOUNT.to_owned(), ACCOUNT.to_owned());
        let request = gateway::v1::PutAccountRequest { account, key1, key2, storage_account };
        let channel = auth.connect(&self.url(7450)).unwrap();
        GatewayAdminServiceClient::new(channel).put_account(request).await.unwrap();
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (service, _) in &self.services {
                eprintln!("--- end of the log of {service}\n{}", log_tail(self.dir.path(), service));
            }
        }
        self.services.clear();
        for (pid, _) in crate::server::processes_of(self.dir.path()) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

fn amqp_url() -> String {
    std::env::var("KILN_TEST_AMQP_URL").unwrap_or_else(|_| "amqp://guest:guest@127.0.0.1:5672/%2f".to_owned())
}

fn log_tail(dir: &Path, service: &str) -> String {
    let log = std::fs::read_to_string(dir.join(format!("{service}.log"))).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
