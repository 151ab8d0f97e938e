//! Calls with the token of a task: limited to its job.
//!
//! REST names the job in the path. gRPC passes through undecoded for accounts;
//! with a job's token every message is looked at, because only it names the
//! job. A unary message is checked before the call goes on. A client stream
//! goes on at once (its caller may wait for the head of the answer before it
//! sends anything); at the first message that is refused the stream ends for
//! the service behind, which answers what came before, and the caller gets the
//! refusal as the status of its call.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use bytes::{Buf, BytesMut};
use http::{HeaderMap, Request};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use kiln_error::{Error, Kind};
use kiln_grpc::with_account;
use kiln_proto::job::v1::GetJobRequest;
use tokio::time::Instant;
use tonic::Status;

use crate::backend::Backends;
use crate::rights::{GrpcMethod, JobScope};

/// Largest message of a task's call.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// Flag and length before each message.
const PREFIX: usize = 5;
/// A stream looks this often whether its job is still the same.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Looks whether the job is still the one the token was made for.
///
/// # Errors
/// If it is another, or there is none, or job-svc does not answer.
pub async fn check_job(backends: &Backends, account: &str, scope: &JobScope) -> Result<(), Error> {
    let message = GetJobRequest { id: scope.job.clone(), precondition: None };
    let answer = backends.jobs().get_job(with_account(message, account)?).await?.into_inner();
    let job = answer.job.ok_or_else(|| Error::internal("job-svc answered without a job"))?;
    scope.check_creation(job.creation_time.as_ref().map_or(0, kiln_proto::time::micros))
}

/// Why a stream was ended early, for [`Refusable`].
#[derive(Debug, Clone, Default)]
pub struct Refusal(Arc<Mutex<Option<Error>>>);

impl Refusal {
    fn set(&self, error: Error) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn take(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The answer of a service to a stream that was perhaps ended early.
    pub fn apply(self, response: Response) -> Response {
        match self.take() {
            Some(error) => Status::from(error).into_http(),
            None => response.map(|body| Body::new(Refusable { body, refusal: self, done: false })),
        }
    }
}

/// Limits a gRPC request to the job of `scope`.
///
/// # Errors
/// If the call is not about one job, or a unary message is about another.
pub async fn limit(
    request: Request<Body>,
    backends: Backends,
    account: String,
    scope: JobScope,
) -> Result<(Request<Body>, Refusal), Error> {
    let method = GrpcMethod::of(request.uri().path()).ok_or_else(|| scope.denied())?;
    let refusal = Refusal::default();
    let (parts, body) = request.into_parts();
    let mut messages = Messages {
        body,
        buffer: BytesMut::new(),
        method,
        guard: Guard { backends, account, scope, looked: None },
        named: false,
    };
    let body = if method.streams {
        let refusal = refusal.clone();
        Body::from_stream(futures::stream::unfold((messages, refusal), |(mut messages, refusal)| async move {
            match messages.next().await {
                Ok(frame) => frame.map(|frame| (Ok::<_, Error>(frame), (messages, refusal))),
                Err(error) => {
                    refusal.set(error);
                    None
                }
            }
        }))
    } else {
        let message = messages.next().await?;
        if messages.next().await?.is_some() {
            return Err(malformed("this call has one message"));
        }
        Body::from(message.unwrap_or_default())
    };
    Ok((Request::from_parts(parts, body), refusal))
}

fn malformed(why: &str) -> Error {
    Error::new(Kind::InvalidArgument, "InvalidRequestBody", why)
}

#[derive(Debug)]
struct Guard {
    backends: Backends,
    account: String,
    scope: JobScope,
    looked: Option<Instant>,
}

impl Guard {
    async fn check(&mut self) -> Result<(), Error> {
        if self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_AGAIN) {
            check_job(&self.backends, &self.account, &self.scope).await?;
            self.looked = Some(Instant::now());
        }
        Ok(())
    }
}

/// The messages of a request, each with its prefix, one by one.
#[derive(Debug)]
struct Messages {
    body: Body,
    buffer: BytesMut,
    method: GrpcMethod,
    guard: Guard,
    /// A message has named the job; later ones of a stream need not.
    named: bool,
}

impl Messages {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let Some(frame) = self.frame().await? else { return Ok(None) };
        let job = (self.method.job)(&frame[PREFIX..])
            .map_err(|error| malformed(&format!("the message cannot be read: {error}")))?;
        if !(job.is_empty() && self.named) {
            self.guard.scope.check_job(&job)?;
            self.named = true;
        }
        self.guard.check().await?;
        Ok(Some(frame))
    }

    async fn frame(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if self.buffer.len() >= PREFIX {
                if self.buffer[0] != 0 {
                    let why = "compressed messages are not read with the token of a task";
                    return Err(Error::new(Kind::Unimplemented, "NotImplemented", why));
                }
                let length = (&self.buffer[1..PREFIX]).get_u32() as usize;
                if length > MAX_MESSAGE {
                    let why = format!("the message is larger than {MAX_MESSAGE} bytes");
                    return Err(Error::new(Kind::TooLarge, "RequestBodyTooLarge", why));
                }
                if self.buffer.len() >= PREFIX + length {
                    return Ok(Some(self.buffer.split_to(PREFIX + length).freeze()));
                }
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(malformed(&format!("the request broke off: {error}"))),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(malformed("the request ended within a message")),
            }
        }
    }
}

/// An answer whose status becomes the refusal, if there is one at its end.
#[derive(Debug)]
struct Refusable {
    body: Body,
    refusal: Refusal,
    done: bool,
}

impl Refusable {
    fn refused(&mut self) -> Option<Frame<Bytes>> {
        let error = self.refusal.take()?;
        self.done = true;
        let mut trailers = HeaderMap::new();
        if Status::from(error).add_header(&mut trailers).is_err() {
            // A status that cannot be written down is still a refusal.
            trailers.insert("grpc-status", http::HeaderValue::from_static("7"));
        }
        Some(Frame::trailers(trailers))
    }
}

impl http_body::Body for Refusable {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let last = !matches!(&frame, Some(Ok(frame)) if frame.is_data());
        if last && let Some(refused) = self.refused() {
            return Poll::Ready(Some(Ok(refused)));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        // Not the inner one's: its end may still become a refusal.
        self.done
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
