//! What may be forgotten.

use kiln_store::StoreError;
use kiln_store::sql::{Connection, params};

use super::{Keep, Pruned};
use crate::domain::counts::WIDTHS;

/// Rows of each kind that one call deletes at most: a short transaction, so
/// that new events do not wait.
const BATCH: i64 = 5_000;
/// Jobs and pools one call looks at.
const SCOPES: i64 = 1_000;

/// See [`super::Store::prune`].
pub(super) fn prune(connection: &Connection, keep: Keep) -> Result<Pruned, StoreError> {
    let events = prune_events(connection, keep.since_micros, keep.max_events)?;
    let counters = prune_counters(connection, keep)?;
    let full = usize::try_from(BATCH).unwrap_or(usize::MAX);
    Ok(Pruned { events, counters, more: events >= full || counters >= full })
}

fn prune_events(connection: &Connection, cutoff_micros: i64, max_events: u64) -> Result<usize, StoreError> {
    let kept: i64 = connection.prepare_cached("SELECT events FROM log")?.query_row([], |row| row.get(0))?;
    let surplus = kept.saturating_sub(i64::try_from(max_events).unwrap_or(i64::MAX)).max(0);
    // From the old end of the log up to the first event that stays, so that
    // what is deleted is one stretch and readers know where the log begins.
    let mut statement = connection.prepare_cached("SELECT position, time FROM events ORDER BY position LIMIT ?1")?;
    let mut rows = statement.query([BATCH])?;
    let (mut last, mut count) = (None, 0_i64);
    while let Some(row) = rows.next()? {
        if count >= surplus && row.get::<i64>(1)? >= cutoff_micros {
            break;
        }
        last = Some(row.get::<i64>(0)?);
        count += 1;
    }
    drop(rows);
    let Some(last) = last else { return Ok(0) };
    connection
        .prepare_cached(
            "UPDATE sources SET forgotten = CASE WHEN forgotten > gone.newest THEN forgotten ELSE gone.newest END
             FROM (SELECT source, max(sequence) AS newest FROM events WHERE position <= ?1 GROUP BY source) AS gone
             WHERE number = gone.source",
        )?
        .execute([last])?;
    connection.prepare_cached("DELETE FROM runs WHERE last <= ?1")?.execute([last])?;
    let deleted = connection.prepare_cached("DELETE FROM events WHERE position <= ?1")?.execute([last])?;
    connection.prepare_cached("UPDATE log SET events = events - ?1, floor = ?2")?.execute(params![count, last])?;
    Ok(deleted)
}

/// Seconds and minutes go when they are old; hours stay for as long as their
/// sums say what there is, because they are the base of every later point.
fn prune_counters(connection: &Connection, keep: Keep) -> Result<usize, StoreError> {
    let [second, minute, hour] = WIDTHS;
    let cutoff = keep.since_micros.div_euclid(1_000_000);
    // Whole hours only: the sum before an instant is made of hours and the rest.
    let cutoff = cutoff.div_euclid(hour) * hour;
    let mut deleted = 0;
    for width in [second, minute] {
        deleted += connection
            .prepare_cached(
                "DELETE FROM counters WHERE (account, scope, width, bucket, counter) IN
                 (SELECT account, scope, width, bucket, counter FROM counters INDEXED BY counters_age
                  WHERE width = ?1 AND bucket < ?2 LIMIT ?3)",
            )?
            .execute(params![width, cutoff.div_euclid(width), BATCH / 3])?;
    }
    // Scopes at rest: nothing happened since the cutoff, and nothing is there.
    let mut statement = connection.prepare_cached(
        "SELECT account, scope FROM counters INDEXED BY counters_age WHERE width = ?1 AND bucket < ?2
         GROUP BY account, scope LIMIT ?3",
    )?;
    let old: Vec<(String, String)> = statement
        .query_map(params![hour, cutoff.div_euclid(hour), SCOPES], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let ancient = keep.idle_since_micros.div_euclid(1_000_000);
    for (account, scope) in old {
        let (newest, there): (i64, i64) = connection
            .prepare_cached(
                "SELECT max(bucket),
                 CAST(coalesce(sum(CASE WHEN counter IN ('succeeded', 'failed') THEN 0 ELSE abs(total) END), 0) AS INTEGER)
                 FROM (SELECT counter, max(bucket) AS bucket, sum(delta) AS total FROM counters
                       WHERE account = ?1 AND scope = ?2 AND width = ?3 GROUP BY counter) AS sums",
            )?
            .query_row(params![account, scope, hour], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let newest = newest.saturating_mul(hour);
        if newest < cutoff && (there == 0 || newest < ancient) {
            deleted += connection
                .prepare_cached("DELETE FROM counters WHERE account = ?1 AND scope = ?2 AND width = ?3")?
                .execute(params![account, scope, hour])?;
        }
    }
    Ok(deleted)
}
