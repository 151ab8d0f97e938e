//! Settings of job-svc. `deploy/config/job-svc.toml` explains each of them.

use std::path::PathBuf;
use std::time::Duration;

use kiln_config::ConfigError;
use serde::Deserialize;

/// As written in the file or the environment (`KILN_JOB_...`).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// Where the database lives.
    pub data_dir: Option<PathBuf>,
    /// Address of the gRPC server.
    pub listen: Option<String>,
    /// How long a node may run without hearing from us.
    pub lease_ms: Option<u64>,
    /// What we add before its tasks are given to somebody else.
    pub lease_margin_ms: Option<u64>,
    /// How long the states between two others stay visible after a call.
    pub transition_linger_ms: Option<u64>,
    /// File with the cluster key (Base64).
    pub cluster_key_file: Option<PathBuf>,
    /// URL of RabbitMQ.
    pub amqp_url: Option<String>,
}

/// Validated settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the database lives.
    pub data_dir: PathBuf,
    /// How long a node may run without hearing from us.
    pub lease: Duration,
    /// What we add before its tasks are given to somebody else.
    pub lease_margin: Duration,
    /// How long disabling, enabling, terminating and deleting stay visible
    /// after the call that caused them, so that a client that looks once right
    /// after its call sees what it asked for.
    pub transition_linger: Duration,
    /// Encoded task specs that are kept in memory for each pool, in bytes.
    pub spec_cache_bytes: usize,
}

impl Config {
    /// Settings with defaults for everything but the place of the data.
    pub fn new(data_dir: PathBuf) -> Self {
        Self {
            data_dir,
            lease: Duration::from_secs(30),
            lease_margin: Duration::from_secs(5),
            transition_linger: Duration::from_millis(200),
            spec_cache_bytes: 32 * 1024 * 1024,
        }
    }
}

impl TryFrom<RawConfig> for Config {
    type Error = ConfigError;

    fn try_from(raw: RawConfig) -> Result<Self, ConfigError> {
        let defaults = Self::new(raw.data_dir.unwrap_or_else(|| PathBuf::from("./data")));
        let config = Self {
            lease: raw.lease_ms.map_or(defaults.lease, Duration::from_millis),
            lease_margin: raw.lease_margin_ms.map_or(defaults.lease_margin, Duration::from_millis),
            transition_linger: raw.transition_linger_ms.map_or(defaults.transition_linger, Duration::from_millis),
            ..defaults
        };
        if config.lease < Duration::from_millis(100) || config.lease > Duration::from_secs(3600) {
            return Err(ConfigError::Value {
                key: "lease_ms",
                value: config.lease.as_millis().to_string(),
                why: "must be between 100 and 3600000".to_owned(),
            });
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_file_is_valid_and_says_the_defaults() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/job-svc.toml");
        let raw: RawConfig = kiln_config::load(Some(&file), "KILN_JOB_TEST_", &serde_json::json!({})).unwrap();
        let config = Config::try_from(raw).unwrap();
        let defaults = Config::new(config.data_dir.clone());
        assert_eq!((config.lease, config.lease_margin), (defaults.lease, defaults.lease_margin));
        assert_eq!(config.transition_linger, defaults.transition_linger);
    }

    #[test]
    fn senseless_leases_are_refused() {
        let raw = RawConfig { lease_ms: Some(5), ..RawConfig::default() };
        assert!(matches!(Config::try_from(raw), Err(ConfigError::Value { key: "lease_ms", .. })));
    }
}
