//! The whole workflow in one call.
//!
//! ```text
//! pool (made if absent) -> job -> tasks in acknowledged batches
//!   -> the job ends itself when its tasks have -> counts until then -> finished
//! ```
//!
//! The work runs apart from the call: when the caller hangs up, tasks are still
//! added and a pool made for this call is still deleted. Request ids of the
//! steps are made of the caller's, and tasks that exist already with the same
//! specification count as added, so a repeated call goes on where the first
//! one stopped.

use std::time::Duration;

use futures::StreamExt;
use kiln_error::{Error, Kind};
use kiln_grpc::{ServiceChannel, with_account};
use kiln_proto::gateway::v1::run_response::Progress;
use kiln_proto::gateway::v1::workflow_service_server::WorkflowService;
use kiln_proto::gateway::v1::{PoolReady, RunFinished, RunRequest, RunResponse, TasksAdded};
use kiln_proto::job::v1::job_service_client::JobServiceClient;
use kiln_proto::job::v1::{
    AddTasksRequest, CountTasksRequest, CreateJobRequest, GetJobRequest, Job, JobState, OnAllTasksComplete, TaskCounts,
    TaskSpec, TerminateJobRequest, UpdateJobRequest,
};
use kiln_proto::monitor::v1::WatchJobRequest;
use kiln_proto::pool::v1::{
    AllocationState, CountNodesRequest, CreatePoolRequest, DeletePoolRequest, GetPoolRequest, NodeCounts,
};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Services;

/// Tasks of one message; several messages may be under way.
const BATCH: usize = 500;
/// Messages under way and progress that waits for a slow caller.
const QUEUE: usize = 16;
/// Counts are asked for at most this often...
const SHORTEST_LOOK: Duration = Duration::from_millis(20);
/// ...and at least this often, should no event come.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

type Sender = mpsc::Sender<Result<RunResponse, Status>>;

#[tonic::async_trait]
impl WorkflowService for Services {
    type RunStream = ReceiverStream<Result<RunResponse, Status>>;

    async fn run(&self, request: Request<RunRequest>) -> Result<Response<Self::RunStream>, Status> {
        let account = self.account(&request).await?;
        let message = request.into_inner();
        for (field, value) in [("pool_id", &message.pool_id), ("job_id", &message.job_id)] {
            if value.is_empty() {
                return Err(Error::missing_property(field).into());
            }
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        let place = self.runs.enter(&account)?;
        let run = Run { services: self.clone(), account: account.name.as_str().to_owned(), begun: Instant::now() };
        kiln_telemetry::spawn(async move {
            // Nobody waits for this task: the gateway's end ends it, and a
            // repeated call goes on.
            let _place = place;
            let shutdown = run.services.shutdown.clone();
            tokio::select! {
                () = Box::pin(run.work(message, sender)) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

struct Run {
    services: Services,
    account: String,
    begun: Instant,
}

impl Run {
    async fn work(&self, request: RunRequest, progress: Sender) {
        let pool_id = request.pool_id.clone();
        let delete_pool = request.delete_pool;
        let request_id = request.request_id.clone();
        let mut made_pool = false;
        let outcome = Box::pin(self.steps(request, &progress, &mut made_pool)).await;
        if delete_pool && made_pool {
            let message = DeletePoolRequest {
                request_id: sub_request(&request_id, "delete-pool"),
                id: pool_id,
                precondition: None,
            };
            if let Err(error) = self.delete_pool(message).await {
                tracing::warn!(account = %self.account, %error, "the pool of a workflow could not be deleted");
            }
        }
        // The caller may have hung up; then nobody is to be told.
        let last = match outcome {
            Ok(finished) => Ok(RunResponse { progress: Some(Progress::Finished(finished)) }),
            Err(error) => Err(error.into()),
        };
        let _ = progress.send(last).await;
    }

    async fn steps(
        &self,
        mut request: RunRequest,
        progress: &Sender,
        made_pool: &mut bool,
    ) -> Result<RunFinished, Error> {
        *made_pool = self.ensure_pool(&mut request).await?;
        let ends_itself = Box::pin(self.create_job(&mut request)).await?;
        // A job that has ended already is that of an earlier call with this request
        // id: nothing is left to do, and its pool may be gone.
        let job = self.job(&request.job_id).await?;
        if job.state() == JobState::Completed {
            let counts = self.counts(&request.job_id).await?;
            return Ok(self.finished(job, counts));
        }
        let tasks = std::mem::take(&mut request.tasks);
        let job_id = request.job_id.clone();
        let added = self.add_tasks(&job_id, tasks, progress).await;
        if let Err(error) = added {
            self.give_up(&request, &error).await;
            return Err(error);
        }
        if ends_itself {
            self.end_with_tasks(&request).await?;
        }
        self.wait(&request, ends_itself, progress).await
    }

    fn jobs(&self) -> JobServiceClient<ServiceChannel> {
        self.services.backends.jobs()
    }

    /// Makes the pool if the request has one and it does not exist; tells
    /// whether this call (or an earlier one with its request id) made it.
    async fn ensure_pool(&self, request: &mut RunRequest) -> Result<bool, Error> {
        let mut pools = self.services.backends.pools();
        let Some(spec) = request.pool.take() else {
            let message = GetPoolRequest { id: request.pool_id.clone(), precondition: None };
            pools.get_pool(with_account(message, &self.account)?).await?;
            return Ok(false);
        };
        let message = CreatePoolRequest {
            request_id: sub_request(&request.request_id, "pool"),
            id: request.pool_id.clone(),
            spec: Some(spec),
        };
        match pools.create_pool(with_account(message, &self.account)?).await.map_err(Error::from) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == Kind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes the job so that it does not end before all tasks are there; tells
    /// whether it is to end with its tasks (unless the caller said otherwise).
    async fn create_job(&self, request: &mut RunRequest) -> Result<bool, Error> {
        let mut spec = request.job.take().unwrap_or_default();
        spec.pool_id.clone_from(&request.pool_id);
        let ends_itself = spec.on_all_tasks_complete() != OnAllTasksComplete::NoAction;
        spec.set_on_all_tasks_complete(OnAllTasksComplete::NoAction);
        let message = CreateJobRequest {
            request_id: sub_request(&request.request_id, "job"),
            id: request.job_id.clone(),
            spec: Some(spec),
        };
        Box::pin(self.jobs().create_job(with_account(message, &self.account)?)).await?;
        Ok(ends_itself)
    }

    async fn add_tasks(&self, job_id: &str, tasks: Vec<TaskSpec>, progress: &Sender) -> Result<(), Error> {
        if tasks.is_empty() {
            return Ok(());
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        let name = job_id.to_owned();
        kiln_telemetry::spawn(async move {
            let mut tasks = tasks.into_iter();
            for sequence in 1.. {
                let batch: Vec<TaskSpec> = tasks.by_ref().take(BATCH).collect();
                let message = AddTasksRequest { job_id: name.clone(), sequence, tasks: batch };
                if message.tasks.is_empty() || sender.send(message).await.is_err() {
                    return;
                }
            }
        });
        let request = with_account(ReceiverStream::new(receiver), &self.account)?;
        let mut answers = self.jobs().add_tasks(request).await?.into_inner();
        let mut count = 0;
        while let Some(answer) = answers.next().await {
            let answer = answer?;
            if let Some(failed) = answer.failed.into_iter().next() {
                let refused = failed.error.unwrap_or_default();
                let mut error = Error::new(Kind::InvalidArgument, refused.reason, refused.message)
                    .with_detail("TaskId", failed.task_id);
                for detail in refused.details {
                    error = error.with_detail(detail.name, detail.value);
                }
                return Err(error);
            }
            count += answer.added;
            tell(progress, Progress::TasksAdded(TasksAdded { count }));
        }
        Ok(())
    }

    /// A job with half of its tasks is of no use: it ends, and says why.
    async fn give_up(&self, request: &RunRequest, cause: &Error) {
        let message = TerminateJobRequest {
            request_id: sub_request(&request.request_id, "give-up"),
            id: request.job_id.clone(),
            reason: format!("TasksRefused: {}", cause.reason()),
            precondition: None,
        };
        let ended = async { Ok::<_, Error>(self.jobs().terminate_job(with_account(message, &self.account)?).await?) };
        if let Err(error) = ended.await {
            tracing::warn!(account = %self.account, job.id = request.job_id, %error,
                "a job whose tasks were refused could not be terminated");
        }
    }

    async fn end_with_tasks(&self, request: &RunRequest) -> Result<(), Error> {
        let message = UpdateJobRequest {
            request_id: sub_request(&request.request_id, "end"),
            id: request.job_id.clone(),
            on_all_tasks_complete: OnAllTasksComplete::TerminateJob.into(),
            ..UpdateJobRequest::default()
        };
        self.jobs().update_job(with_account(message, &self.account)?).await?;
        Ok(())
    }

    /// Sends counts as they change until the job has ended.
    async fn wait(&self, request: &RunRequest, ends_itself: bool, progress: &Sender) -> Result<RunFinished, Error> {
        let news = std::sync::Arc::new(Notify::new());
        let watch = self.watch(request.job_id.clone(), news.clone());
        let watcher = kiln_telemetry::spawn(watch);
        let _stop = AbortOnDrop(watcher);
        let mut pool_ready = false;
        let mut last = None;
        loop {
            if !pool_ready {
                pool_ready = self.report_pool(request, progress).await?;
            }
            // The state first: counts asked for afterwards are the final ones.
            let job = self.job(&request.job_id).await?;
            let counts = self.counts(&request.job_id).await?;
            let over = match job.state() {
                JobState::Completed => true,
                _ => !ends_itself && counts.active + counts.running == 0,
            };
            if over {
                return Ok(self.finished(job, counts));
            }
            if last != Some(counts) {
                tell(progress, Progress::Counts(counts));
                last = Some(counts);
            }
            if progress.is_closed() && !request.delete_pool {
                // Nobody listens and nothing is left to do.
                return Err(Error::new(Kind::Cancelled, "OperationTimedOut", "the caller hung up"));
            }
            tokio::time::sleep(SHORTEST_LOOK).await;
            tokio::select! {
                () = news.notified() => {}
                () = tokio::time::sleep(LONGEST_LOOK) => {}
                () = progress.closed(), if !request.delete_pool => {}
            }
        }
    }

    fn finished(&self, job: Job, counts: TaskCounts) -> RunFinished {
        let elapsed = kiln_proto::time::duration(self.begun.elapsed());
        RunFinished { counts: Some(counts), terminate_reason: job.terminate_reason, elapsed: Some(elapsed) }
    }

    /// Tells about the first nodes that can work; fails when the pool settled
    /// without any.
    async fn report_pool(&self, request: &RunRequest, progress: &Sender) -> Result<bool, Error> {
        let mut pools = self.services.backends.pools();
        let message = CountNodesRequest { pool_id: request.pool_id.clone(), page_size: 1, page_token: String::new() };
        let answer = pools.count_nodes(with_account(message, &self.account)?).await?.into_inner();
        let ready: i32 =
            answer.pools.iter().flat_map(|pool| [&pool.dedicated, &pool.low_priority]).flatten().map(ready).sum();
        if ready > 0 {
            let event = PoolReady { pool_id: request.pool_id.clone(), idle_nodes: ready };
            tell(progress, Progress::PoolReady(event));
            return Ok(true);
        }
        let message = GetPoolRequest { id: request.pool_id.clone(), precondition: None };
        let pool = pools.get_pool(with_account(message, &self.account)?).await?.into_inner().pool.unwrap_or_default();
        let nodes = pool.current_dedicated_nodes + pool.current_low_priority_nodes;
        if pool.allocation_state() == AllocationState::Steady
            && nodes == 0
            && let Some(error) = pool.resize_errors.into_iter().next()
        {
            let message = format!("pool {} has no nodes: {}", request.pool_id, error.message);
            return Err(Error::new(Kind::FailedPrecondition, error.code, message));
        }
        Ok(false)
    }

    async fn job(&self, id: &str) -> Result<Job, Error> {
        let message = GetJobRequest { id: id.to_owned(), precondition: None };
        let answer = self.jobs().get_job(with_account(message, &self.account)?).await?.into_inner();
        answer.job.ok_or_else(|| Error::internal("job-svc answered without a job"))
    }

    async fn counts(&self, id: &str) -> Result<TaskCounts, Error> {
        let message = CountTasksRequest { job_id: id.to_owned() };
        let answer = self.jobs().count_tasks(with_account(message, &self.account)?).await?.into_inner();
        Ok(answer.tasks.unwrap_or_default())
    }

    async fn delete_pool(&self, message: DeletePoolRequest) -> Result<(), Error> {
        self.services.backends.pools().delete_pool(with_account(message, &self.account)?).await?;
        Ok(())
    }

    /// Wakes the waiting loop at every event of the job. Without monitor-svc
    /// the loop looks by the clock.
    fn watch(&self, job_id: String, news: std::sync::Arc<Notify>) -> impl Future<Output = ()> + use<> {
        let mut monitor = self.services.backends.monitor();
        let account = self.account.clone();
        async move {
            let message = WatchJobRequest { job_id, cursor: String::new(), until_completed: true };
            let Ok(request) = with_account(message, &account) else { return };
            match monitor.watch_job(request).await {
                Ok(stream) => {
                    let mut stream = stream.into_inner();
                    while let Some(Ok(_)) = stream.next().await {
                        news.notify_one();
                    }
                    news.notify_one();
                }
                Err(status) => tracing::debug!(%status, "events cannot be watched; counts are asked for instead"),
            }
        }
    }
}

/// Stops a spawned watch when its reader has gone.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn ready(counts: &NodeCounts) -> i32 {
    ["idle", "running"].iter().filter_map(|state| counts.by_state.get(*state)).sum()
}

/// Request id of one step; none if the caller gave none.
fn sub_request(request_id: &str, step: &str) -> String {
    if request_id.is_empty() { String::new() } else { format!("{request_id}/{step}") }
}

/// Tells the caller, unless it has gone or is too slow to read: the work never
/// waits for it, and the next count says all that a lost one did.
fn tell(progress: &Sender, event: Progress) {
    let _ = progress.try_send(Ok(RunResponse { progress: Some(event) }));
}
