//! `kiln exec -- CMD...`: one command on a node, or once per index of an array.
//!
//! On a running server the pool is used again and again, so that the second
//! command has a node waiting: job, task and answer take a few calls, and the
//! task's end comes by the event stream, not by asking. Output of a single
//! command that runs for longer is shown as it comes.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use kiln_client::Client;
use kiln_proto::common::v1::EnvironmentSetting;
use kiln_proto::events::v1::{TaskChanged, event::Payload};
use kiln_proto::gateway::v1::{ReadTaskFileRequest, read_task_file_response};
use kiln_proto::job::v1::{
    AddTasksRequest, CreateJobRequest, ExplainTaskRequest, GetTaskRequest, JobSpec, TaskConstraints, TaskSpec,
    TaskState,
};
use kiln_proto::pool::v1::{CreatePoolRequest, GetPoolRequest, PoolSpec, ResizePoolRequest};
use tokio::io::AsyncWriteExt;
use tracing::Instrument;

use crate::array;
use crate::command_line;
use crate::commands::{environment, parse_duration, parse_env};
use crate::connect::ConnectArgs;
use crate::failure::{Failure, Outcome};
use crate::follow::Follow;
use crate::interrupt::Interrupt;
use crate::run::clean_up::delete_job;
use crate::run::suffix;
use crate::session::Session;
use crate::transfer::request_id;

/// A command that is done within this time is shown when it is done.
const SHOW_LIVE_AFTER: Duration = Duration::from_millis(150);
/// Tasks whose output is fetched at once.
const READERS: usize = 16;
/// Tasks per message when they are added.
const TASKS_PER_MESSAGE: usize = 500;

/// Arguments of `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Run once per index, given as KILN_ARRAY_INDEX: 1-10, 0-100:5, 1,4,7
    #[arg(long, value_name = "RANGE", value_parser = parse_array)]
    array: Option<Indices>,
    /// Nodes the pool should have at least
    #[arg(short, long, value_parser = clap::value_parser!(i32).range(1..=1000))]
    nodes: Option<i32>,
    /// Pool to use; made if it does not exist, and kept
    #[arg(long, default_value = "exec")]
    pool: String,
    /// Environment variable of the command
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_env)]
    env: Vec<(String, String)>,
    /// Time one run may take
    #[arg(long, value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Keep the job, for a later look
    #[arg(long)]
    keep: bool,
    /// Program and arguments; run without a shell
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Indices of an array.
#[derive(Debug, Clone)]
struct Indices(Vec<u64>);

fn parse_array(text: &str) -> Result<Indices, String> {
    array::parse(text).map(Indices)
}

/// `kiln exec`.
///
/// # Errors
/// [`Failure::Silent`] with the command's exit code if it failed.
pub async fn command(connect: ConnectArgs, args: ExecArgs) -> Outcome {
    let interrupt = Interrupt::listen()?;
    let session = tokio::select! {
        session = Session::open(&connect, false) => session?,
        () = interrupt.requested() => return Err(Failure::Interrupted),
    };
    let job = format!("exec-{}{}", suffix(), suffix());
    let exec = Exec { client: session.client.clone(), job: job.clone(), args };
    let result = tokio::select! {
        result = Box::pin(exec.run().instrument(tracing::info_span!("kiln exec", job.id = job))) => result,
        () = interrupt.requested() => Err(Failure::Interrupted),
    };
    let keep = exec.args.keep;
    drop(exec.client);
    let cleaned = if keep || session.is_embedded() { Ok(()) } else { delete_job(&session.client, &job).await };
    let endpoint = session.target.endpoint.clone();
    session.close(false).await;
    if keep {
        eprintln!("kept: job {job}");
    }
    let code = result.map_err(|failure| failure.at(&endpoint))?;
    if let Err(failure) = cleaned {
        eprintln!("warning: job {job} was not taken away: {failure}");
    }
    if code == 0 { Ok(()) } else { Err(Failure::Silent(code)) }
}

struct Exec {
    client: Client,
    job: String,
    args: ExecArgs,
}

/// What is known of the tasks.
#[derive(Default)]
struct Seen {
    finished: HashMap<String, Option<i32>>,
}

impl Exec {
    async fn run(&self) -> Outcome<u8> {
        tokio::try_join!(self.ensure_pool(), self.create_job())?;
        self.add_tasks().await?;
        match &self.args.array {
            None => self.watch_one().await,
            Some(indices) => self.watch_array(indices.0.len()).await,
        }
    }

    /// The pool, made if it does not exist, with at least as many nodes as asked for.
    async fn ensure_pool(&self) -> Outcome {
        let slots = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(256);
        let spec = PoolSpec {
            vm_size: "local".to_owned(),
            target_dedicated_nodes: self.args.nodes.unwrap_or(1),
            task_slots_per_node: i32::try_from(slots).unwrap_or(1),
            ..PoolSpec::default()
        };
        let id = self.args.pool.clone();
        let get = GetPoolRequest { id: id.clone(), precondition: None };
        let pool = match self.client.pools().get_pool(get).await {
            Ok(response) => response.into_inner().pool,
            Err(status) if status.code() == tonic::Code::NotFound => {
                let create = CreatePoolRequest { request_id: request_id(), id: id.clone(), spec: Some(spec) };
                match self.client.pools().create_pool(create).await {
                    Ok(_) => return Ok(()),
                    // Another `kiln exec` was faster.
                    Err(status) if status.code() == tonic::Code::AlreadyExists => return Ok(()),
                    Err(status) => return Err(status.into()),
                }
            }
            Err(status) => return Err(status.into()),
        };
        let target = pool.and_then(|pool| pool.spec).map_or(0, |spec| spec.target_dedicated_nodes);
        let wanted = self.args.nodes.unwrap_or(1);
        if target < wanted {
            let request = ResizePoolRequest {
                request_id: request_id(),
                id,
                target_dedicated_nodes: Some(wanted),
                ..ResizePoolRequest::default()
            };
            self.client.pools().resize_pool(request).await?;
        }
        Ok(())
    }

    async fn create_job(&self) -> Outcome {
        let spec = JobSpec {
            pool_id: self.args.pool.clone(),
            common_environment: environment(self.args.env.clone()),
            ..JobSpec::default()
        };
        let request = CreateJobRequest { request_id: request_id(), id: self.job.clone(), spec: Some(spec) };
        self.client.jobs().create_job(request).await?;
        Ok(())
    }

    fn task(&self, id: String, index: Option<u64>) -> TaskSpec {
        let variable =
            |index: u64| EnvironmentSetting { name: "KILN_ARRAY_INDEX".to_owned(), value: index.to_string() };
        TaskSpec {
            id,
            command_line: command_line::join(&self.args.command),
            environment: index.map(variable).into_iter().collect(),
            constraints: Some(TaskConstraints {
                max_wall_clock_time: self.args.timeout.map(kiln_proto::time::duration),
                ..TaskConstraints::default()
            }),
            ..TaskSpec::default()
        }
    }

    async fn add_tasks(&self) -> Outcome {
        let tasks: Vec<TaskSpec> = match &self.args.array {
            None => vec![self.task(ONE.to_owned(), None)],
            Some(indices) => indices.0.iter().map(|index| self.task(index.to_string(), Some(*index))).collect(),
        };
        let messages: Vec<AddTasksRequest> = tasks
            .chunks(TASKS_PER_MESSAGE)
            .zip(1..)
            .map(|(tasks, sequence)| AddTasksRequest { job_id: self.job.clone(), sequence, tasks: tasks.to_vec() })
            .collect();
        let mut answers = self.client.jobs().add_tasks(futures::stream::iter(messages)).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            if let Some(refused) = answer.failed.into_iter().next() {
                let error = refused.error.unwrap_or_default();
                return Err(
                    kiln_error::Error::new(kiln_error::Kind::InvalidArgument, error.reason, error.message).into()
                );
            }
        }
        Ok(())
    }

    /// One command: its output as it comes, its exit code.
    async fn watch_one(&self) -> Outcome<u8> {
        let mut batches = Follow::job(&self.client, &self.job, false).into_batches();
        let mut seen = Seen::default();
        // Shows output while the command runs; `None` until it has run for a while.
        let mut live: Option<BoxFuture<'_, Outcome>> = None;
        let mut started: Option<tokio::time::Instant> = None;
        let mut explained = false;
        loop {
            let due = started.filter(|_| live.is_none());
            let show_live = async {
                match due {
                    Some(since) => tokio::time::sleep_until(since + SHOW_LIVE_AFTER).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                batch = batches.next() => {
                    let events = ended(batch)?;
                    if events.is_empty() && started.is_none() && !explained {
                        explained = self.explain().await?;
                    }
                    if events.is_empty() {
                        self.look(ONE, &mut seen).await?;
                    }
                    for task in events.into_iter().filter_map(task_of) {
                        if task.new_state() == TaskState::Running && started.is_none() {
                            started = Some(tokio::time::Instant::now());
                        }
                        note(&mut seen, &task);
                    }
                    if seen.finished.contains_key(ONE) {
                        break;
                    }
                }
                () = show_live => {
                    live = Some(Box::pin(async {
                        tokio::try_join!(self.print_file(ONE, false, true), self.print_file(ONE, true, true))?;
                        Ok(())
                    }));
                }
                result = async { match &mut live { Some(live) => live.await, None => std::future::pending().await } } => {
                    result?;
                    // All of it was shown; only the exit code is missing.
                    live = Some(Box::pin(std::future::pending()));
                    started = None;
                    explained = true;
                    if self.look(ONE, &mut seen).await? {
                        return self.exit_of(ONE, &seen).await;
                    }
                }
            }
        }
        match live {
            Some(live) if started.is_some() => live.await?,
            Some(_) => {}
            None => {
                tokio::try_join!(self.print_file(ONE, false, false), self.print_file(ONE, true, false))?;
            }
        }
        self.exit_of(ONE, &seen).await
    }

    /// An array: output of each task when it has ended, every line with its index.
    async fn watch_array(&self, count: usize) -> Outcome<u8> {
        let mut batches = Follow::job(&self.client, &self.job, false).into_batches();
        let mut seen = Seen::default();
        let mut waiting: Vec<String> = Vec::new();
        let mut readers = FuturesUnordered::new();
        let mut shown = 0;
        let mut explained = false;
        while shown < count {
            while readers.len() < READERS
                && let Some(id) = waiting.pop()
            {
                readers.push(async move {
                    tokio::try_join!(self.prefixed(&id, false), self.prefixed(&id, true))?;
                    Outcome::Ok(())
                });
            }
            tokio::select! {
                batch = batches.next() => {
                    let events = ended(batch)?;
                    if events.is_empty() && seen.finished.is_empty() && !explained {
                        explained = true;
                        eprintln!("waiting for nodes of pool {}", self.args.pool);
                    }
                    for task in events.into_iter().filter_map(task_of) {
                        if note(&mut seen, &task) {
                            waiting.insert(0, task.task_id.clone());
                        }
                    }
                }
                Some(result) = readers.next() => {
                    result?;
                    shown += 1;
                }
            }
        }
        let failed: Vec<&String> =
            seen.finished.iter().filter(|(_, code)| **code != Some(0)).map(|(id, _)| id).collect();
        if failed.is_empty() {
            return Ok(0);
        }
        let mut sorted: Vec<u64> = failed.iter().filter_map(|id| id.parse().ok()).collect();
        sorted.sort_unstable();
        let list: Vec<String> = sorted.iter().take(20).map(u64::to_string).collect();
        let more = if sorted.len() > 20 { ", ..." } else { "" };
        eprintln!("{} of {count} failed: {}{more}", failed.len(), list.join(", "));
        Ok(1)
    }

    /// Asks for the task itself, in case its events are late; `true` if it is completed.
    async fn look(&self, task: &str, seen: &mut Seen) -> Outcome<bool> {
        let request = GetTaskRequest { job_id: self.job.clone(), task_id: task.to_owned(), precondition: None };
        let task_now = self.client.jobs().get_task(request).await?.into_inner().task.unwrap_or_default();
        if task_now.state() != TaskState::Completed {
            return Ok(false);
        }
        seen.finished.insert(task.to_owned(), task_now.execution.and_then(|execution| execution.exit_code));
        Ok(true)
    }

    /// Says why the task waits; `false` if it does not.
    async fn explain(&self) -> Outcome<bool> {
        let request = ExplainTaskRequest { job_id: self.job.clone(), task_id: ONE.to_owned() };
        let answer = self.client.jobs().explain_task(request).await?.into_inner();
        if answer.reason == "NotWaiting" {
            return Ok(false);
        }
        eprintln!("waiting: {}", answer.message);
        Ok(true)
    }

    /// The command's exit code as ours; says what happened if there is none.
    async fn exit_of(&self, task: &str, seen: &Seen) -> Outcome<u8> {
        match seen.finished.get(task) {
            Some(Some(code)) => Ok(u8::try_from(*code).unwrap_or(1)),
            _ => {
                let request = GetTaskRequest { job_id: self.job.clone(), task_id: task.to_owned(), precondition: None };
                let task = self.client.jobs().get_task(request).await?.into_inner().task.unwrap_or_default();
                let execution = task.execution.unwrap_or_default();
                if let Some(failure) = execution.failure {
                    eprintln!("error: {}: {}", failure.code, failure.message);
                }
                Ok(execution.exit_code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
            }
        }
    }

    /// Copies stdout or stderr of a task to ours.
    async fn print_file(&self, task: &str, stderr: bool, follow: bool) -> Outcome {
        let Some(mut stream) = self.open(task, stderr, follow).await? else { return Ok(()) };
        while let Some(message) = stream.message().await? {
            let Some(read_task_file_response::Part::Data(data)) = message.part else { continue };
            let written = if stderr {
                write(&mut tokio::io::stderr(), &data).await
            } else {
                write(&mut tokio::io::stdout(), &data).await
            };
            written.context("output")?;
        }
        Ok(())
    }

    /// Prints stdout or stderr of a task, every line with the task's index.
    async fn prefixed(&self, task: &str, stderr: bool) -> Outcome {
        let Some(mut stream) = self.open(task, stderr, false).await? else { return Ok(()) };
        let mut rest: Vec<u8> = Vec::new();
        loop {
            let message = stream.message().await?;
            let end = message.is_none();
            if let Some(read_task_file_response::Part::Data(data)) = message.and_then(|message| message.part) {
                rest.extend_from_slice(&data);
            }
            // Whole lines only, so that those of several tasks do not mix.
            let whole =
                if end { rest.len() } else { rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1) };
            let tail = rest.split_off(whole);
            let mut text = Vec::with_capacity(rest.len() + 16);
            for line in rest.split_inclusive(|byte| *byte == b'\n') {
                text.extend_from_slice(format!("[{task}] ").as_bytes());
                text.extend_from_slice(line);
                if !line.ends_with(b"\n") {
                    text.push(b'\n');
                }
            }
            rest = tail;
            let written = if stderr {
                write(&mut tokio::io::stderr(), &text).await
            } else {
                write(&mut tokio::io::stdout(), &text).await
            };
            written.context("output")?;
            if end {
                return Ok(());
            }
        }
    }

    /// A task that could not start has no files, which is no error here.
    async fn open(
        &self,
        task: &str,
        stderr: bool,
        follow: bool,
    ) -> Outcome<Option<tonic::Streaming<kiln_proto::gateway::v1::ReadTaskFileResponse>>> {
        let request = ReadTaskFileRequest {
            job_id: self.job.clone(),
            task_id: task.to_owned(),
            path: if stderr { kiln_node::STDERR_FILE } else { kiln_node::STDOUT_FILE }.to_owned(),
            range: None,
            follow,
        };
        match self.client.task_files().read_task_file(request).await {
            Ok(response) => Ok(Some(response.into_inner())),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }
}

/// Id of the only task.
const ONE: &str = "task";

fn ended<T>(batch: Option<Outcome<T>>) -> Outcome<T> {
    batch.unwrap_or_else(|| Err(Failure::Other(anyhow::anyhow!("the events of the job ended too early"))))
}

fn task_of(event: kiln_proto::events::v1::Event) -> Option<TaskChanged> {
    match event.payload {
        Some(Payload::Task(task)) => Some(task),
        _ => None,
    }
}

/// `true` if the task has just finished.
fn note(seen: &mut Seen, task: &TaskChanged) -> bool {
    task.new_state() == TaskState::Completed && seen.finished.insert(task.task_id.clone(), task.exit_code).is_none()
}

/// A reader that has enough (`| head`) is no error.
async fn write(target: &mut (impl tokio::io::AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    let written = async {
        target.write_all(bytes).await?;
        target.flush().await
    };
    match written.await {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
