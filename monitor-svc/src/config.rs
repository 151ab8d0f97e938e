//! Settings of monitor-svc: [`RawConfig`] as written, [`Config`] as used.

use std::path::PathBuf;
use std::time::Duration;

use kiln_config::{ConfigError, check};
use kiln_service::{Common, Settings};
use kiln_store::StoreConfig;
use serde::Deserialize;

/// How `run` works.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of the service's files.
    pub data_dir: PathBuf,
    /// Where the records are.
    pub store: StoreConfig,
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
        let data_dir = data_dir.into();
        Self {
            store: data_dir.join("monitor-svc.db").into(),
            data_dir,
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

/// The service's own settings, as file, environment and flags give them; see
/// `deploy/config/monitor-svc.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
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

impl Settings for RawConfig {
    type Config = Config;
    const SERVICE: &'static str = "monitor-svc";
    const ABOUT: &'static str = "Event log, timelines and watches";
    const ENV_PREFIX: &'static str = "KILN_MONITOR_";
    const LISTEN: &'static str = "127.0.0.1:7464";

    fn validate(self, common: &Common) -> Result<Config, ConfigError> {
        let mut config = Config::new(&common.data_dir);
        config.store = common.store.clone();
        if let Some(days) = self.retention_days {
            config.retention.age = Duration::from_secs(check::within("retention_days", days, 36_500)? * 86_400);
        }
        if let Some(events) = self.retention_max_events {
            config.retention.max_events = check::within("retention_max_events", events, 1 << 40)?;
        }
        if let Some(seconds) = self.retention_interval_seconds {
            config.retention.interval = check::seconds("retention_interval_seconds", seconds)?;
        }
        if let Some(seconds) = self.keep_alive_seconds {
            config.keep_alive = Duration::from_secs(check::within("keep_alive_seconds", seconds, 300)?);
        }
        if let Some(prefetch) = self.prefetch {
            config.prefetch = check::within("prefetch", prefetch, 1024)?;
        }
        if let Some(watchers) = self.max_watchers {
            config.max_watchers = check::within("max_watchers", watchers, 1_000_000)?;
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use kiln_service::Flags;

    use super::*;

    fn example() -> (Common, Config) {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/monitor-svc.toml");
        kiln_service::load::<RawConfig>(&Flags { config: Some(file), ..Flags::default() }).unwrap()
    }

    #[test]
    fn the_commented_example_gives_the_defaults() {
        let (common, config) = example();
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::new("/var/lib/kiln/monitor")));
        assert_eq!(common.listen.to_string(), RawConfig::LISTEN);
    }

    #[test]
    fn bad_values_name_their_key() {
        let (common, _) = example();
        for (raw, key) in [
            (RawConfig { prefetch: Some(0), ..RawConfig::default() }, "prefetch"),
            (RawConfig { retention_days: Some(1 << 60), ..RawConfig::default() }, "retention_days"),
        ] {
            let error = raw.validate(&common).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
