//! Copies: Copy Blob, Put Blob From URL, Put Block From URL, and their end.
//!
//! A source is a blob of this service, of any of its accounts, or something on another server. Whoever copies has
//! to show that the source may be read: by the key of its account, by a signature in its URL, or because it is
//! public. A copy is complete when it is answered: there is none that is pending.

use std::sync::Arc;

use http::Uri;
use kiln_time::Timestamp;
use url::Url;

use super::call::{Place, host_label, place};
use super::reply::Reply;
use super::{Answer, Job, headers};
use crate::domain::StorageError;
use crate::domain::access::Allowed;
use crate::domain::lease::Leased;
use crate::domain::limits::Limits;
use crate::domain::model::{
    Account, Address, BlobKind, BlobProperties, CopySource, DEFAULT_CONTENT_TYPE, MAX_PUT_BLOB,
};
use crate::domain::names::{self, Metadata};
use crate::domain::query::Query;
use crate::domain::range::WantedRange;
use crate::service::remote::{self, RemoteSource};
use crate::service::{Body, CopyBytes, Expected, PutBlock};
use crate::store::{CopyFrom, CopyInto, Guard};

const SOURCE: &str = "x-ms-copy-source";
const RANGE: &str = "x-ms-source-range";
/// Bytes of a copy that a client wants to be done when it is answered, and says so.
const MAX_SYNC: u64 = 256 * 1024 * 1024;

/// Where a copy comes from.
enum Source {
    /// A blob of this service that the caller may read.
    Own(Arc<Account>, Place, Option<Timestamp>),
    /// Another server.
    Remote(Url),
}

impl Job<'_> {
    pub(super) async fn copy_blob(self) -> Answer {
        let guard = self.guard()?;
        let (source, shown) = self.source().await?;
        let md5 = headers::source_md5(self.call)?;
        let metadata = headers::metadata(self.call)?;
        let copy = CopySource { id: uuid::Uuid::new_v4().to_string(), source: shown, completed: Timestamp::now() };
        let id = copy.id.clone();
        let copied = match source {
            Source::Own(account, place, snapshot) => {
                let into = self.target(metadata, None, Some(copy))?;
                let from = self.from(&account, place, snapshot)?;
                self.plane.storage.copy_blob(&self.call.account.name, from, into, md5, guard).await?
            }
            Source::Remote(url) => {
                let source = self.open_remote(url, None).await?;
                let limit = if headers::flag(self.call, "x-ms-requires-sync")? { MAX_SYNC } else { MAX_PUT_BLOB };
                let metadata = match metadata {
                    Some(metadata) => metadata,
                    None => metadata_of(&source)?,
                };
                let properties = properties_of(&source);
                let bytes = self.bytes(source.length, md5, limit, guard)?;
                let copy = CopyBytes { properties, metadata, copy: Some(copy), ..bytes };
                self.plane.storage.copy_bytes(copy, source.into_body()).await?
            }
        };
        Ok(Reply::new(202)
            .version(&copied.etag, copied.last_modified)
            .md5("content-md5", md5)
            .header("x-ms-copy-id", id)
            .header("x-ms-copy-status", "success"))
    }

    pub(super) async fn put_blob_from_url(self) -> Answer {
        if self.call.header("x-ms-blob-type") != Some("BlockBlob") {
            return Err(StorageError::NotImplemented("Put Blob From URL of blobs other than block blobs"));
        }
        self.no_body()?;
        let guard = self.guard()?;
        let (source, _) = self.source().await?;
        let md5 = headers::source_md5(self.call)?;
        // What the request says itself counts more than what the source says.
        let own = headers::blob_properties(self.call)?;
        let from_source = match self.call.header("x-ms-copy-source-blob-properties") {
            None => true,
            Some(_) => headers::flag(self.call, "x-ms-copy-source-blob-properties")?,
        };
        let metadata = headers::metadata(self.call)?;
        let copied = match source {
            Source::Own(account, place, snapshot) => {
                let from = self.from(&account, place, snapshot)?;
                let opened = self.plane.storage.open_source(from.address(), &from.conditions, None).await?;
                let source = opened.blob.clone();
                let (properties, metadata) = if from_source {
                    (self.merged(source.properties, &own), metadata.unwrap_or(source.metadata))
                } else {
                    (own, metadata.unwrap_or_default())
                };
                if source.kind == BlobKind::Block {
                    let into = self.target(Some(metadata), Some(properties), None)?;
                    let into = CopyInto { keep_blocks: false, ..into };
                    let from = CopyFrom { etag: Some(source.etag), ..from };
                    self.plane.storage.copy_blob(&self.call.account.name, from, into, md5, guard).await?
                } else {
                    // It becomes a block blob, whatever it was.
                    let copy = self.bytes(Some(source.length), md5, Limits::of(self.call.version()).put_blob, guard)?;
                    let copy = CopyBytes { properties, metadata, ..copy };
                    self.plane.storage.copy_bytes(copy, remote::body_of(opened.into_stream())).await?
                }
            }
            Source::Remote(url) => {
                let source = self.open_remote(url, None).await?;
                let metadata = match metadata {
                    Some(metadata) => metadata,
                    None if from_source => metadata_of(&source)?,
                    None => Metadata::new(),
                };
                let properties = if from_source { self.merged(properties_of(&source), &own) } else { own };
                let copy = self.bytes(source.length, md5, Limits::of(self.call.version()).put_blob, guard)?;
                self.plane.storage.copy_bytes(CopyBytes { properties, metadata, ..copy }, source.into_body()).await?
            }
        };
        Ok(Reply::new(201)
            .version(&copied.etag, copied.last_modified)
            .md5("content-md5", copied.properties.content_md5)
            .header("x-ms-request-server-encrypted", "false"))
    }

    pub(super) async fn put_block_from_url(self) -> Answer {
        self.no_body()?;
        let id = self.call.query.get("blockid").ok_or(StorageError::MissingRequiredQueryParameter("blockid"))?;
        let range = match self.call.header(RANGE) {
            None => None,
            Some(text) => Some(
                WantedRange::parse(text)
                    .ok_or_else(|| StorageError::InvalidHeaderValue { name: RANGE, value: text.to_owned() })?,
            ),
        };
        let (source, _) = self.source().await?;
        let md5 = headers::source_md5(self.call)?;
        let conditions = headers::source_conditions(self.call)?;
        let (length, body): (Option<u64>, Body<'_>) = match source {
            Source::Own(account, place, snapshot) => {
                let from = self.from(&account, place, snapshot)?;
                let opened = self.plane.storage.open_source(from.address(), &conditions, range).await?;
                (Some(opened.span.length), remote::body_of(opened.into_stream()))
            }
            Source::Remote(url) => {
                let source = self.plane.storage.remote().open(url, &conditions, range).await?;
                (source.length, source.into_body())
            }
        };
        let (account, container, blob) = self.name();
        let put = PutBlock {
            account: account.to_owned(),
            container: container.to_owned(),
            blob: blob.to_owned(),
            id: id.to_owned(),
            expected: Expected { length, md5, crc64: headers::source_crc64(self.call)?, answer_crc64: false },
            limits: Limits::of(self.call.version()),
            guard: Guard {
                only_new: self.allowed == Allowed::OnlyNew,
                lease: headers::lease_id(self.call)?,
                ..Guard::default()
            },
        };
        let checksums = self.plane.storage.put_block(put, body).await?;
        Ok(Reply::new(201).md5("content-md5", Some(checksums.md5)).header("x-ms-request-server-encrypted", "false"))
    }

    /// There is never a copy that could be ended.
    pub(super) async fn abort_copy(self) -> Answer {
        const ACTION: &str = "x-ms-copy-action";
        match self.call.header(ACTION) {
            None => return Err(StorageError::MissingRequiredHeader(ACTION)),
            Some(action) if action.eq_ignore_ascii_case("abort") => {}
            Some(other) => return Err(StorageError::InvalidHeaderValue { name: ACTION, value: other.to_owned() }),
        }
        if self.call.query.get("copyid").is_none_or(str::is_empty) {
            return Err(StorageError::MissingRequiredQueryParameter("copyid"));
        }
        let (account, container, name) = self.name();
        let blob = self.plane.storage.catalogue().blob(Address::blob(account, container, name)).await?;
        let lease = headers::lease_id(self.call)?;
        blob.lease.check_write(Leased::Blob, lease.as_deref(), Timestamp::now())?;
        Err(StorageError::NoPendingCopyOperation)
    }

    fn no_body(&self) -> Result<(), StorageError> {
        match self.call.header("content-length") {
            None => Err(StorageError::MissingContentLengthHeader),
            Some("0") => Ok(()),
            Some(other) => Err(StorageError::InvalidHeaderValue { name: "Content-Length", value: other.to_owned() }),
        }
    }

    fn target(
        &self,
        metadata: Option<Metadata>,
        properties: Option<BlobProperties>,
        copy: Option<CopySource>,
    ) -> Result<CopyInto, StorageError> {
        let (_, container, name) = self.name();
        Ok(CopyInto {
            container: container.to_owned(),
            name: name.to_owned(),
            metadata,
            properties,
            copy,
            tier: headers::tier(self.call)?,
            keep_blocks: true,
        })
    }

    fn from(&self, account: &Account, place: Place, snapshot: Option<Timestamp>) -> Result<CopyFrom, StorageError> {
        Ok(CopyFrom {
            account: account.name.clone(),
            container: place.container,
            name: place.blob,
            snapshot,
            conditions: headers::source_conditions(self.call)?,
            etag: None,
        })
    }

    async fn open_remote(&self, url: Url, range: Option<WantedRange>) -> Result<RemoteSource, StorageError> {
        self.plane.storage.remote().open(url, &headers::source_conditions(self.call)?, range).await
    }

    /// A blob that is made of so many bytes, or of nobody knows how many; with nothing told about it yet.
    fn bytes(
        &self,
        length: Option<u64>,
        md5: Option<[u8; 16]>,
        limit: u64,
        guard: Guard,
    ) -> Result<CopyBytes, StorageError> {
        let (account, container, name) = self.name();
        Ok(CopyBytes {
            account: account.to_owned(),
            container: container.to_owned(),
            name: name.to_owned(),
            properties: BlobProperties::default(),
            metadata: Metadata::new(),
            copy: None,
            tier: headers::tier(self.call)?,
            expected: Expected { length, md5, ..Expected::default() },
            limit,
            guard,
        })
    }

    /// The source's headers, and of the request's those that it has.
    fn merged(&self, source: BlobProperties, own: &BlobProperties) -> BlobProperties {
        let pick = |source: String, own: &String| if own.is_empty() { source } else { own.clone() };
        let typed = self.call.headers.contains_key("x-ms-blob-content-type");
        BlobProperties {
            content_type: if typed { own.content_type.clone() } else { source.content_type },
            content_encoding: pick(source.content_encoding, &own.content_encoding),
            content_language: pick(source.content_language, &own.content_language),
            content_disposition: pick(source.content_disposition, &own.content_disposition),
            cache_control: pick(source.cache_control, &own.cache_control),
            content_md5: own.content_md5.or(source.content_md5),
        }
    }

    /// Where the copy comes from, which the caller may read; and the URL without a signature, to be shown.
    async fn source(&self) -> Result<(Source, String), StorageError> {
        let text = self.call.header(SOURCE).unwrap_or_default();
        if self.call.headers.contains_key("x-ms-copy-source-authorization") {
            return Err(StorageError::UnsupportedHeader("x-ms-copy-source-authorization"));
        }
        let (shown, query) = text.split_once('?').unwrap_or((text, ""));
        // Without the signature: errors are logged.
        let malformed = || StorageError::InvalidHeaderValue { name: SOURCE, value: shown.to_owned() };
        let (scheme, rest) = shown.split_once("://").ok_or_else(malformed)?;
        let (authority, path) = rest.find('/').map(|at| rest.split_at(at)).ok_or_else(malformed)?;
        if !matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https") || authority.contains('@') {
            return Err(malformed());
        }
        // Of the own service the path counts as it is written: names may be "..".
        let Some(place) = self.own_place(authority, path).await? else {
            let url = Url::parse(text).map_err(|_| malformed())?;
            return Ok((Source::Remote(url), shown.to_owned()));
        };
        if place.container.is_empty() || place.blob.is_empty() {
            return Err(malformed());
        }
        names::check_container(&place.container)?;
        names::check_blob(&place.blob)?;
        let account = self.plane.storage.account(&place.account).await?;
        let account = account.ok_or_else(|| remote::unreadable(404, "there is no such account"))?;
        let query = Query::parse(query)?;
        let snapshot = match query.get("snapshot").filter(|text| !text.is_empty()) {
            None => None,
            Some(text) => Some(Timestamp::parse_rfc3339(text).map_err(|_| malformed())?),
        };
        self.plane.authorize_source(self.call, &self.grant, &account, &place, &query).await?;
        Ok((Source::Own(account, place, snapshot), shown.to_owned()))
    }

    /// Where a URL leads in this service; `None` if it leads elsewhere. It is this service's if its host is the public
    /// one, or the one by which the client has just reached it, with or without an account before it.
    async fn own_place(&self, authority: &str, path: &str) -> Result<Option<Place>, StorageError> {
        let plane = self.plane;
        let public = plane.config.public_blob_endpoint.parse::<Uri>().ok();
        let public = public.as_ref().and_then(Uri::authority).map_or("", |authority| authority.as_str());
        let behind = |authority: &'_ str| authority.split_once('.').map(|(_, domain)| domain.to_ascii_lowercase());
        let asked = self.call.host.as_str();
        let same = |other: &str| !other.is_empty() && authority.eq_ignore_ascii_case(other);
        if let Some(label) = host_label(authority, &plane.own_host).filter(|_| plane.config.host_style) {
            let domain = behind(authority);
            let sibling = domain.as_deref() == Some(&public.to_ascii_lowercase())
                || (host_label(asked, &plane.own_host).is_some() && domain == behind(asked));
            if (sibling || same(asked)) && plane.storage.account(label).await?.is_some() {
                return place(path, Some(label)).map(Some);
            }
        }
        if same(public) || same(asked) { place(path, None).map(Some) } else { Ok(None) }
    }
}

/// Stored headers of a source on another server.
fn properties_of(source: &RemoteSource) -> BlobProperties {
    let text = |name: &str| source.header(name).to_owned();
    let content_type = text("content-type");
    BlobProperties {
        content_type: if content_type.is_empty() { DEFAULT_CONTENT_TYPE.to_owned() } else { content_type },
        content_encoding: text("content-encoding"),
        content_language: text("content-language"),
        content_disposition: text("content-disposition"),
        cache_control: text("cache-control"),
        content_md5: None,
    }
}

/// Metadata of a blob on another server.
fn metadata_of(source: &RemoteSource) -> Result<Metadata, StorageError> {
    let pairs = source.headers.iter().filter_map(|(name, value)| {
        let name = name.as_str().strip_prefix("x-ms-meta-")?;
        Some((name.to_owned(), value.to_str().ok()?.to_owned()))
    });
    names::check_metadata(pairs.collect::<Vec<_>>())
}
