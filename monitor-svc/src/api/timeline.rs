//! `GetJobTimeline`.

use kiln_error::Error;
use kiln_grpc::page;
use kiln_proto::common::v1::ExecutionResult;
use kiln_proto::events::v1::Event;
use kiln_proto::events::v1::event::Payload;
use kiln_proto::monitor::v1 as wire;
use kiln_proto::time::{micros, timestamp};

use super::job_id;
use crate::domain::timeline::{Step, StepKind, Timeline};
use crate::store::Store;
use crate::watch::decode;

pub(super) async fn get(
    store: &dyn Store,
    account: &str,
    request: wire::GetJobTimelineRequest,
) -> Result<wire::GetJobTimelineResponse, Error> {
    let job = job_id(&request.job_id)?;
    let size = page::size(request.page_size, 100, 1000)?;
    let after = page::last_key(&request.page_token)?;
    let subject = format!("jobs/{}", job.key());
    // Tasks of an earlier job with the same id are another story.
    let created = store.last_of(account, &subject, &["job.job.created"]).await?;
    let created = created.as_ref().map(decode).transpose()?;
    let found = store.tasks(account, &job.key(), after, size).await?;
    let mut response = wire::GetJobTimelineResponse::default();
    if found.more
        && let Some((last, _)) = found.tasks.last()
    {
        response.next_page_token = page::token(last);
    }
    for (key, events) in found.tasks {
        let mut task_id = key;
        let mut steps = Vec::with_capacity(events.len());
        for logged in &events {
            let event = decode(logged)?;
            if created.as_ref().is_some_and(|c| c.source == event.source && c.sequence > event.sequence) {
                continue;
            }
            if let Some((id, step)) = step(event) {
                task_id = id;
                steps.push(step);
            }
        }
        if !steps.is_empty() {
            response.tasks.push(task(task_id, Timeline::of(steps)));
        }
    }
    Ok(response)
}

fn step(event: Event) -> Option<(String, Step)> {
    let kind = match event.r#type.as_str() {
        "job.task.added" => StepKind::Added,
        "job.task.assigned" => StepKind::Assigned,
        "job.task.started" => StepKind::Started,
        "job.task.finished" => StepKind::Finished,
        "job.task.requeued" => StepKind::Requeued,
        "job.task.deleted" => StepKind::Deleted,
        _ => return None,
    };
    let time_micros = event.time.as_ref().map(micros).unwrap_or_default();
    let Some(Payload::Task(task)) = event.payload else { return None };
    let result = match task.result() {
        ExecutionResult::Unspecified => "",
        ExecutionResult::Success => "success",
        ExecutionResult::Failure => "failure",
    };
    let step = Step {
        kind,
        sequence: i64::try_from(event.sequence).unwrap_or(i64::MAX),
        time_micros,
        attempt: task.attempt,
        node_id: task.node_id,
        exit_code: task.exit_code,
        result: result.to_owned(),
        reason: task.reason,
    };
    Some((task.task_id, step))
}

fn task(task_id: String, timeline: Timeline) -> wire::TaskTimeline {
    wire::TaskTimeline {
        task_id,
        added: timeline.added.map(timestamp),
        attempts: timeline
            .attempts
            .into_iter()
            .map(|attempt| wire::AttemptTimeline {
                attempt: attempt.attempt,
                node_id: attempt.node_id,
                assigned: attempt.assigned.map(timestamp),
                started: attempt.started.map(timestamp),
                ended: attempt.ended.map(timestamp),
                outcome: attempt.outcome,
                exit_code: attempt.exit_code,
            })
            .collect(),
        finished: timeline.finished.map(timestamp),
        result: timeline.result,
    }
}
