//! The settings files of all processes, as text: what `deploy/config` explains.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::Options;
use super::service::Service;

/// Connections of one process to PostgreSQL, which admits a hundred unless it is told otherwise.
const CONNECTIONS: usize = 4;

/// One replica and its ports on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Which service.
    pub service: Service,
    /// Counted from 1.
    pub replica: usize,
    /// Main port.
    pub port: u16,
    /// Data plane of storage-svc.
    pub blob_port: Option<u16>,
}

impl Member {
    /// Name of its files, such as `job-svc-1`.
    pub fn name(&self) -> String {
        format!("{}-{}", self.service.name(), self.replica)
    }
}

/// What all processes of a deployment have in common.
#[derive(Debug)]
pub struct Shared<'a> {
    /// Directory of the files of all processes.
    pub dir: &'a Path,
    /// Name of the deployment.
    pub name: &'a str,
    /// PostgreSQL and RabbitMQ.
    pub options: &'a Options,
    /// All replicas.
    pub members: &'a [Member],
    /// File with the deployment's key.
    pub cluster_key_file: PathBuf,
    /// Public URL of the front door.
    pub batch_endpoint: &'a str,
    /// Public URL of the data plane.
    pub blob_endpoint: &'a str,
    /// Directory of the nodes.
    pub nodes_dir: PathBuf,
    /// Program and arguments of an agent.
    pub agent_command: &'a [String],
}

/// Schema of a service in a deployment.
pub fn schema(name: &str, service: Service) -> String {
    format!("{name}_{}", service.name().replace('-', "_"))
}

/// Begins the names of a deployment's exchanges and queues.
pub fn prefix(name: &str) -> String {
    format!("{name}.")
}

/// URLs of all replicas of a service, separated by commas.
pub fn urls(members: &[Member], service: Service) -> String {
    let of = members.iter().filter(|member| member.service == service);
    of.map(|member| super::super::local(member.port)).collect::<Vec<_>>().join(",")
}

/// JSON's strings are strings of TOML, too.
fn text(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

/// The settings of one replica.
pub fn of(member: &Member, shared: &Shared<'_>) -> String {
    let mut file = String::new();
    let mut set = |key: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(file, "{key} = {value}");
    };
    let path = |path: &Path| text(&path.to_string_lossy());
    let urls = |service| text(&urls(shared.members, service));
    set("listen", text(&format!("127.0.0.1:{}", member.port)));
    set("data_dir", path(&shared.dir.join(member.name())));
    set("database_url", text(&shared.options.database_url));
    set("database_schema", text(&schema(shared.name, member.service)));
    set("database_connections", CONNECTIONS.to_string());
    set("cluster_key_file", path(&shared.cluster_key_file));
    set("log_format", text("plain"));
    if member.service != Service::Gateway {
        set("amqp_url", text(&shared.options.amqp_url));
        set("amqp_prefix", text(&prefix(shared.name)));
    }
    match member.service {
        Service::Gateway => {
            set("storage_endpoint", urls(Service::StorageSvc));
            set("pool_endpoint", urls(Service::PoolSvc));
            set("job_endpoint", urls(Service::JobSvc));
            set("monitor_endpoint", urls(Service::MonitorSvc));
            set("public_blob_endpoint", text(shared.blob_endpoint));
            set("batch_endpoint", text(shared.batch_endpoint));
        }
        Service::StorageSvc => {
            set("blob_listen", text(&format!("127.0.0.1:{}", member.blob_port.unwrap_or(0))));
            set("public_blob_endpoint", text(shared.blob_endpoint));
            set("objects_dir", path(&shared.dir.join("blobs")));
        }
        Service::PoolSvc => {
            set("advertised_endpoint", text(&super::super::local(member.port)));
            set("control_endpoint", urls(Service::PoolSvc));
            set("work_endpoint", urls(Service::JobSvc));
            set("public_blob_endpoint", text(shared.blob_endpoint));
            set("batch_endpoint", text(shared.batch_endpoint));
            // Nodes outlive this process; they end with the deployment.
            set("stop_nodes_on_shutdown", "false".to_owned());
            let command: Vec<_> = shared.agent_command.iter().map(|part| text(part)).collect();
            let _ = write!(
                file,
                "\n[local]\nnodes_dir = {}\nagent_command = [{}]\n",
                path(&shared.nodes_dir),
                command.join(", ")
            );
        }
        Service::JobSvc => set("advertised_endpoint", text(&super::super::local(member.port))),
        Service::MonitorSvc => {}
    }
    file
}

#[cfg(test)]
mod tests {
    use kiln_service::{Flags, Settings, load};

    use super::*;

    /// Reads the settings as the process will.
    fn check<S: Settings>(dir: &Path, member: &Member, shared: &Shared<'_>) -> String {
        let file = dir.join("settings.toml");
        std::fs::write(&file, of(member, shared)).unwrap();
        let (common, config) = load::<S>(&Flags { config: Some(file), ..Flags::default() }).unwrap();
        format!("{common:?} {config:?}")
    }

    #[test]
    fn every_service_takes_its_settings() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        std::fs::write(&key, kiln_auth::SecretKey::generate().to_base64()).unwrap();
        let member = |service, replica, port, blob_port| Member { service, replica, port, blob_port };
        let members = [
            member(Service::Gateway, 1, 1, None),
            member(Service::StorageSvc, 1, 2, Some(3)),
            member(Service::StorageSvc, 2, 4, Some(5)),
            member(Service::JobSvc, 1, 6, None),
            member(Service::PoolSvc, 1, 7, None),
            member(Service::MonitorSvc, 1, 8, None),
            member(Service::MonitorSvc, 2, 9, None),
        ];
        let shared = Shared {
            dir: &dir.path().join("with \"quotes\" and ü"),
            name: "deployment_0a",
            options: &Options {
                replicas: 2,
                database_url: super::super::DATABASE_URL.to_owned(),
                amqp_url: super::super::AMQP_URL.to_owned(),
            },
            members: &members,
            cluster_key_file: key,
            batch_endpoint: "http://127.0.0.1:10",
            blob_endpoint: "http://127.0.0.1:11",
            nodes_dir: dir.path().join("nodes"),
            agent_command: &["kiln".to_owned(), "agent".to_owned()],
        };
        let gateway = check::<gateway::config::RawConfig>(dir.path(), &members[0], &shared);
        assert!(gateway.contains("\"http://127.0.0.1:2,http://127.0.0.1:4\""), "{gateway}");
        assert!(gateway.contains("\"http://127.0.0.1:8,http://127.0.0.1:9\""), "{gateway}");
        let storage = check::<storage_svc::RawConfig>(dir.path(), &members[2], &shared);
        assert!(storage.contains("127.0.0.1:5") && storage.contains("Shared("), "{storage}");
        check::<job_svc::config::RawConfig>(dir.path(), &members[3], &shared);
        check::<pool_svc::config::RawConfig>(dir.path(), &members[4], &shared);
        check::<monitor_svc::RawConfig>(dir.path(), &members[6], &shared);
    }
}
