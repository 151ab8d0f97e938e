//! Accounts on disk: a trait in the words of the domain, one implementation a
//! database, one conformance suite for all.

#[cfg(test)]
pub mod conformance;
pub mod sql;

use std::fmt;

use async_trait::async_trait;
use kiln_ids::AccountName;
use kiln_store::StoreError;

use crate::domain::Account;

/// The accounts of the deployment.
#[async_trait]
pub trait AccountStore: fmt::Debug + Send + Sync {
    /// Creates the account or replaces all of it. Durable when it answers;
    /// repeating it changes nothing.
    async fn put(&self, account: &Account) -> Result<(), StoreError>;

    /// The account of that name, whatever the case of its letters.
    async fn get(&self, name: &AccountName) -> Result<Option<Account>, StoreError>;
}
