//! The schema of a service, brought up to date.
//!
//! All of it happens in one transaction under a lock, so that of several
//! replicas that start together one does it and the others find it done. What
//! was applied is in `kiln_migrations`, with a checksum: an applied step that
//! reads differently today means that database and program do not belong together.

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::config::PostgresConfig;
use super::connection::Connection;
use super::lock_number;
use super::wire::Read;
use crate::dialect;
use crate::error::StoreError;
use crate::migration::Migration;
use crate::sql::{Error, Value};

/// One replica may wait for another that migrates.
const PATIENCE: Duration = Duration::from_secs(600);

/// Makes the schema if it is not there and applies what is missing; blocks.
pub(crate) fn migrate(config: &PostgresConfig, migrations: &[Migration]) -> Result<(), StoreError> {
    let patient = config.clone().with_timeouts(PATIENCE, PATIENCE);
    let connection = Connection::open(&patient, true)?;
    connection
        .batch_execute(&format!("BEGIN; SELECT pg_advisory_xact_lock({})", lock_number(&config.schema, "migrate")))?;
    // On an error the connection ends and with it the transaction.
    apply(&connection, &config.schema, migrations)?;
    connection.commit()
}

fn apply(connection: &Connection, schema: &str, migrations: &[Migration]) -> Result<(), StoreError> {
    // Asked first: making it needs a right that its owner may have taken back.
    let there = connection.prepare("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = ?1")?;
    if connection.query(&there, &[Value::Text(schema)])?.is_empty() {
        connection.batch_execute(&format!("CREATE SCHEMA \"{schema}\""))?;
    }
    connection.batch_execute(
        "CREATE TABLE IF NOT EXISTS kiln_migrations (version BIGINT PRIMARY KEY, checksum TEXT NOT NULL,
         applied TIMESTAMPTZ NOT NULL DEFAULT now())",
    )?;
    let applied = applied(connection)?;
    let known = migrations.last().map_or(0, |migration| migration.version);
    if let Some((found, _)) = applied.last().filter(|(version, _)| *version > known) {
        return Err(StoreError::TooNew { found: *found, known });
    }
    for migration in migrations {
        let sql = migration.for_postgres();
        let sum = checksum(sql);
        match applied.iter().find(|(version, _)| *version == migration.version) {
            Some((_, found)) if *found == sum => {}
            Some(_) => return Err(StoreError::OtherMigration { version: migration.version }),
            None => {
                connection.batch_execute(&dialect::schema(sql)).map_err(|error| error.of(sql))?;
                let note = connection.prepare("INSERT INTO kiln_migrations (version, checksum) VALUES (?1, ?2)")?;
                connection.execute(&note, &[Value::Integer(migration.version), Value::Text(&sum)])?;
                tracing::info!(schema, version = migration.version, "the schema was brought up to date");
            }
        }
    }
    Ok(())
}

fn applied(connection: &Connection) -> Result<Vec<(i64, String)>, StoreError> {
    let statement = connection.prepare("SELECT version, checksum FROM kiln_migrations ORDER BY version")?;
    let no_parameters: [&dyn crate::sql::ToValue; 0] = [];
    let rows = connection.query(&statement, &no_parameters)?;
    let read = |row: &tokio_postgres::Row| {
        let version = row.try_get::<_, Read<'_>>(0)?.0.as_i64()?;
        let checksum = row.try_get::<_, Read<'_>>(1)?.0.as_str()?.to_owned();
        Ok::<_, Error>((version, checksum))
    };
    Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
}

/// Of the statements, not of how they are laid out or commented.
fn checksum(sql: &str) -> String {
    Sha256::digest(dialect::schema(sql).trim()).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
