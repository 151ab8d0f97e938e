//! The catalogue in SQL, whichever database is behind it.
//!
//! [`SqlCatalogue`] opens the file and hands each call to a function of the
//! same name: [`containers`], [`blobs`], [`snapshots`], [`blocks`], [`append`],
//! [`copies`], [`leases`], [`list`], [`places`], [`properties`], [`applications`], [`upkeep`]; what they share (rows, garbage, events,
//! request ids) is in [`rows`].

mod append;
mod applications;
mod blobs;
mod blocks;
mod containers;
mod copies;
mod leases;
mod list;
mod places;
mod properties;
mod rows;
mod snapshots;
mod upkeep;

use std::collections::HashSet;

use async_trait::async_trait;
use kiln_etag::Conditions;
use kiln_ids::{ApplicationId, PackageVersion};
use kiln_store::{Database, Durability, Migration, StoreConfig, StoreError};
use kiln_time::Timestamp;

use super::{
    Appended, ApplicationCatalogue, BlobChange, BlobEntry, BlobPosition, BlobQuery, BlockList, Blocks, Catalogue,
    ContainerChange, CopyFrom, CopyInto, Deletion, Guard, LooseRun, NewBlob, NewBlock, NewPiece, Once, Page, Stamp,
};
use crate::domain::StorageError;
use crate::domain::application::{Application, ApplicationChange, Package, PackageContent};
use crate::domain::cors::{PropertiesChange, ServiceProperties};
use crate::domain::lease::{LeaseAction, LeaseAnswer};
use crate::domain::model::{Account, Address, Blob, Container, Content, ObjectKey, OpenUpload, Tier};
use crate::domain::names::Metadata;

const SCHEMA: &str = include_str!("../schema.sql");
const LEASES: &str = include_str!("../leases.sql");
const SERVICE_PROPERTIES: &str = include_str!("../service_properties.sql");
const APPLICATIONS: &str = include_str!("../applications.sql");
const MIGRATIONS: &[Migration] = &[
    Migration::new(1, kiln_store::outbox::SCHEMA),
    Migration::new(2, kiln_store::requests::SCHEMA),
    Migration::new(3, SCHEMA),
    Migration::new(4, LEASES),
    Migration::new(5, SERVICE_PROPERTIES),
    Migration::new(6, include_str!("../kinds.sql")),
    Migration::new(7, include_str!("../places.sql")),
    Migration::new(8, APPLICATIONS),
];

/// See the module.
#[derive(Debug, Clone)]
pub struct SqlCatalogue {
    database: Database,
}

impl SqlCatalogue {
    /// Opens the database, making it if needed.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be used.
    pub async fn open(config: impl Into<StoreConfig>) -> Result<Self, StoreError> {
        Self::open_with(config, Durability::PowerLoss).await
    }

    /// The same; its commits survive what `durability` says.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be used.
    pub async fn open_with(config: impl Into<StoreConfig>, durability: Durability) -> Result<Self, StoreError> {
        Ok(Self { database: Database::open(config, durability, MIGRATIONS).await? })
    }

    /// For the outbox relay.
    pub fn database(&self) -> &Database {
        &self.database
    }
}

#[async_trait]
impl Catalogue for SqlCatalogue {
    async fn put_account(&self, account: Account) -> Result<(), StorageError> {
        self.database.write(move |c| containers::put_account(c, &account)).await
    }

    async fn account(&self, name: &str) -> Result<Option<Account>, StorageError> {
        let key = name.to_ascii_lowercase();
        self.database.read(move |c| containers::account(c, &key)).await
    }

    async fn only_account(&self) -> Result<Option<Account>, StorageError> {
        self.database.read(containers::only_account).await
    }

    async fn service_properties(&self, account: &str) -> Result<ServiceProperties, StorageError> {
        let account = account.to_owned();
        self.database.read(move |c| properties::get(c, &account)).await
    }

    async fn change_service_properties(&self, account: &str, change: PropertiesChange) -> Result<(), StorageError> {
        let account = account.to_owned();
        self.database.write(move |c| properties::change(c, &account, change)).await
    }

    async fn create_container(&self, stamp: Stamp, container: Container) -> Result<Once<Container>, StorageError> {
        self.database.write(move |c| containers::create(c, &stamp, container)).await
    }

    async fn container(&self, account: &str, name: &str) -> Result<Container, StorageError> {
        let (account, name) = (account.to_owned(), name.to_owned());
        self.database.read(move |c| Ok(rows::container(c, &account, &name)?.1)).await
    }

    async fn list_containers(
        &self,
        account: &str,
        prefix: &str,
        from: &str,
        limit: usize,
    ) -> Result<Page<Container>, StorageError> {
        let (account, prefix, from) = (account.to_owned(), prefix.to_owned(), from.to_owned());
        self.database.read(move |c| list::containers(c, &account, &prefix, &from, limit)).await
    }

    async fn change_container(
        &self,
        stamp: Stamp,
        name: &str,
        guard: Guard,
        change: ContainerChange,
    ) -> Result<Container, StorageError> {
        let name = name.to_owned();
        self.database.write(move |c| containers::change(c, &stamp, &name, &guard, change)).await
    }

    async fn delete_container(&self, stamp: Stamp, name: &str, guard: Guard) -> Result<(), StorageError> {
        let name = name.to_owned();
        self.database.write(move |c| containers::delete(c, &stamp, &name, &guard)).await
    }

    async fn lease_container(
        &self,
        stamp: Stamp,
        name: &str,
        conditions: Conditions,
        action: LeaseAction,
    ) -> Result<(Container, LeaseAnswer), StorageError> {
        let name = name.to_owned();
        self.database.write(move |c| leases::of_container(c, &stamp, &name, &conditions, &action)).await
    }

    async fn blob(&self, of: Address<'_>) -> Result<Blob, StorageError> {
        let of = rows::Key::new(of);
        self.database.read(move |c| Ok(of.get(c)?.1)).await
    }

    async fn blob_content(&self, of: Address<'_>) -> Result<(Blob, Content), StorageError> {
        let of = rows::Key::new(of);
        self.database.read(move |c| blobs::with_content(c, &of)).await
    }

    async fn put_blob(&self, stamp: Stamp, blob: NewBlob, guard: Guard) -> Result<Once<Blob>, StorageError> {
        self.database.write(move |c| blobs::put(c, &stamp, blob, &guard)).await
    }

    async fn copy_blob(
        &self,
        stamp: Stamp,
        from: CopyFrom,
        into: CopyInto,
        guard: Guard,
    ) -> Result<Blob, StorageError> {
        self.database.write(move |c| copies::copy(c, &stamp, &from, into, &guard)).await
    }

    async fn change_blob(
        &self,
        stamp: Stamp,
        container: &str,
        name: &str,
        guard: Guard,
        change: BlobChange,
    ) -> Result<Blob, StorageError> {
        let (container, name) = (container.to_owned(), name.to_owned());
        self.database.write(move |c| blobs::change(c, &stamp, &container, &name, &guard, change)).await
    }

    async fn delete_blob(
        &self,
        stamp: Stamp,
        container: &str,
        name: &str,
        guard: Guard,
        what: Deletion,
    ) -> Result<(), StorageError> {
        let (container, name) = (container.to_owned(), name.to_owned());
        self.database.write(move |c| blobs::delete(c, &stamp, &container, &name, &guard, what)).await
    }

    async fn lease_blob(
        &self,
        stamp: Stamp,
        container: &str,
        name: &str,
        conditions: Conditions,
        action: LeaseAction,
    ) -> Result<(Blob, LeaseAnswer), StorageError> {
        let (container, name) = (container.to_owned(), name.to_owned());
        self.database.write(move |c| leases::of_blob(c, &stamp, &container, &name, &conditions, &action)).await
    }

    async fn take_snapshot(
        &self,
        stamp: Stamp,
        container: &str,
        name: &str,
        guard: Guard,
        metadata: Option<Metadata>,
    ) -> Result<Blob, StorageError> {
        let (container, name) = (container.to_owned(), name.to_owned());
        self.database.write(move |c| snapshots::take(c, &stamp, &container, &name, &guard, metadata)).await
    }

    async fn set_tier(
        &self,
        of: Address<'_>,
        now: Timestamp,
        tier: Tier,
        given: Option<String>,
    ) -> Result<(), StorageError> {
        let of = rows::Key::new(of);
        self.database.write(move |c| blobs::set_tier(c, &of, now, tier, given.as_deref())).await
    }

    async fn list_blobs(
        &self,
        account: &str,
        container: &str,
        query: BlobQuery,
    ) -> Result<Page<BlobEntry, BlobPosition>, StorageError> {
        let (account, container) = (account.to_owned(), container.to_owned());
        self.database.read(move |c| list::blobs(c, &account, &container, &query)).await
    }

    async fn put_block(&self, stamp: Stamp, block: NewBlock, guard: Guard) -> Result<(), StorageError> {
        self.database.write(move |c| blocks::put(c, &stamp, &block, &guard)).await
    }

    async fn put_block_list(&self, stamp: Stamp, list: BlockList, guard: Guard) -> Result<Blob, StorageError> {
        self.database.write(move |c| blocks::commit(c, &stamp, list, &guard)).await
    }

    async fn blocks(&self, of: Address<'_>) -> Result<Blocks, StorageError> {
        let of = rows::Key::new(of);
        self.database.read(move |c| blocks::of_blob(c, &of)).await
    }

    async fn append(&self, stamp: Stamp, piece: NewPiece, guard: Guard) -> Result<Appended, StorageError> {
        self.database.write(move |c| append::add(c, &stamp, piece, &guard)).await
    }

    async fn loose(&self, account: &str, container: &str, name: &str) -> Result<Vec<LooseRun>, StorageError> {
        let of = rows::Key::new(Address::blob(account, container, name));
        self.database.read(move |c| append::loose(c, &of)).await
    }

    async fn merge(&self, run: LooseRun, object: ObjectKey) -> Result<bool, StorageError> {
        self.database.write(move |c| append::merge(c, &run, &object)).await
    }

    async fn garbage(&self, before: Timestamp, limit: usize) -> Result<Vec<ObjectKey>, StorageError> {
        self.database.read(move |c| upkeep::garbage(c, before, limit)).await
    }

    async fn forget_garbage(&self, objects: Vec<ObjectKey>) -> Result<(), StorageError> {
        self.database.write(move |c| upkeep::forget(c, &objects)).await
    }

    async fn known(&self, objects: Vec<ObjectKey>) -> Result<HashSet<ObjectKey>, StorageError> {
        self.database.read(move |c| upkeep::known(c, objects)).await
    }

    async fn identity(&self, new: &str) -> Result<String, StorageError> {
        let new = new.to_owned();
        self.database.write(move |c| places::identity(c, &new)).await
    }

    async fn encryption_keys(&self) -> Result<Vec<(String, String)>, StorageError> {
        self.database.read(places::keys).await
    }

    async fn add_encryption_key(&self, id: &str, proof: &str) -> Result<(), StorageError> {
        let (id, proof) = (id.to_owned(), proof.to_owned());
        self.database.write(move |c| places::add_key(c, &id, &proof)).await
    }

    async fn key_in_use(&self, id: &str) -> Result<bool, StorageError> {
        let id = id.to_owned();
        self.database.read(move |c| places::key_in_use(c, &id)).await
    }

    async fn forget_encryption_key(&self, id: &str) -> Result<(), StorageError> {
        let id = id.to_owned();
        self.database.write(move |c| places::forget_key(c, &id)).await
    }

    async fn note_upload(&self, upload: &OpenUpload, now: Timestamp) -> Result<(), StorageError> {
        let upload = upload.clone();
        self.database.write(move |c| places::note_upload(c, &upload, now)).await
    }

    async fn forget_upload(&self, object: &ObjectKey) -> Result<(), StorageError> {
        let object = object.clone();
        self.database.write(move |c| places::forget_upload(c, &object)).await
    }

    async fn open_uploads(&self, before: Timestamp, limit: usize) -> Result<Vec<OpenUpload>, StorageError> {
        self.database.read(move |c| places::open_uploads(c, before, limit)).await
    }

    async fn tidy(&self, now: Timestamp) -> Result<bool, StorageError> {
        self.database.write(move |c| upkeep::tidy(c, now)).await
    }
}

#[async_trait]
impl ApplicationCatalogue for SqlCatalogue {
    async fn create_application(
        &self,
        stamp: Stamp,
        application: Application,
    ) -> Result<Once<Application>, StorageError> {
        self.database.write(move |c| applications::create(c, &stamp, application)).await
    }

    async fn application(&self, account: &str, id: &ApplicationId) -> Result<Application, StorageError> {
        let (account, id) = (account.to_owned(), id.clone());
        self.database.read(move |c| applications::get(c, &account, &id)).await
    }

    async fn list_applications(
        &self,
        account: &str,
        after: &str,
        limit: usize,
    ) -> Result<Page<Application>, StorageError> {
        let (account, after) = (account.to_owned(), after.to_owned());
        self.database.read(move |c| applications::list(c, &account, &after, limit)).await
    }

    async fn change_application(
        &self,
        stamp: Stamp,
        id: &ApplicationId,
        change: ApplicationChange,
    ) -> Result<Application, StorageError> {
        let id = id.clone();
        self.database.write(move |c| applications::change(c, &stamp, &id, change)).await
    }

    async fn delete_application(&self, stamp: Stamp, id: &ApplicationId) -> Result<(), StorageError> {
        let id = id.clone();
        self.database.write(move |c| applications::delete(c, &stamp, &id)).await
    }

    async fn create_package(
        &self,
        stamp: Stamp,
        id: &ApplicationId,
        version: &PackageVersion,
        pending: String,
    ) -> Result<Package, StorageError> {
        let (id, version) = (id.clone(), version.clone());
        self.database.write(move |c| applications::create_package(c, &stamp, &id, &version, pending)).await
    }

    async fn activate_package(
        &self,
        stamp: Stamp,
        id: &ApplicationId,
        version: &PackageVersion,
        content: PackageContent,
    ) -> Result<Package, StorageError> {
        let (id, version) = (id.clone(), version.clone());
        self.database.write(move |c| applications::activate_package(c, &stamp, &id, &version, content)).await
    }

    async fn delete_package(
        &self,
        stamp: Stamp,
        id: &ApplicationId,
        version: &PackageVersion,
    ) -> Result<(), StorageError> {
        let (id, version) = (id.clone(), version.clone());
        self.database.write(move |c| applications::delete_package(c, &stamp, &id, &version)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn conforms() {
        for place in kiln_store::testing::TestStore::each() {
            let catalogue = SqlCatalogue::open(place.config()).await.unwrap();
            crate::store::conformance::all(&catalogue).await;
            crate::store::kind_conformance::all(&catalogue).await;
        }
    }

    #[tokio::test]
    async fn every_upgrade_leads_to_the_same_schema() {
        kiln_store::testing::check_migrations(MIGRATIONS).await;
    }
}
