//! What clients changed, for the replica that owns the pool. Only written where
//! there may be more than one.

use super::*;
use crate::store::leases::{Change, ChangeRow};

/// How long a change is kept. Whoever was away for longer has lost its pools,
/// and reads everything when it gets one.
const KEPT: std::time::Duration = std::time::Duration::from_secs(3600);

/// What this replica writes down.
#[derive(Debug, Clone)]
pub(super) struct Log(Option<Arc<str>>);

impl Log {
    /// Of this replica; `None` if there is no other.
    pub(super) fn new(replica: Option<Arc<str>>) -> Self {
        Self(replica)
    }

    /// Adds a change to the transaction that makes it.
    pub(super) fn add(
        &self,
        connection: &Connection,
        account: &AccountName,
        pool: Option<&PoolId>,
        change: &Change,
    ) -> Result<(), StoreError> {
        let Some(replica) = &self.0 else { return Ok(()) };
        let (kind, job, first, last, key): (i64, u64, u64, u64, &str) = match change {
            Change::Job(job) => (1, *job, 0, 0, ""),
            Change::Added { job, first, last } => (2, *job, *first, *last, ""),
            Change::Reactivated { job, row } => (3, *job, *row, *row, ""),
            Change::Constraints { job, row } => (4, *job, *row, *row, ""),
            Change::Deleted { job, row, key } => (5, *job, *row, *row, key),
        };
        connection
            .prepare_cached(
                "INSERT INTO changes (time, replica, account, pool_key, kind, job, first_task, last_task, task_key)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                Timestamp::now().as_micros(),
                &**replica,
                account.key(),
                pool.map(PoolId::key),
                kind,
                signed(job),
                signed(first),
                signed(last),
                key,
            ])?;
        Ok(())
    }

    /// A job was created or changed.
    pub(super) fn job(&self, connection: &Connection, row: &JobRow) -> Result<(), StoreError> {
        self.add(connection, &row.account, Some(&row.pool), &Change::Job(row.row))
    }
}

pub(super) fn last(connection: &Connection) -> Result<u64, StoreError> {
    let last: Option<i64> =
        connection.prepare_cached("SELECT max(id) FROM changes")?.query_row([], |row| row.get(0))?;
    Ok(unsigned(last.unwrap_or(0)))
}

pub(super) fn after(connection: &Connection, me: &str, after: u64, limit: u32) -> Result<Vec<ChangeRow>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT id, replica, account, pool_key, kind, job, first_task, last_task, task_key FROM changes
         WHERE id > ?1 ORDER BY id LIMIT ?2",
    )?;
    let mut rows = statement.query(params![signed(after), limit])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let (job, first, last) = (unsigned(row.get(5)?), unsigned(row.get(6)?), unsigned(row.get(7)?));
        let change = match row.get::<i64>(4)? {
            1 => Change::Job(job),
            2 => Change::Added { job, first, last },
            3 => Change::Reactivated { job, row: first },
            4 => Change::Constraints { job, row: first },
            5 => Change::Deleted { job, row: first, key: row.get(8)? },
            // A newer version of the service wrote it, and reads it.
            other => return Err(damaged(format!("a change is of the unknown kind {other}"))),
        };
        let pool = row.get::<Option<String>>(3)?;
        found.push(ChangeRow {
            id: unsigned(row.get(0)?),
            own: row.get::<String>(1)? == me,
            account: AccountName::parse(&row.get::<String>(2)?).map_err(damaged)?,
            pool: pool.map(|pool| PoolId::parse(&pool).map_err(damaged)).transpose()?,
            change,
        });
    }
    Ok(found)
}

/// Forgets what everybody has read.
pub(super) fn forget(connection: &Connection) -> Result<usize, StoreError> {
    let before = Timestamp::now().as_micros().saturating_sub(i64::try_from(KEPT.as_micros()).unwrap_or(i64::MAX));
    // Times do not go down with the ids but by clocks that differ; the newest
    // stays, so that numbers go on from it.
    let removed = connection
        .prepare_cached("DELETE FROM changes WHERE time < ?1 AND id < (SELECT max(id) FROM changes)")?
        .execute([before])?;
    Ok(removed)
}
