//! Rows of one statement that travel together, as arrays.

use std::collections::HashSet;
use std::sync::Arc;

use tokio_postgres::types::Type;
use tokio_postgres::{Row, Statement};

use super::connection::Connection;
use super::wire::{Column, Read};
use crate::dialect::Report;
use crate::sql::{Error, Params, Value};

/// Rows and bytes that are sent at once.
const ROWS: usize = 8_192;
const BYTES: usize = 4 * 1024 * 1024;

/// A statement for many rows, as the server has it.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(super) statement: Statement,
    pub(super) report: Report,
    /// Of one row's parameters.
    pub(super) types: Vec<Type>,
}

/// See [`crate::sql::Batch`].
pub(crate) struct Batch<'c> {
    connection: &'c Connection,
    prepared: Arc<Prepared>,
    key: usize,
    /// Keys of the rows that wait. A statement may touch a row only once.
    keys: HashSet<Vec<u8>>,
    arrays: Arrays,
    /// First parameters of the rows that wait, if the statement reports by them.
    firsts: Vec<Vec<u8>>,
    /// Rows that were sent before.
    sent: usize,
}

/// The rows that wait to be sent.
struct Arrays {
    columns: Vec<Column>,
    rows: usize,
    bytes: usize,
}

impl Arrays {
    fn of(types: &[Type]) -> Self {
        Self { columns: types.iter().cloned().map(Column::new).collect(), rows: 0, bytes: 0 }
    }

    fn add(&mut self, params: &impl Params) -> Result<(), Error> {
        if params.count() != self.columns.len() {
            let why = format!("{} parameters are given and {} needed", params.count(), self.columns.len());
            return Err(Error::Type(why));
        }
        for (at, column) in self.columns.iter_mut().enumerate() {
            self.bytes += column.push(params.at(at))?;
        }
        self.rows += 1;
        Ok(())
    }

    fn full(&self) -> bool {
        self.rows >= ROWS || self.bytes >= BYTES
    }

    fn clear(&mut self) {
        self.columns.iter_mut().for_each(Column::clear);
        self.rows = 0;
        self.bytes = 0;
    }
}

impl<'c> Batch<'c> {
    pub(crate) fn new(connection: &'c Connection, sql: &str, key: usize) -> Result<Self, Error> {
        let prepared = connection.prepare_many(sql)?;
        let arrays = Arrays::of(&prepared.types);
        Ok(Self { connection, prepared, key, keys: HashSet::new(), arrays, firsts: Vec::new(), sent: 0 })
    }

    /// `missed` gets the places of rows for which nothing was written.
    pub(crate) fn add(&mut self, params: &impl Params, missed: &mut Vec<usize>) -> Result<(), Error> {
        let key = (self.key > 0).then(|| key_of(params, self.key));
        if self.arrays.full() || key.as_ref().is_some_and(|key| self.keys.contains(key)) {
            self.send(missed)?;
        }
        self.arrays.add(params)?;
        if self.prepared.report == Report::First {
            self.firsts.push(key_of(params, 1));
        }
        self.keys.extend(key);
        Ok(())
    }

    /// Sends what waits.
    pub(crate) fn send(&mut self, missed: &mut Vec<usize>) -> Result<(), Error> {
        let rows = std::mem::take(&mut self.arrays.rows);
        if rows == 0 {
            return Ok(());
        }
        let found = self.connection.query_many(&self.prepared.statement, &self.arrays.columns)?;
        match self.prepared.report {
            Report::Nothing => {}
            _ if found.len() == rows => {}
            Report::Place => {
                let place = |row: &Row| row.try_get::<_, Read<'_>>(0)?.0.as_i64();
                let places: HashSet<i64> = found.iter().map(place).collect::<Result<_, _>>()?;
                missed.extend(
                    (1_i64..).zip(self.sent..self.sent + rows).filter(|(o, _)| !places.contains(o)).map(|(_, at)| at),
                );
            }
            Report::First => {
                let first = |row: &Row| Ok::<_, Error>(key_of(&[row.try_get::<_, Read<'_>>(0)?.0], 1));
                let firsts: HashSet<Vec<u8>> = found.iter().map(first).collect::<Result<_, _>>()?;
                missed.extend(
                    self.firsts.iter().zip(self.sent..).filter(|(first, _)| !firsts.contains(*first)).map(|(_, at)| at),
                );
            }
        }
        self.sent += rows;
        self.arrays.clear();
        self.firsts.clear();
        self.keys.clear();
        Ok(())
    }
}

/// The first `count` parameters, so that no two keys look alike.
fn key_of(params: &impl Params, count: usize) -> Vec<u8> {
    let mut key = Vec::with_capacity(count * 9);
    for at in 0..count.min(params.count()) {
        let (kind, bytes): (u8, &[u8]) = match params.at(at) {
            Value::Null => (0, &[]),
            Value::Integer(number) => {
                key.push(1);
                key.extend_from_slice(&number.to_be_bytes());
                continue;
            }
            Value::Text(text) => (2, text.as_bytes()),
            Value::Blob(bytes) => (3, bytes),
        };
        key.push(kind);
        key.extend_from_slice(&bytes.len().to_be_bytes());
        key.extend_from_slice(bytes);
    }
    key
}

/// See [`crate::sql::Connection::each`].
pub(crate) fn each<P: Params, E: From<Error>>(
    connection: &Connection,
    sql: &str,
    keys: impl IntoIterator<Item = P>,
    mut found: impl FnMut(usize, &tokio_postgres::Row) -> Result<(), E>,
) -> Result<(), E> {
    let prepared = connection.prepare_many(sql)?;
    if prepared.report != Report::Place {
        return Err(Error::Statement(sql.to_owned(), "it is no SELECT".to_owned()).into());
    }
    let mut arrays = Arrays::of(&prepared.types);
    let mut sent = 0;
    let mut send = |arrays: &mut Arrays| -> Result<(), E> {
        if arrays.rows == 0 {
            return Ok(());
        }
        for row in connection.query_many(&prepared.statement, &arrays.columns)? {
            let place = row.try_get::<_, Read<'_>>(row.len() - 1).map_err(Error::from)?.0.as_i64()?;
            let place = usize::try_from(place - 1).map_err(|error| Error::Type(error.to_string()))?;
            found(sent + place, &row)?;
        }
        sent += arrays.rows;
        arrays.clear();
        Ok(())
    };
    for key in keys {
        if arrays.full() {
            send(&mut arrays)?;
        }
        arrays.add(&key)?;
    }
    send(&mut arrays)
}
