//! Empty databases for tests: of each kind one, gone when the test is over.
//!
//! PostgreSQL is at `KILN_TEST_POSTGRES` (a URL), else on this machine. Every
//! database is a schema of its own.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::config::StoreConfig;
use crate::postgres::PostgresConfig;
use crate::postgres::connection::Connection;
use crate::{Database, Durability, Migration, StoreError, sql};

/// Where tests look for PostgreSQL, unless told otherwise.
const HERE: &str = "postgres://postgres@127.0.0.1:5432/postgres";

/// A database that nobody else uses.
#[derive(Debug)]
pub struct TestStore {
    config: StoreConfig,
    dir: Option<TempDir>,
}

impl TestStore {
    /// A SQLite file.
    ///
    /// # Panics
    /// If there is no place for it.
    pub fn sqlite() -> Self {
        let dir = TempDir::new().expect("a directory for a test");
        Self { config: StoreConfig::Sqlite(dir.path().join("test.db")), dir: Some(dir) }
    }

    /// A schema of PostgreSQL, which is made when a database is opened in it.
    ///
    /// # Panics
    /// If `KILN_TEST_POSTGRES` is no URL of a server.
    pub fn postgres() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let url = Self::url();
        let schema = format!("test_{}_{}", uuid::Uuid::new_v4().simple(), COUNT.fetch_add(1, Ordering::Relaxed));
        let config = PostgresConfig::new(&url, &schema[..schema.len().min(60)])
            .and_then(|config| config.with_connections(4))
            .unwrap_or_else(|error| panic!("KILN_TEST_POSTGRES {error}"));
        Self { config: config.into(), dir: None }
    }

    /// One of each kind.
    pub fn each() -> [Self; 2] {
        [Self::sqlite(), Self::postgres()]
    }

    /// Where PostgreSQL is.
    pub fn url() -> String {
        std::env::var("KILN_TEST_POSTGRES").unwrap_or_else(|_| HERE.to_owned())
    }

    /// Which schema of PostgreSQL it is.
    ///
    /// # Panics
    /// If it is a SQLite file.
    pub fn postgres_config(&self) -> &PostgresConfig {
        match &self.config {
            StoreConfig::Postgres(config) => config,
            StoreConfig::Sqlite(_) => panic!("{} is no PostgreSQL", self.config),
        }
    }

    /// To open it.
    pub fn config(&self) -> &StoreConfig {
        &self.config
    }

    /// The directory of the SQLite file.
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_ref().map(TempDir::path)
    }

    /// Runs `sql` beside everything else, in the schema.
    ///
    /// # Panics
    /// If it is no PostgreSQL, or refuses.
    pub fn run_beside(&self, sql: &str) {
        let (config, sql) = (self.postgres_config().clone(), sql.to_owned());
        let done = std::thread::spawn(move || {
            Connection::open(&config, false).and_then(|connection| connection.batch_execute(&sql))
        });
        match done.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => panic!("these tests need PostgreSQL (set KILN_TEST_POSTGRES): {error}"),
            Err(_) => panic!("the thread for PostgreSQL ended"),
        }
    }
}

impl Drop for TestStore {
    fn drop(&mut self) {
        if let StoreConfig::Postgres(config) = &self.config
            && !std::thread::panicking()
        {
            self.run_beside(&format!("DROP SCHEMA IF EXISTS \"{}\" CASCADE", config.schema()));
        }
    }
}

/// Checks the steps of a schema on PostgreSQL: whoever comes from an earlier
/// version has in the end the same tables, columns and indexes as whoever begins
/// with the newest.
///
/// # Panics
/// If a step cannot be applied or leads elsewhere.
pub async fn check_migrations(migrations: &'static [Migration]) {
    let fresh = catalogue(&[migrations]).await;
    assert!(fresh.lines().count() > migrations.len(), "the catalogue is empty:\n{fresh}");
    for known in 0..migrations.len() {
        let upgraded = catalogue(&[&migrations[..known], migrations]).await;
        assert_eq!(fresh, upgraded, "the schema differs after an upgrade from version {known}");
    }
}

/// What a schema holds after these lists of steps were applied, one line each.
async fn catalogue(lists: &[&'static [Migration]]) -> String {
    let store = TestStore::postgres();
    let mut found = Vec::new();
    for migrations in lists {
        let database = Database::open(store.config(), Durability::PowerLoss, migrations).await.expect("a schema");
        found = database.read::<_, StoreError, _>(lines).await.expect("a catalogue");
    }
    found.join("\n").replace(store.postgres_config().schema(), "schema")
}

fn lines(connection: &sql::Connection) -> Result<Vec<String>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT CAST(format('%s.%s %s %s default %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
                 concat_ws(' ', CASE WHEN a.attnotnull THEN 'not null' END, a.attidentity, l.collname),
                 pg_get_expr(d.adbin, d.adrelid)) AS VARCHAR) AS line
         FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
         LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
         LEFT JOIN pg_collation l ON l.oid = a.attcollation
         WHERE c.relnamespace = CAST(current_schema() AS regnamespace) AND c.relkind = 'r' AND a.attnum > 0
         AND NOT a.attisdropped
         UNION ALL SELECT CAST(indexdef AS VARCHAR) FROM pg_indexes WHERE schemaname = current_schema()
         UNION ALL SELECT CAST(format('%s: %s', CAST(conrelid AS regclass), pg_get_constraintdef(oid)) AS VARCHAR)
         FROM pg_constraint WHERE connamespace = CAST(current_schema() AS regnamespace)
         ORDER BY line",
    )?;
    let rows = statement.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
