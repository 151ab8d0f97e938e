//! The client of the benchmark: one connection, signed requests, nothing else.
//!
//! It speaks to every server of the Azure Blob dialect in the same way, so that
//! what differs between two servers is theirs. All clients of a benchmark share
//! one thread: more would take processors away from the server.

use std::sync::Arc;

use anyhow::{Context, anyhow};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use kiln_auth::SecretKey;
use kiln_time::Timestamp;
use storage_svc::domain::query::Query;
use storage_svc::domain::shared_key::{Scheme, SignedRequest, string_to_sign};
use tokio::net::TcpStream;

use crate::failure::{Failure, Outcome};

/// Version that all requests name.
const VERSION: &str = "2021-12-02";

/// An account of a server; clones share it.
#[derive(Debug, Clone)]
pub struct Place(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// `host:port`.
    authority: String,
    account: String,
    key: SecretKey,
}

impl Place {
    /// From `http://host:port`, without the account, and a key in Base64.
    ///
    /// # Errors
    /// Another kind of URL, or no key.
    pub fn new(endpoint: &str, account: &str, key: &str) -> Outcome<Self> {
        let usage = |why: String| Failure::Usage(format!("--endpoint {endpoint}: {why}"));
        let url = url::Url::parse(endpoint).map_err(|error| usage(error.to_string()))?;
        if url.scheme() != "http" || !matches!(url.path(), "" | "/") {
            return Err(usage(
                "blobs are measured at http://host:port, without TLS and without the account".to_owned(),
            ));
        }
        let host = url.host_str().ok_or_else(|| usage("there is no host".to_owned()))?;
        let authority = format!("{host}:{}", url.port_or_known_default().unwrap_or(80));
        let key = SecretKey::from_base64(key).map_err(|error| Failure::Usage(format!("--key: {error}")))?;
        Ok(Self(Arc::new(Inner { authority, account: account.to_owned(), key })))
    }

    /// A new connection.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub async fn connect(&self) -> Outcome<Connection> {
        let authority = &self.0.authority;
        let reached = TcpStream::connect(authority).await;
        let stream = reached.map_err(|error| Failure::Unreachable(format!("{authority}: {error}")))?;
        stream.set_nodelay(true).context("TCP_NODELAY")?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("connection")?;
        kiln_telemetry::spawn(async move {
            // Whoever waits for an answer hears of it, too.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection of the benchmark ended");
            }
        });
        Ok(Connection { place: self.clone(), sender })
    }

    /// `count` connections.
    ///
    /// # Errors
    /// As [`Place::connect`].
    pub async fn connect_many(&self, count: usize) -> Outcome<Vec<Connection>> {
        let mut connections = Vec::with_capacity(count);
        for _ in 0..count {
            connections.push(self.connect().await?);
        }
        Ok(connections)
    }
}

/// A request without its body: method, `container/blob?query`, further headers.
pub type Head<'a> = (&'static str, &'a str, &'a [(&'static str, &'a str)]);

/// One connection, one request at a time.
#[derive(Debug)]
pub struct Connection {
    place: Place,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Sends a request; gives its answer if that has the status `expected`.
    ///
    /// # Errors
    /// The connection broke, or another status, with the beginning of its body.
    pub async fn send(&mut self, head: Head<'_>, body: Bytes, expected: u16) -> Outcome<Response<Incoming>> {
        let response = self.exchange(head, body).await?;
        let status = response.status();
        if status == expected {
            return Ok(response);
        }
        let text = response.into_body().collect().await.context("body of a refusal")?.to_bytes();
        let text: String = String::from_utf8_lossy(&text).chars().take(300).collect();
        Err(anyhow!("{} {}: {status} instead of {expected}: {text}", head.0, head.1).into())
    }

    /// As [`send`](Self::send), and the bytes of the answer.
    ///
    /// # Errors
    /// As there.
    pub async fn fetch(&mut self, head: Head<'_>, body: Bytes, expected: u16) -> Outcome<Bytes> {
        let response = self.send(head, body, expected).await?;
        Ok(response.into_body().collect().await.context("body of an answer")?.to_bytes())
    }

    /// As [`send`](Self::send), and how many bytes the answer had; they are not kept.
    ///
    /// # Errors
    /// As there.
    pub async fn count(&mut self, head: Head<'_>, expected: u16) -> Outcome<u64> {
        let mut body = self.send(head, Bytes::new(), expected).await?.into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.context("body of an answer")?;
            length += frame.data_ref().map_or(0, Bytes::len) as u64;
        }
        Ok(length)
    }

    /// The bytes of a blob; `None` if there is none.
    ///
    /// # Errors
    /// The connection broke, or the server refuses.
    pub async fn find(&mut self, target: &str) -> Outcome<Option<Bytes>> {
        let response = self.exchange(("GET", target, &[]), Bytes::new()).await?;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.context("body of an answer")?.to_bytes();
        match status {
            200 => Ok(Some(bytes)),
            404 => Ok(None),
            other => Err(anyhow!("GET {target}: {other}").into()),
        }
    }

    async fn exchange(&mut self, head: Head<'_>, body: Bytes) -> Outcome<Response<Incoming>> {
        let request = self.signed(head, body)?;
        self.sender.ready().await.context("connection")?;
        Ok(self.sender.send_request(request).await.with_context(|| format!("{} {}", head.0, head.1))?)
    }

    fn signed(&self, (method, target, more): Head<'_>, body: Bytes) -> Outcome<Request<Full<Bytes>>> {
        let Inner { authority, account, key } = &*self.place.0;
        let path_and_query = format!("/{account}/{target}");
        let mut headers = HeaderMap::with_capacity(8 + more.len());
        let mut set = |name: &'static str, value: &str| -> Outcome {
            headers.insert(name, HeaderValue::from_str(value).with_context(|| name.to_owned())?);
            Ok(())
        };
        set("host", authority)?;
        set("x-ms-date", &Timestamp::now().to_http_date())?;
        set("x-ms-version", VERSION)?;
        if method != "GET" {
            set("content-length", &body.len().to_string())?;
        }
        for (name, value) in more {
            set(name, value)?;
        }
        let (path, query) = path_and_query.split_once('?').unwrap_or((&path_and_query, ""));
        let query = Query::parse(query).map_err(anyhow::Error::new)?;
        let signed = SignedRequest { method, account, path, query: &query, headers: &headers };
        let signature = key.sign_base64(string_to_sign(Scheme::Full, &signed).as_bytes());
        let authorization = format!("SharedKey {account}:{signature}");
        headers.insert(header::AUTHORIZATION, HeaderValue::try_from(authorization).context("authorization")?);
        let mut request = Request::builder().method(method).uri(&path_and_query).body(Full::new(body));
        if let Ok(request) = &mut request {
            *request.headers_mut() = headers;
        }
        Ok(request.context("request")?)
    }
}

/// Bytes that no file system and no server can make small, the same for the same `seed`.
pub fn noise(seed: u64, length: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(length + 8);
    let mut state = seed;
    while bytes.len() < length {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_follows_from_its_seed() {
        assert_eq!(noise(1, 4099).len(), 4099);
        assert_eq!(noise(1, 64), noise(1, 64));
        assert_ne!(noise(1, 64), noise(2, 64));
        assert_eq!(noise(3, 64)[..10], noise(3, 10)[..]);
    }

    #[test]
    fn endpoints_that_cannot_be_measured_are_named() {
        const KEY: &str = "a2V5LWtleS1rZXkta2V5LWtleS0=";
        assert!(Place::new("http://127.0.0.1:1", "a", KEY).is_ok());
        for (endpoint, key) in [("https://h", KEY), ("http://h/a", KEY), ("h:1", KEY), ("http://h", "x")] {
            assert!(matches!(Place::new(endpoint, "a", key), Err(Failure::Usage(_))), "{endpoint}");
        }
    }
}
