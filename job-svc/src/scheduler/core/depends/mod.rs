//! Who waits for whom in one job.
//!
//! Only tasks with parents are here, and only until they start; of their
//! parents only the ids and ranges that somebody waits for. All other tasks cost
//! nothing. What happens to parents is told ([`Graph::hear`], [`Graph::learn`]);
//! what follows for the tasks comes out as [`Change`]s.
//!
//! - [`numbers`]: sets of numbers, and who waits for a range of them;
//! - [`blocked`]: tasks that can never run as things are, and why.

pub mod blocked;
pub mod numbers;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::{ReadyTask, Row, WaitReason};
use crate::domain::dependencies::{Dependencies, ParentState, number_of};
use crate::domain::needs::Needs;
use numbers::{Number, Range, Ranges, place};

/// Key of an id.
type Key = Arc<str>;

/// A task that waits for others.
#[derive(Debug, Clone)]
pub struct NewDependant {
    /// The task.
    pub task: ReadyTask,
    /// Key of its id.
    pub key: String,
    /// What it waits for.
    pub on: Dependencies,
}

/// What became of a parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentNews {
    /// Key of its id.
    pub key: String,
    /// Its row; rows grow, so older news are known by it. 0 if it never was.
    pub row: Row,
    /// Where it stands.
    pub state: ParentState,
}

/// The truth about the numbers of a range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NumberNews {
    /// Both ends included.
    pub range: (i32, i32),
    /// Numbers that are satisfied, as ranges.
    pub satisfied: Vec<(i32, i32)>,
    /// Numbers whose tasks have all completed without that.
    pub blocks: Vec<i32>,
}

impl NumberNews {
    /// These are satisfied, too.
    pub fn add_satisfied(&mut self, numbers: impl IntoIterator<Item = i32>) {
        for number in numbers {
            self.blocks.retain(|blocks| *blocks != number);
            let at = self.satisfied.partition_point(|(_, end)| *end < number);
            if self.satisfied.get(at).is_none_or(|(start, _)| *start > number) {
                self.satisfied.insert(at, (number, number));
            }
        }
    }
}

/// Everything there is to tell at once.
#[derive(Debug, Clone, Default)]
pub struct News {
    /// About ids.
    pub parents: Vec<ParentNews>,
    /// About numbers.
    pub numbers: Vec<NumberNews>,
}

/// What follows for a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// All its parents are satisfied.
    Release(ReadyTask),
    /// It was released, and has to wait again.
    Hold(Row, Needs),
    /// It can never run as things are; said once of a task.
    Stuck(Row),
}

#[derive(Debug)]
struct Parent {
    row: Row,
    state: ParentState,
    dependants: BTreeSet<Row>,
}

#[derive(Debug)]
struct Dependant {
    task: ReadyTask,
    key: Key,
    number: Option<Number>,
    ids: Box<[Key]>,
    ranges: Box<[Range]>,
    /// Ids and ranges that are not satisfied; 0 means that it is released.
    open: u32,
    stuck: bool,
    /// That it is stuck was told before.
    told: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Graph {
    parents: HashMap<Key, Parent>,
    ranges: Ranges,
    /// Who waits for each range.
    of_range: HashMap<Range, BTreeSet<Row>>,
    /// Numbers whose tasks completed without satisfying. A second task with the
    /// same number may still do so; nothing is ended before it has ended, too.
    blocks: BTreeSet<Number>,
    /// Numbers of which nothing can be expected: blocked or stuck.
    dead: BTreeSet<Number>,
    tasks: HashMap<Row, Dependant>,
    by_key: HashMap<Key, Row>,
    /// Tasks that wait, by their own number.
    by_number: BTreeMap<Number, BTreeSet<Row>>,
    waiting: usize,
    stuck: usize,
    recheck: bool,
}

impl Graph {
    /// Whether nobody is here.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Tasks that wait for parents.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether a task waits for parents.
    pub fn waits(&self, row: Row) -> bool {
        self.tasks.get(&row).is_some_and(|task| task.open > 0)
    }

    /// Whether somebody waits for this id.
    pub fn watches(&self, key: &str) -> bool {
        self.parents.contains_key(key)
    }

    /// Whether somebody waits for a range with this number.
    pub fn watches_number(&self, number: i32) -> bool {
        self.ranges.watches(place(number))
    }

    /// Whether it is known that a number is satisfied or blocks: news that its
    /// task is open again then need a look at all tasks of that number.
    pub fn is_settled(&self, number: i32) -> bool {
        let number = place(number);
        self.ranges.satisfied().contains(number) || self.blocks.contains(&number)
    }

    /// Whether nobody waits for this range yet.
    pub fn is_new_range(&self, (start, end): (i32, i32)) -> bool {
        self.ranges.is_new((place(start), place(end)))
    }

    /// Something happened to a parent.
    pub fn hear(&mut self, news: &ParentNews, out: &mut Vec<Change>) {
        if let Some(number) = number_of(&news.key).map(place) {
            match news.state {
                ParentState::Satisfied => self.number_satisfied(number, out),
                ParentState::Blocks => self.number_blocks(number, out),
                // Another task may have the number: `learn` tells.
                ParentState::Open | ParentState::Missing => {}
            }
            // Of two tasks with one number the other may have been the hope.
            self.recheck |= self.by_number.contains_key(&number);
        }
        let Some(parent) = self.parents.get_mut(news.key.as_str()) else { return };
        // That it was satisfied outlives it.
        let forgotten = news.state == ParentState::Missing && parent.state == ParentState::Satisfied;
        if news.row < parent.row || forgotten {
            return;
        }
        parent.row = news.row;
        let was = std::mem::replace(&mut parent.state, news.state);
        if was == news.state {
            return;
        }
        let dependants: Vec<Row> = parent.dependants.iter().copied().collect();
        self.recheck |= was == ParentState::Blocks;
        if was == ParentState::Satisfied {
            dependants.iter().for_each(|row| self.one_more(*row, out));
        }
        match news.state {
            ParentState::Satisfied => dependants.iter().for_each(|row| self.one_less(*row, out)),
            ParentState::Blocks => self.spread(dependants, out),
            ParentState::Open | ParentState::Missing => {}
        }
    }

    /// Takes over the truth about some numbers.
    pub fn learn(&mut self, news: &NumberNews, out: &mut Vec<Change>) {
        let range = (place(news.range.0), place(news.range.1));
        let inside = |number: &Number| (range.0..=range.1).contains(number);
        let satisfied: Vec<Range> = news.satisfied.iter().map(|(start, end)| (place(*start), place(*end))).collect();
        let is_satisfied = |number: &Number| {
            let at = satisfied.partition_point(|(_, end)| end < number);
            satisfied.get(at).is_some_and(|(start, _)| start <= number)
        };
        let gone: Vec<Number> = self.ranges.satisfied().iter(range).filter(|number| !is_satisfied(number)).collect();
        for number in gone {
            self.number_open(number, out);
        }
        let healed: Vec<Number> = self.blocks.range(range.0..=range.1).copied().collect();
        for number in healed {
            if !news.blocks.contains(&numbers::number_at(number)) {
                self.blocks.remove(&number);
                self.recheck = true;
            }
        }
        for (start, end) in satisfied {
            for number in (start.max(range.0)..=end.min(range.1)).filter(inside) {
                self.number_now_satisfied(number, out);
            }
        }
        for number in news.blocks.iter().map(|number| place(*number)).filter(inside) {
            if !self.ranges.satisfied().contains(number) {
                self.block_number(number, out);
            }
        }
    }

    /// A new task with parents. `known` says where those stand that nobody
    /// waited for before; the numbers of new ranges must have been learned.
    pub fn add(&mut self, new: NewDependant, known: &HashMap<&str, (Row, ParentState)>, out: &mut Vec<Change>) {
        let row = new.task.row;
        if self.tasks.contains_key(&row) {
            return;
        }
        let mut open = 0;
        let ids: Box<[Key]> = new
            .on
            .ids
            .iter()
            .map(|id| {
                let key =
                    self.parents.get_key_value(id.as_str()).map_or_else(|| id.as_str().into(), |(k, _)| k.clone());
                let parent = self.parents.entry(Arc::clone(&key)).or_insert_with(|| {
                    let (row, state) = known.get(id.as_str()).copied().unwrap_or((0, ParentState::Missing));
                    Parent { row, state, dependants: BTreeSet::new() }
                });
                parent.dependants.insert(row);
                open += u32::from(parent.state != ParentState::Satisfied);
                key
            })
            .collect();
        let ranges: Box<[Range]> = new.on.ranges.iter().map(|(start, end)| (place(*start), place(*end))).collect();
        for range in &ranges {
            self.ranges.add(*range);
            self.of_range.entry(*range).or_default().insert(row);
            open += u32::from(!self.ranges.is_complete(*range));
        }
        let key: Key = new.key.as_str().into();
        let number = number_of(&new.key).map(place);
        self.by_key.insert(key.clone(), row);
        let watched = self.parents.contains_key(&key) || number.is_some_and(|number| self.ranges.watches(number));
        self.tasks.insert(row, Dependant { task: new.task, key, number, ids, ranges, open, stuck: false, told: false });
        if open == 0 {
            out.push(Change::Release(new.task));
            return;
        }
        self.enter(row);
        // It may have closed a circle.
        self.recheck |= watched;
        if self.is_stuck_now(row) {
            self.spread(vec![row], out);
        }
    }

    /// A task has started, or is no more; tells whether it waited.
    pub fn remove(&mut self, row: Row) -> Option<ReadyTask> {
        let task = self.tasks.remove(&row)?;
        if task.open > 0 {
            self.leave(row, task.number, task.stuck);
        }
        if self.by_key.get(&task.key) == Some(&row) {
            self.by_key.remove(&task.key);
        }
        for id in &task.ids {
            if let Some(parent) = self.parents.get_mut(id) {
                parent.dependants.remove(&row);
                if parent.dependants.is_empty() {
                    self.parents.remove(id);
                }
            }
        }
        for range in &task.ranges {
            if let Some(rows) = self.of_range.get_mut(range) {
                rows.remove(&row);
                if rows.is_empty() {
                    self.of_range.remove(range);
                    self.ranges.remove(*range);
                }
            }
        }
        if self.of_range.is_empty() {
            self.blocks.clear();
            let by_number = &self.by_number;
            self.dead.retain(|number| by_number.contains_key(number));
        }
        (task.open > 0).then_some(task.task)
    }

    /// A task got another limit of retries.
    pub fn set_retries(&mut self, row: Row, max_retries: i32) {
        if let Some(task) = self.tasks.get_mut(&row) {
            task.task.max_retries = max_retries;
        }
    }

    fn number_satisfied(&mut self, number: Number, out: &mut Vec<Change>) {
        if self.ranges.watches(number) {
            self.number_now_satisfied(number, out);
        }
    }

    fn number_now_satisfied(&mut self, number: Number, out: &mut Vec<Change>) {
        for range in self.ranges.satisfy(number) {
            for row in self.of_range.get(&range).cloned().unwrap_or_default() {
                self.one_less(row, out);
            }
        }
        let blocked = self.blocks.remove(&number);
        self.recheck |= self.dead.remove(&number) || blocked;
    }

    fn number_open(&mut self, number: Number, out: &mut Vec<Change>) {
        for range in self.ranges.reopen(number) {
            for row in self.of_range.get(&range).cloned().unwrap_or_default() {
                self.one_more(row, out);
            }
        }
    }

    fn number_blocks(&mut self, number: Number, out: &mut Vec<Change>) {
        if self.ranges.watches(number) && !self.ranges.satisfied().contains(number) {
            self.block_number(number, out);
        }
    }

    fn block_number(&mut self, number: Number, out: &mut Vec<Change>) {
        if self.blocks.insert(number) {
            self.number_may_be_dead(number, out);
        }
    }

    fn one_less(&mut self, row: Row, out: &mut Vec<Change>) {
        let Some(task) = self.tasks.get_mut(&row) else { return };
        task.open -= 1;
        if task.open > 0 {
            return;
        }
        let (number, stuck) = (task.number, std::mem::take(&mut task.stuck));
        out.push(Change::Release(task.task));
        self.leave(row, number, stuck);
    }

    fn one_more(&mut self, row: Row, out: &mut Vec<Change>) {
        let Some(task) = self.tasks.get_mut(&row) else { return };
        task.open += 1;
        // What it waits for now may wait for it.
        self.recheck = true;
        if task.open == 1 {
            out.push(Change::Hold(row, task.task.needs));
            self.enter(row);
        }
    }

    /// A task begins to wait.
    fn enter(&mut self, row: Row) {
        self.waiting += 1;
        if let Some(number) = self.tasks.get(&row).and_then(|task| task.number) {
            self.by_number.entry(number).or_default().insert(row);
        }
    }

    /// A task waits no more.
    fn leave(&mut self, row: Row, number: Option<Number>, stuck: bool) {
        self.waiting -= 1;
        if stuck {
            self.stuck -= 1;
            self.recheck = true;
        }
        if let Some(number) = number
            && let Some(rows) = self.by_number.get_mut(&number)
        {
            rows.remove(&row);
            // It may have been the hope of those who wait for the number.
            self.recheck |= !rows.is_empty() || self.blocks.contains(&number);
            if rows.is_empty() {
                self.by_number.remove(&number);
            }
        }
    }
}

/// For tests of the rules that hold after every step.
impl Graph {
    /// All tasks that have not started, and whether they wait.
    pub fn rows(&self) -> impl Iterator<Item = (Row, bool)> + '_ {
        self.tasks.iter().map(|(row, task)| (*row, task.open > 0))
    }

    /// Counts again what is counted along.
    ///
    /// # Errors
    /// Which number is wrong.
    pub fn check(&self) -> Result<(), String> {
        for (row, task) in &self.tasks {
            let ids = task.ids.iter().filter(|id| self.parents[*id].state != ParentState::Satisfied).count();
            let ranges = task.ranges.iter().filter(|range| !self.ranges.is_complete(**range)).count();
            if ids + ranges != task.open as usize {
                return Err(format!("row {row} waits for {} and not for {}", ids + ranges, task.open));
            }
        }
        let waiting = self.tasks.values().filter(|task| task.open > 0).count();
        let stuck = self.tasks.values().filter(|task| task.stuck).count();
        if (waiting, stuck) != (self.waiting, self.stuck) {
            return Err(format!("{waiting} wait and {stuck} are stuck, not {} and {}", self.waiting, self.stuck));
        }
        Ok(())
    }
}
