//! Why the store did not do it.

use std::sync::Arc;

use kiln_error::Kind;

use crate::sql;

/// Why the store did not do it. Nothing of a failed write is kept, but for
/// [`StoreError::InDoubt`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database refused a statement.
    #[error("database: {0}")]
    Database(Arc<sql::Error>),
    /// The group's commit failed (disk full, I/O error): the write did not happen.
    #[error("the transaction could not be committed: {0}")]
    Commit(Arc<sql::Error>),
    /// A stored value cannot be understood.
    #[error("stored data is damaged: {0}")]
    Damaged(String),
    /// A write panicked; it was rolled back.
    #[error("a write failed unexpectedly: {0}")]
    Panicked(String),
    /// The file was written by a newer Kiln.
    #[error("the database has schema version {found}; this program knows up to {known}")]
    TooNew {
        /// Version in the file.
        found: i64,
        /// Newest version this program has.
        known: i64,
    },
    /// A step of the schema was applied in another form than this program has.
    #[error("step {version} of the schema was applied in another form; the database belongs to another program")]
    OtherMigration {
        /// Its number.
        version: i64,
    },
    /// The database is away or busy. Nothing was written; the same may work later.
    #[error("the database is not available: {0}")]
    Unavailable(Arc<sql::Error>),
    /// The connection was lost during the commit: the write is kept or it is
    /// not, as a whole. Whoever repeats it with its request id is safe.
    #[error("the connection to the database was lost during the commit: {0}")]
    InDoubt(Arc<sql::Error>),
    /// The database is closing.
    #[error("the database is closed")]
    Closed,
}

impl From<sql::Error> for StoreError {
    fn from(error: sql::Error) -> Self {
        if error.passes() { Self::Unavailable(Arc::new(error)) } else { Self::Database(Arc::new(error)) }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        sql::Error::from(error).into()
    }
}

impl From<StoreError> for kiln_error::Error {
    /// What callers see: the cause is logged here, once, and not sent out.
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the store failed");
        match error {
            StoreError::Commit(_) | StoreError::Closed | StoreError::Unavailable(_) => {
                Self::unavailable("the store cannot work at the moment; nothing was changed")
            }
            StoreError::InDoubt(_) => Self::unavailable(
                "the store was lost while it wrote: the change was made or it was not; \
                 repeat the call with the same request id, or look",
            ),
            StoreError::Database(cause) if cause.is_unfit() => Self::new(
                Kind::InvalidArgument,
                "InvalidInput",
                "a name or text is too long for the database, or has the character NUL",
            ),
            _ => Self::internal("the store failed"),
        }
    }
}
