//! How the actor reads what there is to do: at its start, after a failure, and
//! when a job comes to its pool.

use std::sync::Arc;

use kiln_ids::NodeId;
use tokio::time::Instant;

use super::actor::{Actor, Broken};
use super::core::{Input, JobKey, OnNode, ReadyTask, Row};
use super::job_info::{self, JobInfo};
use crate::domain::job::JobState;
use crate::domain::subtask::Subtask;
use crate::domain::task::Outcome;
use crate::store::JobRow;

/// Rows that are read at once when a job is loaded.
pub(super) const LOAD_PAGE: u32 = 20_000;

impl Actor {
    /// Reads all jobs of the pool that are not over.
    pub(super) async fn load(&mut self) -> Result<(), Broken> {
        let began = Instant::now();
        let jobs = self.context.store.pool_jobs(&self.account, &self.pool).await?;
        let count = jobs.len();
        for job in jobs {
            self.load_job(job).await?;
        }
        self.step();
        let (waiting, running) = self.core.depth();
        if count > 0 {
            tracing::info!(
                account = %self.account, pool.id = %self.pool, jobs = count, waiting, running,
                took = ?began.elapsed(), "the scheduler has loaded its pool"
            );
        }
        Ok(())
    }

    /// Reads a job's open tasks and gives all to the core.
    pub(super) async fn load_job(&mut self, row: JobRow) -> Result<(), Broken> {
        let key = row.row;
        let (mut ready, mut running, mut reactivated) = (Vec::new(), Vec::new(), Vec::new());
        let mut after = 0;
        let visible = self.highest;
        loop {
            let page = self.context.store.open_tasks(key, after, LOAD_PAGE).await?;
            let full = page.len() == LOAD_PAGE as usize;
            for task in page {
                after = task.row;
                let ready_task = ReadyTask {
                    row: task.row,
                    needs: task.facts.needs,
                    attempt: task.attempt,
                    retry_count: task.retry_count,
                    internal_retries: task.internal_retries,
                    max_retries: task.facts.max_retries,
                    affinity: task.facts.affinity,
                };
                match task.node {
                    Some(node) if task.facts.needs.instances > 1 => {
                        let open = self.open_instances(task.row).await?;
                        running.push((ready_task, if open.is_empty() { vec![(0, node)] } else { open }));
                    }
                    Some(node) => running.push((ready_task, vec![(0, node)])),
                    // Instances of its last attempt may still run.
                    None if task.facts.needs.instances > 1 && task.attempt > 0 => reactivated.push(ready_task),
                    None if task.reactivated => reactivated.push(ready_task),
                    None => ready.push(ready_task),
                }
            }
            if !full {
                break;
            }
        }
        let dependants = self.load_dependants(&row, &mut [&mut ready, &mut reactivated]).await?;
        if matches!(row.life.state, JobState::Terminating | JobState::Deleting) {
            // They will not run again.
            ready.append(&mut reactivated);
        }
        self.highest = self.highest.max(after);
        let view = self.note_job(row);
        let rows: Vec<Row> = running.iter().map(|(task, _)| task.row).collect();
        for task in self.context.store.load_tasks(rows).await? {
            self.enter_live(task);
        }
        if let Some(info) = self.jobs.get_mut(&key) {
            info.loaded_to = after.max(visible);
        }
        let nodes = self.nodes_of(key).await?;
        self.inputs.push_back(Input::Loaded { view, ready, running, nodes, dependants });
        for task in reactivated {
            self.ready_again(key, task).await?;
        }
        Ok(())
    }

    /// What is known of a job's preparation and release on nodes of this pool.
    async fn nodes_of(&self, job: JobKey) -> Result<Vec<(Arc<NodeId>, OnNode)>, Broken> {
        let mut nodes = Vec::new();
        if !self.jobs.get(&job).is_some_and(JobInfo::prepares) {
            return Ok(nodes);
        }
        let mut after = None;
        loop {
            let page = self.context.store.job_nodes(job, after, LOAD_PAGE).await?;
            let full = page.len() == LOAD_PAGE as usize;
            after = page.last().map(|row| (row.node.key().into_owned(), row.pool.key().into_owned()));
            nodes.extend(page.into_iter().filter(|row| row.pool == self.pool).map(job_info::on_node));
            if !full {
                return Ok(nodes);
            }
        }
    }

    /// Instances that may still run, as the store knows them.
    async fn open_instances(&self, row: Row) -> Result<Vec<(u32, Arc<NodeId>)>, Broken> {
        let subtasks = self.context.store.subtasks(row).await?;
        let open = subtasks.into_iter().filter(Subtask::is_open);
        Ok(open.map(|subtask| (subtask.instance, subtask.node)).collect())
    }

    /// A task that was activated again: at once, or when its former attempt is
    /// known to be over. Attempts that ended by themselves are.
    pub(super) async fn ready_again(&mut self, job: JobKey, task: ReadyTask) -> Result<(), Broken> {
        let nodes = if task.needs.instances > 1 {
            self.open_instances(task.row).await?
        } else {
            let former = self.context.store.attempts(task.row, task.attempt.saturating_sub(1), 1).await?;
            let former = former.into_iter().find(|former| former.outcome == Outcome::Terminated);
            former.into_iter().map(|former| (0, former.run.node)).collect()
        };
        if !nodes.is_empty() && !self.core.is_live(task.row) {
            for row in self.context.store.load_tasks(vec![task.row]).await? {
                self.enter_live(row);
            }
            self.inputs.push_back(Input::Held { job, task, nodes });
            // What it does not hold is put away again.
            self.fx.forget.push(task.row);
        } else {
            self.inputs.push_back(Input::Added { job, tasks: vec![task] });
        }
        Ok(())
    }
}
