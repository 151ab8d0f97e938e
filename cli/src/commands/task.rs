//! `kiln task ...`

use std::time::Duration;

use clap::{Args, Subcommand};
use kiln_client::Client;
use kiln_proto::common::v1::{ApplicationPackageReference, Resources};
use kiln_proto::gateway::v1::{ListTaskFilesRequest, ReadTaskFileRequest, read_task_file_response};
use kiln_proto::job::v1::{
    AddTaskRequest, DeleteTaskRequest, ExplainTaskRequest, ExplainTaskResponse, GetTaskRequest, ListAttemptsRequest,
    ListSubtasksRequest, ListTasksRequest, MultiInstanceSettings, ReactivateTaskRequest, Task, TaskConstraints,
    TaskDependencies, TaskIdRange, TaskSpec, TerminateTaskRequest,
};

use super::app::parse_package;
use super::{FILE_HEADER, ListArgs, copy_to_stdout, environment, file_row, pages, parse_duration, parse_env, present};
use crate::command_line;
use crate::failure::Outcome;
use crate::output::{self, Format, text};
use crate::transfer::request_id;

const MESSAGE: &str = "kiln.job.v1.Task";

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum TaskCommand {
    /// Add a task to a job
    Add(AddArgs),
    /// List the tasks of a job
    List {
        /// The job
        job: String,
        /// Which of them
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show one task
    Show(Which),
    /// Stop a task; it is completed then
    Terminate(Which),
    /// Delete a task and its files
    Delete(Which),
    /// Run a failed task again
    Reactivate(Which),
    /// List the attempts of a task
    Attempts(Which),
    /// Say why a task does not run yet
    Explain(Which),
    /// List the other instances of a multi-instance task
    Subtasks(Which),
    /// List the files of a task
    Files {
        /// The task
        #[command(flatten)]
        which: Which,
        /// Only names that begin with this
        #[arg(long, default_value = "", hide_default_value = true)]
        prefix: String,
        /// At most this many
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Print a file of a task
    Cat {
        /// The task
        #[command(flatten)]
        which: Which,
        /// Path relative to the task's directory, for example wd/out.csv
        path: String,
        /// Go on as the file grows
        #[arg(short, long)]
        follow: bool,
    },
}

/// A task.
#[derive(Debug, Clone, Args)]
pub struct Which {
    /// The job
    pub job: String,
    /// The task
    pub task: String,
}

/// Arguments of `add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    #[command(flatten)]
    which: Which,
    /// Environment of the task
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_env)]
    env: Vec<(String, String)>,
    /// Application package that its node installs before it; again for more
    #[arg(long = "package", value_name = "APP[:VERSION]", value_parser = parse_package)]
    packages: Vec<ApplicationPackageReference>,
    /// Slots it needs
    #[arg(long, default_value_t = 1)]
    slots: i32,
    /// What it needs beside slots, for example cpu=1.5,memory=2GiB,disk=10GiB,gpus=1
    #[arg(long, value_name = "NAME=AMOUNT,...", value_parser = crate::amounts::parse)]
    resources: Option<Resources>,
    /// Nodes it runs on at once; the command runs on the first, after --coordination ran on all
    #[arg(long, value_name = "NODES", requires = "coordination")]
    instances: Option<i32>,
    /// Shell command that runs on every node of a task with --instances
    #[arg(long, value_name = "COMMAND", requires = "instances")]
    coordination: Option<String>,
    /// Give it a token for operations on its own job
    #[arg(long)]
    job_access: bool,
    /// Time one run of it may take
    #[arg(long, value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Retries if it fails; -1 without end
    #[arg(long, allow_negative_numbers = true)]
    retries: Option<i32>,
    /// Tasks that have to succeed before; again for more
    #[arg(long, alias = "after", value_name = "TASK")]
    depends_on: Vec<String>,
    /// Tasks with these numbers as ids have to succeed before; again for more
    #[arg(long, value_name = "FIRST-LAST", value_parser = parse_range)]
    depends_on_range: Vec<TaskIdRange>,
    /// Program and arguments; run without a shell
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Carries out a subcommand.
///
/// # Errors
/// What the service said.
pub async fn run(client: &Client, format: Format, command: TaskCommand) -> Outcome {
    let mut jobs = client.jobs();
    match command {
        TaskCommand::Add(args) => {
            let request =
                AddTaskRequest { request_id: request_id(), job_id: args.which.job.clone(), task: Some(spec(args)) };
            let task = present(jobs.add_task(request).await?.into_inner().task, "task")?;
            output::show(format, MESSAGE, &task, rows)
        }
        TaskCommand::List { job, list } => {
            let tasks = list_tasks(client, &job, &list).await?;
            let header = ["id", "state", "result", "exit", "node", "attempt", "run time"];
            output::list(format, MESSAGE, &tasks, &header, row)
        }
        TaskCommand::Show(which) => {
            let request = GetTaskRequest { job_id: which.job, task_id: which.task, precondition: None };
            let task = present(jobs.get_task(request).await?.into_inner().task, "task")?;
            output::show(format, MESSAGE, &task, rows)
        }
        TaskCommand::Terminate(Which { job: job_id, task: task_id }) => {
            let done = format!("task {task_id} is terminated");
            jobs.terminate_task(TerminateTaskRequest { request_id: request_id(), job_id, task_id, precondition: None })
                .await?;
            output::done(format, || done);
            Ok(())
        }
        TaskCommand::Delete(Which { job: job_id, task: task_id }) => {
            let done = format!("task {task_id} is deleted");
            jobs.delete_task(DeleteTaskRequest { request_id: request_id(), job_id, task_id, precondition: None })
                .await?;
            output::done(format, || done);
            Ok(())
        }
        TaskCommand::Reactivate(Which { job: job_id, task: task_id }) => {
            let done = format!("task {task_id} runs again");
            let request = ReactivateTaskRequest { request_id: request_id(), job_id, task_id, precondition: None };
            jobs.reactivate_task(request).await?;
            output::done(format, || done);
            Ok(())
        }
        TaskCommand::Attempts(which) => attempts(client, format, which).await,
        TaskCommand::Explain(Which { job: job_id, task: task_id }) => {
            let answer = jobs.explain_task(ExplainTaskRequest { job_id, task_id }).await?.into_inner();
            output::show(format, "kiln.job.v1.ExplainTaskResponse", &answer, explanation)
        }
        TaskCommand::Subtasks(which) => subtasks(client, format, which).await,
        TaskCommand::Files { which, prefix, limit } => files(client, format, which, prefix, limit).await,
        TaskCommand::Cat { which, path, follow } => cat(client, which, path, follow).await,
    }
}

fn explanation(answer: &ExplainTaskResponse) -> Vec<(&'static str, String)> {
    let mut rows = vec![("reason", answer.reason.clone()), ("message", answer.message.clone())];
    if answer.never {
        rows.push(("never", "it cannot run unless the pool, the job or its parents are changed".to_owned()));
    }
    let details = answer.details.iter().map(|detail| ("detail", format!("{}: {}", detail.name, detail.value)));
    rows.extend(details);
    rows
}

async fn subtasks(client: &Client, format: Format, which: Which) -> Outcome {
    let request = ListSubtasksRequest { job_id: which.job, task_id: which.task };
    let list = client.jobs().list_subtasks(request).await?.into_inner().subtasks;
    let header = ["instance", "state", "exit", "node", "run time", "failure"];
    output::list(format, "kiln.job.v1.Subtask", &list, &header, |subtask| {
        vec![
            subtask.id.to_string(),
            text::word(subtask.state().as_str_name(), "SUBTASK_STATE"),
            subtask.exit_code.map(|code| code.to_string()).unwrap_or_default(),
            subtask.node.as_ref().map(|node| node.node_id.clone()).unwrap_or_default(),
            text::between(subtask.start_time.as_ref(), subtask.end_time.as_ref()),
            subtask.failure.as_ref().map(|failure| failure.code.clone()).unwrap_or_default(),
        ]
    })
}

async fn attempts(client: &Client, format: Format, which: Which) -> Outcome {
    let list = pages(1000, |page_size, page_token| {
        let mut jobs = client.jobs();
        let request =
            ListAttemptsRequest { job_id: which.job.clone(), task_id: which.task.clone(), page_size, page_token };
        async move {
            let page = jobs.list_attempts(request).await?.into_inner();
            Ok((page.attempts, page.next_page_token))
        }
    })
    .await?;
    let header = ["attempt", "outcome", "exit", "node", "assigned", "run time", "failure", "reason"];
    output::list(format, "kiln.job.v1.Attempt", &list, &header, |attempt| {
        vec![
            attempt.number.to_string(),
            text::word(attempt.outcome().as_str_name(), "ATTEMPT_OUTCOME"),
            attempt.exit_code.map(|code| code.to_string()).unwrap_or_default(),
            attempt.node_id.clone(),
            text::time(attempt.assigned_time.as_ref()),
            text::between(attempt.start_time.as_ref(), attempt.end_time.as_ref()),
            attempt.failure.as_ref().map(|failure| failure.code.clone()).unwrap_or_default(),
            attempt.reason.clone(),
        ]
    })
}

async fn files(client: &Client, format: Format, which: Which, prefix: String, limit: u32) -> Outcome {
    let list = pages(limit, |page_size, page_token| {
        let mut files = client.task_files();
        let request = ListTaskFilesRequest {
            job_id: which.job.clone(),
            task_id: which.task.clone(),
            recursive: true,
            name_prefix: prefix.clone(),
            page_size,
            page_token,
        };
        async move {
            let page = files.list_task_files(request).await?.into_inner();
            Ok((page.files, page.next_page_token))
        }
    })
    .await?;
    output::list(format, "kiln.common.v1.FileEntry", &list, &FILE_HEADER, file_row)
}

/// Prints a file of a task.
///
/// # Errors
/// What the service said.
pub async fn cat(client: &Client, which: Which, path: String, follow: bool) -> Outcome {
    let request = ReadTaskFileRequest { job_id: which.job, task_id: which.task, path, range: None, follow };
    let stream = client.task_files().read_task_file(request).await?.into_inner();
    copy_to_stdout(stream, |message| match message.part {
        Some(read_task_file_response::Part::Data(data)) => Some(data),
        Some(read_task_file_response::Part::File(_)) | None => None,
    })
    .await
}

/// Tasks of a job.
///
/// # Errors
/// What the service said.
pub async fn list_tasks(client: &Client, job: &str, list: &ListArgs) -> Outcome<Vec<Task>> {
    pages(list.limit, |page_size, page_token| {
        let mut jobs = client.jobs();
        let request = ListTasksRequest { job_id: job.to_owned(), filter: list.filter.clone(), page_size, page_token };
        async move {
            let page = jobs.list_tasks(request).await?.into_inner();
            Ok((page.tasks, page.next_page_token))
        }
    })
    .await
}

fn spec(args: AddArgs) -> TaskSpec {
    TaskSpec {
        id: args.which.task,
        command_line: command_line::join(&args.command),
        environment: environment(args.env),
        application_packages: args.packages,
        required_slots: args.slots,
        constraints: Some(TaskConstraints {
            max_wall_clock_time: args.timeout.map(kiln_proto::time::duration),
            max_task_retry_count: args.retries,
            retention_time: None,
        }),
        depends_on: (!args.depends_on.is_empty() || !args.depends_on_range.is_empty())
            .then_some(TaskDependencies { task_ids: args.depends_on, task_id_ranges: args.depends_on_range }),
        resources: args.resources,
        multi_instance: args.instances.map(|number_of_instances| MultiInstanceSettings {
            number_of_instances,
            coordination_command_line: command_line::shell(&args.coordination.unwrap_or_default()),
            common_resource_files: Vec::new(),
        }),
        job_access: args.job_access,
        ..TaskSpec::default()
    }
}

/// `FIRST-LAST`, both included.
fn parse_range(text: &str) -> Result<TaskIdRange, String> {
    let number = |text: &str| text.trim().parse::<i32>().ok().filter(|number| *number >= 0);
    text.split_once('-')
        .and_then(|(start, end)| Some(TaskIdRange { start: number(start)?, end: number(end)? }))
        .filter(|range| range.start <= range.end)
        .ok_or_else(|| "has to be FIRST-LAST, for example 1-100".to_owned())
}

fn id(task: &Task) -> String {
    task.spec.as_ref().map(|spec| spec.id.clone()).unwrap_or_default()
}

fn exit(task: &Task) -> String {
    let code = task.execution.as_ref().and_then(|execution| execution.exit_code);
    code.map(|code| code.to_string()).unwrap_or_default()
}

fn result(task: &Task) -> String {
    let result = task.execution.as_ref().map(|execution| execution.result().as_str_name());
    text::word(result.unwrap_or_default(), "EXECUTION_RESULT")
}

fn run_time(task: &Task) -> String {
    let execution = task.execution.as_ref();
    text::between(
        execution.and_then(|execution| execution.start_time.as_ref()),
        execution.and_then(|execution| execution.end_time.as_ref()),
    )
}

fn row(task: &Task) -> Vec<String> {
    vec![
        id(task),
        text::word(task.state().as_str_name(), "TASK_STATE"),
        result(task),
        exit(task),
        task.node.as_ref().map(|node| node.node_id.clone()).unwrap_or_default(),
        task.attempt.to_string(),
        run_time(task),
    ]
}

fn rows(task: &Task) -> Vec<(&'static str, String)> {
    let spec = task.spec.clone().unwrap_or_default();
    let execution = task.execution.clone().unwrap_or_default();
    let failure = execution.failure.as_ref().map(|failure| format!("{}: {}", failure.code, failure.message));
    vec![
        ("id", id(task)),
        ("job", task.job_id.clone()),
        ("state", text::word(task.state().as_str_name(), "TASK_STATE")),
        ("result", result(task)),
        ("exit code", exit(task)),
        ("failure", failure.unwrap_or_default()),
        ("command", spec.command_line),
        ("node", task.node.as_ref().map(|node| node.node_id.clone()).unwrap_or_default()),
        ("attempt", task.attempt.to_string()),
        ("retries", execution.retry_count.to_string()),
        ("requeues", (execution.requeue_count + execution.internal_retry_count).to_string()),
        ("created", text::time(task.creation_time.as_ref())),
        ("started", text::time(execution.start_time.as_ref())),
        ("run time", run_time(task)),
    ]
}
