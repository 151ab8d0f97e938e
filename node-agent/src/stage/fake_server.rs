//! An HTTP server that misbehaves as a test wants it to.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

use super::transfer::Http;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    /// Path and query.
    pub target: String,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The first and last byte that were asked for.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (start, end) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((start.parse().ok()?, end.parse().ok()?))
    }
}

/// What is sent back; then the connection is closed.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// So much of the body is really sent.
    sent: usize,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), sent: usize::MAX }
    }

    /// All of `content`.
    pub fn whole(content: &[u8], etag: &str) -> Self {
        Self::new(200).with("etag", etag).with("accept-ranges", "bytes").body(content.to_vec())
    }

    /// What `seen` asks for of `content`, as a server should answer.
    pub fn honest(content: &[u8], etag: &str, seen: &Seen) -> Self {
        if seen.header("if-match").is_some_and(|wanted| wanted != etag) {
            return Self::new(412);
        }
        if seen.header("if-none-match").is_some_and(|known| known == etag) {
            return Self::new(304).with("etag", etag);
        }
        let Some((start, end)) = seen.range() else { return Self::whole(content, etag) };
        if start >= content.len() {
            return Self::new(416);
        }
        let end = end.min(content.len() - 1);
        Self::new(206)
            .with("etag", etag)
            .with("content-range", format!("bytes {start}-{end}/{}", content.len()))
            .body(content[start..=end].to_vec())
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn body(mut self, body: Vec<u8>) -> Self {
        self.body = body;
        self
    }

    /// The connection breaks after so many bytes of the body.
    pub fn cut_after(mut self, sent: usize) -> Self {
        self.sent = sent;
        self
    }
}

/// A running server.
pub struct FakeServer {
    pub url: Url,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl FakeServer {
    /// Answers each request by `script`, which also learns how many came before it.
    pub async fn start(script: impl Fn(usize, &Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}/acc/c/blob", listener.local_addr().unwrap())).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, script) = (seen.clone(), Arc::new(script));
        kiln_telemetry::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (log, script) = (log.clone(), script.clone());
                kiln_telemetry::spawn(async move { answer(stream, &log, &*script).await });
            }
        });
        Self { url, seen }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// A client with three tries.
    pub fn http() -> Http {
        Http::new(Duration::from_secs(60), 3, Arc::default(), None).unwrap()
    }
}

async fn answer(stream: TcpStream, log: &Mutex<Vec<Seen>>, script: &(dyn Fn(usize, &Seen) -> Reply + Send + Sync)) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
        return;
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_lowercase(), value.to_owned()));
    }
    let mut seen = Seen { method, target, headers, body: Vec::new() };
    let length = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
    seen.body = vec![0; length];
    stream.read_exact(&mut seen.body).await.unwrap();
    let reply = {
        let mut log = log.lock().unwrap();
        let reply = script(log.len(), &seen);
        log.push(seen);
        reply
    };
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if reply.status != 304 && !reply.headers.iter().any(|(name, _)| *name == "content-length") {
        head.push_str(&format!("content-length: {}\r\n", reply.body.len()));
    }
    head.push_str("\r\n");
    // The other side may have enough.
    let sent = reply.sent.min(reply.body.len());
    if stream.write_all(head.as_bytes()).await.is_ok() && stream.write_all(&reply.body[..sent]).await.is_ok() {
        let _ = stream.flush().await;
        let _ = stream.get_mut().shutdown().await;
    }
}

/// Bytes that are not the same anywhere.
pub fn content(length: usize, seed: u32) -> Vec<u8> {
    let words = (0..length.div_ceil(4)).flat_map(|at| (at as u32 ^ seed).wrapping_mul(2_654_435_761).to_le_bytes());
    words.take(length).collect()
}
