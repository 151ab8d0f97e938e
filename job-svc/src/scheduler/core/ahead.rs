//! Short tasks that are bound to busy nodes, so that these need not wait for the
//! next one (docs/adr/006).
//!
//! They stand in line at their node ([`Node::ahead`]) and hold no slot; the agent
//! begins the first as soon as a slot is free there, and the core moves it to that
//! slot when it hears so, in the same order. Only tasks of one slot and nothing
//! else, only of the job whose turn it is: whatever else comes next gets its place before anything more
//! goes ahead. While slots are free elsewhere, a node gets no more than its share of what waits.

use super::*;

/// So much work may stand in line for a slot. Nothing more urgent waits longer than
/// that, and it lasts until an end was reported, committed and answered.
const LINE: Duration = Duration::from_millis(50);
/// Tasks of jobs that take longer do not go ahead.
const SHORT: Duration = Duration::from_millis(50);
/// Attempts in line at one node.
pub(super) const MAX_LINE: usize = 64;

/// How long the tasks of a job have run lately.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace(Option<Duration>);

impl Pace {
    /// A task has run for so long.
    fn observe(&mut self, time: Duration) {
        // One of eight counts, so that a single long one is not forgotten at once.
        self.0 = Some(self.0.map_or(time, |average| (average * 7 + time) / 8));
    }

    /// How many tasks may stand in line for one slot.
    fn line(self) -> usize {
        match self.0 {
            Some(time) if time <= SHORT => {
                let count = LINE.as_nanos() / time.as_nanos().max(1);
                usize::try_from(count).unwrap_or(MAX_LINE).clamp(1, MAX_LINE)
            }
            // Not known, or not short.
            Some(_) | None => 0,
        }
    }
}

/// What goes ahead next.
struct Next {
    job: JobKey,
    row: Row,
    affinity: u32,
    /// Tasks of its job that may stand in line for one slot.
    line: usize,
}

impl Core {
    /// Binds the next tasks to busy nodes, shortest line first.
    pub(super) fn place_ahead(&mut self, fx: &mut Effects) {
        while self.free.is_empty()
            && let Some((_, shortest)) = self.busy.first().copied()
        {
            let Some(next) = self.next_ahead() else { return };
            let wished = self.by_hash.get(&next.affinity).copied().filter(|_| next.affinity != 0);
            let wished = wished.filter(|index| self.has_line_for(&next, *index));
            let Some(index) = wished.or(Some(shortest).filter(|index| self.has_line_for(&next, *index))) else {
                return;
            };
            self.go_ahead(&next, index, fx);
            if wished.is_none() {
                self.line_up(next.job, index, fx);
            }
        }
    }

    /// A short task has just taken the last free slot of this node: its share of those that wait goes with it,
    /// in the same message. With thousands of nodes there is always a free slot somewhere, but not for
    /// as many tasks as wait: each node will have to run its share in any case.
    pub(super) fn line_up(&mut self, job: JobKey, index: u32, fx: &mut Effects) {
        let share = self.waiting / (self.free.len() + self.busy.len()).max(1);
        for _ in 0..share {
            let Some(next) = self.next_ahead().filter(|next| next.job == job) else { return };
            let elsewhere = next.affinity != 0 && self.by_hash.get(&next.affinity).is_some_and(|liked| *liked != index);
            if elsewhere || !self.has_line_for(&next, index) {
                return;
            }
            self.go_ahead(&next, index, fx);
        }
    }

    /// The task whose turn it is, if it may go ahead.
    fn next_ahead(&self) -> Option<Next> {
        let (_, key) = self.eligible.values().filter_map(|jobs| jobs.first()).min()?;
        let job = self.jobs.get(key)?;
        // Of a job that waits for more than a slot nothing overtakes.
        let plain = job.ready.first_key_value().filter(|(shape, _)| job.ready.len() == 1 && **shape == Shape::plain(1));
        let (row, waiting) = plain?.1.first_key_value()?;
        let line = job.pace.line();
        (line > 0).then_some(Next { job: *key, row: *row, affinity: waiting.affinity, line })
    }

    fn has_line_for(&self, next: &Next, index: u32) -> bool {
        let node = self.nodes.get(index as usize).and_then(Option::as_ref);
        let most = |node: &Node| (next.line * usize::from(node.status.slots)).min(MAX_LINE);
        node.is_some_and(|node| node.line_place.is_some() && node.ahead.len() < most(node))
            && self.bars(next.job).is_none_or(|is_barred| !is_barred(index))
    }

    fn go_ahead(&mut self, next: &Next, index: u32, fx: &mut Effects) {
        if let Some(task) = self.take_next(next.job, &Needs::slots(1), next.row) {
            self.assign(next.job, task, index, Booking::Line, fx);
        }
    }

    /// Moves those that are first in line to the slots that are free.
    pub(super) fn promote(&mut self, index: u32) {
        let Some(node) = self.nodes.get_mut(index as usize).and_then(Option::as_mut) else { return };
        while node.held.exclusive == 0 && node.held.slots < u32::from(node.status.slots) {
            let Some(row) = node.ahead.pop_front() else { return };
            if let Some(live) = self.live.get(&row) {
                node.held.add(&live.needs);
            }
        }
    }

    /// Puts the node where it belongs among those that tasks may be bound to ahead.
    pub(super) fn queue_busy(&mut self, index: u32) {
        let is_claimed = self.claims.contains_key(&index);
        let Some(node) = self.nodes.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let slots = usize::from(node.status.slots);
        let takes = node.conn.is_some()
            && node.status.accepting
            && node.queued.is_none()
            && node.held.slots >= u32::from(node.status.slots)
            && node.foreign == 0
            && node.held.exclusive == 0
            && !node.overbooked
            && !is_claimed
            && node.ahead.len() < MAX_LINE;
        // Lines of nodes with many slots move faster.
        let wanted = takes.then(|| u32::try_from(node.ahead.len() * 256 / slots.max(1)).unwrap_or(u32::MAX));
        if wanted == node.line_place {
            return;
        }
        if let Some(old) = std::mem::replace(&mut node.line_place, wanted) {
            self.busy.remove(&(old, index));
        }
        if let Some(new) = wanted {
            self.busy.insert((new, index));
        }
    }

    /// An attempt has ended: how long its job's tasks take is known better.
    pub(super) fn learn(&mut self, key: JobKey, end: &AttemptEnd) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        match (end.cause, end.start) {
            // Whatever it waited for took too long.
            (EndCause::NotStarted, _) => job.pace = Pace(Some(SHORT * 2)),
            (EndCause::Exited | EndCause::FileUploadError | EndCause::WallClockExpired, Some(start)) => {
                job.pace.observe(end.end.since(start));
            }
            _ => {}
        }
    }

    /// A node was lost: perhaps a task of this job did it, and the others shall not stand behind it.
    pub(super) fn forget_pace(&mut self, key: JobKey) {
        if let Some(job) = self.jobs.get_mut(&key) {
            job.pace = Pace::default();
        }
    }

    /// Tests the rules of lines.
    pub(super) fn check_lines(&self) -> Result<(), String> {
        for node in self.nodes.iter().flatten() {
            if node.ahead.len() > MAX_LINE {
                return Err(format!("{} attempts stand in line at node {}", node.ahead.len(), node.name));
            }
            if node.ahead.iter().any(|row| !node.rows.contains(row)) {
                return Err(format!("an attempt in line at node {} is not on it", node.name));
            }
            if !node.ahead.is_empty() && node.queued.is_some() {
                return Err(format!("node {} has free slots and attempts in line", node.name));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{core_with, end, job_view, load, now, placed, ready};
    use super::*;

    /// A pool whose job has just shown that its tasks take so long.
    fn paced(nodes: &[u16], time: Duration, tasks: u64) -> Core {
        let (mut core, mut fx) = core_with(nodes);
        load(&mut core, job_view(1), (1..=tasks).map(|row| ready(row, 1)).collect());
        core.place(&mut fx);
        assert_eq!(placed(&fx).len(), nodes.iter().map(|slots| usize::from(*slots)).sum::<usize>(), "nothing is known");
        // It counts on the stream of its own node alone.
        for conn in 1..=nodes.len() as u64 {
            let ended = Input::Ended { conn, row: 1, attempt: 1, instance: 0, end: end(time), action: JobAction::None };
            core.step(ended, now(), &mut fx);
        }
        core.check().unwrap();
        core
    }

    fn place(core: &mut Core) -> Vec<Row> {
        let mut fx = Effects::default();
        core.place(&mut fx);
        core.check().unwrap();
        assert_eq!(fx.sends.len(), placed(&fx).len(), "what is bound is sent");
        placed(&fx).into_iter().map(|(_, row, _)| row).collect()
    }

    #[test]
    fn short_tasks_stand_in_line_and_move_up_in_order() {
        let mut core = paced(&[1], Duration::from_millis(10), 100);
        assert_eq!(place(&mut core), [2, 3, 4, 5, 6, 7], "one for the slot, five times 10 ms in line");
        assert_eq!(place(&mut core), [] as [Row; 0]);
        let node = core.nodes[0].as_ref().unwrap();
        assert_eq!((node.held.slots, Vec::from(node.ahead.clone())), (1, vec![3, 4, 5, 6, 7]));
        let mut fx = Effects::default();
        let ended = Input::Ended {
            conn: 1,
            row: 2,
            attempt: 1,
            instance: 0,
            end: end(Duration::from_millis(10)),
            action: JobAction::None,
        };
        core.step(ended, now(), &mut fx);
        assert_eq!(Vec::from(core.nodes[0].as_ref().unwrap().ahead.clone()), [4, 5, 6, 7]);
        assert_eq!(place(&mut core), [8]);
    }

    #[test]
    fn long_and_unknown_tasks_wait_for_a_slot() {
        let mut core = paced(&[1], Duration::from_secs(2), 100);
        assert_eq!(place(&mut core), [2]);
        assert_eq!(place(&mut core), [] as [Row; 0]);
    }

    #[test]
    fn lines_grow_evenly_and_are_bounded() {
        let mut core = paced(&[1, 1], Duration::from_micros(1), 1000);
        assert_eq!(place(&mut core).len(), 1 + 2 * MAX_LINE);
        let lines: Vec<usize> = core.nodes.iter().flatten().map(|node| node.ahead.len()).collect();
        assert_eq!(lines, [MAX_LINE, MAX_LINE]);
    }

    #[test]
    fn nothing_goes_ahead_of_what_comes_next() {
        let mut core = paced(&[2], Duration::from_millis(1), 100);
        // Of a higher priority, and needs the whole node.
        load(&mut core, JobView { priority: 5, ..job_view(2) }, vec![ready(1000, 2)]);
        assert_eq!(place(&mut core), [3], "the free slot is used");
        assert_eq!(place(&mut core), [] as [Row; 0], "but the line stays empty");
    }

    #[test]
    fn what_was_given_back_makes_its_job_long() {
        let mut core = paced(&[1], Duration::from_millis(25), 100);
        assert_eq!(place(&mut core), [2, 3, 4]);
        let mut fx = Effects::default();
        let back = AttemptEnd { cause: EndCause::NotStarted, ..end(Duration::ZERO) };
        let input = Input::Ended { conn: 1, row: 4, attempt: 1, instance: 0, end: back, action: JobAction::None };
        core.step(input, now(), &mut fx);
        let requeued = fx.tasks.iter().any(|(row, _, event)| {
            *row == 4 && matches!(event, TaskEvent::Requeue { cause: RequeueCause::NotStarted, .. })
        });
        assert!(requeued, "{:?}", fx.tasks);
        assert_eq!(place(&mut core), [] as [Row; 0]);
    }

    #[test]
    fn a_terminated_task_leaves_the_line_when_its_agent_says_so() {
        let mut core = paced(&[1], Duration::from_millis(25), 100);
        assert_eq!(place(&mut core), [2, 3, 4]);
        let mut fx = Effects::default();
        core.step(Input::Terminate { job: 1, row: 3, needs: Needs::slots(1), reply: 1 }, now(), &mut fx);
        assert!(fx.sends.contains(&Send::Stop(1, 3, 1, 0)));
        core.check().unwrap();
        let stopped = AttemptEnd { cause: EndCause::Stopped, ..end(Duration::ZERO) };
        let input = Input::Ended { conn: 1, row: 3, attempt: 1, instance: 0, end: stopped, action: JobAction::None };
        core.step(input, now(), &mut fx);
        assert_eq!(Vec::from(core.nodes[0].as_ref().unwrap().ahead.clone()), [4]);
        core.check().unwrap();
    }

    #[test]
    fn a_node_of_many_gets_its_share_with_its_slot() {
        let mut core = paced(&[1; 10], Duration::from_millis(1), 109);
        // One has ended, nine run: of 99 that wait each node will have to run ten.
        let placed = place(&mut core);
        assert!(placed.len() > 90, "{placed:?}");
        let lines: Vec<usize> = core.nodes.iter().flatten().map(|node| node.ahead.len()).collect();
        assert!(lines.iter().all(|length| (8..=10).contains(length)), "{lines:?}");
    }

    #[test]
    fn a_share_is_not_taken_from_free_slots() {
        let (mut core, mut fx) = core_with(&[1; 10]);
        load(&mut core, job_view(1), vec![ready(1, 1)]);
        core.place(&mut fx);
        let mut fx = Effects::default();
        let time = Duration::from_millis(1);
        let conn =
            1 + u64::try_from(core.nodes.iter().flatten().position(|node| !node.rows.is_empty()).unwrap()).unwrap();
        let ended = Input::Ended { conn, row: 1, attempt: 1, instance: 0, end: end(time), action: JobAction::None };
        core.step(ended, now(), &mut fx);
        let tasks = (2..=11).map(|row| ready(row, 1)).collect();
        core.step(Input::Added { job: 1, tasks }, now(), &mut fx);
        assert_eq!(place(&mut core).len(), 10);
        assert!(core.nodes.iter().flatten().all(|node| node.ahead.is_empty() && node.rows.len() == 1));
    }
}
