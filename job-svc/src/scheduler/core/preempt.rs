//! Room for what is more urgent.
//!
//! A waiting task displaces running tasks of jobs with a lower priority that
//! allow it, as few as possible, on one node: the least important first, then
//! the youngest. A job manager that has to run again may displace one task of its
//! own job, or of any job that is not more important. Job managers and tasks of
//! several instances are never displaced, and tasks of several instances displace
//! nothing.
//!
//! The room is *claimed*: until the task runs, nothing else is placed on that
//! node, so that what was displaced does not come back into it, and nobody is
//! displaced twice for one task. What is being stopped anyway counts as room, so
//! no more is displaced than can be used.

use std::cmp::Reverse;

use super::*;

/// Waiting tasks that are looked at in one go.
const MAX_TASKS: usize = 64;

/// A task for which room is being made on a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    job: JobKey,
    row: Row,
    needs: Needs,
}

/// A waiting task that may displace others.
#[derive(Debug, Clone, Copy)]
struct Urgent {
    claim: Claim,
    priority: i32,
    /// It may also displace one that did not allow it.
    again: bool,
}

/// An attempt that may have to go.
#[derive(Debug, Clone, Copy)]
struct Victim {
    row: Row,
    job: JobKey,
    needs: Needs,
    priority: i32,
    since: u64,
    /// Its job allows it.
    soft: bool,
}

/// A node as it will be when everything that is being stopped has gone and all
/// claims are met.
#[derive(Debug)]
struct Outlook {
    held: Held,
    attempts: usize,
    /// Something is being stopped here.
    clearing: bool,
    victims: Vec<Victim>,
}

impl Outlook {
    fn has_room(&self, status: &NodeStatus, needs: &Needs) -> bool {
        self.held.exclusive == 0
            && (!needs.exclusive || self.attempts == 0)
            && self.held.slots + u32::from(needs.slots) <= u32::from(status.slots)
            && status.capacity.lacks(&self.held, needs).is_none()
    }

    fn add(&mut self, needs: &Needs) {
        self.held.add(needs);
        self.attempts += 1;
    }

    fn remove(&mut self, needs: &Needs) {
        self.held.remove(needs);
        self.attempts -= 1;
    }

    /// Who has to go; `None` if that does not help.
    fn choose(&mut self, status: &NodeStatus, urgent: &Urgent) -> Option<Vec<Victim>> {
        let needs = &urgent.claim.needs;
        let mut candidates = self.victims.clone();
        // The least important first, the youngest of them first.
        candidates.sort_unstable_by_key(|victim| (victim.priority, Reverse(victim.since), victim.row));
        let soft =
            candidates.iter().filter(|victim| victim.soft && victim.priority < urgent.priority).copied().collect();
        if let Some(gone) = self.fewest(status, needs, soft) {
            return Some(gone);
        }
        let one = |victim: &Victim| victim.job == urgent.claim.job || victim.priority <= urgent.priority;
        let mut candidates = candidates.into_iter().filter(|victim| urgent.again && one(victim));
        candidates.find_map(|victim| self.fewest(status, needs, vec![victim]))
    }

    /// As few of these as possible, taken in their order.
    fn fewest(&mut self, status: &NodeStatus, needs: &Needs, candidates: Vec<Victim>) -> Option<Vec<Victim>> {
        let mut gone = Vec::new();
        for victim in candidates {
            if self.has_room(status, needs) {
                break;
            }
            self.remove(&victim.needs);
            gone.push(victim);
        }
        let enough = self.has_room(status, needs);
        // Who need not go after all, the most important first.
        for at in (0..gone.len()).rev() {
            self.add(&gone[at].needs);
            if enough && self.has_room(status, needs) {
                gone.remove(at);
            } else {
                self.remove(&gone[at].needs);
            }
        }
        for victim in &gone {
            self.add(&victim.needs);
        }
        enough.then_some(gone)
    }
}

impl Core {
    /// Puts the job where it belongs among those whose tasks may be displaced.
    pub(super) fn note_soft(&mut self, key: JobKey) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        let wanted = (job.view.preemptible && job.running > 0).then_some(job.view.priority);
        if job.soft == wanted {
            return;
        }
        if let Some(old) = std::mem::replace(&mut job.soft, wanted) {
            self.soft.remove(&(old, key));
        }
        if let Some(new) = wanted {
            self.soft.insert((new, key));
        }
    }

    /// Makes room for what could not be placed.
    pub(super) fn preempt(&mut self, fx: &mut Effects) {
        let urgent = self.urgent();
        if urgent.is_empty() {
            return;
        }
        let mut outlooks = self.outlooks();
        for urgent in urgent {
            let claim = urgent.claim;
            let status = |index: u32| self.nodes[index as usize].as_ref().map(|node| node.status);
            let is_barred = self.bars(claim.job);
            let mut best: Option<(_, u32, Vec<Victim>)> = None;
            for (index, outlook) in &mut outlooks {
                let Some(status) = status(*index) else { continue };
                let barred = is_barred.as_ref().is_some_and(|is_barred| is_barred(*index));
                let fits = self.nodes[*index as usize].as_ref().is_some_and(|node| node.could_fit(&claim.needs));
                if barred || !fits || (outlook.victims.is_empty() && !outlook.clearing) {
                    continue;
                }
                let Some(gone) = outlook.choose(&status, &urgent) else { continue };
                let highest = gone.iter().map(|victim| victim.priority).max();
                let youngest = gone.iter().map(|victim| victim.since).min();
                let rank = (gone.len(), highest, Reverse(youngest));
                if best.as_ref().is_none_or(|(known, _, _)| rank < *known) {
                    best = Some((rank, *index, gone));
                }
            }
            let Some((_, index, gone)) = best else { continue };
            drop(is_barred);
            if let Some(outlook) = outlooks.get_mut(&index) {
                outlook.victims.retain(|victim| gone.iter().all(|gone| gone.row != victim.row));
                outlook.clearing = true;
                for victim in &gone {
                    outlook.remove(&victim.needs);
                }
                outlook.add(&claim.needs);
            }
            for victim in gone {
                self.stop_to_requeue(victim.row, RequeueCause::Preempted, fx);
            }
            self.claims.entry(index).or_default().push(claim);
            self.refresh_node(index);
        }
    }

    /// Waiting tasks that may displace others, the most important first.
    fn urgent(&self) -> Vec<Urgent> {
        let lowest = self.soft.first().map(|(priority, _)| *priority);
        let first = if lowest.is_some() { Shape::plain(0) } else { Shape::first_rich() };
        let mut kinds = Vec::new();
        for (shape, jobs) in self.eligible.range(first..) {
            let Some(needs) = self.shapes.needs(*shape).filter(|needs| needs.instances == 1) else { continue };
            for (order, key) in jobs.iter().take(MAX_TASKS) {
                if !needs.manager && lowest.is_none_or(|lowest| lowest >= -order.0) {
                    break;
                }
                kinds.push((*order, *key, *shape, needs));
            }
        }
        if kinds.is_empty() {
            return Vec::new();
        }
        kinds.sort_unstable_by_key(|(order, key, shape, _)| (*order, *key, *shape));
        kinds.truncate(MAX_TASKS);
        let claimed: HashSet<Row> = self.claims.values().flatten().map(|claim| claim.row).collect();
        let mut claims: HashMap<JobKey, u32> = HashMap::new();
        for claim in self.claims.values().flatten() {
            *claims.entry(claim.job).or_default() += 1;
        }
        let mut found = Vec::new();
        for (order, key, shape, needs) in kinds {
            let bucket = self.jobs.get(&key).and_then(|job| job.ready.get(&shape));
            let waiting = bucket.into_iter().flatten().filter(|(row, _)| !claimed.contains(row)).take(MAX_TASKS);
            for (row, waiting) in waiting {
                let again = needs.manager && waiting.attempt > 0;
                if again || lowest.is_some_and(|lowest| lowest < -order.0) {
                    let claim = Claim { job: key, row: *row, needs };
                    found.push((order, key, !needs.manager, *row, Urgent { claim, priority: -order.0, again }));
                }
            }
        }
        found.sort_unstable_by_key(|(order, key, later, row, _)| (*order, *key, *later, *row));
        found.retain(|(_, key, _, _, _)| {
            let claims = claims.entry(*key).or_default();
            *claims += 1;
            let max = self.jobs.get(key).and_then(|job| Some((job.view.max_parallel?, job.running)));
            max.is_none_or(|(max, running)| running + *claims <= max)
        });
        found.truncate(MAX_TASKS);
        found.into_iter().map(|(_, _, _, _, urgent)| urgent).collect()
    }

    fn outlooks(&self) -> BTreeMap<u32, Outlook> {
        let mut outlooks = BTreeMap::new();
        for (index, node) in (0..).zip(&self.nodes) {
            let Some(node) = node else { continue };
            // What stands in line is short: there is room in a moment.
            let is_moving = !node.ahead.is_empty();
            if node.conn.is_none() || !node.status.accepting || node.foreign > 0 || node.overbooked || is_moving {
                continue;
            }
            let mut outlook = Outlook { held: Held::default(), attempts: 0, clearing: false, victims: Vec::new() };
            for row in &node.rows {
                let Some(live) = self.live.get(row) else { continue };
                if live.phase != Phase::Running {
                    outlook.clearing = true;
                    continue;
                }
                outlook.add(&live.needs);
                let Some(job) = self.jobs.get(&live.job) else { continue };
                if live.needs.instances == 1 && !live.needs.manager {
                    outlook.victims.push(Victim {
                        row: *row,
                        job: live.job,
                        needs: live.needs,
                        priority: job.view.priority,
                        since: live.since,
                        soft: job.view.preemptible,
                    });
                }
            }
            for claim in self.claims.get(&index).into_iter().flatten() {
                outlook.add(&claim.needs);
            }
            outlooks.insert(index, outlook);
        }
        outlooks
    }

    /// Places tasks where room was made for them, and gives up claims that are of
    /// no use any more.
    pub(super) fn place_claimed(&mut self, fx: &mut Effects) {
        let claimed: Vec<u32> = self.claims.keys().copied().collect();
        for index in claimed {
            let claims = self.claims.remove(&index).unwrap_or_default();
            let mut left = Vec::new();
            for claim in claims {
                let wants = self.jobs.get(&claim.job).is_some_and(|job| job.queued.is_some())
                    && self.waits(claim.job, &claim.needs, claim.row);
                let Some(node) = self.nodes.get(index as usize).and_then(Option::as_ref) else { continue };
                let usable = node.conn.is_some() && node.status.accepting && node.foreign == 0;
                if !wants || !usable || self.is_barred(claim.job, &node.name) {
                    continue;
                }
                let now = Outlook { held: node.held, attempts: node.rows.len(), clearing: false, victims: Vec::new() };
                let clearing = || {
                    let phase = |row: &Row| self.live.get(row).map(|live| live.phase);
                    node.rows.iter().any(|row| phase(row).is_some_and(|phase| phase != Phase::Running))
                };
                // One after the other: the first may need what is free already.
                let has_room = left.is_empty() && now.has_room(&node.status, &claim.needs);
                if has_room && node.could_fit(&claim.needs) {
                    if let Some(task) = self.take_next(claim.job, &claim.needs, claim.row) {
                        self.assign(claim.job, task, index, Booking::Slot, fx);
                    }
                } else if clearing() {
                    left.push(claim);
                }
            }
            if !left.is_empty() {
                self.claims.insert(index, left);
            }
            self.refresh_node(index);
        }
    }
}

#[cfg(test)]
#[path = "preempt_tests.rs"]
mod tests;
