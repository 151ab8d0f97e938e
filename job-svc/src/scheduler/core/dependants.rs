//! What tasks that wait for others do to their jobs.
//!
//! Such a task is in its job's [`Graph`] until it starts, and among the ready
//! ones only while all its parents are satisfied.

use std::collections::HashMap;

use super::depends::{Change, Graph};
use super::*;

/// Tasks that are told of at once: their records are read for it.
const TELL: usize = 500;
/// Until the next of them.
const TELL_AGAIN: Duration = Duration::from_millis(10);

impl Core {
    /// Takes in tasks that wait for others, and what became of parents.
    pub(super) fn depend(&mut self, key: JobKey, dependants: Dependants, now: Now, fx: &mut Effects) {
        let changes = self.take_in(key, dependants);
        let Some(job) = self.jobs.get_mut(&key) else { return };
        job.more_to_come = false;
        let stuck = self.follow(key, changes);
        self.untold.extend(stuck.into_iter().map(|row| (key, row)));
        self.tell_stuck(now, fx);
        self.requeue_job(key);
        self.settle(key, now, fx);
    }

    /// As the store has them: what is stuck was told when it became so.
    pub(super) fn load_dependants(&mut self, key: JobKey, dependants: Dependants) {
        let mut changes = self.take_in(key, dependants);
        if let Some(graph) = self.jobs.get_mut(&key).and_then(|job| job.graph.as_mut()) {
            graph.recompute(&mut changes);
        }
        self.follow(key, changes);
    }

    fn take_in(&mut self, key: JobKey, dependants: Dependants) -> Vec<Change> {
        let mut changes = Vec::new();
        let new: Vec<_> = dependants
            .tasks
            .into_iter()
            .filter(|new| !self.live.contains_key(&new.task.row) && !self.waits(key, &new.task.needs, new.task.row))
            .collect();
        let Some(job) = self.jobs.get_mut(&key) else { return changes };
        match job.view.state {
            JobState::Active | JobState::Disabling(_) | JobState::Disabled | JobState::Enabling => {}
            // They stay as they are for ever, and never run.
            JobState::Terminating | JobState::Completed | JobState::Deleting => return changes,
        }
        if new.is_empty() && job.graph.is_none() {
            return changes;
        }
        let graph = job.graph.get_or_insert_default();
        let before = graph.waiting();
        dependants.news.parents.iter().for_each(|news| graph.hear(news, &mut changes));
        dependants.news.numbers.iter().for_each(|news| graph.learn(news, &mut changes));
        let known: HashMap<&str, _> =
            dependants.news.parents.iter().map(|news| (news.key.as_str(), (news.row, news.state))).collect();
        for new in new {
            graph.add(new, &known, &mut changes);
        }
        self.held = self.held + graph.waiting() - before;
        if graph.needs_recheck() {
            self.rechecks.insert(key);
        }
        changes
    }

    /// Does what follows; gives the tasks that are newly stuck.
    fn follow(&mut self, key: JobKey, changes: Vec<Change>) -> Vec<Row> {
        let mut stuck = Vec::new();
        // Apart, so that tasks may come and go without leaving it.
        let graph = self.jobs.get_mut(&key).and_then(|job| job.graph.take());
        for change in changes {
            match change {
                Change::Release(task) => self.insert_ready(key, task),
                Change::Hold(row, needs) => {
                    self.take_ready(key, &needs, row);
                }
                Change::Stuck(row) => stuck.push(row),
            }
        }
        if let Some(job) = self.jobs.get_mut(&key) {
            job.graph = graph.filter(|graph| !graph.is_empty());
        }
        stuck
    }

    /// Looks again where something may have become impossible or possible.
    pub fn recheck(&mut self, now: Now, fx: &mut Effects) {
        while let Some(key) = self.rechecks.pop_first() {
            let Some(graph) = self.jobs.get_mut(&key).and_then(|job| job.graph.as_mut()) else { continue };
            let mut changes = Vec::new();
            graph.recompute(&mut changes);
            let stuck = self.follow(key, changes);
            self.untold.extend(stuck.into_iter().map(|row| (key, row)));
            self.tell_stuck(now, fx);
            self.settle(key, now, fx);
        }
    }

    /// Tells of tasks that others block; of the rest a little later.
    pub(super) fn tell_stuck(&mut self, now: Now, fx: &mut Effects) {
        while fx.unschedulable.len() < TELL {
            let Some((key, row)) = self.untold.pop_front() else { return };
            if self.waits_for_others(key, row) {
                fx.unschedulable.push((row, key, WaitReason::DependencyFailed));
            }
        }
        if !self.untold.is_empty() {
            self.timers.insert((now.mono + TELL_AGAIN, Timer::Untold));
        }
    }

    /// A task starts or goes: nobody holds it up any more. Gives it if it waited
    /// for others.
    pub(super) fn take_dependant(&mut self, key: JobKey, row: Row) -> Option<ReadyTask> {
        let job = self.jobs.get_mut(&key)?;
        let graph = job.graph.as_mut()?;
        let task = graph.remove(row);
        self.held -= usize::from(task.is_some());
        if graph.needs_recheck() {
            self.rechecks.insert(key);
        }
        if graph.is_empty() {
            job.graph = None;
        }
        task
    }

    /// Nothing of a job waits any more.
    pub(super) fn drop_dependants(&mut self, key: JobKey) {
        if let Some(graph) = self.jobs.get_mut(&key).and_then(|job| job.graph.take()) {
            self.held -= graph.waiting();
        }
        self.rechecks.remove(&key);
    }

    pub(super) fn waits_for_others(&self, key: JobKey, row: Row) -> bool {
        self.graph(key).is_some_and(|graph| graph.waits(row))
    }

    /// Who waits for whom in a job; `None` if nobody does.
    pub fn graph(&self, key: JobKey) -> Option<&Graph> {
        self.jobs.get(&key)?.graph.as_deref()
    }

    pub(super) fn check_dependants(&self) -> Result<(), String> {
        let mut held = 0;
        for (key, job) in &self.jobs {
            let Some(graph) = &job.graph else { continue };
            held += graph.waiting();
            graph.check().map_err(|broken| format!("job {key}: {broken}"))?;
            for (row, waits) in graph.rows() {
                let ready =
                    job.ready.values().any(|bucket| bucket.contains_key(&row)) || self.parked.contains_key(&row);
                if ready == waits || self.live.contains_key(&row) {
                    return Err(format!("row {row} waits for others: {waits}, is ready: {ready}"));
                }
            }
        }
        if held != self.held {
            return Err(format!("{held} tasks wait for others, not {}", self.held));
        }
        Ok(())
    }
}
