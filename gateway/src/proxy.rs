//! gRPC pass-through: on whose behalf a call goes on ([`kiln_grpc::forward`]), and
//! what becomes of it.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::response::Response;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::{HeaderMap, Request};
use http_body::{Frame, SizeHint};
use kiln_error::Error;
use kiln_grpc::ServiceAuth;
use kiln_grpc::caller::ACCOUNT_KEY;
use tokio::sync::OwnedSemaphorePermit;
use tonic::transport::Channel;
use tonic::{Code, Status};

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
    match kiln_grpc::forward::forward(channel, service, request).await {
        Ok(response) => response.map(Body::new),
        Err(why) => Status::from(Error::from(why)).into_http(),
    }
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
