//! Settings of the gateway: file, then `KILN_GATEWAY_*`, then flags.

use std::path::PathBuf;

use kiln_config::{ConfigError, check};
use kiln_service::{Common, PublicPort, Settings};
use kiln_store::StoreConfig;
use serde::Deserialize;

/// Requests of one account that may be open at once, if nothing is set.
const DEFAULT_OPEN_REQUESTS: usize = 1024;

/// The gateway's own settings, as file, environment and flags give them; see
/// `deploy/config/gateway.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    storage_endpoint: Option<String>,
    pool_endpoint: Option<String>,
    job_endpoint: Option<String>,
    monitor_endpoint: Option<String>,
    public_blob_endpoint: Option<String>,
    batch_endpoint: Option<String>,
    max_open_requests: Option<usize>,
}

/// Validated settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of the gateway's files.
    pub data_dir: PathBuf,
    /// Where the records are.
    pub store: StoreConfig,
    /// URLs of storage-svc's gRPC port, one per replica, separated by commas.
    pub storage_endpoint: String,
    /// URLs of pool-svc, one per replica, separated by commas.
    pub pool_endpoint: String,
    /// URLs of job-svc, one per replica, separated by commas.
    pub job_endpoint: String,
    /// URLs of monitor-svc, one per replica, separated by commas.
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
        let data_dir = data_dir.into();
        Self {
            store: data_dir.join("gateway.db").into(),
            data_dir,
            storage_endpoint: storage_endpoint.into(),
            pool_endpoint: pool_endpoint.into(),
            job_endpoint: job_endpoint.into(),
            monitor_endpoint: monitor_endpoint.into(),
            public_blob_endpoint: public_blob_endpoint.into(),
            batch_endpoint: batch_endpoint.into(),
            max_open_requests: DEFAULT_OPEN_REQUESTS,
        }
    }
}

impl Settings for RawConfig {
    type Config = Config;
    const SERVICE: &'static str = "gateway";
    const ABOUT: &'static str = "One front door: gRPC and Azure Batch REST";
    const ENV_PREFIX: &'static str = "KILN_GATEWAY_";
    const LISTEN: &'static str = "127.0.0.1:7450";
    const ON_BUS: bool = false;
    const PUBLIC_PORT: PublicPort = PublicPort::Main;

    fn validate(self, common: &Common) -> Result<Config, ConfigError> {
        let url = |key, given| check::url(key, &check::required::<String>(key, given)?);
        let urls = |key, given| check::urls(key, &check::required::<String>(key, given)?);
        let inner = |key, given| common.tls.check_url(key, urls(key, given)?);
        let scheme = if common.tls.is_public() { "https" } else { "http" };
        let batch = self.batch_endpoint.unwrap_or_else(|| format!("{scheme}://{}", common.listen));
        let mut config = Config::new(
            &common.data_dir,
            inner("storage_endpoint", self.storage_endpoint)?,
            inner("pool_endpoint", self.pool_endpoint)?,
            inner("job_endpoint", self.job_endpoint)?,
            inner("monitor_endpoint", self.monitor_endpoint)?,
            url("public_blob_endpoint", self.public_blob_endpoint)?,
            url("batch_endpoint", Some(batch))?,
        );
        config.store = common.store.clone();
        if let Some(limit) = self.max_open_requests {
            config.max_open_requests = check::within("max_open_requests", limit, usize::MAX)?;
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use kiln_service::Flags;

    use super::*;

    fn example() -> (Common, Config) {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/gateway.toml");
        kiln_service::load::<RawConfig>(&Flags { config: Some(file), ..Flags::default() }).unwrap()
    }

    #[test]
    fn the_commented_example_loads() {
        let (common, config) = example();
        assert_eq!(common.listen.to_string(), RawConfig::LISTEN);
        assert_eq!(config.batch_endpoint, "http://127.0.0.1:7450");
        assert_eq!(config.max_open_requests, DEFAULT_OPEN_REQUESTS);
    }

    #[test]
    fn wrong_values_are_named() {
        let (common, _) = example();
        let raw = RawConfig { storage_endpoint: Some("7460".into()), ..RawConfig::default() };
        let error = raw.validate(&common).unwrap_err().to_string();
        assert!(error.contains("storage_endpoint") && error.contains("7460"), "{error}");
        let error = RawConfig::default().validate(&common).unwrap_err().to_string();
        assert!(error.contains("storage_endpoint"), "{error}");
    }
}
