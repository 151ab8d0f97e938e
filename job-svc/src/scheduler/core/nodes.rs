//! Agents, their leases, and the attempts they run.

use super::*;
use crate::domain::needs::Resource;
use crate::domain::spec::{INHERIT_RETRIES, affinity_hash};
use crate::domain::task::{MAX_INTERNAL_RETRIES, Verdict, judge};

impl Core {
    pub(super) fn node_index(&mut self, name: &Arc<NodeId>, now: Now) -> u32 {
        if let Some(index) = self.by_name.get(name) {
            return *index;
        }
        let node = Node {
            name: name.clone(),
            conn: None,
            status: NodeStatus {
                slots: 0,
                accepting: false,
                running_tasks: RunningTasks::Wait,
                pack: self.pack,
                by_creation: self.by_creation,
                dedicated: false,
                capacity: Capacity::UNKNOWN,
            },
            rows: Vec::new(),
            held: Held::default(),
            overbooked: false,
            doubtful: Vec::new(),
            foreign: 0,
            lease_end: now.mono + self.settings.patience,
            queued: None,
        };
        let lease_end = node.lease_end;
        let index = match self.unused.pop() {
            Some(index) => {
                self.nodes[index as usize] = Some(node);
                index
            }
            None => {
                self.nodes.push(Some(node));
                u32::try_from(self.nodes.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.by_name.insert(name.clone(), index);
        self.by_hash.insert(affinity_hash(name.as_str()), index);
        self.timers.insert((lease_end, Timer::Lease(index)));
        index
    }

    pub(super) fn node(&mut self, index: u32) -> Option<&mut Node> {
        self.nodes.get_mut(index as usize)?.as_mut()
    }

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
        self.bind_as(job, task, &places, phase);
    }

    /// Books an attempt on a node.
    pub(super) fn bind(&mut self, job: JobKey, task: ReadyTask, index: u32) {
        self.bind_as(job, task, &[(0, index)], Phase::Running);
    }

    pub(super) fn bind_as(&mut self, job: JobKey, task: ReadyTask, places: &[(u32, u32)], phase: Phase) {
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
                node.held.add(&task.needs);
                // A zombie that is remembered after a restart was never planned for.
                node.overbooked |= phase == Phase::Zombie && !node.has_what_it_holds();
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
        self.bind_as(key, task, &places, Phase::Zombie);
        self.after.insert(task.row, After::Ready(task));
        for (_, index) in places {
            if let Some(node) = self.node(index).filter(|node| node.conn.is_some()) {
                node.doubtful.push(task.row);
            }
        }
    }

    /// Whether nothing runs on a node but what we know.
    fn is_quiet(&self, name: &Arc<NodeId>, now: Now) -> bool {
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

    fn give_up(&mut self, row: Row, live: Live, cause: GiveUpCause, now: Now, fx: &mut Effects) {
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

    #[allow(clippy::too_many_arguments)]
    pub(super) fn hello(
        &mut self,
        conn: Conn,
        name: &Arc<NodeId>,
        (incarnation, stream): (String, u64),
        status: NodeStatus,
        seen: &[Seen],
        now: Now,
        fx: &mut Effects,
    ) {
        if !self.lives.entry(name.clone()).or_default().is_news(incarnation, stream) {
            // Its view is older than what we know: taking it for the truth would
            // give attempts away that run.
            fx.close.push(conn);
            // After a reload there may be no node whose lease could run out:
            // without one what we remember would shut the agent out for ever.
            self.node_index(name, now);
            return;
        }
        let index = self.node_index(name, now);
        let lease_end = now.mono + self.settings.patience;
        let Some(node) = self.node(index) else { return };
        let old = node.conn.replace(conn);
        node.lease_end = lease_end;
        node.foreign = 0;
        node.doubtful.clear();
        let here = node.rows.clone();
        if let Some(old) = old {
            self.by_conn.remove(&old);
            fx.close.push(old);
        }
        self.by_conn.insert(conn, index);
        fx.sends.push(Send::Welcome(conn));
        let mut kept = Vec::with_capacity(here.len());
        let mut foreign = 0;
        for seen in seen {
            let current = seen.row.filter(|row| {
                self.live.get(row).is_some_and(|live| {
                    live.attempt == seen.attempt && self.instance_on(*row, live, index) == Some(seen.instance)
                })
            });
            match current {
                Some(row) => kept.push((row, seen.instance, seen.ended)),
                None if seen.ended => {}
                None => {
                    foreign += 1;
                    fx.sends.push(Send::StopSeen(conn, seen.token));
                }
            }
        }
        if let Some(node) = self.node(index) {
            node.foreign = foreign;
        }
        // Whatever the agent does not have is over: the assignment never
        // arrived, or it died with the agent's former life.
        for row in here {
            if !kept.iter().any(|(kept, _, _)| *kept == row) {
                self.lose(row, index, now, fx);
            }
        }
        for (row, instance, ended) in kept {
            if let Some(live) = self.live.get(&row)
                && live.phase != Phase::Running
                && !ended
            {
                fx.sends.push(Send::Stop(conn, row, live.attempt, instance));
            }
        }
        self.set_status(conn, status, now, fx);
        self.offer_releases(index, fx);
    }

    pub(super) fn set_status(&mut self, conn: Conn, status: NodeStatus, now: Now, fx: &mut Effects) {
        let Some(index) = self.by_conn.get(&conn).copied() else { return };
        let Some(node) = self.node(index) else { return };
        let less = node.status.has_more_than(&status);
        node.status = status;
        self.nodes_version += 1;
        let Some(node) = self.node(index) else { return };
        node.overbooked = !node.has_what_it_holds();
        let rows = if status.accepting { Vec::new() } else { node.rows.clone() };
        self.judge_all |= less;
        self.pack = status.pack;
        if self.by_creation != status.by_creation {
            self.by_creation = status.by_creation;
            let keys: Vec<JobKey> = self.jobs.keys().copied().collect();
            for key in keys {
                self.requeue_job(key);
            }
        }
        for row in rows {
            match status.running_tasks {
                RunningTasks::Requeue => self.stop_to_requeue(row, RequeueCause::NodeAction, fx),
                RunningTasks::Terminate => {
                    let job = self.live.get(&row).map(|live| live.job);
                    self.terminate_live(row, fx);
                    if let Some(job) = job {
                        self.settle(job, now, fx);
                    }
                }
                RunningTasks::Wait => {}
            }
        }
        self.refresh_node(index);
    }

    pub(super) fn renew(&mut self, conn: Conn, sequence: u64, now: Now, fx: &mut Effects) {
        let lease_end = now.mono + self.settings.patience;
        let Some(index) = self.by_conn.get(&conn).copied() else { return };
        if let Some(node) = self.node(index) {
            node.lease_end = lease_end;
            fx.grants.push((conn, sequence));
        }
    }

    pub(super) fn goodbye(&mut self, conn: Conn, now: Now, fx: &mut Effects) {
        let Some(index) = self.by_conn.remove(&conn) else { return };
        fx.close.push(conn);
        if let Some(node) = self.node(index) {
            node.conn = None;
        }
        self.remove_node(index, now, fx);
    }

    pub(super) fn disconnect(&mut self, conn: Conn) {
        let Some(index) = self.by_conn.remove(&conn) else { return };
        if let Some(node) = self.node(index) {
            node.conn = None;
        }
        self.refresh_node(index);
    }

    pub(super) fn lease_timer(&mut self, index: u32, now: Now, fx: &mut Effects) {
        let Some(node) = self.node(index) else { return };
        if node.lease_end > now.mono {
            let at = node.lease_end;
            self.timers.insert((at, Timer::Lease(index)));
            return;
        }
        fx.expired.push(node.name.clone());
        if let Some(conn) = node.conn.take() {
            self.by_conn.remove(&conn);
            fx.close.push(conn);
        }
        self.remove_node(index, now, fx);
    }

    /// Nothing runs on this node any more, as far as we may know.
    fn remove_node(&mut self, index: u32, now: Now, fx: &mut Effects) {
        let Some(node) = self.node(index) else { return };
        node.foreign = 0;
        let (rows, name) = (node.rows.clone(), node.name.clone());
        for row in rows {
            self.lose(row, index, now, fx);
        }
        self.refresh_node(index);
        let lease_end = self.node(index).map(|node| node.lease_end);
        self.by_name.remove(&name);
        self.lives.remove(&name);
        if self.by_hash.get(&affinity_hash(name.as_str())) == Some(&index) {
            self.by_hash.remove(&affinity_hash(name.as_str()));
        }
        if let Some(lease_end) = lease_end {
            self.timers.remove(&(lease_end, Timer::Lease(index)));
        }
        self.timers.retain(|(_, timer)| *timer != Timer::Lease(index));
        self.judge_all = true;
        self.nodes[index as usize] = None;
        self.unused.push(index);
        self.nodes_version += 1;
        self.excuse(&name, now, fx);
    }

    /// An attempt is over without a report.
    fn lose(&mut self, row: Row, index: u32, now: Now, fx: &mut Effects) {
        let Some(live) = self.live.get(&row).copied() else { return };
        if live.needs.instances > 1 {
            let Some(instance) = self.instance_on(row, &live, index) else { return };
            if !self.instance_lost(row, live, instance, fx) {
                return;
            }
        }
        match live.phase {
            Phase::Running => self.give_back(row, live, RequeueCause::NodeLost, now, fx),
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
        let cause = match live.phase {
            Phase::Zombie => {
                self.bury_if_gone(row, live, now, fx);
                return;
            }
            Phase::Requeuing(cause) => cause,
            Phase::Running if end.cause == EndCause::PreparationFailed => RequeueCause::PreparationFailed,
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

    pub(super) fn foreign_ended(&mut self, conn: Conn, now: Now, fx: &mut Effects) {
        let Some(index) = self.by_conn.get(&conn).copied() else { return };
        let Some(node) = self.node(index) else { return };
        node.foreign = node.foreign.saturating_sub(1);
        if node.foreign == 0 {
            // What the agent had beside these it has not: it said all in its hello.
            for row in std::mem::take(&mut node.doubtful) {
                if self.live.get(&row).is_some_and(|live| live.phase == Phase::Zombie) {
                    self.lose(row, index, now, fx);
                }
            }
            self.offer_releases(index, fx);
        }
        self.refresh_node(index);
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
    fn give_back(&mut self, row: Row, live: Live, cause: RequeueCause, now: Now, fx: &mut Effects) {
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

    pub(super) fn free_slots(&mut self, index: u32, row: Row, needs: &Needs) {
        if let Some(node) = self.node(index) {
            if let Some(at) = node.rows.iter().position(|held| *held == row) {
                node.rows.swap_remove(at);
            }
            node.held.remove(needs);
            node.overbooked &= !node.has_what_it_holds();
        }
        self.refresh_node(index);
    }

    /// Puts the node where it belongs, and tells who waits for room.
    pub(super) fn refresh_node(&mut self, index: u32) {
        self.queue_node(index);
        if let Some(node) = self.nodes.get(index as usize).and_then(Option::as_ref)
            && node.queued.is_some()
        {
            self.shapes.gained(index, |needs| node.fits(needs));
        }
    }

    /// Puts the node where it belongs among those with free slots.
    fn queue_node(&mut self, index: u32) {
        let Some(node) = self.nodes.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let free = u32::from(node.status.slots).saturating_sub(node.held.slots);
        // How many slots a foreign attempt holds is not known: nothing new
        // until it has been stopped.
        let alone = node.held.exclusive > 0;
        let usable = node.conn.is_some() && node.status.accepting && free > 0 && node.foreign == 0 && !alone;
        let usable = usable && !self.claims.contains_key(&index);
        let wanted = usable.then(|| u16::try_from(free).unwrap_or(u16::MAX));
        if wanted == node.queued {
            return;
        }
        if let Some(old) = std::mem::replace(&mut node.queued, wanted) {
            self.free.remove(&(old, index));
        }
        if let Some(new) = wanted {
            self.free.insert((new, index));
        }
    }
}

impl NodeStatus {
    /// Whether there is something that only this one could run.
    fn has_more_than(&self, other: &Self) -> bool {
        let more = |resource| self.capacity.amount(resource) > other.capacity.amount(resource);
        // A node that was not heard of could run nothing.
        self.slots > 0
            && (self.slots > other.slots || (self.dedicated && !other.dedicated) || Resource::ALL.into_iter().any(more))
    }
}

impl Node {
    /// Whether it has room for a task with these needs now.
    pub(super) fn fits(&self, needs: &Needs) -> bool {
        self.queued.is_some_and(|free| free >= needs.slots)
            && (!needs.exclusive || self.rows.is_empty())
            && self.could_fit(needs)
            && self.status.capacity.lacks(&self.held, needs).is_none()
    }

    /// Whether it would have, if nothing else ran on it.
    pub(super) fn could_fit(&self, needs: &Needs) -> bool {
        self.status.slots >= needs.slots
            && (!needs.dedicated_only || self.status.dedicated)
            && self.status.capacity.lacks(&Held::default(), needs).is_none()
    }

    /// Whether nothing of it is held twice.
    pub(super) fn has_what_it_holds(&self) -> bool {
        self.held.slots <= u32::from(self.status.slots)
            && self.status.capacity.covers(&self.held)
            && (self.held.exclusive == 0 || self.rows.len() == 1)
    }
}

impl Life {
    /// Takes note of a hello, unless it is older than the latest.
    fn is_news(&mut self, incarnation: String, stream: u64) -> bool {
        if self.former.contains(&incarnation) {
            return false;
        }
        if self.incarnation == incarnation {
            let news = stream == 0 || stream > self.stream;
            self.stream = self.stream.max(stream);
            return news;
        }
        let former = std::mem::replace(&mut self.incarnation, incarnation);
        if !former.is_empty() {
            self.former.push_back(former);
        }
        if self.former.len() > MAX_FORMER {
            self.former.pop_front();
        }
        self.stream = stream;
        true
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
