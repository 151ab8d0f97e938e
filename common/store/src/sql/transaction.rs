//! Transactions, as the writer and the readers of a database use them.

use std::sync::Arc;

use super::{Connection, Engine, Error};
use crate::error::StoreError;

impl Connection {
    /// Begins a transaction that writes.
    pub(crate) fn begin_write(&self) -> Result<(), Error> {
        match &self.0 {
            Engine::Sqlite(connection) => Ok(connection.execute_batch("BEGIN IMMEDIATE")?),
            Engine::Postgres(connection) => connection.begin(),
        }
    }

    /// Begins a transaction that sees one state of everything.
    pub(crate) fn begin_read(&self) -> Result<(), Error> {
        match &self.0 {
            Engine::Sqlite(connection) => Ok(connection.execute_batch("BEGIN")?),
            Engine::Postgres(connection) => connection.begin(),
        }
    }

    /// Ends a transaction that has read.
    pub(crate) fn end_read(&self) -> Result<(), Error> {
        match &self.0 {
            Engine::Sqlite(connection) => Ok(connection.execute_batch("COMMIT")?),
            Engine::Postgres(connection) => connection.roll_back(),
        }
    }

    /// From here on everything can be undone on its own.
    pub(crate) fn savepoint(&self) -> Result<(), Error> {
        match &self.0 {
            Engine::Sqlite(_) => self.execute("SAVEPOINT w", []).map(drop),
            Engine::Postgres(connection) => {
                connection.savepoint();
                Ok(())
            }
        }
    }

    /// Keeps what was done since the savepoint.
    pub(crate) fn release(&self) -> Result<(), Error> {
        match &self.0 {
            Engine::Sqlite(_) => self.execute("RELEASE w", []).map(drop),
            Engine::Postgres(connection) => {
                connection.release();
                Ok(())
            }
        }
    }

    /// Undoes what was done since the savepoint.
    pub(crate) fn roll_back_to(&self) -> Result<(), Error> {
        match &self.0 {
            Engine::Sqlite(connection) => Ok(connection.execute_batch("ROLLBACK TO w; RELEASE w")?),
            Engine::Postgres(connection) => {
                connection.roll_back_to();
                Ok(())
            }
        }
    }

    /// Makes everything durable, or nothing. The error says which, or that it
    /// is not known.
    pub(crate) fn commit(&self) -> Result<(), StoreError> {
        match &self.0 {
            Engine::Sqlite(connection) => connection.execute_batch("COMMIT").map_err(|error| {
                self.roll_back();
                StoreError::Commit(Arc::new(error.into()))
            }),
            Engine::Postgres(connection) => connection.commit(),
        }
    }

    /// Undoes everything.
    pub(crate) fn roll_back(&self) {
        let outcome = match &self.0 {
            Engine::Sqlite(connection) if connection.is_autocommit() => Ok(()),
            Engine::Sqlite(connection) => connection.execute_batch("ROLLBACK").map_err(Error::from),
            // Its end undoes it.
            Engine::Postgres(connection) if connection.lost() => Ok(()),
            Engine::Postgres(connection) => connection.roll_back(),
        };
        if let Err(error) = outcome {
            tracing::error!(%error, "a transaction could not be rolled back");
        }
    }

    /// Whether the database will not go on with the transaction, whatever the
    /// work that ran in it thinks of the matter.
    pub(crate) fn failed(&self) -> bool {
        match &self.0 {
            Engine::Sqlite(_) => false,
            Engine::Postgres(connection) => connection.failed(),
        }
    }

    /// Whether the connection is of no more use.
    pub(crate) fn lost(&self) -> bool {
        match &self.0 {
            Engine::Sqlite(_) => false,
            Engine::Postgres(connection) => connection.lost(),
        }
    }
}
