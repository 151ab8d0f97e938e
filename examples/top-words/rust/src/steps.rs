//! One call of the API, or a few that belong together, per step.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use kiln_client::Client;
use kiln_error::{Error, Kind};
use kiln_proto::common::v1::{OutputFile, OutputFileUploadCondition, ResourceFile, resource_file::Source};
use kiln_proto::events::v1::event::Payload;
use kiln_proto::gateway::v1::{ReadTaskFileRequest, read_task_file_response};
use kiln_proto::job::v1::{
    AddTasksRequest, CreateJobRequest, DeleteJobRequest, GetJobRequest, JobSpec, JobState, OnAllTasksComplete,
    TaskConstraints, TaskSpec, UpdateJobRequest,
};
use kiln_proto::monitor::v1::WatchJobRequest;
use kiln_proto::pool::v1::{CreatePoolRequest, DeletePoolRequest, GetPoolRequest, PoolSpec};
use kiln_proto::storage::v1::{
    CreateContainerRequest, CreateSasRequest, DeleteContainerRequest, DownloadRequest, UploadHeader, UploadRequest,
    download_response, upload_request,
};
use uuid::Uuid;

/// How long the job may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Bytes per message of an upload.
const PIECE: usize = 256 * 1024;

/// One text of the example.
pub struct Text {
    /// File name without `.txt`; also the id of the task.
    pub stem: String,
    /// What is counted.
    pub content: String,
}

impl Text {
    /// The texts in `directory`, by name.
    pub fn read_all(directory: &Path) -> anyhow::Result<Vec<Self>> {
        let mut texts = Vec::new();
        for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "txt")
                && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
            {
                texts.push(Self { stem: stem.to_owned(), content: std::fs::read_to_string(&path)? });
            }
        }
        texts.sort_by(|a, b| a.stem.cmp(&b.stem));
        Ok(texts)
    }

    /// Name of the file and of its blob.
    pub fn file_name(&self) -> String {
        format!("{}.txt", self.stem)
    }
}

/// One run of the example: names that nobody else uses, and the steps.
pub struct Run {
    client: Client,
    name: String,
    /// How many words per text.
    pub top: usize,
}

impl Run {
    /// A run with a new name.
    pub fn new(client: Client, top: usize) -> Self {
        Self { client, name: format!("top-words-{}", &Uuid::new_v4().simple().to_string()[..8]), top }
    }

    fn input(&self) -> String {
        format!("{}-input", self.name)
    }

    fn output(&self) -> String {
        format!("{}-output", self.name)
    }

    /// One container for inputs, one for results.
    pub async fn make_containers(&self) -> anyhow::Result<()> {
        for name in [self.input(), self.output()] {
            let request = CreateContainerRequest { request_id: request_id(), name, ..Default::default() };
            self.client.storage().create_container(request).await.map_err(Error::from)?;
        }
        Ok(())
    }

    /// Writes one blob into the input container: a header, then the bytes.
    pub async fn upload(&self, name: &str, content: Vec<u8>) -> anyhow::Result<()> {
        let header = UploadHeader {
            request_id: request_id(),
            container: self.input(),
            name: name.to_owned(),
            content_type: "text/plain".to_owned(),
            ..Default::default()
        };
        let mut parts = vec![upload_request::Part::Header(header)];
        parts.extend(content.chunks(PIECE).map(|piece| upload_request::Part::Data(piece.to_vec().into())));
        let messages = parts.into_iter().map(|part| UploadRequest { part: Some(part) });
        self.client.storage().upload(tokio_stream::iter(messages)).await.map_err(Error::from)?;
        Ok(())
    }

    /// A pool of `nodes` with two slots each.
    pub async fn make_pool(&self, nodes: i32) -> anyhow::Result<()> {
        let spec = PoolSpec {
            vm_size: "local".to_owned(),
            target_dedicated_nodes: nodes,
            task_slots_per_node: 2,
            ..Default::default()
        };
        let request = CreatePoolRequest { request_id: request_id(), id: self.name.clone(), spec: Some(spec) };
        self.client.pools().create_pool(request).await.map_err(Error::from)?;
        Ok(())
    }

    /// A job on the pool.
    pub async fn make_job(&self) -> anyhow::Result<()> {
        let spec = JobSpec { pool_id: self.name.clone(), ..Default::default() };
        let request = CreateJobRequest { request_id: request_id(), id: self.name.clone(), spec: Some(spec) };
        self.client.jobs().create_job(request).await.map_err(Error::from)?;
        Ok(())
    }

    /// One task per text, as a stream; then the job may end when its tasks have.
    pub async fn add_tasks(&self, texts: &[Text]) -> anyhow::Result<()> {
        let output_url = self.sas(&self.output(), "w").await?;
        let tasks = texts.iter().map(|text| self.task(text, &output_url)).collect();
        let request = AddTasksRequest { job_id: self.name.clone(), sequence: 1, tasks };
        let mut answers =
            self.client.jobs().add_tasks(tokio_stream::iter([request])).await.map_err(Error::from)?.into_inner();
        while let Some(answer) = answers.message().await.map_err(Error::from)? {
            if let Some(refused) = answer.failed.first() {
                bail!("task {} was refused: {:?}", refused.task_id, refused.error);
            }
        }
        let request = UpdateJobRequest {
            request_id: request_id(),
            id: self.name.clone(),
            on_all_tasks_complete: OnAllTasksComplete::TerminateJob.into(),
            ..Default::default()
        };
        self.client.jobs().update_job(request).await.map_err(Error::from)?;
        Ok(())
    }

    fn task(&self, text: &Text, output_url: &str) -> TaskSpec {
        let from_input = |name: &str| ResourceFile {
            source: Some(Source::AutoStorageContainerName(self.input())),
            blob_prefix: name.to_owned(),
            ..Default::default()
        };
        TaskSpec {
            id: text.stem.clone(),
            command_line: format!("python3 top_words.py --top {} {}", self.top, text.file_name()),
            resource_files: vec![from_input("top_words.py"), from_input(&text.file_name())],
            output_files: vec![OutputFile {
                file_pattern: "../stdout.txt".to_owned(),
                path: text.file_name(),
                container_url: output_url.to_owned(),
                upload_condition: OutputFileUploadCondition::TaskSuccess.into(),
                ..Default::default()
            }],
            constraints: Some(TaskConstraints {
                max_wall_clock_time: Some(prost_types::Duration { seconds: 120, nanos: 0 }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    async fn sas(&self, container: &str, permissions: &str) -> anyhow::Result<String> {
        let expires = std::time::SystemTime::now() + Duration::from_secs(2 * 3600);
        let request = CreateSasRequest {
            container: container.to_owned(),
            permissions: permissions.to_owned(),
            expires: Some(expires.into()),
            ..Default::default()
        };
        Ok(self.client.storage().create_sas(request).await.map_err(Error::from)?.into_inner().url)
    }

    /// Prints what happens until the job has ended.
    pub async fn watch_job(&self) -> anyhow::Result<()> {
        tokio::time::timeout(PATIENCE, self.follow_events()).await.context("the job did not end in time")?
    }

    async fn follow_events(&self) -> anyhow::Result<()> {
        let request = WatchJobRequest { job_id: self.name.clone(), until_completed: true, ..Default::default() };
        let mut events = self.client.monitor().watch_job(request).await.map_err(Error::from)?.into_inner();
        while let Some(message) = events.message().await.map_err(Error::from)? {
            for event in message.events.into_iter().filter_map(|logged| logged.event) {
                match event.payload {
                    Some(Payload::Task(task)) if event.r#type == "job.task.finished" && task.exit_code != Some(0) => {
                        bail!("task {} failed: {} (exit code {:?})", task.task_id, task.reason, task.exit_code)
                    }
                    Some(Payload::Task(task)) => println!("{} {} {}", event.r#type, task.task_id, task.node_id),
                    Some(Payload::Job(job)) if job.new_state() == JobState::Completed => return Ok(()),
                    _ => {}
                }
            }
        }
        bail!("the watch ended before the job")
    }

    /// A file of a task, read from its node.
    pub async fn task_file(&self, task_id: &str, path: &str) -> anyhow::Result<String> {
        let request = ReadTaskFileRequest {
            job_id: self.name.clone(),
            task_id: task_id.to_owned(),
            path: path.to_owned(),
            ..Default::default()
        };
        let mut parts = self.client.task_files().read_task_file(request).await.map_err(Error::from)?.into_inner();
        let mut content = Vec::new();
        while let Some(part) = parts.message().await.map_err(Error::from)? {
            if let Some(read_task_file_response::Part::Data(data)) = part.part {
                content.extend_from_slice(&data);
            }
        }
        Ok(String::from_utf8(content)?)
    }

    /// A result from the output container.
    pub async fn download(&self, name: &str) -> anyhow::Result<String> {
        let request = DownloadRequest { container: self.output(), name: name.to_owned(), ..Default::default() };
        let mut parts = self.client.storage().download(request).await.map_err(Error::from)?.into_inner();
        let mut content = Vec::new();
        while let Some(part) = parts.message().await.map_err(Error::from)? {
            if let Some(download_response::Part::Data(data)) = part.part {
                content.extend_from_slice(&data);
            }
        }
        Ok(String::from_utf8(content)?)
    }

    /// Deletes what this run made and waits until it is gone.
    pub async fn clean_up(&self) -> anyhow::Result<()> {
        let id = self.name.clone();
        let job = DeleteJobRequest { request_id: request_id(), id: id.clone(), precondition: None };
        unless_absent(self.client.jobs().delete_job(job).await)?;
        let pool = DeletePoolRequest { request_id: request_id(), id: id.clone(), precondition: None };
        unless_absent(self.client.pools().delete_pool(pool).await)?;
        for name in [self.input(), self.output()] {
            let container = DeleteContainerRequest { request_id: request_id(), name };
            unless_absent(self.client.storage().delete_container(container).await)?;
        }
        loop {
            let job = GetJobRequest { id: id.clone(), precondition: None };
            let pool = GetPoolRequest { id: id.clone(), precondition: None };
            let job_is_there = unless_absent(self.client.jobs().get_job(job).await)?;
            let pool_is_there = unless_absent(self.client.pools().get_pool(pool).await)?;
            if !job_is_there && !pool_is_there {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A new id for a mutation: the same call may be sent again with it.
fn request_id() -> String {
    Uuid::new_v4().to_string()
}

/// Whether the thing is there; any other error stays one.
fn unless_absent<T>(answer: Result<tonic::Response<T>, tonic::Status>) -> Result<bool, Error> {
    match answer.map_err(Error::from) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == Kind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
