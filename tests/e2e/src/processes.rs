//! The services as processes of their own, with RabbitMQ between them: what `deploy/config` describes.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use kiln_auth::SecretKey;
use kiln_bus::{Bus, QueueSpec, RabbitBus, RabbitConfig};
use kiln_client::Client;
use kiln_store::testing::TestStore;
use kiln_tls::Files;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;

use crate::{LONG, programs, until};

/// The account of these deployments.
const ACCOUNT: &str = "alpha";

/// The services, in the order in which they are started.
pub const SERVICES: [&str; 5] = ["monitor-svc", "storage-svc", "job-svc", "pool-svc", "gateway"];

/// What a deployment may have different from others.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Another broker than that of the tests.
    pub amqp_url: Option<String>,
    /// Another PostgreSQL than that of the tests, for all stores.
    pub database_url: Option<String>,
    /// Of job-svc.
    pub lease: Option<Duration>,
    /// Processes of each service, the further ones on loopback addresses of their own; 0 is one. Several need PostgreSQL.
    pub replicas: usize,
    /// How long a replica of job-svc may be silent before another takes its pools.
    pub pool_lease: Option<Duration>,
    /// Ports of a replica's host under which agents are told to find pool-svc and job-svc.
    pub agents_through: Option<(u16, u16)>,
    /// Where agents write down what they run.
    pub record: Option<PathBuf>,
    /// Records in PostgreSQL, each service in a schema of its own; else in files.
    pub postgres: bool,
    /// TLS everywhere, with certificates of `kiln certs`.
    pub tls: bool,
}

/// Ports of pool-svc and job-svc.
const AGENTS: (u16, u16) = (7462, 7463);

/// Most replicas: each has the next 64 second numbers of a loopback address.
pub const MOST_REPLICAS: usize = 3;

/// A process of a service.
#[derive(Debug)]
struct Process {
    service: &'static str,
    /// Counted from 0.
    replica: usize,
    child: Child,
}

/// Who has a certificate of a service beside the services: `kiln account`, and the test itself.
const OTHERS: [&str; 2] = ["kiln-account", "e2e"];

/// Five service processes that share nothing but a key and a broker.
#[derive(Debug)]
pub struct Deployment {
    options: Options,
    dir: tempfile::TempDir,
    /// A loopback address of its own, so that the usual ports are free there.
    host: String,
    prefix: String,
    cluster_key: SecretKey,
    /// Base64.
    account_key: String,
    /// Where `kiln certs` has put certificates, if there are any.
    certificates: Option<PathBuf>,
    services: Vec<Process>,
    /// The schemas, which go when the processes are gone.
    stores: Vec<(&'static str, TestStore)>,
}

impl Deployment {
    /// Starts all services, waits until they are ready, and makes the account.
    pub async fn start() -> Self {
        Self::start_with(&Self::free_host(), Options::default()).await
    }

    /// A loopback address that no other test has.
    pub fn free_host() -> String {
        let number = std::process::id();
        format!("127.{}.{}.{}", 64 + (number >> 16 & 63), number >> 8 & 255, 1 + (number & 127))
    }

    /// The address of a replica, if the first has `host`.
    pub fn host_of(host: &str, replica: usize) -> String {
        let address: std::net::Ipv4Addr = host.parse().unwrap();
        let [a, b, c, d] = address.octets();
        std::net::Ipv4Addr::new(a, b + 64 * u8::try_from(replica).unwrap(), c, d).to_string()
    }

    /// As [`Deployment::start`], on a loopback address and with other settings.
    pub async fn start_with(host: &str, options: Options) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut deployment = Self {
            stores: SERVICES.iter().filter(|_| options.postgres).map(|name| (*name, TestStore::postgres())).collect(),
            options,
            dir: tempfile::Builder::new().prefix("kiln-e2e-").tempdir().unwrap(),
            host: host.to_owned(),
            prefix: format!("e2e-{}.", uuid::Uuid::new_v4().simple()),
            cluster_key: SecretKey::generate(),
            account_key: String::new(),
            certificates: None,
            services: Vec::new(),
        };
        if deployment.options.tls {
            deployment.certificates = Some(deployment.dir.path().join("certs"));
            deployment.certs(&["init", "--name", "e2e"]).await;
            for name in SERVICES.into_iter().chain(OTHERS) {
                deployment.certs(&["issue", "service", "--name", name]).await;
            }
            let hosts: Vec<String> = (0..deployment.replicas()).map(|replica| Self::host_of(host, replica)).collect();
            let mut arguments = vec!["issue", "gateway"];
            arguments.extend(hosts.iter().flat_map(|host| ["--host", host]));
            deployment.certs(&arguments).await;
        }
        for service in SERVICES {
            for replica in 0..deployment.replicas() {
                deployment.start_again(service, replica);
            }
        }
        deployment.until_ready().await;
        deployment.make_account().await;
        deployment
    }

    /// A gRPC client of the account.
    pub fn client(&self) -> Client {
        let url = self.urls(7450);
        match self.certificate("ca.crt") {
            Some(authority) => Client::connect_trusting(&url, ACCOUNT, &self.account_key, &authority).unwrap(),
            None => Client::connect(&url, ACCOUNT, &self.account_key).unwrap(),
        }
    }

    /// Runs `kiln certs`; gives what it prints.
    pub async fn certs(&self, arguments: &[&str]) -> String {
        let dir = self.certificates.as_ref().expect("a deployment with TLS");
        let mut command = programs::command(&programs::kiln());
        let output = command.arg("certs").args(arguments).arg("--dir").arg(dir).output().await.unwrap();
        assert!(output.status.success(), "{}", programs::text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// A file that `kiln certs` has made.
    pub fn certificate(&self, name: &str) -> Option<PathBuf> {
        self.certificates.as_ref().map(|dir| dir.join(name))
    }

    /// The files of a certificate.
    pub fn files(&self, name: &str) -> Files {
        let file = |ending: &str| self.certificate(&format!("{name}.{ending}")).expect("a deployment with TLS");
        Files { certificate: file("crt"), key: file("key"), authority: self.certificate("ca.crt") }
    }

    /// The key that signs tokens of services.
    pub fn cluster_key(&self) -> Arc<SecretKey> {
        Arc::new(self.cluster_key.clone())
    }

    /// A key of the account, Base64.
    pub fn account_key(&self) -> &str {
        &self.account_key
    }

    /// Comes before the names of its exchanges and queues.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Directory of the test.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Processes of each service.
    pub fn replicas(&self) -> usize {
        self.options.replicas.clamp(1, MOST_REPLICAS)
    }

    /// Kills the first replica of a service with -9 and starts it again on the same data.
    pub async fn kill_9_and_restart(&mut self, service: &'static str) {
        self.kill_9(service, 0).await;
        self.start_again(service, 0);
        self.until_ready().await;
    }

    /// Kills one process with -9.
    pub async fn kill_9(&mut self, service: &'static str, replica: usize) {
        let is = |process: &Process| (process.service, process.replica) == (service, replica);
        let at = self.services.iter().position(is).expect("it was started");
        let mut process = self.services.remove(at);
        process.child.start_kill().unwrap();
        process.child.wait().await.unwrap();
    }

    /// Starts a process on its data; it must have ended.
    pub fn start_again(&mut self, service: &'static str, replica: usize) {
        let child = self.spawn(service, replica);
        self.services.push(Process { service, replica, child });
    }

    /// Processes that have ended by themselves, with the end of their logs.
    pub fn ended(&mut self) -> Vec<(&'static str, usize, String)> {
        let dir = self.dir.path();
        let gone = self.services.iter_mut().filter_map(|Process { service, replica, child }| {
            let status = child.try_wait().unwrap()?;
            Some((*service, *replica, format!("{status}\n{}", log_tail(dir, service, *replica))))
        });
        gone.collect()
    }

    /// A process of a service.
    pub fn pid(&self, service: &str, replica: usize) -> Option<Pid> {
        let process = self.services.iter().find(|one| (one.service, one.replica) == (service, replica))?;
        Some(Pid::from_raw(process.child.id()?.cast_signed()))
    }

    /// The replica of job-svc that says to be at `endpoint`.
    pub fn replica_at(&self, endpoint: &str) -> Option<usize> {
        let (_, work) = self.options.agents_through.unwrap_or(AGENTS);
        (0..self.replicas()).find(|replica| self.url_of(work, *replica) == endpoint)
    }

    /// What a process has told so far.
    pub fn log(&self, service: &str, replica: usize) -> String {
        std::fs::read_to_string(self.dir.path().join(file(service, replica, "log"))).unwrap_or_default()
    }

    /// Directory of a process for its data.
    pub fn data(&self, service: &str, replica: usize) -> PathBuf {
        self.dir.path().join(file(service, replica, "data"))
    }

    /// Processes of the agents, by node.
    pub fn agents(&self) -> std::collections::BTreeMap<String, Pid> {
        crate::server::agents_below(self.dir.path())
    }

    /// Asks every process to end, and checks that each does so in order.
    pub async fn stop(mut self) {
        // Front to back, as an operator would.
        let place = |process: &Process| SERVICES.iter().position(|name| *name == process.service);
        self.services.sort_by_key(place);
        for Process { service, replica, mut child } in self.services.drain(..).rev() {
            let pid = child.id().expect("it runs");
            kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).unwrap();
            let status = tokio::time::timeout(LONG, child.wait()).await.expect("it ends").unwrap();
            assert!(status.success(), "{service} ended with {status}\n{}", log_tail(self.dir.path(), service, replica));
        }
        remove_queues(&self.amqp_url(), &self.prefix).await;
    }

    fn amqp_url(&self) -> String {
        self.options.amqp_url.clone().unwrap_or_else(amqp_url)
    }

    /// A port of one of the services.
    pub fn url(&self, port: u16) -> String {
        self.url_of(port, 0)
    }

    /// A port of a replica.
    pub fn url_of(&self, port: u16, replica: usize) -> String {
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        format!("{scheme}://{}:{port}", Self::host_of(&self.host, replica))
    }

    /// A port of all replicas, with commas.
    fn urls(&self, port: u16) -> String {
        (0..self.replicas()).map(|replica| self.url_of(port, replica)).collect::<Vec<_>>().join(",")
    }

    /// HTTP that trusts the deployment's authority and finds services by their names.
    pub fn http(&self) -> reqwest::Client {
        self.http_to(0)
    }

    /// The same with the names of one replica's services.
    fn http_to(&self, replica: usize) -> reqwest::Client {
        let host = Self::host_of(&self.host, replica);
        let mut builder = reqwest::Client::builder().no_proxy();
        if let Some(authority) = self.certificate("ca.crt") {
            let pem = std::fs::read(authority).unwrap();
            builder = builder.tls_certs_merge([reqwest::Certificate::from_pem(&pem).unwrap()]);
            for name in SERVICES {
                builder = builder.resolve(name, SocketAddr::new(host.parse().unwrap(), 0));
            }
        }
        builder.build().unwrap()
    }

    /// The keys of certificates in the settings of a service.
    fn tls_settings(&self, service: &str) -> String {
        if self.certificates.is_none() {
            return String::new();
        }
        let Files { certificate, key, authority } = self.files(service);
        let authority = authority.expect("an authority");
        let mut text =
            format!("tls_cert_file = {certificate:?}\ntls_key_file = {key:?}\ntls_ca_file = {authority:?}\n");
        if ["gateway", "storage-svc"].contains(&service) {
            let Files { certificate, key, .. } = self.files("public");
            text.push_str(&format!("public_tls_cert_file = {certificate:?}\npublic_tls_key_file = {key:?}\n"));
        }
        text
    }

    fn spawn(&self, service: &'static str, replica: usize) -> Child {
        let dir = self.dir.path();
        let config = dir.join(file(service, replica, "toml"));
        std::fs::write(&config, self.settings(service, replica)).unwrap();
        let log = File::options().create(true).append(true).open(dir.join(file(service, replica, "log"))).unwrap();
        programs::command(&programs::service(service))
            .arg("--config")
            .arg(&config)
            .envs(self.options.record.iter().map(|file| ("KILN_AGENT_RECORD_FILE", file)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// The settings of one service, with the keys of `deploy/config/<service>.toml`.
    fn settings(&self, service: &str, replica: usize) -> String {
        let path = |name: &str| -> PathBuf { self.dir.path().join(name) };
        let (key, data) = (self.cluster_key.to_base64(), self.data(service, replica));
        std::fs::create_dir_all(&data).unwrap();
        let store = self.stores.iter().find(|(of, _)| *of == service).map(|(_, store)| {
            let schema = store.postgres_config().schema();
            format!("database_url = {:?}\ndatabase_schema = {schema:?}\n", TestStore::url())
        });
        let other = || self.options.database_url.as_ref().map(|url| format!("database_url = {url:?}\n"));
        let more = store.or_else(other).unwrap_or_default() + &self.tls_settings(service);
        let host = Self::host_of(&self.host, replica);
        let common =
            |port: u16| format!("listen = \"{host}:{port}\"\ndata_dir = {data:?}\ncluster_key = {key:?}\n{more}");
        let bus = format!("amqp_url = {:?}\namqp_prefix = {:?}\n", self.amqp_url(), self.prefix);
        let (control, work) = self.options.agents_through.unwrap_or(AGENTS);
        let blobs = format!("public_blob_endpoint = {:?}\n", self.url(7451));
        match service {
            "storage-svc" => {
                let objects = self.dir.path().join("objects");
                let objects = if self.replicas() > 1 { format!("objects_dir = {objects:?}\n") } else { String::new() };
                format!("{}{bus}{blobs}{objects}blob_listen = \"{host}:7451\"\n", common(7461))
            }
            "pool-svc" => format!(
                "{}{bus}{blobs}control_endpoint = {:?}\nwork_endpoint = {:?}\nbatch_endpoint = {:?}\n\
                 stop_nodes_on_shutdown = true\n[local]\nnodes_dir = {:?}\nagent_command = [{:?}, \"agent\"]\n",
                common(7462),
                self.urls(control),
                self.urls(work),
                self.url(7450),
                path("nodes"),
                programs::kiln(),
            ),
            "job-svc" => {
                let lease = self.options.lease.map(|lease| {
                    format!("lease_ms = {}\nlease_margin_ms = {}\n", lease.as_millis(), lease.as_millis() / 4)
                });
                let more = [
                    lease,
                    self.options.pool_lease.map(|lease| format!("pool_lease_ms = {}\n", lease.as_millis())),
                    (self.replicas() > 1).then(|| format!("advertised_endpoint = {:?}\n", self.url_of(work, replica))),
                ];
                format!("{}{bus}{}", common(7463), more.into_iter().flatten().collect::<String>())
            }
            "monitor-svc" => format!("{}{bus}", common(7464)),
            "gateway" => format!(
                "{}{blobs}storage_endpoint = {:?}\npool_endpoint = {:?}\njob_endpoint = {:?}\nmonitor_endpoint = {:?}\n\
                 batch_endpoint = {:?}\n",
                common(7450),
                self.urls(7461),
                self.urls(7462),
                self.urls(7463),
                self.urls(7464),
                self.url(7450),
            ),
            other => panic!("there is no service {other}"),
        }
    }

    /// Waits until every process can take work.
    pub async fn until_ready(&mut self) {
        let mut asked = Vec::new();
        for replica in 0..self.replicas() {
            let http = self.http_to(replica);
            let ports = [("gateway", 7450), ("storage-svc", 7461), ("pool-svc", 7462), ("job-svc", 7463)];
            for (service, port) in ports.into_iter().chain([("monitor-svc", 7464)]) {
                let mut url = format!("{}/readyz", self.url_of(port, replica));
                if self.certificates.is_some() && service != "gateway" {
                    // Certificates of services are for their names, not for this host.
                    url = format!("https://{service}:{port}/readyz");
                }
                asked.push((http.clone(), url));
            }
        }
        let dir = self.dir.path();
        let services = &mut self.services;
        until("all services are ready", Duration::from_secs(60), async || {
            for Process { service, replica, child } in services.iter_mut() {
                if let Some(status) = child.try_wait().unwrap() {
                    panic!("{service} ended with {status}\n{}", log_tail(dir, service, *replica));
                }
            }
            for (http, url) in &asked {
                http.get(url).send().await.ok()?.error_for_status().ok()?;
            }
            Some(())
        })
        .await;
    }

    /// As an operator would; said twice it changes nothing.
    async fn make_account(&mut self) {
        let file = self.dir.path().join("cluster.key");
        std::fs::write(&file, self.cluster_key.to_base64()).unwrap();
        let mut told = Vec::new();
        for _ in 0..2 {
            let mut command = programs::command(&programs::kiln());
            command
                .args(["account", "create", ACCOUNT, "--endpoint", &self.url(7450), "--storage", &self.url(7461)])
                .arg("--cluster-key-file")
                .arg(&file);
            if self.certificates.is_some() {
                let Files { certificate, key, authority } = self.files("kiln-account");
                command.arg("--tls-cert-file").arg(certificate).arg("--tls-key-file").arg(key);
                command.arg("--ca-file").arg(authority.expect("an authority"));
            }
            let output = command.output().await.unwrap();
            assert!(output.status.success(), "kiln account create: {}", String::from_utf8_lossy(&output.stderr));
            told.push(crate::server::exports(&String::from_utf8(output.stdout).unwrap()));
        }
        assert_eq!(told[0], told[1]);
        assert_eq!(told[0]["AZURE_STORAGE_BLOB_ENDPOINT"], format!("{}/{ACCOUNT}", self.url(7451)));
        self.account_key.clone_from(&told[0]["KILN_ACCOUNT_KEY"]);
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for Process { service, replica, .. } in &self.services {
                let log = log_tail(self.dir.path(), service, *replica);
                eprintln!("--- end of the log of {service}, replica {replica}\n{log}");
            }
        }
        self.services.clear();
        for (pid, _) in crate::server::processes_of(self.dir.path()) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

/// Takes away what a deployment had on a broker.
pub async fn remove_queues(url: &str, prefix: &str) {
    let bus = RabbitBus::new(RabbitConfig::new(url.to_owned(), "e2e").with_prefix(prefix)).unwrap();
    for queue in ["monitor.events", "pool.jobs", "job.pools"] {
        bus.declare(&QueueSpec { name: queue.to_owned(), bindings: Vec::new(), prefetch: 64 }).await.unwrap();
    }
    bus.remove_everything().await.unwrap();
    bus.close();
}

/// The broker of the tests.
pub fn amqp_url() -> String {
    std::env::var("KILN_TEST_AMQP_URL").unwrap_or_else(|_| "amqp://guest:guest@127.0.0.1:5672/%2f".to_owned())
}

/// Name of a process's file or directory.
fn file(service: &str, replica: usize, ending: &str) -> String {
    match replica {
        0 => format!("{service}.{ending}"),
        other => format!("{service}-{other}.{ending}"),
    }
}

fn log_tail(dir: &Path, service: &str, replica: usize) -> String {
    let log = std::fs::read_to_string(dir.join(file(service, replica, "log"))).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
