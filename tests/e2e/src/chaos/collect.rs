//! What the server and the event log say when all is over.

use std::collections::HashSet;
use std::time::Duration;

use futures::StreamExt;
use kiln_chaos_check::history::{Final, FinalAttempt, Logged, Said, TaskName};
use kiln_client::Client;
use kiln_proto::events::v1::event::Payload;
use kiln_proto::job::v1::{ListTasksRequest, TaskState};
use kiln_proto::monitor::v1::LoggedEvent;

use crate::work;

/// Tasks that are asked for at once.
const AT_ONCE: usize = 16;
const PAUSE: Duration = Duration::from_millis(200);
/// How long events may be on their way when everything runs again.
const DELIVERY: Duration = Duration::from_secs(60);

/// Waits until every task that the server has is completed, or `patience` is over.
pub async fn until_completed(client: &Client, job: &str, clients: &[Said], patience: Duration) -> bool {
    let acknowledged: HashSet<&TaskName> = clients
        .iter()
        .filter_map(|said| match said {
            Said::Added { name, acknowledged: true, .. } => Some(name),
            _ => None,
        })
        .collect();
    let completed = async {
        loop {
            if let Some(counts) = work::counts(client, job).await
                && counts.active == 0
                && counts.running == 0
                && (counts.completed > 0 || acknowledged.is_empty())
            {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(patience, completed).await.is_ok()
}

/// The server's word on every task that it has.
pub async fn finals(client: &Client, job: &str) -> Vec<Final> {
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListTasksRequest { job_id: job.to_owned(), page_size: 1000, page_token, ..Default::default() };
        let page = client.jobs().list_tasks(request).await.unwrap().into_inner();
        let words = page.tasks.into_iter().map(|task| async move {
            let state = match task.state() {
                TaskState::Completed => "completed".to_owned(),
                other => other.as_str_name().to_owned(),
            };
            let id = task.spec.map(|spec| spec.id).unwrap_or_default();
            let attempts = work::attempts(client, job, &id).await;
            Final {
                state,
                exit_code: task.execution.and_then(|execution| execution.exit_code),
                attempts: attempts
                    .iter()
                    .map(|attempt| FinalAttempt { attempt: attempt.number, exit_code: attempt.exit_code })
                    .collect(),
                name: TaskName { job: job.to_owned(), task: id },
            }
        });
        found.extend(futures::stream::iter(words).buffered(AT_ONCE).collect::<Vec<_>>().await);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return found;
        }
    }
}

/// The whole log, when it has the completion of every completed task, or after a while.
pub async fn events(client: &Client, finals: &[Final]) -> Vec<Logged> {
    let completed: HashSet<String> =
        finals.iter().filter(|word| word.state == "completed").map(|word| word.name.subject()).collect();
    let begin = std::time::Instant::now();
    loop {
        let events: Vec<_> = work::events(client, "", "").await.iter().filter_map(logged).collect();
        let told: HashSet<&String> =
            events.iter().filter(|event| event.is_completion()).map(|event| &event.subject).collect();
        if completed.iter().all(|subject| told.contains(subject)) {
            return events;
        }
        if begin.elapsed() > DELIVERY {
            eprintln!("the log does not have every completion");
            return events;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// An event in the checker's words.
pub fn logged(event: &LoggedEvent) -> Option<Logged> {
    let event = event.event.as_ref()?;
    let task = match &event.payload {
        Some(Payload::Task(task)) => Some(task),
        _ => None,
    };
    Some(Logged {
        source: event.source.clone(),
        sequence: event.sequence,
        kind: event.r#type.clone(),
        subject: event.subject.clone(),
        attempt: task.map(|task| task.attempt).filter(|attempt| *attempt > 0),
        exit_code: task.and_then(|task| task.exit_code),
    })
}
