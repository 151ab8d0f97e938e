//! Reading from other servers, for copies.
//!
//! The rule of [`CopySources`] is asked about every address at the moment it is connected to: names are resolved
//! here, so none can mean something else a moment later. Redirects are not followed and proxies of the environment
//! not used: both would connect to what nobody has judged.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http::{HeaderMap, StatusCode, header};
use kiln_etag::Conditions;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use url::Host;

use super::{Body, ByteStream};
use crate::domain::StorageError;
use crate::domain::copy_source::CopySources;
use crate::domain::range::WantedRange;

/// How long a connection may take to begin.
const CONNECT: Duration = Duration::from_secs(10);

/// Reads from other servers; clones share the connections.
#[derive(Debug, Clone)]
pub struct Remote {
    rule: Arc<CopySources>,
    /// Absent if TLS cannot be used here.
    client: Option<Client>,
}

/// An answer whose bytes have not been read.
#[derive(Debug)]
pub struct RemoteSource {
    /// What the source says about them.
    pub headers: HeaderMap,
    /// How many they are, if it says so.
    pub length: Option<u64>,
    response: reqwest::Response,
}

/// No address of a name may be connected to.
#[derive(Debug, thiserror::Error)]
#[error("copies from there are not allowed")]
struct NotAllowed;

struct Judged(Arc<CopySources>);

impl fmt::Debug for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judged").finish_non_exhaustive()
    }
}

impl Resolve for Judged {
    fn resolve(&self, name: Name) -> Resolving {
        let rule = self.0.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found.filter(|at| rule.allow(name.as_str(), at.ip())).collect();
            if allowed.is_empty() {
                return Err(NotAllowed.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

impl Remote {
    /// Reads where `rule` allows it; a source may be silent for `idle`.
    pub fn new(rule: CopySources, idle: Duration) -> Self {
        // Set up already if another part of the process was faster.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let rule = Arc::new(rule);
        let client = Client::builder()
            .user_agent("kiln-storage")
            .dns_resolver(Arc::new(Judged(rule.clone())))
            .redirect(Policy::none())
            .referer(false)
            .no_proxy()
            .connect_timeout(CONNECT)
            .read_timeout(idle)
            .build();
        let client =
            client.inspect_err(|error| tracing::warn!(%error, "copies from other servers are not possible")).ok();
        Self { rule, client }
    }

    /// Asks a source for its bytes, or a part of them.
    ///
    /// # Errors
    /// [`StorageError::CannotVerifyCopySource`] with the status the source answers, or with 403 if it may not be
    /// read; [`StorageError::SourceConditionNotMet`].
    pub async fn open(
        &self,
        url: Url,
        conditions: &Conditions,
        range: Option<WantedRange>,
    ) -> Result<RemoteSource, StorageError> {
        let address = match url.host() {
            Some(Host::Ipv4(address)) => Some(address.into()),
            Some(Host::Ipv6(address)) => Some(address.into()),
            // Judged when it is resolved.
            Some(Host::Domain(_)) => None,
            None => return Err(unreadable(400, "its URL names no host")),
        };
        let host = url.host_str().unwrap_or_default().to_owned();
        if address.is_some_and(|address| !self.rule.allow(&host, address)) {
            return Err(refused(&host));
        }
        let client = self.client.as_ref().ok_or_else(|| unreadable(500, "this server cannot use TLS"))?;
        let mut request = client.get(url).header(header::ACCEPT_ENCODING, "identity");
        for (name, value) in condition_headers(conditions) {
            request = request.header(name, value);
        }
        if let Some(WantedRange { start, end }) = range {
            let end = end.map(|end| end.to_string()).unwrap_or_default();
            request = request.header(header::RANGE, format!("bytes={start}-{end}"));
        }
        let response = request.send().await.map_err(|error| {
            if is_refusal(&error) {
                return refused(&host);
            }
            // Without the URL, which may have a signature.
            let error = error.without_url();
            tracing::debug!(host, %error, "the source of a copy does not answer");
            unreadable(500, if error.is_timeout() { "it did not answer in time" } else { "it cannot be reached" })
        })?;
        let status = response.status();
        match (status, range) {
            (StatusCode::OK, None) => {}
            (StatusCode::PARTIAL_CONTENT, Some(range)) if is_part(response.headers(), range) => {}
            (StatusCode::OK | StatusCode::PARTIAL_CONTENT, _) => {
                return Err(unreadable(400, "it does not give the range that was asked for"));
            }
            (StatusCode::PRECONDITION_FAILED | StatusCode::NOT_MODIFIED, _) => {
                return Err(StorageError::SourceConditionNotMet);
            }
            (status, _) if status.is_client_error() || status.is_server_error() => {
                return Err(unreadable(status.as_u16(), &format!("it answered {status}")));
            }
            (status, _) => return Err(unreadable(400, &format!("it answered {status}, which is not followed"))),
        }
        Ok(RemoteSource { headers: response.headers().clone(), length: response.content_length(), response })
    }
}

impl RemoteSource {
    /// A header as text; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The bytes. They break off with an error if the source does.
    pub fn into_body(self) -> Body<'static> {
        self.response
            .bytes_stream()
            .map_err(|error| {
                tracing::debug!(error = %error.without_url(), "the source of a copy broke off");
                unreadable(500, "it broke off")
            })
            .boxed()
    }
}

/// The bytes of a blob of this service as a body.
pub fn body_of(stream: ByteStream) -> Body<'static> {
    stream.map_err(|_| StorageError::InternalError).map_ok(|piece: Bytes| piece).boxed()
}

/// A source that cannot be read, with the status of the answer.
pub fn unreadable(status: u16, why: &str) -> StorageError {
    StorageError::CannotVerifyCopySource { status, why: why.to_owned() }
}

fn refused(host: &str) -> StorageError {
    unreadable(403, &format!("this server does not read from {host}; its operator may allow it (copy_sources_allowed)"))
}

fn is_refusal(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<NotAllowed>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whether a part is the one that was asked for, or as much of it as there is.
fn is_part(headers: &HeaderMap, wanted: WantedRange) -> bool {
    let range = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let parse = |text: &str| -> Option<(u64, u64, Option<u64>)> {
        let (part, total) = text.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = part.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?, total.parse().ok()))
    };
    range.and_then(parse).is_some_and(|(first, last, total)| {
        let at_end = total.is_some_and(|total| last.checked_add(1) == Some(total));
        first == wanted.start && (wanted.end == Some(last) || (at_end && wanted.end.is_none_or(|end| end > last)))
    })
}

fn condition_headers(conditions: &Conditions) -> Vec<(header::HeaderName, String)> {
    use kiln_etag::EtagSet;
    let etags = |set: &EtagSet| match set {
        EtagSet::Any => "*".to_owned(),
        EtagSet::These(etags) => etags.iter().map(|etag| format!("\"{etag}\"")).collect::<Vec<_>>().join(", "),
    };
    [
        (header::IF_MATCH, conditions.if_match.as_ref().map(etags)),
        (header::IF_NONE_MATCH, conditions.if_none_match.as_ref().map(etags)),
        (header::IF_MODIFIED_SINCE, conditions.if_modified_since.map(|date| date.to_http_date())),
        (header::IF_UNMODIFIED_SINCE, conditions.if_unmodified_since.map(|date| date.to_http_date())),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_what_was_asked_for() {
        for (header, start, end, good) in [
            ("bytes 0-9/100", 0, Some(9), true),
            ("bytes 0-9/*", 0, Some(9), true),
            ("bytes 90-99/100", 90, Some(200), true),
            ("bytes 90-99/100", 90, None, true),
            ("bytes 0-9/100", 0, Some(8), false),
            ("bytes 0-9/100", 0, Some(10), false),
            ("bytes 0-9/100", 0, None, false),
            ("bytes 1-9/100", 0, Some(9), false),
            ("bytes 0-18446744073709551615/100", 0, Some(9), false),
            ("bytes 0-9", 0, Some(9), false),
            ("nonsense", 0, Some(9), false),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_RANGE, header.parse().unwrap())]);
            assert_eq!(is_part(&headers, WantedRange { start, end }), good, "{header} {start} {end:?}");
        }
        assert!(!is_part(&HeaderMap::new(), WantedRange { start: 0, end: None }));
    }
}
