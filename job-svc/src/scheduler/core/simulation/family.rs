//! Tasks of the simulated world that wait for others: what users ask for, what
//! is true of parents, and that nobody starts too early.

use super::*;
use crate::domain::dependencies::{Dependencies, ParentState, number_of};
use crate::scheduler::core::depends::{NewDependant, News, NumberNews, ParentNews};

/// What a task is to others, and they to it.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub id: String,
    pub on: Option<Dependencies>,
    /// Its dependants may run however it ends.
    pub lenient: bool,
}

#[derive(Debug, Default)]
pub(super) struct Family {
    pub members: HashMap<Row, Member>,
    /// Ids of deleted tasks that were satisfied.
    pub remembered: BTreeMap<(JobKey, String), Row>,
    /// Ids of deleted tasks.
    gone: Vec<(JobKey, String)>,
    /// The next number of each job.
    next: HashMap<JobKey, i32>,
    /// Ids that were satisfied at some time.
    ever: HashSet<(JobKey, String)>,
    /// Tasks whose first start has been seen.
    pub started: HashSet<Row>,
}

impl World {
    /// A new task of a job; some wait for others, which may not be there yet.
    pub(super) fn new_member(&mut self, job: JobKey, row: Row) {
        let next = *self.family.next.entry(job).or_insert(1);
        let old: Vec<String> = self.family.gone.iter().filter(|(of, _)| *of == job).map(|(_, id)| id.clone()).collect();
        let free: Vec<String> = old.into_iter().filter(|id| self.row_of(job, id).is_none()).collect();
        let id = if !free.is_empty() && self.rng.random_bool(0.4) {
            free[self.rng.random_range(0..free.len())].clone()
        } else {
            self.family.next.insert(job, next + 1);
            if self.rng.random_bool(0.1) { format!("0{next}") } else { next.to_string() }
        };
        let own = number_of(&id);
        let some = |world: &mut Self| world.rng.random_range((next - 8).max(1)..=next + 1);
        let mut on = Dependencies::default();
        if self.rng.random_bool(0.4) {
            let parent = some(self).to_string();
            if parent != id {
                on.ids.push(parent);
            }
        }
        if self.rng.random_bool(0.2) {
            let start = some(self);
            let range = (start, start + self.rng.random_range(0..3));
            if own.is_none_or(|own| !(range.0..=range.1).contains(&own)) {
                on.ranges.push(range);
            }
        }
        let on = (on != Dependencies::default()).then_some(on);
        let lenient = self.rng.random_bool(0.5);
        self.family.remembered.remove(&(job, id.clone()));
        self.family.members.insert(row, Member { id, on, lenient });
    }

    fn row_of(&self, job: JobKey, id: &str) -> Option<Row> {
        let of_job = self.tasks.iter().filter(|(_, stored)| stored.job == job);
        of_job.map(|(row, _)| *row).find(|row| self.family.members[row].id == id)
    }

    fn after(&self, row: Row, succeeded: bool) -> ParentState {
        if succeeded || self.family.members[&row].lenient { ParentState::Satisfied } else { ParentState::Blocks }
    }

    fn stored_state(&self, row: Row, stored: &Stored) -> ParentState {
        match &stored.task.state {
            TaskState::Completed { outcome, .. } => self.after(row, *outcome == Outcome::Succeeded),
            TaskState::Active | TaskState::Running { .. } => ParentState::Open,
        }
    }

    fn end_state(&self, row: Row, event: &TaskEvent) -> Option<ParentState> {
        match event {
            TaskEvent::Finish { end, .. } => {
                Some(self.after(row, end.cause == EndCause::Exited && end.exit_code == Some(0)))
            }
            TaskEvent::Terminate | TaskEvent::GiveUp { .. } => Some(self.after(row, false)),
            _ => None,
        }
    }

    /// Where an id stands, with all that the scheduler has decided.
    fn truth(&self, current: Option<&Effects>, job: JobKey, id: &str) -> (Row, ParentState) {
        let mut found = match (self.row_of(job, id), self.family.remembered.get(&(job, id.to_owned()))) {
            (Some(row), _) => (row, self.stored_state(row, &self.tasks[&row])),
            (None, Some(row)) => (*row, ParentState::Satisfied),
            (None, None) => (0, ParentState::Missing),
        };
        let is_it = |row: Row| self.family.members.get(&row).is_some_and(|member| member.id == id);
        for fx in self.pending.iter().map(|(fx, _, _)| fx).chain(current) {
            for (row, of, event) in &fx.tasks {
                let newer = *of == job && *row >= found.0 && is_it(*row);
                if let Some(state) = self.end_state(*row, event).filter(|_| newer) {
                    found = (*row, state);
                }
            }
            for (row, of) in &fx.deleted {
                if *of == job && *row >= found.0 && is_it(*row) && found.1 != ParentState::Satisfied {
                    found = (*row, ParentState::Missing);
                }
            }
        }
        found
    }

    fn ids_with(&self, job: JobKey, number: i32) -> BTreeSet<String> {
        let of_job = self.tasks.iter().filter(|(_, stored)| stored.job == job);
        let there = of_job.map(|(row, _)| self.family.members[row].id.clone());
        let remembered = self.family.remembered.keys().filter(|(of, _)| *of == job).map(|(_, id)| id.clone());
        there.chain(remembered).filter(|id| number_of(id) == Some(number)).collect()
    }

    fn number_news(&self, current: Option<&Effects>, job: JobKey, range: (i32, i32)) -> NumberNews {
        let mut news = NumberNews { range, ..NumberNews::default() };
        for number in range.0..=range.1 {
            let states: Vec<ParentState> =
                self.ids_with(job, number).iter().map(|id| self.truth(current, job, id).1).collect();
            if states.contains(&ParentState::Satisfied) {
                news.add_satisfied([number]);
            } else if states.contains(&ParentState::Blocks) && !states.contains(&ParentState::Open) {
                news.blocks.push(number);
            }
        }
        news
    }

    /// What the actor finds out for new tasks and tasks that are active again.
    pub(super) fn dependants(&self, job: JobKey, tasks: &[ReadyTask]) -> (Dependants, Vec<ReadyTask>) {
        let (mut found, mut plain, mut news) = (Vec::new(), Vec::new(), News::default());
        let graph = self.core.graph(job);
        for task in tasks {
            let member = &self.family.members[&task.row];
            let watched = graph.is_some_and(|graph| graph.watches(&member.id));
            if watched {
                news.parents.push(ParentNews { key: member.id.clone(), row: task.row, state: ParentState::Open });
            }
            let number = number_of(&member.id);
            if let Some(number) = number.filter(|number| graph.is_some_and(|graph| graph.is_settled(*number))) {
                news.numbers.push(self.number_news(None, job, (number, number)));
            }
            match member.on.clone().filter(|_| task.attempt == 0) {
                Some(on) => found.push(NewDependant { task: *task, key: member.id.clone(), on }),
                None => plain.push(*task),
            }
        }
        for new in &found {
            for id in new.on.ids.iter().filter(|id| graph.is_none_or(|graph| !graph.watches(id))) {
                let (row, state) = self.truth(None, job, id);
                news.parents.push(ParentNews { key: id.clone(), row, state });
            }
            for range in &new.on.ranges {
                if graph.is_none_or(|graph| graph.is_new_range(*range)) {
                    news.numbers.push(self.number_news(None, job, *range));
                }
            }
        }
        (Dependants { news, tasks: found }, plain)
    }

    /// Tells the core what its own decisions mean for those that wait.
    pub(super) fn tell_family(&mut self, fx: &mut Effects) {
        let (mut tasks, mut deleted) = (0, 0);
        loop {
            let mut news: BTreeMap<JobKey, News> = BTreeMap::new();
            let ended = fx.tasks[tasks..].iter().filter(|(row, _, event)| self.end_state(*row, event).is_some());
            let over: Vec<(Row, JobKey)> =
                ended.map(|(row, job, _)| (*row, *job)).chain(fx.deleted[deleted..].iter().copied()).collect();
            (tasks, deleted) = (fx.tasks.len(), fx.deleted.len());
            for (row, job) in over {
                let key = self.family.members[&row].id.clone();
                let (_, state) = self.truth(Some(fx), job, &key);
                if state == ParentState::Satisfied {
                    self.family.ever.insert((job, key.clone()));
                }
                let news = news.entry(job).or_default();
                if let Some(number) = number_of(&key).filter(|_| state == ParentState::Missing) {
                    news.numbers.push(self.number_news(Some(fx), job, (number, number)));
                }
                news.parents.push(ParentNews { key, row, state });
            }
            if news.is_empty() {
                break;
            }
            for (job, news) in news {
                let dependants = Dependants { news, tasks: Vec::new() };
                self.core.step(Input::Dependants { job, dependants }, self.now(), fx);
            }
        }
        self.core.recheck(self.now(), fx);
    }

    /// Nobody starts before all its parents were satisfied; and where the
    /// scheduler has heard of everything, they are now.
    pub(super) fn check_starts(&mut self, fx: &Effects) {
        let assigned = fx.tasks.iter().filter(|(_, _, event)| matches!(event, TaskEvent::Assign { .. }));
        for (row, job, _) in assigned.cloned().collect::<Vec<_>>() {
            if self.tasks.get(&row).is_none_or(|stored| stored.task.attempt > 0) || !self.family.started.insert(row) {
                continue;
            }
            let Some(on) = self.family.members[&row].on.clone() else { continue };
            let strict = self.notes.is_empty();
            let satisfied = |id: &String| {
                self.family.ever.contains(&(job, id.clone()))
                    && (!strict || self.truth(Some(fx), job, id).1 == ParentState::Satisfied)
            };
            for id in &on.ids {
                assert!(satisfied(id), "task {row} starts before its parent {id}");
            }
            for number in on.ranges.iter().flat_map(|(start, end)| *start..=*end) {
                let ever = self.family.ever.iter().filter(|(of, _)| *of == job).map(|(_, id)| id);
                let mut with: BTreeSet<String> = ever.filter(|id| number_of(id) == Some(number)).cloned().collect();
                with.extend(self.ids_with(job, number));
                assert!(with.iter().any(satisfied), "task {row} starts before its parent {number}");
            }
        }
    }

    /// A user removes a task that has completed.
    pub(super) fn delete_completed(&mut self) {
        let over: Vec<Row> = self
            .tasks
            .iter()
            .filter(|(row, stored)| match &stored.task.state {
                // Of one that was ended the process may still run.
                TaskState::Completed { outcome, .. } => {
                    (*outcome != Outcome::Terminated || stored.task.attempt == 0)
                        && !self.core.is_live(**row)
                        && !self.is_ahead(**row)
                }
                TaskState::Active | TaskState::Running { .. } => false,
            })
            .map(|(row, _)| *row)
            .collect();
        if over.is_empty() {
            return;
        }
        let row = over[self.rng.random_range(0..over.len())];
        let job = self.tasks[&row].job;
        if self.jobs.get(&job).is_none_or(|view| view.state == JobState::Deleting) {
            return;
        }
        self.forget_member(row);
        self.notes.push_back(Note::ParentDeleted(job, row));
    }

    /// A row goes; that it was satisfied stays.
    pub(super) fn forget_member(&mut self, row: Row) {
        let Some(stored) = self.tasks.remove(&row) else { return };
        let id = self.family.members[&row].id.clone();
        if self.stored_state(row, &stored) == ParentState::Satisfied {
            self.family.remembered.insert((stored.job, id.clone()), row);
        }
        self.family.gone.push((stored.job, id));
        self.deleted.push(row);
    }

    pub(super) fn parent_deleted(&mut self, job: JobKey, row: Row) {
        let key = self.family.members[&row].id.clone();
        let (at, state) = self.truth(None, job, &key);
        let mut news = News::default();
        if let Some(number) = number_of(&key) {
            news.numbers.push(self.number_news(None, job, (number, number)));
        }
        news.parents.push(ParentNews { key, row: at.max(row), state });
        self.input(Input::Dependants { job, dependants: Dependants { news, tasks: Vec::new() } });
    }

    /// Tasks that wait for others, as the store has them.
    fn waiting(&self) -> BTreeMap<Row, (JobKey, Dependencies)> {
        let active = self.tasks.iter().filter(|(_, stored)| {
            stored.task.state == TaskState::Active
                && stored.task.attempt == 0
                && self.jobs[&stored.job].state != JobState::Completed
        });
        let with = active.filter_map(|(row, stored)| Some((*row, (stored.job, self.family.members[row].on.clone()?))));
        with.collect()
    }

    /// Users add what is waited for and is not there.
    pub(super) fn supply(&mut self) {
        for (job, on) in self.waiting().into_values() {
            if self.jobs[&job].state.check_add().is_err() {
                continue;
            }
            let missing = |world: &Self, id: &str| world.truth(None, job, id).1 == ParentState::Missing;
            let numbers = on.ranges.iter().flat_map(|(start, end)| *start..=*end);
            let empty =
                numbers.filter(|number| self.ids_with(job, *number).is_empty()).map(|number| number.to_string());
            let wanted: Vec<String> = on.ids.iter().filter(|id| missing(self, id)).cloned().chain(empty).collect();
            for id in wanted {
                if !missing(self, &id) {
                    continue;
                }
                let row = self.next_row;
                self.next_row += 1;
                self.family.members.insert(row, Member { id, on: None, lenient: false });
                self.insert_task(job, row, Needs::slots(1));
                self.notes.push_back(Note::Added(job, vec![ready(row, 1)]));
            }
        }
    }

    /// Those that can never run, as the store has it.
    pub(super) fn stuck(&self) -> BTreeSet<Row> {
        let waiting = self.waiting();
        let mut able: BTreeSet<Row> = BTreeSet::new();
        loop {
            let may = |job: JobKey, id: &str, able: &BTreeSet<Row>| match self.truth(None, job, id) {
                (_, ParentState::Missing | ParentState::Satisfied) => true,
                (_, ParentState::Blocks) => false,
                (row, ParentState::Open) => !waiting.contains_key(&row) || able.contains(&row),
            };
            let number = |job: JobKey, number: i32, able: &BTreeSet<Row>| {
                let ids = self.ids_with(job, number);
                ids.is_empty() || ids.iter().any(|id| may(job, id, able))
            };
            let can = |(job, on): &(JobKey, Dependencies), able: &BTreeSet<Row>| {
                let mut numbers = on.ranges.iter().flat_map(|(start, end)| *start..=*end);
                on.ids.iter().all(|id| may(*job, id, able)) && numbers.all(|n| number(*job, n, able))
            };
            let more: BTreeSet<Row> = waiting.iter().filter(|(_, on)| can(on, &able)).map(|(row, _)| *row).collect();
            if more == able {
                return waiting.into_keys().filter(|row| !able.contains(row)).collect();
            }
            able = more;
        }
    }
}
