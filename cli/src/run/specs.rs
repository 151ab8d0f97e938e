//! From a checked workflow to the messages of the API.

use std::collections::HashMap;
use std::time::Duration;

use kiln_proto::common::v1::{
    EnvironmentSetting, OutputFile, OutputFileUploadCondition, ResourceFile, resource_file::Source,
};
use kiln_proto::job::v1::{
    JobConstraints, JobPreparationTask, JobReleaseTask, JobSpec, TaskConstraints, TaskDependencies, TaskSpec,
};
use kiln_proto::pool::v1::{NodeFillType, PoolSpec, StartTask};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::model::{NodeTaskPart, PoolPart, Resource, TaskPart, When, Workflow};

/// How long signed URLs are valid if the run has no limit.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);

/// What of a blob's name cannot stand in a URL's path as it is.
const PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'[')
    .add(b']')
    .add(b'\\')
    .add(b'^')
    .add(b'|')
    .add(b'+')
    .add(b'&')
    .add(b'=');

/// Signed URLs of the containers of a run, in the order of the workflow.
#[derive(Debug, Clone, Default)]
pub struct Signed {
    /// Of inputs: reading and listing.
    pub inputs: Vec<String>,
    /// Of outputs: writing.
    pub outputs: Vec<String>,
}

/// How long signed URLs have to be valid.
pub fn validity(workflow: &Workflow) -> Duration {
    workflow.timeout.map_or(LONGEST, |limit| limit + Duration::from_secs(3600))
}

/// The pool to make.
pub fn pool(pool: &PoolPart, signed: &Signed, workflow: &Workflow) -> PoolSpec {
    let fill = if pool.pack { NodeFillType::Pack } else { NodeFillType::Spread };
    PoolSpec {
        vm_size: pool.vm_size.clone(),
        target_dedicated_nodes: pool.nodes,
        task_slots_per_node: pool.slots,
        node_fill_type: fill.into(),
        application_packages: pool.packages.clone(),
        start_task: pool.start.as_ref().map(|start| StartTask {
            command_line: start.command_line.clone(),
            resource_files: start.resources.iter().map(|resource| resource_file(resource, signed, workflow)).collect(),
            environment: environment(&start.env),
            max_task_retry_count: start.retries,
            wait_for_success: Some(start.wait),
            ..StartTask::default()
        }),
        ..PoolSpec::default()
    }
}

/// The job to make.
pub fn job(signed: &Signed, workflow: &Workflow) -> JobSpec {
    let job = &workflow.job;
    JobSpec {
        pool_id: workflow.pool.id.clone(),
        priority: job.priority,
        max_parallel_tasks: job.max_parallel,
        constraints: Some(JobConstraints {
            max_wall_clock_time: job.timeout.map(kiln_proto::time::duration),
            max_task_retry_count: job.retries,
        }),
        common_environment: environment(&job.env),
        uses_task_dependencies: workflow.tasks.iter().any(|task| !task.depends_on.is_empty()),
        job_preparation_task: job.prepare.as_ref().map(|prepare| JobPreparationTask {
            task: Some(node_task("jobpreparation", prepare, signed, workflow)),
            wait_for_success: Some(prepare.wait),
            rerun_on_node_reboot_after_success: None,
        }),
        job_release_task: job
            .release
            .as_ref()
            .map(|release| JobReleaseTask { task: Some(node_task("jobrelease", release, signed, workflow)) }),
        ..JobSpec::default()
    }
}

fn node_task(id: &str, part: &NodeTaskPart, signed: &Signed, workflow: &Workflow) -> TaskSpec {
    TaskSpec {
        id: id.to_owned(),
        command_line: part.command_line.clone(),
        resource_files: part.resources.iter().map(|resource| resource_file(resource, signed, workflow)).collect(),
        environment: environment(&part.env),
        constraints: Some(TaskConstraints {
            max_wall_clock_time: part.timeout.map(kiln_proto::time::duration),
            max_task_retry_count: part.retries,
            retention_time: None,
        }),
        ..TaskSpec::default()
    }
}

/// A task to add.
pub fn task(task: &TaskPart, signed: &Signed, workflow: &Workflow) -> TaskSpec {
    TaskSpec {
        id: task.id.clone(),
        command_line: task.command_line.clone(),
        resource_files: task.resources.iter().map(|resource| resource_file(resource, signed, workflow)).collect(),
        output_files: task
            .outputs
            .iter()
            .map(|output| OutputFile {
                file_pattern: output.files.clone(),
                path: output.path.clone(),
                container_url: signed.outputs[output.output].clone(),
                upload_condition: match output.when {
                    When::Success => OutputFileUploadCondition::TaskSuccess,
                    When::Failure => OutputFileUploadCondition::TaskFailure,
                    When::Always => OutputFileUploadCondition::TaskCompletion,
                }
                .into(),
                upload_headers: Vec::new(),
            })
            .collect(),
        environment: environment(&task.env),
        application_packages: task.packages.clone(),
        required_slots: task.slots,
        resources: task.needs,
        depends_on: (!task.depends_on.is_empty()).then(|| TaskDependencies {
            task_ids: task.depends_on.iter().map(|parent| workflow.tasks[*parent].id.clone()).collect(),
            task_id_ranges: Vec::new(),
        }),
        constraints: Some(TaskConstraints {
            max_wall_clock_time: task.timeout.map(kiln_proto::time::duration),
            max_task_retry_count: task.retries,
            retention_time: None,
        }),
        ..TaskSpec::default()
    }
}

fn environment(pairs: &[(String, String)]) -> Vec<EnvironmentSetting> {
    pairs.iter().map(|(name, value)| EnvironmentSetting { name: name.clone(), value: value.clone() }).collect()
}

fn resource_file(resource: &Resource, signed: &Signed, workflow: &Workflow) -> ResourceFile {
    match resource {
        Resource::Input { input, path } => ResourceFile {
            source: Some(Source::StorageContainerUrl(signed.inputs[*input].clone())),
            file_path: path.clone(),
            ..ResourceFile::default()
        },
        Resource::File { input, file } => {
            let blob = &workflow.inputs[*input].files[*file].blob;
            ResourceFile {
                source: Some(Source::HttpUrl(blob_url(&signed.inputs[*input], blob))),
                file_path: blob.clone(),
                ..ResourceFile::default()
            }
        }
        Resource::Url { url, path, mode } => ResourceFile {
            source: Some(Source::HttpUrl(url.clone())),
            file_path: path.clone(),
            file_mode: mode.clone(),
            ..ResourceFile::default()
        },
        Resource::Container { container, prefix, path } => ResourceFile {
            source: Some(Source::AutoStorageContainerName(container.clone())),
            blob_prefix: prefix.clone(),
            file_path: path.clone(),
            ..ResourceFile::default()
        },
    }
}

/// URL of a blob, from the signed URL of its container.
fn blob_url(container_url: &str, blob: &str) -> String {
    let (base, query) = container_url.split_once('?').unwrap_or((container_url, ""));
    format!("{base}/{}?{query}", utf8_percent_encode(blob, PATH))
}

/// Which blobs of an output belong to this run: a container of the user's may
/// hold others.
#[derive(Debug, Default)]
pub struct Expected {
    exact: HashMap<String, String>,
    prefixes: HashMap<String, String>,
}

impl Expected {
    /// What the tasks of `workflow` write into output number `output`.
    pub fn of(workflow: &Workflow, output: usize) -> Self {
        let mut expected = Self::default();
        for task in &workflow.tasks {
            for file in task.outputs.iter().filter(|file| file.output == output) {
                let map = if is_pattern(&file.files) { &mut expected.prefixes } else { &mut expected.exact };
                map.insert(file.path.trim_matches('/').to_owned(), task.id.clone());
            }
        }
        expected
    }

    /// Whether a blob of this name belongs to the run.
    pub fn has(&self, blob: &str) -> bool {
        self.exact.contains_key(blob)
            || self.prefixes.contains_key("")
            || blob.match_indices('/').any(|(at, _)| self.prefixes.contains_key(&blob[..at]))
    }
}

/// Whether a file pattern may stand for several files.
pub fn is_pattern(files: &str) -> bool {
    files.contains(['*', '?', '['])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blob_names_are_escaped_in_urls() {
        assert_eq!(blob_url("http://h/a/c?sig=x%3D", "d/ä b#1.txt"), "http://h/a/c/d/%C3%A4%20b%231.txt?sig=x%3D");
    }

    #[test]
    fn only_what_tasks_were_to_write_is_expected() {
        let mut expected = Expected::default();
        expected.exact.insert("a.txt".to_owned(), "t".to_owned());
        expected.prefixes.insert("t1/out".to_owned(), "t".to_owned());
        for (blob, has) in
            [("a.txt", true), ("b.txt", false), ("t1/out/x/y", true), ("t1/outer/x", false), ("t1", false)]
        {
            assert_eq!(expected.has(blob), has, "{blob}");
        }
    }
}
