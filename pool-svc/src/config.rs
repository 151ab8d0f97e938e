//! Settings of pool-svc.

use std::path::PathBuf;
use std::time::Duration;

use kiln_config::{ConfigError, check};
use kiln_service::{Common, Settings};
use kiln_store::StoreConfig;
use serde::Deserialize;

/// Validated settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of the service's files.
    pub data_dir: PathBuf,
    /// Where the records are.
    pub store: StoreConfig,
    /// URL under which agents reach this service, or those of its replicas,
    /// separated by commas.
    pub control_endpoint: String,
    /// URL under which agents reach the work stream of job-svc, or those of its
    /// replicas, separated by commas.
    pub work_endpoint: String,
    /// `http://host:port` of the blob data plane.
    pub public_blob_endpoint: String,
    /// `http://host:port` of the front door.
    pub batch_endpoint: String,
    /// Authority of the deployment's certificates (PEM), which agents are
    /// given; absent where services are plain.
    pub authority: Option<PathBuf>,
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
    /// Where other replicas reach this one, if that is not the address it listens
    /// on.
    pub advertised_endpoint: Option<String>,
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
    /// Nodes of all pools at most: each is a process of this machine.
    pub max_nodes: usize,
}

impl LocalProviderConfig {
    /// Agents are started with `agent_command`, their files are in `nodes_dir`.
    pub fn new(nodes_dir: impl Into<PathBuf>, agent_command: Vec<String>) -> Self {
        Self { nodes_dir: nodes_dir.into(), agent_command, stop_grace: Duration::from_secs(10), max_nodes: 256 }
    }
}

impl Config {
    /// The usual settings; endpoints are empty and no provider makes nodes.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        let data_dir = data_dir.into();
        Self {
            store: data_dir.join("pool-svc.db").into(),
            data_dir,
            control_endpoint: String::new(),
            work_endpoint: String::new(),
            public_blob_endpoint: String::new(),
            batch_endpoint: String::new(),
            authority: None,
            heartbeat_interval: Duration::from_secs(5),
            missed_heartbeats: 3,
            unusable_after: Duration::from_secs(600),
            start_timeout: Duration::from_secs(300),
            local: None,
            advertised_endpoint: None,
            stop_nodes_on_shutdown: false,
        }
    }

    /// A node that has been silent for this long is `unknown`.
    pub fn silence_limit(&self) -> Duration {
        self.heartbeat_interval.saturating_mul(self.missed_heartbeats)
    }
}

/// The service's own settings, as file, environment and flags give them; see
/// `deploy/config/pool-svc.toml`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// See [`Config::control_endpoint`]; default is `http://<listen>`.
    pub control_endpoint: Option<String>,
    /// See [`Config::work_endpoint`].
    pub work_endpoint: Option<String>,
    /// See [`Config::public_blob_endpoint`].
    pub public_blob_endpoint: Option<String>,
    /// See [`Config::batch_endpoint`].
    pub batch_endpoint: Option<String>,
    /// See [`Config::advertised_endpoint`].
    pub advertised_endpoint: Option<String>,
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
    /// See [`LocalProviderConfig::max_nodes`].
    pub max_nodes: Option<usize>,
}

impl Settings for RawConfig {
    type Config = Config;
    const SERVICE: &'static str = "pool-svc";
    const ABOUT: &'static str = "Pools, nodes and the providers that make nodes";
    const ENV_PREFIX: &'static str = "KILN_POOL_";
    const LISTEN: &'static str = "127.0.0.1:7462";

    fn validate(self, common: &Common) -> Result<Config, ConfigError> {
        let defaults = Config::new(&common.data_dir);
        let url = |key, given: Option<String>, default: &str| check::url(key, given.as_deref().unwrap_or(default));
        let scheme = if common.tls.is_mutual() { "https" } else { "http" };
        let inner = |key, given: Option<String>, default: &str| {
            common.tls.check_url(key, check::urls(key, given.as_deref().unwrap_or(default))?)
        };
        let seconds = |key, given: Option<u64>, default| given.map_or(Ok(default), |given| check::seconds(key, given));
        let missed_heartbeats = self.missed_heartbeats.unwrap_or(defaults.missed_heartbeats);
        Ok(Config {
            control_endpoint: inner(
                "control_endpoint",
                self.control_endpoint,
                &format!("{scheme}://{}", common.listen),
            )?,
            work_endpoint: inner("work_endpoint", self.work_endpoint, &format!("{scheme}://127.0.0.1:7463"))?,
            public_blob_endpoint: url("public_blob_endpoint", self.public_blob_endpoint, "http://127.0.0.1:7451")?,
            batch_endpoint: url("batch_endpoint", self.batch_endpoint, "http://127.0.0.1:7450")?,
            heartbeat_interval: seconds(
                "heartbeat_interval_seconds",
                self.heartbeat_interval_seconds,
                defaults.heartbeat_interval,
            )?,
            missed_heartbeats: check::within("missed_heartbeats", missed_heartbeats, u32::MAX)?,
            unusable_after: seconds("unusable_after_seconds", self.unusable_after_seconds, defaults.unusable_after)?,
            start_timeout: seconds("start_timeout_seconds", self.start_timeout_seconds, defaults.start_timeout)?,
            stop_nodes_on_shutdown: self.stop_nodes_on_shutdown.unwrap_or(defaults.stop_nodes_on_shutdown),
            advertised_endpoint: common.advertised(self.advertised_endpoint)?,
            local: self.local.map(RawLocal::validate).transpose()?,
            authority: common.tls.authority.clone(),
            data_dir: defaults.data_dir,
            store: common.store.clone(),
        })
    }
}

impl RawLocal {
    fn validate(self) -> Result<LocalProviderConfig, ConfigError> {
        if self.agent_command.first().is_none_or(String::is_empty) {
            let given = format!("{:?}", self.agent_command);
            return Err(ConfigError::value("local.agent_command", given, "must name a program"));
        }
        let mut config = LocalProviderConfig::new(self.nodes_dir, self.agent_command);
        if let Some(seconds) = self.stop_grace_seconds {
            config.stop_grace = check::seconds("local.stop_grace_seconds", seconds)?;
        }
        if let Some(nodes) = self.max_nodes {
            config.max_nodes = check::within("local.max_nodes", nodes, 100_000)?;
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use kiln_service::Flags;

    use super::*;

    fn example() -> (Common, Config) {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/pool-svc.toml");
        kiln_service::load::<RawConfig>(&Flags { config: Some(file), ..Flags::default() }).unwrap()
    }

    #[test]
    fn the_commented_example_says_the_defaults() {
        let (common, config) = example();
        let defaults = RawConfig::default().validate(&common).unwrap();
        assert_eq!(common.listen.to_string(), RawConfig::LISTEN);
        assert_eq!(config.local.as_ref().unwrap().max_nodes, LocalProviderConfig::new("n", vec![]).max_nodes);
        assert_eq!(format!("{:?}", Config { local: None, ..config }), format!("{defaults:?}"));
    }

    #[test]
    fn bad_values_name_the_key() {
        let (common, _) = example();
        let bad = |raw: RawConfig| raw.validate(&common).unwrap_err().to_string();
        assert!(
            bad(RawConfig { heartbeat_interval_seconds: Some(0), ..RawConfig::default() })
                .contains("heartbeat_interval_seconds")
        );
        assert!(bad(RawConfig { missed_heartbeats: Some(0), ..RawConfig::default() }).contains("missed_heartbeats"));
        assert!(bad(RawConfig { work_endpoint: Some("x".into()), ..RawConfig::default() }).contains("work_endpoint"));
        let local = |command: &str, max_nodes| RawLocal {
            nodes_dir: PathBuf::from("n"),
            agent_command: vec![command.to_owned()],
            stop_grace_seconds: None,
            max_nodes,
        };
        let bad_local = |local| bad(RawConfig { local: Some(local), ..RawConfig::default() });
        assert!(bad_local(local("", None)).contains("agent_command"));
        assert!(bad_local(local("a", Some(0))).contains("max_nodes"));
    }
}
