//! What a deployment is: its keys, its account, its ports. Made at the first
//! start, the same ever after.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use kiln_auth::SecretKey;
use serde::{Deserialize, Serialize};

use super::dir::write_atomic;
use crate::failure::{Failure, Outcome};

const FILE: &str = "deployment.json";
const FORMAT: u32 = 1;
const DEFAULT_ACCOUNT: &str = "kiln";

/// Content of `deployment.json`.
#[derive(Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Deployment {
    /// Version of this file's form.
    format: u32,
    /// Signs tokens of services and nodes; Base64.
    pub cluster_key: String,
    /// The account's name; also the name of its storage account.
    pub account: String,
    /// First key of the account; Base64.
    pub key1: String,
    /// Second key of the account; Base64.
    pub key2: String,
    /// Where the services listened last; agents look for them there.
    #[serde(default)]
    pub ports: Ports,
}

/// Ports of the last start; 0 means any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ports {
    /// Front door.
    pub gateway: u16,
    /// Blob data plane.
    pub blob: u16,
    /// storage-svc.
    pub storage: u16,
    /// pool-svc.
    pub pool: u16,
    /// job-svc.
    pub job: u16,
    /// monitor-svc.
    pub monitor: u16,
}

impl fmt::Debug for Deployment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deployment").field("account", &self.account).field("ports", &self.ports).finish_non_exhaustive()
    }
}

/// Azure's rule for storage accounts.
///
/// # Errors
/// Names `what` gave the name.
pub fn check_account_name(what: &str, account: &str) -> Outcome {
    let valid = (3..=24).contains(&account.len())
        && account.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if valid {
        return Ok(());
    }
    Err(Failure::Usage(format!("{what}={account:?}: account names are 3 to 24 lower-case letters and digits")))
}

/// What the environment says about the account of a new deployment.
#[derive(Clone, Default)]
pub struct Wanted {
    /// `KILN_ACCOUNT`.
    pub account: Option<String>,
    /// `KILN_ACCOUNT_KEY`.
    pub key: Option<String>,
}

impl Wanted {
    /// From the environment.
    pub fn from_env() -> Self {
        let set = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        Self { account: set("KILN_ACCOUNT"), key: set("KILN_ACCOUNT_KEY") }
    }
}

impl Deployment {
    /// A new deployment with new keys.
    ///
    /// # Errors
    /// If the wanted account name or key cannot be used.
    pub fn create(wanted: Wanted) -> Outcome<Self> {
        let account = wanted.account.unwrap_or_else(|| DEFAULT_ACCOUNT.to_owned());
        check_account_name("KILN_ACCOUNT", &account)?;
        let key1 = match wanted.key {
            Some(text) => {
                SecretKey::from_base64(&text).map_err(|error| Failure::Usage(format!("KILN_ACCOUNT_KEY: {error}")))?
            }
            None => SecretKey::generate(),
        };
        Ok(Self {
            format: FORMAT,
            cluster_key: SecretKey::generate().to_base64(),
            account,
            key1: key1.to_base64(),
            key2: SecretKey::generate().to_base64(),
            ports: Ports::default(),
        })
    }

    /// What an earlier start left, or `None` before the first.
    ///
    /// # Errors
    /// If the file cannot be read or is not ours.
    pub fn read(data: &Path) -> Outcome<Option<Self>> {
        let path = data.join(FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(anyhow::Error::new(error).context(path.display().to_string()).into()),
        };
        let deployment: Self = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
        if deployment.format != FORMAT {
            let message = format!("{} was written by another version of kiln", path.display());
            return Err(Failure::Other(anyhow::anyhow!(message)));
        }
        Ok(Some(deployment))
    }

    /// Keeps it for the next start.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, data: &Path) -> Outcome {
        let path = data.join(FILE);
        let text = serde_json::to_vec_pretty(self).context("deployment")?;
        write_atomic(&path, &text).with_context(|| path.display().to_string())?;
        Ok(())
    }

    /// The cluster key.
    ///
    /// # Errors
    /// If the file was damaged.
    pub fn cluster_key(&self) -> Outcome<SecretKey> {
        Ok(SecretKey::from_base64(&self.cluster_key).context("cluster key in deployment.json")?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_start_decides_and_later_ones_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Deployment::read(dir.path()).unwrap(), None);
        let key = SecretKey::generate().to_base64();
        let wanted = Wanted { account: Some("demo1".to_owned()), key: Some(key.clone()) };
        let deployment = Deployment::create(wanted).unwrap();
        assert_eq!((deployment.account.as_str(), &deployment.key1), ("demo1", &key));
        deployment.write(dir.path()).unwrap();
        assert_eq!(Deployment::read(dir.path()).unwrap(), Some(deployment));
    }

    #[test]
    fn useless_names_and_keys_are_refused_and_nothing_prints_a_key() {
        for account in ["ab", "Upper", "with-hyphen", "x123456789012345678901234"] {
            let wanted = Wanted { account: Some(account.to_owned()), key: None };
            assert_eq!(Deployment::create(wanted).unwrap_err().exit_code(), 2, "{account}");
        }
        let wanted = Wanted { account: None, key: Some("???".to_owned()) };
        assert!(Deployment::create(wanted).unwrap_err().to_string().contains("KILN_ACCOUNT_KEY"));
        let deployment = Deployment::create(Wanted::default()).unwrap();
        assert!(!format!("{deployment:?}").contains(&deployment.key1));
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(Deployment::read(dir.path()).unwrap_err().to_string().contains(FILE));
    }
}
