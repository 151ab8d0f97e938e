//! Which task runs where.
//!
//! Jobs go by priority, then by the pool's order: an equal share (the job with
//! the fewest slots in use, equals in turn) or the older job first. In a job
//! the oldest task that fits somewhere goes first. A task goes to the node it
//! would like if that has room, else to the fullest one it fits (pack) or the
//! emptiest (spread). One placement costs a few steps in balanced trees,
//! however many tasks, jobs and nodes there are.

use super::*;

/// Why a waiting task does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitReason {
    /// The scheduler does not have it.
    NotWaiting,
    /// Its job places nothing at the moment.
    JobNotActive,
    /// No node of the pool takes tasks.
    NoNodes,
    /// It needs more slots than any node has.
    RequiredSlotsTooLarge {
        /// Slots of the largest node.
        largest: u16,
    },
    /// The job runs as many tasks as it may.
    MaxParallelTasks,
    /// All slots are taken.
    NoFreeSlots,
    /// Others go first.
    BehindOthers,
}

impl Core {
    /// Fills free slots.
    pub fn place(&mut self, fx: &mut Effects) {
        while let Some((most, _)) = self.free.last().copied() {
            let best = self.eligible.range(..=most).filter_map(|(_, jobs)| jobs.first()).min().copied();
            let Some((_, key)) = best else { return };
            let Some((slots, row)) = self.oldest_fitting(key, most) else { return };
            let Some(waiting) = self.take_ready(key, slots, row) else { return };
            let Some(index) = self.choose_node(slots, waiting.affinity) else { return };
            let task = ReadyTask {
                row,
                slots,
                attempt: waiting.attempt + 1,
                retry_count: waiting.retry_count,
                internal_retries: waiting.internal_retries,
                max_retries: waiting.max_retries,
                affinity: waiting.affinity,
            };
            self.served += 1;
            if let Some(job) = self.jobs.get_mut(&key) {
                job.served = self.served;
            }
            self.bind(key, task, index);
            self.requeue_job(key);
            if let Some(node) = self.nodes[index as usize].as_ref() {
                fx.tasks.push((row, key, TaskEvent::Assign { node: node.name.clone(), preparing: false }));
                if let Some(conn) = node.conn {
                    fx.sends.push(Send::Assign(conn, row, task.attempt));
                }
            }
        }
    }

    fn oldest_fitting(&self, key: JobKey, most: u16) -> Option<(u16, Row)> {
        let job = self.jobs.get(&key)?;
        let firsts =
            job.ready.range(..=most).filter_map(|(slots, bucket)| Some((*bucket.first_key_value()?.0, *slots)));
        firsts.min().map(|(row, slots)| (slots, row))
    }

    fn choose_node(&self, slots: u16, affinity: u32) -> Option<u32> {
        if affinity != 0
            && let Some(index) = self.by_hash.get(&affinity)
            && let Some(Some(node)) = self.nodes.get(*index as usize)
            && node.queued.is_some_and(|free| free >= slots)
        {
            return Some(*index);
        }
        let found = if self.pack { self.free.range((slots, 0)..).next() } else { self.free.last() };
        found.map(|(_, index)| *index)
    }

    /// Why a task does not run.
    pub fn explain(&self, key: JobKey, row: Row, slots: u16) -> WaitReason {
        let Some(job) = self.jobs.get(&key) else { return WaitReason::NotWaiting };
        if job.view.state != JobState::Active || job.pending {
            return WaitReason::JobNotActive;
        }
        if !job.ready.get(&slots).is_some_and(|bucket| bucket.contains_key(&row)) {
            return WaitReason::NotWaiting;
        }
        let usable = self.nodes.iter().flatten().filter(|node| node.conn.is_some() && node.status.accepting);
        match usable.map(|node| node.status.slots).max() {
            None => WaitReason::NoNodes,
            Some(largest) if largest < slots => WaitReason::RequiredSlotsTooLarge { largest },
            Some(_) if job.view.max_parallel.is_some_and(|max| job.running >= max) => WaitReason::MaxParallelTasks,
            Some(_) if self.free.last().is_none_or(|(free, _)| *free < slots) => WaitReason::NoFreeSlots,
            Some(_) => WaitReason::BehindOthers,
        }
    }

    /// Tests the rules that hold after every step.
    ///
    /// # Errors
    /// Which rule is broken.
    pub fn check(&self) -> Result<(), String> {
        for (index, node) in self.nodes.iter().enumerate() {
            let Some(node) = node else { continue };
            let mut used = 0;
            for row in &node.rows {
                let live = self.live.get(row).ok_or_else(|| format!("row {row} on a node is not live"))?;
                if live.node as usize != index {
                    return Err(format!("row {row} is on two nodes"));
                }
                used += u32::from(live.slots);
            }
            if used != node.used {
                return Err(format!("node {} uses {used} slots, not {}", node.name, node.used));
            }
        }
        for (row, live) in &self.live {
            let node = self.nodes.get(live.node as usize).and_then(Option::as_ref);
            if !node.is_some_and(|node| node.rows.contains(row)) {
                return Err(format!("live row {row} is on no node"));
            }
        }
        for (key, job) in &self.jobs {
            let of_job = |zombie: bool| {
                self.live.values().filter(|live| live.job == *key && (live.phase == Phase::Zombie) == zombie).count()
            };
            if of_job(false) != job.running as usize || of_job(true) != job.zombies as usize {
                return Err(format!("job {key} counts its attempts wrongly"));
            }
            let ready: usize = job.ready.values().map(BTreeMap::len).sum();
            if ready != job.ready_count {
                return Err(format!("job {key} counts its waiting tasks wrongly"));
            }
            for row in job.ready.values().flat_map(BTreeMap::keys) {
                if self.live.contains_key(row) {
                    return Err(format!("row {row} waits and runs"));
                }
            }
        }
        Ok(())
    }
}
