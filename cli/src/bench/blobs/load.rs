//! The loads: small blobs by several clients, one large blob in blocks, lists.
//!
//! Each gives one figure for one server. What they leave behind stays until the
//! server's directory goes; of a server that ran before, the container is deleted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::client::{Connection, Place, noise};
use crate::failure::Outcome;

/// Bytes of a small blob.
pub const SMALL: usize = 4096;
/// Bytes of a block.
pub const BLOCK: usize = 4 * 1024 * 1024;
/// Small blobs that are read.
const READ: u64 = 1_000;
/// Bytes of a blob that is listed.
const LISTED: usize = 16;
/// Clients that make them.
const MAKERS: usize = 16;
const BLOCK_BLOB: &[(&str, &str)] = &[("x-ms-blob-type", "BlockBlob")];

/// A container of one server.
#[derive(Debug)]
pub struct Load {
    place: Place,
    container: String,
    /// Numbers of small blobs.
    next: Arc<AtomicU64>,
}

impl Load {
    /// Makes the container.
    ///
    /// # Errors
    /// If the server refuses.
    pub async fn new(place: &Place, container: &str) -> Outcome<Self> {
        let load = Self { place: place.clone(), container: container.to_owned(), next: Arc::default() };
        let target = format!("{container}?restype=container");
        place.connect().await?.fetch(("PUT", &target, &[]), Bytes::new(), 201).await?;
        Ok(load)
    }

    /// Removes it.
    ///
    /// # Errors
    /// If the server refuses.
    pub async fn delete(self) -> Outcome {
        let target = format!("{}?restype=container", self.container);
        self.place.connect().await?.fetch(("DELETE", &target, &[]), Bytes::new(), 202).await?;
        Ok(())
    }

    /// New small blobs a second, by so many clients.
    ///
    /// # Errors
    /// If one is refused.
    pub async fn put(&self, clients: usize, during: Duration) -> Outcome<f64> {
        let (next, container, body) = (self.next.clone(), self.container.clone(), noise(1, SMALL));
        self.rate(clients, during, move |mut connection| {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let (target, body) = (format!("{container}/small-{number:08}"), body.clone());
            async move {
                connection.fetch(("PUT", &target, BLOCK_BLOB), body, 201).await?;
                Ok(connection)
            }
        })
        .await
    }

    /// Makes the blobs that [`get`](Self::get) reads.
    ///
    /// # Errors
    /// If one is refused.
    pub async fn prepare(&self) -> Outcome {
        self.make("read", READ, SMALL).await
    }

    /// Small blobs read a second, by so many clients.
    ///
    /// # Errors
    /// If one cannot be read whole.
    pub async fn get(&self, clients: usize, during: Duration) -> Outcome<f64> {
        let (next, container) = (Arc::new(AtomicU64::new(0)), self.container.clone());
        self.rate(clients, during, move |mut connection| {
            // Not in the order in which they were made.
            let number = next.fetch_add(1, Ordering::Relaxed) * 617 % READ;
            let target = format!("{container}/read-{number:08}");
            async move {
                let length = connection.count(("GET", &target, &[]), 200).await?;
                whole(length, SMALL as u64)?;
                Ok(connection)
            }
        })
        .await
    }

    /// Bytes a second of one blob of so many bytes, sent in blocks by so many clients, to its end.
    ///
    /// # Errors
    /// If the server refuses.
    pub async fn upload(&self, name: &str, length: u64, clients: usize) -> Outcome<f64> {
        let connections = self.place.connect_many(clients.max(1)).await?;
        let body = noise(2, BLOCK);
        let blocks: Vec<u64> = (0..length.div_ceil(BLOCK as u64)).collect();
        let target = Arc::new(format!("{}/{name}", self.container));
        let next = Arc::new(AtomicU64::new(0));
        let began = Instant::now();
        let senders: Vec<_> = connections
            .into_iter()
            .map(|mut connection| {
                let (body, target, next, count) = (body.clone(), target.clone(), next.clone(), blocks.len() as u64);
                kiln_telemetry::spawn(async move {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count {
                            return Outcome::Ok(connection);
                        }
                        let rest = length - number * BLOCK as u64;
                        let piece = body.slice(..BLOCK.min(usize::try_from(rest).unwrap_or(BLOCK)));
                        let target = format!("{target}?comp=block&blockid={}", encoded(&block_id(number)));
                        connection.fetch(("PUT", &target, &[]), piece, 201).await?;
                    }
                })
            })
            .collect();
        let mut connections = joined(senders).await?;
        let connection = connections.first_mut().context("at least one client")?;
        let list: String = blocks.iter().map(|number| format!("<Latest>{}</Latest>", block_id(*number))).collect();
        let list = format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>{list}</BlockList>");
        connection.fetch(("PUT", &format!("{target}?comp=blocklist"), &[]), Bytes::from(list), 201).await?;
        Ok(length as f64 / began.elapsed().as_secs_f64())
    }

    /// Bytes a second of the same blob on its way back, by one client.
    ///
    /// # Errors
    /// If it cannot be read whole.
    pub async fn download(&self, name: &str, length: u64) -> Outcome<f64> {
        let mut connection = self.place.connect().await?;
        let began = Instant::now();
        let read = connection.count(("GET", &format!("{}/{name}", self.container), &[]), 200).await?;
        whole(read, length)?;
        Ok(length as f64 / began.elapsed().as_secs_f64())
    }

    /// Makes the blobs that [`list`](Self::list) finds.
    ///
    /// # Errors
    /// If one is refused.
    pub async fn fill(&self, count: u64) -> Outcome {
        self.make("listed", count, LISTED).await
    }

    /// Time to the first page of a list, and names a second to its end.
    ///
    /// # Errors
    /// If there are not exactly `count` names.
    pub async fn list(&self, count: u64) -> Outcome<(Duration, f64)> {
        let mut connection = self.place.connect().await?;
        let (mut marker, mut names) = (String::new(), 0);
        let mut first = None;
        let began = Instant::now();
        loop {
            let target = format!("{}?restype=container&comp=list&prefix=listed-&marker={marker}", self.container);
            let page = connection.fetch(("GET", &target, &[]), Bytes::new(), 200).await?;
            first.get_or_insert_with(|| began.elapsed());
            let text = std::str::from_utf8(&page).context("a page of a list")?;
            names += text.matches("<Name>").count() as u64;
            match next_marker(text) {
                Some(next) => marker = encoded(next),
                None => break,
            }
        }
        if names != count {
            return Err(anyhow!("{names} of {count} blobs were listed").into());
        }
        Ok((first.unwrap_or_default(), names as f64 / began.elapsed().as_secs_f64()))
    }

    async fn make(&self, prefix: &'static str, count: u64, length: usize) -> Outcome {
        let (next, body) = (Arc::new(AtomicU64::new(0)), noise(3, length));
        let makers = self.place.connect_many(MAKERS).await?.into_iter().map(|mut connection| {
            let (next, body, container) = (next.clone(), body.clone(), self.container.clone());
            kiln_telemetry::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return Outcome::Ok(());
                    }
                    let target = format!("{container}/{prefix}-{number:08}");
                    connection.fetch(("PUT", &target, BLOCK_BLOB), body.clone(), 201).await?;
                }
            })
        });
        joined(makers.collect()).await.map(drop)
    }

    /// How often a second so many clients can do `work`, each with a connection of its own.
    async fn rate<Work, Done>(&self, clients: usize, during: Duration, work: Work) -> Outcome<f64>
    where
        Work: Fn(Connection) -> Done + Clone + Send + 'static,
        Done: Future<Output = Outcome<Connection>> + Send + 'static,
    {
        let connections = self.place.connect_many(clients.max(1)).await?;
        let began = Instant::now();
        let all = connections.into_iter().map(|mut connection| {
            let work = work.clone();
            kiln_telemetry::spawn(async move {
                let mut done = 0u64;
                while began.elapsed() < during || done == 0 {
                    connection = work(connection).await?;
                    done += 1;
                }
                Outcome::Ok(done)
            })
        });
        let done: u64 = joined(all.collect()).await?.into_iter().sum();
        Ok(done as f64 / began.elapsed().as_secs_f64())
    }
}

/// The results of all, or the first error.
async fn joined<T>(tasks: Vec<tokio::task::JoinHandle<Outcome<T>>>) -> Outcome<Vec<T>> {
    let mut results = Vec::with_capacity(tasks.len());
    for task in tasks {
        results.push(task.await.context("a client of the benchmark")??);
    }
    Ok(results)
}

fn whole(read: u64, length: u64) -> Outcome {
    if read == length { Ok(()) } else { Err(anyhow!("{read} of {length} bytes came").into()) }
}

/// Ids of one blob have one length.
fn block_id(number: u64) -> String {
    BASE64_STANDARD.encode(format!("{number:08}"))
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// The marker of the next page, which is text without special characters at all known servers.
fn next_marker(page: &str) -> Option<&str> {
    let (_, rest) = page.split_once("<NextMarker>")?;
    let (marker, _) = rest.split_once("</NextMarker>")?;
    (!marker.is_empty()).then_some(marker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_page_has_no_marker() {
        assert_eq!(next_marker("<a><NextMarker>x y</NextMarker></a>"), Some("x y"));
        for page in ["", "<NextMarker />", "<NextMarker></NextMarker>", "<NextMarker>x"] {
            assert_eq!(next_marker(page), None, "{page}");
        }
        assert_eq!(encoded("a=/b"), "a%3D%2Fb");
        assert_eq!(block_id(7).len(), block_id(12_345_678).len());
    }
}
