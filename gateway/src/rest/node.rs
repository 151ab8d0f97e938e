//! Operations on nodes.

use http::StatusCode;
use kiln_error::{Error, Kind};
use kiln_proto::pool::v1::{
    CountNodesRequest, DisableNodeSchedulingRequest, EnableNodeSchedulingRequest, GetNodeRequest, ListNodesRequest,
    Node, RebootNodeRequest,
};

use super::call::{Call, MAX_RESULTS};
use super::common::read_deallocation;
use super::json::Fields;
use super::reply::Reply;
use super::{node_json, odata};

/// Pools of one page of counts.
const MAX_COUNTS: i32 = 10;

pub(super) async fn counts(call: &Call) -> Result<Reply, Error> {
    let (page_size, page_token) = call.page(MAX_COUNTS)?;
    let pool_id = odata::pool_id(&call.filter())?;
    let message = CountNodesRequest { pool_id, page_size, page_token };
    let answer = call.backends.pools().count_nodes(call.request(message)?).await?.into_inner();
    let values = answer.pools.iter().map(node_json::write_counts).collect();
    Ok(odata::page(call, "poolnodecounts", values, &answer.next_page_token))
}

pub(super) async fn list(call: &Call) -> Result<Reply, Error> {
    let (page_size, page_token) = call.page(MAX_RESULTS)?;
    let message = ListNodesRequest { pool_id: call.argument(0), filter: call.filter(), page_size, page_token };
    let answer = call.backends.pools().list_nodes(call.request(message)?).await?.into_inner();
    let values = answer.nodes.iter().map(|node| node_json::write(node, call.view())).collect();
    Ok(odata::page(call, "nodes", values, &answer.next_page_token))
}

async fn fetch(call: &Call) -> Result<Node, Error> {
    let message = GetNodeRequest { pool_id: call.argument(0), node_id: call.argument(1) };
    let answer = call.backends.pools().get_node(call.request(message)?).await?.into_inner();
    answer.node.ok_or_else(|| Error::internal("pool-svc answered without a node"))
}

pub(super) async fn get(call: &Call) -> Result<Reply, Error> {
    let mut value = node_json::write(&fetch(call).await?, call.view());
    odata::select(call, &mut value);
    Ok(Reply::json("nodes/@Element", value))
}

pub(super) async fn reboot(call: &Call) -> Result<Reply, Error> {
    let body = call.json()?;
    let message = RebootNodeRequest {
        request_id: String::new(),
        pool_id: call.argument(0),
        node_id: call.argument(1),
        option: read_deallocation(&Fields::root(&body)?, "nodeRebootOption")?,
    };
    call.backends.pools().reboot_node(call.request(message)?).await?;
    Ok(Reply::empty(StatusCode::ACCEPTED))
}

pub(super) async fn disable_scheduling(call: &Call) -> Result<Reply, Error> {
    let body = call.json()?;
    let message = DisableNodeSchedulingRequest {
        request_id: String::new(),
        pool_id: call.argument(0),
        node_id: call.argument(1),
        option: read_deallocation(&Fields::root(&body)?, "nodeDisableSchedulingOption")?,
    };
    call.backends.pools().disable_node_scheduling(call.request(message)?).await?;
    Ok(Reply::empty(StatusCode::OK))
}

pub(super) async fn enable_scheduling(call: &Call) -> Result<Reply, Error> {
    let message =
        EnableNodeSchedulingRequest { request_id: String::new(), pool_id: call.argument(0), node_id: call.argument(1) };
    call.backends.pools().enable_node_scheduling(call.request(message)?).await?;
    Ok(Reply::empty(StatusCode::OK))
}

/// Nodes dial out only: there is no address to log in to.
pub(super) async fn remote_login(call: &Call) -> Result<Reply, Error> {
    let node = fetch(call).await?;
    Err(Error::new(
        Kind::FailedPrecondition,
        "OperationNotValidOnNode",
        format!("node {} has no port for remote login; read its files or run a task on it instead", node.id),
    ))
}
