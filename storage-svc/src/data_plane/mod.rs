//! The HTTP front in the Azure Blob dialect.
//!
//! A request is understood ([`call`]), authorised ([`auth`]), and answered by
//! the handlers of its subject: [`containers`], [`blobs`], [`blocks`],
//! [`append`], [`snapshots`], [`copies`], [`leases`], [`packages`], [`service`]. Bodies
//! stream in ([`input`]) and out; [`headers`], [`xml`] and [`reply`] are the
//! wire forms.

mod append;
pub mod auth;
mod blobs;
mod blocks;
pub mod call;
mod containers;
mod copies;
#[cfg(test)]
mod fuzz;
mod header_case;
mod headers;
mod input;
mod leases;
mod marker;
mod packages;
mod reply;
mod service;
mod snapshots;
mod xml;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{ConnectInfo, Extension, Request, State};
use axum::response::Response;
use http::{HeaderMap, Method};
use kiln_auth::SecretKey;
use kiln_telemetry::propagation;
use kiln_time::Timestamp;
use tracing::Instrument;
use tracing::field::Empty;

use crate::config::Config;
use crate::domain::StorageError;
use crate::domain::access::{Allowed, Grant, Operation};
use crate::service::Storage;
use call::{Call, NEWEST_VERSION};
use input::Input;
use reply::Reply;

/// The front's state.
#[derive(Debug)]
pub struct DataPlane {
    /// What it serves.
    pub storage: Storage,
    /// Settings of the service.
    pub config: Config,
    /// Signs the tokens of nodes.
    pub cluster_key: Arc<SecretKey>,
    /// Host of the public endpoint: always path style.
    pub own_host: String,
}

/// What a handler gets.
struct Job<'a> {
    plane: &'a DataPlane,
    call: &'a Call,
    grant: Grant,
    allowed: Allowed,
}

type Answer = Result<Reply, StorageError>;

impl DataPlane {
    /// Joins its parts.
    pub fn new(storage: Storage, config: Config, cluster_key: Arc<SecretKey>) -> Self {
        let own_host = config
            .public_blob_endpoint
            .split_once("://")
            .map(|(_, rest)| rest.split(['/', ':']).next().unwrap_or_default().to_owned())
            .unwrap_or_default();
        Self { storage, config, cluster_key, own_host }
    }

    /// `http`, or `https` if something in front of the service speaks TLS.
    fn scheme(&self) -> &'static str {
        if self.config.public_blob_endpoint.starts_with("https://") { "https" } else { "http" }
    }
}

/// Serves every path; nothing is normalised on the way.
pub fn router(plane: DataPlane) -> Router {
    Router::new().fallback(serve).with_state(Arc::new(plane))
}

async fn serve(
    State(plane): State<Arc<DataPlane>>,
    peer: Option<Extension<ConnectInfo<SocketAddr>>>,
    request: Request,
) -> Response {
    let started = Instant::now();
    let request_id = uuid::Uuid::new_v4().to_string();
    let span = tracing::info_span!(
        "blob",
        otel.name = Empty,
        otel.kind = "server",
        service = "storage-svc",
        account = Empty,
        container = Empty,
        request.id = request_id,
        http.status = Empty,
    );
    propagation::continue_from_headers(&span, request.headers());
    let peer = peer.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |Extension(ConnectInfo(peer))| peer.ip().to_canonical());
    answer(&plane, peer, request, &request_id, started, &span).instrument(span.clone()).await
}

async fn answer(
    plane: &DataPlane,
    peer: IpAddr,
    request: Request,
    request_id: &str,
    started: Instant,
    span: &tracing::Span,
) -> Response {
    let (parts, body) = request.into_parts();
    let head = parts.method == Method::HEAD;
    let client_request_id = parts.headers.get("x-ms-client-request-id").cloned();
    let mut input = Input::new(body, plane.config.idle_timeout);
    let mut operation = "Unknown";
    let mut version = NEWEST_VERSION.to_owned();
    let mut for_scripts = HeaderMap::new();
    let cases = header_case::written(&parts.extensions, &parts.headers, headers::META).await;
    let understood = plane.understand(parts.method, &parts.uri, parts.headers, peer).await;
    let outcome = match understood {
        Ok(mut call) => {
            call.cases = cases;
            operation = call.operation.name();
            call.version().clone_into(&mut version);
            span.record("account", call.account.name.as_str()).record("container", call.container.as_str());
            match plane.cors_headers(&call).await {
                Ok(headers) => for_scripts = headers,
                // The request itself may still be answered; a browser keeps the answer from the script.
                Err(error) => tracing::warn!(%error, "rules for other origins could not be read"),
            }
            match call.timeout() {
                Ok(longest) => tokio::time::timeout(longest, authorised(plane, &call, &mut input))
                    .await
                    .unwrap_or(Err(StorageError::OperationTimedOut)),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    };
    span.record("otel.name", operation);
    let mut response = match outcome {
        Ok(reply) => reply.finish_with_case().await,
        Err(error) => {
            tracing::debug!(operation, code = error.code(), %error, "request refused");
            // A client that is still sending would not see the answer.
            input.drain().await;
            reply::error(&error, head, request_id, Timestamp::now())
        }
    };
    let status = response.status().as_u16();
    span.record("http.status", status);
    response.headers_mut().extend(for_scripts);
    reply::add_common(response.headers_mut(), request_id, &version, client_request_id);
    if plane.storage.objects().encrypts() {
        reply::say_encrypted(response.headers_mut());
    }
    plane.storage.metrics().request(operation, status, started.elapsed());
    response
}

async fn authorised(plane: &DataPlane, call: &Call, input: &mut Input) -> Answer {
    if call.operation == Operation::Preflight {
        return plane.preflight(call).await;
    }
    let (grant, allowed) = plane.authorize(call).await?;
    call.check_snapshot()?;
    let job = Job { plane, call, grant, allowed };
    match call.operation {
        Operation::ListContainers => job.list_containers().await,
        Operation::Preflight => plane.preflight(call).await,
        Operation::GetServiceProperties => job.get_service_properties().await,
        Operation::SetServiceProperties => job.set_service_properties(input).await,
        Operation::GetAccountInformation => Ok(Reply::new(200)
            .header("x-ms-sku-name", "Standard_LRS")
            .header("x-ms-account-kind", "StorageV2")
            .header("x-ms-is-hns-enabled", "false")),
        Operation::CreateContainer => job.create_container().await,
        Operation::GetContainerProperties | Operation::GetContainerMetadata => job.get_container().await,
        Operation::SetContainerMetadata => job.set_container_metadata().await,
        Operation::GetContainerAcl => job.get_acl().await,
        Operation::SetContainerAcl => job.set_acl(input).await,
        Operation::DeleteContainer => job.delete_container().await,
        Operation::LeaseContainer | Operation::BreakContainerLease => job.lease_container().await,
        Operation::ListBlobs => job.list_blobs().await,
        Operation::ResolvePackage => job.resolve_package().await,
        Operation::PutBlob => job.put_blob(input).await,
        Operation::CopyBlob => job.copy_blob().await,
        Operation::AbortCopy => job.abort_copy().await,
        Operation::PutBlobFromUrl => job.put_blob_from_url().await,
        Operation::PutBlockFromUrl => job.put_block_from_url().await,
        Operation::PutBlock => job.put_block(input).await,
        Operation::PutBlockList => job.put_block_list(input).await,
        Operation::GetBlockList => job.get_block_list().await,
        Operation::GetBlob => job.get_blob().await,
        Operation::HeadBlob => job.head_blob().await,
        Operation::GetBlobMetadata => job.get_blob_metadata().await,
        Operation::SetBlobMetadata => job.set_blob_metadata().await,
        Operation::SetBlobProperties => job.set_blob_properties().await,
        Operation::DeleteBlob => job.delete_blob().await,
        Operation::LeaseBlob | Operation::BreakBlobLease => job.lease_blob().await,
        Operation::SnapshotBlob => job.snapshot_blob().await,
        Operation::SetBlobTier => job.set_blob_tier().await,
        Operation::AppendBlock => job.append_block(input).await,
    }
}
