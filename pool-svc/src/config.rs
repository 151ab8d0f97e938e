//! Settings of pool-svc.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_auth::SecretKey;
use kiln_config::ConfigError;
use serde::{Deserialize, Serialize};

/// Environment variables that begin with this override the file.
pub const ENV_PREFIX: &str = "KILN_POOL_";

/// Validated settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of `pool-svc.db`.
    pub data_dir: PathBuf,
    /// URL under which agents reach this service.
    pub control_endpoint: String,
    /// URL under which agents reach the work stream of job-svc.
    pub work_endpoint: String,
    /// `http://host:port` of the blob data plane.
    pub public_blob_endpoint: String,
    /// `http://host:port` of the front door.
    pub batch_endpoint: String,
    /// Agents send a heartbeat this often.
    pub heartbeat_interval: Duration,
    /// A node that has been silent for this many intervals is `unknown`.
    pub missed_heartbeats: u32,
    /// A node that has been `unknown` for this long is `unusable`.
    pub unusable_after: Duration,
    /// A node whose agent does not register within this time is `unusable`.
    pub start_timeout: Duration,
    /// Makes nodes as child processes; absent: nodes of this service's pools
    /// are not made by it.
    pub local: Option<LocalProviderConfig>,
    /// On an orderly shutdown stop the agents of the local provider; their
    /// nodes stay on record and are started again at the next start.
    pub stop_nodes_on_shutdown: bool,
}

/// Settings of the local provider.
#[derive(Debug, Clone)]
pub struct LocalProviderConfig {
    /// Directory of all nodes: `<nodes_dir>/<account>/<pool>/<node>`.
    pub nodes_dir: PathBuf,
    /// Program and arguments of an agent; `--join <file>` is appended.
    pub agent_command: Vec<String>,
    /// An agent that was told to stop is killed after this time.
    pub stop_grace: Duration,
}

impl LocalProviderConfig {
    /// Agents are started with `agent_command`, their files are in `nodes_dir`.
    pub fn new(nodes_dir: impl Into<PathBuf>, agent_command: Vec<String>) -> Self {
        Self { nodes_dir: nodes_dir.into(), agent_command, stop_grace: Duration::from_secs(10) }
    }
}

impl Config {
    /// The usual settings; endpoints are empty and no provider makes nodes.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            control_endpoint: String::new(),
            work_endpoint: String::new(),
            public_blob_endpoint: String::new(),
            batch_endpoint: String::new(),
            heartbeat_interval: Duration::from_secs(5),
            missed_heartbeats: 3,
            unusable_after: Duration::from_secs(600),
            start_timeout: Duration::from_secs(300),
            local: None,
            stop_nodes_on_shutdown: false,
        }
    }

    /// A node that has been silent for this long is `unknown`.
    pub fn silence_limit(&self) -> Duration {
        self.heartbeat_interval.saturating_mul(self.missed_heartbeats)
    }
}

/// What the file, the environment and flags say.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// Address to listen on.
    pub listen: Option<String>,
    /// See [`Config::data_dir`].
    pub data_dir: Option<PathBuf>,
    /// The key all services of the deployment share, in Base64.
    pub cluster_key: Option<String>,
    /// RabbitMQ; else events stay in this process.
    pub amqp_url: Option<String>,
    /// See [`Config::control_endpoint`].
    pub control_endpoint: Option<String>,
    /// See [`Config::work_endpoint`].
    pub work_endpoint: Option<String>,
    /// See [`Config::public_blob_endpoint`].
    pub public_blob_endpoint: Option<String>,
    /// See [`Config::batch_endpoint`].
    pub batch_endpoint: Option<String>,
    /// See [`Config::heartbeat_interval`].
    pub heartbeat_interval_seconds: Option<u64>,
    /// See [`Config::missed_heartbeats`].
    pub missed_heartbeats: Option<u32>,
    /// See [`Config::unusable_after`].
    pub unusable_after_seconds: Option<u64>,
    /// See [`Config::start_timeout`].
    pub start_timeout_seconds: Option<u64>,
    /// See [`Config::stop_nodes_on_shutdown`].
    pub stop_nodes_on_shutdown: Option<bool>,
    /// See [`Config::local`].
    pub local: Option<RawLocal>,
}

/// The `[local]` section.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawLocal {
    /// See [`LocalProviderConfig::nodes_dir`].
    pub nodes_dir: PathBuf,
    /// See [`LocalProviderConfig::agent_command`].
    pub agent_command: Vec<String>,
    /// See [`LocalProviderConfig::stop_grace`].
    pub stop_grace_seconds: Option<u64>,
}

/// What only the program around the service needs.
#[derive(Clone)]
pub struct ProcessConfig {
    /// The service's own settings.
    pub service: Config,
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Signs the tokens of services and nodes.
    pub cluster_key: SecretKey,
    /// RabbitMQ.
    pub amqp_url: Option<String>,
}

/// Flags of the command line that override everything else.
#[derive(Debug, Default, Serialize)]
pub struct Flags {
    /// See [`RawConfig::listen`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
}

/// Reads file, environment and flags.
///
/// # Errors
/// [`ConfigError`] names the key and the value.
pub fn load(file: Option<&Path>, flags: &Flags) -> Result<ProcessConfig, ConfigError> {
    kiln_config::load::<RawConfig, _>(file, ENV_PREFIX, flags)?.validate()
}

impl RawConfig {
    fn validate(self) -> Result<ProcessConfig, ConfigError> {
        let listen = self.listen.unwrap_or_else(|| "127.0.0.1:7453".to_owned());
        let listen: SocketAddr = listen.parse().map_err(|_| ConfigError::Value {
            key: "listen",
            value: listen.clone(),
            why: "must be an address and a port such as 127.0.0.1:7453".to_owned(),
        })?;
        let defaults = Config::new(self.data_dir.unwrap_or_else(|| PathBuf::from("data")));
        let local = self.local.map(RawLocal::validate).transpose()?;
        let service = Config {
            control_endpoint: url(
                "control_endpoint",
                self.control_endpoint.unwrap_or_else(|| format!("http://{listen}")),
            )?,
            work_endpoint: url(
                "work_endpoint",
                self.work_endpoint.unwrap_or_else(|| "http://127.0.0.1:7454".to_owned()),
            )?,
            public_blob_endpoint: url(
                "public_blob_endpoint",
                self.public_blob_endpoint.unwrap_or_else(|| "http://127.0.0.1:7451".to_owned()),
            )?,
            batch_endpoint: url(
                "batch_endpoint",
                self.batch_endpoint.unwrap_or_else(|| "http://127.0.0.1:7450".to_owned()),
            )?,
            heartbeat_interval: seconds(
                "heartbeat_interval_seconds",
                self.heartbeat_interval_seconds,
                defaults.heartbeat_interval,
            )?,
            missed_heartbeats: match self.missed_heartbeats.unwrap_or(defaults.missed_heartbeats) {
                0 => {
                    return Err(ConfigError::Value {
                        key: "missed_heartbeats",
                        value: "0".to_owned(),
                        why: "must be at least 1".to_owned(),
                    });
                }
                count => count,
            },
            unusable_after: seconds("unusable_after_seconds", self.unusable_after_seconds, defaults.unusable_after)?,
            start_timeout: seconds("start_timeout_seconds", self.start_timeout_seconds, defaults.start_timeout)?,
            stop_nodes_on_shutdown: self.stop_nodes_on_shutdown.unwrap_or(defaults.stop_nodes_on_shutdown),
            local,
            data_dir: defaults.data_dir,
        };
        let key = self.cluster_key.unwrap_or_default();
        let cluster_key = SecretKey::from_base64(&key).map_err(|error| ConfigError::Value {
            key: "cluster_key",
            value: "(secret)".to_owned(),
            why: error.to_string(),
        })?;
        Ok(ProcessConfig { service, listen, cluster_key, amqp_url: self.amqp_url })
    }
}

impl RawLocal {
    fn validate(self) -> Result<LocalProviderConfig, ConfigError> {
        if self.agent_command.first().is_none_or(String::is_empty) {
            return Err(ConfigError::Value {
                key: "local.agent_command",
                value: format!("{:?}", self.agent_command),
                why: "must name a program".to_owned(),
            });
        }
        let defaults = LocalProviderConfig::new(self.nodes_dir, self.agent_command);
        let stop_grace = seconds("local.stop_grace_seconds", self.stop_grace_seconds, defaults.stop_grace)?;
        Ok(LocalProviderConfig { stop_grace, ..defaults })
    }
}

fn seconds(key: &'static str, value: Option<u64>, default: Duration) -> Result<Duration, ConfigError> {
    match value {
        None => Ok(default),
        Some(1..=86_400) => Ok(Duration::from_secs(value.unwrap_or_default())),
        Some(other) => Err(ConfigError::Value {
            key,
            value: other.to_string(),
            why: "must be between 1 and 86400 seconds".to_owned(),
        }),
    }
}

fn url(key: &'static str, value: String) -> Result<String, ConfigError> {
    if value.starts_with("http://") || value.starts_with("https://") {
        return Ok(value.trim_end_matches('/').to_owned());
    }
    Err(ConfigError::Value { key, value, why: "must be a URL such as http://127.0.0.1:7453".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_file_is_valid() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/pool-svc.toml");
        let config = load(Some(&file), &Flags::default()).unwrap();
        assert_eq!(config.service.heartbeat_interval, Duration::from_secs(5));
        assert!(config.service.local.is_some());
    }

    #[test]
    fn bad_values_name_the_key() {
        let bad = |raw: RawConfig| raw.validate().err().map(|error| error.to_string()).unwrap_or_default();
        assert!(bad(RawConfig::default()).contains("cluster_key"));
        assert!(bad(RawConfig { listen: Some("x".into()), ..RawConfig::default() }).contains("listen"));
        assert!(
            bad(RawConfig { heartbeat_interval_seconds: Some(0), ..RawConfig::default() })
                .contains("heartbeat_interval_seconds")
        );
        assert!(bad(RawConfig { work_endpoint: Some("x".into()), ..RawConfig::default() }).contains("work_endpoint"));
        let local = RawLocal { nodes_dir: PathBuf::from("n"), agent_command: vec![], stop_grace_seconds: None };
        assert!(bad(RawConfig { local: Some(local), ..RawConfig::default() }).contains("agent_command"));
    }
}
