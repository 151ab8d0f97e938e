//! What a handler knows of its request.

use std::sync::Arc;

use axum::body::Bytes;
use http::HeaderMap;
use kiln_error::{Error, Kind};
use kiln_grpc::with_account;
use kiln_proto::common::v1::Precondition;
use kiln_time::Timestamp;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::json;
use super::version::Version;
use super::view::View;
use crate::backend::Backends;
use crate::domain::Account;
use crate::domain::shared_key::query_pairs;

/// Entries of a page at most, and if the client did not say.
pub const MAX_RESULTS: i32 = 1000;

/// One authenticated request whose body has been read.
#[derive(Debug)]
pub struct Call {
    /// The services behind.
    pub backends: Backends,
    /// Who calls.
    pub account: Arc<Account>,
    /// The account's place; streams keep it until they end.
    pub place: Arc<OwnedSemaphorePermit>,
    /// Decoded variable segments of the path.
    pub arguments: Vec<String>,
    /// Decoded query.
    pub query: Query,
    /// Generation of the client.
    pub version: Version,
    /// Scheme and host.
    pub base: String,
    /// Names this request in logs and errors.
    pub request_id: String,
    /// As it came.
    pub path: String,
    /// As it came.
    pub raw_query: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Call {
    /// A variable segment of the path; the router has checked their number.
    pub fn argument(&self, at: usize) -> String {
        self.arguments.get(at).cloned().unwrap_or_default()
    }

    /// How to write answers.
    pub fn view(&self) -> View<'_> {
        View { base: &self.base, version: self.version }
    }

    /// A message on behalf of the account.
    ///
    /// # Errors
    /// Never for account names that exist.
    pub fn request<T>(&self, message: T) -> Result<tonic::Request<T>, Error> {
        with_account(message, self.account.name.as_str())
    }

    /// The body's object.
    ///
    /// # Errors
    /// `InvalidRequestBody`.
    pub fn json(&self) -> Result<Value, Error> {
        json::parse_body(&self.body)
    }

    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok()).filter(|text| !text.is_empty())
    }

    /// The filter to pass down.
    pub fn filter(&self) -> String {
        self.query.get("$filter").unwrap_or_default().to_owned()
    }

    /// Number of entries and where to go on.
    ///
    /// # Errors
    /// If `maxresults` is out of range.
    pub fn page(&self, max: i32) -> Result<(i32, String), Error> {
        let size = match self.query.get("maxresults") {
            None => max,
            Some(text) => match text.parse::<i32>() {
                Ok(size) if (1..=max).contains(&size) => size,
                Ok(_) => {
                    let why = format!("must be between 1 and {max}");
                    return Err(query_error("OutOfRangeQueryParameterValue", "maxresults", text, &why));
                }
                Err(_) => {
                    return Err(query_error("InvalidQueryParameterValue", "maxresults", text, "must be a number"));
                }
            },
        };
        Ok((size, self.query.get("$skiptoken").unwrap_or_default().to_owned()))
    }

    /// The conditional headers, for the service to check where it is atomic.
    ///
    /// # Errors
    /// `InvalidHeaderValue` if a date is none.
    pub fn precondition(&self) -> Result<Option<Precondition>, Error> {
        let tag = |name| self.header(name).map(unquote).unwrap_or_default();
        let precondition = Precondition {
            if_match: tag("if-match"),
            if_none_match: tag("if-none-match"),
            if_modified_since: self.date("if-modified-since")?,
            if_unmodified_since: self.date("if-unmodified-since")?,
        };
        Ok((precondition != Precondition::default()).then_some(precondition))
    }

    fn date(&self, name: &'static str) -> Result<Option<prost_types::Timestamp>, Error> {
        let Some(text) = self.header(name) else { return Ok(None) };
        match Timestamp::parse_http_date(text) {
            Ok(time) => Ok(Some(kiln_proto::time::timestamp(time.as_micros()))),
            Err(error) => Err(Error::new(Kind::InvalidArgument, "InvalidHeaderValue", error.to_string())
                .with_detail("HeaderName", name)
                .with_detail("HeaderValue", text)),
        }
    }
}

/// An ETag without quotes and weakness mark.
fn unquote(text: &str) -> String {
    text.trim().trim_start_matches("W/").trim_matches('"').to_owned()
}

/// A query parameter that cannot be used.
pub fn query_error(code: &'static str, name: &str, value: &str, why: &str) -> Error {
    Error::new(Kind::InvalidArgument, code, format!("{name}: {why}"))
        .with_detail("QueryParameterName", name)
        .with_detail("QueryParameterValue", value)
        .with_detail("Reason", why)
}

/// The decoded query; names in any letter case, of repeated ones the first.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes the part behind the question mark.
    pub fn parse(raw: &str) -> Self {
        Self(query_pairs(raw).collect())
    }

    /// A value that is not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// A value that must be there.
    ///
    /// # Errors
    /// `MissingRequiredQueryParameter`.
    pub fn require(&self, name: &str) -> Result<&str, Error> {
        self.get(name).ok_or_else(|| {
            let message = format!("the query parameter {name} is required");
            Error::new(Kind::InvalidArgument, "MissingRequiredQueryParameter", message)
                .with_detail("QueryParameterName", name)
        })
    }

    /// Whether a value is `true`.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_in_any_case() {
        let query =
            Query::parse("api-version=2025-06-01&timeOut=30&$filter=id%20eq%20'a'&%24select=id+&x=&recursive=True");
        assert_eq!(query.get("timeout"), Some("30"));
        assert_eq!(query.get("$FILTER"), Some("id eq 'a'"));
        assert_eq!(query.get("$select"), Some("id "));
        assert_eq!(query.get("x"), None);
        assert!(query.flag("recursive"));
        assert_eq!(query.require("nothing").unwrap_err().reason(), "MissingRequiredQueryParameter");
    }

    #[test]
    fn etags_come_with_and_without_quotes() {
        for text in ["0x8D1", "\"0x8D1\"", "W/\"0x8D1\""] {
            assert_eq!(unquote(text), "0x8D1");
        }
        assert_eq!(unquote("*"), "*");
    }
}
