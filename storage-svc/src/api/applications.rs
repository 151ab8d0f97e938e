//! `ApplicationService`: applications and their packages.

use futures::stream;
use kiln_error::Error;
use kiln_grpc::{Caller, page};
use kiln_proto::storage::v1 as proto;
use kiln_proto::storage::v1::application_service_server::ApplicationService;
use kiln_proto::storage::v1::upload_package_request::Part;
use kiln_proto::time;
use kiln_time::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tonic::{Request, Response, Status, Streaming};

use super::admin::no_account;
use crate::domain::StorageError;
use crate::domain::application::{
    self, Application, ApplicationChange, CONTAINER, MAX_APPLICATIONS, Package, Reference, Resolved, UPLOAD_TIME,
};
use crate::domain::sas::{self, NewSas};
use crate::service::{PackageName, Storage};

/// Applications of a page if the caller does not say.
const DEFAULT_PAGE: u32 = 100;

/// See the module.
#[derive(Debug)]
pub struct ApplicationApi {
    storage: Storage,
    public_blob_endpoint: String,
}

impl ApplicationApi {
    /// Serves the applications of `storage`.
    pub fn new(storage: Storage, public_blob_endpoint: String) -> Self {
        Self { storage, public_blob_endpoint }
    }

    /// The URL to which a zip may be put, and until when.
    async fn upload_url(&self, account: &str, blob: &str) -> Result<(String, Timestamp), Error> {
        let account = self.storage.account(account).await?.ok_or_else(|| no_account(account))?;
        let expires = Timestamp::now().plus(UPLOAD_TIME);
        let new = NewSas {
            account: &account.name,
            container: CONTAINER,
            blob: Some(blob),
            permissions: "cw",
            starts: None,
            expires,
        };
        let sas = sas::create(&new, &account.keys[0])?;
        let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let path: Vec<String> = [CONTAINER].into_iter().chain(blob.split('/')).map(encode).collect();
        Ok((format!("{}/{}/{}?{sas}", self.public_blob_endpoint, account.name, path.join("/")), expires))
    }
}

fn refused(error: impl Into<StorageError>) -> Status {
    Error::from(error.into()).into()
}

/// The account a call is about.
fn account_of<T>(request: &Request<T>) -> Result<String, Error> {
    Ok(Caller::of(request)?.service_account()?.to_owned())
}

fn name(account: String, application: &str, version: &str, request_id: String) -> Result<PackageName, Status> {
    Ok(PackageName {
        account,
        application: application::id("application_id", application).map_err(refused)?,
        version: application::version("version", version).map_err(refused)?,
        request_id,
    })
}

#[tonic::async_trait]
impl ApplicationService for ApplicationApi {
    async fn create_application(
        &self,
        request: Request<proto::CreateApplicationRequest>,
    ) -> Result<Response<proto::CreateApplicationResponse>, Status> {
        let account = account_of(&request)?;
        let given = request.into_inner();
        application::check_display_name(&given.display_name).map_err(refused)?;
        if self.storage.account(&account).await.map_err(refused)?.is_none() {
            return Err(no_account(&account).into());
        }
        let new = Application {
            id: application::id("id", &given.id).map_err(refused)?,
            display_name: given.display_name,
            allow_updates: given.allow_updates.unwrap_or(true),
            default_version: None,
            packages: Vec::new(),
            created: Timestamp::default(),
            modified: Timestamp::default(),
        };
        let stamp = self.storage.stamp(&account, &given.request_id);
        let made = self.storage.catalogue().create_application(stamp, new).await.map_err(refused)?;
        Ok(Response::new(proto::CreateApplicationResponse { application: Some(to_message(made.answer)) }))
    }

    async fn get_application(
        &self,
        request: Request<proto::GetApplicationRequest>,
    ) -> Result<Response<proto::GetApplicationResponse>, Status> {
        let account = account_of(&request)?;
        let id = application::id("id", &request.get_ref().id).map_err(refused)?;
        let found = self.storage.catalogue().application(&account, &id).await.map_err(refused)?;
        Ok(Response::new(proto::GetApplicationResponse { application: Some(to_message(found)) }))
    }

    async fn list_applications(
        &self,
        request: Request<proto::ListApplicationsRequest>,
    ) -> Result<Response<proto::ListApplicationsResponse>, Status> {
        let account = account_of(&request)?;
        let given = request.into_inner();
        let limit = page::size(given.page_size, DEFAULT_PAGE, MAX_APPLICATIONS as u32)? as usize;
        let after = page::last_key(&given.page_token)?.unwrap_or_default();
        let found = self.storage.catalogue().list_applications(&account, &after, limit).await.map_err(refused)?;
        Ok(Response::new(proto::ListApplicationsResponse {
            applications: found.entries.into_iter().map(to_message).collect(),
            next_page_token: found.next.as_deref().map(page::token).unwrap_or_default(),
        }))
    }

    async fn update_application(
        &self,
        request: Request<proto::UpdateApplicationRequest>,
    ) -> Result<Response<proto::UpdateApplicationResponse>, Status> {
        let account = account_of(&request)?;
        let given = request.into_inner();
        let id = application::id("id", &given.id).map_err(refused)?;
        if let Some(name) = &given.display_name {
            application::check_display_name(name).map_err(refused)?;
        }
        let default = |text: String| match text.is_empty() {
            true => Ok(None),
            false => application::version("default_version", &text).map(Some),
        };
        let change = ApplicationChange {
            display_name: given.display_name,
            allow_updates: given.allow_updates,
            default_version: given.default_version.map(default).transpose().map_err(refused)?,
        };
        let stamp = self.storage.stamp(&account, &given.request_id);
        let changed = self.storage.catalogue().change_application(stamp, &id, change).await.map_err(refused)?;
        Ok(Response::new(proto::UpdateApplicationResponse { application: Some(to_message(changed)) }))
    }

    async fn delete_application(
        &self,
        request: Request<proto::DeleteApplicationRequest>,
    ) -> Result<Response<proto::DeleteApplicationResponse>, Status> {
        let account = account_of(&request)?;
        let given = request.into_inner();
        let id = application::id("id", &given.id).map_err(refused)?;
        let stamp = self.storage.stamp(&account, &given.request_id);
        self.storage.catalogue().delete_application(stamp, &id).await.map_err(refused)?;
        Ok(Response::new(proto::DeleteApplicationResponse {}))
    }

    async fn create_package(
        &self,
        request: Request<proto::CreatePackageRequest>,
    ) -> Result<Response<proto::CreatePackageResponse>, Status> {
        let account = account_of(&request)?;
        let given = request.into_inner();
        let name = name(account, &given.application_id, &given.version, given.request_id)?;
        let (package, blob) = self.storage.announce_package(&name).await.map_err(refused)?;
        let (upload_url, expires) = self.upload_url(&name.account, &blob).await?;
        Ok(Response::new(proto::CreatePackageResponse {
            package: Some(package_message(package)),
            upload_url,
            upload_url_expires: Some(time::timestamp(expires.as_micros())),
        }))
    }

    async fn activate_package(
        &self,
        request: Request<proto::ActivatePackageRequest>,
    ) -> Result<Response<proto::ActivatePackageResponse>, Status> {
        let account = account_of(&request)?;
        let given = request.into_inner();
        let name = name(account, &given.application_id, &given.version, given.request_id)?;
        let package = self.storage.activate_package(&name).await.map_err(refused)?;
        Ok(Response::new(proto::ActivatePackageResponse { package: Some(package_message(package)) }))
    }

    async fn upload_package(
        &self,
        request: Request<Streaming<proto::UploadPackageRequest>>,
    ) -> Result<Response<proto::UploadPackageResponse>, Status> {
        let account = account_of(&request)?;
        let mut messages = request.into_inner();
        let first = messages.message().await?.and_then(|message| message.part);
        let Some(Part::Header(header)) = first else {
            return Err(Error::missing_property("header").into());
        };
        let md5 = match header.content_md5.len() {
            0 => None,
            _ => Some(header.content_md5.try_into().map_err(|_| refused(StorageError::InvalidMd5))?),
        };
        let name = name(account, &header.application_id, &header.version, header.request_id)?;
        let body = stream::try_unfold(messages, |mut messages| async move {
            match messages.message().await {
                Ok(None) => Ok(None),
                Ok(Some(proto::UploadPackageRequest { part: Some(Part::Data(data)) })) => Ok(Some((data, messages))),
                Ok(Some(_)) => Err(StorageError::InvalidHeader),
                Err(error) => {
                    tracing::debug!(%error, "an upload broke off");
                    Err(StorageError::IncompleteBody)
                }
            }
        });
        let package = self.storage.upload_package(&name, md5, Box::pin(body)).await.map_err(refused)?;
        Ok(Response::new(proto::UploadPackageResponse { package: Some(package_message(package)) }))
    }

    async fn delete_package(
        &self,
        request: Request<proto::DeletePackageRequest>,
    ) -> Result<Response<proto::DeletePackageResponse>, Status> {
        let account = account_of(&request)?;
        let given = request.into_inner();
        let name = name(account, &given.application_id, &given.version, given.request_id)?;
        let stamp = self.storage.stamp(&name.account, &name.request_id);
        self.storage.catalogue().delete_package(stamp, &name.application, &name.version).await.map_err(refused)?;
        Ok(Response::new(proto::DeletePackageResponse {}))
    }

    async fn check_packages(
        &self,
        request: Request<proto::CheckPackagesRequest>,
    ) -> Result<Response<proto::CheckPackagesResponse>, Status> {
        let account = account_of(&request)?;
        let references: Vec<Reference> = request
            .into_inner()
            .packages
            .iter()
            .map(|package| reference(&package.application_id, &package.version))
            .collect::<Result<_, _>>()
            .map_err(refused)?;
        self.storage.check_packages(&account, &references).await.map_err(refused)?;
        Ok(Response::new(proto::CheckPackagesResponse {}))
    }
}

/// A reference; no version means the default one.
///
/// # Errors
/// A name that cannot be one.
pub fn reference(application: &str, version: &str) -> Result<Reference, StorageError> {
    Ok(Reference {
        application: application::id("application_id", application)?,
        version: match version {
            "" => None,
            given => Some(application::version("version", given)?),
        },
    })
}

/// What a node is told.
pub fn resolved_message(resolved: Resolved) -> proto::ResolvedPackage {
    proto::ResolvedPackage {
        application_id: resolved.application.as_str().to_owned(),
        version: resolved.version.as_str().to_owned(),
        blob: resolved.content.blob,
        etag: resolved.content.etag,
        content_length: resolved.content.length,
        content_md5: resolved.content.md5.map(Vec::from).unwrap_or_default(),
    }
}

fn timestamp(time: Timestamp) -> Option<prost_types::Timestamp> {
    Some(time::timestamp(time.as_micros()))
}

fn to_message(application: Application) -> proto::Application {
    proto::Application {
        id: application.id.as_str().to_owned(),
        display_name: application.display_name,
        allow_updates: application.allow_updates,
        default_version: application.default_version.map(|version| version.as_str().to_owned()).unwrap_or_default(),
        packages: application.packages.into_iter().map(package_message).collect(),
        creation_time: timestamp(application.created),
        last_modified: timestamp(application.modified),
    }
}

fn package_message(package: Package) -> proto::Package {
    let state = match &package.content {
        Some(_) => proto::PackageState::Active,
        None => proto::PackageState::Pending,
    };
    let content = package.content.as_ref();
    proto::Package {
        version: package.version.as_str().to_owned(),
        state: state.into(),
        format: "zip".to_owned(),
        creation_time: timestamp(package.created),
        last_activation_time: content.and_then(|content| timestamp(content.activated)),
        content_length: content.map_or(0, |content| content.length),
        content_md5: content.and_then(|content| content.md5).map(Vec::from).unwrap_or_default(),
        upload_pending: package.pending.is_some(),
    }
}
