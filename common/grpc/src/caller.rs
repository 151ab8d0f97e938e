//! Who calls a service.
//!
//! Only tokens signed with the cluster key are accepted here: those of services
//! and nodes. Users' keys and tokens are checked at the gateway, which then
//! calls with its own service token and names the account in
//! [`ACCOUNT_KEY`] metadata. A node cannot choose its account: it is in its token.
//!
//! On connections with TLS a service's token counts only together with the
//! certificate of that very service: neither the cluster key nor a node's
//! certificate alone opens what is between services. Nodes may do without a
//! certificate; what they may do is in their token.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};

use futures::future::Either;
use http::HeaderMap;
use kiln_auth::SecretKey;
use kiln_auth::token::{self, Principal};
use kiln_error::{Error, Kind};
use kiln_tls::{Peer, Role};

/// Metadata key in which a service names the account it calls for.
pub const ACCOUNT_KEY: &str = "kiln-account";

/// The verified caller of a request; an extension of every request behind
/// [`CallerLayer`].
#[derive(Debug, Clone)]
pub struct Caller {
    /// What the token says.
    pub principal: Principal,
    account: Option<String>,
}

impl Caller {
    /// The caller of a gRPC request.
    ///
    /// # Errors
    /// Internal error if the service was wired without [`CallerLayer`].
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self, Error> {
        request
            .extensions()
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Error::internal("the service does not know its callers (layer missing)"))
    }

    /// The account the call is about: named by a service, or the node's own.
    ///
    /// # Errors
    /// A service that named none, or a principal that may not call.
    pub fn account(&self) -> Result<&str, Error> {
        match &self.principal {
            Principal::Service { .. } => self.account.as_deref().ok_or_else(|| {
                Error::new(
                    Kind::InvalidArgument,
                    "MissingRequiredHeader",
                    format!("{ACCOUNT_KEY} metadata is required"),
                )
            }),
            Principal::Node { account, .. } | Principal::Join { account, .. } | Principal::PoolJoin { account, .. } => {
                Ok(account)
            }
            Principal::Account { .. } | Principal::Job { .. } => Err(denied("this caller has to use the gateway")),
        }
    }

    /// The account, for RPCs that are only open to services (all public ones:
    /// they are reached through the gateway).
    ///
    /// # Errors
    /// Permission denied for nodes.
    pub fn service_account(&self) -> Result<&str, Error> {
        self.require_service()?;
        self.account()
    }

    /// Refuses everybody but services.
    ///
    /// # Errors
    /// Permission denied for nodes.
    pub fn require_service(&self) -> Result<(), Error> {
        match &self.principal {
            Principal::Service { .. } => Ok(()),
            _ => Err(denied("only services may call this")),
        }
    }

    /// (account, pool, node) of a registered node.
    ///
    /// # Errors
    /// Permission denied for anybody else.
    pub fn node(&self) -> Result<(&str, &str, &str), Error> {
        match &self.principal {
            Principal::Node { account, pool, node, .. } => Ok((account, pool, node)),
            _ => Err(denied("only a registered node may call this")),
        }
    }

    /// Refuses a node whose token was made for another life of its agent.
    ///
    /// # Errors
    /// Permission denied.
    pub fn require_incarnation(&self, said: &str) -> Result<(), Error> {
        match &self.principal {
            Principal::Node { incarnation, .. } if incarnation == said => Ok(()),
            _ => Err(denied("the token is of another life of this node's agent; register again")),
        }
    }
}

fn denied(message: &str) -> Error {
    Error::new(Kind::PermissionDenied, "InsufficientAccountPermissions", message)
}

/// A service's token has to come over a connection with its certificate.
fn check_certificate(service: &str, peer: &Peer) -> Result<(), Error> {
    match peer {
        Peer::Known(Role::Service(name)) if name == service => Ok(()),
        Peer::Anonymous | Peer::Stranger | Peer::Known(Role::Node | Role::Service(_)) => Err(denied(&format!(
            "the token of service {service} needs its certificate ({}), but this connection has shown {peer}; \
             set tls_cert_file and tls_key_file of the caller",
            Role::Service(service.to_owned())
        ))),
    }
}

/// Verifies the bearer token of every call; health and reflection are open.
#[derive(Debug, Clone)]
pub struct CallerLayer {
    key: Arc<SecretKey>,
}

impl CallerLayer {
    /// Accepts tokens signed with `cluster_key`.
    pub fn new(cluster_key: Arc<SecretKey>) -> Self {
        Self { key: cluster_key }
    }

    fn identify(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Result<Caller, Error> {
        let unauthenticated = |message: String| Error::new(Kind::Unauthenticated, "AuthenticationFailed", message);
        let bearer = headers
            .get(http::header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(|| unauthenticated("a bearer token is required".to_owned()))?;
        let claims =
            token::verify(bearer, [&*self.key], now_seconds()).map_err(|error| unauthenticated(error.to_string()))?;
        if let (Principal::Service { name }, Some(peer)) = (&claims.principal, peer) {
            check_certificate(name, peer)?;
        }
        let account = headers.get(ACCOUNT_KEY).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok(Caller { principal: claims.principal, account })
    }
}

/// Seconds since the Unix epoch.
pub fn now_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl<S> tower::Layer<S> for CallerLayer {
    type Service = CallerService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CallerService { inner, layer: self.clone() }
    }
}

/// See [`CallerLayer`].
#[derive(Debug, Clone)]
pub struct CallerService<S> {
    inner: S,
    layer: CallerLayer,
}

impl<S, B, R> tower::Service<http::Request<B>> for CallerService<S>
where
    S: tower::Service<http::Request<B>, Response = http::Response<R>>,
    R: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, std::future::Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        if request.uri().path().starts_with("/grpc.") {
            return Either::Left(self.inner.call(request));
        }
        match self.layer.identify(request.headers(), request.extensions().get::<Peer>()) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Either::Left(self.inner.call(request))
            }
            Err(error) => {
                let response = tonic::Status::from(error).into_http();
                Either::Right(std::future::ready(Ok(response)))
            }
        }
    }
}
