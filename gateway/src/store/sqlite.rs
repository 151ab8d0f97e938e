//! [`AccountStore`] in a SQLite file.

use std::path::Path;

use async_trait::async_trait;
use kiln_ids::AccountName;
use kiln_store::rusqlite::{OptionalExtension, params};
use kiln_store::{Database, Durability, Migration, StoreError};

use super::AccountStore;
use crate::domain::Account;

const MIGRATIONS: &[Migration] = &[Migration { version: 1, sql: include_str!("schema.sql") }];

/// A file that only its owner can read: it has the account keys.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    database: Database,
}

impl SqliteStore {
    /// Opens the file, making it if needed.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be opened or is too new.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        keep_private(path)?;
        Ok(Self { database: Database::open(path, Durability::PowerLoss, MIGRATIONS).await? })
    }
}

/// Makes the file before SQLite does, so that nobody else can open it even for
/// a moment. SQLite gives its side files the same mode.
fn keep_private(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|error| StoreError::Damaged(format!("{}: {error}", path.display())))
}

#[async_trait]
impl AccountStore for SqliteStore {
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
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.db");
        conformance::accounts(|| async { SqliteStore::open(&path).await.unwrap() }).await;
    }

    #[tokio::test]
    async fn the_file_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.db");
        SqliteStore::open(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
