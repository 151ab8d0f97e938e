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

use kiln_auth::SecretKey;
use kiln_auth::token::{self, Principal};
use kiln_error::Error;
use kiln_ids::AccountName;
use tokio::time::Instant;

use crate::domain::Account;
use crate::domain::shared_key::failed;
use crate::rights::JobScope;
use crate::store::AccountStore;

/// How long an entry is believed.
const KEEP: Duration = Duration::from_secs(30);

/// Who calls.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Whose resources the call is about.
    pub account: Arc<Account>,
    /// Of a task's call: the only job it may work on.
    pub job: Option<JobScope>,
}

/// The accounts of the deployment; clones share the memory.
#[derive(Debug, Clone)]
pub struct Accounts {
    store: Arc<dyn AccountStore>,
    /// Signs the tokens of tasks.
    cluster_key: Arc<SecretKey>,
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
    pub fn new(store: Arc<dyn AccountStore>, cluster_key: Arc<SecretKey>) -> Self {
        Self { store, cluster_key, memory: Arc::default() }
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

    /// Who the bearer token is of: a user of an account, who made it with the
    /// account's key, or a task, whose job-svc made it with the cluster key.
    ///
    /// # Errors
    /// `AuthenticationFailed` if the token is not good.
    pub async fn authenticate_bearer(&self, token: &str, now_seconds: i64) -> Result<Caller, Error> {
        let claims = token::peek(token).map_err(|error| failed(error.to_string()))?;
        match claims.principal {
            Principal::Account { account } => {
                let account = self.get(&account).await?.ok_or_else(|| failed("the account does not exist"))?;
                token::verify(token, account.keys(), now_seconds).map_err(|error| failed(error.to_string()))?;
                Ok(Caller { account, job: None })
            }
            Principal::Job { account, job, created_micros } => {
                token::verify(token, [&*self.cluster_key], now_seconds).map_err(|error| failed(error.to_string()))?;
                let account = self.get(&account).await?.ok_or_else(|| failed("the account does not exist"))?;
                Ok(Caller { account, job: Some(JobScope { job, created_micros }) })
            }
            Principal::Service { .. }
            | Principal::PoolJoin { .. }
            | Principal::Join { .. }
            | Principal::Node { .. } => Err(failed("this token is not one of an account or of a task")),
        }
    }
}

#[cfg(test)]
mod tests {
    use kiln_auth::token::Claims;

    use super::*;
    use crate::store::sql::SqlStore;

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
        let store = SqlStore::open(&dir.path().join("g.db")).await.unwrap();
        let accounts = Accounts::new(Arc::new(store), Arc::new(SecretKey::generate()));
        assert!(accounts.get("demo").await.unwrap().is_none());
        assert!(accounts.get("no/name").await.unwrap().is_none());

        let first = account("demo");
        accounts.put(&first).await.unwrap();
        for key in first.keys() {
            let found = accounts.authenticate_bearer(&token(key, "DEMO", 1000), 900).await.unwrap();
            assert_eq!((&*found.account, found.job), (&first, None));
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
        let store = SqlStore::open(&dir.path().join("g.db")).await.unwrap();
        let accounts = Accounts::new(Arc::new(store), Arc::new(SecretKey::generate()));
        let demo = account("demo");
        accounts.put(&demo).await.unwrap();
        accounts.put(&account("other")).await.unwrap();
        let spoofed = token(&demo.key1, "other", 1000);
        assert!(accounts.authenticate_bearer(&spoofed, 900).await.is_err());
        let service = Claims { principal: Principal::Service { name: "x".into() }, expires: 1000 };
        assert!(accounts.authenticate_bearer(&token::mint(&demo.key1, &service), 900).await.is_err());
        assert!(accounts.authenticate_bearer("kiln1.rubbish", 900).await.is_err());
    }

    #[tokio::test]
    async fn tokens_of_tasks_are_signed_with_the_cluster_key() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqlStore::open(&dir.path().join("g.db")).await.unwrap();
        let cluster_key = Arc::new(SecretKey::generate());
        let accounts = Accounts::new(Arc::new(store), cluster_key.clone());
        let demo = account("demo");
        accounts.put(&demo).await.unwrap();
        let of_job = |key: &SecretKey, account: &str| {
            let principal = Principal::Job { account: account.into(), job: "j".into(), created_micros: 5 };
            token::mint(key, &Claims { principal, expires: 1000 })
        };
        let caller = accounts.authenticate_bearer(&of_job(&cluster_key, "demo"), 900).await.unwrap();
        assert_eq!(*caller.account, demo);
        assert_eq!(caller.job, Some(JobScope { job: "j".into(), created_micros: 5 }));
        // A user cannot make one, nor does it live on for ever, nor without its account.
        assert!(accounts.authenticate_bearer(&of_job(&demo.key1, "demo"), 900).await.is_err());
        assert!(accounts.authenticate_bearer(&of_job(&cluster_key, "demo"), 2000).await.is_err());
        assert!(accounts.authenticate_bearer(&of_job(&cluster_key, "gone"), 900).await.is_err());
    }
}
