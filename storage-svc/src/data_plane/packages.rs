//! What a node asks about packages before it reads their blobs.

use axum::body::Body;
use prost::Message;

use super::reply::Reply;
use super::{Answer, Job};
use crate::api;
use crate::domain::StorageError;

impl Job<'_> {
    /// What a reference means now; the answer is a `ResolvedPackage` in protobuf.
    pub(super) async fn resolve_package(self) -> Answer {
        let query = &self.call.query;
        let application = query.get("application").ok_or(StorageError::MissingRequiredQueryParameter("application"))?;
        let reference = api::reference(application, query.get("version").unwrap_or_default())?;
        let resolved = self.plane.storage.resolve_package(&self.call.account.name, &reference).await?;
        let bytes = api::resolved_message(resolved).encode_to_vec();
        Ok(Reply::new(200).header("content-type", "application/x-protobuf").body(Body::from(bytes)))
    }
}
