//! Attempts that were assigned ahead of a free slot (docs/adr/006): they stand in
//! line and begin in their order, each as soon as its slots are free.
//!
//! That no slot is used twice is decided here, by what the agent itself knows. Who waits too long is
//! given back: something that runs here takes longer than job-svc thought.

use std::sync::Arc;

use kiln_proto::job::v1::Assignment;
use kiln_time::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Agent, State, remember, timestamp};
use crate::domain::attempt::Event;
use crate::domain::ledger::{Assigned, Key};

/// An attempt that begins now.
#[derive(Debug)]
pub struct Turn {
    /// Its name.
    pub key: Key,
    /// What to run.
    pub assignment: Assignment,
    /// Cancelled to stop it.
    pub stop: CancellationToken,
}

/// An attempt in line.
#[derive(Debug)]
pub(super) struct Waiting {
    turn: Turn,
    since: Instant,
}

fn slots(assignment: &Assignment) -> i32 {
    assignment.spec.as_ref().map_or(1, |spec| spec.required_slots).max(1)
}

/// Whether it waits for its job's preparation once it has its slots.
fn waits(assignment: &Assignment) -> bool {
    assignment.preparation.as_ref().is_some_and(|preparation| preparation.wait_for_success)
}

impl State {
    fn has_room(&self, slots: i32, capacity: i32) -> bool {
        let used: i32 = self.stops.values().map(|(_, slots)| *slots).sum();
        used == 0 || used.saturating_add(slots) <= capacity
    }

    pub(super) fn line_is_long(&self) -> bool {
        self.line.len() > self.line_mark / 2
    }

    fn begin(&mut self, turn: &Turn, now: Timestamp) {
        self.stops.insert(turn.key.clone(), (turn.stop.clone(), slots(&turn.assignment)));
        self.total_run = self.total_run.saturating_add(1);
        remember(&mut self.recent, &turn.key, "running", Some(timestamp(now)), None);
    }
}

impl Agent {
    /// An assignment has arrived. It is given back if it begins now; otherwise it is known already,
    /// or stands in line.
    pub fn assign(&self, key: Key, assignment: Assignment) -> Option<Turn> {
        let capacity = self.registration().settings.task_slots.max(1);
        let turn = Turn { key, assignment, stop: CancellationToken::new() };
        let mut state = self.state();
        let now = Timestamp::now();
        let begins = state.line.is_empty() && state.has_room(slots(&turn.assignment), capacity);
        if state.ledger.assign(&turn.key, !begins || waits(&turn.assignment), now) == Assigned::Known {
            return None;
        }
        if begins {
            state.begin(&turn, now);
            drop(state);
            self.control_soon.notify_one();
            return Some(turn);
        }
        // It holds no slot yet.
        state.stops.insert(turn.key.clone(), (turn.stop.clone(), 0));
        let key = turn.key.clone();
        state.line.push_back(Waiting { turn, since: Instant::now() });
        let (is_first, accepting) = (state.line.len() == 1, state.accepting);
        drop(state);
        if !accepting {
            self.leave_line(&key);
        } else if is_first {
            self.line_began.notify_one();
        }
        None
    }

    /// The first in line, if its slots are free. Whoever has given slots back asks until
    /// there is none.
    pub fn next_turn(&self) -> Option<Turn> {
        let capacity = self.registration().settings.task_slots.max(1);
        let mut state = self.state();
        let first = state.line.front()?;
        if !state.has_room(slots(&first.turn.assignment), capacity) {
            return None;
        }
        let turn = state.line.pop_front()?.turn;
        if state.line.len() == state.line_mark / 2 && state.ledger.has_reports() {
            self.work_due.notify_one();
        }
        let now = Timestamp::now();
        state.begin(&turn, now);
        if !waits(&turn.assignment) {
            // Cannot be refused: it waits.
            let _ = state.ledger.apply(&turn.key, Event::Begin, now);
        }
        Some(turn)
    }

    /// Whether reports may gather: the line will not be empty before job-svc has heard of the ends
    /// and has sent more. It is long until half of it is used up.
    pub fn line_is_long(&self) -> bool {
        self.state().line_is_long()
    }

    /// Assignments have arrived: the line is as long as it will be for now.
    pub fn line_grown(&self) {
        let mut state = self.state();
        state.line_mark = state.line.len();
    }

    /// An attempt in line shall not begin.
    pub(super) fn leave_line(&self, key: &Key) {
        let found = {
            let mut state = self.state();
            let at = state.line.iter().position(|waiting| waiting.turn.key == *key);
            at.and_then(|at| state.line.remove(at))
        };
        if found.is_some() {
            self.apply(key, Event::GivenBack);
        }
    }

    /// The whole line is given back: the node takes no tasks any more, or it does not move.
    pub fn give_line_back(&self) {
        let keys: Vec<Key> = self.state().line.iter().map(|waiting| waiting.turn.key.clone()).collect();
        for key in keys {
            self.leave_line(&key);
        }
    }
}

/// Gives the line back when it does not move.
pub async fn watch_line(agent: Arc<Agent>) {
    let patience = agent.config.settings.line_patience;
    loop {
        let first = agent.state().line.front().map(|waiting| waiting.since + patience);
        let over = async {
            match first {
                Some(at) => tokio::time::sleep_until(at).await,
                None => agent.line_began.notified().await,
            }
        };
        tokio::select! {
            () = over => {}
            () = agent.closing.cancelled() => return,
        }
        let late = agent.state().line.front().is_some_and(|waiting| waiting.since.elapsed() >= patience);
        if late {
            agent.give_line_back();
        }
    }
}
