//! Lists in the order of names (code points), paged by name.

use kiln_store::sql::{Connection, params};

use super::rows::{self, Outcome, RawBlob, RawContainer, Sql};
use crate::domain::model::{Container, MAX_PAGE};
use crate::store::{BlobEntry, BlobQuery, Page};

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

pub fn blobs(c: &Connection, account: &str, container: &str, query: &BlobQuery) -> Outcome<Page<BlobEntry>> {
    let (id, _) = rows::container(c, account, container)?;
    let limit = query.limit.clamp(1, MAX_PAGE);
    let batch = if query.delimiter.is_empty() { limit + 1 } else { DELIMITER_BATCH };
    let mut statement = c
        .prepare_cached(&format!(
            "SELECT {} FROM blobs WHERE container = ?1 AND name >= ?2 AND name <> ?3 ORDER BY name LIMIT ?4",
            rows::BLOB_COLUMNS
        ))
        .sql()?;
    let mut entries = Vec::new();
    let mut from = query.from.as_str().max(query.prefix.as_str()).to_owned();
    // The name that was seen last, if the list goes on from there; none is empty.
    let mut seen = String::new();
    'pages: loop {
        let raws: Vec<RawBlob> = statement
            .query_map(params![id, from, seen, rows::integer(batch as u64)], RawBlob::read)
            .sql()?
            .collect::<Result<_, _>>()
            .sql()?;
        let last_page = raws.len() < batch;
        for raw in raws {
            let Some(rest) = raw.name().strip_prefix(query.prefix.as_str()) else { break 'pages };
            // One more than asked for shows that there is a next page, and where.
            if entries.len() == limit {
                return Ok(Page { entries, next: Some(raw.name().to_owned()) });
            }
            if !query.delimiter.is_empty()
                && let Some(at) = rest.find(&query.delimiter)
            {
                let group = format!("{}{}", query.prefix, &rest[..at + query.delimiter.len()]);
                let after = behind(&group);
                entries.push(BlobEntry::Prefix(group));
                // Jump over the group, however many blobs are in it.
                match after {
                    Some(after) => from = after,
                    None => break 'pages,
                }
                continue 'pages;
            }
            from.clear();
            from.push_str(raw.name());
            seen.clone_from(&from);
            entries.push(BlobEntry::Blob(Box::new(raw.into_blob(container)?.1)));
        }
        if last_page {
            break;
        }
    }
    Ok(Page { entries, next: None })
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
