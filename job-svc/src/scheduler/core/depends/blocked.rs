//! Tasks that can never run as things are: a parent has failed them, or they
//! wait for each other in a circle, or for a task of which that is true.
//!
//! A failure is passed on to all who wait, directly or not, when it happens.
//! Circles, and what becomes possible again, are found by looking at all that
//! wait ([`Graph::recompute`]), when something may have changed. A parent that is
//! missing may still come: nobody is stuck because of it.

use std::collections::{HashMap, HashSet};

use super::numbers::{Number, PieceKey, Range, number_at};
use super::{Change, Graph, Row, WaitReason};
use crate::domain::dependencies::ParentState;

/// Parents that an explanation names.
const FEW: usize = 5;

/// Why a task waits for its parents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// These have completed and block it, or wait for such themselves.
    Failed(Vec<String>),
    /// These wait for each other.
    Cycle(Vec<String>),
    /// There are no tasks with these ids.
    Missing(Vec<String>),
    /// These have not completed. Of numbers it is not known here whether they
    /// have tasks.
    Open {
        /// Ids.
        ids: Vec<String>,
        /// Numbers of ranges.
        numbers: Vec<i32>,
    },
}

impl Cause {
    /// The word for it.
    pub fn reason(&self) -> WaitReason {
        match self {
            Self::Failed(_) => WaitReason::DependencyFailed,
            Self::Cycle(_) => WaitReason::DependencyCycle,
            Self::Missing(_) => WaitReason::DependencyMissing,
            Self::Open { .. } => WaitReason::DependencyOpen,
        }
    }
}

/// What is left to decide, piece by piece, while all that can run is found.
#[derive(Debug, Default)]
struct Undecided {
    /// Numbers that wait themselves.
    numbers: u32,
    /// Some number never comes.
    dead: bool,
}

impl Graph {
    /// Whether [`Graph::recompute`] has to look.
    pub fn needs_recheck(&self) -> bool {
        self.recheck
    }

    /// Whether all tasks that wait can never run as things are.
    pub fn is_all_stuck(&self) -> bool {
        self.waiting == self.stuck && !self.recheck
    }

    /// Whether nothing can be expected of an id.
    fn is_dead_id(&self, key: &str) -> bool {
        match self.parents.get(key).map(|parent| parent.state) {
            Some(ParentState::Blocks) => true,
            Some(ParentState::Open) => self.waiting_by_key(key).is_some_and(|row| self.tasks[&row].stuck),
            Some(ParentState::Missing | ParentState::Satisfied) | None => false,
        }
    }

    fn waiting_by_key(&self, key: &str) -> Option<Row> {
        self.by_key.get(key).copied().filter(|row| self.waits(*row))
    }

    pub(super) fn is_stuck_now(&self, row: Row) -> bool {
        let Some(task) = self.tasks.get(&row) else { return false };
        task.ids.iter().any(|id| self.is_dead_id(id))
            || task.ranges.iter().any(|(start, end)| self.dead.range(start..=end).next().is_some())
    }

    /// These can never run, and with them all who wait for them.
    pub(super) fn spread(&mut self, rows: Vec<Row>, out: &mut Vec<Change>) {
        let mut stack = rows;
        while let Some(row) = stack.pop() {
            let Some(task) = self.tasks.get_mut(&row).filter(|task| task.open > 0 && !task.stuck) else { continue };
            task.stuck = true;
            self.stuck += 1;
            if !std::mem::replace(&mut task.told, true) {
                out.push(Change::Stuck(row));
            }
            let (key, number) = (task.key.clone(), task.number);
            if let Some(parent) = self.parents.get(&key).filter(|parent| parent.state == ParentState::Open) {
                stack.extend(parent.dependants.iter().copied());
            }
            if let Some(number) = number {
                stack.extend(self.bury_number(number));
            }
        }
    }

    pub(super) fn number_may_be_dead(&mut self, number: Number, out: &mut Vec<Change>) {
        let rows = self.bury_number(number);
        self.spread(rows, out);
    }

    /// Nothing can be expected of a number, unless somebody who has it still
    /// waits with hope; gives all who wait for it.
    fn bury_number(&mut self, number: Number) -> Vec<Row> {
        let hope = self.by_number.get(&number).is_some_and(|rows| rows.iter().any(|row| !self.tasks[row].stuck));
        if hope || self.ranges.satisfied().contains(number) || !self.dead.insert(number) {
            return Vec::new();
        }
        let ranges = self.ranges.pieces_of(number).flat_map(|piece| self.ranges.ranges_of(piece));
        ranges.filter_map(|range| self.of_range.get(&range)).flatten().copied().collect()
    }

    /// Looks at all that wait; tells whom it finds newly stuck.
    pub fn recompute(&mut self, out: &mut Vec<Change>) {
        self.recheck = false;
        let mut pieces: HashMap<PieceKey, Undecided> = HashMap::new();
        let unsatisfied = |number: &Number| !self.ranges.satisfied().contains(*number);
        for number in self.by_number.keys().copied().filter(unsatisfied) {
            self.ranges.pieces_of(number).for_each(|key| pieces.entry(key).or_default().numbers += 1);
        }
        for number in self.blocks.iter().copied().filter(|number| !self.by_number.contains_key(number)) {
            self.ranges.pieces_of(number).for_each(|key| pieces.entry(key).or_default().dead = true);
        }
        let mut ranges: HashMap<Range, u32> = HashMap::new();
        for key in pieces.keys() {
            self.ranges.ranges_of(*key).for_each(|range| *ranges.entry(range).or_default() += 1);
        }
        let mut left: HashMap<Row, u32> = HashMap::with_capacity(self.waiting);
        let mut able: Vec<Row> = Vec::new();
        for (row, task) in self.tasks.iter().filter(|(_, task)| task.open > 0) {
            let undecided = |id: &&super::Key| match self.parents.get(*id).map(|parent| parent.state) {
                Some(ParentState::Blocks) => true,
                Some(ParentState::Open) => self.waiting_by_key(id).is_some(),
                Some(ParentState::Missing | ParentState::Satisfied) | None => false,
            };
            let ids = task.ids.iter().filter(undecided).count();
            let open = ids + task.ranges.iter().filter(|range| ranges.contains_key(*range)).count();
            left.insert(*row, u32::try_from(open).unwrap_or(u32::MAX));
            if open == 0 {
                able.push(*row);
            }
        }
        let mut able_numbers: HashSet<Number> = HashSet::new();
        let mut at = 0;
        while let Some(row) = able.get(at).copied() {
            at += 1;
            left.remove(&row);
            let task = &self.tasks[&row];
            let mut freed: Vec<Row> = Vec::new();
            if let Some(parent) = self.parents.get(&task.key).filter(|parent| parent.state == ParentState::Open) {
                freed.extend(parent.dependants.iter().copied());
            }
            if let Some(number) = task.number.filter(unsatisfied).filter(|number| able_numbers.insert(*number)) {
                for key in self.ranges.pieces_of(number) {
                    let Some(piece) = pieces.get_mut(&key) else { continue };
                    piece.numbers -= 1;
                    if piece.numbers > 0 || piece.dead {
                        continue;
                    }
                    for range in self.ranges.ranges_of(key) {
                        let Some(open) = ranges.get_mut(&range) else { continue };
                        *open -= 1;
                        if *open == 0 {
                            freed.extend(self.of_range.get(&range).into_iter().flatten().copied());
                        }
                    }
                }
            }
            for row in freed {
                if let Some(open) = left.get_mut(&row) {
                    *open -= 1;
                    if *open == 0 {
                        able.push(row);
                    }
                }
            }
        }
        let blocked = self.blocks.iter().copied().filter(|number| !self.by_number.contains_key(number));
        let hopeless =
            self.by_number.keys().copied().filter(unsatisfied).filter(|number| !able_numbers.contains(number));
        self.dead = blocked.chain(hopeless).collect();
        self.stuck = left.len();
        let mut found: Vec<Row> = Vec::new();
        for (row, task) in &mut self.tasks {
            let stuck = left.contains_key(row);
            task.stuck = stuck;
            if stuck && !std::mem::replace(&mut task.told, true) {
                found.push(*row);
            }
        }
        found.sort_unstable();
        out.extend(found.into_iter().map(Change::Stuck));
    }

    /// Why a task waits; `None` if it does not wait for parents.
    pub fn explain(&self, row: Row) -> Option<Cause> {
        let task = self.tasks.get(&row).filter(|task| task.open > 0)?;
        if task.stuck {
            return Some(self.why_stuck(row));
        }
        let of_state = |state: ParentState| {
            let ids = task.ids.iter().filter(|id| self.parents.get(*id).is_some_and(|parent| parent.state == state));
            ids.take(FEW).map(|id| id.to_string()).collect::<Vec<_>>()
        };
        let missing = of_state(ParentState::Missing);
        if !missing.is_empty() {
            return Some(Cause::Missing(missing));
        }
        let gaps = task.ranges.iter().flat_map(|range| self.ranges.satisfied().gaps(*range, FEW));
        let numbers = gaps.take(FEW).map(number_at).collect();
        Some(Cause::Open { ids: of_state(ParentState::Open), numbers })
    }

    /// Goes from a task to one that holds it up, until there is a failure or the
    /// way comes back.
    fn why_stuck(&self, row: Row) -> Cause {
        let mut way: Vec<Row> = Vec::new();
        let mut at: HashMap<Row, usize> = HashMap::new();
        let mut here = row;
        loop {
            if let Some(start) = at.insert(here, way.len()) {
                let circle = way[start..].iter().take(FEW).map(|row| self.tasks[row].key.to_string());
                return Cause::Cycle(circle.collect());
            }
            way.push(here);
            match self.holds_up(here) {
                Some(next) => here = next,
                None => return Cause::Failed(self.dead_parents(row)),
            }
        }
    }

    /// A stuck task that this one waits for; `None` if something that has
    /// completed blocks it.
    fn holds_up(&self, row: Row) -> Option<Row> {
        let task = self.tasks.get(&row)?;
        let failed = |id: &super::Key| self.parents.get(id).is_some_and(|parent| parent.state == ParentState::Blocks);
        if task.ids.iter().any(failed) {
            return None;
        }
        let mut next = task.ids.iter().find(|id| self.is_dead_id(id)).and_then(|id| self.waiting_by_key(id));
        for (start, end) in &task.ranges {
            for number in self.dead.range(start..=end) {
                match self.by_number.get(number).and_then(|rows| rows.first()) {
                    None => return None,
                    Some(row) => next = next.or(Some(*row)),
                }
            }
        }
        next
    }

    fn dead_parents(&self, row: Row) -> Vec<String> {
        let Some(task) = self.tasks.get(&row) else { return Vec::new() };
        let ids = task.ids.iter().filter(|id| self.is_dead_id(id)).map(|id| id.to_string());
        let numbers = task.ranges.iter().flat_map(|(start, end)| self.dead.range(start..=end));
        ids.chain(numbers.map(|number| number_at(*number).to_string())).take(FEW).collect()
    }
}
