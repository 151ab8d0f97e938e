//! Attempts with several instances, each on a node of its own.
//!
//! All nodes are taken at once or none. When every instance is ready the
//! primary goes on with the command of the task. Its end is the task's; the end
//! of any other but a good one, or the loss of its node, ends the attempt as
//! well. That is recorded at once, the other instances are stopped, and what is
//! left is a zombie: its nodes keep their slots, and a next attempt waits until
//! the last instance has gone.

use super::*;

/// One instance of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Member {
    node: u32,
    ready: bool,
    gone: bool,
}

/// The instances of an attempt, by their numbers.
#[derive(Debug)]
pub(super) struct Gang {
    members: Vec<Member>,
    proceeded: bool,
}

impl Gang {
    /// Instances and their nodes; those in between have gone before.
    pub(super) fn new(places: &[(u32, u32)]) -> Self {
        let count = places.iter().map(|(instance, _)| *instance as usize + 1).max().unwrap_or(0);
        let mut members = vec![Member { node: u32::MAX, ready: true, gone: true }; count];
        for (instance, node) in places {
            members[*instance as usize] = Member { node: *node, ready: false, gone: false };
        }
        Self { members, proceeded: false }
    }

    /// Those that may still run, with their nodes.
    pub(super) fn places(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let here = self.members.iter().zip(0..).filter(|(member, _)| !member.gone);
        here.map(|(member, instance)| (instance, member.node))
    }
}

impl Core {
    /// Instances that may still run, with their nodes.
    pub(super) fn places(&self, row: Row, live: &Live) -> Vec<(u32, u32)> {
        match self.gangs.get(&row) {
            Some(gang) if live.needs.instances > 1 => gang.places().collect(),
            Some(_) | None => vec![(0, live.node)],
        }
    }

    /// The instance of an attempt that may still run on a node.
    pub(super) fn instance_on(&self, row: Row, live: &Live, node: u32) -> Option<u32> {
        if live.needs.instances == 1 {
            return (live.node == node).then_some(0);
        }
        let mut places = self.gangs.get(&row)?.places();
        places.find(|(_, place)| *place == node).map(|(instance, _)| instance)
    }

    /// Gives back the slots of all that may still run.
    pub(super) fn leave_nodes(&mut self, row: Row, live: &Live) {
        if live.needs.instances == 1 {
            self.free_slots(live.node, row, &live.needs);
            return;
        }
        for (_, node) in self.places(row, live) {
            self.free_slots(node, row, &live.needs);
        }
        self.gangs.remove(&row);
    }

    /// Places all instances; the first node is the primary's.
    pub(super) fn place_gang(&mut self, key: JobKey, task: ReadyTask, nodes: &[u32], fx: &mut Effects) {
        let places: Vec<(u32, u32)> = (0..).zip(nodes.iter().copied()).collect();
        self.bind_as(key, task, &places, Phase::Running, Booking::Slot);
        let mut names = Vec::with_capacity(nodes.len());
        for (instance, index) in places {
            let Some(node) = self.nodes[index as usize].as_ref() else { continue };
            names.push(node.name.clone());
            if let Some(conn) = node.conn {
                fx.sends.push(Send::Assign(conn, task.row, task.attempt, instance));
            }
        }
        fx.subtasks.push((task.row, InstanceChange::Assigned { attempt: task.attempt, nodes: names }));
    }

    /// An instance has its common files, and its coordination command has ended
    /// well. Said again after a reconnect, so that the primary hears of it, too.
    pub(super) fn instance_ready(&mut self, conn: Conn, row: Row, attempt: u32, instance: u32, fx: &mut Effects) {
        let Some((live, _)) = self.current(conn, row, attempt, instance) else { return };
        if live.needs.instances == 1 {
            // It is all there is.
            fx.sends.push(Send::Proceed(conn, row, attempt));
            return;
        }
        let Some(member) = self.gangs.get_mut(&row).and_then(|gang| gang.members.get_mut(instance as usize)) else {
            return;
        };
        if !member.ready {
            member.ready = true;
            fx.subtasks.push((row, InstanceChange::Happened(instance, SubtaskEvent::Ready)));
        }
        self.proceed(row, live, instance == 0, fx);
    }

    /// Lets the primary go on if all are ready.
    fn proceed(&mut self, row: Row, live: Live, again: bool, fx: &mut Effects) {
        let Some(gang) = self.gangs.get_mut(&row) else { return };
        let due = live.phase == Phase::Running && gang.members.iter().all(|member| member.ready);
        if !due || (gang.proceeded && !again) {
            return;
        }
        gang.proceeded = true;
        let primary = gang.members.first().map_or(live.node, |member| member.node);
        if let Some(conn) = self.node(primary).and_then(|node| node.conn) {
            fx.sends.push(Send::Proceed(conn, row, live.attempt));
        }
    }

    /// An instance has ended; `false` if the attempt goes on without it.
    pub(super) fn instance_ended(
        &mut self,
        row: Row,
        live: Live,
        instance: u32,
        end: &AttemptEnd,
        fx: &mut Effects,
    ) -> bool {
        fx.subtasks.push((row, InstanceChange::Happened(instance, SubtaskEvent::End(end.clone()))));
        self.part(row, &live, instance);
        let well = end.cause == EndCause::Exited && end.exit_code == Some(0) && end.failure.is_none();
        let goes_on = instance > 0
            && match live.phase {
                Phase::Running => well,
                // The primary decides: it may have come to its end by itself.
                Phase::Requeuing(_) => well || end.cause == EndCause::Stopped,
                Phase::Zombie => false,
            };
        if goes_on {
            self.proceed(row, live, false, fx);
        }
        !goes_on
    }

    /// The node of an instance was lost; `false` if the attempt goes on without it.
    pub(super) fn instance_lost(&mut self, row: Row, live: Live, instance: u32, fx: &mut Effects) -> bool {
        fx.subtasks.push((row, InstanceChange::Happened(instance, SubtaskEvent::Lose)));
        self.part(row, &live, instance);
        match live.phase {
            Phase::Running | Phase::Zombie => true,
            Phase::Requeuing(_) => instance == 0,
        }
    }

    /// Nothing of this instance runs any more.
    fn part(&mut self, row: Row, live: &Live, instance: u32) {
        let member = self.gangs.get_mut(&row).and_then(|gang| gang.members.get_mut(instance as usize));
        let Some(member) = member.filter(|member| !member.gone) else { return };
        (member.gone, member.ready) = (true, true);
        let node = member.node;
        self.free_slots(node, row, &live.needs);
    }

    /// The attempt is over, and that is recorded; `again` is the task if there
    /// will be another. What still runs of it is stopped and becomes a zombie.
    pub(super) fn over(&mut self, row: Row, live: Live, again: Option<ReadyTask>, fx: &mut Effects) {
        if live.needs.instances == 1 {
            self.release(row, live);
            if let Some(task) = again {
                self.insert_ready(live.job, task);
            }
            return;
        }
        if let Some(kept) = self.live.get_mut(&row) {
            kept.phase = Phase::Zombie;
        }
        if let Some(job) = self.jobs.get_mut(&live.job) {
            job.running -= 1;
            job.running_slots -= live.needs.all_slots();
            job.zombies += 1;
        }
        if let Some(task) = again {
            self.after.insert(row, After::Ready(task));
        }
        self.send_stop(row, live, fx);
        if self.places(row, &live).is_empty() {
            self.inter(row, live, fx);
        }
    }

    /// The processes of a terminated task have gone, unless some have not.
    pub(super) fn bury_if_gone(&mut self, row: Row, live: Live, now: Now, fx: &mut Effects) {
        if live.needs.instances == 1 || self.places(row, &live).is_empty() {
            self.bury(row, live, now, fx);
        }
    }

    /// Tests that attempts have their nodes, and have them together.
    pub(super) fn check_gangs(&self) -> Result<(), String> {
        for (row, live) in &self.live {
            let gang = self.gangs.get(row);
            if (live.needs.instances > 1) != gang.is_some() {
                return Err(format!("row {row} has {} instances and is kept otherwise", live.needs.instances));
            }
            let places = self.places(*row, live);
            for (_, index) in &places {
                let node = self.nodes.get(*index as usize).and_then(Option::as_ref);
                if node.is_none_or(|node| node.rows.iter().filter(|held| *held == row).count() != 1) {
                    return Err(format!("live row {row} is not on its node"));
                }
            }
            let Some(gang) = gang else { continue };
            if places.is_empty() || (live.phase != Phase::Zombie && places[0].0 != 0) {
                return Err(format!("row {row} runs without its primary"));
            }
            if live.phase == Phase::Running && gang.members.len() != usize::from(live.needs.instances) {
                return Err(format!("row {row} has {} of its instances", gang.members.len()));
            }
        }
        match self.gangs.keys().find(|row| !self.live.contains_key(row)) {
            Some(row) => Err(format!("row {row} has instances and is not live")),
            None => Ok(()),
        }
    }
}
