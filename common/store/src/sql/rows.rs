//! Rows that a query has found.

use std::fmt;

use super::{Error, FromValue, Value};
use crate::postgres::wire::Read;

/// Rows, one after the other.
pub struct Rows<'s>(Found<'s>);

enum Found<'s> {
    Sqlite(rusqlite::Rows<'s>),
    /// All of them, and how many were read.
    Postgres(Vec<tokio_postgres::Row>, usize),
}

impl fmt::Debug for Rows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rows")
    }
}

impl<'s> Rows<'s> {
    pub(super) fn sqlite(rows: rusqlite::Rows<'s>) -> Self {
        Self(Found::Sqlite(rows))
    }

    pub(super) fn postgres(rows: Vec<tokio_postgres::Row>) -> Self {
        Self(Found::Postgres(rows, 0))
    }

    /// The next one.
    ///
    /// # Errors
    /// The database fails.
    #[expect(clippy::should_implement_trait, reason = "a row borrows from the rows, which an iterator cannot say")]
    pub fn next(&mut self) -> Result<Option<Row<'_>>, Error> {
        match &mut self.0 {
            Found::Sqlite(rows) => Ok(rows.next()?.map(|row| Row(Source::Sqlite(row)))),
            Found::Postgres(rows, read) => {
                *read += 1;
                Ok(rows.get(*read - 1).map(Row::postgres))
            }
        }
    }
}

/// One row; its values are borrowed.
#[derive(Clone, Copy)]
pub struct Row<'r>(Source<'r>);

#[derive(Clone, Copy)]
enum Source<'r> {
    Sqlite(&'r rusqlite::Row<'r>),
    Postgres(&'r tokio_postgres::Row),
}

impl fmt::Debug for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Row")
    }
}

impl<'r> Row<'r> {
    pub(super) fn sqlite(row: &'r rusqlite::Row<'r>) -> Self {
        Self(Source::Sqlite(row))
    }

    pub(super) fn postgres(row: &'r tokio_postgres::Row) -> Self {
        Self(Source::Postgres(row))
    }

    /// The value of a column, counted from 0.
    ///
    /// # Errors
    /// [`Error::Type`] if it is of another type.
    #[inline]
    pub fn get<T: FromValue>(&self, at: usize) -> Result<T, Error> {
        T::from_value(self.get_ref(at)?).map_err(|error| match error {
            Error::Type(why) => Error::Type(format!("column {at}: {why}")),
            other => other,
        })
    }

    /// The value of a column, counted from 0, as it lies there.
    ///
    /// # Errors
    /// [`Error::Type`] if it is of a type that no store has.
    #[inline]
    pub fn get_ref(&self, at: usize) -> Result<Value<'r>, Error> {
        match self.0 {
            Source::Sqlite(row) => {
                use rusqlite::types::ValueRef;
                Ok(match row.get_ref(at)? {
                    ValueRef::Null => Value::Null,
                    ValueRef::Integer(number) => Value::Integer(number),
                    ValueRef::Text(text) => Value::Text(
                        std::str::from_utf8(text).map_err(|error| Error::Type(format!("column {at}: {error}")))?,
                    ),
                    ValueRef::Blob(bytes) => Value::Blob(bytes),
                    ValueRef::Real(_) => return Err(Error::Type(format!("column {at} is a real number"))),
                })
            }
            Source::Postgres(row) => row.try_get::<_, Read<'r>>(at).map(|read| read.0).map_err(|error| {
                let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
                Error::Type(format!("column {at}: {cause}"))
            }),
        }
    }
}

/// Rows that something is made of.
#[derive(Debug)]
pub struct Mapped<'s, F> {
    rows: Rows<'s>,
    read: F,
}

impl<'s, F> Mapped<'s, F> {
    pub(super) fn new(rows: Rows<'s>, read: F) -> Self {
        Self { rows, read }
    }
}

impl<T, F: FnMut(Row<'_>) -> Result<T, Error>> Iterator for Mapped<'_, F> {
    type Item = Result<T, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.rows.next() {
            Ok(row) => row.map(&mut self.read),
            Err(error) => Some(Err(error)),
        }
    }
}
