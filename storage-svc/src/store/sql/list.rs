//! Lists in the order of names (code points), paged by name; those of blobs may have snapshots and names that have
//! only uncommitted blocks between them.

use kiln_store::sql::{Connection, params};
use kiln_time::Timestamp;

use super::rows::{self, Outcome, RawBlob, RawContainer, Sql};
use crate::domain::model::{Container, MAX_PAGE};
use crate::store::{BlobEntry, BlobPosition, BlobQuery, Page};

/// Rows read at once while names are cut at a delimiter: most of them may turn
/// out to belong to one prefix.
const DELIMITER_BATCH: usize = 256;

pub fn containers(c: &Connection, account: &str, prefix: &str, from: &str, limit: usize) -> Outcome<Page<Container>> {
    let limit = limit.clamp(1, MAX_PAGE);
    let mut rows = c
        .prepare_cached(&format!(
            "SELECT {} FROM containers WHERE account = ?1 AND name >= ?2 ORDER BY name LIMIT ?3",
            rows::CONTAINER_COLUMNS
        ))
        .sql()?
        .query_map(
            params![account.to_ascii_lowercase(), from.max(prefix), rows::integer(limit as u64 + 1)],
            RawContainer::read,
        )
        .sql()?
        .collect::<Result<Vec<_>, _>>()
        .sql()?
        .into_iter()
        .map(|raw| Ok(raw.into_container()?.1))
        .take_while(|found: &Outcome<Container>| found.as_ref().map_or(true, |c| c.name.starts_with(prefix)))
        .collect::<Outcome<Vec<_>>>()?;
    let next = if rows.len() > limit { rows.pop().map(|container| container.name) } else { None };
    Ok(Page { entries: rows, next })
}

/// The sources are read from the same place on in batches, and joined; what lies behind the end of a batch that was
/// full has to wait for the next round.
pub fn blobs(
    c: &Connection,
    account: &str,
    container: &str,
    query: &BlobQuery,
) -> Outcome<Page<BlobEntry, BlobPosition>> {
    let (id, _) = rows::container(c, account, container)?;
    let limit = query.limit.clamp(1, MAX_PAGE);
    let batch = if query.delimiter.is_empty() { limit + 1 } else { DELIMITER_BATCH };
    let mut entries = Vec::new();
    let mut from = Cursor::at(match &query.from {
        Some(position) if position.name.as_str() >= query.prefix.as_str() => position.clone(),
        _ => BlobPosition::before(query.prefix.clone()),
    });
    'pages: loop {
        let (found, last_page) = read(c, id, query, &from, batch)?;
        for row in found {
            let Some(rest) = row.name().strip_prefix(query.prefix.as_str()) else { break 'pages };
            // One more than asked for shows that there is a next page, and where.
            if entries.len() == limit {
                return Ok(Page { entries, next: Some(row.position()) });
            }
            if !query.delimiter.is_empty()
                && let Some(at) = rest.find(&query.delimiter)
            {
                let group = format!("{}{}", query.prefix, &rest[..at + query.delimiter.len()]);
                let after = behind(&group);
                entries.push(BlobEntry::Prefix(group));
                // Jump over the group, however many blobs are in it.
                match after {
                    Some(after) => from = Cursor::at(BlobPosition::before(after)),
                    None => break 'pages,
                }
                continue 'pages;
            }
            from = Cursor::behind(row.position());
            entries.push(row.into_entry(container)?);
        }
        if last_page {
            break;
        }
    }
    Ok(Page { entries, next: None })
}

/// Where to read on: each source has its own way to say "from here".
#[derive(Debug)]
struct Cursor {
    /// Names from this one on.
    name: String,
    /// Of that name: snapshots from this one on.
    snapshot: i64,
    /// The blob of this name was seen already; none is empty.
    seen: String,
}

impl Cursor {
    fn at(position: BlobPosition) -> Self {
        let snapshot = position.snapshot.map_or(i64::MAX, Timestamp::as_micros);
        Self { name: position.name, snapshot, seen: String::new() }
    }

    fn behind(position: BlobPosition) -> Self {
        match position.snapshot {
            Some(at) => Self { name: position.name, snapshot: at.as_micros().saturating_add(1), seen: String::new() },
            None => Self { seen: position.name.clone(), name: position.name, snapshot: i64::MAX },
        }
    }
}

/// A row of one of the sources.
enum Row {
    Blob(RawBlob),
    Uncommitted(String, i64),
}

impl Row {
    fn name(&self) -> &str {
        match self {
            Self::Blob(raw) => raw.name(),
            Self::Uncommitted(name, _) => name,
        }
    }

    fn snapshot(&self) -> Option<i64> {
        match self {
            Self::Blob(raw) => raw.snapshot(),
            Self::Uncommitted(..) => None,
        }
    }

    /// Snapshots stand before their blob.
    fn key(&self) -> (&str, i64) {
        (self.name(), self.snapshot().unwrap_or(i64::MAX))
    }

    fn position(&self) -> BlobPosition {
        BlobPosition { name: self.name().to_owned(), snapshot: self.snapshot().map(Timestamp::from_micros) }
    }

    fn into_entry(self, container: &str) -> Outcome<BlobEntry> {
        Ok(match self {
            Self::Blob(raw) => BlobEntry::Blob(Box::new(raw.into_blob(container)?.1)),
            Self::Uncommitted(name, time) => BlobEntry::Uncommitted { name, time: Timestamp::from_micros(time) },
        })
    }
}

/// The next rows of all sources in order, and whether there are no more behind them.
fn read(c: &Connection, id: i64, query: &BlobQuery, from: &Cursor, batch: usize) -> Outcome<(Vec<Row>, bool)> {
    let limit = rows::integer(batch as u64);
    let mut sources: Vec<Vec<Row>> = Vec::new();
    sources.push(
        c.prepare_cached(&format!(
            "SELECT {} FROM blobs WHERE container = ?1 AND name >= ?2 AND name <> ?3 ORDER BY name LIMIT ?4",
            rows::BLOB_COLUMNS
        ))
        .sql()?
        .query_map(params![id, from.name, from.seen, limit], |row| RawBlob::read(row).map(Row::Blob))
        .sql()?
        .collect::<Result<_, _>>()
        .sql()?,
    );
    if query.snapshots {
        sources.push(
            c.prepare_cached(&format!(
                "SELECT {} FROM snapshots WHERE container = ?1 AND (name, snapshot) >= (?2, ?3)
                 ORDER BY name, snapshot LIMIT ?4",
                rows::SNAPSHOT_COLUMNS
            ))
            .sql()?
            .query_map(params![id, from.name, from.snapshot, limit], |row| RawBlob::read(row).map(Row::Blob))
            .sql()?
            .collect::<Result<_, _>>()
            .sql()?,
        );
    }
    if query.uncommitted {
        sources.push(
            c.prepare_cached(
                "SELECT blob, time FROM staged WHERE container = ?1 AND blob >= ?2 AND blob <> ?3
                     AND NOT EXISTS (SELECT 1 FROM blobs WHERE blobs.container = ?1 AND blobs.name = staged.blob)
                 ORDER BY blob LIMIT ?4",
            )
            .sql()?
            .query_map(params![id, from.name, from.seen, limit], |row| Ok(Row::Uncommitted(row.get(0)?, row.get(1)?)))
            .sql()?
            .collect::<Result<_, _>>()
            .sql()?,
        );
    }
    let horizon: Option<(String, i64)> = sources
        .iter()
        .filter(|source| source.len() == batch)
        .filter_map(|source| source.last().map(|row| (row.key().0.to_owned(), row.key().1)))
        .min();
    let mut found: Vec<Row> = sources.into_iter().flatten().collect();
    found.sort_by(|a, b| a.key().cmp(&b.key()));
    if let Some((name, at)) = &horizon {
        let reachable = found.partition_point(|row| row.key() <= (name.as_str(), *at));
        found.truncate(reachable);
    }
    Ok((found, horizon.is_none()))
}

/// The first text behind all texts that begin with `prefix`, in the order of
/// code points; `None` if there is none.
fn behind(prefix: &str) -> Option<String> {
    let mut text = prefix.to_owned();
    while let Some(last) = text.pop() {
        let next = match last {
            '\u{D7FF}' => Some('\u{E000}'),
            other => char::from_u32(u32::from(other) + 1),
        };
        if let Some(next) = next {
            text.push(next);
            return Some(text);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_is_the_next_text() {
        assert_eq!(behind("a/").as_deref(), Some("a0"));
        assert_eq!(behind("a\u{D7FF}").as_deref(), Some("a\u{E000}"));
        assert_eq!(behind("a\u{10FFFF}").as_deref(), Some("b"));
        assert_eq!(behind("\u{10FFFF}"), None);
    }
}
