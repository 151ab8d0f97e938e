//! A port, and the handshake of its connections where it has a certificate.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kiln_tls::{Live, Peer, explain};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// A client must have done its part of the handshake within this time.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A listener, with TLS if it has a certificate: then nothing else is spoken there.
#[derive(Debug)]
pub struct Port {
    pub(super) listener: TcpListener,
    pub(super) tls: Option<Arc<Live>>,
}

impl From<TcpListener> for Port {
    /// Without TLS.
    fn from(listener: TcpListener) -> Self {
        Self { listener, tls: None }
    }
}

impl Port {
    /// With TLS if there is a certificate.
    pub fn new(listener: TcpListener, tls: Option<Arc<Live>>) -> Self {
        Self { listener, tls }
    }

    /// Whether it speaks TLS.
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Where others reach it: as was said, else by its own address.
    ///
    /// # Errors
    /// If the socket has gone.
    pub fn advertised(&self, said: Option<&str>) -> io::Result<String> {
        Ok(match said {
            Some(endpoint) => endpoint.to_owned(),
            None => format!("{}://{}", if self.has_tls() { "https" } else { "http" }, self.local_addr()?),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// If the socket has gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Waits for a connection's handshake; tells what was wrong with it.
pub(super) async fn handshake(
    name: &'static str,
    peer: SocketAddr,
    tls: &Live,
    stream: TcpStream,
) -> Option<(TlsStream<TcpStream>, Peer)> {
    let accepting = TlsAcceptor::from(tls.server_config()).accept(stream);
    match tokio::time::timeout(HANDSHAKE, accepting).await {
        Ok(Ok(stream)) => {
            let shown = Peer::of(stream.get_ref().1.peer_certificates());
            Some((stream, shown))
        }
        Ok(Err(error)) => {
            match explain(&error) {
                Some(why) => tracing::warn!(service = name, %peer, why, "a caller was refused"),
                None => tracing::debug!(service = name, %peer, %error, "a handshake broke off"),
            }
            None
        }
        Err(_) => {
            tracing::debug!(service = name, %peer, "a handshake took too long");
            None
        }
    }
}
