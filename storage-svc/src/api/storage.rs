//! `StorageService`: containers, blobs, signatures.

use std::pin::Pin;

use futures::{Stream, StreamExt, TryStreamExt, stream};
use kiln_error::Error;
use kiln_etag::Conditions;
use kiln_grpc::condition::conditions;
use kiln_grpc::{Caller, page};
use kiln_proto::storage::v1 as proto;
use kiln_proto::storage::v1::storage_service_server::StorageService;
use kiln_proto::storage::v1::{download_response, upload_request};
use kiln_time::Timestamp;
use tonic::{Request, Response, Status, Streaming};

use super::admin::no_account;
use super::{convert, resumable, sas};
use crate::domain::StorageError;
use crate::domain::lease::Lease;
use crate::domain::limits::Limits;
use crate::domain::model::{Address, BlobProperties, Container, DEFAULT_CONTENT_TYPE, MAX_PAGE};
use crate::domain::names;
use crate::domain::range::WantedRange;
use crate::service::{Expected, PutBlob, Storage};
use crate::store::{BlobEntry, BlobPosition, BlobQuery, Deletion, Guard};

/// Entries of a page if the caller does not say.
const DEFAULT_PAGE: u32 = 1000;
/// Bytes of one message of a download.
const MESSAGE: usize = 256 * 1024;

/// See the module.
#[derive(Debug)]
pub struct StorageApi {
    storage: Storage,
    public_blob_endpoint: String,
}

impl StorageApi {
    /// Serves `storage`.
    pub fn new(storage: Storage, public_blob_endpoint: String) -> Self {
        Self { storage, public_blob_endpoint }
    }
}

/// The account a call is about; it must be a storage account's name.
fn account_of<T>(request: &Request<T>) -> Result<String, Error> {
    Ok(Caller::of(request)?.service_account()?.to_owned())
}

pub(super) fn refused(error: StorageError) -> Status {
    Error::from(error).into()
}

#[tonic::async_trait]
impl StorageService for StorageApi {
    async fn create_container(
        &self,
        request: Request<proto::CreateContainerRequest>,
    ) -> Result<Response<proto::CreateContainerResponse>, Status> {
        let account = account_of(&request)?;
        let given = request.into_inner();
        names::check_container(&given.name).map_err(refused)?;
        if self.storage.account(&account).await.map_err(refused)?.is_none() {
            return Err(no_account(&account).into());
        }
        let container = Container {
            name: given.name,
            etag: String::new(),
            last_modified: Timestamp::default(),
            metadata: names::check_metadata(given.metadata).map_err(refused)?,
            public_access: convert::public_access(given.public_access)?,
            policies: Vec::new(),
            lease: Lease::Available,
        };
        let stamp = self.storage.stamp(&account, &given.request_id);
        let made = self.storage.catalogue().create_container(stamp, container).await.map_err(refused)?;
        Ok(Response::new(proto::CreateContainerResponse { container: Some(convert::container(made.answer)) }))
    }

    async fn get_container(
        &self,
        request: Request<proto::GetContainerRequest>,
    ) -> Result<Response<proto::GetContainerResponse>, Status> {
        let account = account_of(&request)?;
        let found = self.storage.catalogue().container(&account, &request.get_ref().name).await.map_err(refused)?;
        Ok(Response::new(proto::GetContainerResponse { container: Some(convert::container(found)) }))
    }

    async fn list_containers(
        &self,
        request: Request<proto::ListContainersRequest>,
    ) -> Result<Response<proto::ListContainersResponse>, Status> {
        let account = account_of(&request)?;
        let given = request.into_inner();
        let limit = page::size(given.page_size, DEFAULT_PAGE, MAX_PAGE as u32)? as usize;
        let from = page::last_key(&given.page_token)?.unwrap_or_default();
        let found =
            self.storage.catalogue().list_containers(&account, &given.prefix, &from, limit).await.map_err(refused)?;
        Ok(Response::new(proto::ListContainersResponse {
            containers: found.entries.into_iter().map(convert::container).collect(),
            next_page_token: found.next.as_deref().map(page::token).unwrap_or_default(),
        }))
    }

    async fn delete_container(
        &self,
        request: Request<proto::DeleteContainerRequest>,
    ) -> Result<Response<proto::DeleteContainerResponse>, Status> {
        let account = account_of(&request)?;
        let given = request.into_inner();
        let stamp = self.storage.stamp(&account, &given.request_id);
        self.storage.catalogue().delete_container(stamp, &given.name, Guard::default()).await.map_err(refused)?;
        Ok(Response::new(proto::DeleteContainerResponse {}))
    }

    async fn get_blob(
        &self,
        request: Request<proto::GetBlobRequest>,
    ) -> Result<Response<proto::GetBlobResponse>, Status> {
        let account = account_of(&request)?;
        let given = request.into_inner();
        let blob = self
            .storage
            .catalogue()
            .blob(Address::blob(&account, &given.container, &given.name))
            .await
            .map_err(refused)?;
        Ok(Response::new(proto::GetBlobResponse { blob: Some(convert::blob(blob)) }))
    }

    async fn list_blobs(
        &self,
        request: Request<proto::ListBlobsRequest>,
    ) -> Result<Response<proto::ListBlobsResponse>, Status> {
        let account = account_of(&request)?;
        let given = request.into_inner();
        let query = BlobQuery {
            prefix: given.prefix,
            delimiter: given.delimiter,
            from: page::last_key(&given.page_token)?.map(BlobPosition::before),
            limit: page::size(given.page_size, DEFAULT_PAGE, MAX_PAGE as u32)? as usize,
            snapshots: false,
            uncommitted: false,
        };
        let found = self.storage.catalogue().list_blobs(&account, &given.container, query).await.map_err(refused)?;
        let mut response = proto::ListBlobsResponse {
            next_page_token: found.next.map(|next| page::token(&next.name)).unwrap_or_default(),
            ..proto::ListBlobsResponse::default()
        };
        for entry in found.entries {
            match entry {
                BlobEntry::Blob(blob) => response.blobs.push(convert::blob(*blob)),
                BlobEntry::Prefix(prefix) => response.prefixes.push(prefix),
                // Not asked for.
                BlobEntry::Uncommitted { .. } => {}
            }
        }
        Ok(Response::new(response))
    }

    async fn delete_blob(
        &self,
        request: Request<proto::DeleteBlobRequest>,
    ) -> Result<Response<proto::DeleteBlobResponse>, Status> {
        let account = account_of(&request)?;
        let given = request.into_inner();
        let stamp = self.storage.stamp(&account, &given.request_id);
        let guard = Guard::from(conditions(given.precondition.as_ref()));
        let catalogue = self.storage.catalogue();
        catalogue.delete_blob(stamp, &given.container, &given.name, guard, Deletion::Blob).await.map_err(refused)?;
        Ok(Response::new(proto::DeleteBlobResponse {}))
    }

    async fn upload(
        &self,
        request: Request<Streaming<proto::UploadRequest>>,
    ) -> Result<Response<proto::UploadResponse>, Status> {
        let account = account_of(&request)?;
        let mut messages = request.into_inner();
        let first = messages.message().await?.and_then(|message| message.part);
        let Some(upload_request::Part::Header(header)) = first else {
            return Err(Error::missing_property("header").into());
        };
        let md5 = match header.content_md5.len() {
            0 => None,
            _ => Some(header.content_md5.try_into().map_err(|_| refused(StorageError::InvalidMd5))?),
        };
        let content_type =
            if header.content_type.is_empty() { DEFAULT_CONTENT_TYPE.to_owned() } else { header.content_type };
        let properties = BlobProperties { content_type, ..BlobProperties::default() };
        let metadata = names::check_metadata(header.metadata).map_err(refused)?;
        let conditions = if header.if_absent { Conditions::absent() } else { Conditions::default() };
        let guard = Guard::from(conditions);
        let (container, name) = (header.container, header.name);
        if let Some(piece) = header.resumable {
            let whole = resumable::Whole { account, container, name, properties, metadata, guard };
            let blob = resumable::receive(&self.storage, whole, piece, md5, messages).await?;
            return Ok(Response::new(proto::UploadResponse { blob: blob.map(convert::blob) }));
        }
        let put = PutBlob {
            account,
            container,
            name,
            properties,
            metadata,
            tier: None,
            expected: Expected { md5, ..Expected::default() },
            limits: Limits::default(),
            guard,
            request_id: header.request_id,
        };
        let body = messages.map(convert::data);
        let put = self.storage.put_blob(put, Box::pin(body)).await.map_err(refused)?;
        Ok(Response::new(proto::UploadResponse { blob: Some(convert::blob(put.blob)) }))
    }

    async fn get_upload(
        &self,
        request: Request<proto::GetUploadRequest>,
    ) -> Result<Response<proto::GetUploadResponse>, Status> {
        let account = account_of(&request)?;
        Ok(Response::new(resumable::durable(&self.storage, &account, request.into_inner()).await?))
    }

    type DownloadStream = Pin<Box<dyn Stream<Item = Result<proto::DownloadResponse, Status>> + Send>>;

    async fn download(
        &self,
        request: Request<proto::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let account = account_of(&request)?;
        let given = request.into_inner();
        let range = given.range.map(|range| WantedRange { start: range.start, end: range.end });
        if range.is_some_and(|range| range.end.is_some_and(|end| end < range.start)) {
            return Err(Error::invalid_property("range", "", "its end is before its start").into());
        }
        let conditions = conditions(given.precondition.as_ref());
        let download = self
            .storage
            .open(Address::blob(&account, &given.container, &given.name), &conditions, range)
            .await
            .map_err(refused)?;
        let head = download_response::Part::Blob(convert::blob(download.blob.clone()));
        let pieces = download
            .into_stream()
            .map_ok(|piece| {
                stream::iter(
                    (0..piece.len())
                        .step_by(MESSAGE)
                        .map(move |at| {
                            let data = piece.slice(at..piece.len().min(at + MESSAGE));
                            Ok::<_, std::io::Error>(download_response::Part::Data(data))
                        })
                        .collect::<Vec<_>>(),
                )
            })
            .try_flatten();
        let parts = stream::once(std::future::ready(Ok(head))).chain(pieces);
        let messages = parts.map(|part| match part {
            Ok(part) => Ok(proto::DownloadResponse { part: Some(part) }),
            Err(_) => Err(refused(StorageError::InternalError)),
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn create_sas(
        &self,
        request: Request<proto::CreateSasRequest>,
    ) -> Result<Response<proto::CreateSasResponse>, Status> {
        let account = account_of(&request)?;
        let account = self.storage.account(&account).await.map_err(refused)?.ok_or_else(|| no_account(&account))?;
        Ok(Response::new(sas::create(&account, &self.public_blob_endpoint, request.get_ref())?))
    }

    async fn create_sas_batch(
        &self,
        request: Request<proto::CreateSasBatchRequest>,
    ) -> Result<Response<proto::CreateSasBatchResponse>, Status> {
        let account = account_of(&request)?;
        let account = self.storage.account(&account).await.map_err(refused)?.ok_or_else(|| no_account(&account))?;
        let wanted = request.into_inner().requests;
        let endpoint = self.public_blob_endpoint.clone();
        // Thousands of signatures keep a thread busy for a while.
        let signed = tokio::task::spawn_blocking(move || sas::create_batch(&account, &endpoint, &wanted)).await;
        let responses = signed.map_err(|error| Error::internal(error.to_string()))??;
        Ok(Response::new(proto::CreateSasBatchResponse { responses }))
    }
}
