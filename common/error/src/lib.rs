//! One vocabulary of errors, from the place where something went wrong to the
//! client, over gRPC and back.
//!
//! Every service has its own error enum, whose variants say what happened, and
//! converts it into [`Error`] at its edge. [`Error`] carries
//! - a [`Kind`]: what the caller can do about it; decides status codes;
//! - a reason: one stable word a program can test, out of the Azure vocabulary
//!   where it has one (`JobNotFound`, `PoolBeingDeleted`, `TaskExists`, ...);
//! - a message for people: what was wrong, with which field, what to do;
//! - details: names with values (`PropertyName`, `PropertyValue`, `Reason`).
//!
//! The only two conversions to and from [`tonic::Status`] are here.

mod status;

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// What the caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request is wrong by itself: correct it.
    InvalidArgument,
    /// A value or position is outside what exists (a range behind the end).
    OutOfRange,
    /// Who calls is not established: give valid credentials.
    Unauthenticated,
    /// Who calls may not do this.
    PermissionDenied,
    /// The named thing does not exist.
    NotFound,
    /// It exists already.
    AlreadyExists,
    /// Its state does not allow this: wait, or do something else first.
    FailedPrecondition,
    /// A condition the caller gave (ETag, date) does not hold.
    ConditionNotMet,
    /// Somebody else was faster: read again, then repeat.
    Aborted,
    /// A limit or quota is reached.
    ResourceExhausted,
    /// The body or message is larger than the limit.
    TooLarge,
    /// Not now: repeat later, nothing has happened.
    Unavailable,
    /// The time given was not enough; it may or may not have happened.
    DeadlineExceeded,
    /// The caller went away or asked to stop.
    Cancelled,
    /// This deployment does not do that.
    Unimplemented,
    /// Our fault.
    Internal,
}

impl Kind {
    /// Whether the same request may succeed later without a change.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Unavailable | Self::Aborted | Self::DeadlineExceeded)
    }

    /// The HTTP status for this kind, for fronts that have nothing more exact.
    pub fn http_status(self) -> http::StatusCode {
        use http::StatusCode as S;
        match self {
            Self::InvalidArgument => S::BAD_REQUEST,
            Self::OutOfRange => S::RANGE_NOT_SATISFIABLE,
            Self::Unauthenticated => S::UNAUTHORIZED,
            Self::PermissionDenied => S::FORBIDDEN,
            Self::NotFound => S::NOT_FOUND,
            Self::AlreadyExists | Self::FailedPrecondition | Self::Aborted => S::CONFLICT,
            Self::ConditionNotMet => S::PRECONDITION_FAILED,
            Self::ResourceExhausted => S::TOO_MANY_REQUESTS,
            Self::TooLarge => S::PAYLOAD_TOO_LARGE,
            Self::Unavailable => S::SERVICE_UNAVAILABLE,
            Self::DeadlineExceeded => S::GATEWAY_TIMEOUT,
            Self::Cancelled => S::REQUEST_TIMEOUT,
            Self::Unimplemented => S::NOT_IMPLEMENTED,
            Self::Internal => S::INTERNAL_SERVER_ERROR,
        }
    }
}

/// An error as a caller sees it.
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    reason: Cow<'static, str>,
    message: String,
    details: Vec<(String, String)>,
    retry_after: Option<Duration>,
}

impl Error {
    /// An error of `kind` with its reason word and a message for people.
    pub fn new(kind: Kind, reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { kind, reason: reason.into(), message: message.into(), details: Vec::new(), retry_after: None }
    }

    /// A field of the request has a value that is not allowed.
    pub fn invalid_property(name: &str, value: impl fmt::Display, why: impl Into<String>) -> Self {
        let why = why.into();
        Self::new(Kind::InvalidArgument, "InvalidPropertyValue", format!("{name}: {why}"))
            .with_detail("PropertyName", name)
            .with_detail("PropertyValue", value.to_string())
            .with_detail("Reason", why)
    }

    /// A field that the request needs is missing.
    pub fn missing_property(name: &str) -> Self {
        Self::new(Kind::InvalidArgument, "MissingRequiredProperty", format!("{name} is required"))
            .with_detail("PropertyName", name)
    }

    /// Our fault; `message` must not contain secrets or data of other accounts.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, "InternalError", message)
    }

    /// Not now; nothing has happened, the caller may repeat.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, "ServerBusy", message)
    }

    /// Adds a name with a value for programs and people.
    #[must_use]
    pub fn with_detail(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.details.push((name.into(), value.into()));
        self
    }

    /// Tells the caller how long to wait before the next try.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The stable word for programs.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The text for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Names with values.
    pub fn details(&self) -> &[(String, String)] {
        &self.details
    }

    /// How long to wait before the next try, if the service said so.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

impl std::error::Error for Error {}
