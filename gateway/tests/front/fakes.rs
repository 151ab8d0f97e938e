//! pool-svc and job-svc with just enough behaviour to see what the gateway
//! sends and what it makes of the answers. They check service tokens as the
//! real ones do.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures::{Stream, StreamExt};
use kiln_error::{Error, Kind};
use kiln_grpc::Caller;
use kiln_proto::common::v1::FileEntry;
use kiln_proto::job::v1::job_service_server::JobService;
use kiln_proto::job::v1::*;
use kiln_proto::pool::v1::pool_service_server::PoolService;
use kiln_proto::pool::v1::*;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

pub const CONTENT: &[u8] = b"hello\nworld\n";

/// What both fakes saw and hold.
#[derive(Debug, Default)]
pub struct State {
    pub pools: Mutex<BTreeMap<String, Pool>>,
    pub jobs: Mutex<BTreeMap<String, Job>>,
    pub tasks: Mutex<BTreeMap<String, TaskSpec>>,
    pub schedules: Mutex<BTreeMap<String, JobSchedule>>,
    /// Accounts that calls were made for.
    pub accounts: Mutex<Vec<String>>,
    /// The latest update of a pool and of a job.
    pub pool_update: Mutex<Option<UpdatePoolRequest>>,
    pub job_update: Mutex<Option<UpdateJobRequest>>,
    pub schedule_update: Mutex<Option<UpdateJobScheduleRequest>>,
    /// What preparations and releases a job has.
    pub job_nodes: Mutex<Vec<JobNodeStatus>>,
    pub subtasks: Mutex<Vec<Subtask>>,
    /// Set when a followed file's stream was dropped by its reader.
    pub hung_up: CancellationToken,
}

#[derive(Debug, Clone)]
pub struct Fakes(pub Arc<State>);

impl Fakes {
    pub fn see<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let caller = Caller::of(request)?;
        self.0.accounts.lock().unwrap().push(caller.service_account()?.to_owned());
        Ok(())
    }
}

pub fn not_found(reason: &'static str, id: &str) -> Status {
    Error::new(Kind::NotFound, reason, format!("{id} does not exist")).with_detail("Id", id).into()
}

fn file() -> FileEntry {
    FileEntry {
        name: "stdout.txt".into(),
        is_directory: false,
        content_length: CONTENT.len() as u64,
        last_modified: Some(kiln_proto::time::timestamp(1_769_860_800_000_000)),
        mode: 0o100_644,
        content_type: "text/plain".into(),
    }
}

struct HangUp(CancellationToken);

impl Drop for HangUp {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// The methods given, and a refusal for the rest.
macro_rules! service {
    ($service:path { $($given:tt)* } $($name:ident($request:ident) -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl $service for Fakes {
            $($given)*
            $(async fn $name(&self, _: Request<$request>) -> Result<Response<$response>, Status> {
                Err(Status::unimplemented(stringify!($name)))
            })*
        }
    };
}

service!(PoolService {
    async fn create_pool(&self, request: Request<CreatePoolRequest>) -> Result<Response<CreatePoolResponse>, Status> {
        self.see(&request)?;
        let message = request.into_inner();
        let mut pools = self.0.pools.lock().unwrap();
        if pools.contains_key(&message.id) {
            return Err(Error::new(Kind::AlreadyExists, "PoolExists", "it exists").into());
        }
        let pool = Pool { id: message.id.clone(), spec: message.spec, etag: "0x8D1".into(),
            last_modified: Some(kiln_proto::time::timestamp(1_769_860_800_000_000)),
            state: PoolState::Active.into(), allocation_state: AllocationState::Resizing.into(), ..Pool::default() };
        pools.insert(message.id, pool.clone());
        Ok(Response::new(CreatePoolResponse { pool: Some(pool) }))
    }

    async fn get_pool(&self, request: Request<GetPoolRequest>) -> Result<Response<GetPoolResponse>, Status> {
        self.see(&request)?;
        let message = request.into_inner();
        let pool = self.0.pools.lock().unwrap().get(&message.id).cloned();
        let pool = pool.ok_or_else(|| not_found("PoolNotFound", &message.id))?;
        if message.precondition.is_some_and(|condition| condition.if_none_match == pool.etag) {
            return Err(Error::new(Kind::ConditionNotMet, "ConditionNotMet", "").into());
        }
        Ok(Response::new(GetPoolResponse { pool: Some(pool) }))
    }

    /// Two pools a page, for as many as there are.
    async fn list_pools(&self, request: Request<ListPoolsRequest>) -> Result<Response<ListPoolsResponse>, Status> {
        self.see(&request)?;
        let message = request.into_inner();
        if message.filter.contains("bad") {
            return Err(Error::new(Kind::InvalidArgument, "InvalidQueryParameterValue", "no such filter").into());
        }
        let after = kiln_grpc::page::last_key(&message.page_token)?.unwrap_or_default();
        let all = self.0.pools.lock().unwrap();
        let rest: Vec<Pool> = all.values().filter(|pool| pool.id > after).cloned().collect();
        let size = usize::try_from(message.page_size).unwrap().min(2);
        let pools: Vec<Pool> = rest.iter().take(size).cloned().collect();
        let next_page_token = match pools.last() {
            Some(last) if rest.len() > size => kiln_grpc::page::token(&last.id),
            _ => String::new(),
        };
        Ok(Response::new(ListPoolsResponse { pools, next_page_token }))
    }

    async fn update_pool(&self, request: Request<UpdatePoolRequest>) -> Result<Response<UpdatePoolResponse>, Status> {
        let message = request.into_inner();
        if message.precondition.as_ref().is_some_and(|condition| condition.if_match == "0xOLD") {
            return Err(Error::new(Kind::ConditionNotMet, "ConditionNotMet", "").into());
        }
        let pool = self.0.pools.lock().unwrap().get(&message.id).cloned();
        *self.0.pool_update.lock().unwrap() = Some(message);
        Ok(Response::new(UpdatePoolResponse { pool }))
    }

    async fn count_nodes(&self, _: Request<CountNodesRequest>) -> Result<Response<CountNodesResponse>, Status> {
        let counts = NodeCounts { by_state: [("idle".to_owned(), 2)].into(), total: 2 };
        let pools = vec![PoolNodeCounts { pool_id: "p".into(), dedicated: Some(counts), low_priority: None }];
        Ok(Response::new(CountNodesResponse { pools, next_page_token: String::new() }))
    }

    async fn delete_pool(&self, request: Request<DeletePoolRequest>) -> Result<Response<DeletePoolResponse>, Status> {
        self.0.pools.lock().unwrap().remove(&request.into_inner().id);
        Ok(Response::new(DeletePoolResponse {}))
    }

    async fn list_node_files(
        &self,
        request: Request<ListNodeFilesRequest>,
    ) -> Result<Response<ListNodeFilesResponse>, Status> {
        let message = request.into_inner();
        assert_eq!(message.directory, "workitems/j1/job-1/t1");
        let directory = FileEntry { name: "wd".into(), is_directory: true, ..FileEntry::default() };
        Ok(Response::new(ListNodeFilesResponse { files: vec![file(), directory], next_page_token: String::new() }))
    }

    async fn get_node_file(
        &self,
        request: Request<GetNodeFileRequest>,
    ) -> Result<Response<GetNodeFileResponse>, Status> {
        let message = request.into_inner();
        if message.path != "workitems/j1/job-1/t1/stdout.txt" {
            return Err(not_found("FileNotFound", &message.path));
        }
        Ok(Response::new(GetNodeFileResponse { file: Some(file()) }))
    }

    type ReadNodeFileStream = Pin<Box<dyn Stream<Item = Result<ReadNodeFileResponse, Status>> + Send>>;

    async fn read_node_file(
        &self,
        request: Request<ReadNodeFileRequest>,
    ) -> Result<Response<Self::ReadNodeFileStream>, Status> {
        use read_node_file_response::Part;
        self.see(&request)?;
        let message = request.into_inner();
        if !message.path.ends_with("stdout.txt") {
            return Err(not_found("FileNotFound", &message.path));
        }
        let part = |part| Ok(ReadNodeFileResponse { part: Some(part) });
        let head = futures::stream::iter([part(Part::File(file()))]);
        if message.follow {
            let hang_up = HangUp(self.0.hung_up.clone());
            let piece: bytes::Bytes = vec![b'x'; if message.path.starts_with("tiny") { 1 } else { 1024 }].into();
            let endless = futures::stream::unfold((hang_up, piece), |(hang_up, piece)| async move {
                tokio::task::yield_now().await;
                Some((Ok(ReadNodeFileResponse { part: Some(Part::Data(piece.clone())) }), (hang_up, piece)))
            });
            return Ok(Response::new(Box::pin(head.chain(endless))));
        }
        let start = message.range.map_or(0, |range| range.start as usize);
        if start >= CONTENT.len() {
            return Err(Error::new(Kind::OutOfRange, "InvalidRange", "behind the end").into());
        }
        let end = message.range.and_then(|range| range.end).map_or(CONTENT.len(), |end| (end as usize + 1).min(CONTENT.len()));
        // In small pieces, and with more behind it, as if the file had grown.
        let mut parts: Vec<_> = CONTENT[start..end].chunks(3).map(|piece| part(Part::Data(piece.to_vec().into()))).collect();
        parts.push(part(Part::Data("grown".into())));
        Ok(Response::new(Box::pin(head.chain(futures::stream::iter(parts)))))
    }
}
    resize_pool(ResizePoolRequest) -> ResizePoolResponse;
    stop_resize(StopResizeRequest) -> StopResizeResponse;
    get_node(GetNodeRequest) -> GetNodeResponse;
    list_nodes(ListNodesRequest) -> ListNodesResponse;
    create_join_token(CreateJoinTokenRequest) -> CreateJoinTokenResponse;
    remove_nodes(RemoveNodesRequest) -> RemoveNodesResponse;
    reboot_node(RebootNodeRequest) -> RebootNodeResponse;
    disable_node_scheduling(DisableNodeSchedulingRequest) -> DisableNodeSchedulingResponse;
    enable_node_scheduling(EnableNodeSchedulingRequest) -> EnableNodeSchedulingResponse;
    delete_node_file(DeleteNodeFileRequest) -> DeleteNodeFileResponse;
);

service!(JobService {
    async fn create_job(&self, request: Request<CreateJobRequest>) -> Result<Response<CreateJobResponse>, Status> {
        self.see(&request)?;
        let message = request.into_inner();
        let mut jobs = self.0.jobs.lock().unwrap();
        if jobs.contains_key(&message.id) {
            return Err(Error::new(Kind::AlreadyExists, "JobExists", "it exists").into());
        }
        let job = Job { id: message.id.clone(), spec: message.spec, etag: "0x8D2".into(),
            state: JobState::Active.into(), ..Job::default() };
        jobs.insert(message.id, job.clone());
        Ok(Response::new(CreateJobResponse { job: Some(job) }))
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        let id = request.into_inner().id;
        let job = self.0.jobs.lock().unwrap().get(&id).cloned();
        Ok(Response::new(GetJobResponse { job: Some(job.ok_or_else(|| not_found("JobNotFound", &id))?) }))
    }

    /// A job that is to end with its tasks is over at once.
    async fn update_job(&self, request: Request<UpdateJobRequest>) -> Result<Response<UpdateJobResponse>, Status> {
        let message = request.into_inner();
        let mut jobs = self.0.jobs.lock().unwrap();
        let job = jobs.get_mut(&message.id).ok_or_else(|| not_found("JobNotFound", &message.id))?;
        if message.on_all_tasks_complete() == OnAllTasksComplete::TerminateJob {
            job.set_state(JobState::Completed);
            job.terminate_reason = "AllTasksComplete".into();
        }
        let job = job.clone();
        *self.0.job_update.lock().unwrap() = Some(message);
        Ok(Response::new(UpdateJobResponse { job: Some(job) }))
    }

    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        self.see(&request)?;
        let of = request.into_inner().job_schedule_id;
        let jobs = self.0.jobs.lock().unwrap();
        let jobs = jobs.values().filter(|job| of.is_empty() || job.job_schedule_id == of).cloned().collect();
        Ok(Response::new(ListJobsResponse { jobs, next_page_token: String::new() }))
    }

    async fn list_job_nodes(
        &self,
        request: Request<ListJobNodesRequest>,
    ) -> Result<Response<ListJobNodesResponse>, Status> {
        self.see(&request)?;
        let nodes = self.0.job_nodes.lock().unwrap().clone();
        Ok(Response::new(ListJobNodesResponse { nodes, next_page_token: String::new() }))
    }

    async fn list_subtasks(
        &self,
        request: Request<ListSubtasksRequest>,
    ) -> Result<Response<ListSubtasksResponse>, Status> {
        self.see(&request)?;
        let subtasks = self.0.subtasks.lock().unwrap().clone();
        Ok(Response::new(ListSubtasksResponse { subtasks }))
    }

    async fn terminate_job(
        &self,
        request: Request<TerminateJobRequest>,
    ) -> Result<Response<TerminateJobResponse>, Status> {
        let message = request.into_inner();
        let mut jobs = self.0.jobs.lock().unwrap();
        let job = jobs.get_mut(&message.id).ok_or_else(|| not_found("JobNotFound", &message.id))?;
        job.terminate_reason = message.reason;
        Ok(Response::new(TerminateJobResponse { job: Some(job.clone()) }))
    }

    async fn count_tasks(&self, _: Request<CountTasksRequest>) -> Result<Response<CountTasksResponse>, Status> {
        let count = self.0.tasks.lock().unwrap().len() as i64;
        let counts = TaskCounts { completed: count, succeeded: count, ..TaskCounts::default() };
        Ok(Response::new(CountTasksResponse { tasks: Some(counts), slots: Some(counts) }))
    }

    async fn add_task_collection(
        &self,
        request: Request<AddTaskCollectionRequest>,
    ) -> Result<Response<AddTaskCollectionResponse>, Status> {
        let message = request.into_inner();
        let mut tasks = self.0.tasks.lock().unwrap();
        let results = message.tasks.into_iter().map(|task| {
            let mut result = AddTaskResult { task_id: task.id.clone(), etag: "0x8D3".into(), ..AddTaskResult::default() };
            if task.id == "busy" || tasks.contains_key(&task.id) {
                let retryable = task.id == "busy";
                let reason = if retryable { "ServerBusy" } else { "TaskExists" };
                result.error = Some(AddTaskError { reason: reason.into(), retryable, ..AddTaskError::default() });
            } else {
                tasks.insert(task.id.clone(), task);
            }
            result
        });
        Ok(Response::new(AddTaskCollectionResponse { results: results.collect() }))
    }

    type AddTasksStream = Pin<Box<dyn Stream<Item = Result<AddTasksResponse, Status>> + Send>>;

    /// Answers each message before it reads the next.
    async fn add_tasks(
        &self,
        request: Request<Streaming<AddTasksRequest>>,
    ) -> Result<Response<Self::AddTasksStream>, Status> {
        self.see(&request)?;
        let state = self.0.clone();
        let answers = request.into_inner().map(move |message| {
            let message = message?;
            if let Some(bad) = message.tasks.iter().find(|task| task.command_line.is_empty()) {
                let error = AddTaskError { reason: "MissingRequiredProperty".into(), ..AddTaskError::default() };
                let failed = vec![AddTaskResult { task_id: bad.id.clone(), error: Some(error), ..AddTaskResult::default() }];
                return Ok(AddTasksResponse { sequence: message.sequence, added: 0, failed });
            }
            let added = message.tasks.len() as i32;
            state.tasks.lock().unwrap().extend(message.tasks.into_iter().map(|task| (task.id.clone(), task)));
            Ok(AddTasksResponse { sequence: message.sequence, added, failed: Vec::new() })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    /// `t1` ran on a node, `new` has not.
    async fn get_task(&self, request: Request<GetTaskRequest>) -> Result<Response<GetTaskResponse>, Status> {
        self.see(&request)?;
        let message = request.into_inner();
        let node = match message.task_id.as_str() {
            "t1" => Some(TaskNodeInfo { pool_id: "p".into(), node_id: "n1".into(),
                task_root_directory: "workitems/j1/job-1/t1".into() }),
            "new" => None,
            other => return Err(not_found("TaskNotFound", other)),
        };
        let spec = TaskSpec { id: message.task_id, ..TaskSpec::default() };
        let task = Task { job_id: message.job_id, spec: Some(spec), state: TaskState::Running.into(), node, ..Task::default() };
        Ok(Response::new(GetTaskResponse { task: Some(task) }))
    }
}
    disable_job(DisableJobRequest) -> DisableJobResponse;
    enable_job(EnableJobRequest) -> EnableJobResponse;
    delete_job(DeleteJobRequest) -> DeleteJobResponse;
    add_task(AddTaskRequest) -> AddTaskResponse;
    list_tasks(ListTasksRequest) -> ListTasksResponse;
    update_task(UpdateTaskRequest) -> UpdateTaskResponse;
    terminate_task(TerminateTaskRequest) -> TerminateTaskResponse;
    delete_task(DeleteTaskRequest) -> DeleteTaskResponse;
    reactivate_task(ReactivateTaskRequest) -> ReactivateTaskResponse;
    list_attempts(ListAttemptsRequest) -> ListAttemptsResponse;
    explain_task(ExplainTaskRequest) -> ExplainTaskResponse;
);
