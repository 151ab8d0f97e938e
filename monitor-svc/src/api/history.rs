//! `GetTaskCountHistory` and `GetNodeUseHistory`.

use std::time::Duration;

use kiln_error::Error;
use kiln_proto::monitor::v1 as wire;
use kiln_proto::time::{micros, std_duration, timestamp};
use kiln_time::Timestamp;

use super::{job_id, pool_id};
use crate::domain::counts::{
    ACTIVE, Counters, FAILED, InvalidSpan, NODE_PREFIX, RUNNING, SLOTS, SLOTS_USED, SUCCEEDED, Span,
};
use crate::store::Store;
use crate::watch::decode;

/// Points if the caller gives no step.
const DEFAULT_POINTS: i64 = 100;

pub(super) async fn task_counts(
    store: &dyn Store,
    account: &str,
    request: wire::GetTaskCountHistoryRequest,
) -> Result<wire::GetTaskCountHistoryResponse, Error> {
    let scope = format!("jobs/{}", job_id(&request.job_id)?.key());
    let asked = Asked { start: request.start, end: request.end, step: request.step };
    let points = points(store, account, &scope, "job.job.created", asked).await?;
    let point = |(time, counters): (i64, Counters)| wire::TaskCountPoint {
        time: Some(timestamp(time)),
        active: of(&counters, ACTIVE),
        running: of(&counters, RUNNING),
        succeeded: of(&counters, SUCCEEDED),
        failed: of(&counters, FAILED),
    };
    Ok(wire::GetTaskCountHistoryResponse { points: points.into_iter().map(point).collect() })
}

pub(super) async fn node_use(
    store: &dyn Store,
    account: &str,
    request: wire::GetNodeUseHistoryRequest,
) -> Result<wire::GetNodeUseHistoryResponse, Error> {
    let scope = format!("pools/{}", pool_id(&request.pool_id)?.key());
    let asked = Asked { start: request.start, end: request.end, step: request.step };
    let points = points(store, account, &scope, "pool.pool.created", asked).await?;
    let small = |value: i64| i32::try_from(value).unwrap_or(i32::MAX);
    let point = |(time, counters): (i64, Counters)| {
        let nodes_by_state: std::collections::HashMap<String, i32> = counters
            .iter()
            .filter_map(|(name, count)| Some((name.strip_prefix(NODE_PREFIX)?.to_owned(), small((*count).max(0)))))
            .filter(|(_, count)| *count > 0)
            .collect();
        wire::NodeUsePoint {
            time: Some(timestamp(time)),
            nodes: nodes_by_state.values().sum(),
            slots: small(of(&counters, SLOTS)),
            slots_used: small(of(&counters, SLOTS_USED)),
            nodes_by_state,
        }
    };
    Ok(wire::GetNodeUseHistoryResponse { points: points.into_iter().map(point).collect() })
}

/// A counter is never below zero, except for a moment while events of its
/// source are still on their way.
fn of(counters: &Counters, name: &str) -> i64 {
    counters.get(name).copied().unwrap_or(0).max(0)
}

struct Asked {
    start: Option<prost_types::Timestamp>,
    end: Option<prost_types::Timestamp>,
    step: Option<prost_types::Duration>,
}

async fn points(
    store: &dyn Store,
    account: &str,
    scope: &str,
    created_type: &str,
    asked: Asked,
) -> Result<Vec<(i64, Counters)>, Error> {
    // What an earlier job or pool of the same id left does not count.
    let created = store.last_of(account, scope, &[created_type]).await?;
    let created = match &created {
        Some(event) => decode(event)?.time.as_ref().map(micros),
        None => None,
    };
    let end = asked.end.as_ref().map_or_else(|| Timestamp::now().as_micros(), micros);
    let start = match (&asked.start, created) {
        (Some(start), _) => micros(start),
        (None, Some(created)) => created.min(end),
        (None, None) => store.first_change(account, scope).await?.unwrap_or(end).min(end),
    };
    let step = match &asked.step {
        Some(step) => std_duration(step)
            .and_then(|step| i64::try_from(step.as_micros()).ok())
            .ok_or_else(|| Error::invalid_property("step", step.seconds, "must be at least one second"))?,
        None => default_step(start, end),
    };
    let span = Span::new(start, end, step).map_err(|error| invalid(&error, step))?;
    Ok(span.points(store.changes(account, scope, span, created).await?))
}

/// Whole seconds, about [`DEFAULT_POINTS`] of them.
fn default_step(start: i64, end: i64) -> i64 {
    let seconds = end.saturating_sub(start) / DEFAULT_POINTS / 1_000_000 + 1;
    seconds.saturating_mul(1_000_000)
}

fn invalid(error: &InvalidSpan, step_micros: i64) -> Error {
    let field = match error {
        InvalidSpan::StepTooSmall | InvalidSpan::TooManyPoints(_) => "step",
        InvalidSpan::EndBeforeStart => "end",
    };
    let step = Duration::from_micros(u64::try_from(step_micros).unwrap_or(0));
    Error::invalid_property(field, kiln_time::iso::format(step), error.to_string())
}
