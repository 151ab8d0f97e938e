//! How fast the scheduler's core alone is: no store, no network, no clock.
//!
//! For `kiln bench core` and the bench of this crate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_ids::NodeId;
use kiln_time::Timestamp;

use crate::domain::exit::JobAction;
use crate::domain::job::JobState;
use crate::domain::needs::{Capacity, Needs};
use crate::domain::spec::INHERIT_RETRIES;
use crate::domain::task::{AttemptEnd, EndCause};
use crate::scheduler::core::{
    Core, Dependants, Effects, Input, JobView, NodeStatus, Now, ReadyTask, RunningTasks, Send, Settings,
};

/// Slots of each node of a measurement.
const SLOTS: u16 = 8;

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub struct Placed {
    /// Tasks that were placed and came to their end.
    pub placements: u64,
    /// How long that took, without making nodes and tasks.
    pub took: Duration,
}

impl Placed {
    /// Placements a second.
    pub fn rate(&self) -> f64 {
        self.placements as f64 / self.took.as_secs_f64().max(f64::EPSILON)
    }
}

/// Places `count` tasks of one slot on `nodes` nodes, each attempt ended before
/// the next is placed on its slot.
pub fn placements(count: u64, nodes: usize) -> Placed {
    World::new(count, nodes, &[Needs::slots(1)]).run()
}

/// Nodes, and a job with tasks that wait for them.
#[derive(Debug)]
pub struct World {
    core: Core,
}

impl World {
    /// Tasks that have these needs in turn.
    pub fn new(count: u64, nodes: usize, needs: &[Needs]) -> Self {
        let mut core = Core::new(Settings { patience: Duration::from_secs(40), linger: Duration::ZERO });
        let mut fx = Effects::default();
        for at in 0..nodes {
            connect(&mut core, at, &mut fx);
        }
        let ready = (1..=count).zip(needs.iter().cycle()).map(|(row, needs)| task(row, *needs)).collect();
        let (view, dependants) = (job(), Dependants::default());
        let loaded = Input::Loaded { view, ready, running: Vec::new(), nodes: Vec::new(), dependants };
        core.step(loaded, now(), &mut fx);
        Self { core }
    }

    /// Places all of them, each attempt ended before the next on its slot.
    pub fn run(mut self) -> Placed {
        let (mut placements, began) = (0, Instant::now());
        loop {
            let mut placed = Effects::default();
            self.core.place(&mut placed);
            if placed.sends.is_empty() {
                return Placed { placements, took: began.elapsed() };
            }
            let mut ended = Effects::default();
            for send in &placed.sends {
                if let Send::Assign(conn, row, attempt, instance) = send {
                    let (conn, row, attempt, instance) = (*conn, *row, *attempt, *instance);
                    let input = Input::Ended { conn, row, attempt, instance, end: exit(), action: JobAction::None };
                    self.core.step(input, now(), &mut ended);
                    placements += 1;
                }
            }
        }
    }
}

fn now() -> Now {
    Now { wall: Timestamp::from_micros(1), mono: Duration::ZERO }
}

fn connect(core: &mut Core, at: usize, fx: &mut Effects) {
    // Names that are well formed.
    let Ok(node) = NodeId::parse(&format!("n{at}")) else { return };
    let status = NodeStatus {
        slots: SLOTS,
        accepting: true,
        running_tasks: RunningTasks::Wait,
        pack: false,
        by_creation: false,
        dedicated: true,
        capacity: Capacity { memory_bytes: 64 << 30, cpu_millis: 8000, ..Capacity::UNKNOWN },
    };
    let (conn, node) = (at as u64 + 1, Arc::new(node));
    let hello = Input::Hello { conn, node, incarnation: "1".to_owned(), stream: 1, status, seen: Vec::new() };
    core.step(hello, now(), fx);
}

fn job() -> JobView {
    JobView {
        key: 1,
        version: 1,
        state: JobState::Active,
        priority: 0,
        max_parallel: None,
        created: Timestamp::from_micros(1),
        ends_when_complete: false,
        exit_actions: false,
        ends_with_manager: false,
        default_retries: 0,
        wall_clock_end: None,
        preemptible: false,
        preparation: None,
    }
}

fn task(row: u64, needs: Needs) -> ReadyTask {
    let max_retries = INHERIT_RETRIES;
    ReadyTask { row, needs, attempt: 0, retry_count: 0, internal_retries: 0, max_retries, affinity: 0 }
}

fn exit() -> AttemptEnd {
    AttemptEnd {
        start: None,
        end: Timestamp::from_micros(1),
        exit_code: Some(0),
        failure: None,
        cause: EndCause::Exited,
        outputs_kept: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_places_every_task() {
        assert_eq!(placements(100, 3).placements, 100);
        let rich = Needs { memory_bytes: 30 << 30, ..Needs::slots(1) };
        assert_eq!(World::new(100, 3, &[Needs::slots(2), rich]).run().placements, 100);
    }
}
