//! The gRPC services the gateway answers itself. They sit behind the same
//! check of service tokens as those of every other service: the front has
//! already put the gateway's token and the account on users' calls.

mod account;
mod task_file;
mod workflow;

use kiln_proto::gateway::v1::account_service_server::AccountServiceServer;
use kiln_proto::gateway::v1::gateway_admin_service_server::GatewayAdminServiceServer;
use kiln_proto::gateway::v1::task_file_service_server::TaskFileServiceServer;
use kiln_proto::gateway::v1::workflow_service_server::WorkflowServiceServer;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::accounts::Accounts;
use crate::backend::Backends;
use crate::config::Config;

/// Largest message of a caller, for workflows with many tasks.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// What the services need; each is a trait implemented on this.
#[derive(Debug, Clone)]
pub struct Services {
    config: Config,
    accounts: Accounts,
    backends: Backends,
    shutdown: CancellationToken,
}

impl Services {
    /// With everything they call.
    pub fn new(config: Config, accounts: Accounts, backends: Backends, shutdown: CancellationToken) -> Self {
        Self { config, accounts, backends, shutdown }
    }

    /// All of them.
    pub fn routes(&self) -> Routes {
        Routes::new(AccountServiceServer::new(self.clone()))
            .add_service(GatewayAdminServiceServer::new(self.clone()))
            .add_service(TaskFileServiceServer::new(self.clone()))
            .add_service(WorkflowServiceServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE))
    }
}
