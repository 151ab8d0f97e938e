//! Between the domain and the messages of the services.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use kiln_ids::{JobId, TaskId};
use kiln_proto::common::v1::{ErrorCategory, ExecutionResult, FailureInfo, NameValue};
use kiln_proto::job::v1::attempt_report::What;
use kiln_proto::job::v1::{
    AttemptEnded, AttemptKey, AttemptPhase, AttemptReady, AttemptReport, AttemptStarted, AttemptView, EndCause,
    NodeTaskInfo, NodeTaskState,
};
use kiln_proto::pool::v1::{StartTaskInfo, StartTaskState};
use kiln_telemetry::propagation;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;

use crate::agent::timestamp;
use crate::domain::attempt::{Attempt, Cause, Ended};
use crate::domain::failure::{Category, Failure};
use crate::domain::ledger::{Key, Report};
use crate::domain::node_task::Run;

/// Puts the node's current token on calls.
#[derive(Debug, Clone)]
pub struct NodeAuth(pub Arc<RwLock<String>>);

impl Interceptor for NodeAuth {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        let token = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        request.metadata_mut().insert("authorization", bearer(&token)?);
        propagation::inject(request.metadata_mut());
        Ok(request)
    }
}

/// The header that carries a token.
///
/// # Errors
/// When the token cannot be in a header.
pub fn bearer(token: &str) -> Result<AsciiMetadataValue, tonic::Status> {
    let mut value: AsciiMetadataValue =
        format!("Bearer {token}").parse().map_err(|_| tonic::Status::unauthenticated("the token is not ASCII"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The attempt that is meant; `None` if the ids are not ones (they become
/// names of directories).
pub fn key(key: &AttemptKey) -> Option<Key> {
    JobId::parse(&key.job_id).ok()?;
    TaskId::parse(&key.task_id).ok()?;
    Some(Key {
        job: key.job_id.as_str().into(),
        task: key.task_id.as_str().into(),
        attempt: key.attempt,
        number: key.task_number,
        instance: key.instance,
    })
}

/// The attempt on the wire.
pub fn attempt_key(key: &Key) -> AttemptKey {
    AttemptKey {
        job_id: key.job.to_string(),
        task_id: key.task.to_string(),
        attempt: key.attempt,
        task_number: key.number,
        instance: key.instance,
    }
}

/// One line of the agent's full view.
pub fn view(key: &Key, attempt: &Attempt) -> AttemptView {
    let phase = match attempt {
        Attempt::Waiting { .. } | Attempt::StagingIn { .. } | Attempt::Ready { .. } => AttemptPhase::StagingIn,
        Attempt::Running { .. } => AttemptPhase::Running,
        Attempt::StagingOut { .. } => AttemptPhase::StagingOut,
        Attempt::Ended(_) => AttemptPhase::Ended,
    };
    AttemptView { key: Some(attempt_key(key)), phase: phase.into() }
}

/// A report on the wire.
pub fn report(key: &Key, report: &Report) -> AttemptReport {
    let what = match report {
        Report::Started(start) => What::Started(AttemptStarted { start_time: Some(timestamp(*start)) }),
        Report::Ready => What::Ready(AttemptReady {}),
        Report::Ended(ended) => What::Ended(attempt_ended(ended)),
    };
    AttemptReport { key: Some(attempt_key(key)), what: Some(what) }
}

fn attempt_ended(ended: &Ended) -> AttemptEnded {
    let cause = match ended.cause {
        Cause::Exited => EndCause::Exited,
        Cause::PreProcessingError => EndCause::PreProcessingError,
        Cause::FileUploadError => EndCause::FileUploadError,
        Cause::WallClockExpired => EndCause::WallClockExpired,
        Cause::Stopped => EndCause::Stopped,
        Cause::AgentFailure => EndCause::AgentFailure,
        Cause::PreparationFailed => EndCause::PreparationFailed,
        Cause::NotStarted => EndCause::NotStarted,
    };
    AttemptEnded {
        start_time: (ended.cause != Cause::NotStarted).then(|| timestamp(ended.start)),
        end_time: Some(timestamp(ended.end)),
        exit_code: ended.exit_code,
        failure: ended.failure.as_ref().map(failure),
        cause: cause.into(),
        outputs_kept: ended.outputs_kept,
    }
}

/// A failure on the wire.
pub fn failure(failure: &Failure) -> FailureInfo {
    let category = match failure.category {
        Category::User => ErrorCategory::User,
        Category::Server => ErrorCategory::Server,
    };
    FailureInfo {
        category: category.into(),
        code: failure.code.to_owned(),
        message: failure.message.clone(),
        details: failure
            .details
            .iter()
            .map(|(name, value)| NameValue { name: (*name).to_owned(), value: value.clone() })
            .collect(),
    }
}

/// How the start task goes.
pub fn start_task_info(run: &Run) -> StartTaskInfo {
    StartTaskInfo {
        state: if run.completed { StartTaskState::Completed } else { StartTaskState::Running }.into(),
        start_time: Some(timestamp(run.start)),
        end_time: run.end.map(timestamp),
        exit_code: run.exit_code,
        failure: run.failure.as_ref().map(failure),
        result: result(run).into(),
        retry_count: retries(run),
        last_retry_time: run.last_retry.map(timestamp),
    }
}

/// How a job's preparation or release task in `dir` goes.
pub fn node_task_info(run: &Run, dir: String) -> NodeTaskInfo {
    NodeTaskInfo {
        state: if run.completed { NodeTaskState::Completed } else { NodeTaskState::Running }.into(),
        start_time: Some(timestamp(run.start)),
        end_time: run.end.map(timestamp),
        exit_code: run.exit_code,
        failure: run.failure.as_ref().map(failure),
        result: result(run).into(),
        retry_count: retries(run),
        last_retry_time: run.last_retry.map(timestamp),
        task_root_directory: dir,
    }
}

fn result(run: &Run) -> ExecutionResult {
    match run {
        Run { end: None, .. } => ExecutionResult::Unspecified,
        Run { failure: None, .. } => ExecutionResult::Success,
        Run { failure: Some(_), .. } => ExecutionResult::Failure,
    }
}

fn retries(run: &Run) -> i32 {
    i32::try_from(run.retries).unwrap_or(i32::MAX)
}

/// A limit of time; absent, negative and zero ones do not limit.
pub fn limit(duration: Option<&prost_types::Duration>) -> Option<Duration> {
    duration.and_then(kiln_proto::time::std_duration).filter(|limit| !limit.is_zero())
}
