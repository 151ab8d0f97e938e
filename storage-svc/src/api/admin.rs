//! `StorageAdminService`: accounts.

use kiln_auth::SecretKey;
use kiln_error::{Error, Kind};
use kiln_grpc::Caller;
use kiln_proto::storage::v1 as proto;
use kiln_proto::storage::v1::storage_admin_service_server::StorageAdminService;
use tonic::{Request, Response, Status};

use crate::domain::StorageError;
use crate::domain::model::Account;
use crate::service::Storage;

/// See the module.
#[derive(Debug)]
pub struct Admin {
    storage: Storage,
    public_blob_endpoint: String,
}

impl Admin {
    /// Serves the accounts of `storage`.
    pub fn new(storage: Storage, public_blob_endpoint: String) -> Self {
        Self { storage, public_blob_endpoint }
    }
}

#[tonic::async_trait]
impl StorageAdminService for Admin {
    async fn put_account(
        &self,
        request: Request<proto::PutAccountRequest>,
    ) -> Result<Response<proto::PutAccountResponse>, Status> {
        Caller::of(&request)?.require_service()?;
        let given = request.into_inner();
        // The value is a secret and must not come back in the error.
        let key = |name: &str, text: &str| {
            SecretKey::from_base64(text).map_err(|error| Error::invalid_property(name, "(secret)", error.to_string()))
        };
        let keys = [key("key1", &given.key1)?, key("key2", &given.key2)?];
        let account = Account { name: given.account, keys };
        self.storage.put_account(account).await.map_err(Error::from)?;
        Ok(Response::new(proto::PutAccountResponse {}))
    }

    async fn get_account(
        &self,
        request: Request<proto::GetAccountRequest>,
    ) -> Result<Response<proto::GetAccountResponse>, Status> {
        Caller::of(&request)?.require_service()?;
        let name = request.into_inner().account;
        let account = self.storage.account(&name).await.map_err(Error::from)?.ok_or_else(|| no_account(&name))?;
        Ok(Response::new(proto::GetAccountResponse {
            account: account.name.clone(),
            key1: account.keys[0].to_base64(),
            key2: account.keys[1].to_base64(),
            blob_endpoint: format!("{}/{}", self.public_blob_endpoint, account.name),
        }))
    }
}

/// There is no such storage account.
pub fn no_account(name: &str) -> Error {
    let code = StorageError::ResourceNotFound.code();
    Error::new(Kind::NotFound, code, format!("there is no storage account {name:?}")).with_detail("account", name)
}
