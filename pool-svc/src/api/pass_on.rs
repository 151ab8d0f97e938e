//! Calls that come to a replica while another one serves.
//!
//! Control streams and questions about files live in one process, and so does
//! the reconciler that follows from them: of several replicas one serves (see
//! [`Duty`](crate::core::Duty)). The others answer from the store what only needs
//! the store, and pass everything else on, streams of agents too, so that callers
//! may use any of them. Who serves stands in the store.
//!
//! A call that has reached nobody waits until somebody serves, for a while; one
//! whose connection broke under way is not repeated, as it may have been carried
//! out. A call is passed on once: who does not serve any more gives it back.

use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{AUTHORIZATION, HeaderValue};
use http::request::Parts;
use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use kiln_auth::token::Principal;
use kiln_error::{Error, Kind};
use kiln_grpc::forward::{self, NoAnswer};
use kiln_grpc::{Caller, ServiceAuth};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Channel;
use tower::Service;

use crate::core::Core;
use crate::store::Replica;

/// Set on a call that was passed on.
const PASSED_ON: &str = "kiln-passed-on";
/// Set on its answer by who does not serve: nothing was done.
const NOT_HERE: &str = "kiln-not-here";
/// Calls that every replica answers from the store.
const ANYWHERE: [&str; 3] = [
    "/kiln.pool.v1.PoolService/GetPool",
    "/kiln.pool.v1.PoolService/ListPools",
    "/kiln.pool.v1.PoolService/CountNodes",
];
/// An agent's stream, which stays open for as long as it can.
const CONTROL: &str = "/kiln.pool.v1.NodeControlService/Control";
/// Calls whose requests are streams: they are passed on as they come, and so once.
const STREAMS: [&str; 2] = [CONTROL, "/kiln.pool.v1.NodeControlService/AnswerFile"];
/// A call waits this long for a replica that serves. After an orderly stop the next one begins within a second.
const PATIENCE: Duration = Duration::from_secs(6);
/// Who serves is looked for this often meanwhile.
const LOOK: Duration = Duration::from_millis(100);
/// Calls that wait at once.
const MAX_WAITING: usize = 512;
/// Length and flag in front of a message.
const PREFIX: usize = 5;

/// The replica that serves, as seen from the others.
pub struct Peer {
    auth: ServiceAuth,
    /// Who served when it was last looked for.
    known: Mutex<Option<(Replica, Channel)>>,
    waiting: Semaphore,
    /// Ends the streams of agents that are passed on.
    end: CancellationToken,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").finish_non_exhaustive()
    }
}

impl Peer {
    /// Calls of services are passed on with the token of `auth`.
    pub fn new(auth: ServiceAuth) -> Self {
        Self { auth, known: Mutex::default(), waiting: Semaphore::new(MAX_WAITING), end: CancellationToken::new() }
    }

    /// Ends the streams of agents that are passed on: they go to another replica.
    pub fn close_all(&self) {
        self.end.cancel();
    }

    fn known(&self) -> Option<Channel> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().map(|(_, channel)| channel.clone())
    }

    fn forget(&self) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A channel to the one that serves; `None` if nobody does, as far as is known.
    async fn find(&self, core: &Core) -> Result<Option<Channel>, Error> {
        if let Some(channel) = self.known() {
            return Ok(Some(channel));
        }
        let Some(replica) = core.store.serving().await?.filter(|replica| replica.id != core.replica.id) else {
            return Ok(None);
        };
        let channel = self.auth.channel(&replica.endpoint, crate::SERVICE)?;
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((replica, channel.clone()));
        Ok(Some(channel))
    }
}

/// Serves here, or passes on.
#[derive(Debug, Clone)]
pub struct PassOn<S> {
    inner: S,
    core: Arc<Core>,
}

impl<S> PassOn<S> {
    /// `inner` answers while it is this replica's turn.
    pub fn new(inner: S, core: Arc<Core>) -> Self {
        Self { inner, core }
    }
}

impl<S: NamedService> NamedService for PassOn<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for PassOn<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if self.core.duty.since().is_some() || ANYWHERE.contains(&request.uri().path()) {
            return Box::pin(self.inner.call(request));
        }
        // The one that was asked whether it is ready.
        let next = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, next);
        let core = self.core.clone();
        Box::pin(async move {
            Ok(match pass_on(&core, inner, request).await {
                Ok(response) => response,
                Err(error) => Status::from(error).into_http(),
            })
        })
    }
}

/// What follows the head of a request.
enum Rest {
    /// All of it: may be sent again.
    Whole(Bytes),
    /// Can be sent once.
    Stream(Body),
    /// Was sent.
    Sent,
}

impl Rest {
    fn take(&mut self) -> Option<Body> {
        match self {
            Self::Whole(bytes) => Some(Body::new(http_body_util::Full::new(bytes.clone()))),
            Self::Stream(body) => {
                let body = std::mem::take(body);
                *self = Self::Sent;
                Some(body)
            }
            Self::Sent => None,
        }
    }
}

async fn pass_on<S>(core: &Core, mut inner: S, request: Request<Body>) -> Result<Response<Body>, Error>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let unavailable = || Error::unavailable("no replica of pool-svc serves at the moment; repeat the call");
    if request.headers().contains_key(PASSED_ON) {
        let mut response = Status::from(unavailable()).into_http();
        response.headers_mut().insert(NOT_HERE, HeaderValue::from_static("1"));
        return Ok(response);
    }
    let place = core.peer.waiting.try_acquire().map_err(|_| unavailable())?;
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let mut rest = if STREAMS.contains(&path) { Rest::Stream(body) } else { Rest::Whole(whole(body).await?) };
    let outgoing = outgoing(core, &parts)?;
    let until = Instant::now() + PATIENCE;
    loop {
        if core.duty.since().is_some() {
            let Some(body) = rest.take() else { return Err(unavailable()) };
            drop(place);
            match inner.call(Request::from_parts(parts, body)).await {
                Ok(response) => return Ok(response),
                Err(never) => match never {},
            }
        }
        // A store that does not answer may do so in time.
        let found = core.peer.find(core).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "the replica that serves is not known");
            None
        });
        if let Some(channel) = found {
            let Some(body) = rest.take() else { return Err(unavailable()) };
            let request = Request::from_parts(outgoing.clone(), body);
            match forward::forward(channel, crate::SERVICE, request).await {
                Ok(response) if response.headers().contains_key(NOT_HERE) => core.peer.forget(),
                Ok(response) if path == CONTROL => return Ok(forward::until(response, core.peer.end.clone())),
                Ok(response) => return Ok(response),
                Err(NoAnswer::Unreached(_)) => core.peer.forget(),
                Err(other) => return Err(other.into()),
            }
        }
        if Instant::now() >= until || core.peer.end.is_cancelled() || matches!(rest, Rest::Sent) {
            return Err(unavailable());
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = core.duty.changed() => {}
            () = core.peer.end.cancelled() => {}
        }
    }
}

async fn whole(body: Body) -> Result<Bytes, Error> {
    let collected = Limited::new(body, super::MAX_REQUEST + PREFIX).collect().await;
    collected.map(http_body_util::Collected::to_bytes).map_err(|error| {
        let why = format!("the request could not be read, or has more than {} bytes: {error}", super::MAX_REQUEST);
        Error::new(Kind::InvalidArgument, "RequestBodyTooLarge", why)
    })
}

/// The head as it goes on. Nodes speak for themselves; a service's token counts
/// only with its own certificate, so this service speaks for the others, for the
/// account that they named.
fn outgoing(core: &Core, parts: &Parts) -> Result<Parts, Error> {
    let caller = parts.extensions.get::<Caller>();
    let caller = caller.ok_or_else(|| Error::internal("the service does not know its callers (layer missing)"))?;
    let mut parts = parts.clone();
    if let Principal::Service { .. } = caller.principal {
        let authorization = HeaderValue::from_bytes(core.peer.auth.authorization().as_bytes());
        let authorization = authorization.map_err(|_| Error::internal("the service token is no header value"))?;
        parts.headers.insert(AUTHORIZATION, authorization);
    }
    parts.headers.insert(PASSED_ON, HeaderValue::from_static("1"));
    Ok(parts)
}
