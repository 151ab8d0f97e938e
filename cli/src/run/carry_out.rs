//! The work itself, from the first container to the last fetched file.

use std::collections::HashSet;
use std::time::Instant;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use kiln_client::Client;
use kiln_client::blobs::{About, Place, Transfers};
use kiln_error::{Error, Kind};
use kiln_proto::common::v1::ExecutionResult;
use kiln_proto::events::v1::Event;
use kiln_proto::events::v1::event::Payload;
use kiln_proto::gateway::v1::{ReadTaskFileRequest, read_task_file_response};
use kiln_proto::job::v1::{AddTasksRequest, CountTasksRequest, CreateJobRequest, Task, TaskSpec};
use kiln_proto::pool::v1::{CreatePoolRequest, ReadNodeFileRequest, read_node_file_response};
use kiln_proto::storage::v1::Blob;

use super::depends::Blocked;
use super::model::{Container, Output, Workflow};
use super::progress::{Phase, Progress};
use super::specs::{self, Expected, Signed};
use super::summary::{Fetched, Summary, TaskResult};
use super::tally::{JobTally, PoolTally};
use crate::blob::local::make_parents;
use crate::commands::ListArgs;
use crate::commands::blob::{create_request, sas_request};
use crate::commands::task::list_tasks;
use crate::failure::{Failure, Outcome};
use crate::follow::Follow;
use crate::transfer::{self, request_id};

/// Files on their way at once, in either direction.
const TRANSFERS: usize = 8;
/// Tasks per message when they are added.
const TASKS_PER_MESSAGE: usize = 500;
/// Failed tasks whose stderr is shown.
const SHOWN_FAILURES: usize = 10;
/// Bytes of stderr that are looked at, and lines that are shown.
const STDERR_BYTES: usize = 4096;
const STDERR_LINES: usize = 10;
/// Blobs of one output.
const MAX_BLOBS: usize = 1_000_000;

/// What the run has made, or was about to make, and has to take away.
#[derive(Debug, Default)]
pub struct Made {
    /// Names of containers.
    pub containers: Vec<String>,
    /// The pool of the workflow.
    pub pool: bool,
    /// The job of the workflow.
    pub job: bool,
}

/// A workflow on its way.
pub struct Run<'a> {
    client: Client,
    workflow: &'a Workflow,
    progress: &'a Progress,
    summary: &'a mut Summary,
    made: Made,
}

impl<'a> Run<'a> {
    /// Nothing has happened yet.
    pub fn new(client: Client, workflow: &'a Workflow, progress: &'a Progress, summary: &'a mut Summary) -> Self {
        Self { client, workflow, progress, summary, made: Made::default() }
    }

    /// What has to be taken away.
    pub fn into_made(self) -> Made {
        self.made
    }

    /// Everything up to the fetched files; the summary knows how it went.
    ///
    /// # Errors
    /// What made it impossible to go on. Failed tasks are no error here.
    pub async fn carry_out(&mut self) -> Outcome {
        self.progress.say(&format!("run {}", self.workflow.run));
        let signed = self.make_containers().await?;
        let begin = Instant::now();
        // A start task needs its files; else nodes start while files travel.
        let wants_files = self.workflow.pool.start.as_ref().is_some_and(|start| !start.resources.is_empty());
        if wants_files {
            self.stage(begin).await?;
            self.make_pool(&signed).await?;
        } else {
            self.make_pool(&signed).await?;
            self.stage(begin).await?;
        }
        let begin = Instant::now();
        self.make_job(&signed).await?;
        self.add_tasks(&signed).await?;
        self.wait(begin).await?;
        self.summary.phases.tasks = Some(begin.elapsed());
        self.collect_results().await?;
        self.fetch().await
    }

    async fn make_containers(&mut self) -> Outcome<Signed> {
        let workflow = self.workflow;
        let inputs = workflow.inputs.iter().map(|input| (&input.container, "rl"));
        let outputs = workflow.outputs.iter().map(|output| (&output.container, "racwl"));
        let all: Vec<(&Container, &str)> = inputs.chain(outputs).collect();
        let own = all.iter().filter(|(container, _)| !container.keep);
        self.made.containers = own.map(|(container, _)| container.name.clone()).collect();
        let client = &self.client;
        let urls: Vec<String> = futures::stream::iter(all)
            .map(|(container, permissions)| async move {
                make_container(client, container).await?;
                let request = sas_request(&container.name, "", permissions, specs::validity(workflow));
                Outcome::Ok(client.storage().create_sas(request).await?.into_inner().url)
            })
            .buffered(TRANSFERS)
            .try_collect()
            .await?;
        let (inputs, outputs) = urls.split_at(workflow.inputs.len());
        Ok(Signed { inputs: inputs.to_vec(), outputs: outputs.to_vec() })
    }

    async fn stage(&mut self, begin: Instant) -> Outcome {
        let files: Vec<_> =
            self.workflow.inputs.iter().flat_map(|input| input.files.iter().map(move |file| (input, file))).collect();
        if files.is_empty() {
            return Ok(());
        }
        let total = files.iter().map(|(_, file)| file.size).sum();
        let count = files.len();
        let phase = self.progress.bytes("stage", total);
        let counter = phase.counter();
        let (transfers, about) = (&Transfers::new(self.client.clone()), &About::default());
        futures::stream::iter(files)
            .map(|(input, file)| {
                let counter = counter.clone();
                async move {
                    let place = Place::new(&input.container.name, &file.blob);
                    Outcome::Ok(transfers.upload(&file.local, &place, about, &counter).await?)
                }
            })
            .buffer_unordered(TRANSFERS)
            .try_for_each(|_| async { Ok(()) })
            .await?;
        phase.finish(&format!("{count} files"));
        self.summary.phases.stage = Some(begin.elapsed());
        Ok(())
    }

    async fn make_pool(&mut self, signed: &Signed) -> Outcome {
        let pool = &self.workflow.pool;
        self.made.pool = !pool.keep;
        self.summary.pool_begin = Some(Instant::now());
        let request = CreatePoolRequest {
            request_id: request_id(),
            id: pool.id.clone(),
            spec: Some(specs::pool(pool, signed, self.workflow)),
        };
        match self.client.pools().create_pool(request).await {
            Ok(_) => Ok(()),
            Err(status) if pool.keep && status.code() == tonic::Code::AlreadyExists => {
                self.progress.say(&format!("pool {} exists and is used as it is", pool.id));
                Ok(())
            }
            Err(status) => Err(status.into()),
        }
    }

    async fn make_job(&mut self, signed: &Signed) -> Outcome {
        self.made.job = true;
        let id = self.workflow.job.id.clone();
        let request = CreateJobRequest { request_id: request_id(), id, spec: Some(specs::job(signed, self.workflow)) };
        if let Err(status) = self.client.jobs().create_job(request).await {
            // Somebody else's job of that name is not ours to delete.
            self.made.job = status.code() != tonic::Code::AlreadyExists;
            return Err(status.into());
        }
        Ok(())
    }

    async fn add_tasks(&mut self, signed: &Signed) -> Outcome {
        let workflow = self.workflow;
        let messages: Vec<AddTasksRequest> = workflow
            .tasks
            .chunks(TASKS_PER_MESSAGE)
            .zip(1..)
            .map(|(tasks, sequence)| AddTasksRequest {
                job_id: workflow.job.id.clone(),
                sequence,
                tasks: tasks.iter().map(|task| specs::task(task, signed, workflow)).collect::<Vec<TaskSpec>>(),
            })
            .collect();
        let mut answers = self.client.jobs().add_tasks(futures::stream::iter(messages)).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            if let Some(refused) = answer.failed.into_iter().next() {
                let error = refused.error.unwrap_or_default();
                let message = format!("task {}: {}", refused.task_id, error.message);
                let mut failure = Error::new(Kind::InvalidArgument, error.reason, message);
                for detail in error.details {
                    failure = failure.with_detail(detail.name, detail.value);
                }
                return Err(failure.into());
            }
        }
        Ok(())
    }

    /// Until every task is completed, or waits for one that failed.
    async fn wait(&mut self, begin: Instant) -> Outcome {
        let mut job = Follow::job(&self.client, &self.workflow.job.id, false).into_batches();
        let total = self.workflow.tasks.len();
        let mut nodes = Nodes::new(&self.client, self.workflow, self.progress);
        let mut tasks = self.progress.count("tasks", total as u64);
        let mut tally = JobTally::default();
        let mut blocked = Blocked::of(self.workflow);
        loop {
            tokio::select! {
                events = job.next() => {
                    let Some(events) = events.transpose()? else {
                        return Err(Failure::Other(anyhow::anyhow!("the events of the job ended too early")));
                    };
                    // Nothing for a while: ask, in case events are late.
                    if events.is_empty() && self.count_completed().await? == total {
                        break;
                    }
                    for event in &events {
                        if tally.apply(event)
                            && let Some(Payload::Task(task)) = &event.payload
                        {
                            blocked.finished(&task.task_id, task.result() == ExecutionResult::Success);
                        }
                    }
                    if tally.counts().running + tally.counts().completed() > 0 && self.summary.phases.nodes.is_none() {
                        self.summary.nodes_are_there();
                    }
                }
                Some(events) = nodes.batches.next() => {
                    nodes.apply(&events?);
                    if nodes.tally.usable() > 0 && self.summary.phases.nodes.is_none() {
                        self.summary.nodes_are_there();
                    }
                    if let Err(failure) = nodes.check() {
                        if let Some((node, _)) = nodes.tally.broken().first() {
                            self.summary.problems.extend(self.start_task_lines(node).await);
                        }
                        return Err(failure);
                    }
                    continue;
                }
            }
            let counts = tally.counts();
            let failed = if counts.failed > 0 { format!(", {} failed", counts.failed) } else { String::new() };
            let message = format!(
                "{} of {total} done{failed}, {} running, {} waiting",
                counts.completed(),
                counts.running,
                total.saturating_sub(counts.running + counts.completed())
            );
            tasks.set(counts.completed() as u64, message);
            if counts.completed() >= total {
                break;
            }
            if blocked.count() > 0 && counts.completed() + blocked.count() >= total {
                let problem = format!("{} tasks did not run: they wait for tasks that failed", blocked.count());
                self.summary.problems.push(problem);
                break;
            }
            if let Some(reason) = tally.ended() {
                let reason = if reason.is_empty() { "somebody ended it" } else { reason };
                self.summary.problems.push(format!("the job ended before its tasks were done: {reason}"));
                break;
            }
        }
        nodes.finish();
        tasks.finish(&format!("{total} done in {}", crate::output::text::duration(begin.elapsed())));
        Ok(())
    }

    async fn count_completed(&self) -> Outcome<usize> {
        let request = CountTasksRequest { job_id: self.workflow.job.id.clone() };
        let counts = self.client.jobs().count_tasks(request).await?.into_inner().tasks.unwrap_or_default();
        Ok(usize::try_from(counts.completed).unwrap_or(0))
    }

    async fn collect_results(&mut self) -> Outcome {
        let all = ListArgs { filter: String::new(), limit: u32::MAX };
        let tasks: Vec<Task> = list_tasks(&self.client, &self.workflow.job.id, &all).await?;
        self.summary.tasks = tasks.iter().map(TaskResult::of).collect();
        let failed: Vec<usize> =
            (0..self.summary.tasks.len()).filter(|at| !self.summary.tasks[*at].succeeded).collect();
        for at in failed.into_iter().take(SHOWN_FAILURES) {
            let id = self.summary.tasks[at].id.clone();
            self.summary.tasks[at].stderr = self.first_lines(&id).await;
        }
        Ok(())
    }

    /// Beginning of a task's stderr; empty if there is none to be had, since
    /// the task's failure is what matters.
    async fn first_lines(&self, task: &str) -> Vec<String> {
        let request = ReadTaskFileRequest {
            job_id: self.workflow.job.id.clone(),
            task_id: task.to_owned(),
            path: kiln_node::STDERR_FILE.to_owned(),
            range: Some(kiln_proto::common::v1::ByteRange { start: 0, end: Some(STDERR_BYTES as u64 - 1) }),
            follow: false,
        };
        let mut bytes = Vec::new();
        if let Ok(response) = self.client.task_files().read_task_file(request).await {
            let mut stream = response.into_inner();
            while let Ok(Some(message)) = stream.message().await {
                if let Some(read_task_file_response::Part::Data(data)) = message.part {
                    bytes.extend_from_slice(&data);
                }
            }
        }
        String::from_utf8_lossy(&bytes).lines().take(STDERR_LINES).map(str::to_owned).collect()
    }

    /// What the start task of a node wrote to stderr, if it can be had.
    async fn start_task_lines(&self, node: &str) -> Vec<String> {
        let request = ReadNodeFileRequest {
            pool_id: self.workflow.pool.id.clone(),
            node_id: node.to_owned(),
            path: format!("{}/{}", kiln_node::STARTUP_DIR, kiln_node::STDERR_FILE),
            range: None,
            follow: false,
        };
        let mut bytes = Vec::new();
        if let Ok(response) = self.client.pools().read_node_file(request).await {
            let mut stream = response.into_inner();
            while let Ok(Some(message)) = stream.message().await
                && bytes.len() < STDERR_BYTES
            {
                if let Some(read_node_file_response::Part::Data(data)) = message.part {
                    bytes.extend_from_slice(&data);
                }
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        text.lines().take(STDERR_LINES).map(|line| format!("start task of {node}: {line}")).collect()
    }

    async fn fetch(&mut self) -> Outcome {
        let begin = Instant::now();
        let mut any = false;
        for (position, output) in self.workflow.outputs.iter().enumerate() {
            let expected = Expected::of(self.workflow, position);
            let mut blobs = transfer::list_blobs(&self.client, &output.container.name, "", MAX_BLOBS).await?;
            blobs.retain(|blob| expected.has(&blob.name));
            self.note_missing(position, &blobs);
            if let Some(directory) = &output.fetch {
                any = true;
                let fetched = fetch_into(&self.client, output, directory, &blobs, self.progress).await?;
                self.summary.fetched.push(fetched);
            }
        }
        if any {
            self.summary.phases.fetch = Some(begin.elapsed());
        }
        Ok(())
    }

    /// Files that succeeded tasks should have written one by one and did not.
    fn note_missing(&mut self, output: usize, blobs: &[Blob]) {
        let there: HashSet<&str> = blobs.iter().map(|blob| blob.name.as_str()).collect();
        let good: HashSet<String> =
            self.summary.tasks.iter().filter(|task| task.succeeded).map(|task| task.id.clone()).collect();
        for task in self.workflow.tasks.iter().filter(|task| good.contains(&task.id)) {
            for file in task.outputs.iter().filter(|file| file.output == output) {
                let wanted = file.when != super::model::When::Failure && !specs::is_pattern(&file.files);
                if wanted && !there.contains(file.path.trim_matches('/')) {
                    let message = format!("task {} succeeded but left no {}", task.id, file.files);
                    self.summary.problems.push(message);
                }
            }
        }
    }
}

async fn make_container(client: &Client, container: &Container) -> Outcome {
    match client.storage().create_container(create_request(&container.name)).await {
        Ok(_) => Ok(()),
        Err(status) if container.keep && status.code() == tonic::Code::AlreadyExists => Ok(()),
        Err(status) => Err(status.into()),
    }
}

async fn fetch_into(
    client: &Client,
    output: &Output,
    directory: &std::path::Path,
    blobs: &[Blob],
    progress: &Progress,
) -> Outcome<Fetched> {
    tokio::fs::create_dir_all(directory).await?;
    let bytes = blobs.iter().map(|blob| blob.content_length).sum();
    let phase: Phase = progress.bytes("fetch", bytes);
    let counter = phase.counter();
    let transfers = &Transfers::new(client.clone());
    futures::stream::iter(blobs)
        .map(|blob| {
            let counter = counter.clone();
            async move {
                let file = transfer::local_path(directory, &blob.name)?;
                let (base, made) = (directory.to_owned(), file.clone());
                tokio::task::spawn_blocking(move || make_parents(&base, &made))
                    .await
                    .map_err(std::io::Error::other)??;
                let place = Place::new(&output.container.name, &blob.name);
                Outcome::Ok(transfers.download(&place, &file, &counter).await?)
            }
        })
        .buffer_unordered(TRANSFERS)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    phase.finish(&format!("{} files to {}", blobs.len(), directory.display()));
    Ok(Fetched { output: output.name.clone(), directory: directory.to_owned(), files: blobs.len(), bytes })
}

/// The nodes of the run as they come.
struct Nodes<'a> {
    /// Ends when the pool does; the job's events go on.
    batches: BoxStream<'static, Outcome<Vec<Event>>>,
    tally: PoolTally,
    wanted: usize,
    phase: Option<Phase>,
    workflow: &'a Workflow,
}

impl<'a> Nodes<'a> {
    fn new(client: &Client, workflow: &'a Workflow, progress: &Progress) -> Self {
        let wanted = usize::try_from(workflow.pool.nodes).unwrap_or(1);
        let phase = Some(progress.count("nodes", wanted as u64));
        let batches = Follow::pool(client, &workflow.pool.id).into_batches();
        Self { batches, tally: PoolTally::default(), wanted, phase, workflow }
    }

    fn apply(&mut self, events: &[Event]) {
        for event in events {
            self.tally.apply(event);
        }
        let usable = self.tally.usable();
        if let Some(phase) = &mut self.phase {
            phase.set(usable as u64, format!("{usable} of {} ready", self.wanted));
        }
        if usable >= self.wanted
            && let Some(phase) = self.phase.take()
        {
            phase.finish(&format!("{usable} of {} ready", self.wanted));
        }
    }

    /// An error if no node will ever run a task.
    fn check(&self) -> Outcome {
        let broken = self.tally.broken();
        let hopeless = !broken.is_empty() && broken.len() == self.tally.total() && broken.len() >= self.wanted;
        if hopeless && !self.workflow.pool.keep {
            let list: Vec<String> = broken
                .iter()
                .map(|(id, state)| format!("{id} is {}", crate::output::text::word(state.as_str_name(), "NODE_STATE")))
                .collect();
            return Err(Failure::Other(anyhow::anyhow!("no node can run tasks: {}", list.join(", "))));
        }
        if self.tally.is_gone() {
            return Err(Failure::Other(anyhow::anyhow!("pool {} was deleted", self.workflow.pool.id)));
        }
        Ok(())
    }

    fn finish(&mut self) {
        if let Some(phase) = self.phase.take() {
            phase.finish(&format!("{} of {} ready", self.tally.usable(), self.wanted));
        }
    }
}
