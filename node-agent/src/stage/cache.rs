//! Content that several tasks need is fetched once.
//!
//! An entry is named by the URL without its signature, and by the ETag. Every use is allowed by
//! the server: it is asked with the task's own URL whether the content is still the same, so a
//! task whose signature does not allow the file does not get it from the cache, and a changed
//! blob is seen. There is no time for which an entry is simply believed: who writes a blob and
//! then adds a task may rely on the task to see what was written. But an answer counts for all
//! tasks that had asked for the same URL, signature included, before the question was sent, so a
//! thousand tasks that begin together cost a few questions.
//!
//! Content is not shared between URLs, even if the same MD5 is claimed for both: the MD5 of a
//! blob is what its writer says it is, so a claim would open what the claimer may not read.
//!
//! Tasks receive copies, not links: a task that writes into its file must not change the file of
//! another one. (Where the file system can share blocks until they are written, the copy
//! does so.) Entries that were not used for the longest time make room.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use md5::{Digest, Md5};
use reqwest::header::IF_NONE_MATCH;
use reqwest::{Response, StatusCode};
use tokio::sync::{MutexGuard, Semaphore, SemaphorePermit};
use url::Url;

use super::download::{Content, Source};
use super::transfer::{Access, Http, TransferError, check, request_error, without_query};
use super::turns::Turns;
use super::writer::blocking;

/// An entry may take at most this part of the cache.
const LARGEST_PART: u64 = 2;
/// Entries at most; small files would be too many otherwise.
const MAX_ENTRIES: usize = 10_000;
/// How often an entry may vanish between the question and the copy.
const LOOKS: usize = 3;

/// See the module.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    limit: u64,
    http: Http,
    /// Of the node.
    connections: Semaphore,
    entries: Mutex<Entries>,
    /// By URL with its signature: the last answer.
    questions: Turns<Option<Answer>>,
    /// By content: who fetches it.
    fetching: Turns<()>,
}

/// What the server said about one URL.
#[derive(Debug, Clone)]
struct Answer {
    /// The question was sent after this.
    asked: Instant,
    /// The version that is in the cache, or why there is none.
    version: Result<String, TransferError>,
}

type Question<'a> = MutexGuard<'a, Option<Answer>>;

impl Cache {
    /// An empty cache in `dir`, with so many `connections` for the whole node; what an
    /// earlier agent left there is removed.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn create(dir: PathBuf, limit: u64, http: Http, connections: usize) -> std::io::Result<Self> {
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::create_dir_all(&dir)?,
        }
        Ok(Self {
            dir,
            limit,
            http,
            connections: Semaphore::new(connections),
            entries: Mutex::default(),
            questions: Turns::default(),
            fetching: Turns::default(),
        })
    }

    /// Fetches `url` to the new file `target`; gives its length.
    ///
    /// # Errors
    /// [`TransferError`]; `target` may exist then and has to be removed.
    pub async fn fetch(&self, url: &Url, access: Access, target: &Path) -> Result<u64, TransferError> {
        let wanted = Instant::now();
        let content = content_key(url);
        let line = self.questions.of(hex(&Md5::digest(format!("{access:?} {url}"))));
        let fetching = self.fetching.of(content.clone());
        for _ in 0..LOOKS {
            let Some(mut question) = line.wait().await else { break };
            let version = match &*question {
                Some(answer) if answer.asked > wanted => answer.version.clone()?,
                _ => {
                    // Who brings what is not there yet asks alone: the others, also those with
                    // another signature, ask when it is there.
                    let known = self.lock().version(&content);
                    let mut turn = if known.is_none() { fetching.wait().await } else { None };
                    let mut asked = self.ask(url, access, &content, &mut question).await?;
                    if turn.is_none() && matches!(asked, Asked::New(_)) {
                        turn = fetching.now();
                        if turn.is_none() {
                            // Nobody waits for the turn with a connection in the hand.
                            drop(asked);
                            turn = fetching.wait().await;
                            asked = self.ask(url, access, &content, &mut question).await?;
                        }
                    }
                    match asked {
                        Asked::Same(version) => version,
                        Asked::New(news) => {
                            return self.receive(&content, url, access, news, target, (question, turn)).await;
                        }
                    }
                }
            };
            drop(question);
            if let Some(bytes) = self.copy(&content, &version, target).await {
                return Ok(bytes);
            }
        }
        // The cache is too busy to be of use.
        let _connection = self.connections.acquire().await;
        let response = self.request(url, access, None).await?;
        Ok(self.source(url, access).receive(response, target).await?.bytes)
    }

    /// Asks whether what the cache has is still right. Only "yes" and errors are answers
    /// for others, too.
    async fn ask(
        &self,
        url: &Url,
        access: Access,
        content: &str,
        question: &mut Question<'_>,
    ) -> Result<Asked<'_>, TransferError> {
        // Never closed.
        let connection = self.connections.acquire().await.ok();
        let known = self.lock().version(content);
        let asked = Instant::now();
        let version = match self.request(url, access, known.as_deref()).await {
            Ok(response) if response.status() != StatusCode::NOT_MODIFIED => {
                return Ok(Asked::New(News { asked, response, _connection: connection }));
            }
            Ok(_) => known.ok_or_else(|| {
                TransferError::Other("the server says 'not modified' although nothing was known".to_owned())
            }),
            Err(error) => Err(error),
        };
        **question = Some(Answer { asked, version: version.clone() });
        version.map(Asked::Same)
    }

    async fn request(&self, url: &Url, access: Access, known: Option<&str>) -> Result<Response, TransferError> {
        self.http
            .with_retries(|| async {
                let mut request = self.http.prepare(self.http.client(url).get(url.clone()), access);
                if let Some(etag) = known {
                    request = request.header(IF_NONE_MATCH, etag);
                }
                check(request.send().await.map_err(request_error)?).await
            })
            .await
    }

    /// Takes content that the cache does not have. Those who want the same wait for the
    /// `turns`, unless it will not be in the cache afterwards.
    async fn receive(
        &self,
        key: &str,
        url: &Url,
        access: Access,
        news: News<'_>,
        target: &Path,
        turns: (Question<'_>, Option<MutexGuard<'_, ()>>),
    ) -> Result<u64, TransferError> {
        let (mut question, _turn) = turns;
        let News { asked, response, _connection } = news;
        let content = Content::of(response.headers());
        let fits = content.length.is_none_or(|length| length > 0 && length <= self.limit / LARGEST_PART);
        if !fits || content.etag.is_none() {
            drop((question, _turn));
            return Ok(self.source(url, access).receive(response, target).await?.bytes);
        }
        let received = self.source(url, access).receive(response, target).await?;
        if let Some(etag) = received.etag
            && self.keep(key, &etag, target, received.bytes).await
        {
            *question = Some(Answer { asked, version: Ok(etag) });
        }
        Ok(received.bytes)
    }

    fn source<'a>(&'a self, url: &'a Url, access: Access) -> Source<'a> {
        Source { http: &self.http, url, access, connections: &self.connections }
    }

    /// Copies an entry; nothing if it is not there (any more), or damaged.
    async fn copy(&self, key: &str, version: &str, target: &Path) -> Option<u64> {
        let path = self.lock().find(key, version)?;
        let (from, to) = (path.clone(), target.to_owned());
        match blocking(move || std::fs::copy(from, to)).await {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                tracing::debug!(%error, "a file could not be copied from the cache");
                let damaged = self.lock().remove(key, version);
                self.discard(damaged).await;
                None
            }
        }
    }

    /// Takes a copy of `file` into the cache. A failure costs only speed.
    async fn keep(&self, key: &str, etag: &str, file: &Path, bytes: u64) -> bool {
        if bytes == 0 || bytes > self.limit / LARGEST_PART {
            return false;
        }
        let path = self.dir.join(format!("{key}-{}", uuid::Uuid::new_v4().simple()));
        let (from, to) = (file.to_owned(), path.clone());
        if let Err(error) = blocking(move || std::fs::copy(from, to)).await {
            tracing::debug!(%error, "a file could not be put into the cache");
            self.discard(vec![path]).await;
            return false;
        }
        let unneeded = self.lock().add(key, Entry { etag: etag.to_owned(), path, bytes, last_use: 0 }, self.limit);
        self.discard(unneeded).await;
        true
    }

    async fn discard(&self, files: Vec<PathBuf>) {
        if files.is_empty() {
            return;
        }
        let removed = blocking(move || {
            for path in files {
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        tracing::debug!(path = %path.display(), %error, "a file of the cache could not be removed");
                    }
                    _ => {}
                }
            }
            Ok(())
        });
        if let Err(error) = removed.await {
            tracing::debug!(%error, "files of the cache could not be removed");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Asked<'a> {
    /// The entry of this version may be used.
    Same(String),
    /// There is another one.
    New(News<'a>),
}

/// Content that the cache does not have, on its way.
struct News<'a> {
    /// The question was sent after this.
    asked: Instant,
    response: Response,
    _connection: Option<SemaphorePermit<'a>>,
}

/// What is in the cache, and in which order it was used.
#[derive(Debug, Default)]
struct Entries {
    by_key: HashMap<String, Entry>,
    /// Keys by their last use.
    uses: BTreeMap<u64, String>,
    bytes: u64,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    etag: String,
    path: PathBuf,
    bytes: u64,
    last_use: u64,
}

impl Entries {
    fn version(&self, key: &str) -> Option<String> {
        self.by_key.get(key).map(|entry| entry.etag.clone())
    }

    /// The file of an entry, which is used now.
    fn find(&mut self, key: &str, etag: &str) -> Option<PathBuf> {
        let entry = self.by_key.get_mut(key).filter(|entry| entry.etag == etag)?;
        self.uses.remove(&entry.last_use);
        self.clock += 1;
        entry.last_use = self.clock;
        self.uses.insert(self.clock, key.to_owned());
        Some(entry.path.clone())
    }

    /// Adds an entry or replaces the one of this key; gives the files that have to go for it.
    fn add(&mut self, key: &str, mut entry: Entry, limit: u64) -> Vec<PathBuf> {
        let mut unneeded = Vec::new();
        self.take(key, &mut unneeded);
        self.clock += 1;
        entry.last_use = self.clock;
        self.bytes += entry.bytes;
        self.uses.insert(self.clock, key.to_owned());
        self.by_key.insert(key.to_owned(), entry);
        while self.bytes > limit || self.by_key.len() > MAX_ENTRIES {
            let Some((_, oldest)) = self.uses.pop_first() else { break };
            self.take(&oldest, &mut unneeded);
        }
        unneeded
    }

    /// Forgets an entry of this version; gives its file.
    fn remove(&mut self, key: &str, etag: &str) -> Vec<PathBuf> {
        let mut unneeded = Vec::new();
        if self.by_key.get(key).is_some_and(|entry| entry.etag == etag) {
            self.take(key, &mut unneeded);
        }
        unneeded
    }

    fn take(&mut self, key: &str, unneeded: &mut Vec<PathBuf>) {
        if let Some(entry) = self.by_key.remove(key) {
            self.uses.remove(&entry.last_use);
            self.bytes -= entry.bytes;
            unneeded.push(entry.path);
        }
    }
}

fn content_key(url: &Url) -> String {
    // These name another content, unlike the parts of a signature.
    let versions: Vec<String> = url
        .query_pairs()
        .filter(|(name, _)| !matches!(&**name, "sv" | "sr" | "st" | "se" | "sp" | "sip" | "spr" | "sig" | "si"))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    hex(&Md5::digest(format!("{}?{}", without_query(url), versions.join("&"))))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
