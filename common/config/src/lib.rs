//! Configuration: file, then environment, then flags; unknown keys refused.
//!
//! Each service has a `RawConfig` (serde, optional fields) that [`load`] fills
//! and the service turns into its validated `Config` before any port opens;
//! [`check`] has what many of them check.

pub mod check;

use std::path::{Path, PathBuf};

use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Map};
use figment::{Figment, Metadata, Profile, Provider};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why the configuration is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file was named but is not there.
    #[error("configuration file {0} does not exist")]
    FileMissing(PathBuf),
    /// A key is unknown, or a value has the wrong form; says which and where.
    #[error("configuration: {0}")]
    Invalid(Box<figment::Error>),
    /// A value is well-formed but cannot be used.
    #[error("configuration: {key} = {value:?}: {why}")]
    Value {
        /// Dotted name of the setting.
        key: &'static str,
        /// What it was set to.
        value: String,
        /// What is wrong with it.
        why: String,
    },
}

impl ConfigError {
    /// `key` was set to `value`, which cannot be used. Never pass a secret.
    pub fn value(key: &'static str, value: impl ToString, why: impl Into<String>) -> Self {
        Self::Value { key, value: value.to_string(), why: why.into() }
    }
}

/// Reads `file` (if one is named), then environment variables that begin with
/// `prefix` (`__` separates levels), then `flags`. `Raw` should deny unknown
/// fields.
///
/// # Errors
/// [`ConfigError`] names the key, the value and where it came from.
pub fn load<Raw, Flags>(file: Option<&Path>, prefix: &str, flags: &Flags) -> Result<Raw, ConfigError>
where
    Raw: DeserializeOwned,
    Flags: Serialize,
{
    load_some(file, prefix, flags, |_| true)
}

/// Like [`load`], in two parts: `A` is made of the top-level keys in `keys`,
/// `B` of all others.
///
/// # Errors
/// [`ConfigError`] names the key, the value and where it came from.
pub fn load_parts<A, B, Flags>(
    file: Option<&Path>,
    prefix: &str,
    flags: &Flags,
    keys: &[&str],
) -> Result<(A, B), ConfigError>
where
    A: DeserializeOwned,
    B: DeserializeOwned,
    Flags: Serialize,
{
    let first = load_some(file, prefix, flags, |key| keys.contains(&key))?;
    let second = load_some(file, prefix, flags, |key| !keys.contains(&key))?;
    Ok((first, second))
}

/// Like [`load`], of the top-level keys that `keep` wants. Whoever reads some
/// has to read all others elsewhere: none must pass unseen.
///
/// # Errors
/// [`ConfigError`] names the key, the value and where it came from.
pub fn load_some<Raw, Flags>(
    file: Option<&Path>,
    prefix: &str,
    flags: &Flags,
    keep: impl Fn(&str) -> bool + Copy,
) -> Result<Raw, ConfigError>
where
    Raw: DeserializeOwned,
    Flags: Serialize,
{
    let mut figment = Figment::new();
    if let Some(file) = file {
        if !file.is_file() {
            return Err(ConfigError::FileMissing(file.to_owned()));
        }
        figment = figment.merge(Part { of: Toml::file_exact(file), keep });
    }
    figment
        .merge(Part { of: Env::prefixed(prefix).split("__"), keep })
        .merge(Part { of: Serialized::defaults(flags), keep })
        .extract()
        .map_err(|error| ConfigError::Invalid(Box::new(error)))
}

/// Some of the top-level keys of a source; errors still name the source.
struct Part<P, K> {
    of: P,
    keep: K,
}

impl<P: Provider, K: Fn(&str) -> bool> Provider for Part<P, K> {
    fn metadata(&self) -> Metadata {
        self.of.metadata()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut data = self.of.data()?;
        for keys in data.values_mut() {
            keys.retain(|key, _| (self.keep)(key));
        }
        Ok(data)
    }

    fn profile(&self) -> Option<Profile> {
        self.of.profile()
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Raw {
        listen: Option<String>,
        limit: Option<u32>,
    }

    #[derive(Serialize)]
    struct Flags {
        #[serde(skip_serializing_if = "Option::is_none")]
        listen: Option<&'static str>,
    }

    #[test]
    fn flags_win_over_the_file_and_unknown_keys_are_refused() {
        let dir = std::env::temp_dir().join(format!("kiln-config-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("a.toml");
        std::fs::write(&file, "listen = \"1.1.1.1:1\"\nlimit = 3\n").unwrap();
        let raw: Raw = load(Some(&file), "KILN_TEST_NONE_", &Flags { listen: Some("2.2.2.2:2") }).unwrap();
        assert_eq!((raw.listen.as_deref(), raw.limit), (Some("2.2.2.2:2"), Some(3)));
        let raw: Raw = load(Some(&file), "KILN_TEST_NONE_", &Flags { listen: None }).unwrap();
        assert_eq!(raw.listen.as_deref(), Some("1.1.1.1:1"));
        std::fs::write(&file, "lisen = \"1.1.1.1:1\"\n").unwrap();
        let error = load::<Raw, _>(Some(&file), "KILN_TEST_NONE_", &Flags { listen: None }).unwrap_err();
        assert!(error.to_string().contains("lisen"), "{error}");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn two_parts_share_a_file_and_each_refuses_what_it_does_not_know() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Rest {
            depth: Option<u32>,
        }
        let file = std::env::temp_dir().join(format!("kiln-config-parts-{}.toml", std::process::id()));
        std::fs::write(&file, "listen = \"1.1.1.1:1\"\nlimit = 3\ndepth = 4\n").unwrap();
        let flags = Flags { listen: None };
        let parts = |keys| load_parts::<Raw, Rest, _>(Some(&file), "KILN_TEST_NONE_", &flags, keys);
        let (raw, rest) = parts(&["listen", "limit"]).unwrap();
        assert_eq!((raw.limit, rest.depth), (Some(3), Some(4)));
        let error = parts(&["listen"]).unwrap_err().to_string();
        assert!(error.contains("limit") && error.contains(".toml"), "{error}");
        std::fs::remove_file(&file).unwrap();
    }
}
