//! XML documents of the data plane.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kiln_time::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::domain::StorageError;
use crate::domain::lease::Lease;
use crate::domain::model::{
    Blob, BlobKind, BlockInfo, BlockSource, Container, DEFAULT_CONTENT_TYPE, MAX_BLOCKS, MAX_POLICIES, PublicAccess,
    StoredPolicy, Tier,
};
use crate::domain::names::Metadata;
use crate::store::{BlobEntry, BlobPosition, Page};

const HEADER: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?>";

/// A document in the making.
#[derive(Debug)]
pub struct Document(String);

impl Document {
    pub fn new() -> Self {
        Self(HEADER.to_owned())
    }

    pub fn raw(&mut self, markup: &str) {
        self.0.push_str(markup);
    }

    /// The whole.
    pub fn finish(self) -> String {
        self.0
    }

    /// `<name>text</name>`
    pub fn element(&mut self, name: &str, text: &str) {
        self.0.push('<');
        self.0.push_str(name);
        if text.is_empty() {
            self.0.push_str(" />");
            return;
        }
        self.0.push('>');
        self.text(text);
        let _ = write!(self.0, "</{name}>");
    }

    pub fn element_if(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            self.element(name, text);
        }
    }

    /// A name of a blob; those XML cannot hold are percent-encoded and marked.
    fn name(&mut self, name: &str) {
        if name.chars().all(is_xml) {
            self.element("Name", name);
        } else {
            let encoded = utf8_percent_encode(name, NON_ALPHANUMERIC);
            let _ = write!(self.0, "<Name Encoded=\"true\">{encoded}</Name>");
        }
    }

    /// Characters that XML cannot hold are left out.
    fn text(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '&' => self.0.push_str("&amp;"),
                '"' => self.0.push_str("&quot;"),
                '\r' => self.0.push_str("&#xD;"),
                c if is_xml(c) => self.0.push(c),
                _ => {}
            }
        }
    }

    fn attribute(&mut self, name: &str, value: &str) {
        let _ = write!(self.0, " {name}=\"");
        self.text(value);
        self.0.push('"');
    }

    fn metadata(&mut self, metadata: &Metadata) {
        self.raw("<Metadata>");
        for (name, value) in metadata {
            self.element(name, value);
        }
        self.raw("</Metadata>");
    }
}

fn is_xml(c: char) -> bool {
    !matches!(c, '\u{0}'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}')
}

/// The body of an error.
pub fn error(code: &str, message: &str, details: &[(&'static str, String)]) -> String {
    let mut document = Document::new();
    document.raw("<Error>");
    document.element("Code", code);
    document.element("Message", message);
    for (name, value) in details {
        document.element(name, value);
    }
    document.raw("</Error>");
    document.0
}

/// What a list was asked for, as its answer repeats it.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)] // The names of the parameters.
pub struct ListRequest {
    pub prefix: String,
    pub marker: String,
    pub delimiter: String,
    pub max_results: Option<usize>,
    pub metadata: bool,
    pub copy: bool,
    pub snapshots: bool,
    pub uncommitted: bool,
}

impl Document {
    /// What a lease is now.
    fn lease(&mut self, lease: &Lease) {
        let lease = lease.at(Timestamp::now());
        self.element("LeaseStatus", lease.status());
        self.element("LeaseState", lease.state());
        self.element_if("LeaseDuration", lease.duration());
    }

    fn list_head(&mut self, endpoint: &str, container: Option<&str>, request: &ListRequest) {
        self.raw("<EnumerationResults");
        self.attribute("ServiceEndpoint", endpoint);
        if let Some(container) = container {
            self.attribute("ContainerName", container);
        }
        self.raw(">");
        self.element_if("Prefix", &request.prefix);
        self.element_if("Marker", &request.marker);
        if let Some(max) = request.max_results {
            self.element("MaxResults", &max.to_string());
        }
        self.element_if("Delimiter", &request.delimiter);
    }
}

/// Answer of List Containers.
pub fn containers(endpoint: &str, request: &ListRequest, page: &Page<Container>, next: &str) -> String {
    let mut document = Document::new();
    document.list_head(endpoint, None, request);
    document.raw("<Containers>");
    for container in &page.entries {
        document.raw("<Container>");
        document.element("Name", &container.name);
        document.raw("<Properties>");
        document.element("Last-Modified", &container.last_modified.to_http_date());
        document.element("Etag", &format!("\"{}\"", container.etag));
        document.lease(&container.lease);
        document.element_if("PublicAccess", public_access(container.public_access));
        document.raw("<HasImmutabilityPolicy>false</HasImmutabilityPolicy><HasLegalHold>false</HasLegalHold>");
        document.raw("</Properties>");
        if request.metadata {
            document.metadata(&container.metadata);
        }
        document.raw("</Container>");
    }
    document.raw("</Containers>");
    document.element("NextMarker", next);
    document.raw("</EnumerationResults>");
    document.0
}

/// Answer of List Blobs.
pub fn blobs(
    endpoint: &str,
    container: &str,
    request: &ListRequest,
    page: &Page<BlobEntry, BlobPosition>,
    next: &str,
) -> String {
    let mut document = Document::new();
    document.list_head(endpoint, Some(container), request);
    document.raw("<Blobs>");
    for entry in &page.entries {
        match entry {
            BlobEntry::Prefix(prefix) => {
                document.raw("<BlobPrefix>");
                document.name(prefix);
                document.raw("</BlobPrefix>");
            }
            BlobEntry::Blob(blob) => listed_blob(&mut document, blob, request),
            BlobEntry::Uncommitted { name, time } => listed_uncommitted(&mut document, name, *time),
        }
    }
    document.raw("</Blobs>");
    document.element("NextMarker", next);
    document.raw("</EnumerationResults>");
    document.0
}

fn listed_blob(document: &mut Document, blob: &Blob, request: &ListRequest) {
    let p = &blob.properties;
    document.raw("<Blob>");
    document.name(&blob.name);
    if let Some(at) = blob.snapshot {
        document.element("Snapshot", &at.to_rfc3339_ticks());
    }
    document.raw("<Properties>");
    document.element("Creation-Time", &blob.created.to_http_date());
    document.element("Last-Modified", &blob.last_modified.to_http_date());
    document.element("Etag", &blob.etag);
    document.element("Content-Length", &blob.length.to_string());
    document.element("Content-Type", &p.content_type);
    document.element("Content-Encoding", &p.content_encoding);
    document.element("Content-Language", &p.content_language);
    document.element("Content-MD5", &p.content_md5.map(|md5| BASE64_STANDARD.encode(md5)).unwrap_or_default());
    document.element("Cache-Control", &p.cache_control);
    document.element("Content-Disposition", &p.content_disposition);
    document.element("BlobType", blob_type(blob.kind));
    match (blob.kind, blob.tier) {
        (BlobKind::Append { .. }, _) => {}
        (BlobKind::Block, None) => {
            document.element("AccessTier", Tier::Hot.name());
            document.raw("<AccessTierInferred>true</AccessTierInferred>");
        }
        (BlobKind::Block, Some(chosen)) => {
            document.element("AccessTier", chosen.tier.name());
            document.element("AccessTierChangeTime", &chosen.since.to_http_date());
        }
    }
    document.lease(&blob.lease);
    if let Some(copy) = blob.copy.as_ref().filter(|_| request.copy) {
        document.element("CopyId", &copy.id);
        document.element("CopyStatus", "success");
        document.element("CopySource", &copy.source);
        document.element("CopyProgress", &format!("{0}/{0}", blob.length));
        document.element("CopyCompletionTime", &copy.completed.to_http_date());
    }
    document.raw("<ServerEncrypted>false</ServerEncrypted></Properties>");
    if request.metadata {
        document.metadata(&blob.metadata);
    }
    document.raw("</Blob>");
}

/// A blob that has only uncommitted blocks: no bytes, and no version of its own, so that this one says when the last
/// block came.
fn listed_uncommitted(document: &mut Document, name: &str, time: Timestamp) {
    document.raw("<Blob>");
    document.name(name);
    document.raw("<Properties>");
    document.element("Creation-Time", &time.to_http_date());
    document.element("Last-Modified", &time.to_http_date());
    document.element("Etag", &kiln_etag::text(kiln_etag::number(time)));
    document.raw("<Content-Length>0</Content-Length>");
    document.element("Content-Type", DEFAULT_CONTENT_TYPE);
    document.raw("<Content-MD5 /><BlobType>BlockBlob</BlobType>");
    document.raw("<LeaseStatus>unlocked</LeaseStatus><LeaseState>available</LeaseState>");
    document.raw("<ServerEncrypted>false</ServerEncrypted></Properties></Blob>");
}

/// Answer of Get Block List; a list that was not asked for is absent.
pub fn block_list(committed: Option<&[BlockInfo]>, uncommitted: Option<&[BlockInfo]>) -> String {
    let mut document = Document::new();
    document.raw("<BlockList>");
    for (name, blocks) in [("CommittedBlocks", committed), ("UncommittedBlocks", uncommitted)] {
        let Some(blocks) = blocks else { continue };
        document.raw(&format!("<{name}>"));
        for block in blocks {
            document.raw("<Block>");
            document.element("Name", &block.id);
            document.element("Size", &block.length.to_string());
            document.raw("</Block>");
        }
        document.raw(&format!("</{name}>"));
    }
    document.raw("</BlockList>");
    document.0
}

/// Answer of Get Container ACL.
pub fn acl(policies: &[StoredPolicy]) -> String {
    let mut document = Document::new();
    document.raw("<SignedIdentifiers>");
    for policy in policies {
        document.raw("<SignedIdentifier>");
        document.element("Id", &policy.id);
        document.raw("<AccessPolicy>");
        for (name, text) in [("Start", &policy.start), ("Expiry", &policy.expiry), ("Permission", &policy.permission)] {
            if let Some(text) = text {
                document.element(name, text);
            }
        }
        document.raw("</AccessPolicy></SignedIdentifier>");
    }
    document.raw("</SignedIdentifiers>");
    document.0
}

/// Azure's word for the kind of a blob.
pub fn blob_type(kind: BlobKind) -> &'static str {
    match kind {
        BlobKind::Block => "BlockBlob",
        BlobKind::Append { .. } => "AppendBlob",
    }
}

/// `container`, `blob`, or nothing.
pub fn public_access(access: PublicAccess) -> &'static str {
    match access {
        PublicAccess::Private => "",
        PublicAccess::Blob => "blob",
        PublicAccess::Container => "container",
    }
}

#[derive(Debug, Deserialize)]
struct BlockListDocument {
    #[serde(rename = "$value", default)]
    items: Vec<BlockListItem>,
}

#[derive(Debug, Deserialize)]
enum BlockListItem {
    Latest(String),
    Committed(String),
    Uncommitted(String),
}

/// Body of Put Block List.
///
/// # Errors
/// No such document, or more blocks than a blob can have.
pub fn parse_block_list(body: &[u8]) -> Result<Vec<(BlockSource, String)>, StorageError> {
    let document: BlockListDocument = parse(body, "BlockList")?;
    if document.items.len() > MAX_BLOCKS {
        return Err(StorageError::BlockListTooLong(MAX_BLOCKS));
    }
    Ok(document
        .items
        .into_iter()
        .map(|item| match item {
            BlockListItem::Latest(id) => (BlockSource::Latest, id.trim().to_owned()),
            BlockListItem::Committed(id) => (BlockSource::Committed, id.trim().to_owned()),
            BlockListItem::Uncommitted(id) => (BlockSource::Uncommitted, id.trim().to_owned()),
        })
        .collect())
}

#[derive(Debug, Deserialize)]
struct AclDocument {
    #[serde(rename = "SignedIdentifier", default)]
    identifiers: Vec<AclIdentifier>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AclIdentifier {
    id: String,
    access_policy: Option<AclPolicy>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct AclPolicy {
    start: Option<String>,
    expiry: Option<String>,
    permission: Option<String>,
}

/// Body of Set Container ACL; it may be empty.
///
/// # Errors
/// No such document, too many policies, ids that are too long.
pub fn parse_acl(body: &[u8]) -> Result<Vec<StoredPolicy>, StorageError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    let document: AclDocument = parse(body, "SignedIdentifiers")?;
    if document.identifiers.len() > MAX_POLICIES {
        return Err(StorageError::InvalidXmlDocument(format!("at most {MAX_POLICIES} policies are allowed")));
    }
    let mut policies: Vec<StoredPolicy> = Vec::new();
    for identifier in document.identifiers {
        let id = identifier.id;
        let twice = policies.iter().any(|known| known.id == id);
        if id.is_empty() || id.chars().count() > 64 || twice {
            return Err(StorageError::InvalidXmlNodeValue { node: "Id", value: id });
        }
        let policy = identifier.access_policy.unwrap_or_default();
        policies.push(StoredPolicy { id, start: policy.start, expiry: policy.expiry, permission: policy.permission });
    }
    Ok(policies)
}

/// A document that begins with `root`.
pub fn parse<T: serde::de::DeserializeOwned>(body: &[u8], root: &str) -> Result<T, StorageError> {
    let invalid = |why: String| StorageError::InvalidXmlDocument(why);
    let text = std::str::from_utf8(body).map_err(|_| invalid("it is not UTF-8".to_owned()))?;
    let text = text.trim_start_matches('\u{feff}');
    if !text.contains(&format!("<{root}")) {
        return Err(invalid(format!("<{root}> is missing")));
    }
    quick_xml::de::from_str(text).map_err(|error| invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_lists() {
        let body = b"\xef\xbb\xbf<?xml version='1.0' encoding='utf-8'?>\n<BlockList><Latest>QQ==</Latest>\
            <Committed>Qg==</Committed><Uncommitted>Qw==</Uncommitted><Latest>QQ==</Latest></BlockList>";
        let list = parse_block_list(body).unwrap();
        let expected = [
            (BlockSource::Latest, "QQ=="),
            (BlockSource::Committed, "Qg=="),
            (BlockSource::Uncommitted, "Qw=="),
            (BlockSource::Latest, "QQ=="),
        ];
        assert_eq!(list, expected.map(|(source, id)| (source, id.to_owned())));
        assert_eq!(parse_block_list(b"<BlockList/>").unwrap(), []);
        assert_eq!(parse_block_list(b"<BlockList></BlockList>").unwrap(), []);
        for bad in ["", "<BlockList>", "<BlockList><Oldest>QQ==</Oldest></BlockList>", "<Other/>", "hello"] {
            assert_eq!(parse_block_list(bad.as_bytes()).unwrap_err().code(), "InvalidXmlDocument", "{bad}");
        }
    }

    #[test]
    fn acls_come_back_as_they_were() {
        let body = "<SignedIdentifiers><SignedIdentifier><Id>a&amp;b</Id><AccessPolicy><Start>2026-01-01</Start>\
            <Permission>rl</Permission></AccessPolicy></SignedIdentifier><SignedIdentifier><Id>c</Id>\
            </SignedIdentifier></SignedIdentifiers>";
        let policies = parse_acl(body.as_bytes()).unwrap();
        assert_eq!(policies[0].id, "a&b");
        assert_eq!(policies[0].expiry, None);
        assert_eq!(parse_acl(acl(&policies).as_bytes()).unwrap(), policies);
        assert_eq!(parse_acl(b"").unwrap(), []);
        assert_eq!(parse_acl(acl(&[]).as_bytes()).unwrap(), []);
        let six =
            body.replace("</SignedIdentifiers>", "") + &"<SignedIdentifier><Id>x</Id></SignedIdentifier>".repeat(4);
        assert!(parse_acl((six + "</SignedIdentifiers>").as_bytes()).is_err());
    }

    #[test]
    fn names_that_xml_cannot_hold_are_encoded() {
        let mut document = Document(String::new());
        document.name("a<\u{1}");
        document.name("a<ü");
        assert_eq!(document.0, "<Name Encoded=\"true\">a%3C%01</Name><Name>a&lt;ü</Name>");
    }
}
