//! Blobs: put, get, change, delete.

use axum::body::Body;
use bytes::BytesMut;
use futures::TryStreamExt;
use kiln_time::Timestamp;

use super::call::Call;
use super::input::Input;
use super::reply::Reply;
use super::{Answer, Job, headers};
use crate::domain::StorageError;
use crate::domain::access::{Allowed, Grant};
use crate::domain::condition;
use crate::domain::lease::Leased;
use crate::domain::limits::{Limits, MAX_RANGE_CHECKSUM};
use crate::domain::model::{Address, Blob, INLINE_LIMIT};
use crate::domain::sas::Overrides;
use crate::objects::Hasher;
use crate::service::PutBlob;
use crate::store::{BlobChange, Guard};

/// What is computed of a range on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RangeChecksum {
    Md5,
    Crc64,
}

impl RangeChecksum {
    /// What the client asks for; not both, and only of a range.
    fn wanted(call: &Call, range: bool) -> Result<Option<Self>, StorageError> {
        let asked = |which: Self| Ok::<_, StorageError>(headers::flag(call, which.header())?.then_some(which));
        match (asked(Self::Md5)?, asked(Self::Crc64)?) {
            (None, None) => Ok(None),
            (Some(which), None) | (None, Some(which)) if range => Ok(Some(which)),
            (_, Some(which)) | (Some(which), None) => Err(which.refused()),
        }
    }

    fn header(self) -> &'static str {
        match self {
            Self::Md5 => "x-ms-range-get-content-md5",
            Self::Crc64 => "x-ms-range-get-content-crc64",
        }
    }

    fn refused(self) -> StorageError {
        StorageError::InvalidHeaderValue { name: self.header(), value: "true".to_owned() }
    }
}

impl Job<'_> {
    pub(super) fn name(&self) -> (&str, &str, &str) {
        (&self.call.account.name, &self.call.container, &self.call.blob)
    }

    pub(super) fn guard(&self) -> Result<Guard, StorageError> {
        let conditions = headers::write_conditions(self.call)?;
        let lease = headers::lease_id(self.call)?;
        Ok(Guard { conditions, only_new: self.allowed == Allowed::OnlyNew, lease })
    }

    /// Whether a read may name the lease that it names.
    pub(super) fn check_lease_of_read(&self, blob: &Blob) -> Result<(), StorageError> {
        let given = headers::lease_id(self.call)?;
        blob.lease.check_read(Leased::Blob, given.as_deref(), Timestamp::now())
    }

    /// The blob or snapshot that is read.
    pub(super) fn address(&self) -> Result<Address<'_>, StorageError> {
        let (account, container, name) = self.name();
        Ok(Address { account, container, name, snapshot: self.call.snapshot()? })
    }

    fn overrides(&self) -> Overrides {
        match &self.grant {
            Grant::Sas(sas) => sas.overrides.clone(),
            _ => Overrides::default(),
        }
    }

    pub(super) async fn put_blob(self, input: &mut Input) -> Answer {
        let call = self.call;
        match call.header("x-ms-blob-type") {
            None => return Err(StorageError::MissingRequiredHeader("x-ms-blob-type")),
            Some("BlockBlob") => {}
            Some("AppendBlob") => return self.create_append_blob().await,
            Some("PageBlob") => return Err(StorageError::NotImplemented("page blobs")),
            Some(other) => {
                return Err(StorageError::InvalidHeaderValue { name: "x-ms-blob-type", value: other.to_owned() });
            }
        }
        let guard = self.guard()?;
        let expected = headers::expected(call)?;
        let mut properties = headers::put_properties(call)?;
        // The MD5 that is stored is checked too, and counts more than the other.
        let mut checked = expected;
        checked.md5 = properties.content_md5.or(expected.md5);
        properties.content_md5 = None;
        let (account, container, name) = self.name();
        let put = PutBlob {
            account: account.to_owned(),
            container: container.to_owned(),
            name: name.to_owned(),
            properties,
            metadata: headers::metadata(call)?.unwrap_or_default(),
            tier: headers::tier(call)?,
            expected: checked,
            limits: Limits::of(call.version()),
            guard,
            request_id: String::new(),
        };
        let done = self.plane.storage.put_blob(put, input.body()).await?;
        Ok(Reply::new(201)
            .version(&done.blob.etag, done.blob.last_modified)
            .md5("content-md5", Some(done.checksums.md5))
            .header("x-ms-request-server-encrypted", "false")
            .crc64(done.checksums.crc64))
    }

    pub(super) async fn get_blob(self) -> Answer {
        let conditions = headers::read_conditions(self.call)?;
        let range = headers::range(self.call);
        let checksum = RangeChecksum::wanted(self.call, range.is_some())?;
        let download = self.plane.storage.open(self.address()?, &conditions, range).await?;
        self.check_lease_of_read(&download.blob)?;
        let (span, total) = (download.span, download.blob.length);
        let stored_md5 = download.blob.properties.content_md5;
        let mut reply = Reply::new(if range.is_some() { 206 } else { 200 }).blob(&download.blob, &self.overrides());
        if range.is_none() {
            reply = reply.md5("content-md5", stored_md5);
        } else {
            let last = span.start + span.length - 1;
            reply = reply
                .header("content-range", format!("bytes {}-{last}/{total}", span.start))
                .md5("x-ms-blob-content-md5", stored_md5);
        }
        reply = reply.length(span.length);
        if let Some(checksum) = checksum {
            if span.length > MAX_RANGE_CHECKSUM {
                return Err(checksum.refused());
            }
            let mut bytes = BytesMut::new();
            let mut stream = download.into_stream();
            while let Some(piece) = stream.try_next().await.map_err(|_| StorageError::InternalError)? {
                bytes.extend_from_slice(&piece);
            }
            let mut hasher = Hasher::new(checksum == RangeChecksum::Crc64);
            hasher.update(&bytes);
            let found = hasher.finish();
            reply = match checksum {
                RangeChecksum::Md5 => reply.md5("content-md5", Some(found.md5)),
                RangeChecksum::Crc64 => reply.crc64(found.crc64),
            };
            return Ok(reply.body(Body::from(bytes.freeze())));
        }
        if total <= INLINE_LIMIT {
            // One piece: spares the connection the streaming.
            let mut stream = download.into_stream();
            let mut bytes = BytesMut::new();
            while let Some(piece) = stream.try_next().await.map_err(|_| StorageError::InternalError)? {
                bytes.extend_from_slice(&piece);
            }
            return Ok(reply.body(Body::from(bytes.freeze())));
        }
        Ok(reply.body(Body::from_stream(download.into_stream())))
    }

    pub(super) async fn head_blob(self) -> Answer {
        let blob = self.readable().await?;
        Ok(Reply::new(200)
            .blob(&blob, &self.overrides())
            .md5("content-md5", blob.properties.content_md5)
            .tier(&blob)
            .length(blob.length))
    }

    pub(super) async fn get_blob_metadata(self) -> Answer {
        let blob = self.readable().await?;
        Ok(Reply::new(200).version(&blob.etag, blob.last_modified).metadata(&blob.metadata))
    }

    /// The blob, if conditions and all allow to read it.
    async fn readable(&self) -> Result<Blob, StorageError> {
        let conditions = headers::read_conditions(self.call)?;
        match self.plane.storage.catalogue().blob(self.address()?).await {
            Err(StorageError::BlobNotFound) if conditions.if_match.is_some() => Err(StorageError::ConditionNotMet),
            Err(error) => Err(error),
            Ok(blob) => {
                condition::check_read(&conditions, blob.version())?;
                self.check_lease_of_read(&blob)?;
                Ok(blob)
            }
        }
    }

    pub(super) async fn set_blob_metadata(self) -> Answer {
        let metadata = headers::metadata(self.call)?.unwrap_or_default();
        let changed = self.change_blob(BlobChange::Metadata(metadata)).await?;
        Ok(Reply::new(200)
            .version(&changed.etag, changed.last_modified)
            .header("x-ms-request-server-encrypted", "false"))
    }

    pub(super) async fn set_blob_properties(self) -> Answer {
        if self.call.headers.contains_key("x-ms-blob-content-length") {
            return Err(StorageError::UnsupportedHeader("x-ms-blob-content-length"));
        }
        let properties = headers::blob_properties(self.call)?;
        let changed = self.change_blob(BlobChange::Properties(properties)).await?;
        Ok(Reply::new(200).version(&changed.etag, changed.last_modified))
    }

    async fn change_blob(&self, change: BlobChange) -> Result<Blob, StorageError> {
        let guard = self.guard()?;
        let (account, container, name) = self.name();
        let stamp = self.plane.storage.stamp(account, "");
        self.plane.storage.catalogue().change_blob(stamp, container, name, guard, change).await
    }

    pub(super) async fn delete_blob(self) -> Answer {
        let what = self.deletion()?;
        let guard = self.guard()?;
        let (account, container, name) = self.name();
        let stamp = self.plane.storage.stamp(account, "");
        self.plane.storage.catalogue().delete_blob(stamp, container, name, guard, what).await?;
        Ok(Reply::new(202).header("x-ms-delete-type-permanent", "true"))
    }
}
