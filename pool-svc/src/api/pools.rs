//! Calls about pools.

use kiln_error::Error;
use kiln_etag::Version;
use kiln_filter::Filter;
use kiln_grpc::condition::conditions;
use kiln_grpc::{Caller, page};
use kiln_proto::common::v1::Precondition;
use kiln_proto::pool::v1 as wire;
use kiln_time::Timestamp;
use prost::Message;
use tonic::Request;

use crate::api::{convert, validate};
use crate::core::{Core, apply_node, repeated};
use crate::domain::event::PoolFact;
use crate::domain::node::NodeEvent;
use crate::domain::pool::{Counts, NewPool};
use crate::domain::{Event, Pool, PoolName, Refused};
use crate::store::{Change, Outcome, PoolWrite, Request as StoredRequest, StoreError};

/// Rows of a list that are looked at for one page, if a filter drops most.
const MAX_SCANNED: usize = 10_000;
/// Rows read at once.
const READ: u32 = 500;
/// Nodes of one removal.
const MAX_REMOVED: usize = 100;

fn check(given: Option<&Precondition>, pool: &Pool) -> Result<(), Error> {
    let etag = pool.etag_text();
    conditions(given).check(Version { etag: &etag, last_modified: pool.modified })?;
    Ok(())
}

/// A new pool with what is announced about it.
///
/// # Errors
/// Names the field of the specification that is wrong.
pub fn prepare(name: &PoolName, mut spec: wire::PoolSpec, now: Timestamp) -> Result<(Pool, Vec<Event>), Error> {
    let sizing = validate::spec(&mut spec, "local")?;
    let new = NewPool {
        account: name.account.clone(),
        id: name.pool.clone(),
        target: sizing.target,
        resize_timeout: sizing.resize_timeout,
        task_slots: sizing.task_slots,
        settings: spec.encode_to_vec(),
    };
    let pool = Pool::create(new, now);
    let mut events = vec![Event::pool(&pool, PoolFact::Created, "", now)];
    if sizing.target.total() > 0 {
        events.push(Event::pool(&pool, PoolFact::ResizeStarted, "", now));
    }
    Ok((pool, events))
}

pub async fn create(core: &Core, request: Request<wire::CreatePoolRequest>) -> Result<wire::CreatePoolResponse, Error> {
    const METHOD: &str = "CreatePool";
    let caller = Caller::of(&request)?;
    let account = caller.service_account()?;
    let message = request.get_ref();
    let name = convert::pool_name(account, "id", &message.id)?;
    if let Some(answer) = core.store.answer(&name.account, METHOD, &message.request_id).await? {
        return repeated(&answer);
    }
    let spec = message.spec.clone().ok_or_else(|| Error::missing_property("spec"))?;
    let now = Timestamp::now();
    let (pool, events) = prepare(&name, spec, now)?;
    let answer = wire::CreatePoolResponse { pool: Some(convert::pool(&pool)?) };
    let mut change = Change::new(name.clone(), now);
    change.events = events;
    let id = message.request_id.clone();
    change.request = Some(StoredRequest { method: METHOD, id, answer: answer.encode_to_vec() });
    change.pool_write = Some(PoolWrite::Insert(pool));
    match core.commit(change).await {
        Ok(Outcome::Written) => {
            core.wakeups.wake(name);
            Ok(answer)
        }
        Ok(Outcome::Repeated(answer)) => repeated(&answer),
        Err(StoreError::PoolExists) => {
            // One that is being deleted keeps its id until it is gone.
            match core.store.pool(&name).await? {
                Some(pool) if pool.state == crate::domain::PoolState::Deleting => {
                    Err(Refused::PoolBeingDeleted(pool.id).into())
                }
                _ => Err(Refused::PoolExists(name.pool).into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

pub async fn get(core: &Core, request: Request<wire::GetPoolRequest>) -> Result<wire::GetPoolResponse, Error> {
    let caller = Caller::of(&request)?;
    let message = request.get_ref();
    let pool = core.pool(&convert::pool_name(caller.service_account()?, "id", &message.id)?).await?;
    check(message.precondition.as_ref(), &pool)?;
    Ok(wire::GetPoolResponse { pool: Some(convert::pool(&pool)?) })
}

pub async fn list(core: &Core, request: Request<wire::ListPoolsRequest>) -> Result<wire::ListPoolsResponse, Error> {
    let caller = Caller::of(&request)?;
    let account = convert::account_name(caller.service_account()?)?;
    let message = request.get_ref();
    let filter = Filter::parse(&message.filter, convert::POOL_PROPERTIES)?;
    let size = page::size(message.page_size, 1000, 1000)? as usize;
    let mut after = page::last_key(&message.page_token)?;
    let mut pools = Vec::new();
    let mut scanned = 0;
    loop {
        let rows = core.store.pools(&account, after.as_deref(), READ).await?;
        let last_page = rows.len() < READ as usize;
        for pool in rows {
            if pools.len() == size || scanned == MAX_SCANNED {
                let next_page_token = page::token(after.as_deref().unwrap_or_default());
                return Ok(wire::ListPoolsResponse { pools, next_page_token });
            }
            scanned += 1;
            after = Some(pool.id.key().into_owned());
            let spec = convert::settings(&pool)?;
            if filter.matches(&|property| convert::pool_property(&pool, &spec, property)) {
                pools.push(convert::pool(&pool)?);
            }
        }
        if last_page {
            return Ok(wire::ListPoolsResponse { pools, next_page_token: String::new() });
        }
    }
}

pub async fn update(core: &Core, request: Request<wire::UpdatePoolRequest>) -> Result<wire::UpdatePoolResponse, Error> {
    let caller = Caller::of(&request)?;
    let message = request.get_ref();
    let name = convert::pool_name(caller.service_account()?, "id", &message.id)?;
    if message.start_task.is_some() && message.clear_start_task {
        let why = "cannot be given together with clear_start_task";
        return Err(Error::invalid_property("start_task", "", why));
    }
    if let Some(task) = &message.start_task {
        validate::start_task(task)?;
    }
    if let Some(list) = &message.application_packages {
        validate::packages(&list.packages)?;
    }
    if let Some(list) = &message.metadata {
        validate::metadata(&list.items)?;
    }
    core.mutate(&name, "UpdatePool", &message.request_id, &[], |mut pool, _, change, now| {
        check(message.precondition.as_ref(), &pool)?;
        let mut spec = convert::settings(&pool)?;
        if message.start_task.is_some() || message.clear_start_task {
            spec.start_task.clone_from(&message.start_task);
        }
        if let Some(list) = &message.application_packages {
            spec.application_packages.clone_from(&list.packages);
        }
        if let Some(list) = &message.metadata {
            spec.metadata.clone_from(&list.items);
        }
        pool.update(spec.encode_to_vec(), now)?;
        change.events.push(Event::pool(&pool, PoolFact::Updated, "", now));
        let answer = wire::UpdatePoolResponse { pool: Some(convert::pool(&pool)?) };
        change.pool_write = Some(PoolWrite::Update(pool));
        Ok(answer)
    })
    .await
}

pub async fn resize(core: &Core, request: Request<wire::ResizePoolRequest>) -> Result<wire::ResizePoolResponse, Error> {
    let caller = Caller::of(&request)?;
    let message = request.get_ref();
    let name = convert::pool_name(caller.service_account()?, "id", &message.id)?;
    if message.target_dedicated_nodes.is_none() && message.target_low_priority_nodes.is_none() {
        return Err(Error::missing_property("target_dedicated_nodes"));
    }
    let wanted = |field, value: Option<i32>| value.map(|value| validate::target(field, value)).transpose();
    let dedicated = wanted("target_dedicated_nodes", message.target_dedicated_nodes)?;
    let low_priority = wanted("target_low_priority_nodes", message.target_low_priority_nodes)?;
    let timeout = validate::resize_timeout(message.resize_timeout.as_ref())?;
    let option = validate::option("deallocation_option", message.deallocation_option)?;
    core.mutate(&name, "ResizePool", &message.request_id, &[], |mut pool, _, change, now| {
        check(message.precondition.as_ref(), &pool)?;
        let target = Counts {
            dedicated: dedicated.unwrap_or(pool.target.dedicated),
            low_priority: low_priority.unwrap_or(pool.target.low_priority),
        };
        validate::total(target)?;
        pool.resize(target, timeout, option, now)?;
        change.events.push(Event::pool(&pool, PoolFact::ResizeStarted, "", now));
        let answer = wire::ResizePoolResponse { pool: Some(convert::pool(&pool)?) };
        change.pool_write = Some(PoolWrite::Update(pool));
        Ok(answer)
    })
    .await
}

pub async fn stop_resize(
    core: &Core,
    request: Request<wire::StopResizeRequest>,
) -> Result<wire::StopResizeResponse, Error> {
    let caller = Caller::of(&request)?;
    let message = request.get_ref();
    let name = convert::pool_name(caller.service_account()?, "id", &message.id)?;
    core.mutate(&name, "StopResize", &message.request_id, &[], |mut pool, _, change, now| {
        check(message.precondition.as_ref(), &pool)?;
        pool.stop_resize(now)?;
        change.events.push(Event::pool(&pool, PoolFact::Updated, "resize stopped", now));
        let answer = wire::StopResizeResponse { pool: Some(convert::pool(&pool)?) };
        change.pool_write = Some(PoolWrite::Update(pool));
        Ok(answer)
    })
    .await
}

pub async fn delete(core: &Core, request: Request<wire::DeletePoolRequest>) -> Result<wire::DeletePoolResponse, Error> {
    let caller = Caller::of(&request)?;
    let message = request.get_ref();
    let name = convert::pool_name(caller.service_account()?, "id", &message.id)?;
    core.mutate(&name, "DeletePool", &message.request_id, &[], |mut pool, _, change, now| {
        check(message.precondition.as_ref(), &pool)?;
        pool.delete(now)?;
        change.events.push(Event::pool(&pool, PoolFact::Deleting, "", now));
        change.pool_write = Some(PoolWrite::Update(pool));
        Ok(wire::DeletePoolResponse {})
    })
    .await
}

pub async fn remove_nodes(
    core: &Core,
    request: Request<wire::RemoveNodesRequest>,
) -> Result<wire::RemoveNodesResponse, Error> {
    let caller = Caller::of(&request)?;
    let message = request.get_ref();
    let name = convert::pool_name(caller.service_account()?, "pool_id", &message.pool_id)?;
    if message.node_ids.is_empty() {
        return Err(Error::missing_property("node_ids"));
    }
    if message.node_ids.len() > MAX_REMOVED {
        let why = format!("at most {MAX_REMOVED} nodes can be removed at once");
        return Err(Error::invalid_property("node_ids", message.node_ids.len(), why));
    }
    let mut ids = Vec::with_capacity(message.node_ids.len());
    for id in &message.node_ids {
        let id = convert::node_id("node_ids", id)?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    let timeout = validate::resize_timeout(message.resize_timeout.as_ref())?;
    let option = validate::option("deallocation_option", message.deallocation_option)?;
    core.mutate(&name, "RemoveNodes", &message.request_id, &ids, |mut pool, nodes, change, now| {
        check(message.precondition.as_ref(), &pool)?;
        let mut target = pool.target;
        // Those that joined count for no target.
        for node in nodes.iter().filter(|node| !node.state.is_leaving() && !node.joined) {
            let of_kind = target.of_mut(node.dedicated);
            *of_kind = of_kind.saturating_sub(1);
        }
        pool.resize(target, timeout, option, now)?;
        change.events.push(Event::pool(&pool, PoolFact::ResizeStarted, "nodes are removed", now));
        for mut node in nodes {
            apply_node(change, &pool, &mut node, NodeEvent::RemovalRequested(option), "removed by a client", now)?;
        }
        let answer = wire::RemoveNodesResponse { pool: Some(convert::pool(&pool)?) };
        change.pool_write = Some(PoolWrite::Update(pool));
        Ok(answer)
    })
    .await
}
