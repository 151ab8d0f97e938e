//! Adding tasks: one, a collection, a stream of any number.

use std::sync::Arc;

use futures::{Stream, StreamExt};
use kiln_ids::AccountName;
use kiln_proto::job::v1 as wire;
use kiln_telemetry::propagation::current_traceparent;
use kiln_time::Timestamp;
use prost::Message;
use tonic::{Status, Streaming};

use super::convert;
use super::{Answer, Api, finished, job_id};
use crate::domain::Error;
use crate::domain::dependencies::Dependencies;
use crate::domain::etag;
use crate::domain::exit;
use crate::domain::spec;
use crate::scheduler::note::Note;
use crate::store::{AddTasks, Added, Answered, NewTask, Request, TaskRow};

/// Tasks of one call at most.
const MAX_COLLECTION: usize = 10_000;
/// Messages of a stream that are written at once; their answers keep the order.
const PIPELINE: usize = 4;

fn new_task(spec: wire::TaskSpec) -> Result<NewTask, Error> {
    let (id, facts) = spec::check_task(&spec)?;
    let names_job_action = spec.exit_conditions.as_ref().is_some_and(exit::names_job_action);
    let depends = spec.depends_on.as_ref().and_then(Dependencies::of);
    Ok(NewTask { id, facts, spec: spec.encode_to_vec().into(), names_job_action, depends })
}

fn nothing(_: &Added) -> Vec<u8> {
    Vec::new()
}

fn encode_results(added: &Added) -> Vec<u8> {
    let results = added
        .results
        .iter()
        .map(|result| match &result.outcome {
            Ok(task) => wire::AddTaskResult {
                task_id: result.id.clone(),
                error: None,
                etag: etag::of(task.last_modified),
                last_modified_micros: task.last_modified.as_micros(),
            },
            Err(error) => wire::AddTaskResult {
                task_id: result.id.clone(),
                error: Some(convert::add_error(error.clone())),
                ..wire::AddTaskResult::default()
            },
        })
        .collect();
    wire::AddTaskCollectionResponse { results }.encode_to_vec()
}

fn damaged(error: prost::DecodeError) -> Error {
    kiln_store::StoreError::Damaged(format!("answer: {error}")).into()
}

impl Api {
    /// Writes tasks and tells the scheduler of them.
    async fn write_tasks(&self, add: AddTasks) -> Result<Answered<Added>, Error> {
        let account = add.account.clone();
        let answered = self.store.add_tasks(add).await?;
        if let Answered::New(added) = &answered {
            let new = |result: &crate::store::AddResult| result.outcome.as_ref().ok().and_then(|task| task.new.clone());
            let tasks: Vec<TaskRow> = added.results.iter().filter_map(new).collect();
            if !tasks.is_empty() {
                self.registry.tell(&account, &added.pool, Note::Added { job: added.job, tasks }).await;
            }
        }
        Ok(answered)
    }

    pub(super) async fn add_task(
        &self,
        account: AccountName,
        request: wire::AddTaskRequest,
    ) -> Answer<wire::AddTaskResponse> {
        let job = job_id(&request.job_id)?;
        let task = new_task(request.task.ok_or_else(|| Error::Missing("task".to_owned()))?)?;
        let id = task.id.clone();
        let add = AddTasks {
            account: account.clone(),
            job: job.clone(),
            tasks: vec![Ok(task)],
            same_is_added: false,
            request: Request { method: "AddTask", id: request.request_id },
            encode: nothing,
            traceparent: current_traceparent().into(),
            now: Timestamp::now(),
        };
        let request_id_given = !add.request.id.is_empty();
        // A failed add must not be remembered as done, so it fails the call as
        // a whole when a request id is given; without one the same holds.
        let answered = self.write_tasks(add).await?;
        let Answered::New(added) = answered else {
            let (job, task) = self.store.task(&account, &job, &id).await?;
            return Ok(wire::AddTaskResponse { task: Some(convert::task(&job, &task)?) });
        };
        let result = added.results.into_iter().next().ok_or(Error::Unavailable("the task was not written"))?;
        match result.outcome {
            Ok(crate::store::AddedTask { new: Some(row), .. }) => {
                let spec = wire::TaskSpec::decode(row.spec.clone()).map_err(damaged)?;
                Ok(wire::AddTaskResponse { task: Some(fresh_task(job.as_str(), spec, &row)) })
            }
            Ok(_) => {
                let (job, task) = self.store.task(&account, &job, &id).await?;
                Ok(wire::AddTaskResponse { task: Some(convert::task(&job, &task)?) })
            }
            Err(error) => {
                tracing::debug!(%account, job.id = %job, task.id = %id, %error, request_id_given, "task refused");
                Err(error.into())
            }
        }
    }

    pub(super) async fn add_task_collection(
        &self,
        account: AccountName,
        request: wire::AddTaskCollectionRequest,
    ) -> Answer<wire::AddTaskCollectionResponse> {
        let job = job_id(&request.job_id)?;
        if request.tasks.len() > MAX_COLLECTION {
            return Err(Error::TooLarge { what: "tasks", size: request.tasks.len(), max: MAX_COLLECTION }.into());
        }
        let ids: Vec<String> = request.tasks.iter().map(|task| task.id.clone()).collect();
        let add = AddTasks {
            account,
            job,
            tasks: request.tasks.into_iter().map(new_task).collect(),
            same_is_added: false,
            request: Request { method: "AddTaskCollection", id: request.request_id },
            encode: encode_results,
            traceparent: current_traceparent().into(),
            now: Timestamp::now(),
        };
        let bytes = match self.write_tasks(add).await? {
            Answered::New(added) => encode_results(&added),
            Answered::Before(bytes) => bytes,
        };
        let mut response = wire::AddTaskCollectionResponse::decode(&bytes[..]).map_err(damaged)?;
        for (result, id) in response.results.iter_mut().zip(ids) {
            result.task_id = id;
        }
        Ok(response)
    }

    /// Messages are checked and written a few at a time; acknowledged in order.
    pub(super) fn stream_tasks(
        self,
        account: AccountName,
        messages: Streaming<wire::AddTasksRequest>,
    ) -> impl Stream<Item = Result<wire::AddTasksResponse, Status>> + Send + 'static {
        let traceparent: Arc<str> = current_traceparent().into();
        let named = messages.scan(String::new(), |job, message| {
            let message = message.map(|mut message| {
                if message.job_id.is_empty() {
                    message.job_id.clone_from(job);
                } else {
                    job.clone_from(&message.job_id);
                }
                message
            });
            std::future::ready(Some(message))
        });
        named
            .map(move |message| {
                let (api, account, traceparent) = (self.clone(), account.clone(), traceparent.clone());
                async move {
                    let message = message?;
                    let work = async move { api.add_message(account, message, traceparent).await };
                    finished(work).await.map_err(Status::from)
                }
            })
            .buffered(PIPELINE)
    }

    async fn add_message(
        &self,
        account: AccountName,
        message: wire::AddTasksRequest,
        traceparent: Arc<str>,
    ) -> Answer<wire::AddTasksResponse> {
        let job = job_id(&message.job_id)?;
        if message.tasks.len() > MAX_COLLECTION {
            return Err(Error::TooLarge { what: "tasks", size: message.tasks.len(), max: MAX_COLLECTION }.into());
        }
        let ids: Vec<String> = message.tasks.iter().map(|task| task.id.clone()).collect();
        let add = AddTasks {
            account,
            job,
            tasks: message.tasks.into_iter().map(new_task).collect(),
            same_is_added: true,
            request: Request::default(),
            encode: nothing,
            traceparent,
            now: Timestamp::now(),
        };
        let Answered::New(added) = self.write_tasks(add).await? else {
            return Err(kiln_error::Error::internal("a stream has no request id"));
        };
        let mut response = wire::AddTasksResponse { sequence: message.sequence, ..Default::default() };
        for (result, task_id) in added.results.into_iter().zip(ids) {
            match result.outcome {
                Ok(_) => response.added += 1,
                Err(error) => response.failed.push(wire::AddTaskResult {
                    task_id,
                    error: Some(convert::add_error(error)),
                    ..wire::AddTaskResult::default()
                }),
            }
        }
        Ok(response)
    }
}

/// The answer to an added task, without reading it again.
fn fresh_task(job_id: &str, spec: wire::TaskSpec, row: &TaskRow) -> wire::Task {
    let time = Some(kiln_proto::time::timestamp(row.created.as_micros()));
    wire::Task {
        job_id: job_id.to_owned(),
        spec: Some(spec),
        state: wire::TaskState::Active.into(),
        state_transition_time: time,
        etag: etag::of(row.last_modified),
        creation_time: time,
        last_modified: time,
        execution: Some(wire::TaskExecutionInfo::default()),
        ..wire::Task::default()
    }
}
