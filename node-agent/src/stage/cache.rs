//! Content that several tasks need is fetched once.
//!
//! An entry is named by the URL without its query and by the ETag. Every use
//! asks the server with the task's own URL whether the content is still the
//! same: so a task whose signature does not allow the file does not get it
//! from the cache, and a changed blob is seen. Tasks receive copies, not links: a task that writes into
//! its file must not change the file of another one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use futures::StreamExt;
use md5::{Digest, Md5};
use reqwest::header::{CONTENT_LENGTH, ETAG, HeaderMap, IF_NONE_MATCH};
use reqwest::{Response, StatusCode};
use tokio::io::AsyncWriteExt;
use url::Url;

use super::transfer::{Access, Http, TransferError, TryError, check, local_error, request_error, without_query};

/// An entry may take at most this part of the cache.
const LARGEST_PART: u64 = 2;
/// Bytes are written to disk in pieces of this size.
const WRITE_BUFFER: usize = 256 * 1024;

/// See the module.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    limit: u64,
    http: Http,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<String, Entry>,
    /// Held by whoever fetches an entry that does not exist yet.
    fetching: HashMap<String, Arc<tokio::sync::Mutex<()>>>,
    bytes: u64,
    clock: u64,
}

#[derive(Debug, Clone)]
struct Entry {
    etag: String,
    path: PathBuf,
    bytes: u64,
    last_use: u64,
}

impl Cache {
    /// An empty cache in `dir`; what an earlier agent left there is removed.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn create(dir: PathBuf, limit: u64, http: Http) -> std::io::Result<Self> {
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::create_dir_all(&dir)?,
        }
        Ok(Self { dir, limit, http, state: Mutex::default() })
    }

    /// Fetches `url` to the new file `target`; gives its length.
    ///
    /// # Errors
    /// [`TransferError`]; `target` may exist then and has to be removed.
    pub async fn fetch(&self, url: &Url, access: Access, target: &Path) -> Result<u64, TransferError> {
        let key = cache_key(url);
        if self.lookup(&key).is_some() {
            return self.fetch_known(&key, url, access, target).await;
        }
        let turn = self.turn(&key);
        let guard = turn.lock().await;
        // Whoever held the lock before has probably put it into the cache.
        let result = self.fetch_known(&key, url, access, target).await;
        drop(guard);
        drop(turn);
        self.end_turn(&key);
        result
    }

    async fn fetch_known(&self, key: &str, url: &Url, access: Access, target: &Path) -> Result<u64, TransferError> {
        self.http
            .with_retries(|| async {
                let known = self.lookup(key);
                let mut request = self.http.prepare(self.http.client(url).get(url.clone()), access);
                if let Some(entry) = &known {
                    request = request.header(IF_NONE_MATCH, &entry.etag);
                }
                let response = check(request.send().await.map_err(request_error)?).await?;
                match known {
                    Some(entry) if response.status() == StatusCode::NOT_MODIFIED => {
                        match copy(&entry.path, target).await {
                            Ok(bytes) => Ok(bytes),
                            Err(error) => {
                                // Evicted a moment ago, or damaged: fetch it anew.
                                self.remove(key, &entry.etag);
                                Err(TryError::Again(local_error("copying from the cache", &error)))
                            }
                        }
                    }
                    _ if response.status() == StatusCode::NOT_MODIFIED => {
                        let message = "the server says 'not modified' although nothing was known";
                        Err(TryError::Final(TransferError::Other(message.to_owned())))
                    }
                    _ => self.receive(key, response, target).await,
                }
            })
            .await
    }

    async fn receive(&self, key: &str, response: Response, target: &Path) -> Result<u64, TryError> {
        let etag = header(response.headers(), ETAG.as_str());
        let length = header(response.headers(), CONTENT_LENGTH.as_str()).and_then(|text| text.parse::<u64>().ok());
        let bytes = download(response, target).await?;
        let fits = bytes <= self.limit / LARGEST_PART && length.is_none_or(|length| length == bytes);
        if let (Some(etag), true) = (etag, fits && bytes > 0) {
            self.keep(key, etag, target, bytes).await;
        }
        Ok(bytes)
    }

    /// Takes a copy of `file` into the cache. A failure costs only speed.
    async fn keep(&self, key: &str, etag: String, file: &Path, bytes: u64) {
        let path = self.dir.join(format!("{key}-{}", uuid::Uuid::new_v4().simple()));
        if let Err(error) = copy(file, &path).await {
            tracing::debug!(%error, "a file could not be put into the cache");
            remove_file(&path);
            return;
        }
        let mut state = self.lock();
        state.clock += 1;
        let entry = Entry { etag, path, bytes, last_use: state.clock };
        state.bytes += bytes;
        if let Some(old) = state.entries.insert(key.to_owned(), entry) {
            state.bytes -= old.bytes;
            remove_file(&old.path);
        }
        while state.bytes > self.limit {
            let Some(oldest) = state.entries.iter().min_by_key(|(_, entry)| entry.last_use).map(|(key, _)| key.clone())
            else {
                break;
            };
            if let Some(entry) = state.entries.remove(&oldest) {
                state.bytes -= entry.bytes;
                remove_file(&entry.path);
            }
        }
    }

    fn lookup(&self, key: &str) -> Option<Entry> {
        let mut state = self.lock();
        state.clock += 1;
        let now = state.clock;
        let entry = state.entries.get_mut(key)?;
        entry.last_use = now;
        Some(entry.clone())
    }

    fn remove(&self, key: &str, etag: &str) {
        let mut state = self.lock();
        if state.entries.get(key).is_some_and(|entry| entry.etag == etag)
            && let Some(entry) = state.entries.remove(key)
        {
            state.bytes -= entry.bytes;
            remove_file(&entry.path);
        }
    }

    fn turn(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        self.lock().fetching.entry(key.to_owned()).or_default().clone()
    }

    fn end_turn(&self, key: &str) {
        let mut state = self.lock();
        if state.fetching.get(key).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            state.fetching.remove(key);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cache_key(url: &Url) -> String {
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

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn remove_file(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::debug!(path = %path.display(), %error, "a file of the cache could not be removed");
    }
}

async fn copy(from: &Path, to: &Path) -> std::io::Result<u64> {
    tokio::fs::copy(from, to).await
}

/// Writes the body to `target`; checks length and MD5.
async fn download(response: Response, target: &Path) -> Result<u64, TryError> {
    let expected_length = header(response.headers(), CONTENT_LENGTH.as_str()).and_then(|text| text.parse::<u64>().ok());
    let expected_md5 = header(response.headers(), "content-md5")
        .and_then(|text| base64::prelude::BASE64_STANDARD.decode(text).ok())
        .filter(|sum| sum.len() == 16);
    let local = |error: std::io::Error| TryError::Final(local_error("writing the file", &error));
    let file = tokio::fs::File::create(target).await.map_err(local)?;
    let mut file = tokio::io::BufWriter::with_capacity(WRITE_BUFFER, file);
    let mut sum = Md5::new();
    let mut bytes = 0u64;
    let mut body = response.bytes_stream();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(request_error)?;
        sum.update(&piece);
        bytes += piece.len() as u64;
        file.write_all(&piece).await.map_err(local)?;
    }
    file.flush().await.map_err(local)?;
    if expected_length.is_some_and(|expected| expected != bytes) {
        let message = format!("{bytes} bytes arrived instead of {}", expected_length.unwrap_or_default());
        return Err(TryError::Again(TransferError::Other(message)));
    }
    if expected_md5.is_some_and(|expected| expected != sum.finalize().as_slice()) {
        return Err(TryError::Again(TransferError::Other("the content does not fit its Content-MD5".to_owned())));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_do_not_make_another_file_and_snapshots_do() {
        let key = |text: &str| cache_key(&Url::parse(text).unwrap());
        let plain = key("http://h/a/c/b");
        assert_eq!(plain, key("http://h/a/c/b?sv=1&sr=b&sig=xyz&se=2030&sp=r"));
        assert_ne!(plain, key("http://h/a/c/b?snapshot=1&sig=xyz"));
        assert_ne!(plain, key("http://h/a/c/c"));
    }
}
