//! Agents and their leases, and what their nodes have.

use super::*;
use crate::domain::needs::Resource;
use crate::domain::spec::affinity_hash;

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
            ahead: VecDeque::new(),
            overbooked: false,
            doubtful: Vec::new(),
            foreign: 0,
            lease_end: now.mono + self.settings.patience,
            queued: None,
            line_place: None,
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
        self.promote(index);
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

    pub(super) fn free_slots(&mut self, index: u32, row: Row, needs: &Needs) {
        if let Some(node) = self.node(index) {
            if let Some(at) = node.rows.iter().position(|held| *held == row) {
                node.rows.swap_remove(at);
            }
            match node.ahead.iter().position(|waits| *waits == row) {
                Some(at) => {
                    node.ahead.remove(at);
                }
                None => node.held.remove(needs),
            }
            node.overbooked &= !node.has_what_it_holds();
        }
        self.promote(index);
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
    pub(super) fn queue_node(&mut self, index: u32) {
        let Some(node) = self.nodes.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let free = u32::from(node.status.slots).saturating_sub(node.held.slots);
        // How many slots a foreign attempt holds is not known: nothing new
        // until it has been stopped.
        let alone = node.held.exclusive > 0;
        let usable = node.conn.is_some() && node.status.accepting && free > 0 && node.foreign == 0 && !alone;
        let usable = usable && !self.claims.contains_key(&index);
        let wanted = usable.then(|| u16::try_from(free).unwrap_or(u16::MAX));
        let old = std::mem::replace(&mut node.queued, wanted);
        if wanted != old {
            if let Some(old) = old {
                self.free.remove(&(old, index));
            }
            if let Some(new) = wanted {
                self.free.insert((new, index));
            }
        }
        self.queue_busy(index);
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
        // One that this scheduler has never heard of, after a restart of its own perhaps.
        if is_earlier(&incarnation, &self.incarnation) {
            return false;
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

/// Whether one life of an agent began before another. Agents name their lives by UUIDs of version 7, which begin
/// with the time; other names are not compared. A node whose clock was set back is let in when the lease of its former
/// life is over.
fn is_earlier(life: &str, other: &str) -> bool {
    let begun = |life: &str| uuid::Uuid::parse_str(life).ok().filter(|uuid| uuid.get_version_num() == 7);
    matches!((begun(life), begun(other)), (Some(life), Some(other)) if life < other)
}
