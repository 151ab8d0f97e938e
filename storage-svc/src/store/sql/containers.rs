//! Accounts and containers.

use kiln_auth::SecretKey;
use kiln_store::sql::{Connection, OptionalExtension, params};

use super::applications;
use super::rows::{self, Outcome, Sql};
use crate::domain::StorageError;
use crate::domain::condition;
use crate::domain::lease::Leased;
use crate::domain::model::{Account, Container};
use crate::store::{ContainerChange, Guard, Once, Stamp};

pub fn put_account(c: &Connection, account: &Account) -> Outcome<()> {
    c.prepare_cached(
        "INSERT INTO accounts (key, name, key1, key2) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (key) DO UPDATE SET key1 = excluded.key1, key2 = excluded.key2",
    )
    .sql()?
    .execute(params![
        account.name.to_ascii_lowercase(),
        account.name,
        account.keys[0].to_base64(),
        account.keys[1].to_base64()
    ])
    .sql()?;
    Ok(())
}

pub fn account(c: &Connection, key: &str) -> Outcome<Option<Account>> {
    let row: Option<(String, String, String)> = c
        .prepare_cached("SELECT name, key1, key2 FROM accounts WHERE key = ?1")
        .sql()?
        .query_row([key], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()
        .sql()?;
    row.map(|(name, key1, key2)| {
        let key = |text: &str| SecretKey::from_base64(text).map_err(rows::damaged);
        Ok(Account { name, keys: [key(&key1)?, key(&key2)?] })
    })
    .transpose()
}

pub fn only_account(c: &Connection) -> Outcome<Option<Account>> {
    let keys: Vec<String> = c
        .prepare_cached("SELECT key FROM accounts LIMIT 2")
        .sql()?
        .query_map([], |row| row.get(0))
        .sql()?
        .collect::<Result<_, _>>()
        .sql()?;
    match keys.as_slice() {
        [only] => account(c, only),
        _ => Ok(None),
    }
}

pub fn create(c: &Connection, stamp: &Stamp, container: Container) -> Outcome<Once<Container>> {
    rows::once(c, stamp, "CreateContainer", || {
        applications::check_change(&container.name)?;
        if rows::find_container(c, &stamp.account, &container.name)?.is_some() {
            return Err(StorageError::ContainerAlreadyExists);
        }
        let container = Container { etag: stamp.etag.clone(), last_modified: stamp.now, ..container };
        insert(c, &stamp.account, &container)?;
        Ok(container)
    })
}

/// Writes the row of a container that does not exist.
pub fn insert(c: &Connection, account: &str, container: &Container) -> Outcome<()> {
    c.prepare_cached(
        "INSERT INTO containers (account, name, etag, modified, metadata, public_access, policies)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )
    .sql()?
    .execute(params![
        account.to_ascii_lowercase(),
        container.name,
        container.etag,
        container.last_modified.as_micros(),
        rows::to_json(&container.metadata)?,
        rows::public_access_number(container.public_access),
        rows::to_json(&container.policies)?,
    ])
    .sql()?;
    Ok(())
}

pub fn change(c: &Connection, stamp: &Stamp, name: &str, guard: &Guard, change: ContainerChange) -> Outcome<Container> {
    applications::check_change(name)?;
    let (id, mut container) = rows::container(c, &stamp.account, name)?;
    condition::check_write(&guard.conditions, Some(container.version()))?;
    // A lease keeps a container from being deleted, not from being changed.
    container.lease.check_read(Leased::Container, guard.lease.as_deref(), stamp.now)?;
    container.lease = container.lease.after_write(stamp.now);
    match change {
        ContainerChange::Metadata(metadata) => container.metadata = metadata,
        ContainerChange::Acl { public_access, policies } => {
            container.public_access = public_access;
            container.policies = policies;
        }
    }
    container.etag.clone_from(&stamp.etag);
    container.last_modified = stamp.now;
    c.prepare_cached(
        "UPDATE containers SET etag = ?2, modified = ?3, metadata = ?4, public_access = ?5, policies = ?6, lease = ?7
         WHERE id = ?1",
    )
    .sql()?
    .execute(params![
        id,
        container.etag,
        container.last_modified.as_micros(),
        rows::to_json(&container.metadata)?,
        rows::public_access_number(container.public_access),
        rows::to_json(&container.policies)?,
        rows::lease_text(&container.lease)?,
    ])
    .sql()?;
    Ok(container)
}

pub fn delete(c: &Connection, stamp: &Stamp, name: &str, guard: &Guard) -> Outcome<()> {
    rows::once(c, stamp, "DeleteContainer", || {
        applications::check_change(name)?;
        let (id, container) = rows::container(c, &stamp.account, name)?;
        condition::check_write(&guard.conditions, Some(container.version()))?;
        container.lease.check_write(Leased::Container, guard.lease.as_deref(), stamp.now)?;
        c.prepare_cached("DELETE FROM containers WHERE id = ?1").sql()?.execute([id]).sql()?;
        c.prepare_cached("INSERT INTO doomed (container, account, name) VALUES (?1, ?2, ?3)")
            .sql()?
            .execute(params![id, stamp.account, name])
            .sql()?;
        Ok(())
    })?;
    Ok(())
}
