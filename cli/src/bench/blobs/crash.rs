//! `kiln bench blobs --crash`: whether what was acknowledged is there after
//! `kill -9` of the server, and whether anything is there in part.
//!
//! Writers put blobs whose bytes follow from a number: some under new names, some
//! again and again under the same, small ones (rows of the catalogue), larger ones
//! (objects), and some in blocks. Each server's life ends at a moment that follows
//! from the seed. At the end every name is read: an acknowledged blob must be there
//! as it was acknowledged or as a later write would have made it, and one that
//! was not acknowledged must be whole or absent. It says nothing about power loss, where
//! the disk's own memory counts, too: that is what flushes are for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;

use super::client::{Connection, Place, noise};
use super::server::Server;
use crate::bench::figures::Report;
use crate::failure::Outcome;

const CONTAINER: &str = "crash";
const WRITERS: u64 = 12;
/// Shortest life of a server, and by how much the longest is longer, in milliseconds.
const LIFE: (u64, u64) = (150, 700);

/// What is known about one name.
#[derive(Debug, Default, Clone)]
struct Known {
    /// Number of the last acknowledged content.
    acknowledged: Option<u64>,
    /// Numbers that were sent since, whose outcome nobody knows.
    open: Vec<u64>,
}

/// All names.
#[derive(Debug, Default, Clone)]
struct Book(Arc<Mutex<BTreeMap<String, Known>>>);

impl Book {
    fn with<T>(&self, name: &str, change: impl FnOnce(&mut Known) -> T) -> T {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(book.entry(name.to_owned()).or_default())
    }
}

/// How one name was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Right,
    Lost,
    Torn,
}

impl Known {
    /// Judges what is there; `None` is nothing.
    fn judge(&self, there: Option<&[u8]>, content: impl Fn(u64) -> Bytes) -> Found {
        let Some(there) = there else {
            return if self.acknowledged.is_some() { Found::Lost } else { Found::Right };
        };
        if self.acknowledged.iter().chain(&self.open).any(|number| content(*number) == there) {
            return Found::Right;
        }
        // An older content is a lost write; anything else was never sent.
        let newest = self.acknowledged.into_iter().chain(self.open.iter().copied()).max().unwrap_or(0);
        if (0..newest).any(|number| content(number) == there) { Found::Lost } else { Found::Torn }
    }
}

/// Kills `kills` times and looks.
///
/// # Errors
/// If the server does not start again, or anything is lost or torn.
pub async fn run(kills: usize) -> Outcome<Report> {
    let directory = tempfile::Builder::new().prefix("kiln-bench-").tempdir().context("temporary directory")?;
    let mut server = Server::kiln(directory.path()).await?;
    let mut connection = server.place().connect().await?;
    connection.fetch(("PUT", &format!("{CONTAINER}?restype=container"), &[]), Bytes::new(), 201).await?;
    let (book, next) = (Book::default(), Arc::new(AtomicU64::new(1)));
    let seed = u64::from(std::process::id());
    let mut acknowledged = 0;
    for kill in 0..kills as u64 {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let writer = Writer { writer, place: server.place().clone(), book: book.clone(), next: next.clone() };
                kiln_telemetry::spawn(writer.write())
            })
            .collect();
        let moment = u64::from_le_bytes(noise(seed + kill, 8)[..].try_into().context("moment")?) % LIFE.1;
        tokio::time::sleep(Duration::from_millis(LIFE.0 + moment)).await;
        server.crash().await?;
        for writer in writers {
            acknowledged += writer.await.context("a writer")?;
        }
    }
    let book: Vec<_> =
        std::mem::take(&mut *book.0.lock().unwrap_or_else(PoisonError::into_inner)).into_iter().collect();
    let mut connection = server.place().connect().await?;
    let (mut lost, mut torn) = (0u64, 0u64);
    for (name, known) in &book {
        match known.judge(read(&mut connection, name).await?.as_deref(), |number| content(name, number)) {
            Found::Right => {}
            Found::Lost => lost += 1,
            Found::Torn => torn += 1,
        }
    }
    server.stop().await?;
    let mut report = Report::new("blobs");
    for (name, value) in [("seed", seed), ("kills", kills as u64), ("names", book.len() as u64)] {
        report.fact(name, value);
    }
    for (name, value) in [("acknowledged", acknowledged), ("lost", lost), ("torn", torn)] {
        report.fact(name, value);
    }
    if lost + torn > 0 {
        let what = format!("{lost} of {acknowledged} acknowledged blobs are lost, {torn} torn");
        return Err(anyhow!("{what} (seed {seed})").into());
    }
    Ok(report)
}

/// One that writes until the server is gone.
struct Writer {
    writer: u64,
    place: Place,
    book: Book,
    next: Arc<AtomicU64>,
}

impl Writer {
    /// Gives how many writes were acknowledged.
    async fn write(self) -> u64 {
        let mut acknowledged = 0;
        let Ok(mut connection) = self.place.connect().await else { return 0 };
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            // Half of them have a few names of their own, which they write again and again.
            let name = match self.writer % 2 {
                0 => format!("w{}-{number:08}{}", self.writer, kind(number)),
                _ => format!("w{}-again-{}{}", self.writer, number % 5, kind(number % 5)),
            };
            self.book.with(&name, |known| known.open.push(number));
            if put(&mut connection, &name, number).await.is_err() {
                // It may be there or not.
                return acknowledged;
            }
            self.book.with(&name, |known| *known = Known { acknowledged: Some(number), open: Vec::new() });
            acknowledged += 1;
        }
    }
}

/// End of a name: says how its blob is written.
fn kind(number: u64) -> &'static str {
    match number % 5 {
        0 => ".object",
        1 => ".blocks",
        _ => ".row",
    }
}

fn content(name: &str, number: u64) -> Bytes {
    match name.rsplit_once('.') {
        Some((_, "row")) => noise(number, 4096),
        Some((_, "blocks")) => noise(number, 2 * PART + 100),
        _ => noise(number, 150_000),
    }
}

/// Bytes of a block.
const PART: usize = 100_000;

async fn put(connection: &mut Connection, name: &str, number: u64) -> Outcome {
    let (target, body) = (format!("{CONTAINER}/{name}"), content(name, number));
    if !name.ends_with(".blocks") {
        connection.fetch(("PUT", &target, &[("x-ms-blob-type", "BlockBlob")]), body, 201).await?;
        return Ok(());
    }
    let mut list = String::new();
    for at in (0..body.len()).step_by(PART) {
        let id = BASE64_STANDARD.encode(format!("{at:09}"));
        let part = body.slice(at..body.len().min(at + PART));
        connection.fetch(("PUT", &format!("{target}?comp=block&blockid={id}"), &[]), part, 201).await?;
        list.push_str(&format!("<Latest>{id}</Latest>"));
    }
    let list = Bytes::from(format!("<BlockList>{list}</BlockList>"));
    connection.fetch(("PUT", &format!("{target}?comp=blocklist"), &[]), list, 201).await?;
    Ok(())
}

/// The bytes of a name, `None` if there is none.
async fn read(connection: &mut Connection, name: &str) -> Outcome<Option<Bytes>> {
    connection.find(&format!("{CONTAINER}/{name}")).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_old_or_mixed_is_told() {
        let content = |number: u64| content("a.row", number);
        let known = |acknowledged, open: &[u64]| Known { acknowledged, open: open.to_vec() };
        let mixed = [&content(5)[..2048], &content(6)[2048..]].concat();
        for (known, there, expected) in [
            (known(Some(5), &[]), Some(content(5)), Found::Right),
            (known(Some(5), &[6]), Some(content(6)), Found::Right),
            (known(Some(5), &[6]), Some(content(5)), Found::Right),
            (known(Some(5), &[6]), None, Found::Lost),
            (known(Some(5), &[]), Some(content(4)), Found::Lost),
            (known(None, &[6]), None, Found::Right),
            (known(None, &[6]), Some(content(6)), Found::Right),
            (known(None, &[6]), Some(content(6).slice(..100)), Found::Torn),
            (known(Some(5), &[6]), Some(mixed.into()), Found::Torn),
        ] {
            assert_eq!(known.judge(there.as_deref(), content), expected, "{known:?}");
        }
    }
}
