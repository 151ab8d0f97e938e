//! How the actor finds out where the tasks stand that others wait for.
//!
//! The store knows, except for what this actor has decided and not yet
//! committed: [`Overlay`] has that. Only jobs that use dependencies come here.

use std::collections::{BTreeSet, HashMap, HashSet};

use kiln_proto::job::v1::TaskSpec;
use kiln_time::Timestamp;
use prost::Message;

use super::actor::{Actor, Broken};
use super::core::depends::blocked::Cause;
use super::core::depends::{Graph, NewDependant, News, NumberNews, ParentNews};
use super::core::{Dependants, Input, JobKey, ReadyTask, Row, WaitReason};
use super::intake::ready_task;
use super::load::LOAD_PAGE;
use crate::domain::dependencies::{Dependencies, ParentState, number_of};
use crate::domain::exit;
use crate::domain::job::JobState;
use crate::domain::task::{AttemptEnd, EndCause, Phase, TaskEvent};
use crate::store::{JobRow, Numbers, ParentWrite, StoredDependant, TaskRow};

/// Ids or ranges of one read at most.
const READ: usize = 10_000;

/// What was decided about tasks that others may wait for and is not durable, by
/// job and key.
pub type Overlay = HashMap<(JobKey, String), ParentNews>;

/// An end that no exit code describes.
pub fn end_without_code(cause: EndCause, now: Timestamp) -> AttemptEnd {
    AttemptEnd { start: None, end: now, exit_code: None, failure: None, cause, outputs_kept: false }
}

/// The end that an event gives a task, as its exit conditions see it. An end by
/// request, or by the service, is one that no exit code describes.
pub fn final_end(event: &TaskEvent, now: Timestamp) -> Option<AttemptEnd> {
    match event {
        TaskEvent::Finish { end, .. } => Some(end.clone()),
        TaskEvent::Terminate => Some(end_without_code(EndCause::Stopped, now)),
        TaskEvent::GiveUp { .. } => Some(end_without_code(EndCause::AgentFailure, now)),
        _ => None,
    }
}

impl Actor {
    /// A task of a job that uses dependencies has completed.
    pub(super) fn parent_ended(&mut self, row: Row, job: JobKey, end: &AttemptEnd) -> Result<(), Broken> {
        let Some(task) = self.live.get(&row) else { return Ok(()) };
        let spec = read_spec(task)?;
        let satisfies = exit::satisfies(spec.exit_conditions.as_ref(), end);
        let key = task.id.key().into_owned();
        let state = if satisfies { ParentState::Satisfied } else { ParentState::Blocks };
        self.batch.commit.parents.push(ParentWrite { job, key: key.clone(), row, satisfies });
        self.note_parent(job, ParentNews { key, row, state });
        Ok(())
    }

    /// A task is removed.
    pub(super) fn parent_removed(&mut self, row: Row, job: JobKey) -> Result<(), Broken> {
        if !self.jobs.get(&job).is_some_and(super::job_info::JobInfo::uses_dependencies) {
            return Ok(());
        }
        let Some(task) = self.live.get(&row) else { return Ok(()) };
        // One that has completed was ended by request.
        let end = end_without_code(EndCause::Stopped, Timestamp::default());
        if task.task.state.phase() == Phase::Completed
            && exit::satisfies(read_spec(task)?.exit_conditions.as_ref(), &end)
        {
            return Ok(());
        }
        let key = task.id.key().into_owned();
        self.note_parent(job, ParentNews { key, row, state: ParentState::Missing });
        Ok(())
    }

    fn note_parent(&mut self, job: JobKey, news: ParentNews) {
        let number = number_of(&news.key);
        let watched = self
            .core
            .graph(job)
            .is_some_and(|graph| graph.watches(&news.key) || number.is_some_and(|number| graph.watches_number(number)));
        self.batch.parents.insert((job, news.key.clone()), news.clone());
        if watched {
            self.news.push((job, news));
        }
    }

    /// Tells the core what was decided about tasks that others wait for; `false`
    /// if there is nothing to tell.
    pub(super) async fn tell_dependants(&mut self) -> Result<bool, Broken> {
        let mut by_job: HashMap<JobKey, Dependants> = HashMap::new();
        for (job, news) in std::mem::take(&mut self.news) {
            by_job.entry(job).or_default().news.parents.push(news);
        }
        let any = !by_job.is_empty();
        for (job, mut dependants) in by_job {
            // Another task may have the number of one that is gone.
            let gone = dependants.news.parents.iter().filter(|news| news.state == ParentState::Missing);
            let numbers: BTreeSet<i32> = gone.filter_map(|news| number_of(&news.key)).collect();
            let ranges = numbers.into_iter().map(|number| (number, number)).collect();
            dependants.news.numbers = self.look_up(job, Vec::new(), ranges).await?.numbers;
            self.inputs.push_back(Input::Dependants { job, dependants });
        }
        Ok(any)
    }

    /// A completed task was removed, or one with its id has come since.
    pub(super) async fn parent_deleted(&mut self, job: JobKey, row: Row, key: String) -> Result<(), Broken> {
        let number = number_of(&key);
        let Some(graph) = self.core.graph(job) else { return Ok(()) };
        let ranges: Vec<(i32, i32)> =
            number.filter(|number| graph.watches_number(*number)).map(|n| (n, n)).into_iter().collect();
        if !graph.watches(&key) && ranges.is_empty() {
            return Ok(());
        }
        let mut news = self.look_up(job, vec![key], ranges).await?;
        let gone = news.parents.iter_mut().filter(|news| news.state == ParentState::Missing);
        gone.for_each(|news| news.row = row);
        self.inputs.push_back(Input::Dependants { job, dependants: Dependants { news, tasks: Vec::new() } });
        Ok(())
    }

    /// Of tasks that are new, or active again: those that wait for others, and
    /// what the core has to be told. All of them may be waited for.
    pub(super) async fn find_dependants(
        &mut self,
        job: JobKey,
        tasks: &[TaskRow],
    ) -> Result<(Option<Dependants>, HashSet<Row>), Broken> {
        let mut waiting = HashSet::new();
        let Some(info) = self.jobs.get(&job).filter(|info| info.uses_dependencies()) else {
            return Ok((None, waiting));
        };
        debug_assert!(info.uses_dependencies());
        let (mut open, mut settled) = (Vec::new(), Vec::new());
        let mut new = Vec::new();
        for task in tasks {
            let key = task.id.key().into_owned();
            if let Some(graph) = self.core.graph(job) {
                settled.extend(number_of(&key).filter(|number| graph.is_settled(*number)).map(|n| (n, n)));
                if graph.watches(&key) {
                    open.push(ParentNews { key: key.clone(), row: task.row, state: ParentState::Open });
                }
            }
            // Who has started once never waits again.
            if task.task.attempt > 0 {
                continue;
            }
            if let Some(on) = read_spec(task)?.depends_on.as_ref().and_then(Dependencies::of) {
                waiting.insert(task.row);
                new.push(NewDependant { task: ready_task(task), key, on });
            }
        }
        let (keys, mut ranges) = unknown(self.core.graph(job), &new);
        ranges.extend(settled);
        if open.is_empty() && new.is_empty() && ranges.is_empty() {
            return Ok((None, waiting));
        }
        let mut news = self.look_up(job, keys, ranges).await?;
        news.parents.splice(0..0, open);
        Ok((Some(Dependants { news, tasks: new }), waiting))
    }

    /// Takes those out of `ready` that wait for others, when a job is loaded.
    pub(super) async fn load_dependants(
        &mut self,
        row: &JobRow,
        ready: &mut [&mut Vec<ReadyTask>],
    ) -> Result<Dependants, Broken> {
        let over = matches!(row.life.state, JobState::Terminating | JobState::Completed | JobState::Deleting);
        if !row.spec.uses_task_dependencies || over {
            return Ok(Dependants::default());
        }
        let mut stored: HashMap<Row, StoredDependant> = HashMap::new();
        let mut after = 0;
        loop {
            let page = self.context.store.dependants(row.row, after, LOAD_PAGE).await?;
            let full = page.len() == LOAD_PAGE as usize;
            after = page.last().map_or(after, |last| last.row);
            stored.extend(page.into_iter().map(|dependant| (dependant.row, dependant)));
            if !full {
                break;
            }
        }
        let mut tasks = Vec::with_capacity(stored.len());
        for ready in ready {
            ready.retain(|task| match stored.remove(&task.row).filter(|_| task.attempt == 0) {
                Some(found) => {
                    tasks.push(NewDependant { task: *task, key: found.key, on: found.on });
                    false
                }
                None => true,
            });
        }
        let (keys, ranges) = unknown(None, &tasks);
        let news = self.look_up(row.row, keys, ranges).await?;
        Ok(Dependants { news, tasks })
    }

    /// Where ids and numbers stand.
    async fn look_up(&self, job: JobKey, keys: Vec<String>, ranges: Vec<(i32, i32)>) -> Result<News, Broken> {
        let mut news = News::default();
        for keys in keys.chunks(READ) {
            let found = self.context.store.parents(job, keys.to_vec()).await?;
            for (key, (row, state)) in keys.iter().zip(found) {
                let stored = ParentNews { key: key.clone(), row, state };
                news.parents.push(self.with_overlay(job, stored));
            }
        }
        for ranges in ranges.chunks(READ) {
            let found = self.context.store.numbers(job, ranges.to_vec()).await?;
            for (range, numbers) in ranges.iter().zip(found) {
                news.numbers.push(self.numbers_with_overlay(job, *range, numbers));
            }
        }
        Ok(news)
    }

    fn decided(&self) -> impl Iterator<Item = (&(JobKey, String), &ParentNews)> {
        self.parents_under_way.iter().chain(&self.batch.parents)
    }

    fn with_overlay(&self, job: JobKey, stored: ParentNews) -> ParentNews {
        let name = (job, stored.key.clone());
        let decided = self.batch.parents.get(&name).or_else(|| self.parents_under_way.get(&name));
        decided.filter(|decided| decided.row >= stored.row).cloned().unwrap_or(stored)
    }

    fn numbers_with_overlay(&self, job: JobKey, range: (i32, i32), numbers: Numbers) -> NumberNews {
        let mut news = NumberNews { range, satisfied: numbers.satisfied, blocks: numbers.blocks };
        let mut satisfied = BTreeSet::new();
        for ((of, key), decided) in self.decided() {
            let Some(number) = number_of(key).filter(|n| *of == job && (range.0..=range.1).contains(n)) else {
                continue;
            };
            news.blocks.retain(|blocks| *blocks != number);
            match decided.state {
                ParentState::Satisfied => {
                    satisfied.insert(number);
                }
                ParentState::Blocks => news.blocks.push(number),
                ParentState::Open | ParentState::Missing => {}
            }
        }
        news.add_satisfied(satisfied);
        news
    }

    /// The tasks a task waits for, if that is why it waits.
    pub(super) async fn name_parents(
        &mut self,
        job: JobKey,
        row: Row,
        reason: WaitReason,
    ) -> Result<(WaitReason, Vec<String>), Broken> {
        let cause = self.core.graph(job).and_then(|graph| graph.explain(row));
        Ok(match cause {
            Some(cause) if cause.reason() == reason => match cause {
                Cause::Failed(ids) | Cause::Cycle(ids) | Cause::Missing(ids) => (reason, ids),
                Cause::Open { ids, numbers } => {
                    let missing = self.context.store.missing_numbers(job, numbers.clone()).await?;
                    let text = |numbers: Vec<i32>| numbers.into_iter().map(|number| number.to_string());
                    if missing.is_empty() {
                        (reason, ids.into_iter().chain(text(numbers)).collect())
                    } else {
                        (WaitReason::DependencyMissing, text(missing).collect())
                    }
                }
            },
            Some(_) | None => (reason, Vec::new()),
        })
    }
}

/// The ids and ranges of new tasks that nobody waited for.
fn unknown(graph: Option<&Graph>, new: &[NewDependant]) -> (Vec<String>, Vec<(i32, i32)>) {
    let ids: BTreeSet<&String> = new.iter().flat_map(|new| &new.on.ids).collect();
    let ranges: BTreeSet<(i32, i32)> = new.iter().flat_map(|new| new.on.ranges.iter().copied()).collect();
    let ids = ids.into_iter().filter(|id| graph.is_none_or(|graph| !graph.watches(id)));
    let ranges = ranges.into_iter().filter(|range| graph.is_none_or(|graph| graph.is_new_range(*range)));
    (ids.cloned().collect(), ranges.collect())
}

fn read_spec(task: &TaskRow) -> Result<TaskSpec, Broken> {
    TaskSpec::decode(task.spec.clone())
        .map_err(|error| Broken::Picture { row: task.row, why: format!("its spec cannot be read: {error}") })
}
