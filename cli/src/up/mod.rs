//! `kiln up`: a whole deployment in one process.
//!
//! [`Server::start`] takes the data directory's lock, opens all ports, starts
//! the services ([`services`]), tells the two of them that keep accounts which
//! account there is, and announces itself in the data directory. `kiln run` and
//! `kiln exec` use it too, with a directory that lives as long as they do.
//! [`cluster`] is the other shape: the services as processes, with replicas.

pub mod cluster;
pub mod deployment;
pub mod dir;
pub mod running;
pub mod services;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use kiln_grpc::ServiceAuth;
use kiln_proto::gateway::v1 as gateway_proto;
use kiln_proto::gateway::v1::gateway_admin_service_client::GatewayAdminServiceClient;
use kiln_proto::storage::v1 as storage_proto;
use kiln_proto::storage::v1::storage_admin_service_client::StorageAdminServiceClient;

use self::deployment::{Deployment, Wanted};
use self::dir::DataDir;
use self::running::Running;
use self::services::{Listeners, Plan, Services};
use crate::connect::Target;
use crate::failure::{Failure, Outcome};
use crate::interrupt::Interrupt;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// Front door; port 0 means any.
    pub gateway: SocketAddr,
    /// Blob data plane; port 0 means any.
    pub blob: SocketAddr,
    /// Host name or address under which others reach this machine; default is
    /// the address itself, or 127.0.0.1 if that is "all".
    pub advertise: Option<String>,
}

impl Addresses {
    /// Any free ports of this machine alone.
    pub fn any() -> Self {
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        Self { gateway: any, blob: any, advertise: None }
    }

    fn url(&self, address: SocketAddr, port: u16) -> String {
        let host = match &self.advertise {
            Some(host) => host.clone(),
            None if address.ip().is_unspecified() => "127.0.0.1".to_owned(),
            None => match address.ip() {
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => format!("[{ip}]"),
            },
        };
        format!("http://{host}:{port}")
    }
}

/// A running deployment.
#[derive(Debug)]
pub struct Server {
    services: Services,
    /// How to reach it.
    pub target: Target,
    /// Blob data plane without account.
    pub blob_endpoint: String,
    data: DataDir,
}

impl Server {
    /// Starts a deployment on `data`; returns when it can be used.
    ///
    /// # Errors
    /// If the directory is in use, a port is taken, or a service fails.
    pub async fn start(data: &Path, addresses: &Addresses, wanted: Wanted) -> Outcome<Self> {
        let data = DataDir::lock(data)?;
        cluster::record::refuse(data.path())?;
        let earlier = Deployment::read(data.path())?;
        let first = earlier.is_none();
        let mut deployment = match earlier {
            Some(deployment) => deployment,
            None => Deployment::create(wanted)?,
        };
        let listeners = Listeners::bind(addresses, deployment.ports).await?;
        let ports = listeners.ports().context("listener")?;
        let moved = deployment.ports != ports;
        deployment.ports = ports;
        if moved && !first {
            deployment.write(data.path())?;
        }
        let cluster_key = Arc::new(deployment.cluster_key()?);
        let endpoint = addresses.url(addresses.gateway, ports.gateway);
        let blob_endpoint = addresses.url(addresses.blob, ports.blob);
        let plan = Plan {
            data: data.path(),
            cluster_key: cluster_key.clone(),
            batch_endpoint: endpoint.clone(),
            blob_endpoint: blob_endpoint.clone(),
            agent_command: vec![own_program()?, "agent".to_owned()],
        };
        let services = Services::start(plan, listeners).await?;
        if let Err(failure) = put_account(&deployment, &local(ports.storage), &local(ports.gateway), cluster_key).await
        {
            services.stop().await;
            return Err(failure);
        }
        if first {
            // Not earlier: whoever reads the keys can use them.
            deployment.write(data.path())?;
        }
        let running = Running {
            pid: std::process::id(),
            endpoint: endpoint.clone(),
            blob_endpoint: blob_endpoint.clone(),
            processes: Vec::new(),
        };
        running.announce(data.path())?;
        let target = Target { endpoint, account: deployment.account, key: deployment.key1, authority: None };
        Ok(Self { services, target, blob_endpoint, data })
    }

    /// Waits until a service ends by itself; gives its error.
    pub async fn failed(&mut self) -> Failure {
        self.services.failed().await
    }

    /// Finishes what is open, stops the nodes, then the services.
    pub async fn stop(self) {
        Running::withdraw(self.data.path());
        self.services.stop().await;
    }
}

/// The program that agents run: this one, also after its file was replaced.
fn own_program() -> Outcome<String> {
    let path = std::env::current_exe().context("the path of this program is not known")?;
    let text = path.to_str().context("the path of this program is not UTF-8")?;
    // What Linux shows for a file that was replaced while it runs.
    Ok(text.strip_suffix(" (deleted)").unwrap_or(text).to_owned())
}

/// URL of a port of this machine.
pub(crate) fn local(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// Both calls are idempotent, so they are simply made at every start.
async fn put_account(deployment: &Deployment, storage: &str, gateway: &str, key: Arc<kiln_auth::SecretKey>) -> Outcome {
    let auth = ServiceAuth::new("kiln-up", key);
    let mut storage = StorageAdminServiceClient::new(auth.connect(storage)?);
    let mut gateway = GatewayAdminServiceClient::new(auth.connect(gateway)?);
    let (account, key1, key2) = (&deployment.account, &deployment.key1, &deployment.key2);
    let in_storage = storage.put_account(storage_proto::PutAccountRequest {
        account: account.clone(),
        key1: key1.clone(),
        key2: key2.clone(),
    });
    let in_gateway = gateway.put_account(gateway_proto::PutAccountRequest {
        account: account.clone(),
        key1: key1.clone(),
        key2: key2.clone(),
        storage_account: account.clone(),
    });
    tokio::try_join!(in_storage, in_gateway)?;
    Ok(())
}

/// A deployment in a directory of its own that vanishes with it.
#[derive(Debug)]
pub struct Embedded {
    server: Server,
    directory: tempfile::TempDir,
}

impl Embedded {
    /// Starts one on any ports.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn start() -> Outcome<Self> {
        let directory = tempfile::Builder::new().prefix("kiln-").tempdir().context("temporary directory")?;
        let server = Server::start(directory.path(), &Addresses::any(), Wanted::default()).await?;
        Ok(Self { server, directory })
    }

    /// How to reach it.
    pub fn target(&self) -> &Target {
        &self.server.target
    }

    /// Stops it; keeps its directory and tells where it is, or removes it.
    pub async fn stop(self, keep: bool) -> Option<PathBuf> {
        self.server.stop().await;
        if keep {
            return Some(self.directory.keep());
        }
        let path = self.directory.path().to_owned();
        // Agents that were killed may still be closing files.
        for _ in 0..50 {
            match std::fs::remove_dir_all(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                _ => return None,
            }
        }
        tracing::warn!(directory = %path.display(), "the temporary directory could not be removed");
        None
    }
}

/// `kiln up`.
///
/// # Errors
/// As [`Server::start`], or the error of the service that ended.
pub async fn command(data: &Path, addresses: &Addresses) -> Outcome {
    let begin = Instant::now();
    let interrupt = Interrupt::listen()?;
    let mut server = tokio::select! {
        server = Server::start(data, addresses, Wanted::from_env()) => server?,
        () = interrupt.requested() => return Err(Failure::Interrupted),
    };
    let data_path = server.data.path().to_owned();
    welcome(begin, &server.target, &server.blob_endpoint, &data_path, data, "");
    let failure = tokio::select! {
        failure = server.failed() => Some(failure),
        () = interrupt.requested() => None,
    };
    match &failure {
        Some(failure) => eprintln!("error: {failure}; stopping"),
        None => eprintln!("stopping (Ctrl-C again to leave at once)"),
    }
    server.stop().await;
    failure.map_or(Ok(()), |failure| Err(Failure::Silent(failure.exit_code())))
}

/// Tells where a server is that can be used now; `more` is shown behind it.
fn welcome(begin: Instant, target: &Target, blob_endpoint: &str, data: &Path, given: &Path, more: &str) {
    let text = format!(
        "kiln is ready ({} ms)\n  endpoint  {}   gRPC and Azure Batch REST\n  blobs     {blob_endpoint}/{}\n  account   \
         {}\n  data      {}\n  shell     eval \"$(kiln env{})\"\n{more}",
        begin.elapsed().as_millis(),
        target.endpoint,
        target.account,
        target.account,
        data.display(),
        data_flag(given),
    );
    // A server whose output nobody reads is still a server.
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

fn data_flag(data: &Path) -> String {
    match dir::default_path() {
        Ok(default) if default == data => String::new(),
        _ => format!(" --data {}", crate::command_line::quote(&data.to_string_lossy())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_such_that_others_can_use_them() {
        let mut addresses = Addresses::any();
        assert_eq!(addresses.url("127.0.0.1:0".parse().unwrap(), 7), "http://127.0.0.1:7");
        assert_eq!(addresses.url("0.0.0.0:0".parse().unwrap(), 7), "http://127.0.0.1:7");
        assert_eq!(addresses.url("[::1]:0".parse().unwrap(), 7), "http://[::1]:7");
        addresses.advertise = Some("big.example".to_owned());
        assert_eq!(addresses.url("0.0.0.0:0".parse().unwrap(), 7), "http://big.example:7");
    }
}
