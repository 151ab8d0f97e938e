//! Why a statement did not do what it should.

use std::fmt;

use tokio_postgres::error::{Severity, SqlState};

/// What went wrong with a statement. After any of these but [`Error::NoRows`],
/// [`Error::Type`] and [`Error::Nul`] the transaction is over: the work must
/// return, and all that it did is undone. (SQLite could go on, PostgreSQL cannot.)
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SQLite refused.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// PostgreSQL refused, or the connection broke.
    #[error("{}", Told(.0))]
    Postgres(Box<tokio_postgres::Error>),
    /// PostgreSQL could not be reached, or does not answer.
    #[error("{0}")]
    Unreachable(String),
    /// Exactly one row was wanted and there is none.
    #[error("no row was found")]
    NoRows,
    /// A value is not what the caller wants to read, or cannot be stored.
    #[error("{0}")]
    Type(String),
    /// PostgreSQL's texts cannot have this character.
    #[error("a text has the character NUL, which cannot be stored")]
    Nul,
    /// The statement itself cannot be used: a mistake in the program.
    #[error("the statement {0:?} cannot be used: {1}")]
    Statement(String, String),
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(Box::new(error))
    }
}

impl Error {
    /// With the statement, if it is one that PostgreSQL does not understand.
    pub(crate) fn of(self, sql: &str) -> Self {
        match &self {
            Self::Postgres(error) if error.as_db_error().is_some() => {
                let is_mistake = error.code().is_some_and(|code| code.code().starts_with("42"));
                if is_mistake { Self::Statement(sql.to_owned(), self.to_string()) } else { self }
            }
            _ => self,
        }
    }

    /// Whether the connection is of no more use.
    pub(crate) fn ends_connection(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Postgres(error) => match error.as_db_error() {
                // The server said so before it closed it.
                Some(told) => matches!(told.parsed_severity(), Some(Severity::Fatal | Severity::Panic)),
                None => true,
            },
            _ => false,
        }
    }

    /// Whether a value that the caller gave is one that cannot be stored.
    pub fn is_unfit(&self) -> bool {
        match self {
            Self::Nul => true,
            // Longer than an entry of an index may be.
            Self::Postgres(error) => error.code() == Some(&SqlState::PROGRAM_LIMIT_EXCEEDED),
            _ => false,
        }
    }

    /// Whether it may go better at another time, with the same data: the server
    /// is away, busy, or gave up because of others.
    pub(crate) fn passes(&self) -> bool {
        let Self::Postgres(error) = self else { return self.ends_connection() };
        let of_class = |code: &SqlState| {
            // Connections; lack of resources; operators and timeouts; locks.
            ["08", "53", "57"].iter().any(|class| code.code().starts_with(class))
                || [
                    SqlState::T_R_SERIALIZATION_FAILURE,
                    SqlState::T_R_DEADLOCK_DETECTED,
                    SqlState::LOCK_NOT_AVAILABLE,
                    SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
                    SqlState::READ_ONLY_SQL_TRANSACTION,
                ]
                .contains(code)
        };
        self.ends_connection() || error.code().is_some_and(of_class)
    }
}

/// What PostgreSQL said, without the values it may quote.
struct Told<'e>(&'e tokio_postgres::Error);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_db_error() {
            Some(told) => write!(f, "{} ({})", told.message(), told.code().code()),
            None => {
                self.0.fmt(f)?;
                let mut cause = std::error::Error::source(self.0);
                while let Some(error) = cause {
                    write!(f, ": {error}")?;
                    cause = error.source();
                }
                Ok(())
            }
        }
    }
}

/// Turns "no row" into `None`.
pub trait OptionalExtension<T> {
    /// `None` if there was no row.
    ///
    /// # Errors
    /// Every other error.
    fn optional(self) -> Result<Option<T>, Error>;
}

impl<T> OptionalExtension<T> for Result<T, Error> {
    fn optional(self) -> Result<Option<T>, Error> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(Error::NoRows) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
