//! Channels to the services behind the gateway.

use kiln_error::Error;
use kiln_grpc::{ServiceAuth, ServiceChannel, connect_lazy};
use kiln_proto::job::v1::job_service_client::JobServiceClient;
use kiln_proto::monitor::v1::monitor_service_client::MonitorServiceClient;
use kiln_proto::pool::v1::pool_service_client::PoolServiceClient;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::config::Config;

/// Largest message the gateway itself reads or writes.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// A service whose public RPCs pass through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
            "kiln.storage.v1.StorageService" => Some(Self::Storage),
            "kiln.pool.v1.PoolService" => Some(Self::Pool),
            "kiln.job.v1.JobService" => Some(Self::Job),
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
}

impl Backends {
    /// Prepares the channels.
    ///
    /// # Errors
    /// If an endpoint is no URL.
    pub fn connect(config: &Config, auth: ServiceAuth) -> Result<Self, Error> {
        Ok(Self {
            auth,
            storage: connect_lazy(&config.storage_endpoint)?,
            pool: connect_lazy(&config.pool_endpoint)?,
            job: connect_lazy(&config.job_endpoint)?,
            monitor: connect_lazy(&config.monitor_endpoint)?,
        })
    }

    /// The bare channel, for calls that pass through.
    pub fn channel(&self, service: Service) -> Channel {
        match service {
            Service::Storage => self.storage.clone(),
            Service::Pool => self.pool.clone(),
            Service::Job => self.job.clone(),
            Service::Monitor => self.monitor.clone(),
        }
    }

    /// The gateway's own credentials.
    pub fn auth(&self) -> &ServiceAuth {
        &self.auth
    }

    fn authenticated(&self, channel: &Channel) -> ServiceChannel {
        InterceptedService::new(channel.clone(), self.auth.clone())
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

    /// Events.
    pub fn monitor(&self) -> MonitorServiceClient<ServiceChannel> {
        MonitorServiceClient::new(self.authenticated(&self.monitor)).max_decoding_message_size(MAX_MESSAGE)
    }
}
