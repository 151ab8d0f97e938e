//! HTTP requests with retries.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Certificate, Client, RequestBuilder, Response, StatusCode};
use url::{Host, Url};

/// Version of the blob protocol that requests ask for.
const BLOB_API_VERSION: &str = "2021-12-02";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A server that wants to be left alone for longer is asked again after this.
const LONGEST_WISH: Duration = Duration::from_secs(60);
/// How much of an error's body is put into messages.
const MAX_ERROR_TEXT: usize = 300;
/// How much of an error's body is read for that.
const MAX_ERROR_BODY: usize = 64 * 1024;

/// Makes requests to blob services and other HTTP servers.
#[derive(Debug, Clone)]
pub struct Http {
    /// Follows the proxy settings of the environment.
    remote: Client,
    /// For this machine itself, where a proxy would be wrong.
    local: Client,
    tries: u32,
    /// The node's token; only sent where [`Access::Node`] says so.
    node_token: Arc<RwLock<String>>,
}

/// What a request is allowed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// By what is in the URL.
    Url,
    /// By the node's token: containers of the node's own account.
    Node,
}

/// Why a transfer failed for good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// 404.
    #[error("not found ({0})")]
    NotFound(String),
    /// 401 or 403.
    #[error("access denied ({0})")]
    Denied(String),
    /// 409 or 412.
    #[error("conflict ({0})")]
    Conflict(String),
    /// Another version took the place of the one that was being read.
    #[error("the content changed while it was read")]
    Changed,
    /// Only the whole can be had.
    #[error("the connection broke, and the server cannot send the rest alone")]
    NoRanges,
    /// The server did not answer in time, in the last try.
    #[error("timed out ({0})")]
    TimedOut(String),
    /// The file cannot be written or read here.
    #[error("{0}")]
    Local(String),
    /// No space left.
    #[error("the disk is full")]
    DiskFull,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Why one try failed.
#[derive(Debug)]
pub enum TryError {
    /// Another try may succeed.
    Again(TransferError),
    /// As [`TryError::Again`], after the time that the server asked for.
    Later(TransferError, Duration),
    /// Another try would fail, too.
    Final(TransferError),
}

impl Http {
    /// Trusts the system's authorities and those in `ca_pem`.
    ///
    /// # Errors
    /// When the TLS library cannot be set up, or `ca_pem` is no PEM text.
    pub fn new(
        idle: Duration,
        tries: u32,
        node_token: Arc<RwLock<String>>,
        ca_pem: Option<&str>,
    ) -> reqwest::Result<Self> {
        // Set up already if another part of the process was faster.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let own = ca_pem.map(|pem| Certificate::from_pem_bundle(pem.as_bytes())).transpose()?.unwrap_or_default();
        let builder = || {
            Client::builder()
                .tls_certs_merge(own.clone())
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(idle)
                .tcp_nodelay(true)
                .http1_only()
                .pool_max_idle_per_host(32)
        };
        Ok(Self { remote: builder().build()?, local: builder().no_proxy().build()?, tries: tries.max(1), node_token })
    }

    /// The client for `url`.
    pub fn client(&self, url: &Url) -> &Client {
        let local = match url.host() {
            Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        if local { &self.local } else { &self.remote }
    }

    /// Adds what the blob protocol and `access` need.
    pub fn prepare(&self, request: RequestBuilder, access: Access) -> RequestBuilder {
        let request = request.header("x-ms-version", BLOB_API_VERSION);
        match access {
            Access::Url => request,
            Access::Node => {
                let token = self.node_token.read().unwrap_or_else(PoisonError::into_inner).clone();
                request.bearer_auth(token)
            }
        }
    }

    /// As many tries as one transfer has.
    pub fn retries(&self) -> Retries {
        Retries { left: self.tries, all: self.tries, pause: FIRST_PAUSE }
    }

    /// Tries until success, a final error, or the last try.
    ///
    /// # Errors
    /// The error of the last try.
    pub async fn with_retries<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T, TransferError>
    where
        F: Future<Output = Result<T, TryError>> + Send,
    {
        let mut retries = self.retries();
        loop {
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => retries.pause_after(error).await?,
            }
        }
    }
}

/// Tries that are left.
#[derive(Debug)]
pub struct Retries {
    left: u32,
    all: u32,
    pause: Duration,
}

impl Retries {
    /// Waits until the next try.
    ///
    /// # Errors
    /// The error itself, if it is final or was that of the last try.
    pub async fn pause_after(&mut self, error: TryError) -> Result<(), TransferError> {
        let (error, wish) = match error {
            TryError::Final(error) => return Err(error),
            TryError::Again(error) => (error, Duration::ZERO),
            TryError::Later(error, wish) => (error, wish.min(LONGEST_WISH)),
        };
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            return Err(error);
        }
        let pause = jittered(self.pause).max(wish);
        tracing::debug!(%error, ?pause, "a transfer is tried again");
        tokio::time::sleep(pause).await;
        self.pause = (self.pause * 3).min(LONGEST_PAUSE);
        Ok(())
    }

    /// The last try was worth something: the tries are counted anew.
    pub fn progressed(&mut self) {
        (self.left, self.pause) = (self.all, FIRST_PAUSE);
    }
}

/// Between half and the whole of `pause`, so that many do not come back at once.
pub fn jittered(pause: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_bytes()[0];
    pause / 2 + pause.mul_f64(f64::from(random) / 512.0)
}

/// A request got no (complete) answer.
pub fn request_error(error: reqwest::Error) -> TryError {
    // The URL may contain a signature.
    let error = error.without_url();
    let text = chain(&error);
    if error.is_timeout() {
        TryError::Again(TransferError::TimedOut(text))
    } else if error.is_builder() || error.is_redirect() {
        TryError::Final(TransferError::Other(text))
    } else {
        TryError::Again(TransferError::Other(text))
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

/// Passes answers of success on; says what others mean.
///
/// # Errors
/// The meaning of the status.
pub async fn check(response: Response) -> Result<Response, TryError> {
    let status = response.status();
    if status.is_success() || status == StatusCode::NOT_MODIFIED {
        return Ok(response);
    }
    let code = header(response.headers(), "x-ms-error-code");
    let wish = header(response.headers(), RETRY_AFTER.as_str()).and_then(|seconds| seconds.trim().parse().ok());
    // Bytes that were damaged on their way may arrive whole the next time.
    let damaged = code.as_deref().is_some_and(|code| matches!(code, "Md5Mismatch" | "Crc64Mismatch"));
    let body = match code {
        Some(_) => String::new(),
        None => String::from_utf8_lossy(&beginning(response).await).into_owned(),
    };
    let mut text = format!("HTTP status {}", status.as_u16());
    if let Some(code) = code {
        text.push_str(&format!(", {code}"));
    } else if let Some(line) = body.lines().map(str::trim).find(|line| !line.is_empty()) {
        text.push_str(": ");
        text.extend(line.chars().take(MAX_ERROR_TEXT));
    }
    Err(match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => TryError::Final(TransferError::NotFound(text)),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => TryError::Final(TransferError::Denied(text)),
        StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => TryError::Final(TransferError::Conflict(text)),
        // Only an answer to a range: there is less than there was.
        StatusCode::RANGE_NOT_SATISFIABLE => TryError::Again(TransferError::Changed),
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => TryError::Again(TransferError::TimedOut(text)),
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => match wish {
            Some(seconds) => TryError::Later(TransferError::Other(text), Duration::from_secs(seconds)),
            None => TryError::Again(TransferError::Other(text)),
        },
        _ if damaged => TryError::Again(TransferError::Other(text)),
        _ => TryError::Final(TransferError::Other(text)),
    })
}

/// The text of a header.
pub fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// The first bytes of a body: whoever answers may never stop.
async fn beginning(mut response: Response) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < MAX_ERROR_BODY
        && let Ok(Some(piece)) = response.chunk().await
    {
        bytes.extend_from_slice(&piece);
    }
    bytes
}

/// A whole text that is not larger than `limit`.
///
/// # Errors
/// It is larger, no UTF-8, or breaks off.
pub async fn text(response: Response, limit: usize) -> Result<String, TryError> {
    let bytes = bytes(response, limit).await?;
    String::from_utf8(bytes).map_err(|_| TryError::Final(TransferError::Other("the answer is not UTF-8".to_owned())))
}

/// A whole body that is not larger than `limit`.
///
/// # Errors
/// It is larger, or breaks off.
pub async fn bytes(mut response: Response, limit: usize) -> Result<Vec<u8>, TryError> {
    let mut bytes = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(request_error)? {
        if bytes.len() + piece.len() > limit {
            return Err(TryError::Final(TransferError::Other(format!("the answer is larger than {limit} bytes"))));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// A file of ours cannot be written or read.
pub fn local_error(what: &str, error: &std::io::Error) -> TransferError {
    if matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) {
        TransferError::DiskFull
    } else {
        TransferError::Local(format!("{what}: {error}"))
    }
}

/// The URL without its query, for messages and cache keys: signatures are secrets.
pub fn without_query(url: &Url) -> Url {
    let mut shown = url.clone();
    shown.set_query(None);
    shown.set_fragment(None);
    // Cannot fail for URLs with a host; without one there is no password.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::{Body, Bytes};
    use axum::response::IntoResponse;
    use axum::routing::get;
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// Answers that never end must not fill the memory of the agent.
    #[tokio::test]
    async fn answers_without_an_end_are_not_read_to_the_end() {
        let endless = || {
            let piece = Bytes::from(vec![b'x'; 16 * 1024]);
            Body::from_stream(futures::stream::repeat_with(move || Ok::<_, std::io::Error>(piece.clone())))
        };
        let router = Router::new()
            .route("/error", get(move || async move { (StatusCode::BAD_REQUEST, endless()).into_response() }))
            .route("/list", get(move || async move { endless() }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let _end = shutdown.clone().drop_guard();
        kiln_telemetry::spawn(async move { kiln_grpc::serve_http("test", listener, router, shutdown).await });
        let http = Http::new(Duration::from_secs(60), 1, Arc::default(), None).unwrap();
        let fetch = |path: &str| {
            let url = Url::parse(&format!("http://{address}/{path}")).unwrap();
            http.client(&url).get(url.clone()).send()
        };
        let refused = check(fetch("error").await.unwrap()).await.unwrap_err();
        let TryError::Final(TransferError::Other(message)) = refused else { panic!("{refused:?}") };
        assert!(message.len() < 2 * MAX_ERROR_TEXT, "{}", message.len());
        let refused = text(fetch("list").await.unwrap(), 100_000).await.unwrap_err();
        assert!(matches!(refused, TryError::Final(TransferError::Other(_))), "{refused:?}");
    }
}
