//! Where a store keeps its records.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::postgres::PostgresConfig;

/// The database of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreConfig {
    /// A SQLite file, for one process.
    Sqlite(PathBuf),
    /// A schema of a PostgreSQL database, for any number of processes.
    Postgres(Box<PostgresConfig>),
}

impl From<PathBuf> for StoreConfig {
    fn from(path: PathBuf) -> Self {
        Self::Sqlite(path)
    }
}

impl From<&PathBuf> for StoreConfig {
    fn from(path: &PathBuf) -> Self {
        Self::Sqlite(path.clone())
    }
}

impl From<&Path> for StoreConfig {
    fn from(path: &Path) -> Self {
        Self::Sqlite(path.to_owned())
    }
}

impl From<PostgresConfig> for StoreConfig {
    fn from(config: PostgresConfig) -> Self {
        Self::Postgres(Box::new(config))
    }
}

impl From<&StoreConfig> for StoreConfig {
    fn from(config: &StoreConfig) -> Self {
        config.clone()
    }
}

impl StoreConfig {
    /// Whether other processes may use it at the same time.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// What threads are named after.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Sqlite(path) => {
                path.file_stem().map_or_else(|| "store".to_owned(), |stem| stem.to_string_lossy().into_owned())
            }
            Self::Postgres(config) => config.schema().to_owned(),
        }
    }
}

impl fmt::Display for StoreConfig {
    /// For messages: without passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => path.display().fmt(f),
            Self::Postgres(config) => config.fmt(f),
        }
    }
}
