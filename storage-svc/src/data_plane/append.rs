//! Append blobs: make an empty one, add to it.

use super::input::Input;
use super::reply::Reply;
use super::{Answer, Job, headers};
use crate::domain::StorageError;
use crate::domain::append::{Position, appended};
use crate::domain::limits::Limits;
use crate::domain::model::{BlobKind, Content};
use crate::service::AppendBlock;
use crate::store::NewBlob;

impl Job<'_> {
    /// Put Blob of this type, which has no body.
    pub(super) async fn create_append_blob(self) -> Answer {
        let guard = self.guard()?;
        if self.call.headers.contains_key("x-ms-access-tier") {
            return Err(StorageError::UnsupportedHeader("x-ms-access-tier"));
        }
        match headers::expected(self.call)?.length {
            None | Some(0) => {}
            Some(length) => return Err(invalid_length(length)),
        }
        let (account, container, name) = self.name();
        let blob = NewBlob {
            container: container.to_owned(),
            name: name.to_owned(),
            properties: headers::put_properties(self.call)?,
            metadata: headers::metadata(self.call)?.unwrap_or_default(),
            content: Content::Pieces(Vec::new()),
            copy: None,
            kind: BlobKind::Append { blocks: 0 },
            tier: None,
        };
        let stamp = self.plane.storage.stamp(account, "");
        let made = self.plane.storage.catalogue().put_blob(stamp, blob, guard).await?.answer;
        Ok(Reply::new(201).version(&made.etag, made.last_modified).header("x-ms-request-server-encrypted", "false"))
    }

    pub(super) async fn append_block(self, input: &mut Input) -> Answer {
        let guard = self.guard()?;
        let mut expected = headers::expected(self.call)?;
        if expected.length == Some(0) {
            return Err(invalid_length(0));
        }
        // The client learns what arrived, if it did not say so itself.
        expected.answer_crc64 = expected.md5.is_none();
        let position = Position {
            at: headers::number(self.call, "x-ms-blob-condition-appendpos")?,
            max_size: headers::number(self.call, "x-ms-blob-condition-maxsize")?,
        };
        let (account, container, name) = self.name();
        let append = AppendBlock {
            account: account.to_owned(),
            container: container.to_owned(),
            blob: name.to_owned(),
            expected,
            limits: Limits::of(self.call.version()),
            position,
            guard,
        };
        let (done, checksums) = self.plane.storage.append_block(append, input.body()).await?;
        Ok(Reply::new(201)
            .version(&done.blob.etag, done.blob.last_modified)
            .md5("content-md5", expected.md5)
            .crc64(checksums.crc64)
            .header("x-ms-blob-append-offset", done.offset.to_string())
            .header("x-ms-blob-committed-block-count", appended(&done.blob)?.to_string())
            .header("x-ms-request-server-encrypted", "false"))
    }
}

fn invalid_length(length: u64) -> StorageError {
    StorageError::InvalidHeaderValue { name: "Content-Length", value: length.to_string() }
}
