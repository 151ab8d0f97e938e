//! Clients that add and delete tasks while everything breaks, ask again until they are answered, and write down what they
//! were told.

use std::time::{Duration, Instant};

use kiln_chaos_check::history::{Said, TaskName};
use kiln_client::Client;
use kiln_error::{Error, Kind};
use kiln_proto::job::v1::{AddTaskCollectionRequest, DeleteTaskRequest, TaskSpec};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::work::{request_id, shell_task};

/// Tasks of one request.
const BATCH: usize = 20;
/// One of so many tasks is deleted again.
const DELETED: usize = 40;
/// Pause before something is asked again.
const AGAIN: Duration = Duration::from_millis(100);
/// Nobody waits longer for one answer.
const ANSWER: Duration = Duration::from_secs(20);

/// A client at work.
#[derive(Debug)]
pub struct Load {
    work: JoinHandle<Vec<Said>>,
    giving_up: CancellationToken,
}

/// Begins to add `tasks` tasks over the time `span`.
pub fn start(client: &Client, job: &str, tasks: usize, seed: u64, span: Duration) -> Load {
    let giving_up = CancellationToken::new();
    let adder = Adder {
        client: client.clone(),
        job: job.to_owned(),
        random: StdRng::seed_from_u64(seed.wrapping_add(1)),
        giving_up: giving_up.clone(),
        said: Vec::new(),
    };
    Load { work: kiln_telemetry::spawn(adder.run(tasks, span)), giving_up }
}

impl Load {
    /// What was acknowledged and what was not, when all is asked for; after `patience` the rest is given up.
    pub async fn finish(self, patience: Duration) -> Vec<Said> {
        let giving_up = self.giving_up.clone();
        let timer = kiln_telemetry::spawn(async move {
            tokio::time::sleep(patience).await;
            giving_up.cancel();
        });
        let said = self.work.await.unwrap();
        timer.abort();
        said
    }
}

struct Adder {
    client: Client,
    job: String,
    random: StdRng,
    giving_up: CancellationToken,
    said: Vec<Said>,
}

impl Adder {
    async fn run(mut self, tasks: usize, span: Duration) -> Vec<Said> {
        let begin = Instant::now();
        let batches = tasks.div_ceil(BATCH);
        for (number, first) in (0..tasks).step_by(BATCH).enumerate() {
            let due = span.mul_f64(number as f64 / batches as f64);
            tokio::time::sleep(due.saturating_sub(begin.elapsed())).await;
            let last = tasks.min(first + BATCH);
            let specs: Vec<_> = (first..last).map(|number| self.task(number)).collect();
            self.add(specs).await;
            if first % DELETED < BATCH {
                let victim = self.random.random_range(0..last);
                self.delete(&id(victim)).await;
            }
        }
        self.said
    }

    fn task(&mut self, number: usize) -> (TaskSpec, i32) {
        // Some long ones, so that there is always something to lose; a few are longer than a lease, since only they meet
        // its end.
        let range = match number {
            number if number.is_multiple_of(16) => 6000..9000,
            number if number.is_multiple_of(4) => 0..3000,
            _ => 0..200,
        };
        let (millis, code) = (self.random.random_range(range), if number % 11 == 3 { 3 } else { 0 });
        let script = format!("sleep {}.{:03}; exit {code}", millis / 1000, millis % 1000);
        (shell_task(&id(number), &script), code)
    }

    async fn add(&mut self, tasks: Vec<(TaskSpec, i32)>) {
        let request = AddTaskCollectionRequest {
            request_id: request_id(),
            job_id: self.job.clone(),
            tasks: tasks.iter().map(|(spec, _)| spec.clone()).collect(),
        };
        // The same request id: it is the same request, whatever became of the first.
        let answer = self
            .ask(|client| {
                let request = request.clone();
                async move { client.jobs().add_task_collection(request).await }
            })
            .await;
        let time = now();
        let results = answer.map(|answer| answer.results).unwrap_or_default();
        for (spec, code) in tasks {
            let acknowledged = results.iter().any(|result| result.task_id == spec.id && result.error.is_none());
            let name = TaskName { job: self.job.clone(), task: spec.id };
            self.said.push(Said::Added { name, time, acknowledged, exit_code: Some(code) });
        }
    }

    async fn delete(&mut self, task: &str) {
        let (job_id, task_id) = (self.job.clone(), task.to_owned());
        let request = DeleteTaskRequest { request_id: request_id(), job_id, task_id, precondition: None };
        let answer = self
            .ask(|client| {
                let request = request.clone();
                async move { client.jobs().delete_task(request).await }
            })
            .await;
        let name = TaskName { job: self.job.clone(), task: task.to_owned() };
        self.said.push(Said::Deleted { name, time: now(), acknowledged: answer.is_some() });
    }

    /// Asks until there is an answer; `None` if it was refused or given up.
    async fn ask<T, Asking>(&self, ask: impl Fn(Client) -> Asking) -> Option<T>
    where
        Asking: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        loop {
            let status = match tokio::time::timeout(ANSWER, ask(self.client.clone())).await {
                Ok(Ok(answer)) => return Some(answer.into_inner()),
                Ok(Err(status)) => Some(Error::from(status)),
                Err(_) => None,
            };
            // Anything else is an answer, too.
            if let Some(error) = status
                && !matches!(error.kind(), Kind::Unavailable | Kind::Internal | Kind::DeadlineExceeded)
            {
                eprintln!("refused: {error}");
                return None;
            }
            tokio::select! {
                () = self.giving_up.cancelled() => return None,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }
}

fn id(number: usize) -> String {
    format!("t{number}")
}

/// As agents write it.
pub fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap()
}
