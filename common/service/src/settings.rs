//! Settings that all services share, and how a service adds its own.
//!
//! | key | |
//! |---|---|
//! | `listen` | address of the service's main port |
//! | `data_dir` | directory of its store and other files; required |
//! | `database_url` | PostgreSQL for its store; absent: a SQLite file in `data_dir` |
//! | `database_url_file` | file with that URL, which holds a password |
//! | `database_schema` | schema of that database; default: the service's name with `_` |
//! | `database_connections` | connections of this process to it; default 8 |
//! | `cluster_key_file` | file with the deployment's key, Base64 |
//! | `cluster_key` | the key itself; meant for the environment |
//! | `amqp_url` | RabbitMQ, or `memory` to keep events in the process; required |
//! | `amqp_url_file` | file with that URL, which holds a password |
//! | `amqp_prefix` | put before the names of exchanges and queues, so that deployments can share a broker |
//! | `log_format` | `json` (default) or `plain` |
//!
//! Those of certificates are in [`crate::tls`].

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Parser;
use kiln_auth::SecretKey;
use kiln_config::{ConfigError, check};
use kiln_store::{PostgresConfig, StoreConfig};
use kiln_telemetry::LogFormat;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::tls::{PublicPort, RawTls, Tls};

/// Value of `amqp_url` that keeps events inside the process.
const IN_MEMORY: &str = "memory";

/// Flags of every service; those given win over file and environment.
#[derive(Debug, Default, Parser, Serialize)]
pub struct Flags {
    /// File with the settings (TOML).
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Address of the main port.
    #[arg(long, value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// Directory of the store.
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// json or plain.
    #[arg(long, value_name = "FORMAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<String>,
    /// Check the settings, print what they come to (without secrets) and exit.
    #[arg(long)]
    #[serde(skip)]
    pub check_config: bool,
}

/// A service's own settings, as written. Implementors deny unknown fields; the
/// keys of [`Common`] never reach them.
pub trait Settings: DeserializeOwned {
    /// What they become once they are checked. Printed by `--check-config`:
    /// `Debug` shows no secrets.
    type Config: fmt::Debug;
    /// For example `job-svc`.
    const SERVICE: &'static str;
    /// One line for `--help`.
    const ABOUT: &'static str;
    /// Environment variables that begin with this win over the file.
    const ENV_PREFIX: &'static str;
    /// Default of `listen`.
    const LISTEN: &'static str;
    /// Whether the service is on the bus; else `amqp_url` is an unknown key.
    const ON_BUS: bool = true;
    /// Which of its ports users come to; without one, `public_tls_cert_file` is
    /// an unknown key.
    const PUBLIC_PORT: PublicPort = PublicPort::None;

    /// Checks the settings.
    ///
    /// # Errors
    /// [`ConfigError`] names the first that cannot be used.
    fn validate(self, common: &Common) -> Result<Self::Config, ConfigError>;
}

/// Where events go.
#[derive(Clone, PartialEq, Eq)]
pub enum BusSetting {
    /// Nowhere outside of the process.
    Memory,
    /// To RabbitMQ at this URL, which holds a password.
    Rabbit(String),
}

/// Checked settings of the process around a service.
#[derive(Debug, Clone)]
pub struct Common {
    /// Address of the main port.
    pub listen: SocketAddr,
    /// Directory of the service's files.
    pub data_dir: PathBuf,
    /// Where the records are.
    pub store: StoreConfig,
    /// The deployment's key.
    pub cluster_key: Arc<SecretKey>,
    /// Where events go.
    pub bus: BusSetting,
    /// Put before the names of exchanges and queues.
    pub amqp_prefix: String,
    /// Form of the log lines.
    pub log_format: LogFormat,
    /// Certificates of its ports.
    pub tls: Tls,
}

impl Common {
    /// The setting `advertised_endpoint`: where other replicas, and agents, reach
    /// this one. Absent means the address it listens on.
    ///
    /// # Errors
    /// It is no URL, or is needed: a service with a database that others may share
    /// listens on all addresses, and nobody reaches it at 0.0.0.0.
    pub fn advertised(&self, given: Option<String>) -> Result<Option<String>, ConfigError> {
        const KEY: &str = "advertised_endpoint";
        match given {
            Some(endpoint) => Ok(Some(self.tls.check_url(KEY, check::url(KEY, &endpoint)?)?)),
            None if self.store.is_shared() && self.listen.ip().is_unspecified() => {
                let why = format!(
                    "is required where listen is {}: the URL at which other replicas reach this one, such as \
                     http://10.0.0.7:{}",
                    self.listen,
                    self.listen.port()
                );
                Err(ConfigError::value(KEY, "", why))
            }
            None => Ok(None),
        }
    }
}

/// [`Common`] as written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCommon {
    listen: Option<String>,
    data_dir: Option<PathBuf>,
    database_url: Option<String>,
    database_url_file: Option<PathBuf>,
    database_schema: Option<String>,
    database_connections: Option<usize>,
    cluster_key_file: Option<PathBuf>,
    cluster_key: Option<String>,
    amqp_url: Option<String>,
    amqp_url_file: Option<PathBuf>,
    amqp_prefix: Option<String>,
    log_format: Option<String>,
}

/// The keys of [`RawCommon`]; the last [`OF_BUS`] are for services on the bus.
const KEYS: [&str; 12] = [
    "listen",
    "data_dir",
    "database_url",
    "database_url_file",
    "database_schema",
    "database_connections",
    "cluster_key_file",
    "cluster_key",
    "log_format",
    "amqp_url",
    "amqp_url_file",
    "amqp_prefix",
];
const OF_BUS: usize = 3;

/// Reads file, environment and flags.
///
/// # Errors
/// [`ConfigError`] names the key, the value and where it came from.
pub fn load<S: Settings>(flags: &Flags) -> Result<(Common, S::Config), ConfigError> {
    let keys = if S::ON_BUS { &KEYS[..] } else { &KEYS[..KEYS.len() - OF_BUS] };
    let (file, prefix) = (flags.config.as_deref(), S::ENV_PREFIX);
    let of_tls = RawTls::keys(S::PUBLIC_PORT);
    let tls: RawTls = kiln_config::load_some(file, prefix, flags, |key| of_tls.contains(&key))?;
    let common: RawCommon = kiln_config::load_some(file, prefix, flags, |key| keys.contains(&key))?;
    let own: S = kiln_config::load_some(file, prefix, flags, |key| !keys.contains(&key) && !of_tls.contains(&key))?;
    let common = common.validate(S::SERVICE, S::LISTEN, S::ON_BUS, tls.open()?)?;
    let config = own.validate(&common)?;
    Ok((common, config))
}

impl RawCommon {
    fn validate(mut self, service: &str, default_listen: &str, on_bus: bool, tls: Tls) -> Result<Common, ConfigError> {
        let store = self.store(service)?;
        Ok(Common {
            store,
            listen: check::address("listen", self.listen.as_deref().unwrap_or(default_listen))?,
            data_dir: check::required("data_dir", self.data_dir)?,
            cluster_key: Arc::new(key(self.cluster_key_file.as_deref(), self.cluster_key.as_deref())?),
            amqp_prefix: prefix(self.amqp_prefix.unwrap_or_default())?,
            bus: if on_bus {
                BusSetting::parse(secret(("amqp_url", self.amqp_url), ("amqp_url_file", self.amqp_url_file))?)?
            } else {
                BusSetting::Memory
            },
            log_format: match self.log_format.as_deref() {
                None | Some("json") => LogFormat::Json,
                Some("plain") => LogFormat::Plain,
                Some(other) => return Err(ConfigError::value("log_format", other, "must be json or plain")),
            },
            tls,
        })
    }
}

impl RawCommon {
    fn store(&mut self, service: &str) -> Result<StoreConfig, ConfigError> {
        let (url, file) = (self.database_url.take(), self.database_url_file.take());
        let Some((key, url)) = secret(("database_url", url), ("database_url_file", file))? else {
            return self.file(service);
        };
        let schema = self.database_schema.take().unwrap_or_else(|| service.replace('-', "_"));
        let config = PostgresConfig::new(&url, &schema).map_err(|error| {
            let (key, value) = if error.is_schema() { ("database_schema", schema.as_str()) } else { (key, "(secret)") };
            ConfigError::value(key, value, error.to_string())
        })?;
        let config = match self.database_connections {
            None => config,
            Some(count) => config
                .with_connections(count)
                .map_err(|error| ConfigError::value("database_connections", count, error.to_string()))?,
        };
        Ok(config.into())
    }

    /// A SQLite file, for which the other settings mean nothing.
    fn file(&self, service: &str) -> Result<StoreConfig, ConfigError> {
        let needs_url = "means nothing without database_url";
        if let Some(schema) = &self.database_schema {
            return Err(ConfigError::value("database_schema", schema, needs_url));
        }
        if let Some(count) = self.database_connections {
            return Err(ConfigError::value("database_connections", count, needs_url));
        }
        let dir = check::required("data_dir", self.data_dir.as_ref())?;
        Ok(dir.join(format!("{service}.db")).into())
    }
}

/// A text that holds a password: as it is, or in a file. With the key it comes from.
fn secret(
    (key, text): (&'static str, Option<String>),
    (file_key, file): (&'static str, Option<PathBuf>),
) -> Result<Option<(&'static str, String)>, ConfigError> {
    match (text, file) {
        (Some(text), None) => Ok(Some((key, text))),
        (None, Some(file)) => {
            let wrong = |why: std::io::Error| ConfigError::value(file_key, file.display(), why.to_string());
            Ok(Some((file_key, std::fs::read_to_string(&file).map_err(wrong)?.trim().to_owned())))
        }
        (Some(_), Some(file)) => {
            Err(ConfigError::value(file_key, file.display(), format!("cannot be given together with {key}")))
        }
        (None, None) => Ok(None),
    }
}

/// Checked here, since the broker's own refusal would come much later.
fn prefix(text: String) -> Result<String, ConfigError> {
    let usable = text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if usable { Ok(text) } else { Err(ConfigError::value("amqp_prefix", text, "at most 64 of A-Z a-z 0-9 - _ .")) }
}

fn key(file: Option<&Path>, text: Option<&str>) -> Result<SecretKey, ConfigError> {
    match (file, text) {
        (Some(file), None) => {
            let wrong = |why: String| ConfigError::value("cluster_key_file", file.display(), why);
            let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
            SecretKey::from_base64(&text).map_err(|error| wrong(error.to_string()))
        }
        (None, Some(text)) => SecretKey::from_base64(text)
            .map_err(|error| ConfigError::value("cluster_key", "(secret)", error.to_string())),
        (None, None) => Err(ConfigError::value("cluster_key_file", "", "is required (or cluster_key)")),
        (Some(file), Some(_)) => {
            Err(ConfigError::value("cluster_key_file", file.display(), "cannot be given together with cluster_key"))
        }
    }
}

impl BusSetting {
    fn parse(given: Option<(&'static str, String)>) -> Result<Self, ConfigError> {
        match given {
            None => {
                Err(ConfigError::value("amqp_url", "", "is required: amqp://user:password@host:5672/%2f or memory"))
            }
            Some((_, text)) if text == IN_MEMORY => Ok(Self::Memory),
            Some((_, text)) if text.starts_with("amqp://") || text.starts_with("amqps://") => Ok(Self::Rabbit(text)),
            Some((key, _)) => {
                Err(ConfigError::value(key, "(secret)", "must begin with amqp:// or amqps://, or be memory"))
            }
        }
    }

    /// RabbitMQ's URL, if that is where events go.
    pub fn url(&self) -> Option<&str> {
        match self {
            Self::Memory => None,
            Self::Rabbit(url) => Some(url),
        }
    }
}

impl fmt::Debug for BusSetting {
    /// Without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("Memory"),
            Self::Rabbit(url) => {
                let (scheme, rest) = url.split_once("://").unwrap_or_default();
                let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
                write!(f, "Rabbit({scheme}://{place})")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Own {
        depth: Option<u64>,
    }

    impl Settings for Own {
        type Config = u64;
        const SERVICE: &'static str = "test-svc";
        const ABOUT: &'static str = "";
        const ENV_PREFIX: &'static str = "KILN_TEST_NONE_";
        const LISTEN: &'static str = "127.0.0.1:7";

        fn validate(self, common: &Common) -> Result<u64, ConfigError> {
            Ok(self.depth.unwrap_or(common.listen.port().into()))
        }
    }

    #[test]
    fn the_broker_can_be_named_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("amqp");
        let text = |more: &str| format!("data_dir = \"d\"\ncluster_key = \"{KEY}\"\namqp_url_file = {file:?}\n{more}");
        let missing = read::<Own>(&text("")).unwrap_err();
        assert!(missing.contains("amqp_url_file"), "{missing}");
        std::fs::write(&file, "amqp://kiln:hunter2@host:5672/%2f\n").unwrap();
        let (common, _) = read::<Own>(&text("")).unwrap();
        assert_eq!(common.bus.url(), Some("amqp://kiln:hunter2@host:5672/%2f"));
        assert!(!format!("{common:?}").contains("hunter2"));
        let both = read::<Own>(&text("amqp_url = \"memory\"\n")).unwrap_err();
        assert!(both.contains("amqp_url_file") && both.contains("together with amqp_url"), "{both}");
        std::fs::write(&file, "http://kiln:hunter2@host").unwrap();
        let wrong = read::<Own>(&text("")).unwrap_err();
        assert!(wrong.contains("amqp_url_file") && !wrong.contains("hunter2"), "{wrong}");
        assert!(read::<Quiet>(&text("")).unwrap_err().contains("amqp_url_file"));
    }

    #[test]
    fn who_listens_on_all_addresses_beside_others_says_where_it_is() {
        let place = "data_dir = \"/d\"\namqp_url = \"memory\"\ncluster_key = \"";
        let common = |more: &str| read::<Own>(&format!("{more}{place}{KEY}\"\n")).unwrap().0;
        let everywhere = "listen = \"0.0.0.0:7463\"\n";
        let alone = common(everywhere);
        assert_eq!(alone.advertised(None).unwrap(), None);
        let shared = format!("{everywhere}database_url = \"postgres://u:p@127.0.0.1/d\"\n");
        let shared = common(&shared);
        let missing = shared.advertised(None).unwrap_err().to_string();
        assert!(missing.contains("advertised_endpoint") && missing.contains("0.0.0.0:7463"), "{missing}");
        assert!(shared.advertised(Some("10.0.0.7".to_owned())).is_err());
        let given = shared.advertised(Some("http://10.0.0.7:7463/".to_owned())).unwrap();
        assert_eq!(given.as_deref(), Some("http://10.0.0.7:7463"));
        let local = common("database_url = \"postgres://u:p@127.0.0.1/d\"\n");
        assert_eq!(local.advertised(None).unwrap(), None);
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Quiet {}

    impl Settings for Quiet {
        type Config = ();
        const SERVICE: &'static str = "quiet-svc";
        const ABOUT: &'static str = "";
        const ENV_PREFIX: &'static str = "KILN_TEST_NONE_";
        const LISTEN: &'static str = "127.0.0.1:7";
        const ON_BUS: bool = false;

        fn validate(self, _: &Common) -> Result<(), ConfigError> {
            Ok(())
        }
    }

    const KEY: &str = "ZXhhbXBsZS1jbHVzdGVyLWtleS1jaGFuZ2UtbWU=";

    fn read<S: Settings>(text: &str) -> Result<(Common, S::Config), String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.toml");
        std::fs::write(&file, text).unwrap();
        load::<S>(&Flags { config: Some(file), ..Flags::default() }).map_err(|error| error.to_string())
    }

    #[test]
    fn own_and_common_settings_come_from_one_file() {
        let url = "amqp://kiln:pa@ss@host:5672/%2f";
        let text = format!("data_dir = \"d\"\ncluster_key = \"{KEY}\"\namqp_url = \"{url}\"\ndepth = 3\n");
        let (common, depth) = read::<Own>(&text).unwrap();
        assert_eq!((common.listen.port(), common.bus.url(), depth), (7, Some(url), 3));
        assert_eq!(common.log_format, LogFormat::Json);
        let printed = format!("{common:#?}");
        assert!(!printed.contains("pa") && !printed.contains(KEY) && printed.contains("host"), "{printed}");
    }

    #[test]
    fn the_key_may_lie_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cluster.key");
        let text = format!("data_dir = \"d\"\ncluster_key_file = {file:?}\n");
        assert!(read::<Quiet>(&text).unwrap_err().contains("cluster_key_file"));
        std::fs::write(&file, format!("{KEY}\n")).unwrap();
        let (common, ()) = read::<Quiet>(&text).unwrap();
        assert_eq!(common.cluster_key.to_base64(), KEY);
        let error = read::<Quiet>(&format!("{text}cluster_key = \"{KEY}\"\n")).unwrap_err();
        assert!(error.contains("together") && !error.contains(KEY), "{error}");
    }

    #[test]
    fn the_store_is_a_file_or_a_schema_and_passwords_are_not_shown() {
        let good = format!("data_dir = \"d\"\ncluster_key = \"{KEY}\"\n");
        let (common, ()) = read::<Quiet>(&good).unwrap();
        assert_eq!(common.store, StoreConfig::Sqlite("d/quiet-svc.db".into()));
        let url = "postgres://kiln:hush@db.example/kiln";
        let (common, ()) =
            read::<Quiet>(&format!("{good}database_url = \"{url}\"\ndatabase_connections = 5\n")).unwrap();
        let shown = format!("{common:?}");
        assert!(shown.contains("quiet_svc") && shown.contains("db.example") && !shown.contains("hush"), "{shown}");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("url");
        std::fs::write(&file, format!("{url}\n")).unwrap();
        let (from_file, ()) = read::<Quiet>(&format!(
            "{good}database_url_file = {file:?}\ndatabase_schema = \"quiet_svc\"\ndatabase_connections = 5\n"
        ))
        .unwrap();
        assert_eq!(from_file.store, common.store);
        for (text, names) in [
            ("database_url = \"mysql://u:hush@h/k\"".to_owned(), "database_url = \"(secret)\""),
            (format!("database_url = \"{url}\"\ndatabase_schema = \"A b\""), "database_schema = \"A b\""),
            (format!("database_url = \"{url}\"\ndatabase_connections = 1"), "database_connections = \"1\""),
            (format!("database_url = \"{url}\"\ndatabase_url_file = {file:?}"), "together"),
            ("database_connections = 4".to_owned(), "database_connections"),
            ("database_schema = \"s\"".to_owned(), "database_schema"),
        ] {
            let error = read::<Quiet>(&format!("{good}{text}\n")).unwrap_err();
            assert!(error.contains(names) && !error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_named_and_secrets_are_not_printed() {
        let good = format!("data_dir = \"d\"\ncluster_key = \"{KEY}\"\n");
        for (text, names) in [
            (format!("cluster_key = \"{KEY}\"\n"), "data_dir"),
            ("data_dir = \"d\"\n".to_owned(), "cluster_key_file"),
            ("data_dir = \"d\"\ncluster_key = \"hush!\"\n".to_owned(), "cluster_key = \"(secret)\""),
            (good.clone(), "amqp_url"),
            (format!("{good}amqp_url = \"hush\"\n"), "amqp_url = \"(secret)\""),
            (format!("{good}amqp_url = \"memory\"\nlisten = \"here\"\n"), "listen = \"here\""),
            (format!("{good}amqp_url = \"memory\"\namqp_prefix = \"a b\"\n"), "amqp_prefix = \"a b\""),
            (format!("{good}amqp_url = \"memory\"\nlog_format = \"xml\"\n"), "log_format = \"xml\""),
            (format!("{good}amqp_url = \"memory\"\ndeph = 1\n"), "deph"),
        ] {
            let error = read::<Own>(&text).unwrap_err();
            assert!(error.contains(names) && !error.contains("hush"), "{error}");
        }
        let error = read::<Quiet>(&format!("{good}amqp_url = \"memory\"\n")).unwrap_err();
        assert!(error.contains("amqp_url"), "a service that is not on the bus does not know the key: {error}");
    }
}
