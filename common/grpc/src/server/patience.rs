//! The bounds of a connection that the HTTP library does not have.
//!
//! | what the client does | who ends it |
//! |---|---|
//! | sends nothing, or the beginning of HTTP/2's preface | here, [`FIRST_BYTES`] |
//! | sends headers slowly, or keeps an idle HTTP/1.1 connection | hyper, its timeout of headers |
//! | answers no pings | hyper, its keep-alive |
//! | does not read the answer | here, [`STALLED`] |
//!
//! Without them anybody who reaches a port, with or without a key, could hold
//! connections until the process has no file descriptors left.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// A client must say within this time which protocol it speaks.
pub(super) const FIRST_BYTES: Duration = Duration::from_secs(30);
/// A client that takes no byte of an answer for this time has gone.
pub(super) const STALLED: Duration = Duration::from_secs(120);

/// What HTTP/2 connections begin with. Bytes that differ are HTTP/1.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection whose client may be slow, but not for ever.
#[derive(Debug)]
pub(super) struct Patient<S> {
    stream: S,
    /// While the protocol is not known.
    opening: Option<Opening>,
    /// Since the client has taken nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
struct Opening {
    /// Bytes of the preface that have come.
    seen: usize,
    limit: Pin<Box<Sleep>>,
}

impl<S> Patient<S> {
    /// Begins to wait.
    pub(super) fn new(stream: S) -> Self {
        let opening = Opening { seen: 0, limit: Box::pin(tokio::time::sleep(FIRST_BYTES)) };
        Self { stream, opening: Some(opening), stalled: None }
    }

    /// Looks at bytes that came in while the protocol is not known.
    fn came(&mut self, bytes: &[u8]) {
        let Some(opening) = &mut self.opening else { return };
        let fits = PREFACE[opening.seen..].iter().zip(bytes).take_while(|(a, b)| a == b).count();
        opening.seen += fits;
        if opening.seen == PREFACE.len() || fits < bytes.len() {
            self.opening = None;
        }
    }

    fn bounded<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let limit = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALLED)));
        match limit.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(too_slow("the client does not read the answer"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

fn too_slow(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, why)
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            self.came(&buffer.filled()[before..]);
        } else if let Some(opening) = &mut self.opening
            && opening.limit.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(too_slow("the client says nothing")));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.bounded(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.bounded(cx, written)
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

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// A server on a port of its own.
    async fn serve(router: Router) -> (std::net::SocketAddr, tokio_util::sync::DropGuard) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let ended = shutdown.clone();
        kiln_telemetry::spawn(async move { crate::server::serve_http("test", listener, router, ended).await });
        (address, shutdown.drop_guard())
    }

    /// Time that passes until the server hangs up on a client that says only this.
    async fn patience_with(text: &[u8]) -> Duration {
        let (address, _guard) = serve(Router::new().route("/", get(|| async { "ok" }))).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(text).await.unwrap();
        let start = Instant::now();
        let mut answer = Vec::new();
        // Whether it is told why is up to the protocol.
        let _ = tokio::time::timeout(FIRST_BYTES * 10, client.read_to_end(&mut answer)).await;
        start.elapsed()
    }

    /// The clock is stopped: it runs on when everybody waits.
    #[tokio::test(start_paused = true)]
    async fn clients_that_say_nothing_do_not_hold_connections() {
        for text in [&b""[..], b"P", &PREFACE[..20], b"GET / HTTP/1.1\r\nhost: x\r\nx: ", PREFACE] {
            let patience = patience_with(text).await;
            assert!(patience <= FIRST_BYTES * 2, "{text:?}: {patience:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_let_go_and_a_slow_one_is_not() {
        let (far, near) = tokio::io::duplex(16);
        let mut patient = Patient::new(near);
        let start = Instant::now();
        let error = patient.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!((error.kind(), start.elapsed() >= STALLED), (io::ErrorKind::TimedOut, true));
        drop(far);

        let (mut far, near) = tokio::io::duplex(16);
        let mut patient = Patient::new(near);
        let reader = kiln_telemetry::spawn(async move {
            let mut taken = 0;
            let mut buffer = [0; 16];
            while taken < 160 {
                tokio::time::sleep(STALLED / 2).await;
                taken += far.read(&mut buffer).await.unwrap();
            }
        });
        patient.write_all(&[0; 160]).await.unwrap();
        reader.await.unwrap();
    }

    #[test]
    fn bytes_that_are_not_http2_end_the_waiting() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        for (pieces, known) in [
            (vec![&b"G"[..]], true),
            (vec![b"P", b"OST / HTTP/1.1"], true),
            (vec![b"P", b"RI * "], false),
            (vec![b"PRI * HTTP/2.0\r\n\r\nSM", b"\r\n\r\nmore"], true),
        ] {
            let mut patient = Patient::new(());
            pieces.iter().for_each(|piece| patient.came(piece));
            assert_eq!(patient.opening.is_none(), known, "{pieces:?}");
        }
    }
}
