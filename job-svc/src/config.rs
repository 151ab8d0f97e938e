//! Settings of job-svc. `deploy/config/job-svc.toml` explains each of them.

use std::path::PathBuf;
use std::time::Duration;

use kiln_config::ConfigError;
use kiln_service::{Common, Settings};
use kiln_store::StoreConfig;
use serde::Deserialize;

/// The service's own settings, as file, environment and flags give them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// How long a node may run without hearing from us.
    pub lease_ms: Option<u64>,
    /// What we add before its tasks are given to somebody else.
    pub lease_margin_ms: Option<u64>,
    /// How long the states between two others stay visible after a call.
    pub transition_linger_ms: Option<u64>,
    /// How long a replica may be silent before others take its pools.
    pub pool_lease_ms: Option<u64>,
    /// Where agents and other replicas reach this one.
    pub advertised_endpoint: Option<String>,
}

/// Validated settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of the service's files.
    pub data_dir: PathBuf,
    /// Where the records are.
    pub store: StoreConfig,
    /// How long a node may run without hearing from us.
    pub lease: Duration,
    /// What we add before its tasks are given to somebody else.
    pub lease_margin: Duration,
    /// How long disabling, enabling, terminating and deleting stay visible
    /// after the call that caused them, so that a client that looks once right
    /// after its call sees what it asked for.
    pub transition_linger: Duration,
    /// How long a replica may be silent before others take its pools; it renews
    /// them three times in that.
    pub pool_lease: Duration,
    /// Where agents and other replicas reach this one, if that is not the address
    /// it listens on.
    pub advertised_endpoint: Option<String>,
    /// Encoded task specs that are kept in memory for each pool, in bytes.
    pub spec_cache_bytes: usize,
}

impl Config {
    /// Settings with defaults for everything but the place of the data.
    pub fn new(data_dir: PathBuf) -> Self {
        Self {
            store: data_dir.join("job-svc.db").into(),
            data_dir,
            lease: Duration::from_secs(30),
            lease_margin: Duration::from_secs(5),
            transition_linger: Duration::from_millis(200),
            pool_lease: Duration::from_secs(3),
            advertised_endpoint: None,
            spec_cache_bytes: 32 * 1024 * 1024,
        }
    }
}

impl Settings for RawConfig {
    type Config = Config;
    const SERVICE: &'static str = "job-svc";
    const ABOUT: &'static str = "Jobs, tasks and the scheduler that places tasks on nodes";
    const ENV_PREFIX: &'static str = "KILN_JOB_";
    const LISTEN: &'static str = "127.0.0.1:7463";

    fn validate(self, common: &Common) -> Result<Config, ConfigError> {
        let defaults = Config::new(common.data_dir.clone());
        let config = Config {
            store: common.store.clone(),
            lease: self.lease_ms.map_or(defaults.lease, Duration::from_millis),
            lease_margin: self.lease_margin_ms.map_or(defaults.lease_margin, Duration::from_millis),
            transition_linger: self.transition_linger_ms.map_or(defaults.transition_linger, Duration::from_millis),
            pool_lease: self.pool_lease_ms.map_or(defaults.pool_lease, Duration::from_millis),
            advertised_endpoint: common.advertised(self.advertised_endpoint)?,
            ..defaults
        };
        if config.pool_lease < Duration::from_millis(300) || config.pool_lease > Duration::from_secs(60) {
            let given = config.pool_lease.as_millis();
            return Err(ConfigError::value("pool_lease_ms", given, "must be between 300 and 60000"));
        }
        if config.lease < Duration::from_millis(100) || config.lease > Duration::from_secs(3600) {
            let given = config.lease.as_millis();
            return Err(ConfigError::value("lease_ms", given, "must be between 100 and 3600000"));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use kiln_service::Flags;

    use super::*;

    fn example() -> (Common, Config) {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/job-svc.toml");
        kiln_service::load::<RawConfig>(&Flags { config: Some(file), ..Flags::default() }).unwrap()
    }

    #[test]
    fn the_commented_example_says_the_defaults() {
        let (common, config) = example();
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::new("/var/lib/kiln/job".into())));
        assert_eq!(common.listen.to_string(), RawConfig::LISTEN);
    }

    #[test]
    fn senseless_leases_are_refused() {
        let raw = RawConfig { lease_ms: Some(5), ..RawConfig::default() };
        assert!(matches!(raw.validate(&example().0), Err(ConfigError::Value { key: "lease_ms", .. })));
        let raw = RawConfig { pool_lease_ms: Some(5), ..RawConfig::default() };
        assert!(matches!(raw.validate(&example().0), Err(ConfigError::Value { key: "pool_lease_ms", .. })));
    }
}
