//! Messages from and to values of the domain.

use kiln_error::Error;
use kiln_proto::storage::v1 as proto;
use kiln_proto::storage::v1::upload_request;
use kiln_proto::time;
use kiln_time::Timestamp;

use crate::domain::StorageError;
use crate::domain::model::{Blob, Container, PublicAccess};

pub fn container(container: Container) -> proto::Container {
    proto::Container {
        name: container.name,
        etag: container.etag,
        last_modified: Some(time::timestamp(container.last_modified.as_micros())),
        metadata: container.metadata.into_iter().collect(),
        public_access: match container.public_access {
            PublicAccess::Private => proto::PublicAccess::Unspecified,
            PublicAccess::Blob => proto::PublicAccess::Blob,
            PublicAccess::Container => proto::PublicAccess::Container,
        }
        .into(),
    }
}

pub fn public_access(number: i32) -> Result<PublicAccess, Error> {
    match proto::PublicAccess::try_from(number) {
        Ok(proto::PublicAccess::Unspecified) => Ok(PublicAccess::Private),
        Ok(proto::PublicAccess::Blob) => Ok(PublicAccess::Blob),
        Ok(proto::PublicAccess::Container) => Ok(PublicAccess::Container),
        Err(_) => Err(Error::invalid_property("public_access", number, "is not a known value")),
    }
}

pub fn blob(blob: Blob) -> proto::Blob {
    proto::Blob {
        container: blob.container,
        name: blob.name,
        etag: blob.etag,
        created: Some(time::timestamp(blob.created.as_micros())),
        last_modified: Some(time::timestamp(blob.last_modified.as_micros())),
        content_length: blob.length,
        content_type: blob.properties.content_type,
        content_encoding: blob.properties.content_encoding,
        content_language: blob.properties.content_language,
        content_disposition: blob.properties.content_disposition,
        cache_control: blob.properties.cache_control,
        content_md5: blob.properties.content_md5.map(Vec::from).unwrap_or_default(),
        metadata: blob.metadata.into_iter().collect(),
    }
}

pub fn instant(timestamp: &prost_types::Timestamp) -> Timestamp {
    Timestamp::from_micros(time::micros(timestamp))
}

/// The bytes of a message after the header.
pub fn data(message: Result<proto::UploadRequest, tonic::Status>) -> Result<bytes::Bytes, StorageError> {
    match message {
        Ok(proto::UploadRequest { part: Some(upload_request::Part::Data(data)) }) => Ok(data),
        Ok(_) => Err(StorageError::InvalidHeader),
        Err(error) => {
            tracing::debug!(%error, "an upload broke off");
            Err(StorageError::IncompleteBody)
        }
    }
}
