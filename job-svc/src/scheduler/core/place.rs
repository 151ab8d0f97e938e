//! Which task runs where.
//!
//! Jobs go by priority, then by the pool's order: an equal share (the job with
//! the fewest slots in use, equals in turn) or the older job first. In a job
//! the oldest task that fits somewhere goes first. A task goes to the node it
//! would like if that has room, else to the fullest one it fits (pack) or the
//! emptiest (spread). One placement costs a few steps in balanced trees,
//! however many tasks, jobs and nodes there are. For tasks that need more than
//! slots the nodes with enough free slots are looked through, once until some
//! node gains room; the job manager goes before all others of its job.

use super::shapes::Room;
use super::*;

impl Core {
    /// Fills free slots, and the lines of busy nodes.
    pub fn place(&mut self, fx: &mut Effects) {
        self.place_claimed(fx);
        self.fill(fx);
        self.preempt(fx);
        self.place_ahead(fx);
        self.report_hopeless(fx);
    }

    fn fill(&mut self, fx: &mut Effects) {
        // What found no node but those its job is barred from.
        let mut passed: BTreeSet<(JobKey, Shape)> = BTreeSet::new();
        while let Some((most, _)) = self.free.last().copied() {
            let Some(key) = self.next_job(most) else { break };
            let Some((shape, row)) = self.oldest_fitting(key, most, &passed) else {
                self.dequeue(key);
                continue;
            };
            let Some(needs) = self.shapes.needs(shape) else { break };
            let affinity = self.affinity(key, shape, row);
            if needs.instances > 1 {
                if !self.try_gang(key, shape, &needs, row, affinity, fx) {
                    passed.insert((key, shape));
                }
                continue;
            }
            // If there is none, that is remembered: the shape is not met again.
            let Some(index) = self.choose_node(shape, &needs, affinity) else { continue };
            let Some(index) = self.unbarred_node(key, &needs, index) else {
                self.no_unbarred_node(key, row, fx);
                passed.insert((key, shape));
                continue;
            };
            let Some(task) = self.take_next(key, &needs, row) else { break };
            self.assign(key, task, index, Booking::Slot, fx);
            if shape == Shape::plain(1) {
                self.line_up(key, index, fx);
            }
        }
        for (key, _) in passed {
            self.requeue_job(key);
        }
    }

    /// Takes a task out of those that wait, for its next attempt.
    pub(super) fn take_next(&mut self, key: JobKey, needs: &Needs, row: Row) -> Option<ReadyTask> {
        let waiting = self.take_ready(key, needs, row)?;
        self.served += 1;
        if let Some(job) = self.jobs.get_mut(&key) {
            job.served = self.served;
        }
        Some(ReadyTask { attempt: waiting.attempt + 1, ..waiting })
    }

    /// The next attempt of a task begins on this node.
    pub(super) fn assign(&mut self, key: JobKey, task: ReadyTask, index: u32, booking: Booking, fx: &mut Effects) {
        self.bind(key, task, index, booking);
        self.requeue_job(key);
        if let Some(node) = self.nodes[index as usize].as_ref() {
            let preparing = self.has_to_prepare(key, &node.name);
            fx.tasks.push((task.row, key, TaskEvent::Assign { node: node.name.clone(), preparing }));
            if let Some(conn) = node.conn {
                fx.sends.push(Send::Assign(conn, task.row, task.attempt, 0));
            }
        }
    }

    /// The node, or the next best one if the job is barred from it.
    fn unbarred_node(&self, key: JobKey, needs: &Needs, first: u32) -> Option<u32> {
        let Some(is_barred) = self.bars(key) else { return Some(first) };
        if !is_barred(first) {
            return Some(first);
        }
        if self.is_stuck(key) {
            return None;
        }
        let node = |index: u32| self.nodes.get(index as usize).and_then(Option::as_ref);
        let does = |index: &u32| node(*index).is_some_and(|node| node.fits(needs)) && !is_barred(*index);
        let mut with_room = self.free.range((needs.slots, 0)..).map(|(_, index)| *index);
        if self.pack { with_room.find(does) } else { with_room.rev().find(does) }
    }

    /// Places a task with several instances, if there are nodes for all of them.
    fn try_gang(
        &mut self,
        key: JobKey,
        shape: Shape,
        needs: &Needs,
        row: Row,
        affinity: u32,
        fx: &mut Effects,
    ) -> bool {
        let count = usize::from(needs.instances);
        let mut nodes = self.fitting_nodes(shape, needs);
        if nodes.len() >= count
            && let Some(unbarred) = self.bars(key).map(|is_barred| self.all_fitting(needs, |index| !is_barred(index)))
        {
            nodes = unbarred;
            if nodes.len() < count {
                self.no_unbarred_node(key, row, fx);
            }
        }
        if nodes.len() < count {
            return false;
        }
        let liked = self.by_hash.get(&affinity).copied();
        if let Some(at) = nodes.iter().position(|index| Some(*index) == liked) {
            nodes.swap(0, at);
        }
        nodes.truncate(count);
        let Some(task) = self.take_next(key, needs, row) else { return false };
        if let Some(primary) = self.nodes.get(nodes[0] as usize).and_then(Option::as_ref) {
            let preparing = self.has_to_prepare(key, &primary.name);
            fx.tasks.push((row, key, TaskEvent::Assign { node: primary.name.clone(), preparing }));
        }
        self.place_gang(key, task, &nodes, fx);
        self.requeue_job(key);
        true
    }

    /// Nodes that have room, best first, of those that `may` be taken.
    fn all_fitting(&self, needs: &Needs, may: impl Fn(u32) -> bool) -> Vec<u32> {
        let node = |index: u32| self.nodes.get(index as usize).and_then(Option::as_ref);
        let does = |index: &u32| node(*index).is_some_and(|node| node.fits(needs)) && may(*index);
        let with_room = self.free.range((needs.slots, 0)..).map(|(_, index)| *index);
        let enough = Shapes::enough(needs);
        if self.pack {
            with_room.filter(does).take(enough).collect()
        } else {
            with_room.rev().filter(does).take(enough).collect()
        }
    }

    /// The job that goes first among those with a task that may fit.
    fn next_job(&self, most: u16) -> Option<JobKey> {
        let plain = self.eligible.range(..=Shape::plain(most)).filter_map(|(_, jobs)| jobs.first()).min();
        let rich = self.eligible.range(Shape::first_rich()..);
        let rich = rich.filter(|(shape, _)| self.shapes.may_fit(**shape, most)).filter_map(|(_, jobs)| jobs.first());
        plain.into_iter().chain(rich).min().map(|(_, key)| *key)
    }

    fn oldest_fitting(&self, key: JobKey, most: u16, passed: &BTreeSet<(JobKey, Shape)>) -> Option<(Shape, Row)> {
        let job = self.jobs.get(&key)?;
        let fitting = job.ready.iter().filter(|(shape, _)| {
            self.shapes.may_fit(**shape, most) && (passed.is_empty() || !passed.contains(&(key, **shape)))
        });
        let firsts = fitting.filter_map(|(shape, bucket)| {
            let manager = shape.as_plain().is_none() && self.shapes.needs(*shape).is_some_and(|needs| needs.manager);
            Some((!manager, *bucket.first_key_value()?.0, *shape))
        });
        firsts.min().map(|(_, row, shape)| (shape, row))
    }

    fn affinity(&self, key: JobKey, shape: Shape, row: Row) -> u32 {
        let bucket = self.jobs.get(&key).and_then(|job| job.ready.get(&shape));
        bucket.and_then(|bucket| bucket.get(&row)).map_or(0, |waiting| waiting.affinity)
    }

    fn choose_node(&mut self, shape: Shape, needs: &Needs, affinity: u32) -> Option<u32> {
        if affinity != 0
            && let Some(index) = self.by_hash.get(&affinity)
            && let Some(Some(node)) = self.nodes.get(*index as usize)
            && node.fits(needs)
        {
            return Some(*index);
        }
        if shape.as_plain().is_some() {
            let found = if self.pack { self.free.range((needs.slots, 0)..).next() } else { self.free.last() };
            return found.map(|(_, index)| *index);
        }
        self.fitting_nodes(shape, needs).first().copied()
    }

    /// Nodes that have room for needs beyond slots, best first; not all if there
    /// are many.
    fn fitting_nodes(&mut self, shape: Shape, needs: &Needs) -> Vec<u32> {
        let nodes = &self.nodes;
        let node = |index: u32| nodes.get(index as usize).and_then(Option::as_ref);
        let fits = |index: &u32| node(*index).is_some_and(|node| node.fits(needs));
        if let Some(Room::Only(only)) = self.shapes.room(shape) {
            only.retain(fits);
            let place = |index: &u32| (node(*index).and_then(|node| node.queued), *index);
            only.sort_unstable_by_key(place);
            if !self.pack {
                only.reverse();
            }
            return only.clone();
        }
        let found = self.all_fitting(needs, |_| true);
        self.shapes.limit(shape, found.clone());
        found
    }
}
