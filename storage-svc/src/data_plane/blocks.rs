//! Blocks: put, commit, list.

use kiln_time::Timestamp;

use super::input::Input;
use super::reply::Reply;
use super::{Answer, Job, headers, xml};
use crate::domain::StorageError;
use crate::domain::access::Allowed;
use crate::domain::condition;
use crate::domain::limits::Limits;
use crate::domain::model::ChosenTier;
use crate::objects::Hasher;
use crate::service::PutBlock;
use crate::store::{BlockList, Guard};

/// Bytes of a block list document: 50,000 ids of 88 characters with their tags.
const MAX_BLOCK_LIST: usize = 8 * 1024 * 1024;

impl Job<'_> {
    pub(super) async fn put_block(self, input: &mut Input) -> Answer {
        let id = self.call.query.get("blockid").ok_or(StorageError::MissingRequiredQueryParameter("blockid"))?;
        let expected = headers::expected(self.call)?;
        let (account, container, blob) = self.name();
        let put = PutBlock {
            account: account.to_owned(),
            container: container.to_owned(),
            blob: blob.to_owned(),
            id: id.to_owned(),
            expected,
            limits: Limits::of(self.call.version()),
            guard: Guard {
                only_new: self.allowed == Allowed::OnlyNew,
                lease: headers::lease_id(self.call)?,
                ..Guard::default()
            },
        };
        let checksums = self.plane.storage.put_block(put, input.body()).await?;
        Ok(Reply::new(201)
            .md5("content-md5", expected.md5)
            .header("x-ms-request-server-encrypted", "false")
            .crc64(checksums.crc64))
    }

    pub(super) async fn put_block_list(self, input: &mut Input) -> Answer {
        let guard = self.guard()?;
        let expected = headers::expected(self.call)?;
        let body = input.document(MAX_BLOCK_LIST).await?;
        if expected.length.is_some_and(|length| length != body.len() as u64) {
            return Err(StorageError::IncompleteBody);
        }
        let mut hasher = Hasher::new(expected.crc64.is_some());
        hasher.update(&body);
        let checksums = hasher.finish();
        if expected.md5.is_some_and(|md5| md5 != checksums.md5) {
            return Err(StorageError::Md5Mismatch);
        }
        if expected.crc64.is_some() && expected.crc64 != checksums.crc64 {
            return Err(StorageError::Crc64Mismatch);
        }
        let (account, container, name) = self.name();
        let list = BlockList {
            container: container.to_owned(),
            name: name.to_owned(),
            properties: headers::blob_properties(self.call)?,
            metadata: headers::metadata(self.call)?.unwrap_or_default(),
            blocks: xml::parse_block_list(&body)?,
            tier: headers::tier(self.call)?.map(|tier| ChosenTier { tier, since: Timestamp::now() }),
        };
        let blob = self.plane.storage.put_block_list(account, list, guard).await?;
        Ok(Reply::new(201)
            .version(&blob.etag, blob.last_modified)
            .md5("content-md5", Some(checksums.md5))
            .header("x-ms-request-server-encrypted", "false"))
    }

    pub(super) async fn get_block_list(self) -> Answer {
        let kind = self.call.query.get("blocklisttype").unwrap_or("committed").to_ascii_lowercase();
        let (committed, uncommitted) = match kind.as_str() {
            "" | "committed" => (true, false),
            "uncommitted" => (false, true),
            "all" => (true, true),
            _ => return Err(StorageError::InvalidQueryParameterValue { name: "blocklisttype", value: kind }),
        };
        let conditions = headers::read_conditions(self.call)?;
        let blocks = match self.plane.storage.catalogue().blocks(self.address()?).await {
            Err(StorageError::BlobNotFound) if conditions.if_match.is_some() => {
                return Err(StorageError::ConditionNotMet);
            }
            found => found?,
        };
        let document = xml::block_list(
            committed.then_some(blocks.committed.as_slice()),
            uncommitted.then_some(blocks.uncommitted.as_slice()),
        );
        let reply = Reply::xml(200, document);
        match blocks.blob {
            None => Ok(reply.header("x-ms-blob-content-length", "0")),
            Some(blob) => {
                condition::check_read(&conditions, blob.version())?;
                self.check_lease_of_read(&blob)?;
                Ok(reply
                    .version(&blob.etag, blob.last_modified)
                    .header("x-ms-blob-content-length", blob.length.to_string()))
            }
        }
    }
}
