//! Signed raw HTTP requests, for what no SDK would send. Nothing is normalised on the way: the target goes over the wire as
//! it is written here.

use std::time::Duration;

use jiff::{Timestamp, ToSpan};
use kiln_auth::SecretKey;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::server::Server;

const API_VERSION: &str = "api-version=2024-02-01.19.0";
const BLOB_VERSION: &str = "2021-12-02";

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The error code: of the JSON body, of the blob dialect's header, or empty.
    pub fn code(&self) -> String {
        if let Some(code) = self.header("x-ms-error-code") {
            return code.to_owned();
        }
        let json: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        json["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends one request on a connection of its own. `announced` is the Content-Length, if it shall not be the true one.
pub async fn raw(
    authority: &str,
    method: &str,
    target: &str,
    headers: &[(String, String)],
    body: &[u8],
    announced: Option<u64>,
) -> Answer {
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if announced.is_some() || !body.is_empty() || matches!(method, "PUT" | "POST") {
        head += &format!("Content-Length: {}\r\n", announced.unwrap_or(body.len() as u64));
    }
    head += "\r\n";
    let mut connection = TcpStream::connect(authority).await.unwrap();
    connection.write_all(head.as_bytes()).await.unwrap();
    // A server that refuses early may close before it has read everything.
    let _ = connection.write_all(body).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), connection.read_to_end(&mut answer));
    let _ = read.await.unwrap_or_else(|_| panic!("{method} {target}: no end of the answer"));
    parse(&answer).unwrap_or_else(|| panic!("{method} {target}: {:?}", String::from_utf8_lossy(&answer)))
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let pairs = lines.filter_map(|line| line.split_once(':'));
    let headers: Vec<_> = pairs.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    Some(Answer { status, headers, body: answer[end + 4..].to_vec() })
}

/// The REST front of an account.
#[derive(Debug, Clone)]
pub struct Batch {
    authority: String,
    account: String,
    key: SecretKey,
}

impl Batch {
    /// With the account's key.
    pub fn of(server: &Server) -> Self {
        Self {
            authority: server
                .variable("AZURE_BATCH_ENDPOINT")
                .trim_start_matches("http://")
                .trim_end_matches('/')
                .to_owned(),
            account: server.variable("AZURE_BATCH_ACCOUNT").to_owned(),
            key: SecretKey::from_base64(server.variable("AZURE_BATCH_ACCESS_KEY")).unwrap(),
        }
    }

    /// The same with another key.
    #[must_use]
    pub fn with_key(self, key: SecretKey) -> Self {
        Self { key, ..self }
    }

    /// The same for another account.
    #[must_use]
    pub fn with_account(self, account: &str) -> Self {
        Self { account: account.to_owned(), ..self }
    }

    /// Signs and sends. `path` may have a query; the api-version is added.
    pub async fn send(&self, method: &str, path: &str, body: &str) -> Answer {
        self.send_at(method, path, body, Timestamp::now(), &[]).await
    }

    /// As [`Batch::send`] with one conditional header.
    pub async fn send_with_condition(&self, method: &str, path: &str, condition: (&str, &str)) -> Answer {
        self.signed(method, path, "", Timestamp::now(), Some(condition), &[]).await
    }

    /// As [`Batch::send`], at another time of the client's clock and with more headers (not signed).
    pub async fn send_at(&self, method: &str, path: &str, body: &str, now: Timestamp, more: &[(&str, &str)]) -> Answer {
        self.signed(method, path, body, now, None, more).await
    }

    async fn signed(
        &self,
        method: &str,
        path: &str,
        body: &str,
        now: Timestamp,
        condition: Option<(&str, &str)>,
        more: &[(&str, &str)],
    ) -> Answer {
        let target = format!("{path}{}{API_VERSION}", if path.contains('?') { '&' } else { '?' });
        let date = rfc1123(now);
        let content_type = if body.is_empty() { "" } else { "application/json; odata=minimalmetadata" };
        let length = match (method, body.len()) {
            ("GET" | "HEAD" | "DELETE", 0) => String::new(),
            (_, length) => length.to_string(),
        };
        let (path, query) = target.split_once('?').unwrap();
        let if_match = condition.filter(|(name, _)| *name == "If-Match").map_or("", |(_, value)| value);
        let if_none_match = condition.filter(|(name, _)| *name == "If-None-Match").map_or("", |(_, value)| value);
        let to_sign = format!(
            "{method}\n\n\n{length}\n\n{content_type}\n\n\n{if_match}\n{if_none_match}\n\n\nocp-date:{date}\n/{}{path}{}",
            self.account,
            canonical_query(query)
        );
        let mut headers = vec![
            ("ocp-date".to_owned(), date),
            ("Authorization".to_owned(), shared_key(&self.account, &self.key, &to_sign)),
        ];
        if !content_type.is_empty() {
            headers.push(("Content-Type".to_owned(), content_type.to_owned()));
        }
        let more = condition.iter().chain(more);
        headers.extend(more.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        raw(&self.authority, method, &target, &headers, body.as_bytes(), None).await
    }

    /// Sends with these headers only.
    pub async fn unsigned(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let headers: Vec<_> = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let target = format!("{path}{}{API_VERSION}", if path.contains('?') { '&' } else { '?' });
        raw(&self.authority, method, &target, &headers, b"", None).await
    }
}

/// The blob data plane of an account, path style.
#[derive(Debug, Clone)]
pub struct Blobs {
    authority: String,
    account: String,
    key: SecretKey,
}

impl Blobs {
    /// With the storage account's key.
    pub fn of(server: &Server) -> Self {
        let connection = server.variable("AZURE_STORAGE_CONNECTION_STRING");
        let part = |name: &str| {
            let found = connection.split(';').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
            found.unwrap_or_else(|| panic!("no {name} in AZURE_STORAGE_CONNECTION_STRING"))
        };
        let authority = part("BlobEndpoint").trim_start_matches("http://").split('/').next().unwrap();
        Self {
            authority: authority.to_owned(),
            account: part("AccountName").to_owned(),
            key: SecretKey::from_base64(part("AccountKey")).unwrap(),
        }
    }

    /// The same with another key.
    #[must_use]
    pub fn with_key(self, key: SecretKey) -> Self {
        Self { key, ..self }
    }

    /// `http://host:port/account/...`
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{}/{path}", self.authority, self.account)
    }

    /// Signs and sends with the account key. `path` begins with the container, encoded, and may have a query.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.send_announced(method, path, headers, body, None).await
    }

    /// As [`Blobs::send`] with a Content-Length that may be a lie.
    pub async fn send_announced(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        announced: Option<u64>,
    ) -> Answer {
        let target = format!("/{}/{path}", self.account);
        let mut ms = vec![
            ("x-ms-date".to_owned(), rfc1123(Timestamp::now())),
            ("x-ms-version".to_owned(), BLOB_VERSION.to_owned()),
        ];
        ms.extend(headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let mut canonical: Vec<_> = ms
            .iter()
            .filter(|(name, _)| name.starts_with("x-ms-"))
            .map(|(name, value)| format!("{name}:{value}\n"))
            .collect();
        canonical.sort();
        let standard = |name: &str| ms.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value.as_str());
        let length = match announced.unwrap_or(body.len() as u64) {
            0 => String::new(),
            length => length.to_string(),
        };
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let to_sign = format!(
            "{method}\n\n\n{length}\n{}\n{}\n\n\n{}\n{}\n\n{}\n{}/{}{path}{}",
            standard("Content-MD5"),
            standard("Content-Type"),
            standard("If-Match"),
            standard("If-None-Match"),
            standard("Range"),
            canonical.concat(),
            self.account,
            canonical_query(query)
        );
        ms.push(("Authorization".to_owned(), shared_key(&self.account, &self.key, &to_sign)));
        raw(&self.authority, method, &target, &ms, body, announced).await
    }

    /// Sends without a signature: anonymous, or with a SAS in the query.
    pub async fn unsigned(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let headers: Vec<_> = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        raw(&self.authority, method, &format!("/{}/{path}", self.account), &headers, body, None).await
    }

    /// A service SAS: for one blob, or with an empty `blob` for the container. `minutes` from now on; may be negative.
    pub fn sas(&self, container: &str, blob: &str, permissions: &str, minutes: i64) -> String {
        let expiry = (Timestamp::now() + minutes.minutes()).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let (resource, kind) = if blob.is_empty() {
            (format!("/blob/{}/{container}", self.account), "c")
        } else {
            (format!("/blob/{}/{container}/{blob}", self.account), "b")
        };
        let version = "2018-03-28";
        // Start, stored policy, address and protocol stay empty; so do the five response headers.
        let to_sign = format!("{permissions}\n\n{expiry}\n{resource}\n\n\n\n{version}\n\n\n\n\n");
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let signature = self.key.sign_base64(to_sign.as_bytes());
        format!("sv={version}&sr={kind}&se={}&sp={permissions}&sig={}", encode(&expiry), encode(&signature))
    }
}

/// Begins to write a blob of `announced` bytes and hangs up after `sent`.
pub async fn broken_upload(blobs: &Blobs, path: &str, sent: usize, announced: usize) {
    let (container, blob) = path.split_once('/').unwrap();
    let target = format!("/{}/{path}?{}", blobs.account, blobs.sas(container, blob, "w", 60));
    let head = format!(
        "PUT {target} HTTP/1.1\r\nHost: {}\r\nx-ms-blob-type: BlockBlob\r\nContent-Length: {announced}\r\n\r\n",
        blobs.authority
    );
    let mut connection = TcpStream::connect(&blobs.authority).await.unwrap();
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(&vec![7; sent]).await.unwrap();
    connection.flush().await.unwrap();
}

fn shared_key(account: &str, key: &SecretKey, to_sign: &str) -> String {
    format!("SharedKey {account}:{}", key.sign_base64(to_sign.as_bytes()))
}

fn canonical_query(query: &str) -> String {
    let mut pairs: Vec<_> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    pairs.sort();
    let line = |(name, value): (&str, &str)| format!("\n{name}:{}", percent_decode_str(value).decode_utf8_lossy());
    pairs.into_iter().map(line).collect()
}

fn rfc1123(time: Timestamp) -> String {
    time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}
