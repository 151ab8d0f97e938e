//! Tasks that exist: reading, changing, ending, deleting.

use std::time::Duration;

use kiln_etag::Conditions;
use kiln_filter::Filter;
use kiln_grpc::condition::conditions;
use kiln_grpc::page;
use kiln_ids::AccountName;
use kiln_proto::job::v1 as wire;
use kiln_time::Timestamp;
use tokio::sync::oneshot;

use super::convert;
use super::lists::{self, CHUNK, SCAN, TASK_PROPERTIES};
use super::{Answer, Api, job_id, task_id};
use crate::domain::Error;
use crate::domain::etag;
use crate::domain::job::JobState;
use crate::domain::spec;
use crate::domain::subtask::{Subtask, ran_on};
use crate::domain::task::Phase;
use crate::scheduler::core::Refused;
use crate::scheduler::note::{Command, Note};
use crate::store::{Answered, Deleted, JobRow, NewAnswer, Request, TaskRow, TaskUpdate};

/// How often a command is repeated that met a task in the middle of a change.
const TRIES: u32 = 50;
/// How long a deletion waits for the task's process to end.
const DELETE_PATIENCE: Duration = Duration::from_secs(20);

impl Api {
    pub(super) async fn get_task(
        &self,
        account: AccountName,
        request: wire::GetTaskRequest,
    ) -> Answer<wire::GetTaskResponse> {
        let (job, task) = self.find(&account, &request.job_id, &request.task_id).await?;
        etag::check(&conditions(request.precondition.as_ref()), task.last_modified)?;
        Ok(wire::GetTaskResponse { task: Some(convert::task(&job, &task)?) })
    }

    pub(super) async fn find(&self, account: &AccountName, job: &str, task: &str) -> Result<(JobRow, TaskRow), Error> {
        let job = job_id(job)?;
        let task = task_id(&job, task)?;
        self.store.task(account, &job, &task).await
    }

    /// A task that is to be terminated or deleted.
    async fn find_to_end(
        &self,
        account: &AccountName,
        job: &str,
        task: &str,
        condition: &Conditions,
    ) -> Result<(JobRow, TaskRow), Error> {
        let (job, task) = self.find(account, job, task).await?;
        etag::check(condition, task.last_modified)?;
        if job.life.state == JobState::Deleting {
            return Err(Error::JobBeingDeleted);
        }
        Ok((job, task))
    }

    pub(super) async fn list_tasks(
        &self,
        account: AccountName,
        request: wire::ListTasksRequest,
    ) -> Answer<wire::ListTasksResponse> {
        let filter = Filter::parse(&request.filter, TASK_PROPERTIES)?;
        let size = page::size(request.page_size, 1000, 1000)? as usize;
        let mut after = page::last_key(&request.page_token)?;
        let job = self.store.job(&account, &job_id(&request.job_id)?).await?;
        let (mut tasks, mut looked_at) = (Vec::new(), 0);
        loop {
            let rows = self.store.list_tasks(job.row, after.clone(), CHUNK).await?;
            let last = rows.len() < CHUNK as usize;
            for row in rows {
                if tasks.len() == size || looked_at == SCAN {
                    let next_page_token = page::token(after.as_deref().unwrap_or_default());
                    return Ok(wire::ListTasksResponse { tasks, next_page_token });
                }
                looked_at += 1;
                after = Some(row.id.key().into_owned());
                if lists::task_matches(&filter, &row) {
                    tasks.push(convert::task(&job, &row)?);
                }
            }
            if last {
                return Ok(wire::ListTasksResponse { tasks, next_page_token: String::new() });
            }
        }
    }

    pub(super) async fn update_task(
        &self,
        account: AccountName,
        request: wire::UpdateTaskRequest,
    ) -> Answer<wire::UpdateTaskResponse> {
        let max_retries = spec::check_task_constraints(request.constraints.as_ref())?;
        let job = job_id(&request.job_id)?;
        let task = task_id(&job, &request.task_id)?;
        let update = TaskUpdate {
            constraints: request.constraints,
            max_retries,
            condition: conditions(request.precondition.as_ref()),
            request: Request { method: "UpdateTask", id: request.request_id },
            encode: |_, _| Vec::new(),
            now: Timestamp::now(),
        };
        let answered = self.store.update_task(&account, &job, &task, update).await?;
        let (job, now) = self.store.task(&account, &job, &task).await?;
        if let Answered::New(row) = answered {
            self.registry.tell(&account, &job.pool, Note::Constraints(Box::new(row))).await;
        }
        Ok(wire::UpdateTaskResponse { task: Some(convert::task(&job, &now)?) })
    }

    /// Gives a command to the scheduler of the task's pool.
    async fn command(
        &self,
        job: &JobRow,
        task: &TaskRow,
        request: &Request,
        make: fn(Command) -> Note,
    ) -> Result<Result<(), Refused>, Error> {
        let (reply, answer) = oneshot::channel();
        let remembered = NewAnswer { request: request.clone(), answer: Vec::new() };
        let command = Command {
            job: job.row,
            row: task.row,
            needs: task.facts.needs,
            answer: (!request.id.is_empty()).then_some(remembered),
            reply,
        };
        self.registry.tell(&job.account, &job.pool, make(command)).await;
        match tokio::time::timeout(DELETE_PATIENCE, answer).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => Err(Error::Unavailable("the scheduler is reading its pool again; repeat the call")),
            Err(_) => Err(Error::Unavailable("the task's node has not confirmed its end yet; repeat the call")),
        }
    }

    /// What a command is refused with, unless the same request was carried out since its answer was
    /// looked for: its caller had no answer in time and asks again while the first is still at work.
    async fn unless_done(&self, account: &AccountName, key: &Request, refused: kiln_error::Error) -> Answer<()> {
        match self.store.answer(account, key).await? {
            Some(_) => Ok(()),
            None => Err(refused),
        }
    }

    pub(super) async fn terminate_task(
        &self,
        account: AccountName,
        request: wire::TerminateTaskRequest,
    ) -> Answer<wire::TerminateTaskResponse> {
        let key = Request { method: "TerminateTask", id: request.request_id };
        if self.store.answer(&account, &key).await?.is_some() {
            return Ok(wire::TerminateTaskResponse {});
        }
        let condition = conditions(request.precondition.as_ref());
        for _ in 0..TRIES {
            let found = self.find_to_end(&account, &request.job_id, &request.task_id, &condition).await;
            let (job, task) = match found {
                Ok((_, task)) if task.task.state.phase() == Phase::Completed => {
                    self.unless_done(&account, &key, Error::TaskCompleted.into()).await?;
                    return Ok(wire::TerminateTaskResponse {});
                }
                Ok(found) => found,
                Err(refused) => {
                    self.unless_done(&account, &key, refused.into()).await?;
                    return Ok(wire::TerminateTaskResponse {});
                }
            };
            if task.task.state.phase() == Phase::Active {
                // In a job that is over it stays as it is for ever.
                job.life.state.check_add()?;
            }
            match self.command(&job, &task, &key, Note::Terminate).await? {
                Ok(()) => return Ok(wire::TerminateTaskResponse {}),
                Err(Refused::Completed) => {
                    self.unless_done(&account, &key, Error::TaskCompleted.into()).await?;
                    return Ok(wire::TerminateTaskResponse {});
                }
                // The scheduler hears of it in a moment, or it ended just now.
                Err(Refused::Unknown) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        Err(Error::Unavailable("the task is being changed; repeat the call").into())
    }

    pub(super) async fn delete_task(
        &self,
        account: AccountName,
        request: wire::DeleteTaskRequest,
    ) -> Answer<wire::DeleteTaskResponse> {
        let key = Request { method: "DeleteTask", id: request.request_id };
        if self.store.answer(&account, &key).await?.is_some() {
            return Ok(wire::DeleteTaskResponse {});
        }
        let condition = conditions(request.precondition.as_ref());
        for _ in 0..TRIES {
            let found = self.find_to_end(&account, &request.job_id, &request.task_id, &condition).await;
            let (job, task) = match found {
                Ok(found) => found,
                Err(refused) => {
                    self.unless_done(&account, &key, refused.into()).await?;
                    return Ok(wire::DeleteTaskResponse {});
                }
            };
            // The scheduler first: a completed task may have a process that is
            // still being stopped.
            match self.command(&job, &task, &key, Note::Delete).await? {
                Ok(()) => return Ok(wire::DeleteTaskResponse {}),
                Err(Refused::Unknown | Refused::Completed) => {}
            }
            let subtasks = self.instances(&task).await?;
            let now = Timestamp::now();
            let deleted = self
                .store
                .delete_completed_task(&account, &job.job, &task.id, condition.clone(), key.clone(), now)
                .await?;
            match deleted {
                Answered::Before(_) => return Ok(wire::DeleteTaskResponse {}),
                Answered::New(Deleted::Gone(job, task)) => {
                    if job.spec.uses_task_dependencies {
                        let note = Note::ParentDeleted { job: job.row, row: task.row, key: task.id.key().into_owned() };
                        self.registry.tell(&account, &job.pool, note).await;
                    }
                    for (instance, node) in ran_on(&task.task.state, &subtasks) {
                        let key = wire::AttemptKey {
                            job_id: job.job.as_str().to_owned(),
                            task_id: task.id.as_str().to_owned(),
                            attempt: task.task.attempt,
                            task_number: task.row,
                            instance,
                        };
                        self.registry.tell(&account, &job.pool, Note::Cleanup { node, key }).await;
                    }
                    return Ok(wire::DeleteTaskResponse {});
                }
                Answered::New(Deleted::Live(..)) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        Err(Error::Unavailable("the task is being changed; repeat the call").into())
    }

    pub(super) async fn reactivate_task(
        &self,
        account: AccountName,
        request: wire::ReactivateTaskRequest,
    ) -> Answer<wire::ReactivateTaskResponse> {
        let job = job_id(&request.job_id)?;
        let task = task_id(&job, &request.task_id)?;
        let key = Request { method: "ReactivateTask", id: request.request_id };
        let condition = conditions(request.precondition.as_ref());
        let answered = self.store.reactivate_task(&account, &job, &task, condition, key, Timestamp::now()).await?;
        if let Answered::New(row) = answered {
            let job = self.store.job(&account, &job).await?;
            let note = Note::Reactivated { job: row.job, row: row.row };
            self.registry.tell(&account, &job.pool, note).await;
        }
        Ok(wire::ReactivateTaskResponse {})
    }

    pub(super) async fn list_attempts(
        &self,
        account: AccountName,
        request: wire::ListAttemptsRequest,
    ) -> Answer<wire::ListAttemptsResponse> {
        let size = page::size(request.page_size, 100, 1000)?;
        let after = match page::last_key(&request.page_token)? {
            None => 0,
            Some(text) => text.parse().map_err(|_| {
                Error::invalid("page_token", &request.page_token, "is not a token this service gave out")
            })?,
        };
        let (_, task) = self.find(&account, &request.job_id, &request.task_id).await?;
        let history = self.store.attempts(task.row, after, size).await?;
        let mut attempts: Vec<wire::Attempt> = history.iter().map(convert::past_attempt).collect();
        if attempts.len() as u32 == size {
            let last = attempts.last().map_or(0, |attempt| attempt.number);
            return Ok(wire::ListAttemptsResponse { attempts, next_page_token: page::token(&last.to_string()) });
        }
        let latest = task.task.latest_attempt().map(|latest| convert::latest_attempt(&latest));
        attempts.extend(latest.filter(|latest| latest.number > after));
        Ok(wire::ListAttemptsResponse { attempts, next_page_token: String::new() })
    }

    pub(super) async fn list_subtasks(
        &self,
        account: AccountName,
        request: wire::ListSubtasksRequest,
    ) -> Answer<wire::ListSubtasksResponse> {
        let (job, task) = self.find(&account, &request.job_id, &request.task_id).await?;
        let all = self.instances(&task).await?;
        // The primary is the task itself.
        let subtasks = all.iter().filter(|subtask| subtask.instance > 0);
        let subtasks = subtasks.map(|subtask| convert::subtask(&job, &task, subtask)).collect();
        Ok(wire::ListSubtasksResponse { subtasks })
    }

    async fn instances(&self, task: &TaskRow) -> Result<Vec<Subtask>, Error> {
        match task.facts.needs.instances {
            1 => Ok(Vec::new()),
            _ => self.store.subtasks(task.row).await,
        }
    }
}
