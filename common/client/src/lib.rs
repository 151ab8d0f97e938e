//! Client of a Kiln deployment: one connection to the gateway, authenticated
//! with an account key that never travels.
//!
//! ```no_run
//! # async fn example() -> Result<(), kiln_error::Error> {
//! let client = kiln_client::Client::connect("http://127.0.0.1:7450", "demo", "base64key")?;
//! let jobs = client.jobs().list_jobs(kiln_proto::job::v1::ListJobsRequest::default()).await?;
//! # Ok(()) }
//! ```

pub mod blobs;

use std::path::Path;
use std::sync::Arc;

use kiln_auth::SecretKey;
use kiln_auth::token::Principal;
use kiln_error::Error;
use kiln_grpc::Security;
use kiln_grpc::channel::TokenAuth;
use kiln_proto::gateway::v1::account_service_client::AccountServiceClient;
use kiln_proto::gateway::v1::task_file_service_client::TaskFileServiceClient;
use kiln_proto::gateway::v1::workflow_service_client::WorkflowServiceClient;
use kiln_proto::job::v1::job_schedule_service_client::JobScheduleServiceClient;
use kiln_proto::job::v1::job_service_client::JobServiceClient;
use kiln_proto::monitor::v1::monitor_service_client::MonitorServiceClient;
use kiln_proto::pool::v1::pool_service_client::PoolServiceClient;
use kiln_proto::storage::v1::application_service_client::ApplicationServiceClient;
use kiln_proto::storage::v1::storage_service_client::StorageServiceClient;
use kiln_tls::ClientTls;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

/// How long a token is valid.
const TOKEN_SECONDS: i64 = 3600;
/// Largest message in either direction.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// A channel whose calls carry an account token and the trace context.
pub type AccountChannel = InterceptedService<Channel, TokenAuth>;

/// A connection to one deployment for one account; clones share it.
#[derive(Debug, Clone)]
pub struct Client {
    channel: AccountChannel,
}

macro_rules! service {
    ($(#[$doc:meta])* $method:ident, $client:ident) => {
        $(#[$doc])*
        pub fn $method(&self) -> $client<AccountChannel> {
            $client::new(self.channel.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE)
        }
    };
}

impl Client {
    /// Connects at the first call; over TLS (`https://`) to servers that the
    /// authorities of this system vouch for.
    ///
    /// # Errors
    /// If the endpoint is no URL or the key is not Base64.
    pub fn connect(endpoint: &str, account: &str, key: &str) -> Result<Self, Error> {
        Self::connect_secured(endpoint, account, key, None)
    }

    /// As [`Client::connect`], to servers that the authorities in the file
    /// `authority` (PEM) vouch for.
    ///
    /// # Errors
    /// As there, or if the file cannot be used.
    pub fn connect_trusting(endpoint: &str, account: &str, key: &str, authority: &Path) -> Result<Self, Error> {
        let tls = ClientTls::with_authority_file(authority).map_err(|error| {
            Error::invalid_property("certificate authority", authority.display(), error.to_string())
        })?;
        Self::connect_secured(endpoint, account, key, Some(tls))
    }

    fn connect_secured(endpoint: &str, account: &str, key: &str, tls: Option<ClientTls>) -> Result<Self, Error> {
        let key = SecretKey::from_base64(key)
            .map_err(|error| Error::invalid_property("account key", "(secret)", error.to_string()))?;
        let principal = Principal::Account { account: account.to_owned() };
        let auth = TokenAuth::new(principal, Arc::new(key), TOKEN_SECONDS);
        Ok(Self {
            channel: InterceptedService::new(
                kiln_grpc::connect_secured(endpoint, &Security { tls, name: None })?,
                auth,
            ),
        })
    }

    service!(
        /// Containers and blobs.
        storage, StorageServiceClient
    );
    service!(
        /// Applications and their packages.
        applications, ApplicationServiceClient
    );
    service!(
        /// Pools and nodes.
        pools, PoolServiceClient
    );
    service!(
        /// Schedules that create jobs.
        job_schedules, JobScheduleServiceClient
    );
    service!(
        /// Jobs and tasks.
        jobs, JobServiceClient
    );
    service!(
        /// Events, timelines, watches.
        monitor, MonitorServiceClient
    );
    service!(
        /// The account itself.
        account, AccountServiceClient
    );
    service!(
        /// Files of tasks.
        task_files, TaskFileServiceClient
    );
    service!(
        /// Whole workflows.
        workflows, WorkflowServiceClient
    );
}
