//! Files of tasks: job-svc knows where a task ran, pool-svc reads files of
//! nodes; nobody but the gateway puts the two together.

use kiln_error::{Error, Kind};
use kiln_grpc::with_account;
use kiln_proto::common::v1::{ByteRange, FileEntry};
use kiln_proto::job::v1::{GetTaskRequest, Task};
use kiln_proto::pool::v1::{
    DeleteNodeFileRequest, GetNodeFileRequest, ListNodeFilesRequest, ReadNodeFileRequest, ReadNodeFileResponse,
};
use tonic::Streaming;

use crate::backend::Backends;

/// Where the files of a task are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Pool of the node.
    pub pool_id: String,
    /// The node the latest attempt ran on.
    pub node_id: String,
    /// The task's directory, relative to the node root; empty for the node root
    /// itself.
    pub root: String,
}

impl Location {
    /// The whole node.
    pub fn node(pool_id: &str, node_id: &str) -> Self {
        Self { pool_id: pool_id.to_owned(), node_id: node_id.to_owned(), root: String::new() }
    }

    /// A path below the root. Clients write it with or without a leading slash;
    /// the agent refuses paths that leave the node's root, this refuses those
    /// that leave the task's.
    ///
    /// # Errors
    /// `InvalidPropertyValue` for a path with `..`.
    pub fn path(&self, path: &str) -> Result<String, Error> {
        let path = path.trim_start_matches('/');
        if path.split(['/', '\\']).any(|part| part == "..") {
            return Err(Error::invalid_property("filePath", path, "must stay inside the directory"));
        }
        Ok(match (self.root.as_str(), path) {
            ("", path) => path.to_owned(),
            (root, "") => root.to_owned(),
            (root, path) => format!("{root}/{path}"),
        })
    }
}

/// One page of a listing.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// The whole tree.
    pub recursive: bool,
    /// Only names that begin with this.
    pub name_prefix: String,
    /// Entries of a page; 0 for the usual number.
    pub page_size: i32,
    /// Where to go on.
    pub page_token: String,
}

/// Calls for one account.
#[derive(Debug, Clone)]
pub struct Files {
    backends: Backends,
    account: String,
}

impl Files {
    /// On behalf of `account`.
    pub fn new(backends: Backends, account: impl Into<String>) -> Self {
        Self { backends, account: account.into() }
    }

    /// Where the task runs or ran; `None` before its first attempt.
    ///
    /// # Errors
    /// `TaskNotFound`, `JobNotFound`.
    pub async fn find(&self, job_id: &str, task_id: &str) -> Result<(Task, Option<Location>), Error> {
        let message = GetTaskRequest { job_id: job_id.to_owned(), task_id: task_id.to_owned(), precondition: None };
        let answer = self.backends.jobs().get_task(with_account(message, &self.account)?).await?.into_inner();
        let task = answer.task.ok_or_else(|| Error::internal("job-svc answered without a task"))?;
        let location = task.node.as_ref().filter(|node| !node.node_id.is_empty()).map(|node| Location {
            pool_id: node.pool_id.clone(),
            node_id: node.node_id.clone(),
            root: node.task_root_directory.clone(),
        });
        Ok((task, location))
    }

    /// As [`Files::find`], for calls that need the files now.
    ///
    /// # Errors
    /// `OperationInvalidForCurrentState` if the task has not run yet.
    pub async fn locate(&self, job_id: &str, task_id: &str) -> Result<Location, Error> {
        let (_, location) = self.find(job_id, task_id).await?;
        location.ok_or_else(|| {
            Error::new(
                Kind::FailedPrecondition,
                "OperationInvalidForCurrentState",
                format!("task {task_id} has no files: it has not run on a node yet"),
            )
        })
    }

    /// One page of files below the location.
    ///
    /// # Errors
    /// What pool-svc or the agent says.
    pub async fn list(&self, at: &Location, options: ListOptions) -> Result<(Vec<FileEntry>, String), Error> {
        let message = ListNodeFilesRequest {
            pool_id: at.pool_id.clone(),
            node_id: at.node_id.clone(),
            directory: at.root.clone(),
            recursive: options.recursive,
            name_prefix: options.name_prefix,
            page_size: options.page_size,
            page_token: options.page_token,
        };
        let answer = self.backends.pools().list_node_files(with_account(message, &self.account)?).await;
        let answer = answer.map_err(|status| unavailable(at, status))?.into_inner();
        Ok((answer.files, answer.next_page_token))
    }

    /// Properties of one file.
    ///
    /// # Errors
    /// `FileNotFound`, and what pool-svc says.
    pub async fn get(&self, at: &Location, path: &str) -> Result<FileEntry, Error> {
        let message =
            GetNodeFileRequest { pool_id: at.pool_id.clone(), node_id: at.node_id.clone(), path: at.path(path)? };
        let answer = self.backends.pools().get_node_file(with_account(message, &self.account)?).await;
        let answer = answer.map_err(|status| unavailable(at, status))?.into_inner();
        answer.file.ok_or_else(|| Error::internal("pool-svc answered without a file"))
    }

    /// The file's properties, then its bytes.
    ///
    /// # Errors
    /// `FileNotFound`, `InvalidRange`, and what pool-svc says.
    pub async fn read(
        &self,
        at: &Location,
        path: &str,
        range: Option<ByteRange>,
        follow: bool,
    ) -> Result<Streaming<ReadNodeFileResponse>, Error> {
        let message = ReadNodeFileRequest {
            pool_id: at.pool_id.clone(),
            node_id: at.node_id.clone(),
            path: at.path(path)?,
            range,
            follow,
        };
        let answer = self.backends.pools().read_node_file(with_account(message, &self.account)?).await;
        Ok(answer.map_err(|status| unavailable(at, status))?.into_inner())
    }

    /// Deletes a file, or a directory with what is in it if `recursive`.
    ///
    /// # Errors
    /// `FileNotFound`, and what pool-svc says.
    pub async fn delete(&self, at: &Location, path: &str, recursive: bool, request_id: String) -> Result<(), Error> {
        let message = DeleteNodeFileRequest {
            request_id,
            pool_id: at.pool_id.clone(),
            node_id: at.node_id.clone(),
            path: at.path(path)?,
            recursive,
        };
        let answer = self.backends.pools().delete_node_file(with_account(message, &self.account)?).await;
        answer.map_err(|status| unavailable(at, status))?;
        Ok(())
    }
}

/// A caller who asked for a task's files named no node or pool: that it has gone
/// is told as the loss of the files.
fn unavailable(at: &Location, status: tonic::Status) -> Error {
    let error = Error::from(status);
    if !at.root.is_empty() && matches!(error.reason(), "NodeNotFound" | "PoolNotFound") {
        return Error::new(
            Kind::FailedPrecondition,
            "TaskFilesUnavailable",
            format!("the files are gone with node {} of pool {}", at.node_id, at.pool_id),
        );
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside_the_task() {
        let task = Location { pool_id: "p".into(), node_id: "n".into(), root: "workitems/j/job-1/t".into() };
        assert_eq!(task.path("wd/a b").unwrap(), "workitems/j/job-1/t/wd/a b");
        assert_eq!(task.path("/stdout.txt").unwrap(), "workitems/j/job-1/t/stdout.txt");
        assert_eq!(task.path("").unwrap(), "workitems/j/job-1/t");
        assert_eq!(Location::node("p", "n").path("/startup/stdout.txt").unwrap(), "startup/stdout.txt");
        for bad in ["../u/stdout.txt", "wd/../../u", "wd/..", "a\\..\\b"] {
            assert!(task.path(bad).is_err(), "{bad}");
        }
        assert!(task.path("wd/..a").is_ok());
    }
}
