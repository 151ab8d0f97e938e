//! Properties of the blob service of an account.

use kiln_store::sql::{Connection, OptionalExtension, params};

use super::rows::{self, Outcome, Sql};
use crate::domain::StorageError;
use crate::domain::cors::{PropertiesChange, ServiceProperties};

pub fn get(c: &Connection, account: &str) -> Outcome<ServiceProperties> {
    let row: Option<Option<String>> = c
        .prepare_cached("SELECT properties FROM accounts WHERE key = ?1")
        .sql()?
        .query_row([account.to_ascii_lowercase()], |row| row.get(0))
        .optional()
        .sql()?;
    let text = row.ok_or(StorageError::ResourceNotFound)?;
    text.map_or(Ok(ServiceProperties::default()), |text| rows::from_json(&text))
}

pub fn change(c: &Connection, account: &str, change: PropertiesChange) -> Outcome<()> {
    let mut properties = get(c, account)?;
    properties.change(change)?;
    c.prepare_cached("UPDATE accounts SET properties = ?2 WHERE key = ?1")
        .sql()?
        .execute(params![account.to_ascii_lowercase(), rows::to_json(&properties)?])
        .sql()?;
    Ok(())
}
