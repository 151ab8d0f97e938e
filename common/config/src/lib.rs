//! Configuration: file, then environment, then flags; unknown keys refused.
//!
//! Each service has a `RawConfig` (serde, optional fields) that [`load`] fills
//! and the service turns into its validated `Config` before any port opens.

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
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
    let mut figment = Figment::new();
    if let Some(file) = file {
        if !file.is_file() {
            return Err(ConfigError::FileMissing(file.to_owned()));
        }
        figment = figment.merge(Toml::file_exact(file));
    }
    figment
        .merge(Env::prefixed(prefix).split("__"))
        .merge(Serialized::defaults(flags))
        .extract()
        .map_err(|error| ConfigError::Invalid(Box::new(error)))
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
}
