//! How the actor turns the core's effects into writes, events and messages.

use std::collections::HashSet;
use std::sync::Arc;

use kiln_auth::token::{self, Claims, Principal};
use kiln_ids::NodeId;
use kiln_proto::job::v1::work_down::Message as Down;
use kiln_proto::job::v1::{
    Assignment, AttemptKey, JobNodeKey, JobNodeTask, LeaseGrant, NodeTaskInfo, Preparation, TaskSpec, Welcome,
};
use kiln_proto::time::{duration, timestamp};
use prost::Message;

use super::actor::{Actor, Broken, MAX_PURGED};
use super::core::{Conn, Effects, Input, InstanceChange, JobKey, NodeChange, Row, Send, WaitReason};
use super::intake::foreign;
use super::job_info::JobInfo;
use super::parents;
use crate::domain::spec::INHERIT_RETRIES;
use crate::domain::subtask::ran_on;
use crate::domain::task::{EndCause, MAX_LIFE, Phase, TaskEvent, TaskState, retry_follows};
use crate::store::events::{self, TaskNames};
use crate::store::{Bucket, JobNodeWrite, TaskRow, TaskWrite};

impl Actor {
    /// Takes over all effects there are, and what follows from them for tasks
    /// that wait for others.
    pub(super) async fn absorb(&mut self) -> Result<(), Broken> {
        self.take_over().await?;
        while self.tell_dependants().await? {
            self.step();
            self.take_over().await?;
        }
        Ok(())
    }

    async fn take_over(&mut self) -> Result<(), Broken> {
        let mut fx = std::mem::take(&mut self.fx);
        self.fetch(&fx).await?;
        let now = self.now();
        let mut touched: Vec<Row> = Vec::with_capacity(fx.tasks.len());
        for (row, job, event) in fx.tasks.drain(..) {
            self.apply(row, job, event, now.wall)?;
            touched.push(row);
        }
        for (row, change) in fx.subtasks.drain(..) {
            self.change_instance(row, change, now.wall);
        }
        for (row, job) in fx.deleted.drain(..) {
            self.remove(row, job, now.wall)?;
            touched.push(row);
        }
        for (row, job, reason) in fx.unschedulable.drain(..) {
            self.tell_unschedulable(row, job, reason, now.wall);
            touched.push(row);
        }
        touched.append(&mut fx.forget);
        for (job, node, change) in fx.nodes.drain(..) {
            let about = self.about(job, node);
            let write = match change {
                NodeChange::Ran => JobNodeWrite { ran: true, ..about },
                NodeChange::Barred(life) => JobNodeWrite { barred: Some(life), ..about },
            };
            self.batch.commit.job_nodes.push(write);
        }
        for send in fx.sends.drain(..) {
            self.post(send);
        }
        self.batch.commit.jobs.append(&mut fx.jobs);
        self.purged.extend(fx.purge.iter());
        while self.purged.len() > MAX_PURGED {
            self.purged.pop_front();
        }
        self.batch.purge.append(&mut fx.purge);
        for (id, result) in fx.replies.drain(..) {
            if let Some(waiter) = self.waiters.remove(&id) {
                if result.is_ok() {
                    self.batch.commit.answers.extend(waiter.answer);
                }
                self.batch.replies.push((waiter.reply, result));
            }
        }
        // The only word to nodes that waits for no commit: of a pool that somebody
        // else may have by now, nobody may hear that its node lives on.
        if !fx.grants.is_empty() && !self.tenure.holds() {
            return Err(Broken::Lost);
        }
        for (conn, sequence) in fx.grants.drain(..) {
            let lease = Some(duration(self.context.lease));
            let sent =
                self.links.get(&conn).is_some_and(|link| link.send(Down::LeaseGrant(LeaseGrant { sequence, lease })));
            if !sent {
                self.drop_link(conn);
            }
        }
        for conn in fx.close.drain(..) {
            if let Some(link) = self.links.remove(&conn) {
                link.closer.cancel();
            }
        }
        for node in fx.expired.drain(..) {
            self.context.metrics.lease_expiries.inc();
            tracing::warn!(
                account = %self.account, pool.id = %self.pool, node.id = %node,
                "the node was silent for longer than its lease; its tasks run elsewhere"
            );
        }
        for row in touched {
            self.leave_if_over(row);
        }
        let (waiting, running) = self.core.depth();
        let depth = &self.context.metrics.depth;
        depth.with_label_values(&[self.pool.as_str(), "waiting"]).set(i64::try_from(waiting).unwrap_or(i64::MAX));
        depth.with_label_values(&[self.pool.as_str(), "running"]).set(i64::try_from(running).unwrap_or(i64::MAX));
        Ok(())
    }

    /// Brings the records of all tasks that effects speak of to hand: out of the
    /// cache, or with one read.
    async fn fetch(&mut self, fx: &Effects) -> Result<(), Broken> {
        let mut missing: Vec<Row> = Vec::new();
        let mut asked: HashSet<Row> = HashSet::new();
        let rows = fx.tasks.iter().map(|(row, _, _)| *row).chain(fx.deleted.iter().map(|(row, _)| *row));
        let rows = rows.chain(fx.unschedulable.iter().map(|(row, _, _)| *row));
        for row in rows {
            if self.live.contains_key(&row) || !asked.insert(row) {
                continue;
            }
            match self.cache.take(row) {
                Some(task) => self.enter_live(task),
                None => missing.push(row),
            }
        }
        for (row, change) in &fx.subtasks {
            // After a restart.
            if matches!(change, InstanceChange::Happened(..)) && !self.subtasks.contains_key(row) {
                let subtasks = self.context.store.subtasks(*row).await?;
                self.subtasks.insert(*row, subtasks);
            }
        }
        if !missing.is_empty() {
            for task in self.context.store.load_tasks(missing).await? {
                self.enter_live(task);
            }
        }
        Ok(())
    }

    fn apply(&mut self, row: Row, job: JobKey, event: TaskEvent, now: kiln_time::Timestamp) -> Result<(), Broken> {
        let (what, reason) = match &event {
            TaskEvent::Assign { .. } => ("assigned", ""),
            TaskEvent::Start { .. } => ("started", ""),
            TaskEvent::Finish { .. } | TaskEvent::Terminate | TaskEvent::GiveUp { .. } => ("finished", ""),
            TaskEvent::Retry { .. } => ("requeued", "Retry"),
            TaskEvent::Requeue { cause, .. } => ("requeued", cause.reason()),
            TaskEvent::Reactivate => ("requeued", "Reactivated"),
        };
        let broken = |why: String| Broken::Picture { row, why };
        let live = self.live.get_mut(&row).ok_or_else(|| broken("is not in the store".to_owned()))?;
        let info = self.jobs.get(&job).ok_or_else(|| broken(format!("its job {job} is not loaded")))?;
        if let (TaskEvent::Start { .. }, TaskState::Running { started: Some(_), .. }) = (&event, &live.task.state) {
            // Said again after a reconnect.
            return Ok(());
        }
        let gives_up = matches!(event, TaskEvent::GiveUp { .. });
        let end = info.uses_dependencies().then(|| parents::final_end(&event, now)).flatten();
        let before = (live.task.state.phase(), live.task.attempt);
        let bucket = Bucket::of(&live.task);
        let ran_on = match &live.task.state {
            TaskState::Running { node, .. } => Some(node.clone()),
            TaskState::Active | TaskState::Completed { .. } => None,
        };
        let transition = live.task.apply(event, now).map_err(|why| broken(format!("{what}: {why}")))?;
        live.task = transition.task;
        self.batch.counts.entry(job).or_default().moved(
            Some(bucket),
            Some(Bucket::of(&live.task)),
            live.facts.needs.slots,
        );
        if let Some(attempt) = transition.history {
            self.batch.commit.history.push((row, attempt));
        }
        let names = TaskNames {
            account: &self.account,
            pool: &self.pool,
            job: &info.job,
            task: &live.id,
            slots: live.facts.needs.slots,
            traceparent: &live.traceparent,
        };
        let event_type = match what {
            "assigned" => "job.task.assigned",
            "started" => "job.task.started",
            "finished" => "job.task.finished",
            _ => "job.task.requeued",
        };
        let node = ran_on.as_ref().map(|node| node.as_str());
        self.batch.commit.events.push(events::task(names, event_type, Some(before.0), &live.task, node, reason, now));
        tracing::debug!(
            job.id = %info.job, task.id = %live.id, attempt = live.task.attempt, what, reason, "task"
        );
        self.context.metrics.transitions.with_label_values(&[what]).inc();
        if let Some(end) = end {
            self.parent_ended(row, job, &end)?;
        }
        if gives_up {
            self.given_up(row, job, now);
        }
        let Some(live) = self.live.get(&row) else { return Ok(()) };
        match self.batch.index.get(&row) {
            Some(at) => self.batch.commit.tasks[*at].task = live.task.clone(),
            None => {
                self.batch.index.insert(row, self.batch.commit.tasks.len());
                self.batch.commit.tasks.push(TaskWrite { row, expect: before, task: live.task.clone() });
            }
        }
        Ok(())
    }

    /// A task was given up: its exit conditions speak of its job as after other
    /// failures.
    fn given_up(&mut self, row: Row, job: JobKey, now: kiln_time::Timestamp) {
        let is_manager = self.live.get(&row).is_some_and(|task| task.facts.needs.manager);
        if !is_manager && self.jobs.get(&job).is_some_and(JobInfo::exit_actions) {
            let action = self.exit_action(row, &parents::end_without_code(EndCause::AgentFailure, now));
            self.inputs.push_back(Input::ExitAction { job, action });
        }
    }

    /// Says that no node of the pool could run tasks like this one.
    fn tell_unschedulable(&mut self, row: Row, job: JobKey, reason: WaitReason, now: kiln_time::Timestamp) {
        let (Some(task), Some(info)) = (self.live.get(&row), self.jobs.get(&job)) else { return };
        let names = TaskNames {
            account: &self.account,
            pool: &self.pool,
            job: &info.job,
            task: &task.id,
            slots: task.facts.needs.slots,
            traceparent: &task.traceparent,
        };
        let phase = Some(task.task.state.phase());
        let event = events::task(names, "job.task.unschedulable", phase, &task.task, None, reason.code(), now);
        self.batch.commit.events.push(event);
        self.context.metrics.unschedulable.inc();
        tracing::warn!(
            account = %self.account, pool.id = %self.pool, job.id = %info.job, task.id = %task.id,
            reason = reason.code(), "this task cannot run unless something is changed"
        );
    }

    fn remove(&mut self, row: Row, job: JobKey, now: kiln_time::Timestamp) -> Result<(), Broken> {
        // A completed task may have been removed by its job's deletion already.
        let Some(task) = self.live.get(&row) else { return Ok(()) };
        let Some(info) = self.jobs.get(&job) else { return Ok(()) };
        self.batch.counts.entry(job).or_default().moved(Some(Bucket::of(&task.task)), None, task.facts.needs.slots);
        let names = TaskNames {
            account: &self.account,
            pool: &self.pool,
            job: &info.job,
            task: &task.id,
            slots: task.facts.needs.slots,
            traceparent: &task.traceparent,
        };
        let phase = Some(task.task.state.phase());
        self.batch.commit.events.push(events::task(names, "job.task.deleted", phase, &task.task, None, "", now));
        self.batch.commit.deleted.push(row);
        self.batch.removed.insert(row);
        self.parent_removed(row, job)?;
        let Some(task) = self.live.get(&row) else { return Ok(()) };
        for (instance, node) in ran_on(&task.task.state, self.subtasks.get(&row).map_or(&[], Vec::as_slice)) {
            if let (Some(conn), Some(key)) = (self.core.conn_of(&node), self.key_of(task, task.task.attempt, instance))
            {
                self.batch.mail.to(conn).cleanup.tasks.push(key);
            }
        }
        Ok(())
    }

    fn post(&mut self, send: Send) {
        match send {
            Send::Welcome(conn) => {
                let lease = Some(duration(self.context.lease));
                self.batch.mail.to(conn).welcome = Some(Down::Welcome(Welcome { lease }));
            }
            Send::Assign(conn, row, attempt, instance) => {
                let Some(task) = self.live.get(&row) else { return };
                match self.assignment(task, attempt, instance) {
                    Ok(Some(assignment)) => {
                        let size = task.spec.len() + assignment.preparation.as_ref().map_or(0, Message::encoded_len);
                        self.batch.mail.to(conn).assignments.push((size, assignment));
                    }
                    // It has ended in the same step.
                    Ok(None) => {}
                    Err(error) => {
                        tracing::error!(row, %error, "a stored spec cannot be read; its task is given up");
                        self.inputs.push_back(Input::Unrunnable { row, attempt });
                    }
                }
            }
            Send::Stop(conn, row, attempt, instance) => {
                if let Some(key) = self.live.get(&row).and_then(|task| self.key_of(task, attempt, instance)) {
                    self.batch.mail.to(conn).stops.push(key);
                }
            }
            Send::Release(conn, job) => {
                if let Some(release) = self.jobs.get(&job).and_then(|info| info.release(job)) {
                    self.batch.mail.to(conn).releases.push(release);
                }
            }
            Send::Proceed(conn, row, attempt) => {
                if let Some(key) = self.live.get(&row).and_then(|task| self.key_of(task, attempt, 0)) {
                    self.batch.mail.to(conn).proceeds.push(key);
                }
            }
            Send::StopSeen(conn, token) => {
                if let Some(link) = self.links.get_mut(&conn)
                    && let Some(key) = link.seen.get(token as usize).cloned()
                {
                    link.foreign.insert(foreign(&key));
                    self.batch.mail.to(conn).stops.push(key);
                }
            }
        }
    }

    fn about(&self, job: JobKey, node: Arc<NodeId>) -> JobNodeWrite {
        let pool = self.pool.clone();
        JobNodeWrite {
            job,
            pool,
            node,
            incarnation: String::new(),
            barred: None,
            ran: false,
            preparation: None,
            release: None,
        }
    }

    /// Keeps what an agent says about the preparation or release of a job.
    pub(super) fn keep_job_node(&mut self, conn: Conn, key: &JobNodeKey, info: NodeTaskInfo) {
        let Some((node, incarnation)) = self.core.node_of(conn) else { return };
        let about = JobNodeWrite { incarnation, ..self.about(key.job_number, node) };
        let write = match key.task() {
            JobNodeTask::Preparation => JobNodeWrite { preparation: Some(info), ..about },
            JobNodeTask::Release => JobNodeWrite { release: Some(info), ..about },
            JobNodeTask::Unspecified => return,
        };
        self.batch.commit.job_nodes.push(write);
    }

    fn key_of(&self, task: &TaskRow, attempt: u32, instance: u32) -> Option<AttemptKey> {
        let info = self.jobs.get(&task.job)?;
        Some(AttemptKey {
            job_id: info.job.as_str().to_owned(),
            task_id: task.id.as_str().to_owned(),
            attempt,
            task_number: task.row,
            instance,
        })
    }

    fn assignment(
        &self,
        task: &TaskRow,
        attempt: u32,
        instance: u32,
    ) -> Result<Option<Assignment>, prost::DecodeError> {
        let Some(info) = self.jobs.get(&task.job) else { return Ok(None) };
        let TaskState::Running { assigned, .. } = &task.task.state else { return Ok(None) };
        let spec = TaskSpec::decode(task.spec.clone())?;
        let max_retries = if task.facts.max_retries == INHERIT_RETRIES {
            info.spec.constraints.as_ref().map_or(0, |constraints| constraints.max_task_retry_count)
        } else {
            task.facts.max_retries
        };
        let job_access = spec.job_access;
        let place = spec.multi_instance.as_ref().map(|_| self.place_of(task, instance));
        let assignment = Assignment {
            key: self.key_of(task, attempt, instance),
            environment: info.environment(&spec),
            spec: Some(spec),
            traceparent: task.traceparent.to_string(),
            tracestate: String::new(),
            assigned_time: Some(timestamp(assigned.as_micros())),
            created_time: Some(timestamp(task.created.as_micros())),
            retry_follows: retry_follows(task.task.retry_count, max_retries),
            preparation: self.preparation_of(task, instance),
            authentication_token: if job_access { self.job_token(info, task) } else { String::new() },
            instance: place,
            job_number: task.job,
        };
        Ok(Some(assignment))
    }

    /// Opens the task's own job to it, for as long as the task may live.
    fn job_token(&self, info: &JobInfo, task: &TaskRow) -> String {
        let principal = Principal::Job {
            account: self.account.as_str().to_owned(),
            job: info.job.as_str().to_owned(),
            created_micros: info.created.as_micros(),
        };
        let expires = task.created.plus(MAX_LIFE).as_micros() / 1_000_000;
        token::mint(&self.context.cluster_key, &Claims { principal, expires })
    }

    fn preparation_of(&self, task: &TaskRow, instance: u32) -> Option<Preparation> {
        let info = self.jobs.get(&task.job)?;
        let node = self.node_of_instance(task, instance)?;
        info.preparation(self.core.is_prepared_for_good(task.job, node))
    }

    /// Puts away what is no longer needed of a task.
    fn leave_if_over(&mut self, row: Row) {
        if self.core.is_live(row) {
            return;
        }
        self.subtasks.remove(&row);
        let Some(task) = self.live.remove(&row) else { return };
        if task.task.state.phase() == Phase::Active {
            self.cache.hold(task, self.batch_number);
        }
    }
}
