//! The caller's account, and setting accounts up.

use kiln_error::Error;
use kiln_grpc::Caller;
use kiln_proto::gateway::v1::account_service_server::AccountService;
use kiln_proto::gateway::v1::gateway_admin_service_server::GatewayAdminService;
use kiln_proto::gateway::v1::{GetAccountRequest, GetAccountResponse, PutAccountRequest, PutAccountResponse};
use tonic::{Request, Response, Status};

use super::Services;
use crate::domain::Account;

#[tonic::async_trait]
impl AccountService for Services {
    async fn get_account(&self, request: Request<GetAccountRequest>) -> Result<Response<GetAccountResponse>, Status> {
        let account = self.account(&request).await?;
        Ok(Response::new(GetAccountResponse {
            account: account.name.as_str().to_owned(),
            storage_account: account.storage_account.clone(),
            blob_endpoint: format!("{}/{}", self.config.public_blob_endpoint, account.storage_account),
            batch_endpoint: self.config.batch_endpoint.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }
}

#[tonic::async_trait]
impl GatewayAdminService for Services {
    async fn put_account(&self, request: Request<PutAccountRequest>) -> Result<Response<PutAccountResponse>, Status> {
        Caller::of(&request)?.require_service()?;
        let message = request.into_inner();
        let account = Account::new(&message.account, &message.key1, &message.key2, &message.storage_account)
            .map_err(Error::from)?;
        self.accounts.put(&account).await?;
        tracing::info!(account = %account.name, "the account's keys were set");
        Ok(Response::new(PutAccountResponse {}))
    }
}
