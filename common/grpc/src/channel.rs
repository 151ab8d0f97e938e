//! Outgoing calls.

mod dial;
mod replicas;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_auth::SecretKey;
use kiln_auth::token::{self, Claims, Principal};
use kiln_error::{Error, Kind};
use kiln_telemetry::propagation;
use kiln_tls::ClientTls;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::caller::{ACCOUNT_KEY, now_seconds};

/// How long a service's own token is valid.
const SERVICE_TOKEN_SECONDS: i64 = 600;
/// How long a connection to one server may take.
const CONNECT: Duration = Duration::from_secs(5);

/// A channel whose calls carry a service token and the trace context.
pub type ServiceChannel = InterceptedService<Channel, ServiceAuth>;

/// How a connection to an `https` endpoint is secured.
#[derive(Debug, Clone, Default)]
pub struct Security {
    /// Whom it trusts, and what it shows; absent means what this system trusts.
    pub tls: Option<ClientTls>,
    /// The name that the other side's certificate must have. Absent means the
    /// host's.
    pub name: Option<&'static str>,
}

/// A channel that connects at its first call and again whenever the connection
/// broke. Keep-alive finds half-dead connections within seconds; without it
/// every later call on one would fail. An `https` endpoint needs a certificate
/// for its host from an authority that this system trusts.
///
/// `endpoint` may name several replicas of a service, separated by commas: a
/// connection goes to one that can be reached, and not always to the same.
///
/// # Errors
/// If `endpoint` is not a URL such as `http://127.0.0.1:7450`.
pub fn connect_lazy(endpoint: &str) -> Result<Channel, Error> {
    connect_secured(endpoint, &Security::default())
}

/// As [`connect_lazy`], with other trust.
///
/// # Errors
/// As there, and if the system's authorities are needed and cannot be read.
pub fn connect_secured(endpoint: &str, security: &Security) -> Result<Channel, Error> {
    if endpoint.contains(',') {
        let replicas = replicas::Replicas::new(endpoint, security)?;
        let limit = replicas.limit();
        let endpoint = Endpoint::from(replicas.plain_uri()).origin(replicas.origin());
        return Ok(tuned(endpoint, limit).connect_with_connector_lazy(replicas));
    }
    Ok(match dial::Dialer::new(endpoint, security)? {
        // The connector brings TLS along; tonic must not look for its own.
        Some(dialer) => {
            let endpoint = Endpoint::from(dialer.plain_uri()).origin(dialer.origin());
            tuned(endpoint, CONNECT).connect_with_connector_lazy(dialer)
        }
        None => {
            let endpoint =
                Endpoint::from_shared(endpoint.to_owned()).map_err(|error| dial::no_url(endpoint, &error))?;
            tuned(endpoint, CONNECT).connect_lazy()
        }
    })
}

fn tuned(endpoint: Endpoint, connect: Duration) -> Endpoint {
    endpoint
        .connect_timeout(connect)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .initial_connection_window_size(8 * 1024 * 1024)
        .initial_stream_window_size(4 * 1024 * 1024)
        .tcp_nodelay(true)
}

/// Puts a bearer token and the trace context on calls. The token is minted from
/// a key when it is needed and renewed at half of its life; clones share it.
#[derive(Debug, Clone)]
pub struct TokenAuth {
    principal: Principal,
    key: Arc<SecretKey>,
    lifetime_seconds: i64,
    current: Arc<Mutex<Option<(i64, AsciiMetadataValue)>>>,
}

impl TokenAuth {
    /// Calls on behalf of `principal`, whose tokens `key` signs.
    pub fn new(principal: Principal, key: Arc<SecretKey>, lifetime_seconds: i64) -> Self {
        Self { principal, key, lifetime_seconds, current: Arc::default() }
    }

    /// The value of the `authorization` header: `Bearer ...`.
    pub fn authorization(&self) -> AsciiMetadataValue {
        let now = now_seconds();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((expires, value)) = &*current
            && expires - now > self.lifetime_seconds / 2
        {
            return value.clone();
        }
        let expires = now + self.lifetime_seconds;
        let claims = Claims { principal: self.principal.clone(), expires };
        // Base64 and dots: always a valid header value.
        #[allow(clippy::expect_used)]
        let mut value: AsciiMetadataValue =
            format!("Bearer {}", token::mint(&self.key, &claims)).parse().expect("tokens are ASCII");
        value.set_sensitive(true);
        *current = Some((expires, value.clone()));
        value
    }
}

impl Interceptor for TokenAuth {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        request.metadata_mut().insert("authorization", self.authorization());
        propagation::inject(request.metadata_mut());
        Ok(request)
    }
}

/// Puts a service's token on its calls, and shows its certificate.
#[derive(Debug, Clone)]
pub struct ServiceAuth {
    token: TokenAuth,
    tls: Option<ClientTls>,
}

impl ServiceAuth {
    /// Calls of the service `name`, signed with the cluster key.
    pub fn new(name: &'static str, cluster_key: Arc<SecretKey>) -> Self {
        let principal = Principal::Service { name: name.to_owned() };
        Self { token: TokenAuth::new(principal, cluster_key, SERVICE_TOKEN_SECONDS), tls: None }
    }

    /// The same with a certificate, if there is one: the other side must be the
    /// service that it is said to be.
    pub fn with_tls(self, tls: Option<ClientTls>) -> Self {
        Self { tls, ..self }
    }

    /// A bare channel to the service `name` at `endpoint`.
    ///
    /// # Errors
    /// As [`connect_secured`].
    pub fn channel(&self, endpoint: &str, name: &'static str) -> Result<Channel, Error> {
        let name = self.tls.is_some().then_some(name);
        connect_secured(endpoint, &Security { tls: self.tls.clone(), name })
    }

    /// A channel to `endpoint`, whoever that is, whose calls carry this
    /// service's token.
    ///
    /// # Errors
    /// As [`connect_secured`].
    pub fn connect(&self, endpoint: &str) -> Result<ServiceChannel, Error> {
        let security = Security { tls: self.tls.clone(), name: None };
        Ok(InterceptedService::new(connect_secured(endpoint, &security)?, self.clone()))
    }

    /// A channel to the service `name` at `endpoint` whose calls carry this
    /// service's token.
    ///
    /// # Errors
    /// As [`connect_secured`].
    pub fn connect_to(&self, endpoint: &str, name: &'static str) -> Result<ServiceChannel, Error> {
        Ok(InterceptedService::new(self.channel(endpoint, name)?, self.clone()))
    }

    /// See [`TokenAuth::authorization`].
    pub fn authorization(&self) -> AsciiMetadataValue {
        self.token.authorization()
    }
}

impl Interceptor for ServiceAuth {
    fn call(&mut self, request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        self.token.call(request)
    }
}

/// A request on behalf of `account`.
///
/// # Errors
/// If the account's name cannot be a metadata value (account names can).
pub fn with_account<T>(message: T, account: &str) -> Result<tonic::Request<T>, Error> {
    let mut request = tonic::Request::new(message);
    let value = account
        .parse()
        .map_err(|_| Error::new(Kind::InvalidArgument, "InvalidHeaderValue", "the account name is not ASCII"))?;
    request.metadata_mut().insert(ACCOUNT_KEY, value);
    Ok(request)
}
