//! The gRPC services the gateway answers itself. They sit behind the same
//! check of service tokens as those of every other service: the front has
//! already put the gateway's token and the account on users' calls.

mod account;
mod task_file;
mod workflow;

use std::sync::Arc;

use kiln_error::{Error, Kind};
use kiln_grpc::Caller;
use kiln_proto::gateway::v1::account_service_server::AccountServiceServer;
use kiln_proto::gateway::v1::gateway_admin_service_server::GatewayAdminServiceServer;
use kiln_proto::gateway::v1::task_file_service_server::TaskFileServiceServer;
use kiln_proto::gateway::v1::workflow_service_server::WorkflowServiceServer;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::service::Routes;

use crate::accounts::Accounts;
use crate::backend::Backends;
use crate::config::Config;
use crate::domain::Account;
use crate::limit::AccountLimits;

/// Largest message of a caller, for workflows with many tasks.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// Workflows of one account that may be under way at once.
const MAX_RUNS: usize = 64;

/// What the services need; each is a trait implemented on this.
#[derive(Debug, Clone)]
pub struct Services {
    config: Config,
    accounts: Accounts,
    backends: Backends,
    shutdown: CancellationToken,
    /// Workflows go on without their callers, so they have places of their own.
    runs: AccountLimits,
}

impl Services {
    /// With everything they call.
    pub fn new(config: Config, accounts: Accounts, backends: Backends, shutdown: CancellationToken) -> Self {
        Self { config, accounts, backends, shutdown, runs: AccountLimits::new(MAX_RUNS) }
    }

    /// The account a call is made for.
    async fn account<T>(&self, request: &Request<T>) -> Result<Arc<Account>, Error> {
        let caller = Caller::of(request)?;
        let account = self.accounts.get(caller.service_account()?).await?;
        account.ok_or_else(|| Error::new(Kind::NotFound, "ResourceNotFound", "the account does not exist any more"))
    }

    /// All of them.
    pub fn routes(&self) -> Routes {
        Routes::new(AccountServiceServer::new(self.clone()))
            .add_service(GatewayAdminServiceServer::new(self.clone()))
            .add_service(TaskFileServiceServer::new(self.clone()))
            .add_service(WorkflowServiceServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE))
    }
}
