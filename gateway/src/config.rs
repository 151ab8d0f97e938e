//! Settings of the gateway: file, then `KILN_GATEWAY_*`, then flags.

use std::path::{Path, PathBuf};

use kiln_config::ConfigError;
use serde::{Deserialize, Serialize};

/// Requests of one account that may be open at once, if nothing is set.
const DEFAULT_OPEN_REQUESTS: usize = 1024;

/// What may be written in the file; see `deploy/config/gateway.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    listen: Option<String>,
    data_dir: Option<PathBuf>,
    storage_endpoint: Option<String>,
    pool_endpoint: Option<String>,
    job_endpoint: Option<String>,
    monitor_endpoint: Option<String>,
    public_blob_endpoint: Option<String>,
    batch_endpoint: Option<String>,
    max_open_requests: Option<usize>,
}

/// Flags of the program; those given win over file and environment.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Flags {
    /// Address to listen on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// Where the store lives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
}

/// Validated settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of `gateway.db`.
    pub data_dir: PathBuf,
    /// URL of storage-svc's gRPC port.
    pub storage_endpoint: String,
    /// URL of pool-svc.
    pub pool_endpoint: String,
    /// URL of job-svc.
    pub job_endpoint: String,
    /// URL of monitor-svc.
    pub monitor_endpoint: String,
    /// URL of the blob data plane that clients use, without account.
    pub public_blob_endpoint: String,
    /// URL under which clients reach this gateway.
    pub batch_endpoint: String,
    /// Requests of one account that may be open at once; more are told to come
    /// back later.
    pub max_open_requests: usize,
}

impl Config {
    /// Settings with defaults for everything that has one.
    pub fn new(
        data_dir: impl Into<PathBuf>,
        storage_endpoint: impl Into<String>,
        pool_endpoint: impl Into<String>,
        job_endpoint: impl Into<String>,
        monitor_endpoint: impl Into<String>,
        public_blob_endpoint: impl Into<String>,
        batch_endpoint: impl Into<String>,
    ) -> Self {
        Self {
            data_dir: data_dir.into(),
            storage_endpoint: storage_endpoint.into(),
            pool_endpoint: pool_endpoint.into(),
            job_endpoint: job_endpoint.into(),
            monitor_endpoint: monitor_endpoint.into(),
            public_blob_endpoint: public_blob_endpoint.into(),
            batch_endpoint: batch_endpoint.into(),
            max_open_requests: DEFAULT_OPEN_REQUESTS,
        }
    }

    /// Reads `file`, environment and flags; gives the address to listen on, too.
    ///
    /// # Errors
    /// [`ConfigError`] names the setting and its value.
    pub fn load(file: Option<&Path>, flags: &Flags) -> Result<(Self, String), ConfigError> {
        let raw: RawConfig = kiln_config::load(file, "KILN_GATEWAY_", flags)?;
        raw.validate()
    }
}

impl RawConfig {
    fn validate(self) -> Result<(Config, String), ConfigError> {
        let listen = self.listen.unwrap_or_else(|| "127.0.0.1:7450".to_owned());
        let batch = self.batch_endpoint.unwrap_or_else(|| format!("http://{listen}"));
        let mut config = Config::new(
            self.data_dir.ok_or_else(|| missing("data_dir"))?,
            endpoint("storage_endpoint", self.storage_endpoint)?,
            endpoint("pool_endpoint", self.pool_endpoint)?,
            endpoint("job_endpoint", self.job_endpoint)?,
            endpoint("monitor_endpoint", self.monitor_endpoint)?,
            endpoint("public_blob_endpoint", self.public_blob_endpoint)?,
            endpoint("batch_endpoint", Some(batch))?,
        );
        if let Some(limit) = self.max_open_requests {
            if limit == 0 {
                return Err(ConfigError::Value {
                    key: "max_open_requests",
                    value: limit.to_string(),
                    why: "must be at least 1".to_owned(),
                });
            }
            config.max_open_requests = limit;
        }
        Ok((config, listen))
    }
}

fn missing(key: &'static str) -> ConfigError {
    ConfigError::Value { key, value: String::new(), why: "is required".to_owned() }
}

/// Links are built by appending to endpoints, so none ends with a slash.
fn endpoint(key: &'static str, value: Option<String>) -> Result<String, ConfigError> {
    let value = value.ok_or_else(|| missing(key))?;
    let trimmed = value.trim_end_matches('/');
    let valid = trimmed
        .parse::<http::Uri>()
        .is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
    if valid {
        Ok(trimmed.to_owned())
    } else {
        Err(ConfigError::Value { key, value, why: "must be a URL such as http://127.0.0.1:7460".to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commented_example_loads() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/gateway.toml");
        let (config, listen) = Config::load(Some(&file), &Flags::default()).unwrap();
        assert_eq!(listen, "127.0.0.1:7450");
        assert_eq!(config.batch_endpoint, "http://127.0.0.1:7450");
        assert_eq!(config.max_open_requests, DEFAULT_OPEN_REQUESTS);
    }

    #[test]
    fn wrong_values_are_named() {
        let raw =
            RawConfig { data_dir: Some("x".into()), storage_endpoint: Some("7460".into()), ..RawConfig::default() };
        let error = raw.validate().unwrap_err().to_string();
        assert!(error.contains("storage_endpoint") && error.contains("7460"), "{error}");
        let error = RawConfig::default().validate().unwrap_err().to_string();
        assert!(error.contains("data_dir"), "{error}");
    }
}
