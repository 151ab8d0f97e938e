//! Applications in the catalogue. Their zips are blobs of one container; which of
//! these there are, and that nobody else writes to them, is kept here, too.

use async_trait::async_trait;
use kiln_ids::{ApplicationId, PackageVersion};

use super::{Once, Page, Stamp};
use crate::domain::StorageError;
use crate::domain::application::{Application, ApplicationChange, Package, PackageContent};

/// The part of the catalogue that is about applications; see [`super::Catalogue`].
#[async_trait]
pub trait ApplicationCatalogue {
    /// Makes an application; its times are those of the stamp.
    async fn create_application(
        &self,
        stamp: Stamp,
        application: Application,
    ) -> Result<Once<Application>, StorageError>;
    /// The application.
    async fn application(&self, account: &str, id: &ApplicationId) -> Result<Application, StorageError>;
    /// Applications behind the id `after` (lower case), in the order of their ids.
    async fn list_applications(
        &self,
        account: &str,
        after: &str,
        limit: usize,
    ) -> Result<Page<Application>, StorageError>;
    /// Changes what is given.
    async fn change_application(
        &self,
        stamp: Stamp,
        id: &ApplicationId,
        change: ApplicationChange,
    ) -> Result<Application, StorageError>;
    /// Removes an application that has no packages.
    async fn delete_application(&self, stamp: Stamp, id: &ApplicationId) -> Result<(), StorageError>;

    /// Announces a zip: from now on the blob `pending` may be put. An earlier announcement
    /// and what was put for it are dropped.
    async fn create_package(
        &self,
        stamp: Stamp,
        id: &ApplicationId,
        version: &PackageVersion,
        pending: String,
    ) -> Result<Package, StorageError>;
    /// Makes the announced zip, which was looked at, the content. The content before it is
    /// dropped. Once it is the content, the same again changes nothing.
    async fn activate_package(
        &self,
        stamp: Stamp,
        id: &ApplicationId,
        version: &PackageVersion,
        content: PackageContent,
    ) -> Result<Package, StorageError>;
    /// Removes a package and its blobs; if it was the default, there is none then.
    async fn delete_package(
        &self,
        stamp: Stamp,
        id: &ApplicationId,
        version: &PackageVersion,
    ) -> Result<(), StorageError>;
}
