//! Connections to whichever replica of a service answers.
//!
//! A channel has one connection at a time. When it is made, the replicas are
//! asked in turn, beginning behind the one that had it last, and those that
//! refuse or say nothing are passed over; so a call fails only if no replica can
//! be reached, or if its connection broke when it was already on its way. Such a
//! call is not repeated here: the replica may have done what it asked for.
//!
//! Channels of one process begin at different replicas, and the first one is a
//! matter of chance, so that many processes spread over all replicas.

use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use hyper_util::rt::TokioIo;
use kiln_error::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::Security;
use super::dial::{Dialer, no_url};

const HTTP_PORT: u16 = 80;
/// A replica that does not accept a connection for so long is passed over.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where the next channel of this process begins.
static FIRST: LazyLock<AtomicUsize> = LazyLock::new(|| {
    let chance = std::hash::RandomState::new().build_hasher().finish();
    AtomicUsize::new(usize::try_from(chance >> 33).unwrap_or_default())
});

/// The replicas of one service.
#[derive(Clone)]
pub(super) struct Replicas {
    all: Arc<[Replica]>,
    /// Of the next connection.
    next: Arc<AtomicUsize>,
    uri: Uri,
    origin: Uri,
}

enum Replica {
    Plain { host: String, port: u16 },
    Secured(Dialer),
}

/// Bytes both ways.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

type Link = TokioIo<Box<dyn Io>>;

impl Replicas {
    /// `endpoints` are URLs, separated by commas.
    pub(super) fn new(endpoints: &str, security: &Security) -> Result<Self, Error> {
        let mut first = None;
        let mut all = Vec::new();
        for endpoint in endpoints.split(',').map(str::trim) {
            let uri: Uri = endpoint.parse().map_err(|error| no_url(endpoint, &error))?;
            let replica = match Dialer::new(endpoint, security)? {
                Some(dialer) => {
                    first.get_or_insert_with(|| (dialer.plain_uri(), dialer.origin()));
                    Replica::Secured(dialer)
                }
                None => {
                    let wrong = || Error::invalid_property("endpoint", endpoint, "it is no URL such as http://host:1");
                    let host = uri.host().filter(|_| uri.scheme() == Some(&Scheme::HTTP)).ok_or_else(wrong)?;
                    let (host, port) = (host.trim_matches(['[', ']']).to_owned(), uri.port_u16().unwrap_or(HTTP_PORT));
                    first.get_or_insert_with(|| (uri.clone(), uri.clone()));
                    Replica::Plain { host, port }
                }
            };
            all.push(replica);
        }
        let (uri, origin) = first.unwrap_or_default();
        let next = Arc::new(AtomicUsize::new(FIRST.fetch_add(1, Ordering::Relaxed)));
        Ok(Self { all: all.into(), next, uri, origin })
    }

    /// What tonic is told to connect to.
    pub(super) fn plain_uri(&self) -> Uri {
        self.uri.clone()
    }

    /// What requests are addressed to.
    pub(super) fn origin(&self) -> Uri {
        self.origin.clone()
    }

    /// How long it may take until all have been asked.
    pub(super) fn limit(&self) -> Duration {
        PATIENCE.saturating_mul(u32::try_from(self.all.len() + 1).unwrap_or(u32::MAX))
    }

    async fn connect(self) -> io::Result<Link> {
        let start = self.next.load(Ordering::Relaxed);
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "the service has no replicas");
        for at in 0..self.all.len() {
            let at = start.wrapping_add(at);
            let Some(replica) = self.all.get(at % self.all.len()) else { continue };
            match tokio::time::timeout(PATIENCE, replica.connect()).await {
                Ok(Ok(link)) => {
                    self.next.store(at.wrapping_add(1), Ordering::Relaxed);
                    return Ok(TokioIo::new(link));
                }
                Ok(Err(error)) => failed = error,
                Err(_) => failed = io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {PATIENCE:?}")),
            }
        }
        Err(failed)
    }
}

impl Replica {
    async fn connect(&self) -> io::Result<Box<dyn Io>> {
        match self {
            Self::Plain { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Self::Secured(dialer) => Ok(Box::new(dialer.clone().secured().await?)),
        }
    }
}

impl tower::Service<Uri> for Replicas {
    type Response = Link;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Link>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn listen() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        (listener, url)
    }

    #[tokio::test]
    async fn connections_go_round_and_pass_over_the_dead() {
        let ((one, a), (two, b), (dead, c)) = (listen().await, listen().await, listen().await);
        drop(dead);
        let replicas = Replicas::new(&format!("{a}, {c},{b}"), &Security::default()).unwrap();
        let mut open = Vec::new();
        for _ in 0..6 {
            open.push(replicas.clone().connect().await.unwrap());
        }
        for listener in [&one, &two] {
            for _ in 0..3 {
                listener.accept().await.unwrap();
            }
        }
        drop(two);
        replicas.clone().connect().await.unwrap();
        replicas.clone().connect().await.unwrap();
        drop(one);
        let error = replicas.connect().await.map(drop).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn what_is_no_url_is_named() {
        for wrong in ["http://a:1,", "http://a:1,b", "http://a:1,ftp://b"] {
            let error = Replicas::new(wrong, &Security::default()).map(drop).unwrap_err();
            assert!(error.to_string().contains("endpoint"), "{error}");
        }
    }
}
