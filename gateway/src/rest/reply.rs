//! Answers and their headers.

use axum::body::Body;
use axum::response::Response;
use http::header::{CONTENT_TYPE, ETAG, HOST, HeaderName, HeaderValue, LAST_MODIFIED, LOCATION, SERVER};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::json::timestamp;
use crate::config::Config;

/// Content type of all JSON answers.
pub const JSON: &str = "application/json;odata=minimalmetadata";

/// What every answer to a request has in common, also when it fails early.
#[derive(Debug, Clone)]
pub struct Head {
    /// Of the request.
    pub method: Method,
    /// Scheme and host under which the client reached us.
    pub base: String,
    /// Names this request in logs.
    pub request_id: String,
    /// URL that was called, without query.
    url: String,
    client_request_id: Option<HeaderValue>,
}

impl Head {
    /// Reads what answers need of a request.
    pub fn of(parts: &Parts, config: &Config) -> Self {
        let base = base(parts).unwrap_or_else(|| config.batch_endpoint.clone());
        let url = format!("{base}{}", parts.uri.path());
        let wants_echo = parts
            .headers
            .get("return-client-request-id")
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"));
        let client_request_id = parts.headers.get("client-request-id").filter(|_| wants_echo).cloned();
        Self { method: parts.method.clone(), base, request_id: Uuid::new_v4().to_string(), url, client_request_id }
    }

    /// The answer to a request that succeeded.
    pub fn finish(&self, reply: Reply) -> Response {
        let mut response = match reply.body {
            ReplyBody::Empty => Response::new(Body::empty()),
            ReplyBody::Json { set, mut value } => {
                if let Value::Object(map) = &mut value {
                    map.shift_insert(0, "odata.metadata".to_owned(), format!("{}/$metadata#{set}", self.base).into());
                }
                let mut response = Response::new(Body::from(value.to_string()));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
                response
            }
            ReplyBody::Stream(body) => Response::new(body),
        };
        *response.status_mut() = reply.status;
        response.headers_mut().extend(reply.headers);
        if !matches!(self.method, Method::GET | Method::HEAD) {
            put(response.headers_mut(), HeaderName::from_static("dataserviceid"), &self.url);
        }
        self.put_common(&mut response);
        response
    }

    /// Headers of every answer.
    pub fn put_common(&self, response: &mut Response) {
        let headers = response.headers_mut();
        put(headers, HeaderName::from_static("request-id"), &self.request_id);
        headers.insert("dataserviceversion", HeaderValue::from_static("3.0"));
        headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
        headers.insert(SERVER, HeaderValue::from_static("Kiln"));
        if let Some(id) = &self.client_request_id {
            headers.insert("client-request-id", id.clone());
        }
    }
}

/// Links lead back the way the request came: through its Host, and the scheme a
/// proxy in front of us tells.
fn base(parts: &Parts) -> Option<String> {
    let host = match parts.uri.authority() {
        Some(authority) => authority.as_str(),
        None => parts.headers.get(HOST)?.to_str().ok()?,
    };
    // Becomes part of URLs: only what a host can be.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    if host.is_empty() || !host.bytes().all(plain) {
        return None;
    }
    let secure = parts.headers.get("x-forwarded-proto").is_some_and(|value| value.as_bytes() == b"https");
    Some(format!("{}://{host}", if secure { "https" } else { "http" }))
}

/// A value that cannot stand in a header is left out.
fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// What a handler answers.
#[derive(Debug)]
pub struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: ReplyBody,
}

#[derive(Debug)]
enum ReplyBody {
    Empty,
    Json { set: &'static str, value: Value },
    Stream(Body),
}

impl Reply {
    /// Only a status.
    pub fn empty(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), body: ReplyBody::Empty }
    }

    /// 200 with one object; `set` is its metadata type.
    pub fn json(set: &'static str, value: Value) -> Self {
        Self { status: StatusCode::OK, headers: HeaderMap::new(), body: ReplyBody::Json { set, value } }
    }

    /// 200 with a page of a list.
    pub fn list(set: &'static str, values: Vec<Value>, next_link: Option<String>) -> Self {
        let mut page = Map::new();
        page.insert("value".to_owned(), Value::Array(values));
        if let Some(link) = next_link {
            page.insert("odata.nextLink".to_owned(), link.into());
        }
        Self::json(set, Value::Object(page))
    }

    /// 200 with bytes.
    pub fn stream(body: Body) -> Self {
        Self { status: StatusCode::OK, headers: HeaderMap::new(), body: ReplyBody::Stream(body) }
    }

    /// Adds the version of the entity.
    #[must_use]
    pub fn version(self, etag: &str, last_modified: Option<&prost_types::Timestamp>) -> Self {
        let reply = if etag.is_empty() { self } else { self.header(ETAG, etag) };
        match last_modified {
            Some(time) => reply.header(LAST_MODIFIED, &timestamp(time).to_http_date()),
            None => reply,
        }
    }

    /// Adds where the new entity is.
    #[must_use]
    pub fn location(self, url: &str) -> Self {
        self.header(LOCATION, url)
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: &str) -> Self {
        put(&mut self.headers, name, value);
        self
    }
}
