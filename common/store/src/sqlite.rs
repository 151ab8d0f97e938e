//! A SQLite file: how it is opened, kept private, and brought up to date.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::checkpoint::Checkpoints;
use crate::database::Durability;
use crate::error::StoreError;
use crate::migration::Migration;
use crate::sql::{self, Engine};

/// Reads at once.
pub(crate) const READERS: usize = 4;
/// How long to wait for the file's lock, which only another process could hold.
const BUSY_TIMEOUT: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(5) };

/// The writing connection, its schema up to date.
pub(crate) fn open(
    path: &Path,
    durability: Durability,
    migrations: &[Migration],
) -> Result<(sql::Connection, Checkpoints), StoreError> {
    keep_private(path)
        .map_err(|error| StoreError::Damaged(format!("{} cannot be kept private: {error}", path.display())))?;
    let mut connection = Connection::open(path)?;
    configure(&connection)?;
    let synchronous = match durability {
        Durability::PowerLoss => "FULL",
        Durability::ProcessDeath => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    migrate(&mut connection, migrations)?;
    let name = path.file_stem().map_or_else(|| "store".into(), |stem| stem.to_string_lossy());
    let copier = Connection::open(path)?;
    configure(&copier)?;
    copier.pragma_update(None, "synchronous", synchronous)?;
    let checkpoints = Checkpoints::start(&name, copier).map_err(no_thread)?;
    Ok((sql::Connection(Engine::Sqlite(connection)), checkpoints))
}

pub(crate) fn no_thread(error: std::io::Error) -> StoreError {
    StoreError::Damaged(format!("no thread for the database: {error}"))
}

/// A connection that only reads.
pub(crate) fn open_reader(path: &Path) -> Result<sql::Connection, StoreError> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(sql::Connection(Engine::Sqlite(connection)))
}

/// Specifications, keys and signatures are in the file: nobody but its owner may
/// read it. It is made before SQLite does, which gives its side files the same
/// mode; those of an older Kiln may be open to all.
fn keep_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let file = PathBuf::from(name);
        match std::fs::metadata(&file) {
            Ok(found) if found.permissions().mode() & 0o077 != 0 => {
                std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn configure(connection: &Connection) -> Result<(), StoreError> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cache_size", -16_000)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.set_prepared_statement_cache_capacity(128);
    Ok(())
}

fn migrate(connection: &mut Connection, migrations: &[Migration]) -> Result<(), StoreError> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = migrations.last().map_or(0, |migration| migration.version);
    if found > known {
        return Err(StoreError::TooNew { found, known });
    }
    for migration in migrations.iter().filter(|migration| migration.version > found) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(migration.sql)?;
        transaction.pragma_update(None, "user_version", migration.version)?;
        transaction.commit()?;
    }
    Ok(())
}
