//! The gRPC front: proto to domain and back, no rules.
//!
//! [`pools`], [`nodes`] and [`files`] answer clients (through the gateway),
//! [`control`] answers agents, [`joining`] machines that want to become nodes.
//! [`pass_on`] stands before all of them and is for several replicas.

mod control;
mod convert;
mod files;
mod joining;
mod nodes;
mod pass_on;
mod pools;
mod validate;

use std::sync::Arc;

use kiln_proto::pool::v1::node_control_service_server::NodeControlServiceServer;
use kiln_proto::pool::v1::pool_service_server::{PoolService, PoolServiceServer};
use kiln_proto::pool::v1::*;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::core::Core;

pub use convert::pool_name;
pub use pass_on::Peer;
pub use pools::prepare;

/// Largest answer: a page of pools with their settings.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// Largest message of a caller: a pool's settings, or a part of a list of files.
/// A caller has many calls open, and each may hold this much memory.
const MAX_REQUEST: usize = 4 * 1024 * 1024;

/// Both services, here or at the replica that serves.
pub fn routes(core: Arc<Core>) -> Routes {
    let pools = PoolServiceServer::new(PoolApi { core: core.clone() })
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(MAX_ANSWER);
    let control = NodeControlServiceServer::new(control::ControlApi { core: core.clone() })
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(MAX_ANSWER);
    Routes::new(pass_on::PassOn::new(pools, core.clone())).add_service(pass_on::PassOn::new(control, core))
}

#[derive(Debug)]
struct PoolApi {
    core: Arc<Core>,
}

/// The whole implementation: `async_trait` does not look into macros within it.
macro_rules! pool_service {
    ($($method:ident($request:ident) -> $response:ident = $target:path;)*) => {
        #[tonic::async_trait]
        impl PoolService for PoolApi {
            $(async fn $method(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                Ok(Response::new($target(&self.core, request).await?))
            })*

            type ReadNodeFileStream = files::ReadStream;

            async fn read_node_file(
                &self,
                request: Request<ReadNodeFileRequest>,
            ) -> Result<Response<Self::ReadNodeFileStream>, Status> {
                Ok(Response::new(files::read(&self.core, request).await?))
            }
        }
    };
}

pool_service! {
    create_pool(CreatePoolRequest) -> CreatePoolResponse = pools::create;
    get_pool(GetPoolRequest) -> GetPoolResponse = pools::get;
    list_pools(ListPoolsRequest) -> ListPoolsResponse = pools::list;
    update_pool(UpdatePoolRequest) -> UpdatePoolResponse = pools::update;
    resize_pool(ResizePoolRequest) -> ResizePoolResponse = pools::resize;
    stop_resize(StopResizeRequest) -> StopResizeResponse = pools::stop_resize;
    delete_pool(DeletePoolRequest) -> DeletePoolResponse = pools::delete;
    create_join_token(CreateJoinTokenRequest) -> CreateJoinTokenResponse = joining::create_token;
    remove_nodes(RemoveNodesRequest) -> RemoveNodesResponse = pools::remove_nodes;
    get_node(GetNodeRequest) -> GetNodeResponse = nodes::get;
    list_nodes(ListNodesRequest) -> ListNodesResponse = nodes::list;
    count_nodes(CountNodesRequest) -> CountNodesResponse = nodes::count;
    reboot_node(RebootNodeRequest) -> RebootNodeResponse = nodes::reboot;
    disable_node_scheduling(DisableNodeSchedulingRequest) -> DisableNodeSchedulingResponse = nodes::disable;
    enable_node_scheduling(EnableNodeSchedulingRequest) -> EnableNodeSchedulingResponse = nodes::enable;
    list_node_files(ListNodeFilesRequest) -> ListNodeFilesResponse = files::list;
    get_node_file(GetNodeFileRequest) -> GetNodeFileResponse = files::get;
    delete_node_file(DeleteNodeFileRequest) -> DeleteNodeFileResponse = files::delete;
}
