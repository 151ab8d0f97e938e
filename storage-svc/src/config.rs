//! Settings of storage-svc: [`RawConfig`] as written, [`Config`] as used.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use kiln_config::ConfigError;
use serde::Deserialize;

/// Settings of one running storage-svc.
#[derive(Debug, Clone)]
pub struct Config {
    /// Holds `storage-svc.db` and `blobs/`.
    pub data_dir: PathBuf,
    /// Where clients reach the data plane, for example
    /// `http://127.0.0.1:7451`; an account's endpoint is this plus `/<account>`.
    pub public_blob_endpoint: String,
    /// Whether `http://<account>.<domain>/...` is understood beside path style.
    pub host_style: bool,
    /// Deleted and replaced bytes are removed this often at the latest.
    pub collect_interval: Duration,
    /// Bytes are kept this long after their last use, for readers on their way.
    pub garbage_grace: Duration,
    /// A client that sends nothing for this long within a request is dropped.
    pub idle_timeout: Duration,
}

impl Config {
    /// The usual settings.
    pub fn new(data_dir: impl Into<PathBuf>, public_blob_endpoint: impl Into<String>) -> Self {
        Self {
            data_dir: data_dir.into(),
            public_blob_endpoint: public_blob_endpoint.into().trim_end_matches('/').to_owned(),
            host_style: true,
            collect_interval: Duration::from_secs(30),
            garbage_grace: Duration::from_secs(600),
            idle_timeout: Duration::from_secs(120),
        }
    }
}

/// Settings of the process `storage-svc`, as file, environment and flags give them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// See [`Config::data_dir`].
    pub data_dir: Option<PathBuf>,
    /// Address of the gRPC port.
    pub grpc_listen: Option<String>,
    /// Address of the data plane.
    pub blob_listen: Option<String>,
    /// See [`Config::public_blob_endpoint`]; default is `http://<blob_listen>`.
    pub public_blob_endpoint: Option<String>,
    /// See [`Config::host_style`].
    pub host_style: Option<bool>,
    /// See [`Config::collect_interval`].
    pub collect_interval_seconds: Option<u64>,
    /// See [`Config::garbage_grace`].
    pub garbage_grace_seconds: Option<u64>,
    /// See [`Config::idle_timeout`].
    pub idle_timeout_seconds: Option<u64>,
    /// The deployment's cluster key, Base64.
    pub cluster_key: Option<String>,
    /// RabbitMQ; without it events stay inside the process.
    pub amqp_url: Option<String>,
}

/// What the process needs beside the service's own [`Config`].
#[derive(Debug)]
pub struct ProcessConfig {
    /// Of the service.
    pub service: Config,
    /// gRPC port.
    pub grpc_listen: SocketAddr,
    /// Data plane.
    pub blob_listen: SocketAddr,
    /// The deployment's key.
    pub cluster_key: kiln_auth::SecretKey,
    /// RabbitMQ, if there is one.
    pub amqp_url: Option<String>,
}

impl TryFrom<RawConfig> for ProcessConfig {
    type Error = ConfigError;

    fn try_from(raw: RawConfig) -> Result<Self, ConfigError> {
        let grpc_listen = address("grpc_listen", raw.grpc_listen.as_deref().unwrap_or("127.0.0.1:7461"))?;
        let blob_listen = address("blob_listen", raw.blob_listen.as_deref().unwrap_or("127.0.0.1:7451"))?;
        let endpoint = raw.public_blob_endpoint.unwrap_or_else(|| format!("http://{blob_listen}"));
        if !(endpoint.starts_with("http://") || endpoint.starts_with("https://")) {
            return Err(value("public_blob_endpoint", &endpoint, "must begin with http:// or https://"));
        }
        let key = raw.cluster_key.ok_or_else(|| value("cluster_key", "", "is required (Base64)"))?;
        let cluster_key = kiln_auth::SecretKey::from_base64(&key)
            .map_err(|error| value("cluster_key", "(secret)", &error.to_string()))?;
        let mut service = Config::new(raw.data_dir.unwrap_or_else(|| PathBuf::from("data")), endpoint);
        if let Some(on) = raw.host_style {
            service.host_style = on;
        }
        if let Some(seconds) = raw.collect_interval_seconds {
            service.collect_interval = positive("collect_interval_seconds", seconds)?;
        }
        if let Some(seconds) = raw.garbage_grace_seconds {
            service.garbage_grace = Duration::from_secs(seconds);
        }
        if let Some(seconds) = raw.idle_timeout_seconds {
            service.idle_timeout = positive("idle_timeout_seconds", seconds)?;
        }
        Ok(Self { service, grpc_listen, blob_listen, cluster_key, amqp_url: raw.amqp_url })
    }
}

fn value(key: &'static str, value: &str, why: &str) -> ConfigError {
    ConfigError::Value { key, value: value.to_owned(), why: why.to_owned() }
}

fn address(key: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|_| value(key, text, "must be an address such as 127.0.0.1:7451"))
}

fn positive(key: &'static str, seconds: u64) -> Result<Duration, ConfigError> {
    if seconds == 0 {
        return Err(value(key, "0", "must be at least 1"));
    }
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Serialize)]
    struct NoFlags {}

    #[test]
    fn the_commented_example_loads() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/storage-svc.toml");
        let raw: RawConfig = kiln_config::load(Some(&file), "KILN_TEST_NONE_", &NoFlags {}).unwrap();
        let config = ProcessConfig::try_from(raw).unwrap();
        assert_eq!(config.blob_listen.port(), 7451);
    }

    #[test]
    fn bad_values_name_their_key() {
        let key = Some(kiln_auth::SecretKey::generate().to_base64());
        let raw = RawConfig { blob_listen: Some("here".into()), cluster_key: key.clone(), ..RawConfig::default() };
        assert!(ProcessConfig::try_from(raw).unwrap_err().to_string().contains("blob_listen"));
        let raw = RawConfig { idle_timeout_seconds: Some(0), cluster_key: key, ..RawConfig::default() };
        assert!(ProcessConfig::try_from(raw).unwrap_err().to_string().contains("idle_timeout_seconds"));
        let error = ProcessConfig::try_from(RawConfig::default()).unwrap_err().to_string();
        assert!(error.contains("cluster_key"), "{error}");
    }
}
