//! Why tasks wait, and which wait for ever.
//!
//! A task that no node of the pool could run, even if nothing else ran there, is
//! reported as soon as there are nodes: once for all tasks of a job with the
//! same needs, under the name of the oldest, so that a million of them cost one
//! look and one announcement. It still waits: the pool may change.

use super::*;
use crate::domain::needs::Resource;

/// Why a waiting task does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitReason {
    /// The scheduler does not have it.
    NotWaiting,
    /// Its job places nothing at the moment.
    JobNotActive,
    /// Tasks it waits for have not completed.
    DependencyOpen,
    /// Tasks it waits for block it.
    DependencyFailed,
    /// Tasks it waits for are not there.
    DependencyMissing,
    /// It waits for tasks that wait for each other.
    DependencyCycle,
    /// No node of the pool takes tasks.
    NoNodes,
    /// It needs more slots than any node has.
    RequiredSlotsTooLarge {
        /// Slots of the largest node.
        largest: u16,
    },
    /// It needs more of a resource than any node has.
    ResourcesTooLarge {
        /// Of which one.
        resource: Resource,
        /// What the largest node has, of those that would do otherwise.
        largest: u64,
    },
    /// It wants a node that is not taken away, and there is none.
    NoDedicatedNode,
    /// It has more instances than there are nodes for them.
    TooFewNodes {
        /// Nodes that would do.
        fitting: usize,
    },
    /// The job runs as many tasks as it may.
    MaxParallelTasks,
    /// All slots are taken.
    NoFreeSlots,
    /// All of a resource is taken on the nodes with free slots.
    NoFreeResources {
        /// Of which one.
        resource: Resource,
    },
    /// It wants a node for itself, and something runs on each.
    NoEmptyNode,
    /// The job's preparation failed on every node that takes tasks.
    PreparationFailed,
    /// Others go first.
    BehindOthers,
}

impl WaitReason {
    /// The word for it in answers and events.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotWaiting => "NotWaiting",
            Self::JobNotActive => "JobNotActive",
            Self::DependencyOpen => "DependencyOpen",
            Self::DependencyFailed => "DependencyFailed",
            Self::DependencyMissing => "DependencyMissing",
            Self::DependencyCycle => "DependencyCycle",
            Self::NoNodes => "NoNodes",
            Self::RequiredSlotsTooLarge { .. } => "RequiredSlotsTooLarge",
            Self::ResourcesTooLarge { .. } => "ResourcesTooLarge",
            Self::NoDedicatedNode => "NoDedicatedNode",
            Self::TooFewNodes { .. } => "TooFewNodes",
            Self::MaxParallelTasks => "MaxParallelTasks",
            Self::NoFreeSlots => "NoFreeSlots",
            Self::NoFreeResources { .. } => "NoFreeResources",
            Self::NoEmptyNode => "NoEmptyNode",
            Self::PreparationFailed => "PreparationFailed",
            Self::BehindOthers => "BehindOthers",
        }
    }

    /// Whether it stays so until somebody changes the pool or the task.
    pub fn is_for_ever(self) -> bool {
        match self {
            Self::RequiredSlotsTooLarge { .. }
            | Self::ResourcesTooLarge { .. }
            | Self::NoDedicatedNode
            | Self::PreparationFailed
            | Self::DependencyFailed
            | Self::DependencyCycle => true,
            Self::NotWaiting
            | Self::JobNotActive
            | Self::DependencyOpen
            | Self::DependencyMissing
            | Self::NoNodes
            | Self::TooFewNodes { .. }
            | Self::MaxParallelTasks
            | Self::NoFreeSlots
            | Self::NoFreeResources { .. }
            | Self::NoEmptyNode
            | Self::BehindOthers => false,
        }
    }
}

impl Core {
    /// Why a task does not run.
    pub fn explain(&self, key: JobKey, row: Row, needs: &Needs) -> WaitReason {
        let Some(job) = self.jobs.get(&key) else { return WaitReason::NotWaiting };
        if job.view.state != JobState::Active || job.pending {
            return WaitReason::JobNotActive;
        }
        if let Some(cause) = job.graph.as_ref().and_then(|graph| graph.explain(row)) {
            return cause.reason();
        }
        if !self.waits(key, needs, row) {
            return WaitReason::NotWaiting;
        }
        let usable = |node: &&Node| node.conn.is_some() && node.status.accepting;
        let nodes: Vec<&Node> = self.known_nodes().filter(usable).collect();
        if nodes.is_empty() {
            return WaitReason::NoNodes;
        }
        if let Some(never) = too_large(&self.known_nodes().collect::<Vec<_>>(), needs) {
            return never;
        }
        let fitting = self.known_nodes().filter(|node| node.could_fit(needs)).count();
        if fitting < usize::from(needs.instances) {
            return WaitReason::TooFewNodes { fitting };
        }
        if self.is_barred_everywhere(key) {
            return WaitReason::PreparationFailed;
        }
        if job.view.max_parallel.is_some_and(|max| job.running >= max) {
            return WaitReason::MaxParallelTasks;
        }
        let unbarred = nodes.into_iter().filter(|node| !self.is_barred(key, &node.name)).collect();
        no_room(unbarred, needs).unwrap_or(WaitReason::BehindOthers)
    }

    /// Nodes that said what they have, also those that will be back.
    fn known_nodes(&self) -> impl Iterator<Item = &Node> + Clone {
        self.nodes.iter().flatten().filter(|node| node.status.slots > 0)
    }

    /// Tells of tasks that no node could run. Looks at what came since it looked
    /// last, or at everything when a node has gone or changed.
    pub(super) fn report_hopeless(&mut self, fx: &mut Effects) {
        if self.unjudged.is_empty() && !self.judge_all || self.known_nodes().next().is_none() {
            return;
        }
        let unjudged = std::mem::take(&mut self.unjudged);
        let all = std::mem::take(&mut self.judge_all);
        let mut judged: HashMap<Shape, Option<WaitReason>> = HashMap::new();
        let mut hopeless = Vec::new();
        {
            let waiting = |key: &JobKey| self.jobs.get(key).into_iter().flat_map(|job| job.ready.keys().copied());
            let everything = self.jobs.keys().filter(|_| all).flat_map(|key| waiting(key).map(|shape| (*key, shape)));
            for (key, shape) in everything.chain(unjudged) {
                let verdict = judged.entry(shape).or_insert_with(|| {
                    let needs = self.shapes.needs(shape)?;
                    if self.known_nodes().any(|node| node.could_fit(&needs)) {
                        return None;
                    }
                    too_large(&self.known_nodes().collect::<Vec<_>>(), &needs)
                });
                if let Some(reason) = *verdict {
                    hopeless.push((key, shape, reason));
                }
            }
        }
        for (key, shape, reason) in hopeless {
            let Some(job) = self.jobs.get_mut(&key) else { continue };
            let Some(row) = job.ready.get(&shape).and_then(|bucket| bucket.keys().next().copied()) else { continue };
            if !job.reported.contains(&shape) {
                job.reported.push(shape);
                fx.unschedulable.push((row, key, reason));
            }
        }
    }
}

/// Keeps the nodes for which this holds; `false` if there are too few then.
fn narrow(nodes: &mut Vec<&Node>, enough: usize, holds: impl Fn(&Node) -> bool) -> bool {
    let left: Vec<&Node> = nodes.iter().copied().filter(|node| holds(node)).collect();
    let goes_on = left.len() >= enough;
    if goes_on {
        *nodes = left;
    }
    goes_on
}

/// Why no node could run a task with these needs, even if it were empty.
fn too_large(nodes: &[&Node], needs: &Needs) -> Option<WaitReason> {
    let mut left = nodes.to_vec();
    if !narrow(&mut left, 1, |node| node.status.slots >= needs.slots) {
        let largest = left.iter().map(|node| node.status.slots).max()?;
        return Some(WaitReason::RequiredSlotsTooLarge { largest });
    }
    if !narrow(&mut left, 1, |node| !needs.dedicated_only || node.status.dedicated) {
        return Some(WaitReason::NoDedicatedNode);
    }
    for resource in Resource::ALL {
        let needed = needs.amount(resource);
        if !narrow(&mut left, 1, |node| node.status.capacity.amount(resource) >= needed) {
            let largest = left.iter().map(|node| node.status.capacity.amount(resource)).max()?;
            return Some(WaitReason::ResourcesTooLarge { resource, largest });
        }
    }
    None
}

/// Why there is no room now on nodes that could run such a task.
fn no_room(mut left: Vec<&Node>, needs: &Needs) -> Option<WaitReason> {
    let enough = usize::from(needs.instances);
    left.retain(|node| node.could_fit(needs));
    if needs.exclusive && !narrow(&mut left, enough, |node| node.rows.is_empty()) {
        return Some(WaitReason::NoEmptyNode);
    }
    if !narrow(&mut left, enough, |node| node.queued.is_some_and(|free| free >= needs.slots)) {
        return Some(WaitReason::NoFreeSlots);
    }
    for resource in Resource::ALL {
        let needed = needs.amount(resource);
        let has =
            |node: &Node| node.held.amount(resource).saturating_add(needed) <= node.status.capacity.amount(resource);
        if needed > 0 && !narrow(&mut left, enough, has) {
            return Some(WaitReason::NoFreeResources { resource });
        }
    }
    None
}
