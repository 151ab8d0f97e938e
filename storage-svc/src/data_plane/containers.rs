//! Containers, and lists.

use kiln_grpc::page;
use kiln_time::Timestamp;

use super::headers::ContainerDates;
use super::input::Input;
use super::reply::Reply;
use super::xml::{self, ListRequest};
use super::{Answer, Job, headers, marker};
use crate::domain::StorageError;
use crate::domain::lease::{Lease, Leased};
use crate::domain::model::{Container, MAX_PAGE};
use crate::store::{BlobPosition, BlobQuery, ContainerChange, Guard};

/// Bytes of an ACL document at most.
const MAX_ACL: usize = 64 * 1024;

/// Values of `include` that lists know; those that cannot be here (versions,
/// deleted blobs) add nothing.
const INCLUDES: &[&str] = &[
    "copy",
    "deleted",
    "metadata",
    "snapshots",
    "uncommittedblobs",
    "versions",
    "tags",
    "deletedwithversions",
    "immutabilitypolicy",
    "legalhold",
    "permissions",
    "system",
];

impl Job<'_> {
    fn account(&self) -> &str {
        &self.call.account.name
    }

    fn guard_container(&self, dates: ContainerDates) -> Result<Guard, StorageError> {
        let conditions = headers::container_conditions(self.call, dates)?;
        Ok(Guard { lease: headers::lease_id(self.call)?, ..Guard::from(conditions) })
    }

    /// The container, if the lease that the call names is its own.
    async fn readable_container(&self) -> Result<Container, StorageError> {
        let given = headers::lease_id(self.call)?;
        let found = self.plane.storage.catalogue().container(self.account(), &self.call.container).await?;
        found.lease.check_read(Leased::Container, given.as_deref(), Timestamp::now())?;
        Ok(found)
    }

    pub(super) async fn create_container(self) -> Answer {
        let container = Container {
            name: self.call.container.clone(),
            etag: String::new(),
            last_modified: Timestamp::default(),
            metadata: headers::metadata(self.call)?.unwrap_or_default(),
            public_access: headers::public_access(self.call)?,
            policies: Vec::new(),
            lease: Lease::Available,
        };
        let stamp = self.plane.storage.stamp(self.account(), "");
        let made = self.plane.storage.catalogue().create_container(stamp, container).await?.answer;
        Ok(Reply::new(201).version(&made.etag, made.last_modified))
    }

    pub(super) async fn get_container(self) -> Answer {
        let found = self.readable_container().await?;
        Ok(Reply::new(200).container(&found))
    }

    pub(super) async fn set_container_metadata(self) -> Answer {
        let metadata = headers::metadata(self.call)?.unwrap_or_default();
        self.change(ContainerDates::Modified, ContainerChange::Metadata(metadata)).await
    }

    pub(super) async fn get_acl(self) -> Answer {
        let found = self.readable_container().await?;
        Ok(Reply::xml(200, xml::acl(&found.policies))
            .version(&found.etag, found.last_modified)
            .public_access(found.public_access))
    }

    pub(super) async fn set_acl(self, input: &mut Input) -> Answer {
        let public_access = headers::public_access(self.call)?;
        let policies = xml::parse_acl(&input.document(MAX_ACL).await?)?;
        self.change(ContainerDates::Both, ContainerChange::Acl { public_access, policies }).await
    }

    async fn change(self, dates: ContainerDates, change: ContainerChange) -> Answer {
        let guard = self.guard_container(dates)?;
        let stamp = self.plane.storage.stamp(self.account(), "");
        let catalogue = self.plane.storage.catalogue();
        let changed = catalogue.change_container(stamp, &self.call.container, guard, change).await?;
        Ok(Reply::new(200).version(&changed.etag, changed.last_modified))
    }

    pub(super) async fn delete_container(self) -> Answer {
        let guard = self.guard_container(ContainerDates::Both)?;
        let stamp = self.plane.storage.stamp(self.account(), "");
        self.plane.storage.catalogue().delete_container(stamp, &self.call.container, guard).await?;
        Ok(Reply::new(202))
    }

    pub(super) async fn list_containers(self) -> Answer {
        let request = self.list_request()?;
        let from = page::last_key(&request.marker).map_err(|_| invalid_marker(&request.marker))?.unwrap_or_default();
        let limit = request.max_results.unwrap_or(MAX_PAGE);
        let catalogue = self.plane.storage.catalogue();
        let page = catalogue.list_containers(self.account(), &request.prefix, &from, limit).await?;
        let next = page.next.as_deref().map(page::token).unwrap_or_default();
        Ok(Reply::xml(200, xml::containers(&self.call.endpoint, &request, &page, &next)))
    }

    pub(super) async fn list_blobs(self) -> Answer {
        let request = self.list_request()?;
        let query = BlobQuery {
            prefix: request.prefix.clone(),
            delimiter: request.delimiter.clone(),
            from: match marker::read(&request.marker).ok_or_else(|| invalid_marker(&request.marker))? {
                Some(position) => Some(position),
                None => self.call.query.get("startfrom").map(|name| BlobPosition::before(name.to_owned())),
            },
            limit: request.max_results.unwrap_or(MAX_PAGE),
            snapshots: request.snapshots,
            uncommitted: request.uncommitted,
        };
        let container = &self.call.container;
        let page = self.plane.storage.catalogue().list_blobs(self.account(), container, query).await?;
        let next = page.next.as_ref().map(marker::write).unwrap_or_default();
        Ok(Reply::xml(200, xml::blobs(&self.call.endpoint, container, &request, &page, &next)))
    }

    /// The parameters both lists have.
    fn list_request(&self) -> Result<ListRequest, StorageError> {
        let get = |name: &str| self.call.query.get(name).unwrap_or_default().to_owned();
        let max_results = match self.call.query.get("maxresults") {
            None | Some("") => None,
            Some(text) => match text.parse::<i64>() {
                Err(_) => {
                    let value = text.to_owned();
                    return Err(StorageError::InvalidQueryParameterValue { name: "maxresults", value });
                }
                Ok(number) if number < 1 => {
                    return Err(StorageError::OutOfRangeQueryParameterValue {
                        name: "maxresults",
                        value: text.to_owned(),
                        minimum: 1,
                        maximum: MAX_PAGE as i64,
                    });
                }
                Ok(number) => Some(usize::try_from(number).unwrap_or(MAX_PAGE).min(MAX_PAGE)),
            },
        };
        let includes: Vec<String> = self
            .call
            .query
            .all("include")
            .flat_map(|value| value.split(','))
            .map(|value| value.trim().to_ascii_lowercase())
            .filter(|value| !value.is_empty())
            .collect();
        if let Some(unknown) = includes.iter().find(|value| !INCLUDES.contains(&value.as_str())) {
            let value = unknown.clone();
            return Err(StorageError::InvalidQueryParameterValue { name: "include", value });
        }
        let has = |name: &str| includes.iter().any(|value| value == name);
        Ok(ListRequest {
            prefix: get("prefix"),
            marker: get("marker"),
            delimiter: get("delimiter"),
            max_results,
            metadata: has("metadata"),
            copy: has("copy"),
            snapshots: has("snapshots"),
            uncommitted: has("uncommittedblobs"),
        })
    }
}

fn invalid_marker(marker: &str) -> StorageError {
    StorageError::InvalidQueryParameterValue { name: "marker", value: marker.to_owned() }
}
