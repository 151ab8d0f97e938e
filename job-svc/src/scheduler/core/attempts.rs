//! Attempts: how they are bound to nodes, and every way they end.

use super::*;
use crate::domain::spec::INHERIT_RETRIES;
use crate::domain::task::{MAX_INTERNAL_RETRIES, Verdict, judge};

impl Core {
    /// A running attempt the store knows; its agent has the length of a lease
    /// to say hello.
    pub(super) fn adopt(&mut self, job: JobKey, task: ReadyTask, nodes: &[(u32, Arc<NodeId>)], now: Now) {
        if self.live.contains_key(&task.row) {
            return;
        }
        let places: Vec<(u32, u32)> =
            nodes.iter().map(|(instance, name)| (*instance, self.node_index(name, now))).collect();
        // Of several instances some have gone: it was being stopped, and those
        // that are left may not have heard of it.
        let whole = places.len() == usize::from(task.needs.instances);
        let phase = if whole { Phase::Running } else { Phase::Requeuing(RequeueCause::NodeLost) };
        self.bind_as(job, task, &places, phase, Booking::Found);
    }

    /// Books an attempt on a node.
    pub(super) fn bind(&mut self, job: JobKey, task: ReadyTask, index: u32, booking: Booking) {
        self.bind_as(job, task, &[(0, index)], Phase::Running, booking);
    }

    pub(super) fn bind_as(
        &mut self,
        job: JobKey,
        task: ReadyTask,
        places: &[(u32, u32)],
        phase: Phase,
        booking: Booking,
    ) {
        let Some((_, first)) = places.first().copied() else { return };
        let live = Live {
            job,
            node: first,
            attempt: task.attempt,
            needs: task.needs,
            retry_count: task.retry_count,
            internal_retries: task.internal_retries,
            max_retries: task.max_retries,
            affinity: task.affinity,
            phase,
            since: self.served,
        };
        self.live.insert(task.row, live);
        if task.needs.instances > 1 {
            self.gangs.insert(task.row, gangs::Gang::new(places));
        }
        for (_, index) in places {
            if let Some(node) = self.node(*index) {
                node.rows.push(task.row);
                if booking == Booking::Line {
                    node.ahead.push_back(task.row);
                } else {
                    node.held.add(&task.needs);
                }
                node.overbooked |= booking == Booking::Found && !node.has_what_it_holds();
            }
            self.queue_node(*index);
        }
        if let Some(job) = self.jobs.get_mut(&job) {
            if phase == Phase::Zombie {
                job.zombies += 1;
            } else {
                job.running += 1;
                job.running_slots += task.needs.all_slots();
            }
        }
    }

    /// A task that may run again once its former attempt is known to be over:
    /// its node has said so, or its lease has run out.
    pub(super) fn hold(
        &mut self,
        key: JobKey,
        task: ReadyTask,
        nodes: &[(u32, Arc<NodeId>)],
        now: Now,
        fx: &mut Effects,
    ) {
        if !self.jobs.contains_key(&key) {
            return;
        }
        let (may_run, over): (Vec<_>, Vec<_>) = nodes.iter().partition(|(_, name)| !self.is_quiet(name, now));
        let known = self.live.contains_key(&task.row) || self.is_waiting(key, &task);
        if task.needs.instances > 1 && !known {
            let lost = |(instance, _): &(u32, _)| InstanceChange::Happened(*instance, SubtaskEvent::Lose);
            fx.subtasks.extend(over.into_iter().map(|place| (task.row, lost(place))));
        }
        if may_run.is_empty() || known {
            self.add(key, vec![task], now, fx);
            return;
        }
        let places: Vec<(u32, u32)> =
            may_run.into_iter().map(|(instance, name)| (*instance, self.node_index(name, now))).collect();
        self.bind_as(key, task, &places, Phase::Zombie, Booking::Found);
        self.after.insert(task.row, After::Ready(task));
        for (_, index) in places {
            if let Some(node) = self.node(index).filter(|node| node.conn.is_some()) {
                node.doubtful.push(task.row);
            }
        }
    }

    /// Whether nothing runs on a node but what we know.
    pub(super) fn is_quiet(&self, name: &Arc<NodeId>, now: Now) -> bool {
        match self.by_name.get(name).and_then(|index| self.nodes.get(*index as usize)?.as_ref()) {
            Some(node) => node.conn.is_some() && node.foreign == 0,
            // Silent for as long as we live.
            None => self.began.is_some_and(|began| now.mono >= began + self.settings.patience),
        }
    }

    /// Nothing of this attempt was sent, and nothing can be.
    pub(super) fn unrunnable(&mut self, row: Row, attempt: u32, now: Now, fx: &mut Effects) {
        let Some(live) = self.live.get(&row).copied().filter(|live| live.attempt == attempt) else { return };
        match live.phase {
            Phase::Running | Phase::Requeuing(_) => self.give_up(row, live, GiveUpCause::UnreadableSpec, now, fx),
            // What runs of several instances says so itself.
            Phase::Zombie if live.needs.instances > 1 => {}
            Phase::Zombie => self.bury(row, live, now, fx),
        }
    }

    pub(super) fn give_up(&mut self, row: Row, live: Live, cause: GiveUpCause, now: Now, fx: &mut Effects) {
        fx.tasks.push((row, live.job, TaskEvent::GiveUp { attempt: live.attempt, cause }));
        self.over(row, live, None, fx);
        self.manager_ended(live.job, &live.needs, fx);
        self.requeue_job(live.job);
        // What its exit conditions say comes next.
        if self.jobs.get(&live.job).is_some_and(|job| job.view.exit_actions) && !live.needs.manager {
            return;
        }
        self.settle(live.job, now, fx);
    }

    /// An attempt is over without a report.
    pub(super) fn lose(&mut self, row: Row, index: u32, now: Now, fx: &mut Effects) {
        let Some(live) = self.live.get(&row).copied() else { return };
        if live.needs.instances > 1 {
            let Some(instance) = self.instance_on(row, &live, index) else { return };
            if !self.instance_lost(row, live, instance, fx) {
                return;
            }
        }
        match live.phase {
            Phase::Running => {
                self.forget_pace(live.job);
                self.give_back(row, live, RequeueCause::NodeLost, now, fx);
            }
            Phase::Requeuing(cause) => self.give_back(row, live, cause, now, fx),
            Phase::Zombie => self.bury_if_gone(row, live, now, fx),
        }
    }

    pub(super) fn started(
        &mut self,
        conn: Conn,
        row: Row,
        attempt: u32,
        instance: u32,
        at: Timestamp,
        fx: &mut Effects,
    ) {
        let Some((live, node)) = self.current(conn, row, attempt, instance) else { return };
        self.note_begun(live.job, node, fx);
        if live.needs.instances > 1 {
            fx.subtasks.push((row, InstanceChange::Happened(instance, SubtaskEvent::Start(at))));
            if instance > 0 {
                return;
            }
        }
        if live.phase != Phase::Zombie {
            fx.tasks.push((row, live.job, TaskEvent::Start { attempt, at }));
        }
    }

    /// The attempt, if it is the current one and this is its node's stream.
    /// With that node.
    pub(super) fn current(&self, conn: Conn, row: Row, attempt: u32, instance: u32) -> Option<(Live, u32)> {
        let index = *self.by_conn.get(&conn)?;
        let live = self.live.get(&row)?;
        let is_here = live.attempt == attempt && self.instance_on(row, live, index) == Some(instance);
        is_here.then_some((*live, index))
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn ended(
        &mut self,
        conn: Conn,
        row: Row,
        (attempt, instance): (u32, u32),
        end: AttemptEnd,
        action: JobAction,
        now: Now,
        fx: &mut Effects,
    ) {
        let Some((live, node)) = self.current(conn, row, attempt, instance) else { return };
        if end.cause == EndCause::PreparationFailed {
            self.bar(live.job, node, fx);
        } else if end.start.is_some() {
            self.note_begun(live.job, node, fx);
        }
        if live.needs.instances > 1 && !self.instance_ended(row, live, instance, &end, fx) {
            return;
        }
        if live.phase == Phase::Running {
            self.learn(live.job, &end);
        }
        let cause = match live.phase {
            Phase::Zombie => {
                self.bury_if_gone(row, live, now, fx);
                return;
            }
            Phase::Requeuing(cause) => cause,
            Phase::Running if end.cause == EndCause::PreparationFailed => RequeueCause::PreparationFailed,
            Phase::Running if end.cause == EndCause::NotStarted => RequeueCause::NotStarted,
            Phase::Running => RequeueCause::AgentFailure,
        };
        let default = self.jobs.get(&live.job).map_or(0, |job| job.view.default_retries);
        let max = if live.max_retries == INHERIT_RETRIES { default } else { live.max_retries };
        match judge(&end, live.retry_count, max) {
            Verdict::Finish => {
                let by_request = end.cause == EndCause::Stopped;
                fx.tasks.push((row, live.job, TaskEvent::Finish { attempt, end }));
                self.over(row, live, None, fx);
                if live.needs.manager {
                    self.manager_ended(live.job, &live.needs, fx);
                } else if !by_request {
                    self.exit_action(live.job, action, fx);
                }
            }
            Verdict::Retry => {
                fx.tasks.push((row, live.job, TaskEvent::Retry { attempt, end }));
                let again = ReadyTask { retry_count: live.retry_count + 1, ..live.ready(row) };
                self.over(row, live, Some(again), fx);
            }
            Verdict::Requeue => {
                self.give_back(row, live, cause, now, fx);
                return;
            }
        }
        self.requeue_job(live.job);
        self.settle(live.job, now, fx);
    }

    /// Asks the agent to stop an attempt that will be run again later.
    pub(super) fn stop_to_requeue(&mut self, row: Row, cause: RequeueCause, fx: &mut Effects) {
        let Some(live) = self.live.get_mut(&row) else { return };
        if live.phase != Phase::Running {
            return;
        }
        live.phase = Phase::Requeuing(cause);
        let live = *live;
        self.send_stop(row, live, fx);
    }

    /// Ends a running task: it is completed at once, its process is stopped,
    /// its slots are free when the agent has confirmed that.
    pub(super) fn terminate_live(&mut self, row: Row, fx: &mut Effects) {
        let Some(live) = self.live.get_mut(&row) else { return };
        if live.phase == Phase::Zombie {
            return;
        }
        live.phase = Phase::Zombie;
        let live = *live;
        fx.tasks.push((row, live.job, TaskEvent::Terminate));
        if let Some(job) = self.jobs.get_mut(&live.job) {
            job.running -= 1;
            job.running_slots -= live.needs.all_slots();
            job.zombies += 1;
        }
        self.send_stop(row, live, fx);
        self.manager_ended(live.job, &live.needs, fx);
        self.requeue_job(live.job);
    }

    pub(super) fn send_stop(&mut self, row: Row, live: Live, fx: &mut Effects) {
        for (instance, index) in self.places(row, &live) {
            if let Some(conn) = self.node(index).and_then(|node| node.conn) {
                fx.sends.push(Send::Stop(conn, row, live.attempt, instance));
            }
        }
    }

    /// The attempt is over; the task waits again, unless that was so too often.
    pub(super) fn give_back(&mut self, row: Row, live: Live, cause: RequeueCause, now: Now, fx: &mut Effects) {
        if cause.is_internal() && live.internal_retries >= MAX_INTERNAL_RETRIES {
            self.give_up(row, live, GiveUpCause::TooManyInternalRetries, now, fx);
            return;
        }
        fx.tasks.push((row, live.job, TaskEvent::Requeue { attempt: live.attempt, cause }));
        let internal_retries = live.internal_retries + u32::from(cause.is_internal());
        self.over(row, live, Some(ReadyTask { internal_retries, ..live.ready(row) }), fx);
        self.requeue_job(live.job);
        self.settle(live.job, now, fx);
    }

    /// The process of a terminated task has gone.
    pub(super) fn bury(&mut self, row: Row, live: Live, now: Now, fx: &mut Effects) {
        self.inter(row, live, fx);
        self.settle(live.job, now, fx);
    }

    /// What follows from that, apart from what it means for the job.
    pub(super) fn inter(&mut self, row: Row, live: Live, fx: &mut Effects) {
        self.live.remove(&row);
        fx.forget.push(row);
        self.leave_nodes(row, &live);
        if let Some(job) = self.jobs.get_mut(&live.job) {
            job.zombies -= 1;
            job.more_to_come = false;
        }
        match self.after.remove(&row) {
            None => {}
            Some(After::Ready(task)) => {
                self.insert_ready(live.job, task);
                self.requeue_job(live.job);
            }
            Some(After::Delete(replies)) => {
                fx.deleted.push((row, live.job));
                fx.replies.extend(replies.into_iter().map(|reply| (reply, Ok(()))));
            }
        }
    }

    pub(super) fn release(&mut self, row: Row, live: Live) {
        self.live.remove(&row);
        self.leave_nodes(row, &live);
        if let Some(job) = self.jobs.get_mut(&live.job) {
            job.running -= 1;
            job.running_slots -= live.needs.all_slots();
            job.more_to_come = false;
        }
    }
}

impl Live {
    fn ready(&self, row: Row) -> ReadyTask {
        ReadyTask {
            row,
            needs: self.needs,
            attempt: self.attempt,
            retry_count: self.retry_count,
            internal_retries: self.internal_retries,
            max_retries: self.max_retries,
            affinity: self.affinity,
        }
    }
}
