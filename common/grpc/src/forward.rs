//! Calls that are passed on as they came: requests and answers are streams of
//! bytes that nobody looks into. Trailers go through; when one side hangs up, the
//! other is told, because dropping a body resets its stream. An answer that breaks
//! off ends with a status that says so.

use std::error::Error as StdError;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};
use http::{Request, Response, Uri, Version};
use http_body::{Frame, SizeHint};
use kiln_error::Error;
use kiln_telemetry::propagation;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{ConnectError, Status};
use tower::ServiceExt;

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// No connection could be made: the call has reached nobody.
    Unreached(Error),
    /// The connection broke: the call may have been carried out.
    Broken(Error),
    /// The call cannot be passed on.
    Refused(Error),
}

impl From<NoAnswer> for Error {
    fn from(why: NoAnswer) -> Self {
        let (NoAnswer::Unreached(error) | NoAnswer::Broken(error) | NoAnswer::Refused(error)) = why;
        error
    }
}

/// Sends the request on to `service` and gives the answer back as it comes. Who
/// speaks stands in the headers already.
///
/// # Errors
/// See [`NoAnswer`].
pub async fn forward<B>(channel: Channel, service: &str, request: Request<B>) -> Result<Response<Body>, NoAnswer>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let request = to_channel(request).map_err(NoAnswer::Refused)?;
    match channel.oneshot(request).await {
        Ok(response) => Ok(response.map(|body| Body::new(Ending { body, end: None, over: false }))),
        Err(error) => {
            tracing::warn!(service, error = ?error, "a call could not be passed on");
            let unreached = was_unreached(&error);
            let error = Error::unavailable(format!("{service} cannot be reached at the moment; try again"));
            Err(if unreached { NoAnswer::Unreached(error) } else { NoAnswer::Broken(error) })
        }
    }
}

/// The answer ends with UNAVAILABLE as soon as `end` comes.
pub fn until(response: Response<Body>, end: CancellationToken) -> Response<Body> {
    response.map(|body| Body::new(Ending { body, end: Some(Box::pin(end.cancelled_owned())), over: false }))
}

fn was_unreached(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<ConnectError>() {
            return true;
        }
        next = error.source();
    }
    false
}

fn to_channel<B>(request: Request<B>) -> Result<Request<Body>, Error>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let (mut parts, body) = request.into_parts();
    for name in [HOST, CONNECTION, UPGRADE, TRANSFER_ENCODING] {
        parts.headers.remove(name);
    }
    parts.headers.insert(TE, HeaderValue::from_static("trailers"));
    let mut metadata = MetadataMap::from_headers(std::mem::take(&mut parts.headers));
    propagation::inject(&mut metadata);
    parts.headers = metadata.into_headers();
    // The channel adds scheme and authority of the service.
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = parts.uri.path_and_query().cloned();
    parts.uri = Uri::from_parts(uri).map_err(|error| Error::internal(format!("method path: {error}")))?;
    parts.version = Version::HTTP_2;
    parts.extensions = http::Extensions::new();
    Ok(Request::from_parts(parts, Body::new(body)))
}

/// An answer that says how it ended also when it did not end by itself.
struct Ending {
    body: Body,
    end: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    over: bool,
}

impl Ending {
    fn cut(&mut self, why: &str) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.over = true;
        let mut trailers = http::HeaderMap::new();
        Poll::Ready(Some(
            Status::from(Error::unavailable(why)).add_header(&mut trailers).map(|()| Frame::trailers(trailers)),
        ))
    }
}

impl http_body::Body for Ending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if self.end.as_mut().is_some_and(|end| end.as_mut().poll(cx).is_ready()) {
            return self.cut("this replica stops; call again");
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(%error, "an answer that was passed on broke off");
                self.cut("the connection to the service broke; try again")
            }
            polled => polled,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::connect_lazy;

    #[tokio::test]
    async fn what_reached_nobody_is_told_from_what_may_have_been_done() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let request = || Request::post("/kiln.x.v1.X/Y").body(Body::empty()).unwrap();
        // It accepts, and hangs up in the middle.
        let hangs_up = async { drop(listener.accept().await.unwrap()) };
        let channel = connect_lazy(&url).unwrap();
        let (answer, ()) = tokio::join!(forward(channel.clone(), "x", request()), hangs_up);
        assert!(matches!(answer.unwrap_err(), NoAnswer::Broken(_)));
        drop(listener);
        for endpoint in [url.clone(), format!("{url},{url}")] {
            let answer = forward(connect_lazy(&endpoint).unwrap(), "x", request()).await;
            assert!(matches!(answer.unwrap_err(), NoAnswer::Unreached(_)), "{endpoint}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_cut_ends_with_a_status() {
        let (end, pending) = (CancellationToken::new(), futures::stream::pending::<Result<Frame<Bytes>, Status>>());
        let response = until(Response::new(Body::new(http_body_util::StreamBody::new(pending))), end.clone());
        let mut body = response.into_body();
        end.cancel();
        let frame = http_body_util::BodyExt::frame(&mut body).await.unwrap().unwrap();
        assert_eq!(frame.trailers_ref().unwrap()["grpc-status"], "14");
        assert!(http_body_util::BodyExt::frame(&mut body).await.is_none());
    }
}
