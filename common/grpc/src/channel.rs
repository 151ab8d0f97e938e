//! Outgoing calls.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_auth::SecretKey;
use kiln_auth::token::{self, Claims, Principal};
use kiln_error::{Error, Kind};
use kiln_telemetry::propagation;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::caller::{ACCOUNT_KEY, now_seconds};

/// How long a service's own token is valid.
const SERVICE_TOKEN_SECONDS: i64 = 600;

/// A channel whose calls carry a service token and the trace context.
pub type ServiceChannel = InterceptedService<Channel, ServiceAuth>;

/// A channel that connects at its first call and again whenever the connection
/// broke. Keep-alive finds half-dead connections within seconds; without it
/// every later call on one would fail.
///
/// # Errors
/// If `endpoint` is not a URL such as `http://127.0.0.1:7450`.
pub fn connect_lazy(endpoint: &str) -> Result<Channel, Error> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned())
        .map_err(|error| Error::invalid_property("endpoint", endpoint, error.to_string()))?
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .initial_connection_window_size(8 * 1024 * 1024)
        .initial_stream_window_size(4 * 1024 * 1024)
        .tcp_nodelay(true);
    Ok(endpoint.connect_lazy())
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

/// Puts a service's token on its calls.
#[derive(Debug, Clone)]
pub struct ServiceAuth(TokenAuth);

impl ServiceAuth {
    /// Calls of the service `name`, signed with the cluster key.
    pub fn new(name: &'static str, cluster_key: Arc<SecretKey>) -> Self {
        Self(TokenAuth::new(Principal::Service { name: name.to_owned() }, cluster_key, SERVICE_TOKEN_SECONDS))
    }

    /// A channel to `endpoint` whose calls carry this service's token.
    ///
    /// # Errors
    /// As [`connect_lazy`].
    pub fn connect(&self, endpoint: &str) -> Result<ServiceChannel, Error> {
        Ok(InterceptedService::new(connect_lazy(endpoint)?, self.clone()))
    }

    /// See [`TokenAuth::authorization`].
    pub fn authorization(&self) -> AsciiMetadataValue {
        self.0.authorization()
    }
}

impl Interceptor for ServiceAuth {
    fn call(&mut self, request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        self.0.call(request)
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
