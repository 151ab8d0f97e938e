//! Packages of applications: from an announced zip to what nodes install.

use bytes::BytesMut;
use futures::TryStreamExt;
use kiln_etag::Conditions;
use kiln_ids::{ApplicationId, PackageVersion};
use kiln_package::zip::{self, ENTRY_MARK, NotAZip};

use super::{Body, Expected, PutBlob, Storage, io_error};
use crate::domain::StorageError;
use crate::domain::application::{
    self, ApplicationError, CONTAINER, MAX_REFERENCES, MAX_ZIP, Package, PackageContent, Reference, Resolved,
};
use crate::domain::limits::Limits;
use crate::domain::model::{Address, Blob, BlobProperties};
use crate::domain::names::Metadata;
use crate::domain::range::WantedRange;
use crate::store::Guard;

/// The type that blobs of packages have.
const ZIP_TYPE: &str = "application/zip";

/// A package by its names, and who asks.
#[derive(Debug, Clone)]
pub struct PackageName {
    /// Owner.
    pub account: String,
    /// The application.
    pub application: ApplicationId,
    /// Which of its packages.
    pub version: PackageVersion,
    /// For safe repetition; may be empty.
    pub request_id: String,
}

impl Storage {
    /// Announces a zip; gives the package and the blob that may be put now.
    ///
    /// # Errors
    /// No such application, a limit, or it must not be replaced.
    pub async fn announce_package(&self, name: &PackageName) -> Result<(Package, String), StorageError> {
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let pending = application::blob_name(&name.application, &name.version, &unique);
        let stamp = self.stamp(&name.account, &name.request_id);
        let package = self.catalogue().create_package(stamp, &name.application, &name.version, pending).await?;
        match package.pending.clone() {
            Some(pending) => Ok((package, pending)),
            None => Err(StorageError::InternalError),
        }
    }

    /// Makes the zip that was put the package's content, if it is one.
    ///
    /// # Errors
    /// Nothing was put, or what was put is no zip.
    pub async fn activate_package(&self, name: &PackageName) -> Result<Package, StorageError> {
        let application = self.catalogue().application(&name.account, &name.application).await?;
        let package = application.package(&name.version)?;
        match &package.pending {
            Some(blob) => self.activate_blob(name, blob).await,
            // Activated already.
            None => Ok(package.clone()),
        }
    }

    async fn activate_blob(&self, name: &PackageName, blob: &str) -> Result<Package, StorageError> {
        let blob = match self.catalogue().blob(Address::blob(&name.account, CONTAINER, blob)).await {
            Err(StorageError::BlobNotFound) => {
                return Err(ApplicationError::NotUploaded(name.application.clone(), name.version.clone()).into());
            }
            found => found?,
        };
        self.check_zip(&name.account, &blob).await?;
        let content = PackageContent {
            blob: blob.name,
            etag: blob.etag,
            md5: blob.properties.content_md5,
            length: blob.length,
            activated: kiln_time::Timestamp::default(),
        };
        let stamp = self.stamp(&name.account, &name.request_id);
        self.catalogue().activate_package(stamp, &name.application, &name.version, content).await
    }

    /// Announces, receives and activates a zip.
    ///
    /// # Errors
    /// As each of these; what was received then stays announced, and is dropped with
    /// the next announcement.
    pub async fn upload_package(
        &self,
        name: &PackageName,
        md5: Option<[u8; 16]>,
        body: Body<'_>,
    ) -> Result<Package, StorageError> {
        let (_, blob) = self.announce_package(name).await?;
        let put = PutBlob {
            account: name.account.clone(),
            container: CONTAINER.to_owned(),
            name: blob.clone(),
            properties: BlobProperties { content_type: ZIP_TYPE.to_owned(), ..BlobProperties::default() },
            metadata: Metadata::new(),
            tier: None,
            expected: Expected { md5, ..Expected::default() },
            limits: Limits::default(),
            guard: Guard::default(),
            request_id: name.request_id.clone(),
        };
        self.put_blob(put, body).await?;
        self.activate_blob(name, &blob).await
    }

    /// What a reference means now.
    ///
    /// # Errors
    /// There is no such package, or none that is active.
    pub async fn resolve_package(&self, account: &str, reference: &Reference) -> Result<Resolved, StorageError> {
        let application = self.catalogue().application(account, &reference.application).await?;
        Ok(application.resolve(reference.version.as_ref())?)
    }

    /// Whether nodes could find all of these now.
    ///
    /// # Errors
    /// [`ApplicationError::InvalidReference`] with the first that they could not.
    pub async fn check_packages(&self, account: &str, references: &[Reference]) -> Result<(), StorageError> {
        if references.len() > MAX_REFERENCES {
            return Err(ApplicationError::TooManyReferences(references.len()).into());
        }
        for reference in references {
            self.resolve_package(account, reference).await.map_err(|error| match error {
                StorageError::Application(why) => ApplicationError::InvalidReference(Box::new(why)).into(),
                other => other,
            })?;
        }
        Ok(())
    }

    /// Looks at the end of a blob and at the place its end tells of.
    async fn check_zip(&self, account: &str, blob: &Blob) -> Result<(), StorageError> {
        if blob.length > MAX_ZIP {
            return Err(ApplicationError::TooLarge(blob.length).into());
        }
        let tail = self.read_part(account, blob, blob.length.saturating_sub(zip::TAIL), blob.length).await?;
        let directory = zip::directory(blob.length, &tail).map_err(ApplicationError::from)?;
        if directory.entries > 0 {
            let end = blob.length.min(directory.start + ENTRY_MARK.len() as u64);
            let mark = self.read_part(account, blob, directory.start, end).await?;
            if *mark != ENTRY_MARK {
                return Err(ApplicationError::from(NotAZip::Damaged).into());
            }
        }
        Ok(())
    }

    /// Bytes from `start` to before `end`, of the very version that `blob` is.
    async fn read_part(&self, account: &str, blob: &Blob, start: u64, end: u64) -> Result<BytesMut, StorageError> {
        let mut bytes = BytesMut::new();
        if start >= end {
            return Ok(bytes);
        }
        let same = Conditions { if_match: Some(kiln_etag::EtagSet::parse(&blob.etag)), ..Conditions::default() };
        let range = Some(WantedRange { start, end: Some(end - 1) });
        let opened =
            self.open(Address::blob(account, CONTAINER, &blob.name), &same, range).await.map_err(
                |error| match error {
                    StorageError::ConditionNotMet => ApplicationError::Replaced.into(),
                    other => other,
                },
            )?;
        let mut pieces = opened.into_stream();
        while let Some(piece) = pieces.try_next().await.map_err(|error| io_error(&error))? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }
}
