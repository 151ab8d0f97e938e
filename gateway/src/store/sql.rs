//! [`AccountStore`] in SQL, whichever database is behind it.

use async_trait::async_trait;
use kiln_ids::AccountName;
use kiln_store::sql::{OptionalExtension, params};
use kiln_store::{Database, Durability, Migration, StoreConfig, StoreError};

use super::AccountStore;
use crate::domain::Account;

const MIGRATIONS: &[Migration] = &[Migration::new(1, include_str!("schema.sql"))];

/// A file that only its owner can read: it has the account keys.
#[derive(Debug, Clone)]
pub struct SqlStore {
    database: Database,
}

impl SqlStore {
    /// Opens the database, making it if needed.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be opened or is too new.
    pub async fn open(config: impl Into<StoreConfig>) -> Result<Self, StoreError> {
        Ok(Self { database: Database::open(config, Durability::PowerLoss, MIGRATIONS).await? })
    }
}

#[async_trait]
impl AccountStore for SqlStore {
    async fn put(&self, account: &Account) -> Result<(), StoreError> {
        let account = account.clone();
        self.database
            .write(move |connection| {
                connection
                    .prepare_cached(
                        "INSERT INTO accounts (account, name, key1, key2, storage_account) VALUES (?1, ?2, ?3, ?4, ?5)
                         ON CONFLICT (account) DO UPDATE SET name = excluded.name, key1 = excluded.key1,
                             key2 = excluded.key2, storage_account = excluded.storage_account",
                    )?
                    .execute(params![
                        account.name.key(),
                        account.name.as_str(),
                        account.key1.to_base64(),
                        account.key2.to_base64(),
                        account.storage_account,
                    ])?;
                Ok(())
            })
            .await
    }

    async fn get(&self, name: &AccountName) -> Result<Option<Account>, StoreError> {
        let key = name.key().into_owned();
        let row: Option<[String; 4]> = self
            .database
            .read::<_, StoreError, _>(move |connection| {
                Ok(connection
                    .prepare_cached("SELECT name, key1, key2, storage_account FROM accounts WHERE account = ?1")?
                    .query_row([key], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]))
                    .optional()?)
            })
            .await?;
        row.map(|[name, key1, key2, storage]| {
            Account::new(&name, &key1, &key2, &storage).map_err(|error| StoreError::Damaged(error.to_string()))
        })
        .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::*;

    #[tokio::test]
    async fn conforms() {
        for place in kiln_store::testing::TestStore::each() {
            conformance::accounts(|| async { SqlStore::open(place.config()).await.unwrap() }).await;
        }
    }

    #[tokio::test]
    async fn the_file_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.db");
        SqlStore::open(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn every_upgrade_leads_to_the_same_schema() {
        kiln_store::testing::check_migrations(MIGRATIONS).await;
    }
}
