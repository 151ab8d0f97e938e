//! Files of tasks over gRPC.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kiln_grpc::Caller;
use kiln_proto::gateway::v1::read_task_file_response::Part;
use kiln_proto::gateway::v1::task_file_service_server::TaskFileService;
use kiln_proto::gateway::v1::{
    DeleteTaskFileRequest, DeleteTaskFileResponse, GetTaskFileRequest, GetTaskFileResponse, ListTaskFilesRequest,
    ListTaskFilesResponse, ReadTaskFileRequest, ReadTaskFileResponse,
};
use kiln_proto::job::v1::TaskState;
use kiln_proto::pool::v1::ReadNodeFileResponse;
use kiln_proto::pool::v1::read_node_file_response::Part as NodePart;
use tonic::{Request, Response, Status};

use super::Services;
use crate::task_file::{Files, ListOptions, Location};

/// First and longest wait between two looks whether a followed task has begun.
const START_WAIT: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(80));

impl Services {
    fn files<T>(&self, request: &Request<T>) -> Result<Files, Status> {
        let caller = Caller::of(request)?;
        Ok(Files::new(self.backends.clone(), caller.service_account()?))
    }

    /// Waits until the task has a node; who follows a file may come first.
    async fn wait_for_start(&self, files: &Files, job_id: &str, task_id: &str) -> Result<Location, Status> {
        let mut wait = START_WAIT.0;
        loop {
            let (task, location) = files.find(job_id, task_id).await?;
            match location {
                Some(location) => return Ok(location),
                // Completed without a node: it never ran and never will.
                None if task.state() == TaskState::Completed => return Ok(files.locate(job_id, task_id).await?),
                None => {}
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(START_WAIT.1),
                () = self.shutdown.cancelled() => return Err(Status::unavailable("the gateway is shutting down")),
            }
        }
    }
}

#[tonic::async_trait]
impl TaskFileService for Services {
    async fn list_task_files(
        &self,
        request: Request<ListTaskFilesRequest>,
    ) -> Result<Response<ListTaskFilesResponse>, Status> {
        let files = self.files(&request)?;
        let message = request.into_inner();
        let location = files.locate(&message.job_id, &message.task_id).await?;
        let options = ListOptions {
            recursive: message.recursive,
            name_prefix: message.name_prefix,
            page_size: message.page_size,
            page_token: message.page_token,
        };
        let (files, next_page_token) = files.list(&location, options).await?;
        Ok(Response::new(ListTaskFilesResponse { files, next_page_token }))
    }

    async fn get_task_file(
        &self,
        request: Request<GetTaskFileRequest>,
    ) -> Result<Response<GetTaskFileResponse>, Status> {
        let files = self.files(&request)?;
        let message = request.into_inner();
        let location = files.locate(&message.job_id, &message.task_id).await?;
        let file = files.get(&location, &message.path).await?;
        Ok(Response::new(GetTaskFileResponse { file: Some(file) }))
    }

    type ReadTaskFileStream = Pin<Box<dyn Stream<Item = Result<ReadTaskFileResponse, Status>> + Send>>;

    async fn read_task_file(
        &self,
        request: Request<ReadTaskFileRequest>,
    ) -> Result<Response<Self::ReadTaskFileStream>, Status> {
        let files = self.files(&request)?;
        let message = request.into_inner();
        let location = if message.follow {
            self.wait_for_start(&files, &message.job_id, &message.task_id).await?
        } else {
            files.locate(&message.job_id, &message.task_id).await?
        };
        let stream = files.read(&location, &message.path, message.range, message.follow).await?;
        Ok(Response::new(Box::pin(stream.map(|part| part.map(relay)))))
    }

    async fn delete_task_file(
        &self,
        request: Request<DeleteTaskFileRequest>,
    ) -> Result<Response<DeleteTaskFileResponse>, Status> {
        let files = self.files(&request)?;
        let message = request.into_inner();
        let location = files.locate(&message.job_id, &message.task_id).await?;
        files.delete(&location, &message.path, message.recursive, message.request_id).await?;
        Ok(Response::new(DeleteTaskFileResponse {}))
    }
}

fn relay(message: ReadNodeFileResponse) -> ReadTaskFileResponse {
    let part = message.part.map(|part| match part {
        NodePart::File(file) => Part::File(file),
        NodePart::Data(data) => Part::Data(data),
    });
    ReadTaskFileResponse { part }
}
