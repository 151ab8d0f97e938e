//! Settings of storage-svc: [`RawConfig`] as written, [`Config`] as used.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kiln_config::{ConfigError, check};
use kiln_service::{Common, PublicPort, Settings};
use kiln_store::StoreConfig;
use serde::Deserialize;

use crate::domain::copy_source::CopySources;
use crate::objects::local::Durability;
use crate::objects::place::{ObjectsPlace, parse_options};
use crate::objects::sealing::Keyring;

/// Settings of one running storage-svc.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of this process's files.
    pub data_dir: PathBuf,
    /// Where the bytes are.
    pub objects: ObjectsPlace,
    /// Encrypts what is written from now on.
    pub encryption: Option<Arc<Keyring>>,
    /// What files and catalogue survive.
    pub durability: Durability,
    /// Where the catalogue is.
    pub store: StoreConfig,
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
    /// From where copies may come.
    pub copy_sources: CopySources,
}

impl Config {
    /// The usual settings.
    pub fn new(data_dir: impl Into<PathBuf>, public_blob_endpoint: impl Into<String>) -> Self {
        let data_dir = data_dir.into();
        Self {
            store: data_dir.join("storage-svc.db").into(),
            objects: ObjectsPlace::Own(data_dir.join("blobs")),
            encryption: None,
            durability: Durability::PowerLoss,
            data_dir,
            public_blob_endpoint: public_blob_endpoint.into().trim_end_matches('/').to_owned(),
            host_style: true,
            collect_interval: Duration::from_secs(30),
            garbage_grace: Duration::from_secs(600),
            idle_timeout: Duration::from_secs(120),
            copy_sources: CopySources::default(),
        }
    }
}

/// The service's own settings, as file, environment and flags give them; see
/// `deploy/config/storage-svc.toml`. `listen` is the gRPC port.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// Address of the data plane.
    pub blob_listen: Option<String>,
    /// See [`Config::public_blob_endpoint`]; default is `http://<blob_listen>`.
    pub public_blob_endpoint: Option<String>,
    /// Directory of the bytes, if replicas share it; default is `blobs` in
    /// `data_dir`, for this process alone.
    pub objects_dir: Option<PathBuf>,
    /// URL of the place of the bytes; see [`ObjectsPlace::parse`].
    pub objects: Option<String>,
    /// Options of a remote store, by the names of `object_store`.
    pub objects_options: Option<BTreeMap<String, String>>,
    /// File with further options, which are secrets.
    pub objects_options_file: Option<PathBuf>,
    /// See [`Keyring::parse`].
    pub encryption_key_file: Option<PathBuf>,
    /// `power-loss` (default) or `relaxed`.
    pub durability: Option<String>,
    /// See [`Config::host_style`].
    pub host_style: Option<bool>,
    /// See [`Config::collect_interval`].
    pub collect_interval_seconds: Option<u64>,
    /// See [`Config::garbage_grace`].
    pub garbage_grace_seconds: Option<u64>,
    /// See [`Config::idle_timeout`].
    pub idle_timeout_seconds: Option<u64>,
    /// `public` or `none`: see [`CopySources`].
    pub copy_sources: Option<String>,
    /// Networks, addresses and hosts beside that.
    pub copy_sources_allowed: Option<Vec<String>>,
}

/// The service's settings and its second port.
#[derive(Debug)]
pub struct ProcessConfig {
    /// Of the service.
    pub service: Config,
    /// Data plane.
    pub blob_listen: SocketAddr,
}

impl Settings for RawConfig {
    type Config = ProcessConfig;
    const SERVICE: &'static str = "storage-svc";
    const ABOUT: &'static str = "Containers and blobs: gRPC for services, the Azure Blob dialect for clients";
    const ENV_PREFIX: &'static str = "KILN_STORAGE_";
    const LISTEN: &'static str = "127.0.0.1:7461";
    const PUBLIC_PORT: PublicPort = PublicPort::Other;

    fn validate(self, common: &Common) -> Result<ProcessConfig, ConfigError> {
        let blob_listen = check::address("blob_listen", self.blob_listen.as_deref().unwrap_or("127.0.0.1:7451"))?;
        let scheme = if common.tls.is_public() { "https" } else { "http" };
        let endpoint = self.public_blob_endpoint.clone().unwrap_or_else(|| format!("{scheme}://{blob_listen}"));
        let mut service = Config::new(&common.data_dir, check::url("public_blob_endpoint", &endpoint)?);
        service.store = common.store.clone();
        if let Some(place) = self.place(&service.store)? {
            service.objects = place;
        }
        if let Some(file) = &self.encryption_key_file {
            let keyring = Keyring::parse(&read("encryption_key_file", file)?)
                .map_err(|why| ConfigError::value("encryption_key_file", file.display(), why))?;
            service.encryption = Some(Arc::new(keyring));
        }
        service.durability = match self.durability.as_deref() {
            None | Some("power-loss") => Durability::PowerLoss,
            Some("relaxed") if matches!(service.store, StoreConfig::Sqlite(_)) => Durability::ProcessDeath,
            Some("relaxed") => {
                let why = "relaxed is for SQLite: what PostgreSQL flushes is a setting of its own";
                return Err(ConfigError::value("durability", "relaxed", why));
            }
            Some(other) => return Err(ConfigError::value("durability", other, "must be power-loss or relaxed")),
        };
        if let Some(on) = self.host_style {
            service.host_style = on;
        }
        if let Some(seconds) = self.collect_interval_seconds {
            service.collect_interval = check::seconds("collect_interval_seconds", seconds)?;
        }
        if let Some(seconds) = self.garbage_grace_seconds {
            service.garbage_grace = Duration::from_secs(seconds);
        }
        if let Some(seconds) = self.idle_timeout_seconds {
            service.idle_timeout = check::seconds("idle_timeout_seconds", seconds)?;
        }
        let which = self.copy_sources.as_deref().unwrap_or("public");
        let allowed = self.copy_sources_allowed.unwrap_or_default();
        service.copy_sources = CopySources::parse(which, &allowed).map_err(|wrong| {
            let key = if wrong == which { "copy_sources" } else { "copy_sources_allowed" };
            let why = if wrong == which {
                "must be public or none"
            } else {
                "must be networks (10.0.0.0/8), addresses, or names of hosts without port"
            };
            ConfigError::value(key, wrong, why)
        })?;
        Ok(ProcessConfig { service, blob_listen })
    }
}

impl RawConfig {
    /// Where the bytes are, if a setting says so.
    fn place(&self, store: &StoreConfig) -> Result<Option<ObjectsPlace>, ConfigError> {
        let sqlite = matches!(store, StoreConfig::Sqlite(_));
        let mut options = BTreeMap::new();
        for (name, value) in self.objects_options.iter().flatten() {
            options.insert(name.to_ascii_lowercase(), value.clone());
        }
        if let Some(file) = &self.objects_options_file {
            let more = parse_options(&read("objects_options_file", file)?)
                .map_err(|why| ConfigError::value("objects_options_file", file.display(), why))?;
            options.extend(more);
        }
        let shared = "is for replicas, which share their catalogue, too: set database_url";
        match (&self.objects, &self.objects_dir) {
            (Some(_), Some(dir)) => {
                Err(ConfigError::value("objects_dir", dir.display(), "cannot be given together with objects"))
            }
            (Some(url), None) => {
                let refused = |why: String| ConfigError::value("objects", url, why);
                let place = ObjectsPlace::parse(url, options).map_err(refused)?;
                match &place {
                    ObjectsPlace::Remote(remote) => drop(remote.open().map_err(refused)?),
                    ObjectsPlace::Memory if !sqlite => {
                        return Err(refused(
                            "memory is of one process: replicas would not find each other's blobs".into(),
                        ));
                    }
                    ObjectsPlace::Shared(_) if sqlite => return Err(refused(shared.into())),
                    _ => {}
                }
                Ok(Some(place))
            }
            (None, _) if !options.is_empty() => {
                let names = options.into_keys().collect::<Vec<_>>().join(", ");
                Err(ConfigError::value("objects_options", names, "means nothing without objects"))
            }
            (None, Some(dir)) if sqlite => Err(ConfigError::value("objects_dir", dir.display(), shared)),
            (None, dir) => Ok(dir.clone().map(ObjectsPlace::Shared)),
        }
    }
}

fn read(key: &'static str, file: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(file).map_err(|error| ConfigError::value(key, file.display(), error.to_string()))
}

#[cfg(test)]
mod tests {
    use kiln_service::Flags;

    use super::*;

    fn example() -> (Common, ProcessConfig) {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/storage-svc.toml");
        kiln_service::load::<RawConfig>(&Flags { config: Some(file), ..Flags::default() }).unwrap()
    }

    #[test]
    fn the_commented_example_gives_the_defaults() {
        let (common, config) = example();
        assert_eq!((common.listen.to_string().as_str(), config.blob_listen.port()), (RawConfig::LISTEN, 7451));
        let defaults = Config::new("/var/lib/kiln/storage", "http://127.0.0.1:7451");
        assert_eq!(format!("{:?}", config.service), format!("{defaults:?}"));
    }

    #[test]
    fn bad_values_name_their_key() {
        let (common, _) = example();
        for (raw, key) in [
            (RawConfig { blob_listen: Some("here".into()), ..RawConfig::default() }, "blob_listen"),
            (RawConfig { public_blob_endpoint: Some("7451".into()), ..RawConfig::default() }, "public_blob_endpoint"),
            (RawConfig { objects_dir: Some("/b".into()), ..RawConfig::default() }, "objects_dir"),
            (RawConfig { objects: Some("ftp://x".into()), ..RawConfig::default() }, "objects"),
            (RawConfig { objects: Some("file:///srv/b".into()), ..RawConfig::default() }, "database_url"),
            (
                RawConfig {
                    objects: Some("s3://b/p".into()),
                    objects_options: Some(BTreeMap::from([("colour".into(), "red".into())])),
                    ..RawConfig::default()
                },
                "colour",
            ),
            (RawConfig { objects_options_file: Some("/none".into()), ..RawConfig::default() }, "objects_options_file"),
            (RawConfig { encryption_key_file: Some("/none".into()), ..RawConfig::default() }, "encryption_key_file"),
            (RawConfig { durability: Some("some".into()), ..RawConfig::default() }, "durability"),
            (RawConfig { copy_sources: Some("all".into()), ..RawConfig::default() }, "copy_sources"),
            (
                RawConfig { copy_sources_allowed: Some(vec!["http://a".into()]), ..RawConfig::default() },
                "copy_sources_allowed",
            ),
            (RawConfig { idle_timeout_seconds: Some(0), ..RawConfig::default() }, "idle_timeout_seconds"),
        ] {
            let error = raw.validate(&common).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
