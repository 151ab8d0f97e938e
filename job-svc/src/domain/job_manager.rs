//! The job manager: a task that is added with its job and goes before all others
//! of it. It is a task as all others, except that its end may end the job.

use kiln_ids::TaskId;
use kiln_proto::job::v1::{JobManagerTask, JobSpec, TaskSpec};

use super::needs::Needs;
use super::spec::{self, TaskFacts};
use super::{Error, job_tasks};

/// Settings of tasks that a job manager does not have.
fn check_settings(task: &TaskSpec) -> Result<(), Error> {
    for (given, name) in [
        (!task.affinity_id.is_empty(), "affinityInfo"),
        (task.exit_conditions.is_some(), "exitConditions"),
        (task.depends_on.is_some(), "dependsOn"),
        (task.multi_instance.is_some(), "multiInstanceSettings"),
    ] {
        if given {
            return Err(Error::invalid(name, "", "is not a setting of this kind of task"));
        }
    }
    Ok(())
}

/// Whether the end of the manager ends the job.
pub fn ends_job(spec: &JobSpec) -> bool {
    spec.job_manager_task.as_ref().is_some_and(|manager| manager.kill_job_on_completion.unwrap_or(true))
}

/// The manager of a job, as it is added to it; `None` if it has none.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn task_of(spec: &JobSpec) -> Result<Option<(TaskId, TaskFacts, &TaskSpec)>, Error> {
    let Some(manager) = &spec.job_manager_task else { return Ok(None) };
    let name = |name: String| format!("jobManagerTask.{name}");
    let found = read(manager).map_err(|error| match error {
        Error::Missing(field) => Error::Missing(name(field)),
        Error::Invalid { reason, name: field, value, why } => Error::Invalid { reason, name: name(field), value, why },
        other => other,
    })?;
    if job_tasks::reserved(spec).iter().flatten().any(|reserved| *reserved == found.0) {
        let why = "is the id of the job's preparation or release task";
        return Err(Error::invalid("jobManagerTask.id", &found.0, why));
    }
    Ok(Some(found))
}

fn read(manager: &JobManagerTask) -> Result<(TaskId, TaskFacts, &TaskSpec), Error> {
    let Some(task) = &manager.task else { return Err(Error::Missing("id".to_owned())) };
    check_settings(task)?;
    let (id, facts) = spec::check_task(task)?;
    let needs = Needs {
        exclusive: manager.run_exclusive.unwrap_or(true),
        dedicated_only: !manager.allow_low_priority_node.unwrap_or(true),
        manager: true,
        ..facts.needs
    };
    Ok((id, TaskFacts { needs, ..facts }, task))
}

#[cfg(test)]
mod tests {
    use kiln_proto::job::v1::{ExitConditions, JobPreparationTask};

    use super::*;

    fn job(change: impl FnOnce(&mut JobManagerTask)) -> JobSpec {
        let task =
            TaskSpec { id: "Manager".into(), command_line: "true".into(), required_slots: 2, ..TaskSpec::default() };
        let mut manager = JobManagerTask { task: Some(task), ..JobManagerTask::default() };
        change(&mut manager);
        JobSpec { job_manager_task: Some(manager), ..JobSpec::default() }
    }

    #[test]
    fn what_is_not_said_is_true() {
        let plain = job(|_| {});
        let (id, facts, _) = task_of(&plain).unwrap().unwrap();
        let needs = Needs { exclusive: true, manager: true, ..Needs::slots(2) };
        assert_eq!((id.as_str(), facts.needs), ("Manager", needs));
        assert!(ends_job(&plain) && !ends_job(&JobSpec::default()));
        let other = job(|manager| {
            manager.kill_job_on_completion = Some(false);
            manager.run_exclusive = Some(false);
            manager.allow_low_priority_node = Some(false);
        });
        let (_, facts, _) = task_of(&other).unwrap().unwrap();
        assert_eq!(facts.needs, Needs { dedicated_only: true, manager: true, ..Needs::slots(2) });
        assert!(!ends_job(&other));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let name = |spec: JobSpec| task_of(&spec).unwrap_err().to_string();
        assert!(name(job(|manager| manager.task = None)).starts_with("jobManagerTask.id"));
        let wrong = |change: fn(&mut TaskSpec)| name(job(|manager| change(manager.task.as_mut().unwrap())));
        assert!(wrong(|task| task.command_line.clear()).starts_with("jobManagerTask.commandLine"));
        let conditions = |task: &mut TaskSpec| task.exit_conditions = Some(ExitConditions::default());
        assert!(wrong(conditions).starts_with("jobManagerTask.exitConditions"));
        let mut spec = job(|_| {});
        let task = TaskSpec { id: "MANAGER".into(), command_line: "true".into(), ..TaskSpec::default() };
        spec.job_preparation_task = Some(JobPreparationTask { task: Some(task), ..JobPreparationTask::default() });
        assert!(name(spec).starts_with("jobManagerTask.id"));
    }
}
