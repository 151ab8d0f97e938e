//! Everything that can be wrong with a request, in Azure's words.
//!
//! One enum for the HTTP front (status, code, extra elements of the body) and
//! for gRPC (through [`kiln_error::Error`], same code as reason).

use kiln_error::{Error, Kind};
use kiln_store::StoreError;

use super::application::ApplicationError;

/// Why a request was refused or failed.
#[derive(Debug, Clone, thiserror::Error)]
#[allow(missing_docs)] // Each variant's text says what it is.
pub enum StorageError {
    #[error("The specified container does not exist.")]
    ContainerNotFound,
    #[error("The specified blob does not exist.")]
    BlobNotFound,
    #[error("The specified resource does not exist.")]
    ResourceNotFound,
    #[error("The specified container already exists.")]
    ContainerAlreadyExists,
    #[error("The specified blob already exists.")]
    BlobAlreadyExists,
    #[error("The block ids of a blob must all have the same length.")]
    InvalidBlobOrBlock,
    #[error("The specified block list is invalid: block {0:?} is not where the list says.")]
    InvalidBlockList(String),
    #[error("The specified block id is invalid: it must be Base64 of 1 to 64 bytes.")]
    InvalidBlockId,
    #[error("The blob type is invalid for this operation.")]
    InvalidBlobType,
    #[error("This operation is not permitted because the blob has snapshots.")]
    SnapshotsPresent,
    #[error("This operation is not permitted on an archived blob; set another tier first.")]
    BlobArchived,
    #[error("The append position condition specified was not met.")]
    AppendPositionConditionNotMet,
    #[error("The max blob size condition specified was not met.")]
    MaxBlobSizeConditionNotMet,
    #[error("The blob has {0} blocks (uncommitted, or appended) already; no more are allowed.")]
    BlockCountExceedsLimit(u64),
    #[error("The block list may not contain more than {0} blocks.")]
    BlockListTooLong(usize),
    #[error("The specified resource name length is not within the permissible limits.")]
    NameLength,
    #[error("The specified resource name contains invalid characters.")]
    InvalidResourceName,
    #[error("The requested URI does not represent any resource on the server: {0}.")]
    InvalidUri(&'static str),
    #[error("The specified metadata is invalid: {0:?} is not a name made of letters, digits and _.")]
    InvalidMetadata(String),
    #[error("The key for one of the metadata pairs is empty.")]
    EmptyMetadataKey,
    #[error("The metadata exceeds the maximum permissible limit of {0} bytes.")]
    MetadataTooLarge(usize),
    #[error("The specified XML is not syntactically valid: {0}.")]
    InvalidXmlDocument(String),
    #[error("The value {value:?} of the XML node {node} is invalid.")]
    InvalidXmlNodeValue { node: &'static str, value: String },
    #[error("The XML node {0} specified in the request body is not supported here, unless it switches nothing on.")]
    UnsupportedXmlNode(&'static str),
    #[error("No rule for cross-origin requests of the account allows this origin, method and headers.")]
    CorsPreflightFailure,
    #[error("The MD5 value specified in the request did not match with the MD5 value calculated by the server.")]
    Md5Mismatch,
    #[error("The MD5 value specified in the request is invalid: it must be Base64 of 16 bytes.")]
    InvalidMd5,
    #[error("The CRC64 value specified in the request did not match with the CRC64 value calculated by the server.")]
    Crc64Mismatch,
    #[error("Content-MD5 and x-ms-content-crc64 may not both be given.")]
    BothCrc64AndMd5HeaderPresent,
    #[error("Content-Length is required.")]
    MissingContentLengthHeader,
    #[error("The request ended before all bytes that Content-Length announces were read.")]
    IncompleteBody,
    #[error("Only the first message of an upload may be a header; all others are data.")]
    InvalidHeader,
    #[error("A required HTTP header was not specified: {0}.")]
    MissingRequiredHeader(&'static str),
    #[error("A required query parameter was not specified for this request: {0}.")]
    MissingRequiredQueryParameter(&'static str),
    #[error("The value for one of the HTTP headers is not in the correct format: {name}.")]
    InvalidHeaderValue { name: &'static str, value: String },
    #[error("The headers of the request are larger than {0} bytes.")]
    RequestHeadersTooLarge(usize),
    #[error("The request uses a header this server does not support: {0}.")]
    UnsupportedHeader(&'static str),
    #[error("A query parameter specified in the request URI is outside the permissible range: {name}.")]
    OutOfRangeQueryParameterValue { name: &'static str, value: String, minimum: i64, maximum: i64 },
    #[error("Value for one of the query parameters specified in the request URI is invalid: {name}.")]
    InvalidQueryParameterValue { name: &'static str, value: String },
    #[error("The resource doesn't support the specified HTTP verb.")]
    UnsupportedHttpVerb,
    #[error("The range specified is invalid for the current size of the resource.")]
    InvalidRange { length: u64 },
    #[error("The condition specified using HTTP conditional header(s) is not met.")]
    ConditionNotMet,
    #[error("The condition specified using HTTP conditional header(s) is not met.")]
    NotModified,
    #[error("The request includes an unsatisfiable condition for this operation.")]
    UnsatisfiableCondition,
    #[error("Multiple condition headers are not supported.")]
    MultipleConditionHeadersNotSupported,
    #[error("The request body is too large and exceeds the maximum permissible limit of {0} bytes.")]
    RequestBodyTooLarge(u64),
    #[error("Server failed to authenticate the request. {0}")]
    AuthenticationFailed(String),
    #[error(
        "Server failed to authenticate the request. Please refer to the information in the www-authenticate header."
    )]
    NoAuthenticationInformation,
    #[error("This request is not authorized to perform this operation.")]
    AuthorizationFailure,
    #[error("This request is not authorized to perform this operation using this permission.")]
    AuthorizationPermissionMismatch,
    #[error("This request is not authorized to perform this operation using this protocol.")]
    AuthorizationProtocolMismatch,
    #[error("This request is not authorized to perform this operation using this source IP {0}.")]
    AuthorizationSourceIpMismatch(std::net::IpAddr),
    #[error("This request is not authorized to perform this operation using this service.")]
    AuthorizationServiceMismatch,
    #[error("This request is not authorized to perform this operation using this resource type.")]
    AuthorizationResourceTypeMismatch,
    #[error("The source of the copy cannot be read: {why}.")]
    CannotVerifyCopySource { status: u16, why: String },
    #[error("The source condition specified using HTTP conditional header(s) is not met.")]
    SourceConditionNotMet,
    #[error("There is currently no pending copy operation.")]
    NoPendingCopyOperation,
    #[error("This server does not support the requested operation: {0}.")]
    NotImplemented(&'static str),
    #[error("The client sent nothing for too long, or its own timeout is over; it may or may not have happened.")]
    OperationTimedOut,
    #[error("There is currently no lease on the blob.")]
    LeaseNotPresentWithBlobOperation,
    #[error("There is currently no lease on the container.")]
    LeaseNotPresentWithContainerOperation,
    #[error("There is currently a lease on the resource and no lease id was specified in the request.")]
    LeaseIdMissing,
    #[error("The lease id specified did not match the lease id for the blob.")]
    LeaseIdMismatchWithBlobOperation,
    #[error("The lease id specified did not match the lease id for the container.")]
    LeaseIdMismatchWithContainerOperation,
    #[error("A lease id was specified, but the lease has expired or was broken.")]
    LeaseLost,
    #[error("There is already a lease present.")]
    LeaseAlreadyPresent,
    #[error("The lease id specified did not match the lease id for the resource, or there is no lease.")]
    LeaseIdMismatchWithLeaseOperation,
    #[error("There is currently no lease on the resource.")]
    LeaseNotPresentWithLeaseOperation,
    #[error("The lease is being broken and cannot be acquired until it is broken.")]
    LeaseIsBreakingAndCannotBeAcquired,
    #[error("The lease is being broken and its id cannot be changed.")]
    LeaseIsBreakingAndCannotBeChanged,
    #[error("The lease has been broken and cannot be renewed.")]
    LeaseIsBrokenAndCannotBeRenewed,
    #[error("The account is not valid: {0}")]
    InvalidAccount(String),
    #[error(transparent)]
    Application(#[from] ApplicationError),
    #[error("The server is busy; nothing was changed, please try again.")]
    ServerBusy,
    #[error("The server encountered an internal error.")]
    InternalError,
}

impl StorageError {
    /// The stable word, HTTP status and gRPC kind.
    fn parts(&self) -> (&'static str, u16, Kind) {
        use Kind as K;
        use StorageError as E;
        match self {
            E::ContainerNotFound => ("ContainerNotFound", 404, K::NotFound),
            E::BlobNotFound => ("BlobNotFound", 404, K::NotFound),
            E::ResourceNotFound => ("ResourceNotFound", 404, K::NotFound),
            E::ContainerAlreadyExists => ("ContainerAlreadyExists", 409, K::AlreadyExists),
            E::BlobAlreadyExists => ("BlobAlreadyExists", 409, K::AlreadyExists),
            E::InvalidBlobType => ("InvalidBlobType", 409, K::FailedPrecondition),
            E::SnapshotsPresent => ("SnapshotsPresent", 409, K::FailedPrecondition),
            E::BlobArchived => ("BlobArchived", 409, K::FailedPrecondition),
            E::AppendPositionConditionNotMet => ("AppendPositionConditionNotMet", 412, K::ConditionNotMet),
            E::MaxBlobSizeConditionNotMet => ("MaxBlobSizeConditionNotMet", 412, K::ConditionNotMet),
            E::InvalidBlobOrBlock => ("InvalidBlobOrBlock", 400, K::InvalidArgument),
            E::InvalidBlockList(_) => ("InvalidBlockList", 400, K::InvalidArgument),
            E::InvalidBlockId => ("InvalidBlockId", 400, K::InvalidArgument),
            E::BlockCountExceedsLimit(_) => ("BlockCountExceedsLimit", 409, K::ResourceExhausted),
            E::BlockListTooLong(_) => ("BlockListTooLong", 400, K::InvalidArgument),
            E::NameLength => ("OutOfRangeInput", 400, K::InvalidArgument),
            E::InvalidResourceName => ("InvalidResourceName", 400, K::InvalidArgument),
            E::InvalidUri(_) => ("InvalidUri", 400, K::InvalidArgument),
            E::InvalidMetadata(_) => ("InvalidMetadata", 400, K::InvalidArgument),
            E::EmptyMetadataKey => ("EmptyMetadataKey", 400, K::InvalidArgument),
            E::MetadataTooLarge(_) => ("MetadataTooLarge", 400, K::InvalidArgument),
            E::InvalidXmlDocument(_) => ("InvalidXmlDocument", 400, K::InvalidArgument),
            E::InvalidXmlNodeValue { .. } => ("InvalidXmlNodeValue", 400, K::InvalidArgument),
            E::UnsupportedXmlNode(_) => ("UnsupportedXmlNode", 400, K::InvalidArgument),
            E::CorsPreflightFailure => ("CorsPreflightFailure", 403, K::PermissionDenied),
            E::Md5Mismatch => ("Md5Mismatch", 400, K::InvalidArgument),
            E::InvalidMd5 => ("InvalidMd5", 400, K::InvalidArgument),
            E::Crc64Mismatch => ("Crc64Mismatch", 400, K::InvalidArgument),
            E::BothCrc64AndMd5HeaderPresent => ("BothCrc64AndMd5HeaderPresent", 400, K::InvalidArgument),
            E::MissingContentLengthHeader => ("MissingContentLengthHeader", 411, K::InvalidArgument),
            E::IncompleteBody => ("IncompleteBody", 400, K::Cancelled),
            E::InvalidHeader => ("InvalidInput", 400, K::InvalidArgument),
            E::MissingRequiredHeader(_) => ("MissingRequiredHeader", 400, K::InvalidArgument),
            E::MissingRequiredQueryParameter(_) => ("MissingRequiredQueryParameter", 400, K::InvalidArgument),
            E::InvalidHeaderValue { .. } => ("InvalidHeaderValue", 400, K::InvalidArgument),
            E::RequestHeadersTooLarge(_) => ("RequestHeadersTooLarge", 431, K::TooLarge),
            E::UnsupportedHeader(_) => ("UnsupportedHeader", 400, K::InvalidArgument),
            E::OutOfRangeQueryParameterValue { .. } => ("OutOfRangeQueryParameterValue", 400, K::InvalidArgument),
            E::InvalidQueryParameterValue { .. } => ("InvalidQueryParameterValue", 400, K::InvalidArgument),
            E::UnsupportedHttpVerb => ("UnsupportedHttpVerb", 405, K::Unimplemented),
            E::InvalidRange { .. } => ("InvalidRange", 416, K::OutOfRange),
            E::ConditionNotMet => ("ConditionNotMet", 412, K::ConditionNotMet),
            E::NotModified => ("ConditionNotMet", 304, K::ConditionNotMet),
            E::UnsatisfiableCondition => ("UnsatisfiableCondition", 400, K::InvalidArgument),
            E::MultipleConditionHeadersNotSupported => {
                ("MultipleConditionHeadersNotSupported", 400, K::InvalidArgument)
            }
            E::RequestBodyTooLarge(_) => ("RequestBodyTooLarge", 413, K::TooLarge),
            E::AuthenticationFailed(_) => ("AuthenticationFailed", 403, K::Unauthenticated),
            E::NoAuthenticationInformation => ("NoAuthenticationInformation", 401, K::Unauthenticated),
            E::AuthorizationFailure => ("AuthorizationFailure", 403, K::PermissionDenied),
            E::AuthorizationPermissionMismatch => ("AuthorizationPermissionMismatch", 403, K::PermissionDenied),
            E::AuthorizationProtocolMismatch => ("AuthorizationProtocolMismatch", 403, K::PermissionDenied),
            E::AuthorizationSourceIpMismatch(_) => ("AuthorizationSourceIPMismatch", 403, K::PermissionDenied),
            E::AuthorizationServiceMismatch => ("AuthorizationServiceMismatch", 403, K::PermissionDenied),
            E::AuthorizationResourceTypeMismatch => ("AuthorizationResourceTypeMismatch", 403, K::PermissionDenied),
            E::CannotVerifyCopySource { status, .. } => {
                let kind = match status {
                    401 | 403 => K::PermissionDenied,
                    404 => K::NotFound,
                    400..=499 => K::InvalidArgument,
                    _ => K::Unavailable,
                };
                ("CannotVerifyCopySource", *status, kind)
            }
            E::SourceConditionNotMet => ("SourceConditionNotMet", 412, K::ConditionNotMet),
            E::NoPendingCopyOperation => ("NoPendingCopyOperation", 409, K::FailedPrecondition),
            E::NotImplemented(_) => ("NotImplemented", 501, K::Unimplemented),
            E::OperationTimedOut => ("OperationTimedOut", 500, K::DeadlineExceeded),
            E::LeaseNotPresentWithBlobOperation => ("LeaseNotPresentWithBlobOperation", 412, K::ConditionNotMet),
            E::LeaseNotPresentWithContainerOperation => {
                ("LeaseNotPresentWithContainerOperation", 412, K::ConditionNotMet)
            }
            E::LeaseIdMissing => ("LeaseIdMissing", 412, K::ConditionNotMet),
            E::LeaseIdMismatchWithBlobOperation => ("LeaseIdMismatchWithBlobOperation", 412, K::ConditionNotMet),
            E::LeaseIdMismatchWithContainerOperation => {
                ("LeaseIdMismatchWithContainerOperation", 412, K::ConditionNotMet)
            }
            E::LeaseLost => ("LeaseLost", 412, K::ConditionNotMet),
            E::LeaseAlreadyPresent => ("LeaseAlreadyPresent", 409, K::FailedPrecondition),
            E::LeaseIdMismatchWithLeaseOperation => ("LeaseIdMismatchWithLeaseOperation", 409, K::FailedPrecondition),
            E::LeaseNotPresentWithLeaseOperation => ("LeaseNotPresentWithLeaseOperation", 409, K::FailedPrecondition),
            E::LeaseIsBreakingAndCannotBeAcquired => ("LeaseIsBreakingAndCannotBeAcquired", 409, K::FailedPrecondition),
            E::LeaseIsBreakingAndCannotBeChanged => ("LeaseIsBreakingAndCannotBeChanged", 409, K::FailedPrecondition),
            E::LeaseIsBrokenAndCannotBeRenewed => ("LeaseIsBrokenAndCannotBeRenewed", 409, K::FailedPrecondition),
            E::InvalidAccount(_) => ("InvalidInput", 400, K::InvalidArgument),
            E::Application(error) => error.parts(),
            E::ServerBusy => ("ServerBusy", 503, K::Unavailable),
            E::InternalError => ("InternalError", 500, K::Internal),
        }
    }

    /// The stable word for programs.
    pub fn code(&self) -> &'static str {
        self.parts().0
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.parts().1
    }

    /// Elements of the error body beside code and message.
    pub fn details(&self) -> Vec<(&'static str, String)> {
        use StorageError as E;
        match self {
            E::AuthenticationFailed(detail) => vec![("AuthenticationErrorDetail", detail.clone())],
            E::MissingRequiredHeader(name) | E::UnsupportedHeader(name) => {
                vec![("HeaderName", (*name).to_owned())]
            }
            E::InvalidHeaderValue { name, value } => {
                vec![("HeaderName", (*name).to_owned()), ("HeaderValue", value.clone())]
            }
            E::MissingRequiredQueryParameter(name) => vec![("QueryParameterName", (*name).to_owned())],
            E::InvalidQueryParameterValue { name, value } => {
                vec![("QueryParameterName", (*name).to_owned()), ("QueryParameterValue", value.clone())]
            }
            E::OutOfRangeQueryParameterValue { name, value, minimum, maximum } => vec![
                ("QueryParameterName", (*name).to_owned()),
                ("QueryParameterValue", value.clone()),
                ("MinimumAllowed", minimum.to_string()),
                ("MaximumAllowed", maximum.to_string()),
            ],
            E::InvalidXmlNodeValue { node, value } => {
                vec![("XmlNodeName", (*node).to_owned()), ("XmlNodeValue", value.clone())]
            }
            E::UnsupportedXmlNode(name) => vec![("XmlNodeName", (*name).to_owned())],
            E::Application(error) => error.details(),
            _ => Vec::new(),
        }
    }
}

impl From<StoreError> for StorageError {
    /// The cause is logged here, once, and not sent out.
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the catalogue failed");
        match error {
            StoreError::Commit(_) | StoreError::Closed | StoreError::Unavailable(_) | StoreError::InDoubt(_) => {
                Self::ServerBusy
            }
            StoreError::Database(cause) if cause.is_unfit() => {
                Self::InvalidUri("a name is too long for the catalogue, or has the character NUL")
            }
            _ => Self::InternalError,
        }
    }
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Self {
        let (code, _, kind) = error.parts();
        error
            .details()
            .into_iter()
            .fold(Self::new(kind, code, error.to_string()), |out, (name, value)| out.with_detail(name, value))
    }
}
