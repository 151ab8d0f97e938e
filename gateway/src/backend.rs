//! Channels to the services behind the gateway.
//!
//! HTTP/2 ends a connection on which too many small frames wait to be read
//! (about 16,000 with our windows). Whether they are read is up to the client
//! of a stream that passes through. So such streams go over connections of
//! their account: a client that does not read cannot end the streams of others,
//! nor the gateway's own calls, which have channels apart.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_error::Error;
use kiln_grpc::{ServiceAuth, ServiceChannel};
use kiln_proto::job::v1::job_schedule_service_client::JobScheduleServiceClient;
use kiln_proto::job::v1::job_service_client::JobServiceClient;
use kiln_proto::monitor::v1::monitor_service_client::MonitorServiceClient;
use kiln_proto::pool::v1::pool_service_client::PoolServiceClient;
use kiln_proto::storage::v1::application_service_client::ApplicationServiceClient;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::config::Config;
use crate::domain::Account;

/// Largest message the gateway itself reads or writes.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// A service whose public RPCs pass through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// storage-svc
    Storage,
    /// pool-svc
    Pool,
    /// job-svc
    Job,
    /// monitor-svc
    Monitor,
}

impl Service {
    /// Which service has the gRPC service of that name. What is not here is
    /// not open to users.
    pub fn of(grpc_service: &str) -> Option<Self> {
        match grpc_service {
            "kiln.storage.v1.StorageService" | "kiln.storage.v1.ApplicationService" => Some(Self::Storage),
            "kiln.pool.v1.PoolService" => Some(Self::Pool),
            "kiln.job.v1.JobService" | "kiln.job.v1.JobScheduleService" => Some(Self::Job),
            "kiln.monitor.v1.MonitorService" => Some(Self::Monitor),
            _ => None,
        }
    }

    /// For messages and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Storage => "storage-svc",
            Self::Pool => "pool-svc",
            Self::Job => "job-svc",
            Self::Monitor => "monitor-svc",
        }
    }
}

/// Connections that are made at the first call; clones share them.
#[derive(Debug, Clone)]
pub struct Backends {
    auth: ServiceAuth,
    storage: Channel,
    pool: Channel,
    job: Channel,
    monitor: Channel,
    endpoints: Arc<[String; 4]>,
    /// By service and account; only accounts that proved themselves.
    passing: Arc<Mutex<HashMap<(Service, String), Channel>>>,
}

impl Backends {
    /// Prepares the channels.
    ///
    /// # Errors
    /// If an endpoint is no URL.
    pub fn connect(config: &Config, auth: ServiceAuth) -> Result<Self, Error> {
        Ok(Self {
            storage: auth.channel(&config.storage_endpoint, Service::Storage.name())?,
            pool: auth.channel(&config.pool_endpoint, Service::Pool.name())?,
            job: auth.channel(&config.job_endpoint, Service::Job.name())?,
            monitor: auth.channel(&config.monitor_endpoint, Service::Monitor.name())?,
            endpoints: Arc::new([
                config.storage_endpoint.clone(),
                config.pool_endpoint.clone(),
                config.job_endpoint.clone(),
                config.monitor_endpoint.clone(),
            ]),
            passing: Arc::default(),
            auth,
        })
    }

    /// The bare channel for calls of this account that pass through.
    ///
    /// # Errors
    /// Never for endpoints that [`Backends::connect`] took.
    pub fn passing(&self, service: Service, account: &Account) -> Result<Channel, Error> {
        let key = (service, account.name.key().into_owned());
        let mut passing = self.passing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = passing.get(&key) {
            return Ok(channel.clone());
        }
        let channel = self.auth.channel(&self.endpoints[service as usize], service.name())?;
        passing.insert(key, channel.clone());
        Ok(channel)
    }

    /// The gateway's own credentials.
    pub fn auth(&self) -> &ServiceAuth {
        &self.auth
    }

    fn authenticated(&self, channel: &Channel) -> ServiceChannel {
        InterceptedService::new(channel.clone(), self.auth.clone())
    }

    /// Applications and their packages.
    pub fn applications(&self) -> ApplicationServiceClient<ServiceChannel> {
        ApplicationServiceClient::new(self.authenticated(&self.storage)).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Pools and nodes.
    pub fn pools(&self) -> PoolServiceClient<ServiceChannel> {
        PoolServiceClient::new(self.authenticated(&self.pool))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// Jobs and tasks.
    pub fn jobs(&self) -> JobServiceClient<ServiceChannel> {
        JobServiceClient::new(self.authenticated(&self.job))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// Schedules that create jobs.
    pub fn job_schedules(&self) -> JobScheduleServiceClient<ServiceChannel> {
        JobScheduleServiceClient::new(self.authenticated(&self.job))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// Events.
    pub fn monitor(&self) -> MonitorServiceClient<ServiceChannel> {
        MonitorServiceClient::new(self.authenticated(&self.monitor)).max_decoding_message_size(MAX_MESSAGE)
    }
}
