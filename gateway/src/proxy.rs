//! gRPC pass-through: requests and answers are streams of bytes that the
//! gateway does not look into. Trailers go through; when one side hangs up, the
//! other is told, because dropping a body resets its stream.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::response::Response;
use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Request, Uri, Version};
use http_body::{Frame, SizeHint};
use kiln_error::Error;
use kiln_grpc::ServiceAuth;
use kiln_grpc::caller::ACCOUNT_KEY;
use kiln_telemetry::propagation;
use tokio::sync::OwnedSemaphorePermit;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::ServiceExt;

use crate::domain::Account;
use crate::metrics::Metrics;

/// Metadata that only services may set begins with this.
const OWN_METADATA: &str = "kiln-";

/// Replaces the client's credentials by the gateway's and names the account.
pub fn speak_for(headers: &mut HeaderMap, account: &Account, auth: &ServiceAuth) -> Result<(), Error> {
    let own: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with(OWN_METADATA)).cloned().collect();
    for name in own {
        headers.remove(name);
    }
    // Tokens and account names are visible ASCII; both checks are for the type.
    let authorization = HeaderValue::from_bytes(auth.authorization().as_bytes())
        .map_err(|_| Error::internal("the service token is no header value"))?;
    let name = HeaderValue::from_str(account.name.as_str())
        .map_err(|_| Error::internal("the account name is no header value"))?;
    headers.insert(AUTHORIZATION, authorization);
    headers.insert(ACCOUNT_KEY, name);
    Ok(())
}

/// Sends the request on and gives the answer back as it comes. The headers must
/// speak for the account already.
pub async fn forward(channel: Channel, service: &'static str, request: Request<Body>) -> Response {
    let request = match to_backend(request) {
        Ok(request) => request,
        Err(error) => return Status::from(error).into_http(),
    };
    match channel.oneshot(request).await {
        Ok(response) => response.map(Body::new),
        Err(error) => {
            tracing::warn!(service, error = ?error, "a call could not be passed on");
            let error = Error::unavailable(format!("{service} cannot be reached at the moment; try again"));
            Status::from(error).into_http()
        }
    }
}

fn to_backend(request: Request<Body>) -> Result<Request<tonic::body::Body>, Error> {
    let (mut parts, body) = request.into_parts();
    for name in [HOST, CONNECTION, UPGRADE, TRANSFER_ENCODING] {
        parts.headers.remove(name);
    }
    parts.headers.insert(TE, HeaderValue::from_static("trailers"));
    let mut metadata = MetadataMap::from_headers(std::mem::take(&mut parts.headers));
    propagation::inject(&mut metadata);
    parts.headers = metadata.into_headers();
    // The channel adds scheme and authority of the service.
    let path = parts.uri.path_and_query().cloned();
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = path;
    parts.uri = Uri::from_parts(uri).map_err(|error| Error::internal(format!("method path: {error}")))?;
    parts.version = Version::HTTP_2;
    parts.extensions = http::Extensions::new();
    Ok(Request::from_parts(parts, tonic::body::Body::new(body)))
}

/// Follows an answer to its end: keeps the account's place until then and
/// counts the call with the code it ended with.
#[derive(Debug)]
pub struct Tracked {
    body: Body,
    end: End,
}

#[derive(Debug)]
struct End {
    metrics: Metrics,
    method: String,
    code: Option<Code>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Drop for End {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        self.metrics.answered("grpc", &self.method, &format!("{code:?}"));
        self.metrics.open().dec();
    }
}

/// Wraps the answer's body; see [`Tracked`].
pub fn track(response: Response, metrics: Metrics, method: String, place: Option<OwnedSemaphorePermit>) -> Response {
    metrics.open().inc();
    // An answer without messages has its status among the headers.
    let code = grpc_code(response.headers());
    let end = End { metrics, method, code, _place: place };
    response.map(|body| Body::new(Tracked { body, end }))
}

fn grpc_code(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}

impl http_body::Body for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            self.end.code = grpc_code(trailers);
        }
        if let Poll::Ready(Some(Err(_))) = &polled {
            self.end.code = Some(Code::Unavailable);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
