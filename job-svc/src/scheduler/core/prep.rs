//! Preparation and release of jobs, node by node.
//!
//! The agent runs a job's preparation when it meets the job; here is only what
//! follows from it. Where it failed, no task of the job is placed before the
//! node begins a new life. When a job has ended and nothing of it runs any more,
//! each node on which a task of it began runs the release; the job is over when
//! all have said so, are gone, or had their time. A task begins only after the
//! preparation (or beside it, if the job says so), so "a task began there" is
//! all that has to be remembered for the release.

use super::*;

/// What is known of a job on one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnNode {
    /// Life of the agent in which the preparation ended well last, if it has
    /// not run since.
    pub prepared: Option<String>,
    /// Life of the agent in which it failed while tasks waited for it.
    pub barred: Option<String>,
    /// A task of the job has begun there.
    pub ran: bool,
    /// Its release is over.
    pub released: bool,
}

/// A word of an agent about a job on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeWord {
    /// About the preparation.
    Preparation(Progress),
    /// The release is over.
    Released,
}

/// What has to be remembered of a job on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeChange {
    /// The first task of the job began there.
    Ran,
    /// See [`OnNode::barred`].
    Barred(String),
}

#[derive(Debug, Default)]
enum Release {
    #[default]
    NotDue,
    /// Nodes that have not said that they are done, and how long they may take.
    Running {
        until: Duration,
        waiting: HashSet<Arc<NodeId>>,
    },
    Over,
}

/// Of a job with preparation.
#[derive(Debug, Default)]
pub(super) struct Prep {
    nodes: HashMap<Arc<NodeId>, OnNode>,
    /// Nodes that were barred, in this life or an earlier one.
    bars: usize,
    /// No node is left, as of this state of the nodes.
    stuck: Option<u64>,
    /// That was said.
    told: bool,
    release: Release,
}

impl Prep {
    pub(super) fn new(known: Vec<(Arc<NodeId>, OnNode)>) -> Self {
        let nodes: HashMap<_, _> = known.into_iter().collect();
        let bars = nodes.values().filter(|on| on.barred.is_some()).count();
        Self { nodes, bars, ..Self::default() }
    }
}

impl Core {
    fn incarnation(&self, name: &Arc<NodeId>) -> &str {
        self.lives.get(name).map_or("", |life| &life.incarnation)
    }

    fn on_node(&self, key: JobKey, name: &Arc<NodeId>) -> Option<(Rules, &OnNode)> {
        let job = self.jobs.get(&key)?;
        Some((job.view.preparation?, job.prep.as_ref()?.nodes.get(name)?))
    }

    /// Whether a task of the job would have to wait for the preparation there.
    pub(super) fn has_to_prepare(&self, key: JobKey, name: &Arc<NodeId>) -> bool {
        let Some(rules) = self.jobs.get(&key).and_then(|job| job.view.preparation) else { return false };
        rules.wait_for_success && !self.is_prepared(key, name)
    }

    fn is_prepared(&self, key: JobKey, name: &Arc<NodeId>) -> bool {
        self.on_node(key, name).is_some_and(|(rules, on)| {
            on.prepared.as_ref().is_some_and(|life| !rules.rerun || life == self.incarnation(name))
        })
    }

    /// Whether the agent need not run the preparation even in a new life.
    pub fn is_prepared_for_good(&self, key: JobKey, name: &Arc<NodeId>) -> bool {
        self.on_node(key, name).is_some_and(|(rules, _)| !rules.rerun) && self.is_prepared(key, name)
    }

    pub(super) fn is_barred(&self, key: JobKey, name: &Arc<NodeId>) -> bool {
        let on = self.on_node(key, name);
        on.is_some_and(|(_, on)| on.barred.as_ref().is_some_and(|life| life == self.incarnation(name)))
    }

    /// Nodes that must not be chosen for a job; `None` if that is so for none.
    pub(super) fn bars(&self, key: JobKey) -> Option<impl Fn(u32) -> bool> {
        self.jobs.get(&key)?.prep.as_ref().filter(|prep| prep.bars > 0)?;
        Some(move |index: u32| {
            let node = self.nodes.get(index as usize).and_then(Option::as_ref);
            node.is_none_or(|node| self.is_barred(key, &node.name))
        })
    }

    /// Whether the preparation failed on all nodes that take tasks.
    pub(super) fn is_barred_everywhere(&self, key: JobKey) -> bool {
        let bars = self.jobs.get(&key).and_then(|job| job.prep.as_ref()).map_or(0, |prep| prep.bars);
        let usable = || self.nodes.iter().flatten().filter(|node| node.conn.is_some() && node.status.accepting);
        bars > 0
            && bars >= usable().count()
            && usable().count() > 0
            && usable().all(|node| self.is_barred(key, &node.name))
    }

    /// Whether there is no sense in looking for a node.
    pub(super) fn is_stuck(&self, key: JobKey) -> bool {
        let prep = self.jobs.get(&key).and_then(|job| job.prep.as_ref());
        prep.is_some_and(|prep| prep.stuck == Some(self.nodes_version))
    }

    /// No node was found for a task of the job because of its bars.
    pub(super) fn no_unbarred_node(&mut self, key: JobKey, row: Row, fx: &mut Effects) {
        if self.is_stuck(key) || !self.is_barred_everywhere(key) {
            return;
        }
        let version = self.nodes_version;
        let Some(prep) = self.jobs.get_mut(&key).and_then(|job| job.prep.as_mut()) else { return };
        prep.stuck = Some(version);
        if !std::mem::replace(&mut prep.told, true) {
            fx.unschedulable.push((row, key, WaitReason::PreparationFailed));
        }
    }

    /// An agent speaks of a job.
    pub(super) fn heard_of(&mut self, conn: Conn, key: JobKey, word: NodeWord, now: Now, fx: &mut Effects) {
        let Some(name) = self.by_conn.get(&conn).and_then(|index| self.node_name(*index)) else { return };
        match word {
            NodeWord::Preparation(progress) => {
                let life = self.incarnation(&name).to_owned();
                let Some(prep) = self.jobs.get_mut(&key).and_then(|job| job.prep.as_mut()) else { return };
                let on = prep.nodes.entry(name).or_default();
                // That it failed bars the node only if tasks waited for it:
                // it may have been stopped because none did any more.
                on.prepared = (progress == Progress::Succeeded).then_some(life);
            }
            NodeWord::Released => {
                let Some(prep) = self.jobs.get_mut(&key).and_then(|job| job.prep.as_mut()) else { return };
                prep.nodes.entry(name.clone()).or_default().released = true;
                if let Release::Running { waiting, .. } = &mut prep.release {
                    waiting.remove(&name);
                }
                self.settle(key, now, fx);
            }
        }
    }

    /// The preparation failed on a node while a task waited for it.
    pub(super) fn bar(&mut self, key: JobKey, index: u32, fx: &mut Effects) {
        let Some(name) = self.node_name(index) else { return };
        let life = self.incarnation(&name).to_owned();
        let Some(prep) = self.jobs.get_mut(&key).and_then(|job| job.prep.as_mut()) else { return };
        let on = prep.nodes.entry(name.clone()).or_default();
        on.prepared = None;
        if on.barred.as_ref() != Some(&life) {
            prep.bars += usize::from(on.barred.is_none());
            prep.stuck = None;
            on.barred = Some(life.clone());
            fx.nodes.push((key, name, NodeChange::Barred(life)));
        }
    }

    /// A task of the job began on the node.
    pub(super) fn note_begun(&mut self, key: JobKey, index: u32, fx: &mut Effects) {
        if self.jobs.get(&key).is_none_or(|job| job.prep.is_none()) {
            return;
        }
        let Some(name) = self.node_name(index) else { return };
        let Some(prep) = self.jobs.get_mut(&key).and_then(|job| job.prep.as_mut()) else { return };
        if !std::mem::replace(&mut prep.nodes.entry(name.clone()).or_default().ran, true) {
            fx.nodes.push((key, name, NodeChange::Ran));
        }
    }

    /// Whether the release of a job that has ended is over; begins it if it is
    /// due. Nothing of the job runs any more.
    pub(super) fn is_released(&mut self, key: JobKey, now: Now, fx: &mut Effects) -> bool {
        let Some(job) = self.jobs.get_mut(&key) else { return true };
        let (Some(prep), Some(limit)) = (&mut job.prep, job.view.preparation.and_then(|rules| rules.release)) else {
            return true;
        };
        match &prep.release {
            Release::NotDue => {}
            Release::Running { until, waiting } if waiting.is_empty() || *until <= now.mono => {
                prep.release = Release::Over;
                self.releasing.remove(&key);
                return true;
            }
            Release::Running { .. } => return false,
            Release::Over => return true,
        }
        let due = prep.nodes.iter().filter(|(_, on)| on.ran && !on.released);
        let due: Vec<Arc<NodeId>> = due.map(|(name, _)| name.clone()).collect();
        // Before all agents have had the time to come back we do not know who is
        // gone.
        let young = self.began.is_some_and(|began| now.mono < began + self.settings.patience);
        let mut waiting = HashSet::with_capacity(due.len());
        for name in due {
            if young {
                self.node_index(&name, now);
            }
            if let Some(index) = self.by_name.get(&name).copied() {
                self.offer_release(key, index, fx);
                waiting.insert(name);
            }
        }
        let until = now.mono + limit + self.settings.patience;
        let over = waiting.is_empty();
        if let Some(prep) = self.jobs.get_mut(&key).and_then(|job| job.prep.as_mut()) {
            prep.release = if over { Release::Over } else { Release::Running { until, waiting } };
        }
        if !over {
            self.releasing.insert(key);
            self.timers.insert((until, Timer::Job(key)));
        }
        over
    }

    /// Sends the release to a node that is there and has nothing of which we do
    /// not know whose it is.
    fn offer_release(&mut self, key: JobKey, index: u32, fx: &mut Effects) {
        if let Some(node) = self.nodes.get(index as usize).and_then(Option::as_ref)
            && let Some(conn) = node.conn
            && node.foreign == 0
        {
            fx.sends.push(Send::Release(conn, key));
        }
    }

    /// The node has come back, or is rid of what should not run there.
    pub(super) fn offer_releases(&mut self, index: u32, fx: &mut Effects) {
        let Some(name) = self.node_name(index) else { return };
        for key in self.releasing.clone() {
            let Some(prep) = self.jobs.get_mut(&key).and_then(|job| job.prep.as_mut()) else { continue };
            if prep.nodes.get(&name).is_some_and(|on| on.ran && !on.released)
                && let Release::Running { waiting, .. } = &mut prep.release
            {
                waiting.insert(name.clone());
                self.offer_release(key, index, fx);
            }
        }
    }

    /// The node is gone: nobody waits for it.
    pub(super) fn excuse(&mut self, name: &Arc<NodeId>, now: Now, fx: &mut Effects) {
        for key in self.releasing.clone() {
            let prep = self.jobs.get_mut(&key).and_then(|job| job.prep.as_mut());
            if let Some(Release::Running { waiting, .. }) = prep.map(|prep| &mut prep.release)
                && waiting.remove(name)
            {
                self.settle(key, now, fx);
            }
        }
    }

    pub(super) fn node_name(&self, index: u32) -> Option<Arc<NodeId>> {
        self.nodes.get(index as usize)?.as_ref().map(|node| node.name.clone())
    }

    /// The node at the other end of a stream, and the life of its agent.
    pub fn node_of(&self, conn: Conn) -> Option<(Arc<NodeId>, String)> {
        let name = self.node_name(*self.by_conn.get(&conn)?)?;
        let incarnation = self.incarnation(&name).to_owned();
        Some((name, incarnation))
    }
}

#[cfg(test)]
#[path = "prep_tests.rs"]
mod tests;
