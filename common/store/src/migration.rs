//! Steps of a schema.

/// One step of the schema. Steps run in order, once, each in a transaction.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// 1, 2, 3, ...
    pub version: i64,
    /// Statements, separated by semicolons, in SQLite's words.
    pub sql: &'static str,
    /// The same for PostgreSQL, if [`dialect`](crate::sql) cannot make it of them.
    postgres: Option<&'static str>,
}

impl Migration {
    /// The step to `version`, in SQLite's words.
    pub const fn new(version: i64, sql: &'static str) -> Self {
        Self { version, sql, postgres: None }
    }

    /// With other statements for PostgreSQL. They, too, are translated.
    #[must_use]
    pub const fn with_postgres(self, sql: &'static str) -> Self {
        Self { postgres: Some(sql), ..self }
    }

    pub(crate) fn for_postgres(&self) -> &'static str {
        self.postgres.unwrap_or(self.sql)
    }
}
