//! One connection, used by one thread at a time, which waits for each answer.
//!
//! The thread itself drives the connection while it waits, so an answer wakes
//! one thread and no other. Commands whose success says nothing (a savepoint)
//! wait in `pending` and travel with the next statement.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use tokio::runtime::Runtime;
use tokio_postgres::{Client, Row, Statement};

use super::config::PostgresConfig;
use super::connect::{Driver, connect, drive};
use super::lock_number;
use super::many::Prepared;
use super::wire::{Parameter, check};
use crate::dialect;
use crate::error::StoreError;
use crate::sql::{Error, Params};

/// Statements that are kept prepared. Stores have fewer.
const STATEMENTS: usize = 512;
/// The server gives up first; if it does not even say so, it is gone.
const GRACE: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct Connection {
    client: Client,
    driver: RefCell<Option<Driver>>,
    /// Only `None` while it is dropped.
    runtime: Option<Runtime>,
    statements: RefCell<HashMap<String, Statement>>,
    many: RefCell<HashMap<String, Arc<Prepared>>>,
    pending: RefCell<String>,
    /// A statement failed, so the transaction can only be undone.
    failed: Cell<bool>,
    lost: Cell<bool>,
    patience: Duration,
    begin: String,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("lost", &self.lost).finish_non_exhaustive()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Dropping it as usual would wait, which async threads must not.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Connection {
    /// Connects; blocks. `writes`: its transactions exclude those of others.
    pub(crate) fn open(config: &PostgresConfig, writes: bool) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::Unreachable(error.to_string()))?;
        let limit = config.server.get_connect_timeout().copied().unwrap_or(GRACE) + GRACE;
        let (client, driver) =
            runtime.block_on(async { tokio::time::timeout(limit, connect(config)).await }).map_err(|_| {
                Error::Unreachable(format!("PostgreSQL did not let the connection begin within {limit:?}"))
            })??;
        let begin = if writes {
            format!("BEGIN; SELECT pg_advisory_xact_lock({})", lock_number(&config.schema, "write"))
        } else {
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY".to_owned()
        };
        Ok(Self {
            client,
            driver: RefCell::new(Some(driver)),
            runtime: Some(runtime),
            statements: RefCell::default(),
            many: RefCell::default(),
            pending: RefCell::default(),
            failed: Cell::new(false),
            lost: Cell::new(false),
            patience: config.statement_timeout.max(config.lock_timeout) + GRACE,
            begin,
        })
    }

    /// Whether a statement failed, so that the transaction can only be undone.
    pub(crate) fn failed(&self) -> bool {
        self.failed.get()
    }

    /// Whether the connection cannot be used any more.
    pub(crate) fn lost(&self) -> bool {
        self.lost.get()
    }

    fn wait<T>(&self, work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Error> {
        let Some(runtime) = &self.runtime else { return Err(Error::Unreachable("the connection is closed".into())) };
        if self.lost.get() {
            return Err(Error::Unreachable("the connection was lost".into()));
        }
        let mut driver = self.driver.borrow_mut();
        let work = drive(&mut driver, work, |message| tracing::debug!(?message, "PostgreSQL says"));
        let done = runtime.block_on(async { tokio::time::timeout(self.patience, work).await });
        let error = match done {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => Error::from(error),
            Err(_) => Error::Unreachable(format!("PostgreSQL did not answer within {:?}", self.patience)),
        };
        self.failed.set(true);
        if error.ends_connection() {
            self.lost.set(true);
        }
        Err(error)
    }

    /// Waits for `work`; what is pending goes before it.
    fn run<T>(&self, work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Error> {
        let pending = self.pending.take();
        if pending.is_empty() {
            return self.wait(work);
        }
        self.wait(async {
            // Polled in this order, so sent in this order, with one flush.
            let (before, done) = futures::future::join(self.client.batch_execute(&pending), work).await;
            before.and(done)
        })
    }

    fn later(&self, command: &str) {
        let mut pending = self.pending.borrow_mut();
        if !pending.is_empty() {
            pending.push_str("; ");
        }
        pending.push_str(command);
    }

    // --- transactions

    /// Begins the kind of transaction that the connection is for.
    pub(crate) fn begin(&self) -> Result<(), Error> {
        self.failed.set(false);
        self.pending.borrow_mut().clear();
        self.wait(self.client.batch_execute(&self.begin))
    }

    pub(crate) fn savepoint(&self) {
        self.later("SAVEPOINT w");
    }

    pub(crate) fn release(&self) {
        self.later("RELEASE w");
    }

    pub(crate) fn roll_back_to(&self) {
        self.failed.set(false);
        self.later("ROLLBACK TO w; RELEASE w");
    }

    /// Ends a transaction that has written. If this fails, the error says
    /// whether it is certain that nothing was written.
    pub(crate) fn commit(&self) -> Result<(), StoreError> {
        if self.lost.get() || self.client.is_closed() {
            self.lost.set(true);
            return Err(StoreError::Unavailable(Error::Unreachable("the connection was lost".into()).into()));
        }
        self.later("COMMIT");
        let command = self.pending.take();
        self.wait(self.client.batch_execute(&command)).map_err(|error| {
            // The server answered, and lives: it has undone everything. Else
            // nobody can know whether it came to the commit.
            if error.ends_connection() { StoreError::InDoubt(error.into()) } else { StoreError::Commit(error.into()) }
        })
    }

    /// Ends a transaction without a trace, also one that only read.
    pub(crate) fn roll_back(&self) -> Result<(), Error> {
        self.pending.borrow_mut().clear();
        self.wait(self.client.batch_execute("ROLLBACK"))?;
        self.failed.set(false);
        Ok(())
    }

    // --- statements

    /// The statement as the server has it.
    pub(crate) fn prepare(&self, sql: &str) -> Result<Statement, Error> {
        if let Some(statement) = self.statements.borrow().get(sql) {
            return Ok(statement.clone());
        }
        let translated = dialect::statement(sql);
        let statement = self.run(self.client.prepare(&translated)).map_err(|error| error.of(sql))?;
        let mut statements = self.statements.borrow_mut();
        if statements.len() >= STATEMENTS {
            statements.clear();
        }
        statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// The statement for many rows.
    pub(super) fn prepare_many(&self, sql: &str) -> Result<Arc<Prepared>, Error> {
        if let Some(prepared) = self.many.borrow().get(sql) {
            return Ok(prepared.clone());
        }
        let one = self.prepare(sql)?;
        let types: Vec<&str> = one.params().iter().map(tokio_postgres::types::Type::name).collect();
        let many = dialect::Many::of(sql, &types).map_err(|why| Error::Statement(sql.to_owned(), why.to_owned()))?;
        let statement = self.run(self.client.prepare(&many.sql)).map_err(|error| error.of(&many.sql))?;
        let prepared = Arc::new(Prepared { statement, report: many.report, types: one.params().to_vec() });
        let mut kept = self.many.borrow_mut();
        if kept.len() >= STATEMENTS {
            kept.clear();
        }
        kept.insert(sql.to_owned(), prepared.clone());
        Ok(prepared)
    }

    pub(crate) fn execute(&self, statement: &Statement, params: &impl Params) -> Result<usize, Error> {
        let parameters = parameters(statement, params)?;
        let written = self.run(self.client.execute_raw(statement, parameters))?;
        Ok(usize::try_from(written).unwrap_or(usize::MAX))
    }

    pub(crate) fn query(&self, statement: &Statement, params: &impl Params) -> Result<Vec<Row>, Error> {
        let parameters = parameters(statement, params)?;
        self.run(async { self.client.query_raw(statement, parameters).await?.try_collect().await })
    }

    /// Runs a statement for many rows with one array for each parameter.
    pub(super) fn query_many(&self, statement: &Statement, arrays: &[super::wire::Column]) -> Result<Vec<Row>, Error> {
        self.run(async { self.client.query_raw(statement, arrays).await?.try_collect().await })
    }

    /// Statements without parameters.
    pub(crate) fn batch_execute(&self, sql: &str) -> Result<(), Error> {
        self.run(self.client.batch_execute(sql))
    }
}

fn parameters<'p>(statement: &Statement, params: &'p impl Params) -> Result<Vec<Parameter<'p>>, Error> {
    let types = statement.params();
    if types.len() != params.count() {
        let why = format!("{} parameters are given and {} needed", params.count(), types.len());
        return Err(Error::Type(why));
    }
    types
        .iter()
        .enumerate()
        .map(|(at, wanted)| {
            let value = params.at(at);
            check(value, wanted).map_err(|error| match error {
                Error::Type(why) => Error::Type(format!("parameter {}: {why}", at + 1)),
                other => other,
            })?;
            Ok(Parameter(value))
        })
        .collect()
}
