//! How many requests an account may have open at once: one account cannot take
//! all connections and memory of the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_error::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::domain::Account;

/// When a refused client may try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Counts open requests by account.
#[derive(Debug, Clone)]
pub struct AccountLimits {
    limit: usize,
    /// Only accounts that proved themselves get an entry.
    open: Arc<Mutex<HashMap<String, Arc<Semaphore>>>>,
}

impl AccountLimits {
    /// At most `limit` open requests an account.
    pub fn new(limit: usize) -> Self {
        Self { limit, open: Arc::default() }
    }

    /// A place for one request; keep it until the answer has been sent.
    ///
    /// # Errors
    /// `ServerBusy` when all places are taken.
    pub fn enter(&self, account: &Account) -> Result<OwnedSemaphorePermit, Error> {
        let semaphore = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.entry(account.name.key().into_owned()).or_insert_with(|| Arc::new(Semaphore::new(self.limit))).clone()
        };
        semaphore.try_acquire_owned().map_err(|_| {
            Error::unavailable(format!("the account has {} requests open, as many as it may", self.limit))
                .with_retry_after(RETRY_AFTER)
        })
    }
}

#[cfg(test)]
mod tests {
    use kiln_auth::SecretKey;

    use super::*;

    #[test]
    fn a_full_account_does_not_stop_others() {
        let key = SecretKey::generate().to_base64();
        let account = |name| Account::new(name, &key, &key, "").unwrap();
        let limits = AccountLimits::new(2);
        let places = (limits.enter(&account("a")).unwrap(), limits.enter(&account("A")).unwrap());
        let error = limits.enter(&account("a")).unwrap_err();
        assert_eq!((error.reason(), error.retry_after()), ("ServerBusy", Some(RETRY_AFTER)));
        assert!(limits.enter(&account("b")).is_ok());
        drop(places);
        assert!(limits.enter(&account("a")).is_ok());
    }
}
