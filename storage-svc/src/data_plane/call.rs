//! A request as the data plane understands it: what it is about, and what it
//! wants.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Uri};
use kiln_time::Timestamp;
use percent_encoding::percent_decode_str;

use super::header_case::Cases;
use super::{DataPlane, leases};
use crate::domain::StorageError;
use crate::domain::access::Operation;
use crate::domain::application;
use crate::domain::model::Account;
use crate::domain::names;
use crate::domain::query::Query;
use crate::domain::sas::is_version;
use crate::domain::shared_key;

/// Version the service speaks; requests with newer dates are taken as this.
pub const NEWEST_VERSION: &str = "2026-10-06";

/// Names and values of all headers: metadata needs 8 KiB of it.
const MAX_HEADERS: usize = 64 * 1024;

const SNAPSHOT: &str = "snapshot";

/// Seconds that no `timeout` exceeds, and that hold without one. Senders that are silent are ended much sooner; the
/// largest body may take its time.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// One request.
#[derive(Debug)]
pub struct Call {
    /// GET, PUT, ...
    pub method: Method,
    /// Owner of what it is about.
    pub account: Arc<Account>,
    /// Empty for calls on the account.
    pub container: String,
    /// Empty for calls on a container.
    pub blob: String,
    /// What it wants.
    pub operation: Operation,
    /// Path as sent.
    pub path: String,
    /// Its parameters.
    pub query: Query,
    /// Its headers.
    pub headers: HeaderMap,
    /// How the client wrote the names of metadata.
    pub cases: Cases,
    /// Who sent it.
    pub peer: IpAddr,
    /// Host and port by which the client reached the service.
    pub host: String,
    /// Base URL of the account as the client sees it.
    pub endpoint: String,
    /// What the account says about requests that name no version.
    pub default_version: Option<String>,
}

impl Call {
    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The snapshot that the request is about, if it is not about the blob itself.
    ///
    /// # Errors
    /// It is no moment; a version is asked for, and there are none.
    pub fn snapshot(&self) -> Result<Option<Timestamp>, StorageError> {
        if self.query.get("versionid").is_some_and(|version| !version.is_empty()) {
            return Err(StorageError::BlobNotFound);
        }
        match self.query.get(SNAPSHOT) {
            None | Some("") => Ok(None),
            Some(text) => Timestamp::parse_rfc3339(text).map(Some).map_err(|_| self.refused_snapshot(text)),
        }
    }

    /// Snapshots are read and deleted, and have a tier of their own; nothing else about them changes.
    ///
    /// # Errors
    /// The request would change a snapshot.
    pub fn check_snapshot(&self) -> Result<(), StorageError> {
        match self.query.get(SNAPSHOT) {
            Some(text) if !text.is_empty() && !self.operation.takes_snapshot() => Err(self.refused_snapshot(text)),
            _ => Ok(()),
        }
    }

    fn refused_snapshot(&self, text: &str) -> StorageError {
        StorageError::InvalidQueryParameterValue { name: SNAPSHOT, value: text.to_owned() }
    }

    /// How long the client wants to wait for an answer at most.
    ///
    /// # Errors
    /// It is no number of seconds.
    pub fn timeout(&self) -> Result<Duration, StorageError> {
        match self.query.get("timeout") {
            None | Some("") => Ok(LONGEST),
            Some(text) => match text.parse::<u64>() {
                // As in Azure, where it means as long as possible.
                Ok(0) => Ok(LONGEST),
                Ok(seconds) => Ok(Duration::from_secs(seconds).min(LONGEST)),
                Err(_) => Err(StorageError::InvalidQueryParameterValue { name: "timeout", value: text.to_owned() }),
            },
        }
    }

    /// The version the request asks for, or the newest.
    pub fn version(&self) -> &str {
        self.header("x-ms-version")
            .or_else(|| self.query.get("sv"))
            .or(self.default_version.as_deref())
            .filter(|v| is_version(v))
            .unwrap_or(NEWEST_VERSION)
    }
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Account's name.
    pub account: String,
    /// May be empty.
    pub container: String,
    /// May be empty.
    pub blob: String,
}

/// Splits an encoded path; `host_account` is the account if the host names it.
///
/// # Errors
/// No account, or bytes that are not UTF-8.
pub fn place(path: &str, host_account: Option<&str>) -> Result<Place, StorageError> {
    let rest = path.strip_prefix('/').unwrap_or(path);
    let (account, rest) = match host_account {
        Some(account) => (account.to_owned(), rest),
        None => {
            let (account, rest) = rest.split_once('/').unwrap_or((rest, ""));
            let account = decode(account)?;
            (account.strip_suffix("-secondary").unwrap_or(&account).to_owned(), rest)
        }
    };
    if account.is_empty() {
        return Err(StorageError::InvalidUri("the path must begin with the name of an account"));
    }
    let (container, blob) = rest.split_once('/').unwrap_or((rest, ""));
    Ok(Place { account, container: decode(container)?, blob: decode(blob)?.replace('\\', "/") })
}

fn decode(text: &str) -> Result<String, StorageError> {
    percent_decode_str(text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| StorageError::InvalidUri("the path is not UTF-8"))
}

/// The label that names an account in `<account>.<domain>`; `None` for
/// addresses, for names without a dot, and for the service's own name.
pub fn host_label<'a>(host: &'a str, own_host: &str) -> Option<&'a str> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    if name.starts_with('[') || name.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case(own_host) {
        return None;
    }
    let (label, domain) = name.split_once('.')?;
    (!label.is_empty() && !domain.is_empty()).then(|| label.strip_suffix("-secondary").unwrap_or(label))
}

impl DataPlane {
    /// Finds out what a request is about.
    ///
    /// # Errors
    /// Unknown account, malformed names, an operation that does not exist.
    pub async fn understand(
        &self,
        method: Method,
        uri: &Uri,
        headers: HeaderMap,
        peer: IpAddr,
    ) -> Result<Call, StorageError> {
        let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if size > MAX_HEADERS {
            return Err(StorageError::RequestHeadersTooLarge(MAX_HEADERS));
        }
        let query = Query::parse(uri.query().unwrap_or_default())?;
        if let Some(version) = headers.get("x-ms-version")
            && !version.to_str().is_ok_and(is_version)
        {
            let value = String::from_utf8_lossy(version.as_bytes()).into_owned();
            return Err(StorageError::InvalidHeaderValue { name: "x-ms-version", value });
        }
        let host = headers.get(http::header::HOST).and_then(|value| value.to_str().ok());
        let host = host.map(str::to_owned).or_else(|| uri.authority().map(ToString::to_string)).unwrap_or_default();
        let mut by_host = None;
        if self.config.host_style
            && let Some(label) = host_label(&host, &self.own_host)
        {
            by_host = self.storage.account(label).await?;
        }
        let mut named = by_host.clone();
        if by_host.is_none() && self.storage.account(&place(uri.path(), None)?.account).await?.is_none() {
            named = self.account_of_credentials(&headers, &query).await?;
            if named.is_none() {
                return Err(StorageError::ResourceNotFound);
            }
        }
        let mut place = place(uri.path(), named.as_ref().map(|account| account.name.as_str()))?;
        let account = match named {
            Some(account) => account,
            None => self.storage.account(&place.account).await?.ok_or(StorageError::ResourceNotFound)?,
        };
        let endpoint = match by_host {
            Some(_) => format!("{}://{host}", self.scheme()),
            None => format!("{}/{}", self.config.public_blob_endpoint, account.name),
        };
        let restype = query.get("restype").unwrap_or_default().to_ascii_lowercase();
        if !place.container.is_empty() && place.blob.is_empty() && restype.is_empty() {
            // A single name without a type is a blob of the root container.
            place.blob = std::mem::replace(&mut place.container, "$root".to_owned());
        }
        let operation = operation(&method, &place, &restype, &query, &headers)?;
        if !place.container.is_empty() || !place.blob.is_empty() {
            names::check_container(&place.container)?;
        }
        if !place.blob.is_empty() {
            names::check_blob(&place.blob)?;
        }
        let Place { container, blob, .. } = place;
        let path = uri.path().to_owned();
        let names_version = headers.contains_key("x-ms-version") || query.get("sv").is_some();
        let default_version = if names_version || operation == Operation::Preflight {
            None
        } else {
            self.storage.catalogue().service_properties(&account.name).await?.default_version
        };
        let cases = Cases::new();
        Ok(Call {
            method,
            account,
            container,
            blob,
            operation,
            path,
            query,
            headers,
            cases,
            peer,
            host,
            endpoint,
            default_version,
        })
    }
}

impl DataPlane {
    /// The account a request means although its path does not begin with one.
    /// azure-storage before 0.34 forgets the path of its endpoint when it asks
    /// for the rest of a large blob, or again for an empty one.
    async fn account_of_credentials(
        &self,
        headers: &HeaderMap,
        query: &Query,
    ) -> Result<Option<Arc<Account>>, StorageError> {
        let authorization = headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        match authorization.and_then(shared_key::parse_authorization) {
            Some((_, account, _)) => self.storage.account(account).await,
            // A signature in the URL does not name its account.
            None if query.get("sig").is_some() => self.storage.only_account().await,
            None => Ok(None),
        }
    }
}

fn operation(
    method: &Method,
    place: &Place,
    restype: &str,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Operation, StorageError> {
    use Operation as O;
    let comp = query.get("comp").unwrap_or_default().to_ascii_lowercase();
    let reading = matches!(*method, Method::GET | Method::HEAD);
    let from_url = headers.contains_key("x-ms-copy-source");
    let unknown_comp = || {
        let value = query.get("comp").unwrap_or_default().to_owned();
        Err(StorageError::InvalidQueryParameterValue { name: "comp", value })
    };
    if method == Method::OPTIONS {
        return Ok(O::Preflight);
    }
    if restype == "account" {
        return if reading { Ok(O::GetAccountInformation) } else { Err(StorageError::UnsupportedHttpVerb) };
    }
    let found = if place.container.is_empty() && place.blob.is_empty() {
        match (restype, comp.as_str()) {
            (_, "list") if reading => Some(O::ListContainers),
            ("service", "properties") if reading => Some(O::GetServiceProperties),
            ("service", "properties") if method == Method::PUT => Some(O::SetServiceProperties),
            ("service", "userdelegationkey") => {
                return Err(StorageError::AuthenticationFailed(
                    "Only authentication scheme Bearer is supported".to_owned(),
                ));
            }
            ("", "batch") | ("", "blobs") => return Err(StorageError::NotImplemented("batch and tag queries")),
            ("", "") | ("service", "") if *method == Method::GET => {
                return Err(StorageError::MissingRequiredQueryParameter("comp"));
            }
            (_, "list" | "properties") => None,
            _ => return unknown_comp(),
        }
    } else if place.blob.is_empty() {
        if restype == kiln_package::RESTYPE && place.container == application::CONTAINER {
            return if reading { Ok(O::ResolvePackage) } else { Err(StorageError::UnsupportedHttpVerb) };
        }
        if restype != "container" {
            return Err(StorageError::InvalidQueryParameterValue { name: "restype", value: restype.to_owned() });
        }
        match (comp.as_str(), method) {
            ("", &Method::PUT) => Some(O::CreateContainer),
            ("", &Method::DELETE) => Some(O::DeleteContainer),
            ("", _) if reading => Some(O::GetContainerProperties),
            ("metadata", &Method::PUT) => Some(O::SetContainerMetadata),
            ("metadata", _) if reading => Some(O::GetContainerMetadata),
            ("acl", &Method::PUT) => Some(O::SetContainerAcl),
            ("acl", _) if reading => Some(O::GetContainerAcl),
            ("list", &Method::GET) => Some(O::ListBlobs),
            ("lease", &Method::PUT) => Some(leases::operation(headers, O::BreakContainerLease, O::LeaseContainer)),
            ("undelete" | "rename" | "batch" | "blobs", _) => {
                return Err(StorageError::NotImplemented("undelete, rename and batches of containers"));
            }
            ("" | "metadata" | "acl" | "list" | "lease", _) => None,
            _ => return unknown_comp(),
        }
    } else {
        match (comp.as_str(), method) {
            ("", &Method::PUT) if from_url && headers.contains_key("x-ms-blob-type") => Some(O::PutBlobFromUrl),
            ("", &Method::PUT) if from_url => Some(O::CopyBlob),
            ("copy", &Method::PUT) => Some(O::AbortCopy),
            ("", &Method::PUT) => Some(O::PutBlob),
            ("", &Method::GET) => Some(O::GetBlob),
            ("", &Method::HEAD) => Some(O::HeadBlob),
            ("", &Method::DELETE) => Some(O::DeleteBlob),
            ("block", &Method::PUT) if from_url => Some(O::PutBlockFromUrl),
            ("block", &Method::PUT) => Some(O::PutBlock),
            ("blocklist", &Method::PUT) => Some(O::PutBlockList),
            ("blocklist", &Method::GET) => Some(O::GetBlockList),
            ("metadata", &Method::PUT) => Some(O::SetBlobMetadata),
            ("metadata", _) if reading => Some(O::GetBlobMetadata),
            ("properties", &Method::PUT) => Some(O::SetBlobProperties),
            ("lease", &Method::PUT) => Some(leases::operation(headers, O::BreakBlobLease, O::LeaseBlob)),
            ("snapshot", &Method::PUT) => Some(O::SnapshotBlob),
            ("tier", &Method::PUT) => Some(O::SetBlobTier),
            ("appendblock", &Method::PUT) if headers.contains_key("x-ms-copy-source") => {
                return Err(StorageError::NotImplemented("Append Block From URL"));
            }
            ("appendblock", &Method::PUT) => Some(O::AppendBlock),
            (
                "page"
                | "pagelist"
                | "tags"
                | "undelete"
                | "seal"
                | "query"
                | "expiry"
                | "incrementalcopy"
                | "immutabilitypolicies"
                | "legalhold",
                _,
            ) => return Err(StorageError::NotImplemented("this part of the blob service")),
            (
                "" | "block" | "blocklist" | "metadata" | "properties" | "lease" | "snapshot" | "tier" | "appendblock"
                | "copy",
                _,
            ) => None,
            _ => return unknown_comp(),
        }
    };
    found.ok_or(StorageError::UnsupportedHttpVerb)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_decoded_once_and_kept() {
        let check = |path: &str, host: Option<&str>, account: &str, container: &str, blob: &str| {
            let expected = Place { account: account.into(), container: container.into(), blob: blob.into() };
            assert_eq!(place(path, host).unwrap(), expected, "{path}");
        };
        check("/acct", None, "acct", "", "");
        check("/acct/", None, "acct", "", "");
        check("/acct-secondary/c", None, "acct", "c", "");
        check("/acct/c/d/e%20f+g", None, "acct", "c", "d/e f+g");
        check("/acct/c/../..//x/", None, "acct", "c", "../..//x/");
        check("/acct/c//x", None, "acct", "c", "/x");
        check("/acct/c/a%2Fb%252F", None, "acct", "c", "a/b%2F");
        check("/acct/c/a%5Cb", None, "acct", "c", "a/b");
        check("/c/d/e", Some("acct"), "acct", "c", "d/e");
        check("/", Some("acct"), "acct", "", "");
        assert!(place("/", None).is_err());
        assert!(place("//c/b", None).is_err());
        assert!(place("/acct/c/%ff", None).is_err());
    }

    #[test]
    fn hosts_that_can_name_an_account() {
        assert_eq!(host_label("acct.blob.example.org:80", "blob.example.org"), Some("acct"));
        assert_eq!(host_label("acct-secondary.local", ""), Some("acct"));
        for none in ["127.0.0.1:10000", "localhost:1", "[::1]:80", "storage", "", ".x", "x.", "store.example.org"] {
            assert_eq!(host_label(none, "store.example.org"), None, "{none}");
        }
    }
}
