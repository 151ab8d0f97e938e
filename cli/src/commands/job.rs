//! `kiln job ...`

use std::time::Duration;

use clap::{Args, Subcommand};
use kiln_client::Client;
use kiln_proto::job::v1::{
    CountTasksRequest, CreateJobRequest, DeleteJobRequest, DisableJobRequest, DisableTasks, EnableJobRequest,
    GetJobRequest, Job, JobConstraints, JobPreparationTask, JobReleaseTask, JobSpec, ListJobNodesRequest,
    ListJobsRequest, NodeTaskInfo, OnAllTasksComplete, OnTaskFailure, TaskCounts, TaskSpec, TerminateJobRequest,
    UpdateJobRequest,
};

use super::{ListArgs, environment, pages, parse_duration, parse_env, present};
use crate::command_line;
use crate::failure::Outcome;
use crate::output::{self, Format, table, text};
use crate::transfer::request_id;

const MESSAGE: &str = "kiln.job.v1.Job";

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// Make a job
    Create(CreateArgs),
    /// List jobs
    List(ListArgs),
    /// Show one job
    Show {
        /// Its id
        id: String,
    },
    /// Change a job
    Update {
        /// Its id
        id: String,
        /// New priority, -1000 to 1000
        #[arg(long, allow_negative_numbers = true)]
        priority: Option<i32>,
        /// Tasks that may run at once; -1 without limit
        #[arg(long, allow_negative_numbers = true)]
        max_parallel: Option<i32>,
        /// End the job when all its tasks are completed
        #[arg(long)]
        end_when_done: bool,
    },
    /// End a job: its tasks are stopped
    Terminate {
        /// Its id
        id: String,
        /// Why, for the record
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Delete a job and its tasks
    Delete {
        /// Its id
        id: String,
    },
    /// Let no more tasks of a job start
    Disable {
        /// Its id
        id: String,
        /// What happens to its running tasks
        #[arg(long, value_enum, default_value_t)]
        tasks: Running,
    },
    /// Let tasks of a job start again
    Enable {
        /// Its id
        id: String,
    },
    /// Count a job's tasks by state
    Counts {
        /// Its id
        id: String,
    },
    /// List the nodes a job was prepared on, with preparation and release
    Nodes {
        /// Its id
        id: String,
    },
}

/// What disabling a job does to its running tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Running {
    /// They run again when the job is enabled.
    #[default]
    Requeue,
    /// They are over.
    Terminate,
    /// They go on to their end.
    Wait,
}

/// Arguments of `create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Its id
    id: String,
    /// Pool on which its tasks run
    #[arg(short, long)]
    pool: String,
    /// -1000 to 1000; higher runs first
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Tasks that may run at once
    #[arg(long)]
    max_parallel: Option<i32>,
    /// Time the job may take
    #[arg(long, value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Retries of tasks that fail; -1 without end
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    retries: i32,
    /// Environment of every task
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_env)]
    env: Vec<(String, String)>,
    /// Tasks may depend on each other
    #[arg(long)]
    dependencies: bool,
    /// A task that fails may end the job, if its exit conditions say so
    #[arg(long)]
    failure_ends_job: bool,
    /// Tasks of jobs with a higher priority may take the place of its running tasks
    #[arg(long)]
    preemptible: bool,
    /// Shell command that runs on a node before the first task there
    #[arg(long, value_name = "COMMAND")]
    prepare: Option<String>,
    /// Shell command that runs on those nodes when the job has ended
    #[arg(long, value_name = "COMMAND", requires = "prepare")]
    release: Option<String>,
}

/// Carries out a subcommand.
///
/// # Errors
/// What the service said.
pub async fn run(client: &Client, format: Format, command: JobCommand) -> Outcome {
    let mut jobs = client.jobs();
    match command {
        JobCommand::Create(args) => {
            let request = CreateJobRequest { request_id: request_id(), id: args.id.clone(), spec: Some(spec(args)) };
            show(format, jobs.create_job(request).await?.into_inner().job)
        }
        JobCommand::List(args) => {
            let list = pages(args.limit, |page_size, page_token| {
                let mut jobs = client.jobs();
                let request = ListJobsRequest {
                    filter: args.filter.clone(),
                    page_size,
                    page_token,
                    job_schedule_id: String::new(),
                };
                async move {
                    let page = jobs.list_jobs(request).await?.into_inner();
                    Ok((page.jobs, page.next_page_token))
                }
            })
            .await?;
            let header = ["id", "state", "pool", "priority", "created", "ended", "reason"];
            output::list(format, MESSAGE, &list, &header, |job| {
                let spec = job.spec.clone().unwrap_or_default();
                vec![
                    job.id.clone(),
                    state(job),
                    pool(job),
                    spec.priority.to_string(),
                    text::time(job.creation_time.as_ref()),
                    text::time(job.end_time.as_ref()),
                    job.terminate_reason.clone(),
                ]
            })
        }
        JobCommand::Show { id } => {
            let request = GetJobRequest { id, ..GetJobRequest::default() };
            show(format, jobs.get_job(request).await?.into_inner().job)
        }
        JobCommand::Update { id, priority, max_parallel, end_when_done } => {
            let action = if end_when_done { OnAllTasksComplete::TerminateJob } else { OnAllTasksComplete::Unspecified };
            let request = UpdateJobRequest {
                request_id: request_id(),
                id,
                priority,
                max_parallel_tasks: max_parallel,
                on_all_tasks_complete: action.into(),
                ..UpdateJobRequest::default()
            };
            show(format, jobs.update_job(request).await?.into_inner().job)
        }
        JobCommand::Terminate { id, reason } => {
            let request = TerminateJobRequest { request_id: request_id(), id, reason, precondition: None };
            show(format, jobs.terminate_job(request).await?.into_inner().job)
        }
        JobCommand::Delete { id } => {
            let request = DeleteJobRequest { request_id: request_id(), id: id.clone(), precondition: None };
            jobs.delete_job(request).await?;
            output::done(format, || format!("job {id} is being deleted"));
            Ok(())
        }
        JobCommand::Disable { id, tasks } => {
            let tasks = match tasks {
                Running::Requeue => DisableTasks::Requeue,
                Running::Terminate => DisableTasks::Terminate,
                Running::Wait => DisableTasks::Wait,
            };
            let request =
                DisableJobRequest { request_id: request_id(), id, disable_tasks: tasks.into(), precondition: None };
            show(format, jobs.disable_job(request).await?.into_inner().job)
        }
        JobCommand::Enable { id } => {
            let request = EnableJobRequest { request_id: request_id(), id, precondition: None };
            show(format, jobs.enable_job(request).await?.into_inner().job)
        }
        JobCommand::Nodes { id } => nodes(client, format, id).await,
        JobCommand::Counts { id } => {
            let counts = jobs.count_tasks(CountTasksRequest { job_id: id }).await?.into_inner();
            if format == Format::Json {
                return output::show(format, "kiln.job.v1.CountTasksResponse", &counts, |_| Vec::new());
            }
            let row = |what: &str, counts: Option<TaskCounts>| {
                let TaskCounts { active, running, completed, succeeded, failed } = counts.unwrap_or_default();
                let mut row = vec![what.to_owned()];
                row.extend([active, running, completed, succeeded, failed].map(|count| count.to_string()));
                row
            };
            let rows = vec![row("tasks", counts.tasks), row("slots", counts.slots)];
            let header = ["", "active", "running", "completed", "succeeded", "failed"];
            crate::output::text_block(format_args!("{}", table::table(&header, rows.into_iter())));
            Ok(())
        }
    }
}

fn show(format: Format, job: Option<Job>) -> Outcome {
    output::show(format, MESSAGE, &present(job, "job")?, rows)
}

fn spec(args: CreateArgs) -> JobSpec {
    let on_failure =
        if args.failure_ends_job { OnTaskFailure::PerformExitOptionsJobAction } else { OnTaskFailure::NoAction };
    JobSpec {
        pool_id: args.pool,
        priority: args.priority,
        max_parallel_tasks: args.max_parallel,
        constraints: Some(JobConstraints {
            max_wall_clock_time: args.timeout.map(kiln_proto::time::duration),
            max_task_retry_count: args.retries,
        }),
        common_environment: environment(args.env),
        on_task_failure: on_failure.into(),
        uses_task_dependencies: args.dependencies,
        allow_task_preemption: args.preemptible,
        job_preparation_task: args.prepare.map(|command| JobPreparationTask {
            task: Some(shell_task("jobpreparation", &command)),
            ..JobPreparationTask::default()
        }),
        job_release_task: args.release.map(|command| JobReleaseTask { task: Some(shell_task("jobrelease", &command)) }),
        ..JobSpec::default()
    }
}

fn shell_task(id: &str, command: &str) -> TaskSpec {
    TaskSpec { id: id.to_owned(), command_line: command_line::shell(command), ..TaskSpec::default() }
}

async fn nodes(client: &Client, format: Format, id: String) -> Outcome {
    let list = pages(u32::MAX, |page_size, page_token| {
        let mut jobs = client.jobs();
        let request = ListJobNodesRequest { job_id: id.clone(), page_size, page_token };
        async move {
            let page = jobs.list_job_nodes(request).await?.into_inner();
            Ok((page.nodes, page.next_page_token))
        }
    })
    .await?;
    let header = ["node", "pool", "preparation", "exit", "retries", "release", "exit"];
    output::list(format, "kiln.job.v1.JobNodeStatus", &list, &header, |node| {
        let state = |info: Option<&NodeTaskInfo>| {
            info.map(|info| match info.failure.as_ref() {
                Some(failure) => failure.code.clone(),
                None => text::word(info.state().as_str_name(), "NODE_TASK_STATE"),
            })
            .unwrap_or_default()
        };
        let exit = |info: Option<&NodeTaskInfo>| {
            info.and_then(|info| info.exit_code).map(|code| code.to_string()).unwrap_or_default()
        };
        let (preparation, release) = (node.preparation.as_ref(), node.release.as_ref());
        vec![
            node.node_id.clone(),
            node.pool_id.clone(),
            state(preparation),
            exit(preparation),
            preparation.map(|info| info.retry_count.to_string()).unwrap_or_default(),
            state(release),
            exit(release),
        ]
    })
}

/// Also one that was made for the job.
fn pool(job: &Job) -> String {
    if job.pool_id.is_empty() {
        job.spec.as_ref().map(|spec| spec.pool_id.clone()).unwrap_or_default()
    } else {
        job.pool_id.clone()
    }
}

fn state(job: &Job) -> String {
    text::word(job.state().as_str_name(), "JOB_STATE")
}

fn rows(job: &Job) -> Vec<(&'static str, String)> {
    let spec = job.spec.clone().unwrap_or_default();
    let parallel = spec.max_parallel_tasks.filter(|count| *count >= 0);
    vec![
        ("id", job.id.clone()),
        ("state", state(job)),
        ("pool", pool(job)),
        ("priority", spec.priority.to_string()),
        ("max parallel", parallel.map(|count| count.to_string()).unwrap_or_default()),
        ("created", text::time(job.creation_time.as_ref())),
        ("ended", text::time(job.end_time.as_ref())),
        ("reason", job.terminate_reason.clone()),
        (
            "error",
            job.scheduling_error.as_ref().map(|error| format!("{}: {}", error.code, error.message)).unwrap_or_default(),
        ),
    ]
}
