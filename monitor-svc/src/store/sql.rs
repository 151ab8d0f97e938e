//! [`Store`] in SQL, whichever database is behind it. [`append`] is how events come into it.

mod append;

use std::sync::Arc;

use async_trait::async_trait;
use kiln_store::sql::{Connection, Row, params};
use kiln_store::{Database, Durability, Migration, StoreConfig, StoreError};

use super::{Appended, Filter, Gap, Keep, Listed, LogState, Pruned, Store, TaskEvents, retention};
use crate::domain::counts::{Changes, Counters, Span, WIDTHS};
use crate::domain::fact::{Fact, Logged};

const MIGRATIONS: &[Migration] = &[
    Migration::new(
        1,
        concat!(include_str!("schema.sql"), "INSERT INTO log VALUES (1, lower(hex(randomblob(6))), 0, 0);"),
    )
    .with_postgres(concat!(
        include_str!("schema.sql"),
        "INSERT INTO log VALUES (1, substr(replace(CAST(gen_random_uuid() AS VARCHAR), '-', ''), 1, 12), 0, 0);"
    )),
    Migration::new(2, include_str!("runs.sql")).with_postgres(include_str!("runs.postgres.sql")),
];

/// A prefix with at most this many events is read by subject and sorted; one
/// with more is common enough to be found by reading the log.
const FEW: i64 = 5_000;
/// Events of the log that one page of a list looks at.
const LIST_SCAN: i64 = 20_000;
/// Events one page of timelines reads, and those of one task that it keeps.
const TASK_SCAN: usize = 50_000;
const TASK_EVENTS: usize = 2_000;
/// Rows that one statement gives when nobody knows how many will be needed.
const PAGE: i64 = 1_000;
/// Sorts behind everything that begins with the text before it.
const LAST: char = '\u{10FFFF}';

/// The event log in a file.
#[derive(Debug, Clone)]
pub struct SqlStore {
    database: Database,
}

impl SqlStore {
    /// Opens or makes the database. What was acknowledged to the bus exists nowhere
    /// else any more, so commits survive power loss.
    ///
    /// # Errors
    /// [`StoreError`] if the file cannot be used.
    pub async fn open(config: impl Into<StoreConfig>) -> Result<Self, StoreError> {
        Ok(Self { database: Database::open(config, Durability::PowerLoss, MIGRATIONS).await? })
    }

    /// Tells of commits of other replicas.
    pub fn database(&self) -> &Database {
        &self.database
    }
}

#[async_trait]
impl Store for SqlStore {
    async fn append(&self, facts: Arc<Vec<Fact>>, now_micros: i64) -> Result<Appended, StoreError> {
        self.database.write(move |connection| append::append(connection, &facts, now_micros)).await
    }

    async fn log(&self) -> Result<LogState, StoreError> {
        self.database
            .read(|connection| {
                let (id, events, floor, last) =
                    connection
                        .prepare_cached("SELECT id, events, floor, last FROM log")?
                        .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
                Ok(LogState { id, events, floor, last })
            })
            .await
    }

    async fn topic(&self, account: &str, topic: &str, after: i64, limit: u32) -> Result<Vec<Logged>, StoreError> {
        let (account, topic) = (account.to_owned(), topic.to_owned());
        self.database.read(move |connection| topic_page(connection, &account, &topic, after, limit)).await
    }

    async fn list(&self, account: &str, filter: Filter, after: i64, limit: u32) -> Result<Listed, StoreError> {
        let account = account.to_owned();
        self.database.read(move |connection| list(connection, &account, &filter, after, limit)).await
    }

    async fn last_of(&self, account: &str, subject: &str, types: &[&str]) -> Result<Option<Logged>, StoreError> {
        let (account, subject) = (account.to_owned(), subject.to_owned());
        let types: Vec<String> = types.iter().map(|text| (*text).to_owned()).collect();
        self.database
            .read(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT position, sequence, subject, type, event FROM events
                     WHERE account = ?1 AND subject = ?2 AND position < ?3 ORDER BY position DESC LIMIT ?4",
                )?;
                let mut before = i64::MAX;
                loop {
                    let page = collect(statement.query_map(params![account, subject, before, PAGE], logged)?)?;
                    let last = page.last().map(|event| event.position);
                    let wanted = |event: &Logged| types.is_empty() || types.contains(&event.event_type);
                    match (page.into_iter().find(wanted), last) {
                        (Some(event), _) => return Ok(Some(event)),
                        (None, Some(last)) => before = last,
                        (None, None) => return Ok(None),
                    }
                }
            })
            .await
    }

    async fn tasks(
        &self,
        account: &str,
        job: &str,
        after_task: Option<String>,
        limit: u32,
    ) -> Result<TaskEvents, StoreError> {
        let (account, prefix) = (account.to_owned(), format!("jobs/{job}/tasks/"));
        self.database.read(move |connection| tasks(connection, &account, &prefix, after_task, limit)).await
    }

    async fn changes(
        &self,
        account: &str,
        scope: &str,
        span: Span,
        since_micros: Option<i64>,
    ) -> Result<Changes, StoreError> {
        let (account, scope) = (account.to_owned(), scope.to_owned());
        self.database
            .read(move |connection| {
                let since = since_micros.map_or(0, |micros| micros.div_euclid(1_000_000));
                let (first, last) = span.buckets();
                let birth = since.div_euclid(span.width);
                let mut changes = Changes::default();
                // The bucket in which everything began may hold older changes:
                // of that one only what came later, second by second.
                let from = if first <= birth {
                    let end = (birth + 1).saturating_mul(span.width);
                    let partial = sum(connection, &account, &scope, since, end)?;
                    changes.buckets.extend(partial.into_iter().map(|(counter, delta)| (birth, counter, delta)));
                    birth + 1
                } else {
                    changes.before = sum(connection, &account, &scope, since, first.saturating_mul(span.width))?;
                    first
                };
                let mut statement = connection.prepare_cached(
                    "SELECT bucket, counter, delta FROM counters
                     WHERE account = ?1 AND scope = ?2 AND width = ?3 AND bucket BETWEEN ?4 AND ?5
                     ORDER BY bucket",
                )?;
                let rows = statement.query_map(params![account, scope, span.width, from, last], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })?;
                changes.buckets.extend(collect(rows)?);
                Ok(changes)
            })
            .await
    }

    async fn first_change(&self, account: &str, scope: &str) -> Result<Option<i64>, StoreError> {
        let (account, scope) = (account.to_owned(), scope.to_owned());
        self.database
            .read(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT min(bucket) FROM counters WHERE account = ?1 AND scope = ?2 AND width = ?3",
                )?;
                for width in WIDTHS {
                    let first: Option<i64> = statement.query_row(params![account, scope, width], |row| row.get(0))?;
                    if let Some(bucket) = first {
                        return Ok(Some(bucket.saturating_mul(width).saturating_mul(1_000_000)));
                    }
                }
                Ok(None)
            })
            .await
    }

    async fn gaps(&self) -> Result<Vec<Gap>, StoreError> {
        self.database
            .read(|connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT name, contiguous + 1, newest, gap_since FROM sources WHERE gap_since IS NOT NULL",
                )?;
                let rows = statement.query_map([], |row| {
                    Ok(Gap {
                        source: row.get(0)?,
                        first_missing: row.get(1)?,
                        newest: row.get(2)?,
                        since_micros: row.get(3)?,
                    })
                })?;
                collect(rows)
            })
            .await
    }

    async fn accept_gaps(&self, before_micros: i64) -> Result<usize, StoreError> {
        self.database
            .write(move |connection| {
                // Later ones of the same source are found at its next event.
                Ok(connection
                    .prepare_cached("UPDATE sources SET contiguous = newest, gap_since = NULL WHERE gap_since < ?1")?
                    .execute([before_micros])?)
            })
            .await
    }

    async fn prune(&self, keep: Keep) -> Result<Pruned, StoreError> {
        self.database.write(move |connection| retention::prune(connection, keep)).await
    }
}

/// Events of a topic, run by run. Events of other topics may lie in a run.
fn topic_page(
    connection: &Connection,
    account: &str,
    topic: &str,
    after: i64,
    limit: u32,
) -> Result<Vec<Logged>, StoreError> {
    let mut begin: i64 = connection
        .prepare_cached("SELECT coalesce(max(first), 0) FROM runs WHERE account = ?1 AND topic = ?2 AND first <= ?3")?
        .query_row(params![account, topic, after], |row| row.get(0))?;
    let mut runs = connection.prepare_cached(
        "SELECT first, last FROM runs WHERE account = ?1 AND topic = ?2 AND first >= ?3 ORDER BY first LIMIT ?4",
    )?;
    let mut statement = connection.prepare_cached(
        "SELECT position, sequence, subject, type, event FROM events NOT INDEXED
         WHERE position BETWEEN ?1 AND ?2 AND account = ?3 AND (subject = ?4 OR substr(subject, 1, ?5) = ?4 || '/')
         ORDER BY position LIMIT ?6",
    )?;
    let length = i32::try_from(topic.chars().count()).unwrap_or(i32::MAX).saturating_add(1);
    let mut found = Vec::new();
    loop {
        let stretch: Vec<(i64, i64)> =
            collect(runs.query_map(params![account, topic, begin, PAGE], |row| Ok((row.get(0)?, row.get(1)?)))?)?;
        for (first, last) in &stretch {
            let rest = i64::from(limit) - i64::try_from(found.len()).unwrap_or(i64::MAX);
            let range = params![(*first).max(after.saturating_add(1)), last, account, topic, length, rest];
            found.extend(collect(statement.query_map(range, logged)?)?);
            if found.len() >= limit as usize {
                return Ok(found);
            }
        }
        match stretch.last() {
            Some((first, _)) if stretch.len() >= PAGE as usize => begin = first + 1,
            _ => return Ok(found),
        }
    }
}

/// Two ways to find what a list asks for: a rare prefix through the index of
/// subjects, everything else in a stretch of the log. Both are bounded.
fn list(connection: &Connection, account: &str, filter: &Filter, after: i64, limit: u32) -> Result<Listed, StoreError> {
    let subjects = (filter.subject_prefix.clone(), format!("{}{LAST}", filter.subject_prefix));
    let types = (filter.type_prefix.clone(), format!("{}{LAST}", filter.type_prefix));
    if !filter.subject_prefix.is_empty() {
        let found: i64 = connection
            .prepare_cached(
                "SELECT count(*) FROM
                 (SELECT 1 FROM events WHERE account = ?1 AND subject >= ?2 AND subject < ?3 LIMIT ?4) AS few",
            )?
            .query_row(params![account, subjects.0, subjects.1, FEW + 1], |row| row.get(0))?;
        if found <= FEW {
            // `+ 0`: the order must not tempt anybody to read the whole log in it.
            let mut statement = connection.prepare_cached(
                "SELECT position, sequence, subject, type, event FROM events INDEXED BY events_subject
                 WHERE account = ?1 AND subject >= ?2 AND subject < ?3 AND type >= ?4 AND type < ?5
                 AND position > ?6 ORDER BY position + 0 LIMIT ?7",
            )?;
            let (from, to) = (&subjects.0, &subjects.1);
            let rows = params![account, from, to, types.0, types.1, after, i64::from(limit) + 1];
            return Ok(page(collect(statement.query_map(rows, logged)?)?, limit, None));
        }
    }
    let (floor, last): (i64, i64) = connection
        .prepare_cached("SELECT floor, last FROM log")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let after = after.max(floor);
    let end = after.saturating_add(LIST_SCAN);
    let mut statement = connection.prepare_cached(
        "SELECT position, sequence, subject, type, event FROM events NOT INDEXED
         WHERE position > ?1 AND position <= ?2 AND account = ?3
         AND subject >= ?4 AND subject < ?5 AND type >= ?6 AND type < ?7 ORDER BY position LIMIT ?8",
    )?;
    let (from, to) = (&subjects.0, &subjects.1);
    let rows = params![after, end, account, from, to, types.0, types.1, i64::from(limit) + 1];
    Ok(page(collect(statement.query_map(rows, logged)?)?, limit, (end < last).then_some(end)))
}

/// `events` may have one more than `limit`: then there is a next page.
fn page(mut events: Vec<Logged>, limit: u32, next: Option<i64>) -> Listed {
    if events.len() <= limit as usize {
        return Listed { events, next };
    }
    events.truncate(limit as usize);
    let next = events.last().map(|event| event.position);
    Listed { events, next }
}

fn tasks(
    connection: &Connection,
    account: &str,
    prefix: &str,
    after_task: Option<String>,
    limit: u32,
) -> Result<TaskEvents, StoreError> {
    let mut after = (format!("{prefix}{}", after_task.unwrap_or_default()), i64::MAX);
    let end = format!("{prefix}{LAST}");
    let mut statement = connection.prepare_cached(
        "SELECT position, sequence, subject, type, event FROM events
         WHERE account = ?1 AND (subject, position) > (?2, ?3) AND subject < ?4 ORDER BY subject, position LIMIT ?5",
    )?;
    let mut found = TaskEvents::default();
    let mut read = 0;
    loop {
        let page = collect(statement.query_map(params![account, after.0, after.1, end, PAGE], logged)?)?;
        let all = page.len() < PAGE as usize;
        if let Some(last) = page.last() {
            after = (last.subject.clone(), last.position);
        }
        for event in page {
            let key = event.subject.strip_prefix(prefix).unwrap_or_default();
            match found.tasks.last_mut() {
                Some((task, events)) if task == key => {
                    // The first event and the newest ones tell the story.
                    if events.len() >= TASK_EVENTS {
                        events.remove(1);
                    }
                    events.push(event);
                }
                _ => {
                    if found.tasks.len() >= limit as usize || read >= TASK_SCAN {
                        found.more = true;
                        return Ok(found);
                    }
                    found.tasks.push((key.to_owned(), vec![event]));
                }
            }
            read += 1;
        }
        if all {
            return Ok(found);
        }
    }
}

/// Sums all changes in `[from, to)`, whole hours by hours.
fn sum(connection: &Connection, account: &str, scope: &str, from: i64, to: i64) -> Result<Counters, StoreError> {
    let [second, _, hour] = WIDTHS;
    let hours = (from.div_euclid(hour) + i64::from(from.rem_euclid(hour) > 0), to.div_euclid(hour));
    let ranges = if hours.0 < hours.1 {
        vec![(second, from, hours.0 * hour), (hour, hours.0, hours.1), (second, hours.1 * hour, to)]
    } else {
        vec![(second, from, to)]
    };
    let mut counters = Counters::new();
    let mut statement = connection.prepare_cached(
        "SELECT counter, CAST(sum(delta) AS INTEGER) FROM counters
         WHERE account = ?1 AND scope = ?2 AND width = ?3 AND bucket >= ?4 AND bucket < ?5 GROUP BY counter",
    )?;
    for (width, from, to) in ranges {
        let rows = statement.query_map(params![account, scope, width, from, to], |row| {
            Ok((row.get::<String>(0)?, row.get::<i64>(1)?))
        })?;
        for row in rows {
            let (counter, delta) = row?;
            *counters.entry(counter).or_default() += delta;
        }
    }
    Ok(counters)
}

fn logged(row: Row<'_>) -> Result<Logged, kiln_store::sql::Error> {
    Ok(Logged {
        position: row.get(0)?,
        sequence: row.get(1)?,
        subject: row.get(2)?,
        event_type: row.get(3)?,
        bytes: row.get(4)?,
    })
}

fn collect<T>(rows: impl Iterator<Item = Result<T, kiln_store::sql::Error>>) -> Result<Vec<T>, StoreError> {
    Ok(rows.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_upgrade_leads_to_the_same_schema() {
        kiln_store::testing::check_migrations(MIGRATIONS).await;
    }
}
