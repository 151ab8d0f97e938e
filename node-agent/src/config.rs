//! Settings of the agent.
//!
//! What a node is comes from its join file and from pool-svc; the settings here
//! are about the machine and seldom need a change. They are read from the file
//! named by `KILN_AGENT_CONFIG`, then from variables `KILN_AGENT_<NAME>`;
//! `deploy/config/node-agent.toml` lists them all.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_config::ConfigError;
use kiln_node::JoinConfig;
use serde::{Deserialize, Serialize};

/// Variable that names the settings file.
const CONFIG_FILE_VARIABLE: &str = "KILN_AGENT_CONFIG";
/// Variables with this prefix override the file.
const PREFIX: &str = "KILN_AGENT_";

/// Everything the agent has to know before it starts.
#[derive(Debug, Clone)]
pub struct NodeAgentConfig {
    /// Who the node is and where it registers.
    pub join: JoinConfig,
    /// Settings about the machine.
    pub settings: Settings,
    /// The process belongs to the agent alone: it adopts orphans of its tasks
    /// and reaps every child. False when the agent runs inside a test.
    pub owns_process: bool,
    /// Program and arguments of the guard process, to which the incarnation is
    /// appended; empty means that there is none.
    pub guard_command: Vec<String>,
    /// Program and arguments of the shim; without one tasks cannot have users of their own, and
    /// their limits are watched instead of enforced by the kernel.
    pub shim_command: Vec<String>,
}

impl NodeAgentConfig {
    /// The agent of the node that `join` describes, with default settings and
    /// without a guard process.
    pub fn new(join: JoinConfig) -> Self {
        Self {
            join,
            settings: Settings::default(),
            owns_process: false,
            guard_command: Vec::new(),
            shim_command: Vec::new(),
        }
    }
}

/// Settings about the machine, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Limit of the cache of resource files.
    pub cache_bytes: u64,
    /// Bytes that one application package may have when it is unpacked.
    pub package_bytes: u64,
    /// Resource files that the whole node fetches at once.
    pub parallel_downloads: usize,
    /// Output files that the whole node uploads at once.
    pub parallel_uploads: usize,
    /// How long the directory of a completed task stays if the task does not say.
    pub retention: Duration,
    /// How long the agent goes on without any contact after its lease is over.
    pub grace: Duration,
    /// Longest silence of a server during a transfer.
    pub transfer_idle: Duration,
    /// Tries of one transfer before it fails.
    pub transfer_tries: u32,
    /// `PATH` of task processes.
    pub task_path: String,
    /// Where it is written down what ran here; see [`kiln_node::record`].
    pub record_file: Option<PathBuf>,
    /// Certificate of nodes, and its key (PEM): for deployments that require one
    /// of every caller.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// So long an attempt that was assigned ahead waits for a slot, before it is given back.
    pub line_patience: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cache_bytes: 2 << 30,
            package_bytes: 64 << 30,
            parallel_downloads: 16,
            parallel_uploads: 8,
            retention: Duration::from_secs(7 * 24 * 3600),
            grace: Duration::from_secs(120),
            transfer_idle: Duration::from_secs(60),
            transfer_tries: 6,
            task_path: std::env::var("PATH")
                .ok()
                .filter(|path| !path.is_empty())
                .unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
            record_file: None,
            certificate: None,
            line_patience: Duration::from_millis(250),
        }
    }
}

/// The settings as they are written, not checked yet.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// The file itself may be named in the environment only.
    config: Option<PathBuf>,
    cache_bytes: Option<u64>,
    package_bytes: Option<u64>,
    parallel_downloads: Option<usize>,
    parallel_uploads: Option<usize>,
    retention_seconds: Option<u64>,
    grace_seconds: Option<u64>,
    transfer_idle_seconds: Option<u64>,
    transfer_tries: Option<u32>,
    task_path: Option<String>,
    record_file: Option<PathBuf>,
    tls_cert_file: Option<PathBuf>,
    tls_key_file: Option<PathBuf>,
}

#[derive(Serialize)]
struct NoFlags {}

impl Settings {
    /// From the file that the environment names (if any) and the environment.
    ///
    /// # Errors
    /// [`ConfigError`] names the key and what is wrong with it.
    pub fn load() -> Result<Self, ConfigError> {
        let file = std::env::var_os(CONFIG_FILE_VARIABLE).map(PathBuf::from);
        Self::load_from(file.as_deref(), PREFIX)
    }

    fn load_from(file: Option<&Path>, prefix: &str) -> Result<Self, ConfigError> {
        let raw: RawConfig = kiln_config::load(file, prefix, &NoFlags {})?;
        raw.check()
    }
}

impl RawConfig {
    fn check(self) -> Result<Settings, ConfigError> {
        let defaults = Settings::default();
        let _ = self.config;
        let positive = |key, value: Option<usize>, default| match value {
            Some(0) => Err(ConfigError::Value { key, value: "0".to_owned(), why: "must be at least 1".to_owned() }),
            Some(value) => Ok(value.min(1024)),
            None => Ok(default),
        };
        let seconds = |value: Option<u64>, default| value.map_or(default, Duration::from_secs);
        let idle = seconds(self.transfer_idle_seconds, defaults.transfer_idle);
        if idle.is_zero() {
            let why = "must be at least 1".to_owned();
            return Err(ConfigError::Value { key: "transfer_idle_seconds", value: "0".to_owned(), why });
        }
        let together = |key, other| ConfigError::value(key, "", format!("is required together with {other}"));
        let certificate = match (self.tls_cert_file, self.tls_key_file) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, Some(_)) => return Err(together("tls_cert_file", "tls_key_file")),
            (Some(_), None) => return Err(together("tls_key_file", "tls_cert_file")),
        };
        Ok(Settings {
            certificate,
            cache_bytes: self.cache_bytes.unwrap_or(defaults.cache_bytes),
            package_bytes: self.package_bytes.unwrap_or(defaults.package_bytes),
            parallel_downloads: positive("parallel_downloads", self.parallel_downloads, defaults.parallel_downloads)?,
            parallel_uploads: positive("parallel_uploads", self.parallel_uploads, defaults.parallel_uploads)?,
            retention: seconds(self.retention_seconds, defaults.retention),
            grace: seconds(self.grace_seconds, defaults.grace),
            transfer_idle: idle,
            transfer_tries: self.transfer_tries.unwrap_or(defaults.transfer_tries).clamp(1, 100),
            task_path: self.task_path.unwrap_or(defaults.task_path),
            record_file: self.record_file,
            line_patience: defaults.line_patience,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_file_loads_and_equals_the_defaults() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/node-agent.toml");
        let settings = Settings::load_from(Some(&file), "KILN_AGENT_TEST_NONE_").unwrap();
        let expected = Settings { task_path: settings.task_path.clone(), ..Settings::default() };
        assert_eq!(format!("{settings:?}"), format!("{expected:?}"));
    }

    #[test]
    fn useless_values_are_refused() {
        let raw = RawConfig { parallel_downloads: Some(0), ..RawConfig::default() };
        assert!(raw.check().unwrap_err().to_string().contains("parallel_downloads"));
        let raw = RawConfig { tls_cert_file: Some("n.crt".into()), ..RawConfig::default() };
        assert!(raw.check().unwrap_err().to_string().contains("tls_key_file"));
    }
}
