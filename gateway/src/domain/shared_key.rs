//! The `SharedKey` scheme of the Azure Batch REST dialect.
//!
//! A client signs a text made of its request with its account key. Clients of
//! ten years disagree on details of that text, so several texts can stand for
//! one request; a signature over any of them is good:
//!
//! | detail | variants |
//! |---|---|
//! | names in the query | as sent (Python), lower case (Microsoft's text) |
//! | content-length of an empty body | `0` (Python), empty (others) |
//! | escaped slashes in the path | as sent, unescaped (SDK 1.0 to 4.1) |

use http::HeaderMap;
use kiln_auth::SecretKey;
use kiln_error::{Error, Kind};
use kiln_time::Timestamp;
use percent_encoding::percent_decode_str;
use std::time::Duration;

/// A request may be signed this much before or after it arrives.
const MAX_SKEW: Duration = Duration::from_secs(15 * 60);

/// Headers whose values are signed, in this order.
const SIGNED_HEADERS: [&str; 11] = [
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
];

/// What of a request is signed.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    /// `GET`, `POST`, ...
    pub method: &'a str,
    /// Exactly as it came, escapes included.
    pub path: &'a str,
    /// Behind the question mark, as it came.
    pub query: &'a str,
    /// All headers.
    pub headers: &'a HeaderMap,
}

/// Account and signature of an `Authorization: SharedKey account:signature`.
///
/// # Errors
/// `InvalidAuthenticationInfo` if the value has another form.
pub fn parse(authorization: &str) -> Result<(&str, &str), Error> {
    authorization
        .strip_prefix("SharedKey ")
        .and_then(|rest| rest.trim().split_once(':'))
        .filter(|(account, signature)| !account.is_empty() && !signature.is_empty())
        .ok_or_else(|| {
            Error::new(
                Kind::InvalidArgument,
                "InvalidAuthenticationInfo",
                "the Authorization header must be 'SharedKey <account>:<signature>' or 'Bearer <token>'",
            )
        })
}

/// Checks date and signature of a request.
///
/// # Errors
/// `AuthenticationFailed` says what did not fit.
pub fn verify(
    request: Signed<'_>,
    account: &str,
    signature: &str,
    keys: &[&SecretKey],
    now: Timestamp,
) -> Result<(), Error> {
    check_date(request.headers, now)?;
    let texts = texts_to_sign(request, account);
    if texts.iter().any(|text| keys.iter().any(|key| key.verify_base64(text.as_bytes(), signature))) {
        return Ok(());
    }
    Err(failed("the signature does not fit the request and the account's keys")
        .with_detail("AuthenticationErrorDetail", format!("The text that must be signed is {:?}", texts[0])))
}

/// The refusal of a caller who is not who it says.
pub fn failed(message: impl Into<String>) -> Error {
    Error::new(Kind::Unauthenticated, "AuthenticationFailed", message)
}

fn check_date(headers: &HeaderMap, now: Timestamp) -> Result<(), Error> {
    let text = header(headers, "ocp-date").or_else(|| header(headers, "date"));
    let text = text.ok_or_else(|| failed("an ocp-date or Date header is required"))?;
    let sent = Timestamp::parse_http_date(text).map_err(|error| failed(error.to_string()))?;
    let skew = if sent > now { sent.since(now) } else { now.since(sent) };
    if skew > MAX_SKEW {
        return Err(failed(format!("the request is dated {text}, but the time here is {}", now.to_http_date())));
    }
    Ok(())
}

/// Every text a client may have signed for this request; the first is the one
/// of present clients.
fn texts_to_sign(request: Signed<'_>, account: &str) -> Vec<String> {
    let lengths = match header(request.headers, "content-length").unwrap_or("") {
        "" => vec!["", "0"],
        "0" => vec!["0", ""],
        length => vec![length],
    };
    let mut paths = vec![request.path.to_owned()];
    let unescaped = unescape_slashes(request.path);
    if unescaped != request.path {
        paths.push(unescaped);
    }
    let mut queries = vec![canonical_query(request.query, false)];
    let lower = canonical_query(request.query, true);
    if lower != queries[0] {
        queries.push(lower);
    }
    let mut texts = Vec::new();
    for query in &queries {
        for path in &paths {
            for length in &lengths {
                let head = canonical_head(request, length);
                texts.push(format!("{head}/{account}{path}{query}"));
            }
        }
    }
    texts
}

fn canonical_head(request: Signed<'_>, content_length: &str) -> String {
    let mut text = format!("{}\n", request.method);
    for name in SIGNED_HEADERS {
        let value = match name {
            "content-length" => content_length,
            _ => header(request.headers, name).unwrap_or(""),
        };
        text.push_str(value);
        text.push('\n');
    }
    let mut ocp: Vec<(&str, &str)> = request
        .headers
        .iter()
        .filter(|(name, _)| name.as_str().contains("ocp-"))
        .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
        .collect();
    ocp.sort_unstable();
    for (name, value) in ocp {
        text.push_str(&format!("{name}:{value}\n"));
    }
    text
}

/// `\nname:value` of every query parameter, sorted; of repeated names the first.
fn canonical_query(query: &str, lower_names: bool) -> String {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for (name, value) in query_pairs(query) {
        let name = if lower_names { name.to_lowercase() } else { name };
        if !value.is_empty() && pairs.iter().all(|(seen, _)| *seen != name) {
            pairs.push((name, value));
        }
    }
    pairs.sort();
    pairs.into_iter().map(|(name, value)| format!("\n{name}:{value}")).collect()
}

/// Names and values of a query, decoded, as they come.
pub fn query_pairs(query: &str) -> impl Iterator<Item = (String, String)> + '_ {
    query.split('&').filter(|part| !part.is_empty()).map(|part| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (decode(name), decode(value))
    })
}

fn decode(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

fn unescape_slashes(path: &str) -> String {
    let mut text = path.to_owned();
    for escape in ["%2F", "%2f", "%5C", "%5c"] {
        text = text.replace(escape, "/");
    }
    text
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests;
