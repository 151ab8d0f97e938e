//! The graph against a small model that looks at everything each time.

use std::collections::HashSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::blocked::Cause;
use super::*;
use crate::domain::spec::INHERIT_RETRIES;

/// Ids that tasks of the model may have; two of them share a number.
const IDS: &[&str] = &["a", "b", "c", "0", "1", "2", "3", "4", "02"];

#[derive(Debug, Clone)]
struct Record {
    row: Row,
    state: ParentState,
    on: Option<Dependencies>,
    started: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Add(usize, Vec<usize>, Vec<(i32, i32)>),
    Complete(usize, bool),
    Start(usize),
    Delete(usize),
    Reactivate(usize),
}

#[derive(Default)]
struct Model {
    tasks: BTreeMap<&'static str, Record>,
    /// Ids of deleted tasks that were satisfied.
    remembered: BTreeMap<&'static str, Row>,
    next: Row,
    graph: Graph,
    released: BTreeSet<Row>,
    told: HashSet<Row>,
}

fn ready(row: Row) -> ReadyTask {
    ReadyTask {
        row,
        needs: Needs::slots(1),
        attempt: 0,
        retry_count: 0,
        internal_retries: 0,
        max_retries: INHERIT_RETRIES,
        affinity: 0,
    }
}

impl Model {
    fn state(&self, key: &str) -> (Row, ParentState) {
        match (self.tasks.get(key), self.remembered.get(key)) {
            (Some(task), _) => (task.row, task.state),
            (None, Some(row)) => (*row, ParentState::Satisfied),
            (None, None) => (0, ParentState::Missing),
        }
    }

    fn of_number(&self, number: i32) -> Vec<(&'static str, ParentState)> {
        let with = IDS.iter().filter(|id| number_of(id) == Some(number));
        with.map(|id| (*id, self.state(id).1)).filter(|(_, state)| *state != ParentState::Missing).collect()
    }

    fn number_satisfied(&self, number: i32) -> bool {
        self.of_number(number).iter().any(|(_, state)| *state == ParentState::Satisfied)
    }

    fn satisfied(&self, on: &Dependencies) -> bool {
        on.ids.iter().all(|id| self.state(id).1 == ParentState::Satisfied)
            && on.ranges.iter().all(|(start, end)| (*start..=*end).all(|number| self.number_satisfied(number)))
    }

    fn numbers(&self, range: (i32, i32)) -> NumberNews {
        let mut news = NumberNews { range, ..NumberNews::default() };
        for number in range.0..=range.1 {
            let of = self.of_number(number);
            if of.iter().any(|(_, state)| *state == ParentState::Satisfied) {
                news.add_satisfied([number]);
            } else if !of.is_empty() && of.iter().all(|(_, state)| *state == ParentState::Blocks) {
                news.blocks.push(number);
            }
        }
        news
    }

    /// Tells the graph as the actor does.
    fn tell(&mut self, key: &'static str, news: Option<ParentNews>, add: bool) {
        let mut out = Vec::new();
        news.iter().for_each(|news| self.graph.hear(news, &mut out));
        let unsettled = |number: &i32| match self.state(key).1 {
            ParentState::Open => self.graph.is_settled(*number),
            ParentState::Missing => self.graph.watches_number(*number),
            ParentState::Satisfied | ParentState::Blocks => false,
        };
        if let Some(number) = number_of(key).filter(unsettled) {
            self.graph.learn(&self.numbers((number, number)), &mut out);
        }
        if let Some(task) = self.tasks.get(key).filter(|_| add).cloned()
            && let Some(on) = task.on
        {
            for range in &on.ranges {
                let news = self.numbers(*range);
                if self.graph.is_new_range(*range) {
                    self.graph.learn(&news, &mut out);
                }
            }
            let known: HashMap<&str, _> = on.ids.iter().map(|id| (id.as_str(), self.state(id))).collect();
            self.graph.add(
                NewDependant { task: ready(task.row), key: key.to_owned(), on: on.clone() },
                &known,
                &mut out,
            );
        }
        self.follow(out);
    }

    fn follow(&mut self, out: Vec<Change>) {
        for change in out {
            match change {
                Change::Release(task) => assert!(self.released.insert(task.row), "{} is released twice", task.row),
                Change::Hold(row, _) => assert!(self.released.remove(&row), "{row} was not released"),
                Change::Stuck(row) => assert!(self.told.insert(row), "{row} is told twice"),
            }
        }
    }

    fn leave(&mut self, row: Row) {
        self.graph.remove(row);
        self.released.remove(&row);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Add(at, ids, ranges) => {
                let key = IDS[at];
                if self.tasks.contains_key(key) {
                    return;
                }
                let own = number_of(key);
                let ids: BTreeSet<String> =
                    ids.into_iter().filter(|id| *id != at).map(|id| IDS[id].to_owned()).collect();
                let ranges: BTreeSet<(i32, i32)> = ranges.into_iter().collect();
                let ranges =
                    ranges.into_iter().filter(|(start, end)| own.is_none_or(|own| !(*start..=*end).contains(&own)));
                let on = Dependencies { ids: ids.into_iter().collect(), ranges: ranges.collect() };
                let on = (on != Dependencies::default()).then_some(on);
                self.next += 1;
                let row = self.next;
                self.remembered.remove(key);
                self.tasks.insert(key, Record { row, state: ParentState::Open, on, started: false });
                self.tell(key, Some(ParentNews { key: key.to_owned(), row, state: ParentState::Open }), true);
            }
            Step::Complete(at, satisfies) => {
                let key = IDS[at];
                let Some(task) = self.tasks.get_mut(key).filter(|task| task.state == ParentState::Open) else { return };
                let state = if satisfies { ParentState::Satisfied } else { ParentState::Blocks };
                task.state = state;
                let row = task.row;
                self.leave(row);
                self.tell(key, Some(ParentNews { key: key.to_owned(), row, state }), false);
            }
            Step::Start(at) => {
                let released = self.released.clone();
                if let Some(task) = self.tasks.get_mut(IDS[at]).filter(|task| released.contains(&task.row)) {
                    task.started = true;
                    let row = task.row;
                    self.leave(row);
                }
            }
            Step::Delete(at) => {
                let key = IDS[at];
                let Some(task) = self.tasks.remove(key) else { return };
                self.leave(task.row);
                if task.state == ParentState::Satisfied {
                    self.remembered.insert(key, task.row);
                }
                self.tell(
                    key,
                    Some(ParentNews { key: key.to_owned(), row: task.row, state: ParentState::Missing }),
                    false,
                );
            }
            Step::Reactivate(at) => {
                let key = IDS[at];
                let Some(task) = self.tasks.get_mut(key).filter(|task| task.state != ParentState::Open) else { return };
                task.state = ParentState::Open;
                let (row, again) = (task.row, !task.started);
                self.told.remove(&row);
                self.tell(key, Some(ParentNews { key: key.to_owned(), row, state: ParentState::Open }), again);
            }
        }
    }

    fn waiting(&self) -> BTreeMap<Row, (&'static str, &Dependencies)> {
        let open = self.tasks.iter().filter(|(_, task)| task.state == ParentState::Open && !task.started);
        let held = open.filter_map(|(key, task)| Some((task.row, (*key, task.on.as_ref()?))));
        held.filter(|(_, (_, on))| !self.satisfied(on)).collect()
    }

    /// Those that wait and can never run: all that are not reached from what can.
    fn stuck(&self) -> BTreeSet<Row> {
        let waiting = self.waiting();
        let row_of = |key: &str| self.tasks.get(key).map(|task| task.row);
        let mut able: BTreeSet<Row> = BTreeSet::new();
        loop {
            let may = |key: &str, able: &BTreeSet<Row>| match self.state(key).1 {
                ParentState::Missing | ParentState::Satisfied => true,
                ParentState::Blocks => false,
                ParentState::Open => row_of(key).is_none_or(|row| !waiting.contains_key(&row) || able.contains(&row)),
            };
            let more: BTreeSet<Row> = waiting
                .iter()
                .filter(|(_, (_, on))| {
                    let number = |number: i32, able: &BTreeSet<Row>| {
                        let of = self.of_number(number);
                        of.is_empty() || self.number_satisfied(number) || of.iter().any(|(key, _)| may(key, able))
                    };
                    on.ids.iter().all(|id| may(id, &able))
                        && on.ranges.iter().all(|(start, end)| (*start..=*end).all(|n| number(n, &able)))
                })
                .map(|(row, _)| *row)
                .collect();
            if more == able {
                return waiting.keys().copied().filter(|row| !able.contains(row)).collect();
            }
            able = more;
        }
    }

    fn check(&mut self) {
        self.graph.check().unwrap();
        let mut out = Vec::new();
        if self.graph.needs_recheck() {
            self.graph.recompute(&mut out);
        }
        self.follow(out);
        self.graph.check().unwrap();
        let waiting: BTreeSet<Row> = self.waiting().into_keys().collect();
        let held: BTreeSet<Row> = self.graph.rows().filter(|(_, waits)| *waits).map(|(row, _)| row).collect();
        assert_eq!(held, waiting, "who waits");
        let free: BTreeSet<Row> = self.graph.rows().filter(|(_, waits)| !waits).map(|(row, _)| row).collect();
        assert_eq!(free, self.released, "who may run");
        let twice = |number: i32| self.of_number(number).len() > 1;
        if (0..5).any(twice) {
            // A number that two tasks have is given up early on purpose.
            return;
        }
        let stuck: BTreeSet<Row> =
            self.graph.tasks.iter().filter(|(_, task)| task.stuck).map(|(row, _)| *row).collect();
        assert_eq!(stuck, self.stuck(), "who can never run");
        for row in waiting {
            let cause = self.graph.explain(row).unwrap();
            let for_ever = matches!(cause, Cause::Failed(_) | Cause::Cycle(_));
            assert_eq!(for_ever, stuck.contains(&row), "{cause:?}");
            assert!(!stuck.contains(&row) || self.told.contains(&row), "{row} was not told of");
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let id = 0..IDS.len();
    let range = (0_i32..5, 0_i32..3).prop_map(|(start, length)| (start, (start + length).min(4)));
    prop_oneof![
        5 => (id.clone(), vec(id.clone(), 0..3), vec(range, 0..2)).prop_map(|(id, ids, ranges)| Step::Add(id, ids, ranges)),
        4 => (id.clone(), any::<bool>()).prop_map(|(id, satisfies)| Step::Complete(id, satisfies)),
        2 => id.clone().prop_map(Step::Start),
        2 => id.clone().prop_map(Step::Delete),
        1 => id.prop_map(Step::Reactivate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn the_graph_is_as_the_model(steps in vec(step(), 1..60)) {
        let mut model = Model::default();
        for step in steps {
            model.step(step);
            model.check();
        }
    }
}

fn dependant(row: Row, key: &str, ids: &[&str], ranges: &[(i32, i32)]) -> NewDependant {
    let on = Dependencies { ids: ids.iter().map(|id| (*id).to_owned()).collect(), ranges: ranges.to_vec() };
    NewDependant { task: ready(row), key: key.to_owned(), on }
}

#[test]
fn a_wide_range_costs_a_few_pieces() {
    let mut graph = Graph::default();
    let mut out = Vec::new();
    graph.add(dependant(1, "end", &[], &[(1, 50_000)]), &HashMap::new(), &mut out);
    for number in 1..=50_000 {
        assert!(out.is_empty());
        let key = format!("{number:07}");
        graph.hear(&ParentNews { key, row: 1 + number, state: ParentState::Satisfied }, &mut out);
    }
    assert_eq!(out, [Change::Release(ready(1))]);
}

#[test]
fn news_that_come_late_change_nothing() {
    let mut graph = Graph::default();
    let mut out = Vec::new();
    let known = HashMap::from([("p", (7, ParentState::Open))]);
    graph.add(dependant(1, "d", &["p"], &[]), &known, &mut out);
    graph.hear(&ParentNews { key: "p".into(), row: 5, state: ParentState::Satisfied }, &mut out);
    assert!(out.is_empty(), "of a task that had the id before");
    graph.hear(&ParentNews { key: "p".into(), row: 7, state: ParentState::Satisfied }, &mut out);
    assert_eq!(std::mem::take(&mut out), [Change::Release(ready(1))]);
    graph.hear(&ParentNews { key: "p".into(), row: 7, state: ParentState::Missing }, &mut out);
    assert!(out.is_empty(), "that it was satisfied outlives it");
    graph.hear(&ParentNews { key: "p".into(), row: 9, state: ParentState::Open }, &mut out);
    assert_eq!(out, [Change::Hold(1, Needs::slots(1))], "another task has its id, and this one has not started");
}

#[test]
fn a_long_chain_is_blocked_from_its_beginning() {
    let mut graph = Graph::default();
    let mut out = Vec::new();
    let count = 50_000_u64;
    for row in 1..=count {
        let known = HashMap::new();
        graph.add(dependant(row, &format!("t{row}"), &[&format!("t{}", row - 1)], &[]), &known, &mut out);
        graph.hear(&ParentNews { key: format!("t{row}"), row, state: ParentState::Open }, &mut out);
    }
    assert!(out.is_empty() && !graph.needs_recheck());
    // What is added is open for those that were there before.
    for row in 1..count {
        graph.hear(&ParentNews { key: format!("t{row}"), row, state: ParentState::Open }, &mut out);
    }
    graph.hear(&ParentNews { key: "t0".into(), row: 0, state: ParentState::Blocks }, &mut out);
    assert_eq!(out.len() as u64, count);
    assert!(graph.is_all_stuck());
    assert!(matches!(graph.explain(count), Some(Cause::Failed(parents)) if parents == [format!("t{}", count - 1)]));
}

#[test]
fn a_circle_is_named() {
    let mut graph = Graph::default();
    let mut out = Vec::new();
    let (known, open) =
        (HashMap::new(), |row, key: &str| ParentNews { key: key.into(), row, state: ParentState::Open });
    for (row, key, parent) in [(1, "a", "b"), (2, "b", "c"), (3, "c", "a"), (4, "behind", "b")] {
        graph.hear(&open(row, key), &mut out);
        let known_now: HashMap<&str, _> =
            if row > 2 { HashMap::from([(parent, (1, ParentState::Open))]) } else { known.clone() };
        graph.add(dependant(row, key, &[parent], &[]), &known_now, &mut out);
    }
    assert!(graph.needs_recheck());
    graph.recompute(&mut out);
    assert_eq!(out, (1..=4).map(Change::Stuck).collect::<Vec<_>>());
    assert_eq!(graph.explain(4), Some(Cause::Cycle(vec!["b".into(), "c".into(), "a".into()])));
    // One of them goes, and the others wait for what is missing.
    graph.remove(3);
    graph.hear(&ParentNews { key: "c".into(), row: 3, state: ParentState::Missing }, &mut out);
    graph.recompute(&mut out);
    assert_eq!(graph.explain(2), Some(Cause::Missing(vec!["c".into()])));
    assert!(!graph.is_all_stuck());
}
