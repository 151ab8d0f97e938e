//! SQL for the stores of all services, whichever database is behind it.
//!
//! The stores are written once: functions over a [`Connection`], called inside
//! of a transaction, on a thread that may block. The interface is the part of
//! rusqlite's that they need, and with SQLite it costs nothing on top of that:
//! statements are prepared once, text and bytes are borrowed both ways.
//!
//! Statements are written in the SQL that both databases know, with parameters
//! `?1`, `?2`, ... What must differ between them is in `dialect.rs`. What a store
//! has to keep in mind:
//! - a failed statement ends the transaction; conflicts that are expected are
//!   told by `ON CONFLICT` and the number of rows, never by an error;
//! - ids that the database gives come back by `RETURNING`;
//! - `IS NULL` says nothing about a parameter's type: `CAST(?1 AS INTEGER)`;
//! - sums are `CAST(... AS INTEGER)`;
//! - a list that may be long has a `LIMIT`: PostgreSQL sends all there is, also
//!   when the reader stops half-way;
//! - many rows go in with a [`Batch`], and are looked up with
//!   [`Connection::each`]: one round trip instead of one for each row.

mod error;
mod rows;
mod transaction;
mod value;

use rusqlite::CachedStatement;

use crate::dialect;
use crate::postgres::{self, many};

pub use error::{Error, OptionalExtension};
pub use rows::{Mapped, Row, Rows};
pub use value::{FromValue, Params, ToValue, Value};

pub use crate::params;

/// A connection to the database, inside of a transaction.
#[derive(Debug)]
pub struct Connection(pub(crate) Engine);

#[derive(Debug)]
pub(crate) enum Engine {
    Sqlite(rusqlite::Connection),
    Postgres(Box<postgres::connection::Connection>),
}

/// A statement that is prepared once for each connection.
pub struct Statement<'c>(Prepared<'c>);

enum Prepared<'c> {
    Sqlite(CachedStatement<'c>),
    Postgres(&'c postgres::connection::Connection, tokio_postgres::Statement),
}

impl Connection {
    /// Prepares a statement, or takes the one that is prepared already.
    ///
    /// # Errors
    /// The database does not understand it.
    pub fn prepare_cached(&self, sql: &str) -> Result<Statement<'_>, Error> {
        Ok(Statement(match &self.0 {
            Engine::Sqlite(connection) => Prepared::Sqlite(connection.prepare_cached(sql)?),
            Engine::Postgres(connection) => Prepared::Postgres(connection, connection.prepare(sql)?),
        }))
    }

    /// Microseconds since the Unix epoch by the clock that all processes of the
    /// database share: the server's; with SQLite, which has one process, its own.
    /// The moment of the call, not that of the transaction's begin.
    ///
    /// # Errors
    /// The database does not answer.
    pub fn now_micros(&self) -> Result<i64, Error> {
        match &self.0 {
            Engine::Sqlite(_) => {
                let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                Ok(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
            }
            Engine::Postgres(_) => self.query_row(
                "SELECT CAST(floor(extract(epoch FROM clock_timestamp()) * 1000000) AS INTEGER)",
                [],
                |row| row.get(0),
            ),
        }
    }

    /// Runs a statement and returns how many rows it wrote.
    ///
    /// # Errors
    /// The database refuses.
    pub fn execute(&self, sql: &str, params: impl Params) -> Result<usize, Error> {
        self.prepare_cached(sql)?.execute(params)
    }

    /// The first row of what a statement finds.
    ///
    /// # Errors
    /// [`Error::NoRows`] if there is none; what the database or `read` says.
    pub fn query_row<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(Row<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.prepare_cached(sql)?.query_row(params, read)
    }

    /// Runs statements without parameters, separated by semicolons.
    ///
    /// # Errors
    /// The database refuses one; those after it are not run.
    pub fn execute_batch(&self, sql: &str) -> Result<(), Error> {
        match &self.0 {
            Engine::Sqlite(connection) => Ok(connection.execute_batch(sql)?),
            Engine::Postgres(connection) => connection.batch_execute(&dialect::statement(sql)),
        }
    }

    /// A statement that is run for many rows: `INSERT ... VALUES`, `UPDATE` or
    /// `DELETE`. The first `key` parameters say which row is meant, and the same
    /// may come again; 0 if no two are about the same.
    ///
    /// # Errors
    /// The statement cannot be used.
    pub fn batch(&self, sql: &str, key: usize) -> Result<Batch<'_>, Error> {
        Ok(Batch {
            inner: match &self.0 {
                Engine::Sqlite(connection) => Many::Sqlite(connection.prepare_cached(sql)?),
                Engine::Postgres(connection) => Many::Postgres(Box::new(many::Batch::new(connection, sql, key)?)),
            },
            added: 0,
            missed: Vec::new(),
        })
    }

    /// Runs a `SELECT` for each of `keys` and hands over what it finds, with the
    /// place of its key; in the order of the keys. It has no `LIMIT`.
    ///
    /// # Errors
    /// What the database or `found` says.
    pub fn each<P: Params, E: From<Error>>(
        &self,
        sql: &str,
        keys: impl IntoIterator<Item = P>,
        mut found: impl FnMut(usize, Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        match &self.0 {
            Engine::Sqlite(connection) => {
                let mut statement = connection.prepare_cached(sql).map_err(Error::from)?;
                for (at, key) in keys.into_iter().enumerate() {
                    bind(&mut statement, &key)?;
                    let mut rows = statement.raw_query();
                    while let Some(row) = rows.next().map_err(Error::from)? {
                        found(at, Row::sqlite(row))?;
                    }
                }
                Ok(())
            }
            Engine::Postgres(connection) => many::each(connection, sql, keys, |at, row| found(at, Row::postgres(row))),
        }
    }
}

impl Statement<'_> {
    /// Runs it and returns how many rows it wrote.
    ///
    /// # Errors
    /// The database refuses.
    pub fn execute(&mut self, params: impl Params) -> Result<usize, Error> {
        match &mut self.0 {
            Prepared::Sqlite(statement) => {
                bind(statement, &params)?;
                Ok(statement.raw_execute()?)
            }
            Prepared::Postgres(connection, statement) => connection.execute(statement, &params),
        }
    }

    /// The rows it finds.
    ///
    /// # Errors
    /// The database refuses.
    pub fn query(&mut self, params: impl Params) -> Result<Rows<'_>, Error> {
        match &mut self.0 {
            Prepared::Sqlite(statement) => {
                bind(statement, &params)?;
                Ok(Rows::sqlite(statement.raw_query()))
            }
            Prepared::Postgres(connection, statement) => Ok(Rows::postgres(connection.query(statement, &params)?)),
        }
    }

    /// The rows it finds, each as `read` makes it.
    ///
    /// # Errors
    /// The database refuses.
    pub fn query_map<T, F>(&mut self, params: impl Params, read: F) -> Result<Mapped<'_, F>, Error>
    where
        F: FnMut(Row<'_>) -> Result<T, Error>,
    {
        Ok(Mapped::new(self.query(params)?, read))
    }

    /// The first row it finds.
    ///
    /// # Errors
    /// [`Error::NoRows`] if there is none; what the database or `read` says.
    pub fn query_row<T>(
        &mut self,
        params: impl Params,
        read: impl FnOnce(Row<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.query(params)?.next()?.map_or(Err(Error::NoRows), read)
    }

    /// Whether it finds anything.
    ///
    /// # Errors
    /// The database refuses.
    pub fn exists(&mut self, params: impl Params) -> Result<bool, Error> {
        Ok(self.query(params)?.next()?.is_some())
    }
}

fn bind(statement: &mut rusqlite::Statement<'_>, params: &impl Params) -> Result<(), Error> {
    let count = params.count();
    let wanted = statement.parameter_count();
    if count != wanted {
        return Err(rusqlite::Error::InvalidParameterCount(count, wanted).into());
    }
    for at in 0..count {
        statement.raw_bind_parameter(at + 1, Bound(params.at(at)))?;
    }
    Ok(())
}

struct Bound<'v>(Value<'v>);

impl rusqlite::ToSql for Bound<'_> {
    #[inline]
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        use rusqlite::types::ValueRef;
        Ok(rusqlite::types::ToSqlOutput::Borrowed(match self.0 {
            Value::Null => ValueRef::Null,
            Value::Integer(number) => ValueRef::Integer(number),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// A statement for many rows. SQLite runs it for each as it is added; to
/// PostgreSQL they go together. Nothing is certain before [`Batch::finish`].
#[must_use = "rows of a batch that is not finished may be lost"]
pub struct Batch<'c> {
    inner: Many<'c>,
    added: usize,
    missed: Vec<usize>,
}

enum Many<'c> {
    Sqlite(CachedStatement<'c>),
    Postgres(Box<many::Batch<'c>>),
}

impl Batch<'_> {
    /// One more row.
    ///
    /// # Errors
    /// The database refuses.
    pub fn add(&mut self, params: impl Params) -> Result<(), Error> {
        match &mut self.inner {
            Many::Sqlite(statement) => {
                bind(statement, &params)?;
                if statement.raw_execute()? == 0 {
                    self.missed.push(self.added);
                }
            }
            Many::Postgres(batch) => batch.add(&params, &mut self.missed)?,
        }
        self.added += 1;
        Ok(())
    }

    /// Writes what is left. Returns the places (counted from 0) of the rows for
    /// which nothing was written, because of `ON CONFLICT DO NOTHING` or because
    /// no row was as the statement wants it.
    ///
    /// # Errors
    /// The database refuses.
    pub fn finish(mut self) -> Result<Vec<usize>, Error> {
        if let Many::Postgres(batch) = &mut self.inner {
            batch.send(&mut self.missed)?;
        }
        Ok(self.missed)
    }
}

#[cfg(test)]
mod tests;
