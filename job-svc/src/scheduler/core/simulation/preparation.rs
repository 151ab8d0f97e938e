//! Simulated preparations and releases: what agents do about them, and what the
//! store keeps.

use super::*;

/// How the preparation of a job stands on a simulated node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Stage {
    #[default]
    Idle,
    Running,
    Succeeded,
    Failed,
}

/// A job as a simulated agent knows it, in one life.
#[derive(Debug, Default)]
pub(super) struct AgentJob {
    pub stage: Stage,
    /// Attempts that wait for the preparation.
    pub waiting: Vec<Key>,
    /// `Some(false)`: the release runs.
    pub released: Option<bool>,
}

/// A word that was not acknowledged; the latest about each of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word {
    pub job: JobKey,
    pub word: NodeWord,
    pub sequence: u64,
}

impl Word {
    fn is_release(&self) -> bool {
        self.word == NodeWord::Released
    }
}

/// A word that was heard, with who said it: written and acknowledged together.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub conn: Conn,
    pub node: Arc<NodeId>,
    pub life: String,
    pub word: Word,
}

impl World {
    pub(super) fn random_rules(&mut self) -> Option<Rules> {
        let release = [None, Some(Duration::from_secs(20)), Some(Duration::from_secs(900))];
        self.rng.random_bool(0.6).then(|| Rules {
            wait_for_success: self.rng.random_bool(0.8),
            rerun: self.rng.random_bool(0.6),
            release: release[self.rng.random_range(0..release.len())],
        })
    }

    fn rules(&self, job: JobKey) -> Option<Rules> {
        self.jobs.get(&job).and_then(|view| view.preparation)
    }

    fn say(&mut self, at: usize, job: JobKey, word: NodeWord) {
        self.next_word += 1;
        let word = Word { job, word, sequence: self.next_word };
        let agent = &mut self.agents[at];
        agent.words.retain(|known| known.job != job || known.is_release() != word.is_release());
        agent.words.push(word);
        if agent.conn.is_some() && !agent.leaving {
            agent.up.push_back(Up::Word(word));
        }
    }

    /// An attempt arrives at an agent.
    pub(super) fn arrive(&mut self, at: usize, key: Key, job: JobKey, done: bool) {
        let rules = self.rules(job);
        let agent = &mut self.agents[at];
        agent.alive.push(key);
        let Some(rules) = rules else {
            agent.up.push_back(Up::Started(key));
            return;
        };
        if done {
            assert!(self.ever_prepared.contains(&(at, job)), "node {at} was never prepared for job {job}");
        }
        let here = agent.jobs.entry(job).or_default();
        if here.stage == Stage::Idle {
            here.stage = if done { Stage::Succeeded } else { Stage::Running };
            if !done {
                self.say(at, job, NodeWord::Preparation(Progress::Running));
            }
        }
        let agent = &mut self.agents[at];
        let here = agent.jobs.entry(job).or_default();
        let waits = rules.wait_for_success && here.stage != Stage::Succeeded;
        if !waits {
            agent.up.push_back(Up::Started(key));
        } else if here.stage == Stage::Failed {
            self.end(at, key, EndCause::PreparationFailed, 1);
        } else {
            here.waiting.push(key);
        }
    }

    /// A preparation or a release that runs on this node ends.
    pub(super) fn end_job_task(&mut self, at: usize, well: bool) {
        let agent = &mut self.agents[at];
        let running = agent.jobs.iter().find(|(_, here)| here.stage == Stage::Running || here.released == Some(false));
        let Some(job) = running.map(|(job, _)| *job) else { return };
        let Some(here) = agent.jobs.get_mut(&job) else { return };
        if here.stage != Stage::Running {
            here.released = Some(true);
            self.say(at, job, NodeWord::Released);
            return;
        }
        here.stage = if well { Stage::Succeeded } else { Stage::Failed };
        let waiting = std::mem::take(&mut here.waiting);
        self.say(at, job, NodeWord::Preparation(if well { Progress::Succeeded } else { Progress::Failed }));
        if well {
            self.ever_prepared.insert((at, job));
        }
        for key in waiting {
            if well {
                self.agents[at].up.push_back(Up::Started(key));
            } else {
                self.end(at, key, EndCause::PreparationFailed, 1);
            }
        }
    }

    /// An attempt has ended at its agent: a preparation that nobody needs any
    /// more is stopped.
    pub(super) fn leave(&mut self, at: usize, key: Key) {
        let agent = &mut self.agents[at];
        let Some((job, here)) = agent.jobs.iter_mut().find(|(_, here)| here.waiting.contains(&key)) else { return };
        let job = *job;
        here.waiting.retain(|waiting| *waiting != key);
        if here.waiting.is_empty() && here.stage == Stage::Running {
            here.stage = Stage::Idle;
            self.say(at, job, NodeWord::Preparation(Progress::Failed));
        }
    }

    /// Attempts that have begun.
    pub(super) fn begun(&self, at: usize) -> Vec<Key> {
        let agent = &self.agents[at];
        let waits = |key: &&Key| agent.jobs.values().any(|here| here.waiting.contains(key));
        agent.alive.iter().filter(|key| !waits(key)).copied().collect()
    }

    pub(super) fn mail_release(&mut self, conn: Conn, job: JobKey) {
        if let Some((node, _)) = self.core.node_of(conn) {
            let on = self.nodes.get(&(job, node.clone()));
            assert!(on.is_none_or(|on| !on.released), "job {job} is released on {node} again");
            assert!(on.is_some_and(|on| on.ran), "job {job} is released on {node}, where nothing of it ran");
        }
        self.mail(conn, Down::Release(job));
    }

    /// The agent is told to run the release.
    pub(super) fn run_release(&mut self, at: usize, job: JobKey) {
        let of_job = |row: &Row| self.tasks.get(row).is_some_and(|stored| stored.job == job);
        let alive = self.agents[at].alive.iter().filter(|(row, _, _)| of_job(row)).count();
        assert_eq!(alive, 0, "job {job} is released while tasks of it run on node {at}");
        let here = self.agents[at].jobs.entry(job).or_default();
        match here.released {
            None => here.released = Some(false),
            Some(false) => {}
            Some(true) => self.say(at, job, NodeWord::Released),
        }
    }

    /// Without a lease nothing runs.
    pub(super) fn stop_job_tasks(&mut self, at: usize) {
        for (job, here) in &mut self.agents[at].jobs {
            here.waiting.clear();
            if here.stage == Stage::Running {
                here.stage = Stage::Idle;
            }
            if here.released == Some(false) {
                self.stopped.push((at, *job));
            }
        }
        for (at, job) in std::mem::take(&mut self.stopped) {
            self.agents[at].jobs.entry(job).or_default().released = Some(true);
            self.say(at, job, NodeWord::Released);
        }
    }

    /// A word reaches the service.
    pub(super) fn hear_word(&mut self, conn: Conn, word: Word) {
        let Some((node, life)) = self.core.node_of(conn) else { return };
        let heard = Heard { conn, node, life, word };
        self.input_with(Input::JobNode { conn, job: word.job, word: word.word }, Vec::new(), vec![heard]);
    }

    /// What a commit says about jobs on nodes becomes durable.
    pub(super) fn write_nodes(&mut self, changes: Vec<(JobKey, Arc<NodeId>, NodeChange)>, heard: &[Heard]) {
        for heard in heard {
            let Some(on) = self.row(heard.word.job, &heard.node) else { continue };
            match heard.word.word {
                NodeWord::Preparation(progress) => {
                    on.prepared = (progress == Progress::Succeeded).then(|| heard.life.clone());
                }
                NodeWord::Released => on.released = true,
            }
        }
        for (job, node, change) in changes {
            let Some(on) = self.row(job, &node) else { continue };
            match change {
                NodeChange::Ran => on.ran = true,
                NodeChange::Barred(life) => on.barred = Some(life),
            }
        }
    }

    fn row(&mut self, job: JobKey, node: &Arc<NodeId>) -> Option<&mut OnNode> {
        self.jobs.contains_key(&job).then(|| self.nodes.entry((job, node.clone())).or_default())
    }

    /// Nodes that are of no use for a job any more begin new lives.
    pub(super) fn replace_failed(&mut self) {
        for at in 0..self.agents.len() {
            if self.agents[at].jobs.values().any(|here| here.stage == Stage::Failed) {
                self.lose_stream(at);
                self.new_life(at);
            }
        }
    }
}
