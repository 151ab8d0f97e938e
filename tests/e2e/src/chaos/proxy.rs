//! A wire that can be cut: bytes between two sockets.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Listens for as long as the process lives.
#[derive(Debug)]
pub struct Proxy {
    to: (String, u16),
    refusing: AtomicBool,
    connections: Mutex<BTreeMap<u64, Connection>>,
}

#[derive(Debug)]
struct Connection {
    cut: CancellationToken,
    silent: watch::Sender<bool>,
}

/// A proxy before the broker of this URL; gives the URL that leads through it.
pub async fn before_broker(host: &str, url: &str) -> (String, Arc<Proxy>) {
    let (before, rest) = url.rsplit_once('@').expect("an AMQP URL with a user");
    let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (broker, port) = place.rsplit_once(':').expect("an AMQP URL with a port");
    let proxy = Proxy::start(host, 7474, broker, port.parse().unwrap()).await;
    (format!("{before}@{host}:7474/{path}"), proxy)
}

/// One connection of those of all proxies says nothing any more, in neither direction, and is cut after a while. Returns at
/// once.
pub fn silence(proxies: &[Arc<Proxy>], which: usize, away: Duration) {
    let mut all = Vec::new();
    for proxy in proxies {
        let connections = proxy.connections.lock().unwrap();
        all.extend(connections.values().map(|connection| (connection.silent.clone(), connection.cut.clone())));
    }
    if all.is_empty() {
        return;
    }
    let (silent, cut) = all.swap_remove(which % all.len());
    silent.send_replace(true);
    kiln_telemetry::spawn(async move {
        tokio::time::sleep(away).await;
        cut.cancel();
    });
}

impl Proxy {
    /// Passes on what comes to the first address to the second.
    pub async fn start(host: &str, port: u16, to_host: &str, to_port: u16) -> Arc<Self> {
        let listener = TcpListener::bind((host, port)).await.unwrap();
        let to = (to_host.to_owned(), to_port);
        let proxy = Arc::new(Self { to, refusing: AtomicBool::new(false), connections: Mutex::default() });
        let accepting = proxy.clone();
        kiln_telemetry::spawn(async move {
            let mut number = 0;
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                if accepting.refusing.load(Ordering::Relaxed) {
                    continue;
                }
                number += 1;
                kiln_telemetry::spawn(accepting.clone().pass(number, client));
            }
        });
        proxy
    }

    /// Ends all connections and takes no new ones for a while.
    pub async fn cut(&self, away: Duration) {
        self.refusing.store(true, Ordering::Relaxed);
        for connection in self.connections.lock().unwrap().values() {
            connection.cut.cancel();
        }
        tokio::time::sleep(away).await;
        self.refusing.store(false, Ordering::Relaxed);
    }

    async fn pass(self: Arc<Self>, number: u64, client: TcpStream) {
        let Ok(server) = TcpStream::connect((self.to.0.as_str(), self.to.1)).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let cut = CancellationToken::new();
        let (silent, said) = watch::channel(false);
        self.connections.lock().unwrap().insert(number, Connection { cut: cut.clone(), silent });
        let (client_in, client_out) = client.into_split();
        let (server_in, server_out) = server.into_split();
        // Either side's end is the end of both; what is half closed stays open in one direction only with HTTP/1.
        tokio::select! {
            () = cut.cancelled() => {}
            () = pump(client_in, server_out, said.clone()) => {}
            () = pump(server_in, client_out, said) => {}
        }
        self.connections.lock().unwrap().remove(&number);
    }
}

async fn pump(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut silent: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        if silent.wait_for(|silent| !silent).await.is_err() || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
