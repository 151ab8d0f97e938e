//! Why a task waits, in words.

use kiln_ids::AccountName;
use kiln_proto::common::v1::NameValue;
use kiln_proto::job::v1 as wire;
use tokio::sync::oneshot;

use super::{Answer, Api};
use crate::domain::Error;
use crate::domain::job::JobState;
use crate::domain::needs::Needs;
use crate::domain::task::Phase;
use crate::scheduler::core::WaitReason;
use crate::scheduler::note::Note;
use crate::store::JobRow;

/// Nodes that are looked through for those on which a preparation failed, and
/// those that are named.
const MANY_NODES: u32 = 1000;
const FEW_NODES: usize = 10;

impl Api {
    pub(super) async fn explain_task(
        &self,
        account: AccountName,
        request: wire::ExplainTaskRequest,
    ) -> Answer<wire::ExplainTaskResponse> {
        let (job, task) = self.find(&account, &request.job_id, &request.task_id).await?;
        if task.task.state.phase() != Phase::Active {
            let message = "The task does not wait: it runs or has completed.".to_owned();
            return Ok(answer(WaitReason::NotWaiting, message, Vec::new()));
        }
        if job.life.state != JobState::Active {
            let message = format!("The job is {}; tasks run while it is active.", job.life.state.name());
            return Ok(answer(WaitReason::JobNotActive, message, Vec::new()));
        }
        let needs = task.facts.needs;
        let (reply, answered) = oneshot::channel();
        self.registry.tell(&account, &job.pool, Note::Explain { job: job.row, row: task.row, needs, reply }).await;
        let (reason, parents) =
            answered.await.map_err(|_| Error::Unavailable("the scheduler is starting; repeat the call"))?;
        let mut words = in_words(reason, &job, &needs, &parents);
        if reason == WaitReason::PreparationFailed {
            let nodes = self.store.job_nodes(job.row, None, MANY_NODES).await?;
            let barred = nodes.iter().filter(|row| row.barred.is_some() && row.pool == job.pool);
            words.details.extend(barred.take(FEW_NODES).map(|row| detail("node", &row.node)));
        }
        Ok(words)
    }
}

fn answer(reason: WaitReason, message: String, details: Vec<NameValue>) -> wire::ExplainTaskResponse {
    wire::ExplainTaskResponse { reason: reason.code().to_owned(), message, never: reason.is_for_ever(), details }
}

fn detail(name: &str, value: impl ToString) -> NameValue {
    NameValue { name: name.to_owned(), value: value.to_string() }
}

/// A few of the tasks are named.
fn waits(message: &str, parents: &[String]) -> (String, Vec<NameValue>) {
    let details = parents.iter().map(|parent| detail("taskId", parent)).collect();
    (format!("{message}: {}.", parents.join(", ")), details)
}

fn in_words(reason: WaitReason, job: &JobRow, needs: &Needs, parents: &[String]) -> wire::ExplainTaskResponse {
    let (pool, slots, instances) = (&job.pool, needs.slots, needs.instances);
    let (message, details) = match reason {
        WaitReason::NotWaiting => ("The task is being assigned just now.".to_owned(), Vec::new()),
        WaitReason::JobNotActive => ("The job's state is changing.".to_owned(), Vec::new()),
        WaitReason::DependencyOpen => waits("The task waits for tasks that have not completed", parents),
        WaitReason::DependencyFailed => waits(
            "The task waits for tasks that completed without letting it run, or that wait for such; activate those \
             again, or end this one",
            parents,
        ),
        WaitReason::DependencyMissing => waits("The task waits for tasks that are not there (yet)", parents),
        WaitReason::DependencyCycle => {
            waits("The task is one of, or waits for, tasks that wait for each other in a circle", parents)
        }
        WaitReason::NoNodes => (format!("No node of pool {pool} takes tasks at the moment."), Vec::new()),
        WaitReason::RequiredSlotsTooLarge { largest } => (
            format!("The task needs {slots} slots; the largest node of pool {pool} has {largest}."),
            vec![detail("needed", slots), detail("largest", largest)],
        ),
        WaitReason::ResourcesTooLarge { resource, largest } => {
            let (name, needed) = (resource.name(), needs.amount(resource));
            (
                format!("The task needs {name} {needed}; the most that a node of pool {pool} has for it is {largest}."),
                vec![detail("resource", name), detail("needed", needed), detail("largest", largest)],
            )
        }
        WaitReason::NoDedicatedNode => (format!("The task wants a dedicated node; pool {pool} has none."), Vec::new()),
        WaitReason::TooFewNodes { fitting } => (
            format!("The task has {instances} instances; pool {pool} has {fitting} nodes for them."),
            vec![detail("needed", instances), detail("fitting", fitting)],
        ),
        WaitReason::MaxParallelTasks => {
            ("The job runs as many tasks as its maxParallelTasks allows.".to_owned(), Vec::new())
        }
        WaitReason::NoFreeSlots if instances > 1 => (
            format!("No {instances} nodes have {slots} free slots at the same time."),
            vec![detail("needed", slots), detail("instances", instances)],
        ),
        WaitReason::NoFreeSlots => {
            (format!("No node has {slots} free slots at the moment."), vec![detail("needed", slots)])
        }
        WaitReason::NoFreeResources { resource } => {
            let (name, needed) = (resource.name(), needs.amount(resource));
            (
                format!("No node with free slots has {name} {needed} left at the moment."),
                vec![detail("resource", name), detail("needed", needed)],
            )
        }
        WaitReason::NoEmptyNode => {
            ("The task wants a node for itself; something runs on each at the moment.".to_owned(), Vec::new())
        }
        WaitReason::PreparationFailed => (
            format!("The job's preparation task failed on every node of pool {pool}; see the job's nodes for details."),
            Vec::new(),
        ),
        WaitReason::BehindOthers => ("Other tasks go first.".to_owned(), Vec::new()),
    };
    answer(reason, message, details)
}
