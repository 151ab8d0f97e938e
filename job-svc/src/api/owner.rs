//! Calls that wait for the scheduler of a task's pool: they are passed on to the
//! replica that has the pool, as they came. It answers them itself in any case,
//! so none goes in circles.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kiln_grpc::{ServiceAuth, ServiceChannel, with_account};
use kiln_ids::AccountName;
use kiln_proto::job::v1::job_service_client::JobServiceClient;
use tonic::Request;
use tonic::metadata::AsciiMetadataValue;

use super::{Answer, Api, job_id};
use crate::MAX_MESSAGE;
use crate::domain::Error;
use crate::scheduler::registry::Place;

/// Metadata of a call that another replica has passed on.
const PASSED_ON: &str = "kiln-passed-on";
/// Longer than such a call may take at the owner.
const PATIENCE: Duration = Duration::from_secs(30);
/// Replicas that connections are kept to; each life of a pod may have its own address.
const MAX_PEERS: usize = 64;

/// Channels to other replicas, by endpoint.
#[derive(Debug)]
pub struct Peers {
    auth: ServiceAuth,
    channels: Mutex<HashMap<String, ServiceChannel>>,
}

impl Peers {
    /// Calls carry the token of `auth`.
    pub fn new(auth: ServiceAuth) -> Self {
        Self { auth, channels: Mutex::default() }
    }

    fn client(&self, endpoint: &str) -> Answer<JobServiceClient<ServiceChannel>> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = match channels.get(endpoint) {
            Some(channel) => channel.clone(),
            None => {
                let channel = self.auth.connect_to(endpoint, crate::SERVICE)?;
                if channels.len() >= MAX_PEERS {
                    channels.clear();
                }
                channels.insert(endpoint.to_owned(), channel.clone());
                channel
            }
        };
        Ok(JobServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE * 4)
            .max_encoding_message_size(MAX_MESSAGE))
    }
}

/// Whether another replica thought that this one has the pool.
pub(super) fn was_passed_on<T>(request: &Request<T>) -> bool {
    request.metadata().contains_key(PASSED_ON)
}

/// The call as it goes to the owner.
pub(super) fn pass_on<T>(message: T, account: &AccountName) -> Answer<Request<T>> {
    let mut request = with_account(message, account.as_str())?;
    request.metadata_mut().insert(PASSED_ON, AsciiMetadataValue::from_static("1"));
    request.set_timeout(PATIENCE);
    Ok(request)
}

impl Api {
    /// The replica that has the pool of this job; `None` if it is this one.
    pub(super) async fn owner_elsewhere(
        &self,
        account: &AccountName,
        job: &str,
        passed_on: bool,
    ) -> Answer<Option<JobServiceClient<ServiceChannel>>> {
        if !self.registry.is_shared() {
            return Ok(None);
        }
        let job = self.store.job(account, &job_id(job)?).await?;
        match self.registry.find(account, &job.pool).await? {
            Place::Here(_) => Ok(None),
            Place::There(_) if passed_on => {
                Err(Error::Unavailable("the pool has just changed its scheduler; repeat the call").into())
            }
            Place::There(owner) => Ok(Some(self.peers.client(&owner.endpoint)?)),
        }
    }
}
