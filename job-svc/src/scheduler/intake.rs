//! How the actor understands what it is told: names become rows.

use std::collections::HashSet;

use kiln_proto::job::v1::{AttemptKey, JobNodeKey, JobNodeTask, NodeTaskInfo, TaskSpec};
use prost::Message;

use super::actor::{Actor, Broken, Waiter};
use super::core::{Conn, Dependants, Input, JobKey, JobView, NodeWord, ReadyTask, Row, Seen};
use super::job_info::{self, JobInfo};
use super::link::Link;
use super::note::{Command, Hello, Note, Report, Up};
use crate::domain::exit::{self, JobAction};
use crate::domain::job::JobState;
use crate::domain::job_tasks::{self, Progress};
use crate::domain::needs::Needs;
use crate::domain::task::{AttemptEnd, TaskState};
use crate::store::leases::Change;
use crate::store::{JobRow, TaskRow};

impl Actor {
    pub(super) async fn take_note(&mut self, note: Note) -> Result<(), Broken> {
        match note {
            Note::JobChanged(job) => self.job_changed(job).await?,
            Note::Added { job, tasks } => self.tasks_added(job, tasks).await?,
            Note::Reactivated { job, row } => self.reactivated(job, row).await?,
            Note::Constraints(task) => self.constraints_changed(*task),
            Note::Terminate(command) => {
                let (job, row, needs, reply) = self.register(command).await?;
                self.inputs.push_back(Input::Terminate { job, row, needs, reply });
            }
            Note::Delete(command) => {
                let (job, row, needs, reply) = self.register(command).await?;
                self.inputs.push_back(Input::Delete { job, row, needs, reply });
            }
            Note::Cleanup { node, key } => {
                if let Some(conn) = self.core.conn_of(&node) {
                    self.batch.mail.to(conn).cleanup.tasks.push(key);
                }
            }
            Note::Explain { job, row, needs, reply } => {
                // The answer has to know of everything before it.
                self.step();
                self.absorb().await?;
                let reason = self.core.explain(job, row, &needs);
                let _ = reply.send(self.name_parents(job, row, reason).await?);
            }
            Note::ParentDeleted { job, row, key } => self.parent_deleted(job, row, key).await?,
            Note::Elsewhere(change) => self.changed_elsewhere(change).await?,
            Note::Hello(hello) => self.hello(*hello).await?,
            Note::Up(conn, up) => self.up(conn, up),
        }
        Ok(())
    }

    /// A change of a client, of which only the names came: the rows are read. It
    /// may be old, about another pool, or known from loading.
    async fn changed_elsewhere(&mut self, change: Change) -> Result<(), Broken> {
        let job = match &change {
            Change::Job(job) => return self.job_changed(*job).await,
            Change::Added { job, .. }
            | Change::Reactivated { job, .. }
            | Change::Constraints { job, .. }
            | Change::Deleted { job, .. } => *job,
        };
        self.ensure_job(job).await?;
        if !self.jobs.contains_key(&job) {
            return Ok(());
        }
        match change {
            Change::Job(_) => Ok(()),
            Change::Added { first, last, .. } => {
                let mut tasks = self.context.store.load_tasks((first..=last).collect()).await?;
                tasks.retain(|task| {
                    let new = matches!(task.task.state, TaskState::Active) && task.task.attempt == 0;
                    task.job == job && new && !self.is_ahead(task.row)
                });
                if tasks.is_empty() {
                    return Ok(());
                }
                self.tasks_added(job, tasks).await
            }
            Change::Reactivated { row, .. } => self.reactivated(job, row).await,
            Change::Constraints { row, .. } => {
                for task in self.context.store.load_tasks(vec![row]).await? {
                    if !self.is_ahead(row) {
                        self.constraints_changed(task);
                    }
                }
                Ok(())
            }
            Change::Deleted { row, key, .. } => self.parent_deleted(job, row, key).await,
        }
    }

    /// Remembers a job's row; returns the core's view of it.
    pub(super) fn note_job(&mut self, row: JobRow) -> JobView {
        let view = job_info::view(&row);
        let info = self.jobs.entry(row.row).or_insert_with(|| JobInfo {
            job: row.job.clone(),
            spec: row.spec.clone(),
            created: row.created,
            loaded_to: 0,
        });
        info.spec = row.spec;
        view
    }

    async fn job_changed(&mut self, job: JobKey) -> Result<(), Broken> {
        // The row is read again: notes may come late, and an old state of a job
        // that is over must not bring it back.
        let row = self.context.store.job_by_row(job).await?;
        match row {
            Some(row) if row.pool == self.pool && self.core.has_job(job) => {
                let view = self.note_job(row);
                self.inputs.push_back(Input::Job { view, answer: false });
            }
            Some(_) if self.purged.contains(&job) => {}
            Some(row) if row.pool == self.pool => {
                if row.life.state != JobState::Completed {
                    // A job that is being deleted may have been given up before.
                    let by_client = row.life.state == JobState::Deleting;
                    let key = row.row;
                    self.load_job(row).await?;
                    if by_client {
                        self.linger(key);
                    }
                }
            }
            Some(_) | None => {
                self.forget_job(job);
                self.inputs.push_back(Input::JobGone(job));
            }
        }
        Ok(())
    }

    /// Lets the state "deleting" of a job that was completed be seen for a while.
    fn linger(&mut self, key: JobKey) {
        if let Some(Input::Loaded { view, .. }) = self.inputs.back() {
            let view = JobView { state: JobState::Deleting, ..view.clone() };
            if view.key == key {
                self.inputs.pop_back();
                let deleting = view.clone();
                let before = JobView { state: JobState::Completed, version: 0, ..view };
                self.inputs.push_back(Input::Loaded {
                    view: before,
                    ready: Vec::new(),
                    running: Vec::new(),
                    nodes: Vec::new(),
                    dependants: Dependants::default(),
                });
                self.inputs.push_back(Input::Job { view: deleting, answer: false });
            }
        }
    }

    /// Makes sure that a job is loaded, if it is this pool's and not over.
    async fn ensure_job(&mut self, job: JobKey) -> Result<(), Broken> {
        if self.jobs.contains_key(&job) {
            return Ok(());
        }
        self.job_changed(job).await?;
        self.step();
        self.absorb().await
    }

    async fn tasks_added(&mut self, job: JobKey, tasks: Vec<TaskRow>) -> Result<(), Broken> {
        self.ensure_job(job).await?;
        let Some(info) = self.jobs.get(&job) else { return Ok(()) };
        let loaded_to = info.loaded_to;
        self.highest = tasks.iter().map(|task| task.row).fold(self.highest, Row::max);
        let new: Vec<TaskRow> = tasks.into_iter().filter(|task| task.row > loaded_to).collect();
        let (dependants, waiting) = self.find_dependants(job, &new).await?;
        let plain = new.iter().filter(|task| !waiting.contains(&task.row));
        let ready: Vec<ReadyTask> = plain.map(ready_task).collect();
        new.into_iter().for_each(|task| self.cache.offer(task));
        if !ready.is_empty() || waiting.is_empty() {
            self.inputs.push_back(Input::Added { job, tasks: ready });
        }
        if let Some(dependants) = dependants {
            self.inputs.push_back(Input::Dependants { job, dependants });
        }
        Ok(())
    }

    async fn reactivated(&mut self, job: JobKey, row: Row) -> Result<(), Broken> {
        self.ensure_job(job).await?;
        // What the caller saw may be old by now.
        let rows = self.context.store.load_tasks(vec![row]).await?;
        let active: Vec<TaskRow> =
            rows.into_iter().filter(|task| matches!(task.task.state, TaskState::Active)).collect();
        if !active.is_empty() && !self.is_ahead(row) {
            for task in active {
                let ready = ready_task(&task);
                let (dependants, waiting) = self.find_dependants(job, std::slice::from_ref(&task)).await?;
                if let Some(dependants) = dependants {
                    self.inputs.push_back(Input::Dependants { job, dependants });
                }
                if !waiting.is_empty() {
                    continue;
                }
                // Its former attempt is still being stopped: what comes after
                // that goes on from the new record.
                if let Some(live) = self.live.get_mut(&row) {
                    *live = task;
                }
                self.ready_again(job, ready).await?;
            }
        }
        Ok(())
    }

    /// Whether our picture of this task is newer than the store's: it was
    /// loaded as active before this note came, and something has happened since.
    fn is_ahead(&self, row: Row) -> bool {
        let (changed, removed) = &self.under_way;
        let batch = &self.batch;
        changed.contains_key(&row)
            || removed.contains(&row)
            || batch.index.contains_key(&row)
            || batch.removed.contains(&row)
    }

    fn constraints_changed(&mut self, task: TaskRow) {
        let change = |kept: &mut TaskRow| {
            kept.spec = task.spec.clone();
            kept.facts = task.facts;
            kept.last_modified = task.last_modified;
        };
        self.cache.update(task.row, change);
        if let Some(live) = self.live.get_mut(&task.row) {
            change(live);
        }
        self.inputs.push_back(Input::Retries {
            job: task.job,
            row: task.row,
            needs: task.facts.needs,
            max_retries: task.facts.max_retries,
        });
    }

    async fn register(&mut self, command: Command) -> Result<(JobKey, Row, Needs, u64), Broken> {
        self.ensure_job(command.job).await?;
        self.next_reply += 1;
        self.waiters.insert(self.next_reply, Waiter { reply: command.reply, answer: command.answer });
        Ok((command.job, command.row, command.needs, self.next_reply))
    }

    async fn hello(&mut self, hello: Hello) -> Result<(), Broken> {
        let mut seen = Vec::with_capacity(hello.attempts.len());
        let mut keys = Vec::with_capacity(hello.attempts.len());
        for (key, ended) in hello.attempts {
            let token = u32::try_from(keys.len()).unwrap_or(u32::MAX);
            seen.push(Seen { token, row: Some(key.task_number), attempt: key.attempt, instance: key.instance, ended });
            keys.push(key);
        }
        tracing::info!(
            account = %self.account, pool.id = %self.pool, node.id = %hello.node, attempts = keys.len(),
            slots = hello.status.slots, "an agent opened its work stream"
        );
        let link = Link { out: hello.out, closer: hello.closer, foreign: HashSet::new(), ip: hello.ip, seen: keys };
        self.links.insert(hello.conn, link);
        self.inputs.push_back(Input::Hello {
            conn: hello.conn,
            node: hello.node,
            incarnation: hello.incarnation,
            stream: hello.stream,
            status: hello.status,
            seen,
        });
        // So that its foreign attempts are known before its reports are read.
        self.step();
        self.absorb().await
    }

    fn up(&mut self, conn: Conn, up: Up) {
        if !self.links.contains_key(&conn) {
            return;
        }
        match up {
            Up::Lease(sequence) => self.inputs.push_back(Input::Lease { conn, sequence }),
            Up::Status(status, version) => {
                self.inputs.push_back(Input::Status { conn, status });
                self.batch.mail.to(conn).status = Some(version);
            }
            Up::Goodbye => self.inputs.push_back(Input::Goodbye { conn }),
            Up::Gone => {
                self.links.remove(&conn);
                self.inputs.push_back(Input::Disconnected { conn });
            }
            Up::JobNodes(reports) => {
                for (key, info) in reports {
                    self.job_node(conn, key, info);
                }
            }
            Up::Reports(reports) => {
                for (key, report) in reports {
                    self.report(conn, key, report);
                }
            }
        }
    }

    fn report(&mut self, conn: Conn, key: AttemptKey, report: Report) {
        let (row, attempt, instance) = (key.task_number, key.attempt, key.instance);
        match report {
            Report::Started(at) => self.inputs.push_back(Input::Started { conn, row, attempt, instance, at }),
            Report::Ready => self.inputs.push_back(Input::Ready { conn, row, attempt, instance }),
            Report::Ended(end) => {
                let foreign = foreign(&key);
                if self.links.get_mut(&conn).is_some_and(|link| link.foreign.remove(&foreign)) {
                    self.inputs.push_back(Input::ForeignEnded { conn });
                }
                // What ended at once tells its beginning with its end.
                if let Some(at) = end.start.filter(|_| end.cause.has_begun()) {
                    self.inputs.push_back(Input::Started { conn, row, attempt, instance, at });
                }
                let action = self.exit_action(row, &end);
                self.inputs.push_back(Input::Ended { conn, row, attempt, instance, end, action });
                // Whether it was applied now, before, or is of no interest: when
                // the commit with it, and all before it, are durable, the agent
                // may forget it.
                self.batch.mail.to(conn).acks.push(key);
            }
        }
    }

    fn job_node(&mut self, conn: Conn, key: JobNodeKey, info: NodeTaskInfo) {
        let progress = job_tasks::progress(&info);
        let word = match key.task() {
            JobNodeTask::Preparation => Some(NodeWord::Preparation(progress)),
            JobNodeTask::Release if progress != Progress::Running => Some(NodeWord::Released),
            JobNodeTask::Release | JobNodeTask::Unspecified => None,
        };
        if let Some(word) = word {
            self.inputs.push_back(Input::JobNode { conn, job: key.job_number, word });
        }
        self.keep_job_node(conn, &key, info);
        // Also if the job is gone: the agent has to forget it.
        self.batch.mail.to(conn).job_node_acks.push(key);
    }

    pub(super) fn exit_action(&self, row: Row, end: &AttemptEnd) -> JobAction {
        let Some(task) = self.live.get(&row) else { return JobAction::None };
        if !self.jobs.get(&task.job).is_some_and(JobInfo::exit_actions) {
            return JobAction::None;
        }
        match TaskSpec::decode(task.spec.clone()) {
            Ok(spec) => exit::job_action(spec.exit_conditions.as_ref(), end),
            Err(error) => {
                tracing::error!(row, %error, "a stored spec cannot be read");
                JobAction::None
            }
        }
    }

    /// Keeps a task whose attempt holds slots at hand.
    pub(super) fn enter_live(&mut self, task: TaskRow) {
        self.live.insert(task.row, task);
    }
}

/// An attempt's name among those that only the agent has.
pub(super) fn foreign(key: &AttemptKey) -> (String, String, u32, u64, u32) {
    (key.job_id.clone(), key.task_id.clone(), key.attempt, key.task_number, key.instance)
}

pub(super) fn ready_task(task: &TaskRow) -> ReadyTask {
    ReadyTask {
        row: task.row,
        needs: task.facts.needs,
        attempt: task.task.attempt,
        retry_count: task.task.retry_count,
        internal_retries: task.task.internal_retry_count,
        max_retries: task.facts.max_retries,
        affinity: task.facts.affinity,
    }
}
