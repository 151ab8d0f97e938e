//! Between the wire and the rest: handlers check, call, convert.
//!
//! - [`jobs`], [`tasks`]: the two halves of `JobService`;
//! - [`schedules`]: all of `JobScheduleService`;
//! - [`owner`]: calls that the replica with the task's pool has to answer;
//! - [`work`]: the work stream of the agents;
//! - [`convert`]: records to messages; [`lists`]: filters and pages.

mod add_tasks;
pub mod convert;
mod explain;
mod jobs;
mod lists;
pub mod owner;
pub mod schedules;
mod tasks;
pub mod work;

use std::sync::Arc;

use futures::Stream;
use futures::stream::BoxStream;
use kiln_grpc::Caller;
use kiln_ids::{AccountName, JobId, TaskId};
use kiln_proto::job::v1 as wire;
use kiln_proto::job::v1::job_service_server::JobService;
use tonic::{Request, Response, Status, Streaming};

use self::owner::Peers;
use crate::domain::Error;
use crate::scheduler::registry::Registry;
use crate::store::{ScheduleStore, Store};

/// `JobService`.
#[derive(Debug, Clone)]
pub struct Api {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The schedules that create jobs.
    pub schedules: Arc<dyn ScheduleStore>,
    /// The schedulers.
    pub registry: Arc<Registry>,
    /// Other replicas.
    pub peers: Arc<Peers>,
}

/// What a handler refuses with.
type Answer<T> = Result<T, kiln_error::Error>;

fn account_of<T>(request: &Request<T>) -> Answer<AccountName> {
    let caller = Caller::of(request)?;
    let account = caller.service_account()?;
    Ok(AccountName::parse(account).map_err(|why| Error::bad_id("account", account, &why))?)
}

/// Runs a call to its end even if its caller goes away: between the commit and
/// the word to the scheduler it must not be given up, or nobody would know of
/// the change before the next start.
async fn finished<T: Send + 'static>(call: impl Future<Output = Answer<T>> + Send + 'static) -> Answer<T> {
    match kiln_telemetry::spawn(call).await {
        Ok(answer) => answer,
        Err(error) => Err(kiln_error::Error::internal(format!("the call failed unexpectedly: {error}"))),
    }
}

/// An id of something that is looked up: a text that is no id names nothing.
fn job_id(text: &str) -> Result<JobId, Error> {
    if text.is_empty() {
        return Err(Error::Missing("jobId".to_owned()));
    }
    JobId::parse(text).map_err(|_| Error::JobNotFound(text.to_owned()))
}

fn task_id(job: &JobId, text: &str) -> Result<TaskId, Error> {
    if text.is_empty() {
        return Err(Error::Missing("taskId".to_owned()));
    }
    TaskId::parse(text).map_err(|_| Error::TaskNotFound { job: job.as_str().to_owned(), task: text.to_owned() })
}

macro_rules! rpcs {
    (
        by_anyone { $($name:ident: $request:ident -> $response:ident;)* }
        by_the_owner { $($owned:ident: $owned_request:ident -> $owned_response:ident;)* }
    ) => {
        #[tonic::async_trait]
        impl JobService for Api {
            $(async fn $name(
                &self,
                request: Request<wire::$request>,
            ) -> Result<Response<wire::$response>, Status> {
                let account = account_of(&request)?;
                let (api, request) = (self.clone(), request.into_inner());
                let answer = finished(async move { api.$name(account, request).await }).await;
                Ok(Response::new(answer.map_err(Status::from)?))
            })*

            $(async fn $owned(
                &self,
                request: Request<wire::$owned_request>,
            ) -> Result<Response<wire::$owned_response>, Status> {
                let account = account_of(&request)?;
                let passed_on = owner::was_passed_on(&request);
                let (api, request) = (self.clone(), request.into_inner());
                let answer = finished(async move {
                    match api.owner_elsewhere(&account, &request.job_id, passed_on).await? {
                        Some(mut peer) => {
                            let answer = peer.$owned(owner::pass_on(request, &account)?).await;
                            answer.map(Response::into_inner).map_err(kiln_error::Error::from)
                        }
                        None => api.$owned(account, request).await,
                    }
                });
                Ok(Response::new(answer.await.map_err(Status::from)?))
            })*

            type AddTasksStream = BoxStream<'static, Result<wire::AddTasksResponse, Status>>;

            async fn add_tasks(
                &self,
                request: Request<Streaming<wire::AddTasksRequest>>,
            ) -> Result<Response<Self::AddTasksStream>, Status> {
                let account = account_of(&request)?;
                let answers = self.clone().stream_tasks(account, request.into_inner());
                Ok(Response::new(boxed(answers)))
            }
        }
    };
}

fn boxed<T>(stream: impl Stream<Item = Result<T, Status>> + Send + 'static) -> BoxStream<'static, Result<T, Status>> {
    Box::pin(stream)
}

rpcs! {
    by_anyone {
        create_job: CreateJobRequest -> CreateJobResponse;
        get_job: GetJobRequest -> GetJobResponse;
        list_jobs: ListJobsRequest -> ListJobsResponse;
        update_job: UpdateJobRequest -> UpdateJobResponse;
        disable_job: DisableJobRequest -> DisableJobResponse;
        enable_job: EnableJobRequest -> EnableJobResponse;
        terminate_job: TerminateJobRequest -> TerminateJobResponse;
        delete_job: DeleteJobRequest -> DeleteJobResponse;
        count_tasks: CountTasksRequest -> CountTasksResponse;
        add_task: AddTaskRequest -> AddTaskResponse;
        add_task_collection: AddTaskCollectionRequest -> AddTaskCollectionResponse;
        get_task: GetTaskRequest -> GetTaskResponse;
        list_tasks: ListTasksRequest -> ListTasksResponse;
        update_task: UpdateTaskRequest -> UpdateTaskResponse;
        reactivate_task: ReactivateTaskRequest -> ReactivateTaskResponse;
        list_attempts: ListAttemptsRequest -> ListAttemptsResponse;
        list_subtasks: ListSubtasksRequest -> ListSubtasksResponse;
        list_job_nodes: ListJobNodesRequest -> ListJobNodesResponse;
    }
    by_the_owner {
        terminate_task: TerminateTaskRequest -> TerminateTaskResponse;
        delete_task: DeleteTaskRequest -> DeleteTaskResponse;
        explain_task: ExplainTaskRequest -> ExplainTaskResponse;
    }
}
