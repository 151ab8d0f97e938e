//! An account: who owns pools and jobs, and the two keys that prove it.

use kiln_auth::{InvalidKey, SecretKey};
use kiln_error::{Error, Kind};
use kiln_ids::{AccountName, InvalidId};

/// Two keys, so that one can be replaced while programs still use the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Compared without case.
    pub name: AccountName,
    /// First key.
    pub key1: SecretKey,
    /// Second key.
    pub key2: SecretKey,
    /// The storage account that belongs to it (auto-storage, blob endpoint).
    pub storage_account: String,
}

/// Why an account cannot be made of what was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAccount {
    /// The name is not one.
    #[error(transparent)]
    Name(#[from] InvalidId),
    /// A key cannot be used; its text is not repeated.
    #[error("{field}: {source}")]
    Key {
        /// Which one.
        field: &'static str,
        /// What is wrong with it.
        source: InvalidKey,
    },
}

impl From<InvalidAccount> for Error {
    fn from(error: InvalidAccount) -> Self {
        let field = match &error {
            InvalidAccount::Name(_) => "account",
            InvalidAccount::Key { field, .. } => field,
        };
        Error::new(Kind::InvalidArgument, "InvalidPropertyValue", error.to_string()).with_detail("PropertyName", field)
    }
}

impl Account {
    /// Checks the parts. Without a storage account, the one of the same name is
    /// linked.
    ///
    /// # Errors
    /// [`InvalidAccount`] says which part is wrong.
    pub fn new(name: &str, key1: &str, key2: &str, storage_account: &str) -> Result<Self, InvalidAccount> {
        let key = |field, text| SecretKey::from_base64(text).map_err(|source| InvalidAccount::Key { field, source });
        let storage_account = if storage_account.is_empty() { name } else { storage_account };
        Ok(Self {
            name: AccountName::parse(name)?,
            key1: key("key1", key1)?,
            key2: key("key2", key2)?,
            storage_account: AccountName::parse(storage_account)?.as_str().to_owned(),
        })
    }

    /// Both keys.
    pub fn keys(&self) -> [&SecretKey; 2] {
        [&self.key1, &self.key2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_checked_and_secrets_not_repeated() {
        let key = SecretKey::generate().to_base64();
        let account = Account::new("demo", &key, &key, "").unwrap();
        assert_eq!(account.storage_account, "demo");
        let error = Account::new("demo", &key, "geheim", "").unwrap_err();
        assert!(matches!(error, InvalidAccount::Key { field: "key2", .. }));
        assert!(!Error::from(error).to_string().contains("geheim"));
        assert!(matches!(Account::new("a/b", &key, &key, ""), Err(InvalidAccount::Name(_))));
    }
}
