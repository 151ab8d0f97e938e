//! Machines that become nodes by themselves.
//!
//! ```text
//! a client      CreateJoinToken   a token for the pool, for some uses
//! the machine   Join              a node's record, and a token for this node
//!   its agent   Register ...      as any other
//! the machine   Leave             the record is removed
//! ```
//!
//! How often a pool's token may still be used stands in the pool's record, so it
//! is counted in the transaction that makes the node.

use std::time::Duration;

use kiln_auth::token::{self, Claims, Principal};
use kiln_error::{Error, Kind};
use kiln_grpc::Caller;
use kiln_grpc::caller::now_seconds;
use kiln_node::JoinInvitation;
use kiln_proto::pool::v1 as wire;
use kiln_time::Timestamp;
use tonic::Request;

use crate::api::control::{denied, node_name, unknown_node};
use crate::api::convert;
use crate::core::Core;
use crate::domain::event::NodeFact;
use crate::domain::node::NodeEvent;
use crate::domain::pool::JoinToken;
use crate::domain::{DeallocationOption, Event, Node, NodeName, Refused};
use crate::reconcile;
use crate::store::{NodeWrite, PoolWrite};

/// A pool's token is valid this long if nothing is said.
const DEFAULT_VALID: Duration = Duration::from_secs(3600);
/// And at most this.
const MAX_VALID: Duration = Duration::from_secs(7 * 86_400);
/// Machines that may join with one token.
const MAX_USES: i32 = 1000;

pub async fn create_token(
    core: &Core,
    request: Request<wire::CreateJoinTokenRequest>,
) -> Result<wire::CreateJoinTokenResponse, Error> {
    let caller = Caller::of(&request)?;
    let message = request.get_ref();
    let name = convert::pool_name(caller.service_account()?, "pool_id", &message.pool_id)?;
    let valid = match &message.valid {
        None => DEFAULT_VALID,
        Some(valid) => Duration::try_from(*valid)
            .ok()
            .filter(|valid| (Duration::from_secs(1)..=MAX_VALID).contains(valid))
            .ok_or_else(|| Error::invalid_property("valid", valid, "must be between a second and 7 days"))?,
    };
    let uses = match message.uses {
        0 => 1,
        uses @ 1..=MAX_USES => uses,
        other => return Err(Error::invalid_property("uses", other, format!("must be between 1 and {MAX_USES}"))),
    };
    let method = "CreateJoinToken";
    let made: wire::CreateJoinTokenResponse = core
        .mutate(&name, method, &message.request_id, &[], |mut pool, _, change, now| {
            let (id, expires) = (uuid::Uuid::new_v4().to_string(), now.plus(valid));
            let answer = wire::CreateJoinTokenResponse {
                // Which one; the secret is not kept with the answer.
                token: id.clone(),
                expires: Some(kiln_proto::time::timestamp(expires.as_micros())),
                uses,
                control_endpoint: core.config.control_endpoint.clone(),
            };
            pool.add_join_token(JoinToken { id, expires, uses_left: uses.unsigned_abs() }, now)?;
            change.pool_write = Some(PoolWrite::Update(pool));
            Ok(answer)
        })
        .await?;
    let expires = made.expires.as_ref().map_or_else(now_seconds, |time| time.seconds);
    let principal = Principal::PoolJoin {
        account: name.account.as_str().to_owned(),
        pool: name.pool.as_str().to_owned(),
        id: made.token.clone(),
    };
    let invitation = JoinInvitation {
        control_endpoint: made.control_endpoint.clone(),
        ca_pem: reconcile::authority(core).await?,
        token: token::mint(&core.cluster_key, &Claims { principal, expires }),
    };
    tracing::info!(account = %name.account, pool.id = %name.pool, uses, "machines may join");
    Ok(wire::CreateJoinTokenResponse { token: invitation.to_text(), ..made })
}

pub async fn join(core: &Core, request: Request<wire::JoinRequest>) -> Result<wire::JoinResponse, Error> {
    let caller = Caller::of(&request)?;
    let Principal::PoolJoin { account, pool, id } = &caller.principal else {
        return Err(denied("only a machine with a pool's join token may join; `kiln node token` makes one"));
    };
    let name = convert::pool_name(account, "pool_id", pool)?;
    // Nobody gets the answer that was given to the holder of another token.
    let request_id = match request.get_ref().request_id.as_str() {
        "" => String::new(),
        given => format!("{id}/{given}"),
    };
    let joined: wire::JoinResponse = core
        .mutate(&name, "JoinPool", &request_id, &[], |mut pool, _, change, now| {
            pool.use_join_token(id, now)?;
            let node = Node::join(pool.take_node_id(), now);
            *pool.current.of_mut(node.dedicated) += 1;
            change.events.push(Event::node(&pool, &node, NodeFact::Created, None, "joined", now));
            let answer = wire::JoinResponse {
                account: pool.account.as_str().to_owned(),
                pool_id: pool.id.as_str().to_owned(),
                node_id: node.id.as_str().to_owned(),
                join_token: String::new(),
            };
            change.node_writes.push(NodeWrite::Insert(node));
            change.pool_write = Some(PoolWrite::Update(pool));
            Ok(answer)
        })
        .await?;
    let node = node_name(&joined.account, &joined.pool_id, &joined.node_id)?;
    let record = core.store.node(&node).await?.ok_or_else(|| unknown_node(&node))?;
    Ok(wire::JoinResponse { join_token: reconcile::join_token(core, &name, &record), ..joined })
}

/// The node a join token is for, and its record unless it is gone.
///
/// # Errors
/// If it is another kind of token, or of an earlier node of that name.
pub(super) async fn invited(core: &Core, caller: &Caller) -> Result<(NodeName, Option<Node>), Error> {
    let Principal::Join { account, pool, node, made_micros } = &caller.principal else {
        return Err(denied("only a node with its join token may call this"));
    };
    let name = node_name(account, pool, node)?;
    let record = core.store.node(&name).await?;
    if record.as_ref().is_some_and(|record| record.allocation_time != Timestamp::from_micros(*made_micros)) {
        let why = format!("this join token is of an earlier node {}, which does not exist any more", name.node);
        return Err(Error::new(Kind::Unauthenticated, "AuthenticationFailed", why));
    }
    Ok((name, record))
}

pub async fn leave(core: &Core, request: Request<wire::LeaveRequest>) -> Result<wire::LeaveResponse, Error> {
    let (name, record) = invited(core, &Caller::of(&request)?).await?;
    match record {
        // It has left already.
        None => return Ok(wire::LeaveResponse {}),
        Some(node) if !node.joined => return Err(Refused::NotJoined(node.id).into()),
        Some(_) => {}
    }
    let removal = NodeEvent::RemovalRequested(DeallocationOption::Requeue);
    for event in [removal, NodeEvent::AgentGone] {
        core.node_event(&name, event, "it leaves").await?;
    }
    core.wakeups.wake(name.pool_name());
    Ok(wire::LeaveResponse {})
}
