//! Accounts, whose keys every request needs.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::Storage;
use crate::domain::StorageError;
use crate::domain::model::Account;

/// Another replica may have replaced the keys; this long the old ones are used.
const FRESH: Duration = Duration::from_secs(5);

/// Accounts that were read lately. Only existing ones get in, so it is no
/// larger than the table.
#[derive(Debug, Default)]
pub struct Cache(RwLock<HashMap<String, (Instant, Arc<Account>)>>);

impl Storage {
    /// The account, its name compared without case.
    ///
    /// # Errors
    /// If the catalogue fails.
    pub async fn account(&self, name: &str) -> Result<Option<Arc<Account>>, StorageError> {
        let key = name.to_ascii_lowercase();
        let cached = self.inner.accounts.0.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some((read, account)) = cached
            && read.elapsed() < FRESH
        {
            return Ok(Some(account));
        }
        let Some(account) = self.inner.catalogue.account(&key).await? else { return Ok(None) };
        let account = Arc::new(account);
        self.remember(key, account.clone());
        Ok(Some(account))
    }

    /// The account, if there is exactly one.
    ///
    /// # Errors
    /// If the catalogue fails.
    pub async fn only_account(&self) -> Result<Option<Arc<Account>>, StorageError> {
        Ok(self.inner.catalogue.only_account().await?.map(Arc::new))
    }

    /// Creates the account or replaces its keys.
    ///
    /// # Errors
    /// A bad name, or the catalogue fails.
    pub async fn put_account(&self, account: Account) -> Result<(), StorageError> {
        crate::domain::names::check_account(&account.name)?;
        self.inner.catalogue.put_account(account.clone()).await?;
        tracing::info!(account = account.name, "account written");
        self.remember(account.name.to_ascii_lowercase(), Arc::new(account));
        Ok(())
    }

    fn remember(&self, key: String, account: Arc<Account>) {
        let mut cache = self.inner.accounts.0.write().unwrap_or_else(PoisonError::into_inner);
        cache.insert(key, (Instant::now(), account));
    }
}
