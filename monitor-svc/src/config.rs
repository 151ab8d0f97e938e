//! Settings of monitor-svc: [`RawConfig`] as written, [`Config`] as used.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use kiln_config::ConfigError;
use serde::Deserialize;

/// How `run` works.
#[derive(Debug, Clone)]
pub struct Config {
    /// `monitor.db` lies here.
    pub data_dir: PathBuf,
    /// What the event log keeps.
    pub retention: Retention,
    /// A watch stream on which nothing happens gets a message this often.
    pub keep_alive: Duration,
    /// Messages taken from the bus before the first is acknowledged; also the
    /// most that one transaction stores.
    pub prefetch: u16,
    /// Watch streams at once; more are refused.
    pub max_watchers: usize,
}

/// How long the event log and the projections keep what happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Events older than this go, and with them the timelines of jobs that
    /// ended before.
    pub age: Duration,
    /// The oldest events go when there are more.
    pub max_events: u64,
    /// How often it is looked for what may go.
    pub interval: Duration,
}

impl Config {
    /// The defaults, with the store below `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            retention: Retention {
                age: Duration::from_secs(30 * 86_400),
                max_events: 50_000_000,
                interval: Duration::from_secs(60),
            },
            keep_alive: Duration::from_secs(5),
            prefetch: 64,
            max_watchers: 10_000,
        }
    }
}

/// Settings of the process `monitor-svc`, as file, environment and flags give
/// them; see `deploy/config/monitor-svc.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// See [`Config::data_dir`].
    pub data_dir: Option<PathBuf>,
    /// Address of the gRPC port.
    pub grpc_listen: Option<String>,
    /// The deployment's cluster key, Base64.
    pub cluster_key: Option<String>,
    /// RabbitMQ.
    pub amqp_url: Option<String>,
    /// See [`Retention::age`].
    pub retention_days: Option<u64>,
    /// See [`Retention::max_events`].
    pub retention_max_events: Option<u64>,
    /// See [`Retention::interval`].
    pub retention_interval_seconds: Option<u64>,
    /// See [`Config::keep_alive`].
    pub keep_alive_seconds: Option<u64>,
    /// See [`Config::prefetch`].
    pub prefetch: Option<u16>,
    /// See [`Config::max_watchers`].
    pub max_watchers: Option<usize>,
}

/// What the process needs beside the service's own [`Config`].
#[derive(Debug)]
pub struct ProcessConfig {
    /// Of the service.
    pub service: Config,
    /// gRPC port.
    pub grpc_listen: SocketAddr,
    /// The deployment's key.
    pub cluster_key: kiln_auth::SecretKey,
    /// RabbitMQ.
    pub amqp_url: String,
}

impl TryFrom<RawConfig> for ProcessConfig {
    type Error = ConfigError;

    fn try_from(raw: RawConfig) -> Result<Self, ConfigError> {
        let listen = raw.grpc_listen.as_deref().unwrap_or("127.0.0.1:7464");
        let grpc_listen =
            listen.parse().map_err(|_| value("grpc_listen", listen, "must be an address such as 127.0.0.1:7464"))?;
        let key = raw.cluster_key.ok_or_else(|| value("cluster_key", "", "is required (Base64)"))?;
        let cluster_key = kiln_auth::SecretKey::from_base64(&key)
            .map_err(|error| value("cluster_key", "(secret)", &error.to_string()))?;
        let amqp_url = raw.amqp_url.ok_or_else(|| value("amqp_url", "", "is required (amqp://user:password@host/)"))?;
        let mut service = Config::new(raw.data_dir.unwrap_or_else(|| PathBuf::from("data")));
        if let Some(days) = raw.retention_days {
            service.retention.age = Duration::from_secs(within("retention_days", days, 36_500)? * 86_400);
        }
        if let Some(events) = raw.retention_max_events {
            service.retention.max_events = within("retention_max_events", events, 1 << 40)?;
        }
        if let Some(seconds) = raw.retention_interval_seconds {
            service.retention.interval = Duration::from_secs(within("retention_interval_seconds", seconds, 86_400)?);
        }
        if let Some(seconds) = raw.keep_alive_seconds {
            service.keep_alive = Duration::from_secs(within("keep_alive_seconds", seconds, 300)?);
        }
        if let Some(prefetch) = raw.prefetch {
            service.prefetch = within("prefetch", prefetch, 1024)?;
        }
        if let Some(watchers) = raw.max_watchers {
            service.max_watchers = within("max_watchers", watchers, 1_000_000)?;
        }
        Ok(Self { service, grpc_listen, cluster_key, amqp_url })
    }
}

fn value(key: &'static str, value: &str, why: &str) -> ConfigError {
    ConfigError::Value { key, value: value.to_owned(), why: why.to_owned() }
}

fn within<N>(key: &'static str, number: N, max: N) -> Result<N, ConfigError>
where
    N: Copy + PartialOrd + From<u8> + std::fmt::Display,
{
    if (N::from(1)..=max).contains(&number) {
        return Ok(number);
    }
    Err(value(key, &number.to_string(), &format!("must be between 1 and {max}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Serialize)]
    struct NoFlags {}

    fn example() -> RawConfig {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/monitor-svc.toml");
        kiln_config::load(Some(&file), "KILN_TEST_NONE_", &NoFlags {}).unwrap()
    }

    #[test]
    fn the_commented_example_gives_the_defaults() {
        let config = ProcessConfig::try_from(example()).unwrap();
        assert_eq!(format!("{:?}", config.service), format!("{:?}", Config::new("/var/lib/kiln/monitor")));
        assert_eq!(config.grpc_listen.port(), 7464);
    }

    #[test]
    fn bad_values_name_their_key() {
        for (raw, key) in [
            (RawConfig { prefetch: Some(0), ..example() }, "prefetch"),
            (RawConfig { retention_days: Some(1 << 60), ..example() }, "retention_days"),
            (RawConfig { grpc_listen: Some("here".into()), ..example() }, "grpc_listen"),
            (RawConfig { cluster_key: None, ..example() }, "cluster_key"),
            (RawConfig { amqp_url: None, ..example() }, "amqp_url"),
        ] {
            let error = ProcessConfig::try_from(raw).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
