//! Preparation and release of jobs on this node.
//!
//! A job's preparation task runs once in a life of the agent, when the first
//! attempt of the job arrives; the release task runs once, after the job's last
//! attempt here has ended. Jobs are told apart by their number: ids are used again.
//!
//! | preparation \ event | attempt joins | ends well | fails | is stopped | last attempt was stopped |
//! |---|---|---|---|---|---|
//! | Idle | Running, start it | - | - | - | - |
//! | Running | - | Succeeded | Failed | Idle, or Running if attempts wait again | stop it |
//! | Succeeded, Failed | - | - | - | - | - |
//!
//! What job-svc has to hear about either is a word; the latest one replaces
//! earlier ones, and it is told again until it is acknowledged.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::ledger::Key;
use super::node_task::Run;

/// Jobs that are remembered. One that was forgotten is prepared again when its
/// next attempt arrives.
const MAX_JOBS: usize = 4096;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Before the first attempt of a job.
    Preparation,
    /// After the last one.
    Release,
}

/// How the preparation of a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preparation {
    /// Has not run, or was stopped.
    Idle,
    /// Runs.
    Running,
    /// Has ended well.
    Succeeded,
    /// Has failed for this life of the agent.
    Failed,
}

/// What has to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Run the preparation task.
    Prepare,
    /// Stop the preparation task.
    StopPreparation,
    /// Run the release task.
    Release,
}

/// What job-svc has to hear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Id of the job.
    pub job: Arc<str>,
    /// Number of the job.
    pub number: u64,
    /// About which task.
    pub kind: Kind,
    /// Grows with every word.
    pub sequence: u64,
    /// Id of the task, which is also the name of its directory.
    pub task: Arc<str>,
    /// How it goes.
    pub run: Run,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Release {
    /// job-svc has not asked for it.
    No,
    /// Attempts or the preparation still run.
    Asked,
    Running,
    Done,
}

#[derive(Debug)]
struct Job {
    id: Arc<str>,
    attempts: HashSet<Key>,
    preparation: Preparation,
    /// An attempt has come since the preparation was asked to stop.
    wanted: bool,
    release: Release,
    words: BTreeMap<Kind, (Word, Told)>,
    /// When it was heard of last, in calls.
    used: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Due,
    Sent,
    Acknowledged,
}

/// See the module.
#[derive(Debug, Default)]
pub struct JobTasks {
    jobs: HashMap<u64, Job>,
    sequence: u64,
    calls: u64,
}

impl JobTasks {
    /// An attempt of the job arrives. `done`: an earlier life has prepared it.
    pub fn join(&mut self, number: u64, id: &Arc<str>, key: &Key, done: bool) -> (Preparation, Option<Action>) {
        let job = self.job(number, id);
        job.attempts.insert(key.clone());
        job.wanted = true;
        if job.preparation != Preparation::Idle {
            return (job.preparation, None);
        }
        if done {
            job.preparation = Preparation::Succeeded;
            return (job.preparation, None);
        }
        job.preparation = Preparation::Running;
        (job.preparation, Some(Action::Prepare))
    }

    /// An attempt of the job has ended.
    pub fn leave(&mut self, number: u64, key: &Key, stopped: bool) -> Option<Action> {
        let job = self.jobs.get_mut(&number)?;
        job.attempts.remove(key);
        if !job.attempts.is_empty() {
            return None;
        }
        let asked = job.release == Release::Asked;
        if job.preparation == Preparation::Running {
            let stops = stopped || asked;
            job.wanted &= !stops;
            return stops.then_some(Action::StopPreparation);
        }
        self.release_if_due(number)
    }

    /// Every preparation is asked to stop.
    pub fn stop_all(&mut self) {
        for job in self.jobs.values_mut() {
            job.wanted = false;
        }
    }

    /// The preparation task has ended. With `stopped` its result does not count;
    /// attempts that have come meanwhile need it again.
    pub fn prepared(&mut self, number: u64, succeeded: bool, stopped: bool) -> Option<Action> {
        let job = self.jobs.get_mut(&number)?;
        job.preparation = match (succeeded, stopped) {
            (true, _) => Preparation::Succeeded,
            (false, false) => Preparation::Failed,
            (false, true) if job.wanted => return Some(Action::Prepare),
            (false, true) => Preparation::Idle,
        };
        self.release_if_due(number)
    }

    /// job-svc asks for the release task.
    pub fn release(&mut self, number: u64, id: &Arc<str>) -> Option<Action> {
        let job = self.job(number, id);
        match job.release {
            Release::No => job.release = Release::Asked,
            Release::Asked | Release::Running => return None,
            Release::Done => {
                // Whoever asks again has not heard.
                if let Some((_, told)) = job.words.get_mut(&Kind::Release) {
                    *told = Told::Due;
                }
                return None;
            }
        }
        if job.attempts.is_empty() && job.preparation == Preparation::Running {
            job.wanted = false;
            return Some(Action::StopPreparation);
        }
        self.release_if_due(number)
    }

    /// Whether the release task was asked for and does not run yet.
    pub fn awaits_release(&self, number: u64) -> bool {
        self.jobs.get(&number).is_some_and(|job| job.release == Release::Asked)
    }

    fn release_if_due(&mut self, number: u64) -> Option<Action> {
        let job = self.jobs.get_mut(&number)?;
        let due = job.release == Release::Asked && job.attempts.is_empty() && job.preparation != Preparation::Running;
        due.then(|| {
            job.release = Release::Running;
            Action::Release
        })
    }

    /// The release task has ended.
    pub fn released(&mut self, number: u64) {
        if let Some(job) = self.jobs.get_mut(&number) {
            job.release = Release::Done;
        }
    }

    /// How the preparation of a job stands.
    pub fn preparation(&self, number: u64) -> Preparation {
        self.jobs.get(&number).map_or(Preparation::Idle, |job| job.preparation)
    }

    /// Whether a task with this id runs here for a job with this id.
    pub fn is_running(&self, is_ours: impl Fn(&str, &str) -> bool) -> bool {
        self.jobs.values().any(|job| {
            let runs = |kind: &Kind| match kind {
                Kind::Preparation => job.preparation == Preparation::Running,
                Kind::Release => job.release == Release::Running,
            };
            job.words.iter().any(|(kind, (word, _))| runs(kind) && is_ours(&job.id, &word.task))
        })
    }

    /// How many of these tasks run.
    pub fn running(&self) -> usize {
        let count = |job: &Job| {
            usize::from(job.preparation == Preparation::Running) + usize::from(job.release == Release::Running)
        };
        self.jobs.values().map(count).sum()
    }

    // --- words

    /// How a task goes.
    pub fn say(&mut self, number: u64, kind: Kind, task: &Arc<str>, run: Run) {
        self.sequence += 1;
        let sequence = self.sequence;
        if let Some(job) = self.jobs.get_mut(&number) {
            let word = Word { job: job.id.clone(), number, kind, sequence, task: task.clone(), run };
            job.words.insert(kind, (word, Told::Due));
        }
    }

    /// Whether something waits to be sent.
    pub fn has_words(&self) -> bool {
        self.words().any(|(_, told)| *told == Told::Due)
    }

    /// Up to `max` words, the oldest first.
    pub fn take_words(&mut self, max: usize) -> Vec<Word> {
        let mut due: Vec<&mut (Word, Told)> = self
            .jobs
            .values_mut()
            .flat_map(|job| job.words.values_mut())
            .filter(|(_, told)| *told == Told::Due)
            .collect();
        due.sort_unstable_by_key(|(word, _)| word.sequence);
        due.truncate(max);
        due.into_iter()
            .map(|(word, told)| {
                *told = Told::Sent;
                word.clone()
            })
            .collect()
    }

    /// The stream was lost: what was not acknowledged is due again.
    pub fn requeue_words(&mut self) {
        for (_, told) in self.jobs.values_mut().flat_map(|job| job.words.values_mut()) {
            if *told == Told::Sent {
                *told = Told::Due;
            }
        }
    }

    /// job-svc has this word.
    pub fn acknowledged(&mut self, number: u64, kind: Kind, sequence: u64) {
        if let Some((word, told)) = self.jobs.get_mut(&number).and_then(|job| job.words.get_mut(&kind))
            && word.sequence <= sequence
        {
            *told = Told::Acknowledged;
        }
    }

    fn words(&self) -> impl Iterator<Item = &(Word, Told)> {
        self.jobs.values().flat_map(|job| job.words.values())
    }

    fn job(&mut self, number: u64, id: &Arc<str>) -> &mut Job {
        if self.jobs.len() >= MAX_JOBS && !self.jobs.contains_key(&number) {
            let idle = |job: &Job| {
                job.attempts.is_empty()
                    && job.preparation != Preparation::Running
                    && matches!(job.release, Release::No | Release::Done)
                    && job.words.values().all(|(_, told)| *told == Told::Acknowledged)
            };
            let oldest = self
                .jobs
                .iter()
                .filter(|(_, job)| idle(job))
                .min_by_key(|(_, job)| job.used)
                .map(|(number, _)| *number);
            if let Some(oldest) = oldest {
                self.jobs.remove(&oldest);
            }
        }
        self.calls += 1;
        let job = self.jobs.entry(number).or_insert_with(|| Job {
            id: id.clone(),
            attempts: HashSet::new(),
            preparation: Preparation::Idle,
            wanted: false,
            release: Release::No,
            words: BTreeMap::new(),
            used: 0,
        });
        job.used = self.calls;
        job
    }
}

#[cfg(test)]
mod tests {
    use kiln_time::Timestamp;

    use super::*;

    fn key(task: &str) -> Key {
        Key { job: "j".into(), task: task.into(), attempt: 1, number: 1, instance: 0 }
    }

    fn id() -> Arc<str> {
        "j".into()
    }

    fn run() -> Run {
        Run::begin(Timestamp::from_micros(1))
    }

    #[test]
    fn a_job_is_prepared_once() {
        let mut jobs = JobTasks::default();
        assert_eq!(jobs.join(7, &id(), &key("a"), false), (Preparation::Running, Some(Action::Prepare)));
        assert_eq!(jobs.join(7, &id(), &key("b"), false), (Preparation::Running, None));
        assert_eq!(jobs.prepared(7, true, false), None);
        assert_eq!(jobs.join(7, &id(), &key("c"), false), (Preparation::Succeeded, None));
        // Another job with the same id.
        assert_eq!(jobs.join(8, &id(), &key("a"), true), (Preparation::Succeeded, None));
        assert_eq!(jobs.join(9, &id(), &key("a"), false).1, Some(Action::Prepare));
        assert_eq!(jobs.prepared(9, false, false), None);
        assert_eq!(jobs.join(9, &id(), &key("b"), false), (Preparation::Failed, None));
    }

    #[test]
    fn a_preparation_that_nobody_waits_for_is_stopped_and_may_run_again() {
        let mut jobs = JobTasks::default();
        jobs.join(7, &id(), &key("a"), false);
        jobs.join(7, &id(), &key("b"), false);
        assert_eq!(jobs.leave(7, &key("a"), true), None);
        assert_eq!(jobs.leave(7, &key("b"), true), Some(Action::StopPreparation));
        assert_eq!(jobs.prepared(7, false, true), None);
        assert_eq!(jobs.join(7, &id(), &key("c"), false).1, Some(Action::Prepare));
        assert_eq!(jobs.leave(7, &key("c"), true), Some(Action::StopPreparation));
        // The agent stops everything: the attempt may end after its preparation.
        assert_eq!(jobs.prepared(7, false, true), None);
        jobs.join(7, &id(), &key("c"), false);
        jobs.stop_all();
        assert_eq!(jobs.prepared(7, false, true), None);
        jobs.leave(7, &key("c"), true);
        assert_eq!(jobs.join(7, &id(), &key("c"), false).1, Some(Action::Prepare));
        jobs.leave(7, &key("c"), true);
        // Another comes before the process has died.
        assert_eq!(jobs.join(7, &id(), &key("d"), false), (Preparation::Running, None));
        assert_eq!(jobs.prepared(7, false, true), Some(Action::Prepare));
    }

    #[test]
    fn the_release_comes_once_and_after_everything() {
        let mut jobs = JobTasks::default();
        jobs.join(7, &id(), &key("a"), false);
        assert_eq!(jobs.release(7, &id()), None);
        assert_eq!(jobs.prepared(7, true, false), None);
        assert_eq!(jobs.leave(7, &key("a"), false), Some(Action::Release));
        assert_eq!(jobs.release(7, &id()), None);
        let task: Arc<str> = "jobrelease".into();
        jobs.say(7, Kind::Release, &task, run());
        jobs.released(7);
        assert_eq!(jobs.take_words(9).len(), 1);
        jobs.acknowledged(7, Kind::Release, u64::MAX);
        assert!(!jobs.has_words());
        assert_eq!(jobs.release(7, &id()), None);
        assert!(jobs.has_words(), "who asks again is told again");
        // A job that an earlier life has prepared.
        assert_eq!(jobs.release(8, &id()), Some(Action::Release));
        // A preparation that no attempt needs does not hold it up.
        jobs.join(9, &id(), &key("a"), false);
        assert_eq!(jobs.leave(9, &key("a"), false), None);
        assert_eq!(jobs.release(9, &id()), Some(Action::StopPreparation));
        assert_eq!(jobs.prepared(9, false, true), Some(Action::Release));
    }

    #[test]
    fn the_latest_word_is_told_until_it_is_acknowledged() {
        let mut jobs = JobTasks::default();
        let task: Arc<str> = "prep".into();
        jobs.join(7, &id(), &key("a"), false);
        jobs.say(7, Kind::Preparation, &task, run());
        let first = jobs.take_words(9);
        let mut ended = run();
        ended.ended(Some(0), None, Timestamp::from_micros(2));
        jobs.say(7, Kind::Preparation, &task, ended.clone());
        jobs.acknowledged(7, Kind::Preparation, first[0].sequence);
        let second = jobs.take_words(9);
        assert_eq!((second.len(), &second[0].run), (1, &ended));
        assert!(!jobs.has_words());
        jobs.requeue_words();
        assert_eq!(jobs.take_words(9), second);
        jobs.acknowledged(7, Kind::Preparation, second[0].sequence);
        jobs.requeue_words();
        assert!(!jobs.has_words());
    }

    #[test]
    fn the_memory_of_old_jobs_is_bounded() {
        let mut jobs = JobTasks::default();
        for number in 0..(MAX_JOBS as u64 + 10) {
            jobs.join(number, &id(), &key("a"), false);
            // The first is still being prepared.
            if number > 0 {
                jobs.prepared(number, true, false);
                jobs.leave(number, &key("a"), false);
            }
        }
        assert_eq!(jobs.jobs.len(), MAX_JOBS);
        assert!(jobs.jobs.contains_key(&0) && !jobs.jobs.contains_key(&1));
    }
}
