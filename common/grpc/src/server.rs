//! One listener per service, for everything it serves.

mod patience;
mod port;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use kiln_auth::SecretKey;
use kiln_telemetry::prometheus::{self, Encoder, Registry, TextEncoder};
use kiln_telemetry::propagation;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::Instrument;

use crate::caller::CallerLayer;
use patience::Patient;

pub use port::Port;

/// How long open requests may take after a stop was asked for.
const DRAIN: Duration = Duration::from_secs(10);
/// A client must send its request headers within this time.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Half-dead connections are found after two of these.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Whether a service can do its work; `/readyz` and gRPC health tell it.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<watch::Sender<bool>>);

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Readiness {
    /// Work can be taken from now on (or no longer).
    pub fn set(&self, ready: bool) {
        self.0.send_replace(ready);
    }

    /// Whether work can be taken.
    pub fn is_ready(&self) -> bool {
        *self.0.borrow()
    }

    /// Says that no more work can be taken as soon as `shutdown` comes, also on
    /// connections that stay open while requests under way finish.
    pub fn end_with(&self, shutdown: CancellationToken) {
        let readiness = self.clone();
        kiln_telemetry::spawn(async move {
            shutdown.cancelled().await;
            readiness.set(false);
        });
    }

    /// Completes when work can be taken.
    pub async fn ready(&self) {
        // The sender lives in `self`, so the channel is open.
        let _ = self.0.subscribe().wait_for(|ready| *ready).await;
    }
}

/// A service's gRPC server in the making.
#[derive(Debug)]
pub struct Server {
    /// For logs and spans, for example `job-svc`.
    pub name: &'static str,
    /// Tokens must be signed with this key.
    pub cluster_key: Arc<SecretKey>,
    /// What `/metrics` shows.
    pub metrics: Registry,
    /// What `/readyz` shows.
    pub readiness: Readiness,
}

impl Server {
    /// Serves `routes` with health, reflection and the operator's paths until
    /// `shutdown`, then finishes open requests.
    ///
    /// # Errors
    /// If reflection cannot be set up, or the listener fails for good.
    pub async fn serve(self, port: impl Into<Port>, routes: Routes, shutdown: CancellationToken) -> io::Result<()> {
        let router = self.router(routes)?;
        self.readiness.end_with(shutdown.clone());
        serve_http(self.name, port, router, shutdown).await
    }

    /// The router [`Server::serve`] serves, for services that merge it with an
    /// HTTP front of their own and for tests over in-memory transports.
    ///
    /// # Errors
    /// If reflection cannot be set up.
    pub fn router(&self, routes: Routes) -> io::Result<Router> {
        let (health, health_service) = tonic_health::server::health_reporter();
        // The overall health ("") follows readiness, for as long as anybody can set it.
        let mut readiness = self.readiness.0.subscribe();
        kiln_telemetry::spawn(async move {
            loop {
                let ready = *readiness.borrow_and_update();
                let status =
                    if ready { tonic_health::ServingStatus::Serving } else { tonic_health::ServingStatus::NotServing };
                health.set_service_status("", status).await;
                if readiness.changed().await.is_err() {
                    return;
                }
            }
        });
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(kiln_proto::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(io::Error::other)?;
        let name = self.name;
        let grpc = routes
            .add_service(health_service)
            .add_service(reflection)
            .prepare()
            .into_axum_router()
            .reset_fallback()
            .layer(CallerLayer::new(self.cluster_key.clone()))
            .layer(axum::middleware::from_fn(move |request: axum::extract::Request, next: axum::middleware::Next| {
                let span =
                    tracing::info_span!("rpc", otel.name = request.uri().path(), otel.kind = "server", service = name);
                propagation::continue_from_headers(&span, request.headers());
                next.run(request).instrument(span)
            }));
        Ok(grpc.merge(operator_router(self.metrics.clone(), self.readiness.clone())).fallback(not_found))
    }
}

/// `/livez`, `/readyz` and `/metrics`.
pub fn operator_router(metrics: Registry, readiness: Readiness) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(show_metrics))
        .with_state(Operator { metrics, readiness })
}

#[derive(Debug, Clone)]
struct Operator {
    metrics: Registry,
    readiness: Readiness,
}

async fn readyz(State(operator): State<Operator>) -> Response {
    if operator.readiness.is_ready() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
    }
}

async fn show_metrics(State(operator): State<Operator>) -> Response {
    let mut text = Vec::new();
    let encoder = TextEncoder::new();
    // The service's own, and what belongs to the process.
    let mut families = operator.metrics.gather();
    families.extend(prometheus::gather());
    match encoder.encode(&families, &mut text) {
        Ok(()) => ([("content-type", encoder.format_type().to_owned())], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Answers unknown paths: as gRPC to gRPC callers, as HTTP to others.
async fn not_found(request: axum::extract::Request) -> Response {
    let path = request.uri().path().to_owned();
    let grpc = request
        .headers()
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        tonic::Status::unimplemented(format!("there is no method {path}")).into_http()
    } else {
        (StatusCode::NOT_FOUND, format!("there is nothing at {path}\n")).into_response()
    }
}

/// Accepts connections (HTTP/1.1 and HTTP/2 on one port) until `shutdown`, then
/// lets open requests finish for a bounded time. Requests that come over TLS have
/// their [`kiln_tls::Peer`] among their extensions.
///
/// # Errors
/// Only if the listener itself is unusable; failed connections are logged.
pub async fn serve_http(
    name: &'static str,
    port: impl Into<Port>,
    router: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let Port { listener, tls } = port.into();
    let builder = Arc::new(connection_builder());
    let graceful = GracefulShutdown::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors and the like: others may end soon.
                    tracing::warn!(service = name, %error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = shutdown.cancelled() => break,
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(service = name, %peer, %error, "TCP_NODELAY could not be set");
        }
        let router = router.clone().layer(axum::Extension(axum::extract::ConnectInfo(peer)));
        let connection = Connection { name, peer, builder: builder.clone(), watcher: graceful.watcher() };
        match &tls {
            None => {
                kiln_telemetry::spawn(connection.serve(stream, router));
            }
            Some(tls) => {
                let (tls, shutdown) = (tls.clone(), shutdown.clone());
                kiln_telemetry::spawn(async move {
                    let handshake = port::handshake(name, peer, &tls, stream);
                    let Some(Some((stream, shown))) = shutdown.run_until_cancelled(Box::pin(handshake)).await else {
                        return;
                    };
                    connection.serve(stream, router.layer(axum::Extension(shown))).await;
                });
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::info!(service = name, "some requests were still open when the time to drain was over");
    }
    Ok(())
}

fn connection_builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT)
        // Clients of blobs find the names of metadata as they wrote them.
        .preserve_header_case(true)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_concurrent_streams(1024)
        .initial_connection_window_size(8 * 1024 * 1024)
        .initial_stream_window_size(4 * 1024 * 1024);
    builder
}

/// A connection that was accepted.
struct Connection {
    name: &'static str,
    peer: SocketAddr,
    builder: Arc<auto::Builder<TokioExecutor>>,
    watcher: Watcher,
}

impl Connection {
    /// Serves it to its end.
    async fn serve<S>(self, stream: S, router: Router)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = TowerToHyperService::new(router);
        let connection =
            self.builder.serve_connection_with_upgrades(TokioIo::new(Patient::new(stream)), service).into_owned();
        if let Err(error) = Box::pin(self.watcher.watch(connection)).await {
            tracing::debug!(service = self.name, peer = %self.peer, error, "connection ended");
        }
    }
}
