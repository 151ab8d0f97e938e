//! Operations on pools.

use http::StatusCode;
use kiln_error::Error;
use kiln_proto::pool::v1::{
    CreatePoolRequest, DeletePoolRequest, GetPoolRequest, ListPoolsRequest, MetadataList, PackageList, Pool,
    RemoveNodesRequest, ResizePoolRequest, StopResizeRequest, UpdatePoolRequest,
};

use super::application;
use super::call::{Call, MAX_RESULTS};
use super::common::{read_deallocation, read_name_values, read_packages};
use super::json::Fields;
use super::odata;
use super::pool_json;
use super::reply::Reply;

fn changed(status: StatusCode, pool: Option<Pool>) -> Reply {
    let reply = Reply::empty(status);
    match pool {
        Some(pool) => reply.version(&pool.etag, pool.last_modified.as_ref()),
        None => reply,
    }
}

fn found(pool: Option<Pool>) -> Result<Pool, Error> {
    pool.ok_or_else(|| Error::internal("pool-svc answered without a pool"))
}

pub(super) async fn add(call: &Call) -> Result<Reply, Error> {
    let (id, spec) = pool_json::read_new(&call.json()?)?;
    application::check(call, &spec.application_packages).await?;
    let url = call.view().url(&["pools", &id]);
    let message = CreatePoolRequest { request_id: String::new(), id, spec: Some(spec) };
    let answer = call.backends.pools().create_pool(call.request(message)?).await?.into_inner();
    Ok(changed(StatusCode::CREATED, answer.pool).location(&url))
}

pub(super) async fn list(call: &Call) -> Result<Reply, Error> {
    let (page_size, page_token) = call.page(MAX_RESULTS)?;
    let message = ListPoolsRequest { filter: call.filter(), page_size, page_token };
    let answer = call.backends.pools().list_pools(call.request(message)?).await?.into_inner();
    let values = answer.pools.iter().map(|pool| pool_json::write(pool, call.view())).collect();
    Ok(odata::page(call, "pools", values, &answer.next_page_token))
}

async fn fetch(call: &Call) -> Result<Pool, Error> {
    let message = GetPoolRequest { id: call.argument(0), precondition: call.precondition()? };
    found(call.backends.pools().get_pool(call.request(message)?).await?.into_inner().pool)
}

pub(super) async fn get(call: &Call) -> Result<Reply, Error> {
    let pool = fetch(call).await?;
    let mut value = pool_json::write(&pool, call.view());
    odata::select(call, &mut value);
    Ok(Reply::json("pools/@Element", value).version(&pool.etag, pool.last_modified.as_ref()))
}

pub(super) async fn exists(call: &Call) -> Result<Reply, Error> {
    let pool = fetch(call).await?;
    Ok(changed(StatusCode::OK, Some(pool)))
}

pub(super) async fn delete(call: &Call) -> Result<Reply, Error> {
    let message =
        DeletePoolRequest { request_id: String::new(), id: call.argument(0), precondition: call.precondition()? };
    call.backends.pools().delete_pool(call.request(message)?).await?;
    Ok(Reply::empty(StatusCode::ACCEPTED))
}

/// Replaces what is given.
pub(super) async fn patch(call: &Call) -> Result<Reply, Error> {
    let body = call.json()?;
    let fields = Fields::root(&body)?;
    pool_json::refuse_fixed(&fields)?;
    let packages = read_packages(&fields)?;
    application::check(call, &packages).await?;
    let metadata = read_name_values(&fields, "metadata")?;
    let message = UpdatePoolRequest {
        id: call.argument(0),
        start_task: pool_json::read_start_task(&fields)?,
        application_packages: fields.has("applicationPackageReferences").then_some(PackageList { packages }),
        metadata: fields.has("metadata").then_some(MetadataList { items: metadata }),
        precondition: call.precondition()?,
        ..UpdatePoolRequest::default()
    };
    let answer = call.backends.pools().update_pool(call.request(message)?).await?.into_inner();
    Ok(changed(StatusCode::OK, answer.pool))
}

/// Replaces start task, packages and metadata; what is not given is taken away.
pub(super) async fn update_properties(call: &Call) -> Result<Reply, Error> {
    let body = call.json()?;
    let fields = Fields::root(&body)?;
    let start_task = pool_json::read_start_task(&fields)?;
    let packages = read_packages(&fields)?;
    application::check(call, &packages).await?;
    let message = UpdatePoolRequest {
        id: call.argument(0),
        clear_start_task: start_task.is_none(),
        start_task,
        application_packages: Some(PackageList { packages }),
        metadata: Some(MetadataList { items: read_name_values(&fields, "metadata")? }),
        precondition: call.precondition()?,
        ..UpdatePoolRequest::default()
    };
    let answer = call.backends.pools().update_pool(call.request(message)?).await?.into_inner();
    Ok(changed(StatusCode::NO_CONTENT, answer.pool))
}

pub(super) async fn resize(call: &Call) -> Result<Reply, Error> {
    let body = call.json()?;
    let fields = Fields::root(&body)?;
    let message = ResizePoolRequest {
        request_id: String::new(),
        id: call.argument(0),
        target_dedicated_nodes: pool_json::read_target(&fields)?,
        target_low_priority_nodes: fields.int("targetLowPriorityNodes")?,
        resize_timeout: fields.duration("resizeTimeout")?,
        deallocation_option: read_deallocation(&fields, "nodeDeallocationOption")?,
        precondition: call.precondition()?,
    };
    if message.target_dedicated_nodes.is_none() && message.target_low_priority_nodes.is_none() {
        return Err(fields.missing("targetDedicatedNodes"));
    }
    let answer = call.backends.pools().resize_pool(call.request(message)?).await?.into_inner();
    Ok(changed(StatusCode::ACCEPTED, answer.pool))
}

pub(super) async fn stop_resize(call: &Call) -> Result<Reply, Error> {
    let message =
        StopResizeRequest { request_id: String::new(), id: call.argument(0), precondition: call.precondition()? };
    let answer = call.backends.pools().stop_resize(call.request(message)?).await?.into_inner();
    Ok(changed(StatusCode::ACCEPTED, answer.pool))
}

pub(super) async fn remove_nodes(call: &Call) -> Result<Reply, Error> {
    let body = call.json()?;
    let fields = Fields::root(&body)?;
    let node_ids = fields.texts("nodeList")?;
    if node_ids.is_empty() {
        return Err(fields.missing("nodeList"));
    }
    let message = RemoveNodesRequest {
        request_id: String::new(),
        pool_id: call.argument(0),
        node_ids,
        resize_timeout: fields.duration("resizeTimeout")?,
        deallocation_option: read_deallocation(&fields, "nodeDeallocationOption")?,
        precondition: call.precondition()?,
    };
    let answer = call.backends.pools().remove_nodes(call.request(message)?).await?.into_inner();
    Ok(changed(StatusCode::ACCEPTED, answer.pool))
}
