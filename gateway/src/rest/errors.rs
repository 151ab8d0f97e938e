//! Errors in the form of the dialect: status, code, message, values.

use axum::body::Body;
use axum::response::Response;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Method, StatusCode};
use kiln_error::{Error, Kind};
use kiln_time::Timestamp;
use serde_json::{Value, json};

use super::reply::{Head, JSON};

/// Metadata type of error bodies.
const ERROR_TYPE: &str = "Microsoft.Azure.Batch.Protocol.Entities.Container.errors/@Element";

/// What clients of the dialect are used to read; our own words then stand in
/// the values.
const MESSAGES: &[(&str, &str)] = &[
    ("PoolNotFound", "The specified pool does not exist."),
    ("PoolExists", "The specified pool already exists."),
    ("PoolBeingDeleted", "The specified pool has been marked for deletion and is being reclaimed."),
    ("PoolBeingResized", "The specified pool is being resized."),
    ("NodeNotFound", "The specified node does not exist."),
    ("JobNotFound", "The specified job does not exist."),
    ("JobExists", "The specified job already exists."),
    ("JobCompleted", "The specified job is already in a completed state."),
    ("JobBeingDeleted", "The specified job has been marked for deletion and is being garbage collected."),
    ("JobBeingTerminated", "The specified job is being terminated."),
    ("TaskNotFound", "The specified task does not exist."),
    ("TaskExists", "The specified task already exists."),
    ("TaskCompleted", "The specified task is already in completed state."),
    ("FileNotFound", "The specified file does not exist."),
    ("ConditionNotMet", "The condition specified using HTTP conditional header(s) is not met."),
    (
        "AuthenticationFailed",
        "Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly \
         including the signature.",
    ),
    ("MissingRequiredQueryParameter", "A query parameter that's mandatory for this request is not specified."),
    ("InvalidQueryParameterValue", "Value for one of the query parameters specified in the request URI is invalid."),
    ("MissingRequiredProperty", "One of the required properties is missing in the request body."),
    ("InvalidPropertyValue", "The value provided for one of the properties in the request body is invalid."),
    ("RequestBodyTooLarge", "The size of the request body exceeds the maximum permissible limit."),
];

/// The HTTP status of an error. `reading` requests learn of unmet conditions by
/// 304.
fn status(error: &Error, reading: bool) -> StatusCode {
    match (error.kind(), error.reason()) {
        (Kind::ConditionNotMet, _) if reading => StatusCode::NOT_MODIFIED,
        (_, "UnsupportedHttpVerb") => StatusCode::METHOD_NOT_ALLOWED,
        (_, "IOError") => StatusCode::FORBIDDEN,
        (Kind::Unauthenticated | Kind::PermissionDenied, _) => StatusCode::FORBIDDEN,
        (Kind::ResourceExhausted, reason) if reason.ends_with("QuotaReached") => StatusCode::CONFLICT,
        // Clients of all generations try again after 503, not after 429.
        (Kind::ResourceExhausted, _) => StatusCode::SERVICE_UNAVAILABLE,
        (Kind::OutOfRange, reason) if reason != "InvalidRange" => StatusCode::BAD_REQUEST,
        (Kind::DeadlineExceeded | Kind::Cancelled, _) => StatusCode::INTERNAL_SERVER_ERROR,
        (kind, _) => kind.http_status(),
    }
}

/// The body of an error.
pub fn body(base: &str, request_id: &str, error: &Error) -> Value {
    let usual = MESSAGES.iter().find(|(code, _)| *code == error.reason()).map(|(_, text)| *text);
    let mut values: Vec<Value> =
        error.details().iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    let text = match usual {
        Some(text) => {
            if !error.message().is_empty() && error.details().iter().all(|(key, _)| key != "Reason") {
                values.push(json!({"key": "Reason", "value": error.message()}));
            }
            text
        }
        None => error.message(),
    };
    let now = Timestamp::now().to_rfc3339_ticks();
    let mut body = json!({
        "odata.metadata": format!("{base}/$metadata#{ERROR_TYPE}"),
        "code": error.reason(),
        "message": {"lang": "en-US", "value": format!("{text}\nRequestId:{request_id}\nTime:{now}")},
    });
    if !values.is_empty() {
        body["values"] = Value::Array(values);
    }
    body
}

/// The answer to a request that failed.
pub fn respond(head: &Head, error: Error) -> Response {
    let reading = matches!(head.method, Method::GET | Method::HEAD);
    let status = status(&error, reading);
    if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED {
        tracing::warn!(%error, %status, "a request failed");
    } else {
        tracing::debug!(%error, %status, "a request was refused");
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    if head.method != Method::HEAD && status != StatusCode::NOT_MODIFIED {
        *response.body_mut() = Body::from(body(&head.base, &head.request_id, &error).to_string());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    }
    if let Some(after) = error.retry_after() {
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    head.put_common(&mut response);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_the_dialect() {
        let of = |kind, reason: &'static str, reading| status(&Error::new(kind, reason, ""), reading).as_u16();
        assert_eq!(of(Kind::Unauthenticated, "AuthenticationFailed", true), 403);
        assert_eq!(of(Kind::InvalidArgument, "InvalidAuthenticationInfo", true), 400);
        assert_eq!(of(Kind::ConditionNotMet, "ConditionNotMet", true), 304);
        assert_eq!(of(Kind::ConditionNotMet, "ConditionNotMet", false), 412);
        assert_eq!(of(Kind::AlreadyExists, "PoolExists", false), 409);
        assert_eq!(of(Kind::TooLarge, "RequestBodyTooLarge", false), 413);
        assert_eq!(of(Kind::OutOfRange, "InvalidRange", true), 416);
        assert_eq!(of(Kind::OutOfRange, "OutOfRangePriority", false), 400);
        assert_eq!(of(Kind::ResourceExhausted, "PoolQuotaReached", false), 409);
        assert_eq!(of(Kind::Unavailable, "ServerBusy", false), 503);
        assert_eq!(of(Kind::Unimplemented, "NotImplemented", false), 501);
        assert_eq!(of(Kind::InvalidArgument, "UnsupportedHttpVerb", false), 405);
    }
}
