//! Decides who answers a request: a service behind (gRPC pass-through), the
//! gateway's own gRPC services, the REST front, or the operator's paths.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::HeaderMap;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use kiln_error::{Error, Kind};
use kiln_grpc::caller::now_seconds;
use kiln_telemetry::propagation;
use prost::Message;
use tokio::time::Instant;
use tonic::Status;
use tower::ServiceExt;
use tracing::Instrument;

use crate::accounts::{Accounts, Caller};
use crate::backend::{Backends, Service};
use crate::domain::shared_key::failed;
use crate::job_access;
use crate::limit::AccountLimits;
use crate::metrics::Metrics;
use crate::proxy;
use crate::rest::Rest;

/// Services of the gateway that users call with their account's token (of these
/// the files of tasks also with a task's).
const OWN_SERVICES: [&str; 3] =
    ["kiln.gateway.v1.AccountService", "kiln.gateway.v1.TaskFileService", "kiln.gateway.v1.WorkflowService"];
/// Its requests have all tasks of a workflow, up to 64 MiB, and are read whole.
const LARGE_SERVICE: &str = "kiln.gateway.v1.WorkflowService";
/// Such requests of an account that may be read at once.
const MAX_LARGE: usize = 8;
/// Services that pass with the caller's own token: the local router checks that
/// it is one of a service.
const ADMIN_SERVICE: &str = "kiln.gateway.v1.GatewayAdminService";
/// Health and reflection need no token.
const OPEN_PREFIX: &str = "grpc.";
const OPERATOR_PATHS: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// The one place every request comes to.
#[derive(Debug, Clone)]
pub struct Front {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    accounts: Accounts,
    backends: Backends,
    limits: AccountLimits,
    /// Of requests to [`LARGE_SERVICE`].
    large: AccountLimits,
    metrics: Metrics,
    local: Router,
    rest: Rest,
    /// Paths of all methods, so that only these become metric labels.
    methods: HashSet<String>,
}

impl Front {
    /// Puts the parts together. `local` answers the gateway's own gRPC services
    /// and the operator's paths.
    pub fn new(
        accounts: Accounts,
        backends: Backends,
        limits: AccountLimits,
        metrics: Metrics,
        local: Router,
        rest: Rest,
    ) -> Self {
        let large = AccountLimits::new(MAX_LARGE);
        let inner = Inner { accounts, backends, limits, large, metrics, local, rest, methods: known_methods() };
        Self { inner: Arc::new(inner) }
    }

    /// A router that sends everything here.
    pub fn into_router(self) -> Router {
        Router::new().fallback(move |request: Request| {
            let front = self.inner.clone();
            async move { front.answer(request).await }
        })
    }
}

impl Inner {
    async fn answer(&self, request: Request) -> Response {
        let start = Instant::now();
        if is_grpc(request.headers()) {
            let response = self.grpc(request).await;
            self.metrics.took("grpc", start.elapsed());
            return response;
        }
        if OPERATOR_PATHS.contains(&request.uri().path()) {
            return self.local_answer(request).await;
        }
        let response = Box::pin(self.rest.answer(request)).await;
        self.metrics.took("rest", start.elapsed());
        response
    }

    async fn grpc(&self, request: Request) -> Response {
        let path = request.uri().path().to_owned();
        let method = if self.methods.contains(&path) { path.clone() } else { "other".to_owned() };
        let (response, place) = match self.route_grpc(request, &path).await {
            Ok((response, place)) => (response, place),
            Err(error) => (Status::from(error).into_http(), None),
        };
        proxy::track(response, self.metrics.clone(), method, place)
    }

    async fn route_grpc(
        &self,
        mut request: Request,
        path: &str,
    ) -> Result<(Response, Option<tokio::sync::OwnedSemaphorePermit>), Error> {
        let service = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        if service.starts_with(OPEN_PREFIX) || service == ADMIN_SERVICE {
            return Ok((self.local_answer(request).await, None));
        }
        let backend = Service::of(service);
        if backend.is_none() && !OWN_SERVICES.contains(&service) {
            return Err(Error::new(Kind::Unimplemented, "NotImplemented", format!("there is no method {path} here")));
        }
        let Caller { account, job } = self.authenticate(request.headers()).await?;
        let place = self.limits.enter(&account)?;
        let mut refusal = None;
        if let Some(scope) = job {
            let account = account.name.as_str().to_owned();
            let limited = job_access::limit(request, self.backends.clone(), account, scope);
            let (limited, early) = Box::pin(limited).await?;
            request = limited;
            refusal = Some(early);
        }
        // Until the head of the answer: then the request has been read.
        let _large = (service == LARGE_SERVICE).then(|| self.large.enter(&account)).transpose()?;
        proxy::speak_for(request.headers_mut(), &account, self.backends.auth())?;
        let response = match backend {
            Some(backend) => {
                let span = tracing::info_span!(
                    "rpc",
                    otel.name = path,
                    otel.kind = "server",
                    service = "gateway",
                    account = %account.name,
                );
                propagation::continue_from_headers(&span, request.headers());
                let channel = self.backends.passing(backend, &account)?;
                proxy::forward(channel, backend.name(), request).instrument(span).await
            }
            None => {
                // From here on the gateway itself calls, whose token needs no certificate within its process.
                request.extensions_mut().remove::<kiln_tls::Peer>();
                self.local_answer(request).await
            }
        };
        let response = match refusal {
            Some(refusal) => refusal.apply(response),
            None => response,
        };
        Ok((response, Some(place)))
    }

    async fn authenticate(&self, headers: &HeaderMap) -> Result<Caller, Error> {
        let bearer = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(|| failed("authorization metadata with 'Bearer <account token>' is required"))?;
        self.accounts.authenticate_bearer(bearer, now_seconds()).await
    }

    async fn local_answer(&self, request: Request) -> Response {
        match self.local.clone().oneshot(request).await {
            Ok(response) => response.map(Body::new),
            Err(never) => match never {},
        }
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// `/package.Service/Method` of every contract.
pub(crate) fn known_methods() -> HashSet<String> {
    let Ok(descriptors) = prost_types::FileDescriptorSet::decode(kiln_proto::FILE_DESCRIPTOR_SET) else {
        // Built by our own build script; without it metrics lose their labels.
        tracing::warn!("the descriptors of the contracts cannot be read");
        return HashSet::new();
    };
    let mut methods = HashSet::new();
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                methods.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    methods
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_is_open_or_known_to_be_closed() {
        let closed =
            ["kiln.storage.v1.StorageAdminService", "kiln.pool.v1.NodeControlService", "kiln.job.v1.WorkService"];
        for method in known_methods() {
            let service = method.trim_start_matches('/').split('/').next().unwrap().to_owned();
            let open = Service::of(&service).is_some() || OWN_SERVICES.contains(&&*service) || service == ADMIN_SERVICE;
            assert!(open != closed.contains(&&*service), "{service}");
        }
    }
}
