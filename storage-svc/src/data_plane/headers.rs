//! Headers of requests, as values of the domain.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kiln_etag::{Conditions, EtagSet};
use kiln_time::Timestamp;

use super::call::Call;
use crate::domain::StorageError;
use crate::domain::condition;
use crate::domain::model::{BlobProperties, DEFAULT_CONTENT_TYPE, PublicAccess, Tier};
use crate::domain::names::{self, Metadata};
use crate::domain::range::WantedRange;
use crate::service::Expected;

/// Begins the names of metadata.
pub const META: &str = "x-ms-meta-";

/// Conditions of a read.
pub fn read_conditions(call: &Call) -> Result<Conditions, StorageError> {
    conditions(call, ["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"])
}

/// Conditions of a write.
pub fn write_conditions(call: &Call) -> Result<Conditions, StorageError> {
    let conditions = read_conditions(call)?;
    condition::check_write_combination(&conditions)?;
    Ok(conditions)
}

/// Which dates an operation on a container takes as conditions; it takes no ETags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerDates {
    /// If-Modified-Since.
    Modified,
    /// The other one, too.
    Both,
}

/// Conditions of a write to a container. One that the operation does not have is refused: who gives it
/// would otherwise believe that it was kept.
pub fn container_conditions(call: &Call, dates: ContainerDates) -> Result<Conditions, StorageError> {
    let conditions = write_conditions(call)?;
    let refused = match &conditions {
        Conditions { if_match: Some(_), .. } => Some("If-Match"),
        Conditions { if_none_match: Some(_), .. } => Some("If-None-Match"),
        Conditions { if_unmodified_since: Some(_), .. } if dates == ContainerDates::Modified => {
            Some("If-Unmodified-Since")
        }
        _ => None,
    };
    refused.map_or(Ok(conditions), |name| Err(StorageError::UnsupportedHeader(name)))
}

/// Names a lease.
pub const LEASE_ID: &str = "x-ms-lease-id";

/// The lease that the caller says it has.
pub fn lease_id(call: &Call) -> Result<Option<String>, StorageError> {
    guid(call, LEASE_ID)
}

/// A GUID, in one form whichever it was written in.
pub fn guid(call: &Call, name: &'static str) -> Result<Option<String>, StorageError> {
    let parse = |text: &str| {
        uuid::Uuid::parse_str(text.trim())
            .map(|id| id.hyphenated().to_string())
            .map_err(|_| StorageError::InvalidHeaderValue { name, value: text.to_owned() })
    };
    call.header(name).map(parse).transpose()
}

/// Conditions on the source of a copy.
pub fn source_conditions(call: &Call) -> Result<Conditions, StorageError> {
    conditions(
        call,
        [
            "x-ms-source-if-match",
            "x-ms-source-if-none-match",
            "x-ms-source-if-modified-since",
            "x-ms-source-if-unmodified-since",
        ],
    )
}

fn conditions(call: &Call, names: [&'static str; 4]) -> Result<Conditions, StorageError> {
    // There are no tags, so nothing could be said about them.
    for name in ["x-ms-if-tags", "x-ms-source-if-tags"] {
        if call.headers.contains_key(name) {
            return Err(StorageError::UnsupportedHeader(name));
        }
    }
    let date = |name: &'static str| {
        call.header(name)
            .map(|text| {
                Timestamp::parse_http_date(text)
                    .map_err(|_| StorageError::InvalidHeaderValue { name, value: text.to_owned() })
            })
            .transpose()
    };
    Ok(Conditions {
        if_match: call.header(names[0]).map(EtagSet::parse),
        if_none_match: call.header(names[1]).map(EtagSet::parse),
        if_modified_since: date(names[2])?,
        if_unmodified_since: date(names[3])?,
    })
}

/// MD5 that the source of a copy shall have.
pub fn source_md5(call: &Call) -> Result<Option<[u8; 16]>, StorageError> {
    md5(call, "x-ms-source-content-md5")
}

/// CRC-64 that the source of a block shall have; not together with its MD5.
pub fn source_crc64(call: &Call) -> Result<Option<[u8; 8]>, StorageError> {
    let crc64 = crc64(call, "x-ms-source-content-crc64")?;
    if crc64.is_some() && source_md5(call)?.is_some() {
        return Err(StorageError::BothCrc64AndMd5HeaderPresent);
    }
    Ok(crc64)
}

/// The range a read asks for; `x-ms-range` wins.
pub fn range(call: &Call) -> Option<WantedRange> {
    call.header("x-ms-range").or_else(|| call.header("range")).and_then(WantedRange::parse)
}

/// `x-ms-meta-*`; `None` if there is none.
pub fn metadata(call: &Call) -> Result<Option<Metadata>, StorageError> {
    let mut pairs = Vec::new();
    for (name, value) in &call.headers {
        let written = call.cases.get(name.as_str()).map_or(name.as_str(), String::as_str);
        if name.as_str().starts_with(META)
            && let Some(name) = written.get(META.len()..)
        {
            let value =
                std::str::from_utf8(value.as_bytes()).map_err(|_| StorageError::InvalidMetadata(name.to_owned()))?;
            pairs.push((name.to_owned(), value.trim().to_owned()));
        }
    }
    let metadata = names::check_metadata(pairs)?;
    Ok((!metadata.is_empty()).then_some(metadata))
}

/// Stored headers from `x-ms-blob-*` alone.
pub fn blob_properties(call: &Call) -> Result<BlobProperties, StorageError> {
    let text = |name: &str| call.header(name).unwrap_or_default().to_owned();
    Ok(BlobProperties {
        content_type: Some(text("x-ms-blob-content-type"))
            .filter(|text| !text.is_empty())
            .unwrap_or_else(|| DEFAULT_CONTENT_TYPE.to_owned()),
        content_encoding: text("x-ms-blob-content-encoding"),
        content_language: text("x-ms-blob-content-language"),
        content_disposition: text("x-ms-blob-content-disposition"),
        cache_control: text("x-ms-blob-cache-control"),
        content_md5: md5(call, "x-ms-blob-content-md5")?,
    })
}

/// Stored headers of Put Blob: the plain ones count where no `x-ms-blob-*` is.
pub fn put_properties(call: &Call) -> Result<BlobProperties, StorageError> {
    let mut properties = blob_properties(call)?;
    let plain = |name: &str| call.header(name).unwrap_or_default().to_owned();
    if !call.headers.contains_key("x-ms-blob-content-type") && !plain("content-type").is_empty() {
        properties.content_type = plain("content-type");
    }
    for (field, name) in [
        (&mut properties.content_encoding, "content-encoding"),
        (&mut properties.content_language, "content-language"),
        (&mut properties.cache_control, "cache-control"),
    ] {
        if field.is_empty() {
            *field = plain(name);
        }
    }
    Ok(properties)
}

/// What a request says about its body.
pub fn expected(call: &Call) -> Result<Expected, StorageError> {
    let length = call.header("content-length").ok_or(StorageError::MissingContentLengthHeader)?;
    let length = length
        .parse()
        .map_err(|_| StorageError::InvalidHeaderValue { name: "Content-Length", value: length.to_owned() })?;
    let md5 = md5(call, "content-md5")?;
    let crc64 = crc64(call, "x-ms-content-crc64")?;
    if md5.is_some() && crc64.is_some() {
        return Err(StorageError::BothCrc64AndMd5HeaderPresent);
    }
    Ok(Expected { length: Some(length), md5, crc64, answer_crc64: false })
}

/// `x-ms-access-tier`.
pub fn tier(call: &Call) -> Result<Option<Tier>, StorageError> {
    const NAME: &str = "x-ms-access-tier";
    let invalid = |text: &str| StorageError::InvalidHeaderValue { name: NAME, value: text.to_owned() };
    call.header(NAME).map(|text| Tier::parse(text).ok_or_else(|| invalid(text))).transpose()
}

/// A header that is a number.
pub fn number(call: &Call, name: &'static str) -> Result<Option<u64>, StorageError> {
    let invalid = |text: &str| StorageError::InvalidHeaderValue { name, value: text.to_owned() };
    call.header(name).map(|text| text.trim().parse().map_err(|_| invalid(text))).transpose()
}

/// A header that says yes or no; absent means no.
pub fn flag(call: &Call, name: &'static str) -> Result<bool, StorageError> {
    match call.header(name).map(str::to_ascii_lowercase).as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(StorageError::InvalidHeaderValue { name, value: other.to_owned() }),
    }
}

fn crc64(call: &Call, name: &'static str) -> Result<Option<[u8; 8]>, StorageError> {
    let parse = |text: &str| {
        let bytes = BASE64_STANDARD.decode(text.trim()).ok().and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
        bytes.ok_or_else(|| StorageError::InvalidHeaderValue { name, value: text.to_owned() })
    };
    call.header(name).map(parse).transpose()
}

fn md5(call: &Call, name: &str) -> Result<Option<[u8; 16]>, StorageError> {
    match call.header(name).map(str::trim).filter(|text| !text.is_empty()) {
        None => Ok(None),
        Some(text) => {
            let bytes = BASE64_STANDARD.decode(text).map_err(|_| StorageError::InvalidMd5)?;
            <[u8; 16]>::try_from(bytes).map(Some).map_err(|_| StorageError::InvalidMd5)
        }
    }
}

/// `x-ms-blob-public-access`.
pub fn public_access(call: &Call) -> Result<PublicAccess, StorageError> {
    const NAME: &str = "x-ms-blob-public-access";
    match call.header(NAME).map(str::to_ascii_lowercase).as_deref() {
        None | Some("" | "off" | "none") => Ok(PublicAccess::Private),
        Some("blob") => Ok(PublicAccess::Blob),
        Some("container" | "true") => Ok(PublicAccess::Container),
        Some(other) => Err(StorageError::InvalidHeaderValue { name: NAME, value: other.to_owned() }),
    }
}
