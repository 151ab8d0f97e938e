//! The public ports in front of the replicas: what a load balancer is to a real
//! deployment. Connections go to one replica after the other, first to those that
//! are ready; what goes over them is not looked at.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Connections of one port at a time; further ones wait to be accepted.
const MOST: usize = 4096;
/// A replica has this long to accept a connection.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often all replicas are asked, and the pause between: a client does not
/// notice that they are started again one after the other.
const ROUNDS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// A place where connections may go.
pub trait Backend: Send + Sync + 'static {
    /// Port of this machine.
    fn port(&self) -> u16;
    /// Whether it should be asked before those that are not.
    fn is_ready(&self) -> bool;
}

/// Serves `listener` until `stop`; connections that are open then are cut.
pub async fn balance<B: Backend>(listener: TcpListener, backends: Vec<B>, stop: CancellationToken) {
    let backends: Arc<[B]> = backends.into();
    let places = Arc::new(Semaphore::new(MOST));
    let next = AtomicUsize::new(0);
    let serve = async {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let client = match listener.accept().await {
                Ok((client, _)) => client,
                Err(error) => {
                    // Out of file descriptors and the like: others may end soon.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let (backends, first, stop) = (backends.clone(), next.fetch_add(1, Ordering::Relaxed), stop.clone());
            kiln_telemetry::spawn(async move {
                stop.run_until_cancelled(pass(client, &backends, first)).await;
                drop(place);
            });
        }
    };
    stop.run_until_cancelled(serve).await;
}

async fn pass<B: Backend>(mut client: TcpStream, backends: &[B], first: usize) {
    let Some(mut server) = connect(backends, first).await else {
        tracing::warn!("no replica takes a connection");
        return;
    };
    // Only a matter of speed.
    let _ = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut server).await {
        tracing::debug!(%error, "a connection broke");
    }
}

async fn connect<B: Backend>(backends: &[B], first: usize) -> Option<TcpStream> {
    for _ in 0..ROUNDS {
        let all = || (0..backends.len()).filter_map(|at| backends.get(first.wrapping_add(at) % backends.len()));
        let ready = all().filter(|backend| backend.is_ready());
        let others = all().filter(|backend| !backend.is_ready());
        for backend in ready.chain(others) {
            let connecting = TcpStream::connect((Ipv4Addr::LOCALHOST, backend.port()));
            if let Ok(Ok(server)) = tokio::time::timeout(PATIENCE, connecting).await {
                return Some(server);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct Fixed(u16, bool);

    impl Backend for Fixed {
        fn port(&self) -> u16 {
            self.0
        }

        fn is_ready(&self) -> bool {
            self.1
        }
    }

    /// A server that says its number to whoever connects.
    async fn server(number: u8) -> (u16, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, stop) = (listener.local_addr().unwrap().port(), CancellationToken::new());
        let stopped = stop.clone();
        kiln_telemetry::spawn(async move {
            while let Some(Ok((mut stream, _))) = stopped.run_until_cancelled(listener.accept()).await {
                stream.write_all(&[number]).await.unwrap();
            }
        });
        (port, stop)
    }

    #[tokio::test]
    async fn connections_go_to_all_that_are_ready_and_past_those_that_are_gone() {
        let ((one, _one), (two, two_stops), (slow, _slow)) = (server(1).await, server(2).await, server(3).await);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let backends = vec![Fixed(one, true), Fixed(two, true), Fixed(slow, false)];
        let balancing = kiln_telemetry::spawn(balance(listener, backends, stop.clone()));
        let ask = async || TcpStream::connect(address).await.unwrap().read_u8().await.unwrap();
        let mut seen = Vec::new();
        for _ in 0..6 {
            seen.push(ask().await);
        }
        assert!(seen.contains(&1) && seen.contains(&2) && !seen.contains(&3), "{seen:?}");
        two_stops.cancel();
        // Its listener closes when its loop has noticed.
        while TcpStream::connect(("127.0.0.1", two)).await.is_ok() {
            tokio::task::yield_now().await;
        }
        for _ in 0..4 {
            assert_eq!(ask().await, 1);
        }
        stop.cancel();
        balancing.await.unwrap();
    }
}
