//! Events into the log: which are new, where they go, what they add up to.
//!
//! For a million tasks there are four million events, so an event costs one row
//! and one entry of an index, and no lookup: sequences of a source come in
//! order, so a higher one than ever is new, and the range of those that came
//! grows by it. Only what comes late or again is looked for.

use std::borrow::Cow;
use std::collections::HashMap;

use kiln_store::StoreError;
use kiln_store::sql::{Connection, OptionalExtension, params};

use crate::domain::counts::WIDTHS;
use crate::domain::fact::Fact;
use crate::store::Appended;

/// Events of other topics that may lie between two of a run: a reader of the
/// run passes over them.
const RUN_GAP: i64 = 16;

/// Bytes of a subject that are stored at most: an entry of an index of PostgreSQL
/// takes no more than 2,700, and the account is in it, too. Only blobs can have
/// longer ones; the event itself has all of it.
const SUBJECT_BYTES: usize = 2_400;

/// What the writer knows of a source during one transaction.
struct Source {
    number: i64,
    contiguous: i64,
    newest: i64,
    forgotten: i64,
    /// The range that is growing; not stored yet.
    growing: Option<(i64, i64)>,
}

/// A run of a topic that is growing.
struct Run {
    first: i64,
    last: i64,
    /// It has a row, whose end is older.
    stored: bool,
}

/// See [`crate::store::Store::append`].
pub(super) fn append(connection: &Connection, facts: &[Fact], now_micros: i64) -> Result<Appended, StoreError> {
    let mut insert = connection.batch(
        "INSERT INTO events (position, source, sequence, account, subject, type, time, event)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        0,
    )?;
    let before: i64 = connection.prepare_cached("SELECT last FROM log")?.query_row([], |row| row.get(0))?;
    let mut position = before;
    let mut sources: HashMap<&str, Source> = HashMap::new();
    let mut runs: HashMap<(&str, &str), Run> = HashMap::new();
    let mut sums: HashMap<(&str, &str, i64, &str), i64> = HashMap::new();
    for fact in facts {
        if !sources.contains_key(fact.source.as_str()) {
            sources.insert(&fact.source, source(connection, &fact.source, fact.sequence)?);
        }
        let Some(source) = sources.get_mut(fact.source.as_str()) else { continue };
        if fact.sequence <= source.forgotten || !source.take(connection, fact.sequence)? {
            continue;
        }
        position += 1;
        insert.add(params![
            position,
            source.number,
            fact.sequence,
            fact.account,
            storable(&fact.subject),
            fact.event_type,
            fact.time_micros,
            &fact.bytes[..]
        ])?;
        extend(connection, &mut runs, (&fact.account, fact.topic()), position)?;
        let second = fact.time_micros.div_euclid(1_000_000);
        for delta in &fact.deltas {
            *sums.entry((&fact.account, &delta.scope, second, &delta.counter)).or_default() += delta.delta;
        }
    }
    insert.finish()?;
    count(connection, sums)?;
    for source in sources.values_mut() {
        source.store_range(connection)?;
        source.follow(connection, now_micros)?;
    }
    for (topic, run) in &runs {
        store_run(connection, *topic, run)?;
    }
    let new = position - before;
    connection.prepare_cached("UPDATE log SET events = events + ?1, last = ?2")?.execute([new, position])?;
    let topics = runs.into_keys().map(|(account, topic)| (account.to_owned(), topic.to_owned())).collect();
    Ok(Appended { topics, new: usize::try_from(new).unwrap_or(usize::MAX) })
}

/// The subject as every database takes it: what cannot be stored must not hold up
/// all events behind it.
fn storable(subject: &str) -> Cow<'_, str> {
    let short = &subject[..subject.floor_char_boundary(SUBJECT_BYTES)];
    if short.contains('\0') { Cow::Owned(short.replace('\0', "\u{FFFD}")) } else { Cow::Borrowed(short) }
}

fn source(connection: &Connection, name: &str, first_sequence: i64) -> Result<Source, StoreError> {
    let known = connection
        .prepare_cached("SELECT number, contiguous, newest, forgotten FROM sources WHERE name = ?1")?
        .query_row([name], |row| {
            Ok(Source {
                number: row.get(0)?,
                contiguous: row.get(1)?,
                newest: row.get(2)?,
                forgotten: row.get(3)?,
                growing: None,
            })
        })
        .optional()?;
    if let Some(source) = known {
        return Ok(source);
    }
    // What a source announced before we listened is not missed.
    let contiguous = first_sequence.saturating_sub(1);
    let number = connection
        .prepare_cached(
            "INSERT INTO sources (number, name, contiguous, newest)
             VALUES ((SELECT coalesce(max(number), 0) + 1 FROM sources), ?1, ?2, ?2) RETURNING number",
        )?
        .query_row(params![name, contiguous], |row| row.get(0))?;
    Ok(Source { number, contiguous, newest: contiguous, forgotten: 0, growing: None })
}

impl Source {
    /// Takes note of a sequence; `false` if it was seen before.
    fn take(&mut self, connection: &Connection, sequence: i64) -> Result<bool, StoreError> {
        if sequence > self.newest {
            self.newest = sequence;
            match &mut self.growing {
                Some((_, last)) if *last + 1 == sequence => *last = sequence,
                _ => {
                    self.store_range(connection)?;
                    self.growing = Some((sequence, sequence));
                }
            }
            return Ok(true);
        }
        self.store_range(connection)?;
        if self.range_at(connection, sequence)?.is_some_and(|(_, last)| last >= sequence) {
            return Ok(false);
        }
        self.cover(connection, sequence, sequence)?;
        Ok(true)
    }

    fn store_range(&mut self, connection: &Connection) -> Result<(), StoreError> {
        match self.growing.take() {
            Some((first, last)) => self.cover(connection, first, last),
            None => Ok(()),
        }
    }

    /// The range that begins at `sequence` or last before it.
    fn range_at(&self, connection: &Connection, sequence: i64) -> Result<Option<(i64, i64)>, StoreError> {
        Ok(connection
            .prepare_cached(
                "SELECT first, last FROM seen WHERE source = ?1 AND first <= ?2 ORDER BY first DESC LIMIT 1",
            )?
            .query_row(params![self.number, sequence], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?)
    }

    /// Notes a range of which nothing was seen, as one with its neighbours.
    fn cover(&self, connection: &Connection, first: i64, last: i64) -> Result<(), StoreError> {
        let first = match self.range_at(connection, first)? {
            Some((before, end)) if end + 1 == first => before,
            _ => first,
        };
        let after: Option<i64> = connection
            .prepare_cached("SELECT last FROM seen WHERE source = ?1 AND first = ?2")?
            .query_row(params![self.number, last + 1], |row| row.get(0))
            .optional()?;
        if after.is_some() {
            connection
                .prepare_cached("DELETE FROM seen WHERE source = ?1 AND first = ?2")?
                .execute(params![self.number, last + 1])?;
        }
        connection
            .prepare_cached(
                "INSERT INTO seen (source, first, last) VALUES (?1, ?2, ?3)
                 ON CONFLICT (source, first) DO UPDATE SET last = excluded.last",
            )?
            .execute(params![self.number, first, after.unwrap_or(last)])?;
        Ok(())
    }

    /// Moves `contiguous` over what has come, and notes whether something is missing.
    fn follow(&self, connection: &Connection, now_micros: i64) -> Result<(), StoreError> {
        let next = self.range_at(connection, self.contiguous.saturating_add(1))?;
        let contiguous = next.map_or(self.contiguous, |(_, last)| last.max(self.contiguous));
        let gap_since = (self.newest > contiguous).then_some(now_micros);
        connection
            .prepare_cached(
                "UPDATE sources SET newest = ?2, contiguous = ?3,
                 gap_since = CASE WHEN CAST(?4 AS INTEGER) IS NULL THEN NULL
                                  WHEN contiguous = ?3 THEN coalesce(gap_since, ?4) ELSE ?4 END
                 WHERE number = ?1",
            )?
            .execute(params![self.number, self.newest, contiguous, gap_since])?;
        Ok(())
    }
}

/// Adds a position to the runs of its topic.
fn extend<'f>(
    connection: &Connection,
    runs: &mut HashMap<(&'f str, &'f str), Run>,
    topic: (&'f str, &'f str),
    position: i64,
) -> Result<(), StoreError> {
    let run = match runs.get_mut(&topic) {
        Some(run) => Some(run),
        None => latest_run(connection, topic)?.map(|run| runs.entry(topic).or_insert(run)),
    };
    match run {
        Some(run) if position - run.last <= RUN_GAP => run.last = position,
        other => {
            if let Some(run) = other {
                store_run(connection, topic, run)?;
            }
            runs.insert(topic, Run { first: position, last: position, stored: false });
        }
    }
    Ok(())
}

fn latest_run(connection: &Connection, (account, topic): (&str, &str)) -> Result<Option<Run>, StoreError> {
    Ok(connection
        .prepare_cached("SELECT first, last FROM runs WHERE account = ?1 AND topic = ?2 ORDER BY first DESC LIMIT 1")?
        .query_row([account, topic], |row| Ok(Run { first: row.get(0)?, last: row.get(1)?, stored: true }))
        .optional()?)
}

fn store_run(connection: &Connection, (account, topic): (&str, &str), run: &Run) -> Result<(), StoreError> {
    let statement = if run.stored {
        "UPDATE runs SET last = ?4 WHERE account = ?1 AND topic = ?2 AND first = ?3"
    } else {
        "INSERT INTO runs (account, topic, first, last) VALUES (?1, ?2, ?3, ?4)"
    };
    connection.prepare_cached(statement)?.execute(params![account, topic, run.first, run.last])?;
    Ok(())
}

/// Adds the sums, which are of seconds, to the counters of every width.
fn count(connection: &Connection, sums: HashMap<(&str, &str, i64, &str), i64>) -> Result<(), StoreError> {
    let mut add = connection.batch(
        "INSERT INTO counters (account, scope, width, bucket, counter, delta) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (account, scope, width, bucket, counter) DO UPDATE SET delta = counters.delta + excluded.delta",
        0,
    )?;
    let mut sums = sums;
    for width in WIDTHS {
        if width > 1 {
            // Seconds of one bucket come together, so that its row is written once.
            let mut wider = HashMap::with_capacity(sums.len());
            for ((account, scope, second, counter), delta) in sums {
                *wider.entry((account, scope, second - second.rem_euclid(width), counter)).or_default() += delta;
            }
            sums = wider;
        }
        for ((account, scope, second, counter), delta) in sums.iter().filter(|(_, delta)| **delta != 0) {
            add.add(params![account, scope, width, second.div_euclid(width), counter, delta])?;
        }
    }
    add.finish()?;
    Ok(())
}
