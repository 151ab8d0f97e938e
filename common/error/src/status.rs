//! [`Error`] to [`tonic::Status`] and back.
//!
//! The reason and the details travel as `google.rpc.ErrorInfo` in the status
//! details, so clients in any language can read them.

use std::borrow::Cow;
use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{Error, Kind};

const DOMAIN: &str = "kiln";
/// Kinds that share a gRPC code are told apart by this entry.
const KIND_KEY: &str = "kiln-kind";

impl Kind {
    /// The gRPC code that carries this kind.
    pub fn grpc_code(self) -> Code {
        match self {
            Self::InvalidArgument => Code::InvalidArgument,
            Self::OutOfRange => Code::OutOfRange,
            Self::Unauthenticated => Code::Unauthenticated,
            Self::PermissionDenied => Code::PermissionDenied,
            Self::NotFound => Code::NotFound,
            Self::AlreadyExists => Code::AlreadyExists,
            Self::FailedPrecondition | Self::ConditionNotMet => Code::FailedPrecondition,
            Self::Aborted => Code::Aborted,
            Self::ResourceExhausted | Self::TooLarge => Code::ResourceExhausted,
            Self::Unavailable => Code::Unavailable,
            Self::DeadlineExceeded => Code::DeadlineExceeded,
            Self::Cancelled => Code::Cancelled,
            Self::Unimplemented => Code::Unimplemented,
            Self::Internal => Code::Internal,
        }
    }

    fn from_code(code: Code, marker: Option<&str>) -> Self {
        match (code, marker) {
            (Code::FailedPrecondition, Some("condition")) => Self::ConditionNotMet,
            (Code::ResourceExhausted, Some("too-large")) => Self::TooLarge,
            (Code::InvalidArgument, _) => Self::InvalidArgument,
            (Code::OutOfRange, _) => Self::OutOfRange,
            (Code::Unauthenticated, _) => Self::Unauthenticated,
            (Code::PermissionDenied, _) => Self::PermissionDenied,
            (Code::NotFound, _) => Self::NotFound,
            (Code::AlreadyExists, _) => Self::AlreadyExists,
            (Code::FailedPrecondition, _) => Self::FailedPrecondition,
            (Code::Aborted, _) => Self::Aborted,
            (Code::ResourceExhausted, _) => Self::ResourceExhausted,
            (Code::Unavailable, _) => Self::Unavailable,
            (Code::DeadlineExceeded, _) => Self::DeadlineExceeded,
            (Code::Cancelled, _) => Self::Cancelled,
            (Code::Unimplemented, _) => Self::Unimplemented,
            (Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss, _) => Self::Internal,
        }
    }

    fn marker(self) -> Option<&'static str> {
        match self {
            Self::ConditionNotMet => Some("condition"),
            Self::TooLarge => Some("too-large"),
            _ => None,
        }
    }
}

// A status travels in headers, and HTTP/2 ends the connection, with all calls of
// everybody on it, when they are larger than 16 KiB. Errors repeat what clients
// sent; so what is repeated is bounded. In the headers, the message takes up to
// three times its size, and once more with the details in Base64.

/// Bytes of a reason; nodes send some.
const MAX_REASON: usize = 128;
/// Bytes of a message.
const MAX_MESSAGE: usize = 1536;
/// Bytes of one value of the details.
const MAX_VALUE: usize = 768;
/// Bytes of all details; those that do not fit are left out.
const MAX_DETAILS: usize = 3072;
/// Ends a text that was cut.
const MORE: &str = "...";

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = error.kind.grpc_code();
        let mut room = MAX_DETAILS;
        let mut metadata = HashMap::new();
        for (name, value) in error.details {
            let value = shortened(value, MAX_VALUE);
            match room.checked_sub(name.len() + value.len()) {
                Some(left) => room = left,
                None => continue,
            }
            metadata.insert(name, value);
        }
        if let Some(marker) = error.kind.marker() {
            metadata.insert(KIND_KEY.to_owned(), marker.to_owned());
        }
        let mut details =
            ErrorDetails::with_error_info(shortened(error.reason.into_owned(), MAX_REASON), DOMAIN, metadata);
        if let Some(after) = error.retry_after {
            details.set_retry_info(Some(after));
        }
        Self::with_error_details(code, shortened(error.message, MAX_MESSAGE), details)
    }
}

/// The text, or as much of it as fits into `max` bytes.
fn shortened(mut text: String, max: usize) -> String {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max - MORE.len()));
        text.push_str(MORE);
    }
    text
}

impl From<Status> for Error {
    /// Statuses that did not come from Kiln get a reason made of their code.
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let marker = info.and_then(|info| info.metadata.get(KIND_KEY)).map(String::as_str);
        // What has a source came from here and not from the other side: the connection was closed
        // before the call had left, and nobody has cancelled it.
        let closed = status.code() == Code::Cancelled && std::error::Error::source(&status).is_some();
        let kind = if closed { Kind::Unavailable } else { Kind::from_code(status.code(), marker) };
        let reason = match info {
            Some(info) => Cow::Owned(info.reason.clone()),
            None => Cow::Borrowed(default_reason(kind)),
        };
        let mut pairs: Vec<(String, String)> = info
            .map(|info| info.metadata.iter().filter(|(name, _)| *name != KIND_KEY))
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        pairs.sort();
        Self {
            kind,
            reason,
            message: with_sources(&status),
            details: pairs,
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
        }
    }
}

/// The message, and why: a connection that could not be made, or broke, has its
/// reason among its sources, as long as it is not sent on.
fn with_sources(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut next = std::error::Error::source(status);
    while let Some(source) = next {
        let why = source.to_string();
        // Some repeat what they are about.
        if !why.is_empty() && !text.contains(&why) {
            text.push_str(": ");
            text.push_str(&why);
        }
        next = source.source();
    }
    text
}

fn default_reason(kind: Kind) -> &'static str {
    match kind {
        Kind::InvalidArgument => "InvalidInput",
        Kind::OutOfRange => "InvalidRange",
        Kind::Unauthenticated => "AuthenticationFailed",
        Kind::PermissionDenied => "InsufficientAccountPermissions",
        Kind::NotFound => "ResourceNotFound",
        Kind::AlreadyExists => "ResourceAlreadyExists",
        Kind::FailedPrecondition => "OperationInvalidForCurrentState",
        Kind::ConditionNotMet => "ConditionNotMet",
        Kind::Aborted => "Conflict",
        Kind::ResourceExhausted => "TooManyRequests",
        Kind::TooLarge => "RequestBodyTooLarge",
        Kind::Unavailable => "ServerBusy",
        Kind::DeadlineExceeded | Kind::Cancelled => "OperationTimedOut",
        Kind::Unimplemented => "NotImplemented",
        Kind::Internal => "InternalError",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_call_whose_connection_was_closed_before_it_left_may_be_repeated() {
        let mut status = Status::cancelled("operation was canceled");
        assert_eq!(Error::from(status.clone()).kind(), Kind::Cancelled);
        status.set_source(std::sync::Arc::new(std::io::Error::other("connection closed")));
        let error = Error::from(status);
        assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, "ServerBusy"));
        assert!(error.to_string().contains("connection closed"), "{error}");
    }

    #[test]
    fn every_kind_survives_the_wire() {
        use Kind as K;
        for kind in [
            K::InvalidArgument,
            K::OutOfRange,
            K::Unauthenticated,
            K::PermissionDenied,
            K::NotFound,
            K::AlreadyExists,
            K::FailedPrecondition,
            K::ConditionNotMet,
            K::Aborted,
            K::ResourceExhausted,
            K::TooLarge,
            K::Unavailable,
            K::DeadlineExceeded,
            K::Cancelled,
            K::Unimplemented,
            K::Internal,
        ] {
            let sent = Error::new(kind, "SomeReason", "what happened")
                .with_detail("PropertyName", "x")
                .with_retry_after(Duration::from_secs(2));
            let back = Error::from(Status::from(sent));
            assert_eq!(back.kind(), kind);
            assert_eq!(back.reason(), "SomeReason");
            assert_eq!(back.message(), "what happened");
            assert_eq!(back.details(), [("PropertyName".to_owned(), "x".to_owned())]);
            assert_eq!(back.retry_after(), Some(Duration::from_secs(2)));
        }
    }

    #[test]
    fn what_a_client_sent_cannot_make_the_headers_too_large() {
        for text in ["x".repeat(100_000), "\u{1F600}%\n".repeat(20_000)] {
            let mut error = Error::invalid_property(&text, &text, &text);
            for number in 0..100 {
                error = error.with_detail(format!("{number}{text}"), "x").with_detail(format!("Value{number}"), &text);
            }
            let status = Status::from(error);
            let size: usize = status
                .clone()
                .into_http::<()>()
                .headers()
                .iter()
                .map(|(name, value)| name.as_str().len() + value.len() + 32)
                .sum();
            assert!(size < 14 * 1024, "{size}");
            let back = Error::from(status);
            assert_eq!((back.kind(), back.reason()), (Kind::InvalidArgument, "InvalidPropertyValue"));
            assert!(back.message().ends_with("...") && !back.details().is_empty());
        }
        assert_eq!(shortened("äää".into(), 6), "äää");
        assert_eq!(shortened("ääää".into(), 6), "ä...");
    }

    #[test]
    fn a_foreign_status_gets_a_reason() {
        let error = Error::from(Status::not_found("gone"));
        assert_eq!((error.kind(), error.reason()), (Kind::NotFound, "ResourceNotFound"));
    }
}
