//! Accounts in memory: every request needs its account's keys, and they hardly
//! ever change.
//!
//! A reader that found an old row must not put it into the memory after a
//! writer has cleared it there: readers remember the generation they began
//! with, and writers raise it. Another replica's change is seen when the entry
//! is [`KEEP`] old.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use kiln_auth::token::{self, Principal};
use kiln_error::Error;
use kiln_ids::AccountName;
use tokio::time::Instant;

use crate::domain::Account;
use crate::domain::shared_key::failed;
use crate::store::AccountStore;

/// How long an entry is believed.
const KEEP: Duration = Duration::from_secs(30);

/// The accounts of the deployment; clones share the memory.
#[derive(Debug, Clone)]
pub struct Accounts {
    store: Arc<dyn AccountStore>,
    memory: Arc<RwLock<Memory>>,
}

#[derive(Debug, Default)]
struct Memory {
    generation: u64,
    /// Only accounts that exist, so strangers cannot fill it.
    entries: HashMap<String, (Instant, Arc<Account>)>,
}

impl Accounts {
    /// Keeps what `store` has in memory as it is asked for.
    pub fn new(store: Arc<dyn AccountStore>) -> Self {
        Self { store, memory: Arc::default() }
    }

    /// The account of that name, if there is one.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn get(&self, name: &str) -> Result<Option<Arc<Account>>, Error> {
        let Ok(name) = AccountName::parse(name) else { return Ok(None) };
        let generation = {
            let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
            if let Some((since, account)) = memory.entries.get(&*name.key())
                && since.elapsed() < KEEP
            {
                return Ok(Some(account.clone()));
            }
            memory.generation
        };
        let found = self.store.get(&name).await?.map(Arc::new);
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        if memory.generation == generation {
            let key = name.key().into_owned();
            match &found {
                Some(account) => memory.entries.insert(key, (Instant::now(), account.clone())),
                None => memory.entries.remove(&key),
            };
        }
        Ok(found)
    }

    /// Creates or replaces an account; its old keys are void at once.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub async fn put(&self, account: &Account) -> Result<(), Error> {
        let written = self.store.put(account).await;
        // Also after an error: it may have happened.
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        memory.generation += 1;
        memory.entries.remove(&*account.name.key());
        Ok(written?)
    }

    /// The account whose user made the bearer token.
    ///
    /// # Errors
    /// `AuthenticationFailed` if the token is not good.
    pub async fn authenticate_bearer(&self, token: &str, now_seconds: i64) -> Result<Arc<Account>, Error> {
        let claims = token::peek(token).map_err(|error| failed(error.to_string()))?;
        let Principal::Account { account } = claims.principal else {
            return Err(failed("this token is not one of an account"));
        };
        let account = self.get(&account).await?.ok_or_else(|| failed("the account does not exist"))?;
        token::verify(token, account.keys(), now_seconds).map_err(|error| failed(error.to_string()))?;
        Ok(account)
    }
}

#[cfg(test)]
mod tests {
    use kiln_auth::SecretKey;
    use kiln_auth::token::Claims;

    use super::*;
    use crate::store::sqlite::SqliteStore;

    fn account(name: &str) -> Account {
        let key = || SecretKey::generate().to_base64();
        Account::new(name, &key(), &key(), "").unwrap()
    }

    fn token(key: &SecretKey, name: &str, expires: i64) -> String {
        token::mint(key, &Claims { principal: Principal::Account { account: name.into() }, expires })
    }

    #[tokio::test]
    async fn replaced_keys_are_void_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("g.db")).await.unwrap();
        let accounts = Accounts::new(Arc::new(store));
        assert!(accounts.get("demo").await.unwrap().is_none());
        assert!(accounts.get("no/name").await.unwrap().is_none());

        let first = account("demo");
        accounts.put(&first).await.unwrap();
        for key in first.keys() {
            let found = accounts.authenticate_bearer(&token(key, "DEMO", 1000), 900).await.unwrap();
            assert_eq!(*found, first);
        }
        let old = token(&first.key1, "demo", 1000);
        assert!(accounts.authenticate_bearer(&old, 2000).await.is_err());

        let second = account("demo");
        accounts.put(&second).await.unwrap();
        let error = accounts.authenticate_bearer(&old, 900).await.unwrap_err();
        assert_eq!(error.reason(), "AuthenticationFailed");
        assert!(accounts.authenticate_bearer(&token(&second.key2, "demo", 1000), 900).await.is_ok());
    }

    #[tokio::test]
    async fn tokens_of_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("g.db")).await.unwrap();
        let accounts = Accounts::new(Arc::new(store));
        let demo = account("demo");
        accounts.put(&demo).await.unwrap();
        accounts.put(&account("other")).await.unwrap();
        let spoofed = token(&demo.key1, "other", 1000);
        assert!(accounts.authenticate_bearer(&spoofed, 900).await.is_err());
        let service = Claims { principal: Principal::Service { name: "x".into() }, expires: 1000 };
        assert!(accounts.authenticate_bearer(&token::mint(&demo.key1, &service), 900).await.is_err());
        assert!(accounts.authenticate_bearer("kiln1.rubbish", 900).await.is_err());
    }
}
