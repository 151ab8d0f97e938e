//! Waiting tasks, and what the states of jobs do to them.

use super::*;
use crate::domain::job::{self, DisableTasks, JobEvent};

impl Core {
    pub(super) fn load(
        &mut self,
        key: JobKey,
        ready: Vec<ReadyTask>,
        running: Vec<(ReadyTask, Places)>,
        now: Now,
        fx: &mut Effects,
    ) {
        for (task, nodes) in running {
            self.adopt(key, task, &nodes, now);
        }
        for task in ready {
            self.insert_ready(key, task);
        }
        self.arm_wall_clock(key, now);
        self.react(key, now, fx);
    }

    pub(super) fn change_job(&mut self, view: JobView, answer: bool, now: Now, fx: &mut Effects) {
        let key = view.key;
        let Some(job) = self.jobs.get_mut(&key) else { return };
        if answer {
            job.pending = false;
            // Denied: the store has open tasks that we will hear of.
            job.more_to_come = std::mem::take(&mut job.asked_to_complete) && view.state == JobState::Active;
        }
        if view.version < job.view.version {
            return;
        }
        if !answer && view.state != job.view.state && view.state.is_transitional() {
            job.linger_until = now.mono + self.settings.linger;
        }
        job.view = view;
        if job.view.state == JobState::Completed {
            self.drop_job(key, fx);
            return;
        }
        self.arm_wall_clock(key, now);
        self.react(key, now, fx);
    }

    /// Forgets a job and what waits in it.
    pub(super) fn drop_job(&mut self, key: JobKey, fx: &mut Effects) {
        self.dequeue(key);
        self.releasing.remove(&key);
        self.drop_dependants(key);
        let Some(job) = self.jobs.remove(&key) else { return };
        if let Some(priority) = job.soft {
            self.soft.remove(&(priority, key));
        }
        self.waiting -= job.ready_count;
        self.forget_waiting(key, job.ready);
        // Nothing should run any more; if it does, the agents' next views tell.
        let rows: Vec<Row> = self.live.iter().filter(|(_, live)| live.job == key).map(|(row, _)| *row).collect();
        for row in rows {
            if let Some(live) = self.live.remove(&row) {
                self.leave_nodes(row, &live);
                fx.forget.push(row);
            }
            if let Some(After::Delete(replies)) = self.after.remove(&row) {
                fx.replies.extend(replies.into_iter().map(|reply| (reply, Ok(()))));
            }
        }
    }

    pub(super) fn add(&mut self, key: JobKey, tasks: Vec<ReadyTask>, now: Now, fx: &mut Effects) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        job.more_to_come = false;
        for task in tasks {
            self.insert_ready(key, task);
        }
        self.requeue_job(key);
        self.settle(key, now, fx);
    }

    /// Puts a task among those that wait, unless it is known.
    pub(super) fn insert_ready(&mut self, key: JobKey, task: ReadyTask) {
        if let Some(live) = self.live.get(&task.row) {
            if live.phase == Phase::Zombie {
                // A deletion that waits for the zombie goes on waiting: it then
                // removes the task that was activated again.
                self.after.entry(task.row).or_insert(After::Ready(task));
            }
            return;
        }
        let Some(job) = self.jobs.get_mut(&key) else { return };
        match job.view.state {
            JobState::Active | JobState::Disabling(_) | JobState::Disabled | JobState::Enabling => {}
            // They stay as they are for ever, and never run.
            JobState::Terminating | JobState::Completed | JobState::Deleting => return,
        }
        let waiting = Waiting {
            attempt: task.attempt,
            retry_count: task.retry_count,
            internal_retries: task.internal_retries,
            max_retries: task.max_retries,
            affinity: task.affinity,
        };
        // Whoever brings a task that waits already has read it before we went on
        // with it.
        let known = self.shapes.find(&task.needs).and_then(|shape| job.ready.get(&shape));
        if known.is_some_and(|bucket| bucket.contains_key(&task.row)) || self.parked.contains_key(&task.row) {
            return;
        }
        job.ready_count += 1;
        self.waiting += 1;
        match self.shapes.enter(&task.needs) {
            Some(shape) => {
                let bucket = job.ready.entry(shape).or_default();
                if bucket.is_empty() && !job.reported.contains(&shape) {
                    self.unjudged.insert((key, shape));
                }
                bucket.insert(task.row, waiting);
            }
            None => {
                self.parked.insert(task.row, (key, task));
            }
        }
    }

    pub(super) fn is_waiting(&self, key: JobKey, task: &ReadyTask) -> bool {
        self.waits(key, &task.needs, task.row)
    }

    pub(super) fn waits(&self, key: JobKey, needs: &Needs, row: Row) -> bool {
        let bucket = self.shapes.find(needs).and_then(|shape| self.jobs.get(&key)?.ready.get(&shape));
        bucket.is_some_and(|bucket| bucket.contains_key(&row))
            || self.parked.contains_key(&row)
            || self.waits_for_others(key, row)
    }

    /// Takes a task out of those that wait.
    pub(super) fn take_ready(&mut self, key: JobKey, needs: &Needs, row: Row) -> Option<ReadyTask> {
        if let Some(task) = self.take_dependant(key, row) {
            return Some(task);
        }
        if let Some((_, task)) = self.parked.remove(&row) {
            if let Some(job) = self.jobs.get_mut(&key) {
                job.ready_count -= 1;
            }
            self.waiting -= 1;
            return Some(task);
        }
        let shape = self.shapes.find(needs)?;
        let job = self.jobs.get_mut(&key)?;
        let bucket = job.ready.get_mut(&shape)?;
        let waiting = bucket.remove(&row)?;
        if bucket.is_empty() {
            job.ready.remove(&shape);
            job.reported.retain(|reported| *reported != shape);
        }
        job.ready_count -= 1;
        self.waiting -= 1;
        if self.shapes.leave(shape) {
            self.unpark();
        }
        Some(ReadyTask {
            row,
            needs: *needs,
            attempt: waiting.attempt,
            retry_count: waiting.retry_count,
            internal_retries: waiting.internal_retries,
            max_retries: waiting.max_retries,
            affinity: waiting.affinity,
        })
    }

    /// Some needs are gone: the oldest task that had no place among them comes in.
    fn unpark(&mut self) {
        let Some((_, (key, task))) = self.parked.pop_first() else { return };
        if let Some(job) = self.jobs.get_mut(&key) {
            job.ready_count -= 1;
            self.waiting -= 1;
            self.insert_ready(key, task);
            self.requeue_job(key);
        }
    }

    /// The tasks of a job that waited do so no more.
    fn forget_waiting(&mut self, key: JobKey, ready: BTreeMap<Shape, BTreeMap<Row, Waiting>>) {
        self.parked.retain(|_, (job, _)| *job != key);
        let mut left = 0;
        for (shape, bucket) in ready {
            left += bucket.into_keys().filter(|_| self.shapes.leave(shape)).count();
        }
        for _ in 0..left {
            self.unpark();
        }
    }

    pub(super) fn set_retries(&mut self, key: JobKey, row: Row, needs: &Needs, max_retries: i32) {
        if let Some(live) = self.live.get_mut(&row) {
            live.max_retries = max_retries;
        }
        if let Some(After::Ready(task)) = self.after.get_mut(&row) {
            task.max_retries = max_retries;
        }
        if let Some((_, task)) = self.parked.get_mut(&row) {
            task.max_retries = max_retries;
        }
        if let Some(graph) = self.jobs.get_mut(&key).and_then(|job| job.graph.as_mut()) {
            graph.set_retries(row, max_retries);
        }
        if let Some(shape) = self.shapes.find(needs)
            && let Some(job) = self.jobs.get_mut(&key)
            && let Some(waiting) = job.ready.get_mut(&shape).and_then(|bucket| bucket.get_mut(&row))
        {
            waiting.max_retries = max_retries;
        }
    }

    pub(super) fn terminate(
        &mut self,
        job: JobKey,
        row: Row,
        needs: &Needs,
        reply: ReplyId,
        now: Now,
        fx: &mut Effects,
    ) {
        let result = match self.live.get(&row).map(|live| live.phase) {
            Some(Phase::Zombie) => match self.after.get(&row) {
                // Activated again, and ended again before it could run.
                Some(After::Ready(_)) => {
                    self.after.remove(&row);
                    fx.tasks.push((row, job, TaskEvent::Terminate));
                    self.manager_ended(job, needs, fx);
                    Ok(())
                }
                Some(After::Delete(_)) | None => Err(Refused::Completed),
            },
            Some(Phase::Running | Phase::Requeuing(_)) => {
                self.terminate_live(row, fx);
                Ok(())
            }
            None if self.take_ready(job, needs, row).is_some() => {
                fx.tasks.push((row, job, TaskEvent::Terminate));
                self.manager_ended(job, needs, fx);
                self.requeue_job(job);
                Ok(())
            }
            None => Err(Refused::Unknown),
        };
        fx.replies.push((reply, result));
        self.settle(job, now, fx);
    }

    pub(super) fn delete(&mut self, job: JobKey, row: Row, needs: &Needs, reply: ReplyId, now: Now, fx: &mut Effects) {
        match self.live.get(&row).map(|live| live.phase) {
            Some(phase) => {
                if phase != Phase::Zombie {
                    self.terminate_live(row, fx);
                }
                match self.after.entry(row).or_insert_with(|| After::Delete(Vec::new())) {
                    After::Delete(replies) => replies.push(reply),
                    // Activated again, and deleted before it could run.
                    ready @ After::Ready(_) => *ready = After::Delete(vec![reply]),
                }
            }
            None if self.take_ready(job, needs, row).is_some() => {
                fx.deleted.push((row, job));
                fx.replies.push((reply, Ok(())));
                self.manager_ended(job, needs, fx);
                self.requeue_job(job);
            }
            None => fx.replies.push((reply, Err(Refused::Unknown))),
        }
        self.settle(job, now, fx);
    }

    /// Does to the job's tasks what its state says.
    fn react(&mut self, key: JobKey, now: Now, fx: &mut Effects) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        match job.view.state {
            JobState::Active
            | JobState::Disabled
            | JobState::Enabling
            | JobState::Completed
            | JobState::Disabling(DisableTasks::Wait) => {}
            JobState::Disabling(DisableTasks::Requeue) => {
                for row in self.rows_of(key) {
                    self.stop_to_requeue(row, RequeueCause::JobDisabled, fx);
                }
            }
            JobState::Disabling(DisableTasks::Terminate) => {
                for row in self.rows_of(key) {
                    self.terminate_live(row, fx);
                }
            }
            JobState::Terminating | JobState::Deleting => {
                self.waiting -= job.ready_count;
                job.ready_count = 0;
                let ready = std::mem::take(&mut job.ready);
                job.reported.clear();
                self.forget_waiting(key, ready);
                self.drop_dependants(key);
                for row in self.rows_of(key) {
                    self.terminate_live(row, fx);
                }
            }
        }
        self.requeue_job(key);
        self.settle(key, now, fx);
    }

    /// Attempts of a job whose task is running. Looks at all attempts of the
    /// pool: their number is bounded by its slots, and jobs change rarely.
    fn rows_of(&self, key: JobKey) -> Vec<Row> {
        let of_job = self.live.iter().filter(|(_, live)| live.job == key && live.phase != Phase::Zombie);
        let mut rows: Vec<Row> = of_job.map(|(row, _)| *row).collect();
        rows.sort_unstable();
        rows
    }

    /// Moves the job on if nothing of it runs any more.
    pub(super) fn settle(&mut self, key: JobKey, now: Now, fx: &mut Effects) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        if job.pending || job.running > 0 {
            return;
        }
        let state = job.view.state;
        if state == JobState::Active {
            let stuck = job.graph.as_ref().map_or(Some(0), |graph| graph.is_all_stuck().then(|| graph.waiting()));
            if job.view.ends_when_complete
                && job.ready_count == 0
                && !job.more_to_come
                && let Some(stuck) = stuck
            {
                job.pending = true;
                job.asked_to_complete = true;
                let event = JobEvent::Terminate(job::REASON_ALL_COMPLETE.to_owned());
                fx.jobs.push(JobWrite { job: key, event, only_if_open: Some(stuck) });
            }
            return;
        }
        if !state.is_transitional() || job.zombies > 0 {
            return;
        }
        if matches!(state, JobState::Terminating | JobState::Deleting) && !self.is_released(key, now, fx) {
            return;
        }
        let Some(job) = self.jobs.get_mut(&key) else { return };
        if job.linger_until > now.mono {
            self.timers.insert((job.linger_until, Timer::Job(key)));
            return;
        }
        if state == JobState::Deleting {
            fx.purge.push(key);
            self.drop_job(key, fx);
        } else {
            job.pending = true;
            fx.jobs.push(JobWrite { job: key, event: JobEvent::Drained, only_if_open: None });
        }
    }

    fn arm_wall_clock(&mut self, key: JobKey, now: Now) {
        if let Some(end) = self.jobs.get(&key).and_then(|job| job.view.wall_clock_end) {
            self.timers.insert((now.mono + end.since(now.wall), Timer::Job(key)));
        }
    }

    pub(super) fn job_timer(&mut self, key: JobKey, now: Now, fx: &mut Effects) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        let alive = match job.view.state {
            JobState::Active | JobState::Disabling(_) | JobState::Disabled | JobState::Enabling => true,
            JobState::Terminating | JobState::Completed | JobState::Deleting => false,
        };
        if alive && let Some(end) = job.view.wall_clock_end {
            if end <= now.wall {
                if job.pending {
                    // Somebody else's change is under way: look again soon.
                    self.timers.insert((now.mono + Duration::from_millis(20), Timer::Job(key)));
                } else {
                    self.end_job(key, JobEvent::Terminate(job::REASON_WALL_CLOCK.to_owned()), fx);
                }
                return;
            }
            self.arm_wall_clock(key, now);
        }
        self.settle(key, now, fx);
    }

    /// The scheduler itself changes a job: nothing more of it is placed.
    pub(super) fn end_job(&mut self, key: JobKey, event: JobEvent, fx: &mut Effects) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        job.pending = true;
        fx.jobs.push(JobWrite { job: key, event, only_if_open: None });
        self.dequeue(key);
    }

    /// A task is over, or gone. If it was the job's manager, the job may end.
    pub(super) fn manager_ended(&mut self, key: JobKey, needs: &Needs, fx: &mut Effects) {
        let Some(job) = self.jobs.get(&key).filter(|job| needs.manager && job.view.ends_with_manager) else { return };
        match job.view.state {
            JobState::Active | JobState::Disabling(_) | JobState::Disabled | JobState::Enabling => {
                self.end_job(key, JobEvent::Terminate(job::REASON_MANAGER.to_owned()), fx);
            }
            JobState::Terminating | JobState::Completed | JobState::Deleting => {}
        }
    }

    /// What a task's exit conditions say about its job.
    pub(super) fn exit_action(&mut self, key: JobKey, action: JobAction, fx: &mut Effects) {
        let Some(job) = self.jobs.get(&key) else { return };
        if !job.view.exit_actions || job.view.state != JobState::Active {
            return;
        }
        match action {
            JobAction::None => {}
            JobAction::Disable => self.end_job(key, JobEvent::Disable(DisableTasks::Requeue), fx),
            JobAction::Terminate => self.end_job(key, JobEvent::Terminate(job::REASON_TASK_FAILED.to_owned()), fx),
        }
    }

    /// Puts the job where it belongs among those with something to run.
    pub(super) fn requeue_job(&mut self, key: JobKey) {
        self.note_soft(key);
        let by_creation = self.by_creation;
        let Some(job) = self.jobs.get_mut(&key) else { return };
        let full = job.view.max_parallel.is_some_and(|max| job.running >= max);
        if job.view.state != JobState::Active || job.pending || full || job.ready_count == 0 {
            self.dequeue(key);
            return;
        }
        let share =
            if by_creation { u64::try_from(job.view.created.as_micros()).unwrap_or(0) } else { job.running_slots };
        let order = (-job.view.priority, share, job.served);
        if let Some(old) = job.queued
            && job.queued_shapes.iter().eq(job.ready.keys())
        {
            // Only its turn has changed, as with most placements and ends.
            job.queued = Some(order);
            for shape in job.queued_shapes.iter().filter(|_| order != old) {
                if let Some(set) = self.eligible.get_mut(shape) {
                    set.remove(&(old, key));
                    set.insert((order, key));
                }
            }
            return;
        }
        self.dequeue(key);
        let Some(job) = self.jobs.get_mut(&key) else { return };
        job.queued = Some(order);
        job.queued_shapes.extend(job.ready.keys());
        for shape in &job.queued_shapes {
            self.eligible.entry(*shape).or_default().insert((order, key));
        }
    }

    pub(super) fn dequeue(&mut self, key: JobKey) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        let Some(order) = job.queued.take() else { return };
        for shape in job.queued_shapes.drain(..) {
            if let Some(set) = self.eligible.get_mut(&shape) {
                set.remove(&(order, key));
                if set.is_empty() {
                    self.eligible.remove(&shape);
                }
            }
        }
    }
}

impl Job {
    pub(super) fn new(view: JobView, nodes: Vec<(Arc<NodeId>, OnNode)>) -> Self {
        Self {
            prep: view.preparation.map(|_| Box::new(Prep::new(nodes))),
            view,
            ready: BTreeMap::new(),
            ready_count: 0,
            running: 0,
            running_slots: 0,
            zombies: 0,
            served: 0,
            queued: None,
            queued_shapes: Vec::new(),
            reported: Vec::new(),
            pending: false,
            asked_to_complete: false,
            more_to_come: false,
            linger_until: Duration::ZERO,
            graph: None,
            soft: None,
            pace: Pace::default(),
        }
    }
}
