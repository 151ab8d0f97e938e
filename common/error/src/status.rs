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

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = error.kind.grpc_code();
        let mut metadata: HashMap<String, String> = error.details.into_iter().collect();
        if let Some(marker) = error.kind.marker() {
            metadata.insert(KIND_KEY.to_owned(), marker.to_owned());
        }
        let mut details = ErrorDetails::with_error_info(error.reason, DOMAIN, metadata);
        if let Some(after) = error.retry_after {
            details.set_retry_info(Some(after));
        }
        Self::with_error_details(code, error.message, details)
    }
}

impl From<Status> for Error {
    /// Statuses that did not come from Kiln get a reason made of their code.
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let marker = info.and_then(|info| info.metadata.get(KIND_KEY)).map(String::as_str);
        let kind = Kind::from_code(status.code(), marker);
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
            message: status.message().to_owned(),
            details: pairs,
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
        }
    }
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
    fn a_foreign_status_gets_a_reason() {
        let error = Error::from(Status::not_found("gone"));
        assert_eq!((error.kind(), error.reason()), (Kind::NotFound, "ResourceNotFound"));
    }
}
