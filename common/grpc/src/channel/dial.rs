//! Connections with TLS for channels.
//!
//! What to trust and which certificate to show is asked for at every
//! connection, so a certificate that was replaced meanwhile is used. Where a
//! handshake fails, the error says which side was not content with what.
//!
//! With TLS 1.3 a client learns only from its first read that its certificate was
//! refused. A connection on which calls have begun would tell them no more than
//! that it was closed. So the dialer sends the preface of HTTP/2 itself and waits
//! for the server's first bytes; what HTTP/2 writes first is then left out.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};
use hyper_util::rt::TokioIo;
use kiln_error::Error;
use kiln_tls::{ClientTls, explain};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Security;

const HTTPS_PORT: u16 = 443;
/// What HTTP/2 connections begin with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A server that says nothing for so long may want more than the preface.
const FIRST_BYTES: Duration = Duration::from_secs(2);

/// Connects to one endpoint.
#[derive(Clone)]
pub(super) struct Dialer {
    host: Arc<str>,
    authority: Authority,
    port: u16,
    name: ServerName<'static>,
    tls: ClientTls,
}

pub(super) fn no_url(endpoint: &str, why: &dyn std::error::Error) -> Error {
    Error::invalid_property("endpoint", endpoint, why.to_string())
}

impl Dialer {
    /// For an `https` endpoint; others need none.
    pub(super) fn new(endpoint: &str, security: &Security) -> Result<Option<Self>, Error> {
        let uri: Uri = endpoint.parse().map_err(|error| no_url(endpoint, &error))?;
        if uri.scheme() != Some(&Scheme::HTTPS) {
            return Ok(None);
        }
        let wrong = |why: String| Error::invalid_property("endpoint", endpoint, why);
        let authority = uri.authority().cloned().ok_or_else(|| wrong("it has no host".to_owned()))?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let name = security.name.unwrap_or(&host).to_owned();
        let name = ServerName::try_from(name).map_err(|_| wrong("its host is no name of a server".to_owned()))?;
        let tls = match &security.tls {
            Some(tls) => tls.clone(),
            None => ClientTls::system().map_err(|error| wrong(error.to_string()))?,
        };
        let port = authority.port_u16().unwrap_or(HTTPS_PORT);
        Ok(Some(Self { host: host.into(), authority, port, name, tls }))
    }

    /// What tonic is told to connect to.
    pub(super) fn plain_uri(&self) -> Uri {
        self.uri(Scheme::HTTP)
    }

    /// What requests are addressed to.
    pub(super) fn origin(&self) -> Uri {
        self.uri(Scheme::HTTPS)
    }

    fn uri(&self, scheme: Scheme) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(scheme);
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(PathAndQuery::from_static("/"));
        // Of parts that were taken from an URI.
        Uri::from_parts(parts).unwrap_or_default()
    }

    /// Connects, and waits until the server has accepted.
    pub(super) async fn secured(self) -> io::Result<Secured> {
        let stream = TcpStream::connect((&*self.host, self.port)).await?;
        stream.set_nodelay(true)?;
        let place = format!("{}:{}", self.host, self.port);
        let connected = TlsConnector::from(self.tls.config()).connect(self.name, stream).await;
        let stream = connected.map_err(|error| told(&place, error))?;
        Secured::accepted(stream, place).await
    }
}

/// The same error, in words that help.
fn told(place: &str, error: io::Error) -> io::Error {
    match explain(&error) {
        Some(why) => {
            tracing::warn!(peer = place, why, "no TLS with this server");
            io::Error::new(error.kind(), format!("TLS with {place}: {why}"))
        }
        None => error,
    }
}

impl tower::Service<Uri> for Dialer {
    type Response = TokioIo<Secured>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Secured>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The endpoint's own address; `uri` is the same without TLS.
    fn call(&mut self, _uri: Uri) -> Self::Future {
        let connecting = self.clone().secured();
        Box::pin(async move { connecting.await.map(TokioIo::new) })
    }
}

/// A connection that the server has accepted.
pub(super) struct Secured {
    stream: TlsStream<TcpStream>,
    place: String,
    /// Bytes of the preface that are still to be left out.
    written: usize,
    /// What was read already.
    early: Bytes,
}

impl Secured {
    async fn accepted(mut stream: TlsStream<TcpStream>, place: String) -> io::Result<Self> {
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            let why = format!("TLS with {place}: it does not speak HTTP/2, which gRPC needs");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let mut early = BytesMut::with_capacity(1024);
        let answered = async {
            stream.write_all(PREFACE).await?;
            stream.flush().await?;
            stream.read_buf(&mut early).await
        };
        match tokio::time::timeout(FIRST_BYTES, answered).await {
            Ok(Ok(0)) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{place} closed the connection"))),
            Ok(Err(error)) => Err(told(&place, error)),
            Ok(Ok(_)) | Err(_) => Ok(Self { stream, place, written: PREFACE.len(), early: early.freeze() }),
        }
    }

    /// How much of `bytes` was written before.
    fn already(&mut self, bytes: &[u8]) -> usize {
        let count = self.written.min(bytes.len());
        self.written -= count;
        count
    }
}

impl AsyncRead for Secured {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.early.is_empty() {
            let count = self.early.len().min(buffer.remaining());
            buffer.put_slice(&self.early.split_to(count));
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        read.map_err(|error| told(&self.place, error))
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let already = self.already(bytes);
        if already > 0 {
            return Poll::Ready(Ok(already));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.written > 0 {
            let already = bytes.iter().map(|bytes| self.already(bytes)).sum();
            return Poll::Ready(Ok(already));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
