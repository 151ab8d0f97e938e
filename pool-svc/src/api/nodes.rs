//! Calls about nodes.

use kiln_error::Error;
use kiln_filter::Filter;
use kiln_grpc::{Caller, page};
use kiln_proto::pool::v1 as wire;
use prost::Message;
use tonic::Request;

use crate::api::{convert, validate};
use crate::core::{Core, apply_node};
use crate::domain::node::NodeEvent;
use crate::domain::{DeallocationOption, Node, Pool, PoolName};

/// Rows of a list that are looked at for one page, if a filter drops most.
const MAX_SCANNED: usize = 10_000;
/// Rows read at once.
const READ: u32 = 500;

fn shown(core: &Core, name: &PoolName, pool: &Pool, node: &Node, vm_size: &str) -> Result<wire::Node, Error> {
    let last_contact = core.sessions.contact(&name.node(&node.id)).map(|(_, time)| time);
    convert::node(pool, node, vm_size, last_contact)
}

pub async fn get(core: &Core, request: Request<wire::GetNodeRequest>) -> Result<wire::GetNodeResponse, Error> {
    let caller = Caller::of(&request)?;
    let message = request.get_ref();
    let name = convert::pool_name(caller.service_account()?, "pool_id", &message.pool_id)?;
    let id = convert::node_id("node_id", &message.node_id)?;
    let (pool, nodes) = core.pool_and_nodes(&name, std::slice::from_ref(&id)).await?;
    let vm_size = convert::settings(&pool)?.vm_size;
    let node = nodes.first().map(|node| shown(core, &name, &pool, node, &vm_size)).transpose()?;
    Ok(wire::GetNodeResponse { node })
}

pub async fn list(core: &Core, request: Request<wire::ListNodesRequest>) -> Result<wire::ListNodesResponse, Error> {
    let caller = Caller::of(&request)?;
    let message = request.get_ref();
    let name = convert::pool_name(caller.service_account()?, "pool_id", &message.pool_id)?;
    let filter = Filter::parse(&message.filter, convert::NODE_PROPERTIES)?;
    let size = page::size(message.page_size, 1000, 1000)? as usize;
    let mut after = page::last_key(&message.page_token)?;
    let pool = core.pool(&name).await?;
    let vm_size = convert::settings(&pool)?.vm_size;
    let mut nodes = Vec::new();
    let mut scanned = 0;
    loop {
        let rows = core.store.nodes(&name, after.as_deref(), READ).await?;
        let last_page = rows.len() < READ as usize;
        for node in rows {
            if nodes.len() == size || scanned == MAX_SCANNED {
                let next_page_token = page::token(after.as_deref().unwrap_or_default());
                return Ok(wire::ListNodesResponse { nodes, next_page_token });
            }
            scanned += 1;
            after = Some(node.id.key().into_owned());
            let info = start_task_info(&node)?;
            if filter.matches(&|property| convert::node_property(&node, info.as_ref(), property)) {
                nodes.push(shown(core, &name, &pool, &node, &vm_size)?);
            }
        }
        if last_page {
            return Ok(wire::ListNodesResponse { nodes, next_page_token: String::new() });
        }
    }
}

fn start_task_info(node: &Node) -> Result<Option<wire::StartTaskInfo>, Error> {
    let report = wire::NodeReport::decode(node.report.as_slice())
        .map_err(|_| Error::internal(format!("the record of node {} cannot be read", node.id)))?;
    Ok(report.start_task_info)
}

pub async fn count(core: &Core, request: Request<wire::CountNodesRequest>) -> Result<wire::CountNodesResponse, Error> {
    let caller = Caller::of(&request)?;
    let account = caller.service_account()?;
    let message = request.get_ref();
    let size = page::size(message.page_size, 10, 1000)?;
    let shown = |(pool, counts): &(kiln_ids::PoolId, crate::store::PoolCounts)| wire::PoolNodeCounts {
        pool_id: pool.as_str().to_owned(),
        dedicated: Some(convert::counts(&counts.dedicated)),
        low_priority: Some(convert::counts(&counts.low_priority)),
    };
    if !message.pool_id.is_empty() {
        let name = convert::pool_name(account, "pool_id", &message.pool_id)?;
        let pool = core.pool(&name).await?;
        let counts = core.store.pool_counts(&name).await?;
        return Ok(wire::CountNodesResponse { pools: vec![shown(&(pool.id, counts))], next_page_token: String::new() });
    }
    let account = convert::account_name(account)?;
    let after = page::last_key(&message.page_token)?;
    let counts = core.store.node_counts(&account, after.as_deref(), size).await?;
    let next_page_token = match counts.last() {
        Some((last, _)) if counts.len() == size as usize => page::token(&last.key()),
        _ => String::new(),
    };
    Ok(wire::CountNodesResponse { pools: counts.iter().map(shown).collect(), next_page_token })
}

pub async fn reboot(core: &Core, request: Request<wire::RebootNodeRequest>) -> Result<wire::RebootNodeResponse, Error> {
    let caller = Caller::of(&request)?;
    let message = request.get_ref();
    let name = convert::pool_name(caller.service_account()?, "pool_id", &message.pool_id)?;
    let event = NodeEvent::RebootRequested(validate::option("option", message.option)?);
    act(core, &name, &message.node_id, "RebootNode", &message.request_id, event, "rebooted by a client").await
}

pub async fn disable(
    core: &Core,
    request: Request<wire::DisableNodeSchedulingRequest>,
) -> Result<wire::DisableNodeSchedulingResponse, Error> {
    let caller = Caller::of(&request)?;
    let message = request.get_ref();
    let name = convert::pool_name(caller.service_account()?, "pool_id", &message.pool_id)?;
    let option = validate::option("option", message.option)?;
    if option == DeallocationOption::RetainedData {
        let why = "must be requeue, terminate or task completion";
        return Err(Error::invalid_property("option", "retaineddata", why));
    }
    let event = NodeEvent::DisableRequested(option);
    let method = "DisableNodeScheduling";
    act(core, &name, &message.node_id, method, &message.request_id, event, "scheduling disabled").await
}

pub async fn enable(
    core: &Core,
    request: Request<wire::EnableNodeSchedulingRequest>,
) -> Result<wire::EnableNodeSchedulingResponse, Error> {
    let caller = Caller::of(&request)?;
    let message = request.get_ref();
    let name = convert::pool_name(caller.service_account()?, "pool_id", &message.pool_id)?;
    let event = NodeEvent::EnableRequested;
    let method = "EnableNodeScheduling";
    act(core, &name, &message.node_id, method, &message.request_id, event, "scheduling enabled").await
}

/// A client's event for one node; the answer says nothing.
async fn act<R: prost::Message + Default>(
    core: &Core,
    name: &PoolName,
    node: &str,
    method: &'static str,
    request_id: &str,
    event: NodeEvent,
    reason: &'static str,
) -> Result<R, Error> {
    let id = convert::node_id("node_id", node)?;
    core.mutate(name, method, request_id, &[id], |pool, nodes, change, now| {
        for mut node in nodes {
            apply_node(change, &pool, &mut node, event.clone(), reason, now)?;
        }
        Ok(R::default())
    })
    .await
}
