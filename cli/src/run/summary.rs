//! What a run came to.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_proto::common::v1::ExecutionResult;
use kiln_proto::job::v1::Task;
use serde_json::{Value, json};

use super::model::Workflow;
use crate::failure::Failure;
use crate::output::{Format, json, table, text};

/// Rows of the table of failed tasks.
const MAX_ROWS: usize = 50;

/// How long each part took.
#[derive(Debug, Default, Clone, Copy)]
pub struct Phases {
    /// Start of the embedded server.
    pub server: Option<Duration>,
    /// Files to containers.
    pub stage: Option<Duration>,
    /// From the pool's creation to its first node.
    pub nodes: Option<Duration>,
    /// From the job's creation to its last task.
    pub tasks: Option<Duration>,
    /// Files from containers.
    pub fetch: Option<Duration>,
    /// Taking everything away.
    pub clean_up: Option<Duration>,
    /// All of it.
    pub total: Option<Duration>,
}

impl Phases {
    fn named(&self) -> [(&'static str, Option<Duration>); 7] {
        [
            ("server", self.server),
            ("stage", self.stage),
            ("nodes", self.nodes),
            ("tasks", self.tasks),
            ("fetch", self.fetch),
            ("clean_up", self.clean_up),
            ("total", self.total),
        ]
    }
}

/// How one task ended.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskResult {
    /// Its id.
    pub id: String,
    /// It completed with success.
    pub succeeded: bool,
    /// State in words.
    pub state: String,
    /// Exit code, if a process ran.
    pub exit_code: Option<i32>,
    /// Failure code and message.
    pub failure: Option<(String, String)>,
    /// Where it ran.
    pub node: String,
    /// Time of the last run.
    pub run_time: Option<Duration>,
    /// Retries.
    pub retries: i32,
    /// Beginning of stderr, for some of the failed tasks.
    pub stderr: Vec<String>,
}

impl TaskResult {
    /// From the task of the API.
    pub fn of(task: &Task) -> Self {
        let execution = task.execution.clone().unwrap_or_default();
        let micros = |time: Option<&prost_types::Timestamp>| time.map(kiln_proto::time::micros);
        let run_time = match (micros(execution.start_time.as_ref()), micros(execution.end_time.as_ref())) {
            (Some(start), Some(end)) => Some(Duration::from_micros(u64::try_from(end - start).unwrap_or(0))),
            _ => None,
        };
        Self {
            id: task.spec.as_ref().map(|spec| spec.id.clone()).unwrap_or_default(),
            succeeded: execution.result() == ExecutionResult::Success,
            state: text::word(task.state().as_str_name(), "TASK_STATE"),
            exit_code: execution.exit_code,
            node: task.node.as_ref().map(|node| node.node_id.clone()).unwrap_or_default(),
            run_time,
            retries: execution.retry_count,
            failure: execution.failure.map(|failure| (failure.code, failure.message)),
            stderr: Vec::new(),
        }
    }

    fn json(&self) -> Value {
        json!({
            "id": self.id,
            "succeeded": self.succeeded,
            "state": self.state,
            "exitCode": self.exit_code,
            "failure": self.failure.as_ref().map(|(code, message)| json!({"code": code, "message": message})),
            "node": self.node,
            "seconds": self.run_time.map(|time| time.as_secs_f64()),
            "retries": self.retries,
            "stderr": (!self.stderr.is_empty()).then(|| self.stderr.join("\n")),
        })
    }
}

/// Files that were brought back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Output of the workflow.
    pub output: String,
    /// Where they are.
    pub directory: PathBuf,
    /// How many.
    pub files: usize,
    /// How large together.
    pub bytes: u64,
}

/// What a run came to.
#[derive(Debug)]
pub struct Summary {
    run: String,
    job: String,
    pool: String,
    expected: usize,
    /// How long each part took.
    pub phases: Phases,
    /// When the pool was asked for.
    pub pool_begin: Option<Instant>,
    /// How the tasks ended.
    pub tasks: Vec<TaskResult>,
    /// What was brought back.
    pub fetched: Vec<Fetched>,
    /// What went wrong beside failed tasks.
    pub problems: Vec<String>,
}

impl Summary {
    /// Nothing has happened yet.
    pub fn new(workflow: &Workflow) -> Self {
        Self {
            run: workflow.run.clone(),
            job: workflow.job.id.clone(),
            pool: workflow.pool.id.clone(),
            expected: workflow.tasks.len(),
            phases: Phases::default(),
            pool_begin: None,
            tasks: Vec::new(),
            fetched: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// The first node can run tasks.
    pub fn nodes_are_there(&mut self) {
        self.phases.nodes = self.pool_begin.map(|begin| begin.elapsed());
    }

    /// All tasks succeeded and nothing else went wrong.
    pub fn is_good(&self) -> bool {
        self.problems.is_empty() && self.tasks.len() == self.expected && self.tasks.iter().all(|task| task.succeeded)
    }

    fn succeeded(&self) -> usize {
        self.tasks.iter().filter(|task| task.succeeded).count()
    }

    /// Shows it. `failure` is what ended the run early; it is reported by the caller.
    pub fn print(&self, format: Format, failure: Option<&Failure>) {
        match format {
            Format::Json => crate::output::line(format_args!("{}", json::pretty(&self.json(failure)))),
            Format::Table => crate::output::text_block(format_args!("{}", self.text(failure.is_some()))),
        }
    }

    fn json(&self, failure: Option<&Failure>) -> Value {
        let phases: serde_json::Map<String, Value> = self
            .phases
            .named()
            .into_iter()
            .filter_map(|(name, time)| Some((name.to_owned(), json!(time?.as_secs_f64()))))
            .collect();
        let fetched: Vec<Value> = self
            .fetched
            .iter()
            .map(|fetched| {
                json!({
                    "output": fetched.output,
                    "directory": fetched.directory.display().to_string(),
                    "files": fetched.files,
                    "bytes": fetched.bytes,
                })
            })
            .collect();
        json!({
            "run": self.run,
            "job": self.job,
            "pool": self.pool,
            "succeeded": failure.is_none() && self.is_good(),
            "taskCount": self.expected,
            "tasksSucceeded": self.succeeded(),
            "phases": phases,
            "tasks": self.tasks.iter().map(TaskResult::json).collect::<Vec<_>>(),
            "fetched": fetched,
            "problems": self.problems,
            "error": failure.map(ToString::to_string),
        })
    }

    fn text(&self, cut_short: bool) -> String {
        let mut out = String::new();
        let failed: Vec<&TaskResult> = self.tasks.iter().filter(|task| !task.succeeded).collect();
        if !failed.is_empty() {
            let rows = failed.iter().take(MAX_ROWS).map(|task| {
                vec![
                    task.id.clone(),
                    task.exit_code.map(|code| code.to_string()).unwrap_or_default(),
                    task.failure
                        .as_ref()
                        .map_or_else(|| task.state.clone(), |(code, message)| format!("{code}: {message}")),
                    task.run_time.map(text::duration).unwrap_or_default(),
                    task.node.clone(),
                ]
            });
            out.push_str(&table::table(&["failed task", "exit", "why", "time", "node"], rows));
            if failed.len() > MAX_ROWS {
                out.push_str(&format!("... and {} more\n", failed.len() - MAX_ROWS));
            }
            for task in failed.iter().filter(|task| !task.stderr.is_empty()) {
                out.push_str(&format!("\nstderr of {}:\n", task.id));
                for line in &task.stderr {
                    out.push_str(&format!("  {line}\n"));
                }
            }
            out.push('\n');
        }
        for problem in &self.problems {
            out.push_str(&format!("problem: {problem}\n"));
        }
        for fetched in &self.fetched {
            let size = text::bytes(fetched.bytes);
            out.push_str(&format!("fetched {} files ({size}) to {}\n", fetched.files, fetched.directory.display()));
        }
        let times: Vec<String> = self
            .phases
            .named()
            .into_iter()
            .filter_map(|(name, time)| Some(format!("{} {}", name.replace('_', "-"), text::duration(time?))))
            .collect();
        let end = if cut_short { " (cut short)" } else { "" };
        out.push_str(&format!("{}: {} of {} tasks succeeded{end}\n", self.run, self.succeeded(), self.expected));
        out.push_str(&format!("{}\n", times.join(", ")));
        out
    }
}

/// What `--check` shows.
pub fn plan(workflow: &Workflow) -> String {
    let pool = &workflow.pool;
    let mut out = format!(
        "{}: {} tasks in job {} on pool {} ({} nodes, {} slots each)\n",
        workflow.run,
        workflow.tasks.len(),
        workflow.job.id,
        pool.id,
        pool.nodes,
        pool.slots
    );
    for input in &workflow.inputs {
        let size = text::bytes(input.files.iter().map(|file| file.size).sum());
        out.push_str(&format!("  stage {} files ({size}) to {}\n", input.files.len(), input.container.name));
    }
    for task in workflow.tasks.iter().take(MAX_ROWS) {
        out.push_str(&format!("  task {}: {}\n", task.id, task.command_line));
    }
    if workflow.tasks.len() > MAX_ROWS {
        out.push_str(&format!("  ... and {} more\n", workflow.tasks.len() - MAX_ROWS));
    }
    for output in workflow.outputs.iter() {
        let to = output.fetch.as_ref().map(|path| format!(" and fetch to {}", path.display())).unwrap_or_default();
        out.push_str(&format!("  collect {} in {}{to}\n", output.name, output.container.name));
    }
    out
}

/// Where `--keep` left things.
pub fn tell_kept(format: Format, workflow: &Workflow, data: Option<&Path>, embedded: bool) {
    if format == Format::Json {
        return;
    }
    match data {
        Some(data) => crate::output::line(format_args!("kept in {}; look with: kiln up --data {0}", data.display())),
        None if embedded => {}
        None => crate::output::line(format_args!("kept: job {}, pool {}", workflow.job.id, workflow.pool.id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(id: &str, succeeded: bool) -> TaskResult {
        TaskResult {
            id: id.to_owned(),
            succeeded,
            state: "completed".to_owned(),
            exit_code: Some(if succeeded { 0 } else { 3 }),
            failure: (!succeeded).then(|| ("FailureExitCode".to_owned(), "exit code 3".to_owned())),
            node: "n1".to_owned(),
            run_time: Some(Duration::from_millis(12)),
            retries: 0,
            stderr: if succeeded { Vec::new() } else { vec!["boom".to_owned()] },
        }
    }

    fn summary() -> Summary {
        Summary {
            run: "r".to_owned(),
            job: "r".to_owned(),
            pool: "r".to_owned(),
            expected: 2,
            phases: Phases { total: Some(Duration::from_millis(1500)), ..Phases::default() },
            pool_begin: None,
            tasks: vec![result("a", true), result("b", false)],
            fetched: vec![Fetched { output: "o".to_owned(), directory: "out".into(), files: 1, bytes: 10 }],
            problems: Vec::new(),
        }
    }

    #[test]
    fn people_see_what_failed_and_why() {
        insta::assert_snapshot!(summary().text(false), @r"
        FAILED TASK  EXIT  WHY                           TIME   NODE
        b            3     FailureExitCode: exit code 3  12 ms  n1

        stderr of b:
          boom

        fetched 1 files (10 B) to out
        r: 1 of 2 tasks succeeded
        total 1.50 s
        ");
    }

    #[test]
    fn programs_get_one_object() {
        let value = summary().json(None);
        assert_eq!(value["succeeded"], false);
        assert_eq!(value["tasksSucceeded"], 1);
        assert_eq!(value["phases"]["total"], 1.5);
        assert_eq!(value["tasks"][1]["exitCode"], 3);
        assert_eq!(value["tasks"][1]["stderr"], "boom");
    }

    #[test]
    fn a_run_is_good_only_if_every_task_is_known_to_have_succeeded() {
        let mut summary = summary();
        assert!(!summary.is_good());
        summary.tasks.pop();
        assert!(!summary.is_good());
        summary.tasks.push(result("b", true));
        assert!(summary.is_good());
        summary.problems.push("x".to_owned());
        assert!(!summary.is_good());
    }
}
