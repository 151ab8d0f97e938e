//! Answers: headers that many share, and errors in Azure's form.

use axum::body::Body;
use axum::response::Response;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};
use kiln_time::Timestamp;

use super::headers::META;
use super::{header_case, xml};
use crate::domain::StorageError;
use crate::domain::lease::Lease;
use crate::domain::model::{Blob, BlobKind, Container, PublicAccess, Tier};
use crate::domain::names::Metadata;
use crate::domain::sas::Overrides;

/// An answer in the making.
#[derive(Debug)]
pub struct Reply {
    response: Response,
    /// Names of headers that have capitals.
    cased: Vec<String>,
}

impl Reply {
    /// Without a body.
    pub fn new(status: u16) -> Self {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { response, cased: Vec::new() }
    }

    /// With an XML document.
    pub fn xml(status: u16, document: String) -> Self {
        let mut reply = Self::new(status).header("content-type", "application/xml");
        *reply.response.body_mut() = Body::from(document);
        reply
    }

    /// With a body.
    #[must_use]
    pub fn body(mut self, body: Body) -> Self {
        *self.response.body_mut() = body;
        self
    }

    /// A value that cannot be a header (a stored text with odd bytes) is left out.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value.as_ref()))
        {
            self.response.headers_mut().insert(name, value);
        }
        self
    }

    /// As [`Reply::header`], unless the text is empty.
    #[must_use]
    pub fn header_if(self, name: &str, value: &str) -> Self {
        if value.is_empty() { self } else { self.header(name, value) }
    }

    /// ETag (quoted) and Last-Modified.
    #[must_use]
    pub fn version(self, etag: &str, last_modified: Timestamp) -> Self {
        self.header("etag", format!("\"{etag}\"")).header("last-modified", last_modified.to_http_date())
    }

    /// `x-ms-meta-*`.
    #[must_use]
    pub fn metadata(self, metadata: &Metadata) -> Self {
        metadata.iter().fold(self, |reply, (name, value)| {
            let name = format!("{META}{name}");
            let mut reply = reply.header(&name, value);
            if name.contains(|c: char| c.is_ascii_uppercase()) {
                reply.cased.push(name);
            }
            reply
        })
    }

    /// What GET and HEAD say about a container.
    #[must_use]
    pub fn container(self, container: &Container) -> Self {
        self.version(&container.etag, container.last_modified)
            .metadata(&container.metadata)
            .public_access(container.public_access)
            .lease(&container.lease)
            .header("x-ms-has-immutability-policy", "false")
            .header("x-ms-has-legal-hold", "false")
    }

    /// What a lease is now.
    #[must_use]
    pub fn lease(self, lease: &Lease) -> Self {
        let lease = lease.at(Timestamp::now());
        self.header("x-ms-lease-status", lease.status())
            .header("x-ms-lease-state", lease.state())
            .header_if("x-ms-lease-duration", lease.duration())
    }

    /// Nothing if it is private.
    #[must_use]
    pub fn public_access(self, access: PublicAccess) -> Self {
        self.header_if("x-ms-blob-public-access", xml::public_access(access))
    }

    /// What GET and HEAD say about a blob, apart from length and MD5.
    #[must_use]
    pub fn blob(self, blob: &Blob, overrides: &Overrides) -> Self {
        let p = &blob.properties;
        let pick = |own: &str, other: &str| if other.is_empty() { own.to_owned() } else { other.to_owned() };
        let reply = self
            .version(&blob.etag, blob.last_modified)
            .metadata(&blob.metadata)
            .header("content-type", pick(&p.content_type, &overrides.content_type))
            .header_if("content-encoding", &pick(&p.content_encoding, &overrides.content_encoding))
            .header_if("content-language", &pick(&p.content_language, &overrides.content_language))
            .header_if("content-disposition", &pick(&p.content_disposition, &overrides.content_disposition))
            .header_if("cache-control", &pick(&p.cache_control, &overrides.cache_control))
            .header("accept-ranges", "bytes")
            .kind(blob.kind)
            .header("x-ms-creation-time", blob.created.to_http_date())
            .lease(&blob.lease)
            .header("x-ms-server-encrypted", "false");
        match &blob.copy {
            None => reply,
            Some(copy) => reply
                .header("x-ms-copy-id", &copy.id)
                .header("x-ms-copy-source", &copy.source)
                .header("x-ms-copy-status", "success")
                .header("x-ms-copy-progress", format!("{0}/{0}", blob.length))
                .header("x-ms-copy-completion-time", copy.completed.to_http_date()),
        }
    }

    /// What kind of blob it is.
    #[must_use]
    pub fn kind(self, kind: BlobKind) -> Self {
        let reply = self.header("x-ms-blob-type", xml::blob_type(kind));
        match kind {
            BlobKind::Block => reply,
            BlobKind::Append { blocks } => reply.header("x-ms-blob-committed-block-count", blocks.to_string()),
        }
    }

    /// The tier of a block blob.
    #[must_use]
    pub fn tier(self, blob: &Blob) -> Self {
        match (blob.kind, blob.tier) {
            (BlobKind::Append { .. }, _) => self,
            (BlobKind::Block, None) => {
                self.header("x-ms-access-tier", Tier::Hot.name()).header("x-ms-access-tier-inferred", "true")
            }
            (BlobKind::Block, Some(chosen)) => self
                .header("x-ms-access-tier", chosen.tier.name())
                .header("x-ms-access-tier-change-time", chosen.since.to_http_date()),
        }
    }

    /// Base64 of a CRC-64.
    #[must_use]
    pub fn crc64(self, crc64: Option<[u8; 8]>) -> Self {
        match crc64 {
            Some(crc64) => self.header("x-ms-content-crc64", BASE64_STANDARD.encode(crc64)),
            None => self,
        }
    }

    /// Base64 of an MD5.
    #[must_use]
    pub fn md5(self, name: &str, md5: Option<[u8; 16]>) -> Self {
        match md5 {
            Some(md5) => self.header(name, BASE64_STANDARD.encode(md5)),
            None => self,
        }
    }

    /// The finished answer.
    pub fn finish(self) -> Response {
        self.response
    }

    /// The same, with capitals where HTTP lets them be.
    pub async fn finish_with_case(mut self) -> Response {
        if !self.cased.is_empty() {
            self.response.extensions_mut().extend(header_case::extension(&self.cased).await);
        }
        self.response
    }

    /// Sets Content-Length, for answers whose body is a stream or left out.
    #[must_use]
    pub fn length(self, length: u64) -> Self {
        self.header("content-length", length.to_string())
    }
}

/// An error in Azure's form. Answers to HEAD, and 304, have no body.
pub fn error(error: &StorageError, head: bool, request_id: &str, now: Timestamp) -> Response {
    let status = error.status();
    let mut reply = Reply::new(status).header("x-ms-error-code", error.code());
    match error {
        StorageError::InvalidRange { length } => reply = reply.header("content-range", format!("bytes */{length}")),
        StorageError::NoAuthenticationInformation => reply = reply.header("www-authenticate", "SharedKey"),
        StorageError::ServerBusy => reply = reply.header("retry-after", "1"),
        _ => {}
    }
    if head || status == 304 {
        return reply.finish();
    }
    let message = format!("{error}\nRequestId:{request_id}\nTime:{}", now.to_rfc3339_ticks());
    let mut response = reply.finish();
    let document = xml::error(error.code(), &message, &error.details());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(document.len()));
    *response.body_mut() = Body::from(document);
    response
}

/// What the answer says of encryption, where new bytes are encrypted.
pub fn say_encrypted(headers: &mut HeaderMap) {
    for name in ["x-ms-request-server-encrypted", "x-ms-server-encrypted"] {
        if let Some(value) = headers.get_mut(name) {
            *value = HeaderValue::from_static("true");
        }
    }
}

/// Headers that every answer has.
pub fn add_common(headers: &mut HeaderMap, request_id: &str, version: &str, client_request_id: Option<HeaderValue>) {
    headers.insert("server", HeaderValue::from_static("Kiln-Blob/1.0"));
    if let Ok(value) = HeaderValue::from_str(request_id) {
        headers.insert("x-ms-request-id", value);
    }
    if let Ok(value) = HeaderValue::from_str(version) {
        headers.insert("x-ms-version", value);
    }
    if let Some(value) = client_request_id.filter(|value| value.len() <= 1024) {
        headers.insert("x-ms-client-request-id", value);
    }
}
