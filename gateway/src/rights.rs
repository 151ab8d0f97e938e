//! What the token of a task opens: the operations of its own job, and nothing
//! else of the account.
//!
//! Of REST these are the paths below `/jobs/<its job>`
//! ([`Operation::of_one_job`]); of gRPC the calls whose message names the job
//! ([`GrpcMethod::of`]). What is in neither table is closed.

use kiln_error::{Error, Kind};
use kiln_proto::gateway::v1::{DeleteTaskFileRequest, GetTaskFileRequest, ListTaskFilesRequest, ReadTaskFileRequest};
use kiln_proto::job::v1::{
    AddTaskCollectionRequest, AddTaskRequest, AddTasksRequest, CountTasksRequest, DeleteJobRequest, DeleteTaskRequest,
    DisableJobRequest, EnableJobRequest, ExplainTaskRequest, GetJobRequest, GetTaskRequest, ListAttemptsRequest,
    ListJobNodesRequest, ListSubtasksRequest, ListTasksRequest, ReactivateTaskRequest, TerminateJobRequest,
    TerminateTaskRequest, UpdateJobRequest, UpdateTaskRequest,
};
use prost::{DecodeError, Message};

use crate::rest::router::Operation;

/// The job that a token is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobScope {
    /// Its id; compared without case, as ids of jobs are.
    pub job: String,
    /// When that job was created: a later job of the same id is another one.
    pub created_micros: i64,
}

impl JobScope {
    /// Whether the token opens an operation of REST; `job` is the first
    /// variable segment of its path.
    ///
    /// # Errors
    /// `InsufficientAccountPermissions` if it does not.
    pub fn check_operation(&self, operation: Operation, job: Option<&str>) -> Result<(), Error> {
        match job {
            Some(job) if operation.of_one_job() => self.check_job(job),
            _ => Err(self.denied()),
        }
    }

    /// Whether the token opens operations of that job, as far as its id tells.
    ///
    /// # Errors
    /// `InsufficientAccountPermissions` if it does not.
    pub fn check_job(&self, job: &str) -> Result<(), Error> {
        if job.eq_ignore_ascii_case(&self.job) { Ok(()) } else { Err(self.denied()) }
    }

    /// Whether the job of that id is the one the token was made for.
    ///
    /// # Errors
    /// `AuthenticationFailed` if it is a later one.
    pub fn check_creation(&self, created_micros: i64) -> Result<(), Error> {
        if created_micros == self.created_micros {
            return Ok(());
        }
        let message = format!("this token is of an earlier job {}, which does not exist any more", self.job);
        Err(Error::new(Kind::Unauthenticated, "AuthenticationFailed", message))
    }

    /// The refusal of everything else.
    pub fn denied(&self) -> Error {
        let message = format!(
            "this is the token of a task, for operations of its own job ({}) and of that job's tasks only",
            self.job
        );
        Error::new(Kind::PermissionDenied, "InsufficientAccountPermissions", message)
    }
}

/// A call of gRPC that is about one job.
#[derive(Debug, Clone, Copy)]
pub struct GrpcMethod {
    /// The id in a message.
    pub job: fn(&[u8]) -> Result<String, DecodeError>,
    /// The caller sends any number of messages; only the first has to name the
    /// job.
    pub streams: bool,
}

impl GrpcMethod {
    /// The call of that path, if it is about one job.
    pub fn of(path: &str) -> Option<Self> {
        let unary = |job| Some(Self { job, streams: false });
        match path.strip_prefix("/kiln.job.v1.JobService/") {
            Some("GetJob") => return unary(|m| Ok(GetJobRequest::decode(m)?.id)),
            Some("UpdateJob") => return unary(|m| Ok(UpdateJobRequest::decode(m)?.id)),
            Some("DisableJob") => return unary(|m| Ok(DisableJobRequest::decode(m)?.id)),
            Some("EnableJob") => return unary(|m| Ok(EnableJobRequest::decode(m)?.id)),
            Some("TerminateJob") => return unary(|m| Ok(TerminateJobRequest::decode(m)?.id)),
            Some("DeleteJob") => return unary(|m| Ok(DeleteJobRequest::decode(m)?.id)),
            Some("CountTasks") => return unary(|m| Ok(CountTasksRequest::decode(m)?.job_id)),
            Some("AddTask") => return unary(|m| Ok(AddTaskRequest::decode(m)?.job_id)),
            Some("AddTaskCollection") => return unary(|m| Ok(AddTaskCollectionRequest::decode(m)?.job_id)),
            Some("AddTasks") => {
                return Some(Self { job: |m| Ok(AddTasksRequest::decode(m)?.job_id), streams: true });
            }
            Some("GetTask") => return unary(|m| Ok(GetTaskRequest::decode(m)?.job_id)),
            Some("ListTasks") => return unary(|m| Ok(ListTasksRequest::decode(m)?.job_id)),
            Some("UpdateTask") => return unary(|m| Ok(UpdateTaskRequest::decode(m)?.job_id)),
            Some("TerminateTask") => return unary(|m| Ok(TerminateTaskRequest::decode(m)?.job_id)),
            Some("DeleteTask") => return unary(|m| Ok(DeleteTaskRequest::decode(m)?.job_id)),
            Some("ReactivateTask") => return unary(|m| Ok(ReactivateTaskRequest::decode(m)?.job_id)),
            Some("ListAttempts") => return unary(|m| Ok(ListAttemptsRequest::decode(m)?.job_id)),
            Some("ExplainTask") => return unary(|m| Ok(ExplainTaskRequest::decode(m)?.job_id)),
            Some("ListSubtasks") => return unary(|m| Ok(ListSubtasksRequest::decode(m)?.job_id)),
            Some("ListJobNodes") => return unary(|m| Ok(ListJobNodesRequest::decode(m)?.job_id)),
            _ => {}
        }
        match path.strip_prefix("/kiln.gateway.v1.TaskFileService/") {
            Some("ListTaskFiles") => unary(|m| Ok(ListTaskFilesRequest::decode(m)?.job_id)),
            Some("GetTaskFile") => unary(|m| Ok(GetTaskFileRequest::decode(m)?.job_id)),
            Some("ReadTaskFile") => unary(|m| Ok(ReadTaskFileRequest::decode(m)?.job_id)),
            Some("DeleteTaskFile") => unary(|m| Ok(DeleteTaskFileRequest::decode(m)?.job_id)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope() -> JobScope {
        JobScope { job: "Mine".into(), created_micros: 7 }
    }

    #[test]
    fn a_scope_is_one_job_and_not_a_later_one_of_its_id() {
        assert!(scope().check_job("mine").is_ok());
        assert_eq!(scope().check_job("mine2").unwrap_err().reason(), "InsufficientAccountPermissions");
        assert!(scope().check_creation(7).is_ok());
        assert_eq!(scope().check_creation(8).unwrap_err().reason(), "AuthenticationFailed");
        assert!(scope().check_operation(Operation::TaskAdd, Some("mine")).is_ok());
        assert!(scope().check_operation(Operation::TaskAdd, Some("other")).is_err());
        // A pool of the same name.
        assert!(scope().check_operation(Operation::PoolGet, Some("mine")).is_err());
        assert!(scope().check_operation(Operation::JobList, None).is_err());
    }

    #[test]
    fn every_call_is_open_to_tokens_of_tasks_or_known_to_be_closed() {
        let closed = ["/kiln.job.v1.JobService/CreateJob", "/kiln.job.v1.JobService/ListJobs"];
        for method in crate::front::known_methods() {
            let of_jobs = method.starts_with("/kiln.job.v1.JobService/")
                || method.starts_with("/kiln.gateway.v1.TaskFileService/");
            let open = of_jobs && !closed.contains(&method.as_str());
            assert_eq!(GrpcMethod::of(&method).is_some(), open, "{method}");
        }
    }

    #[test]
    fn the_job_is_read_from_the_message() {
        let message = AddTasksRequest { job_id: "j".into(), ..AddTasksRequest::default() }.encode_to_vec();
        let method = GrpcMethod::of("/kiln.job.v1.JobService/AddTasks").unwrap();
        assert_eq!((method.job)(&message).unwrap(), "j");
        let message = UpdateJobRequest { request_id: "r".into(), id: "j".into(), ..UpdateJobRequest::default() };
        let method = GrpcMethod::of("/kiln.job.v1.JobService/UpdateJob").unwrap();
        assert_eq!((method.job)(&message.encode_to_vec()).unwrap(), "j");
        assert!((method.job)(b"\xff\xff").is_err());
    }
}
