//! Leases of containers and blobs. They are written apart from what they are on, whose version stays.

use kiln_etag::Conditions;
use kiln_store::sql::{Connection, params};

use super::applications;
use super::rows::{self, Outcome, Sql};
use crate::domain::StorageError;
use crate::domain::condition;
use crate::domain::lease::{LeaseAction, LeaseAnswer};
use crate::domain::model::{Blob, Container};
use crate::store::Stamp;

pub fn of_container(
    c: &Connection,
    stamp: &Stamp,
    name: &str,
    conditions: &Conditions,
    action: &LeaseAction,
) -> Outcome<(Container, LeaseAnswer)> {
    applications::check_change(name)?;
    let (id, mut container) = rows::container(c, &stamp.account, name)?;
    condition::check_write(conditions, Some(container.version()))?;
    let (lease, answer) = container.lease.apply(action, stamp.now)?;
    c.prepare_cached("UPDATE containers SET lease = ?2 WHERE id = ?1")
        .sql()?
        .execute(params![id, rows::lease_text(&lease)?])
        .sql()?;
    container.lease = lease;
    Ok((container, answer))
}

pub fn of_blob(
    c: &Connection,
    stamp: &Stamp,
    container: &str,
    name: &str,
    conditions: &Conditions,
    action: &LeaseAction,
) -> Outcome<(Blob, LeaseAnswer)> {
    applications::check_change(container)?;
    let (container_id, _) = rows::container(c, &stamp.account, container)?;
    let Some((id, mut blob)) = rows::blob(c, container_id, container, name)? else {
        condition::check_write(conditions, None)?;
        return Err(StorageError::BlobNotFound);
    };
    condition::check_write(conditions, Some(blob.version()))?;
    let (lease, answer) = blob.lease.apply(action, stamp.now)?;
    c.prepare_cached("UPDATE blobs SET lease = ?2 WHERE id = ?1")
        .sql()?
        .execute(params![id, rows::lease_text(&lease)?])
        .sql()?;
    blob.lease = lease;
    Ok((blob, answer))
}
