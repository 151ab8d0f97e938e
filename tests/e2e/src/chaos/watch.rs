//! Watchers: each follows the job, and goes on from its cursor wherever its stream breaks.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiln_chaos_check::history::{Logged, Watched};
use kiln_client::Client;
use kiln_proto::monitor::v1::WatchJobRequest;
use tokio::task::JoinHandle;

use super::collect::logged;

/// Pause before a broken stream is opened again.
const AGAIN: Duration = Duration::from_millis(50);
/// A stream on which nothing comes, not even a sign of life, is broken.
const SILENCE: Duration = Duration::from_secs(15);
/// How long a watcher may need for what is in the log already.
const CATCH_UP: Duration = Duration::from_secs(60);

/// A watcher at work.
#[derive(Debug)]
pub struct Watcher {
    name: String,
    job: String,
    seen: Arc<Mutex<Vec<Logged>>>,
    work: JoinHandle<()>,
}

/// Begins to watch.
pub fn start(client: &Client, job: &str, name: &str) -> Watcher {
    let seen = Arc::new(Mutex::default());
    let work = kiln_telemetry::spawn(follow(client.clone(), job.to_owned(), seen.clone()));
    Watcher { name: name.to_owned(), job: job.to_owned(), seen, work }
}

async fn follow(client: Client, job_id: String, seen: Arc<Mutex<Vec<Logged>>>) {
    let mut cursor = String::new();
    loop {
        let request = WatchJobRequest { job_id: job_id.clone(), cursor: cursor.clone(), until_completed: false };
        if let Ok(answer) = client.monitor().watch_job(request).await {
            let mut stream = answer.into_inner();
            while let Ok(Ok(Some(message))) = tokio::time::timeout(SILENCE, stream.message()).await {
                for event in message.events {
                    seen.lock().unwrap().extend(logged(&event));
                    cursor = event.cursor;
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

impl Watcher {
    /// What it saw, when that is as much as the log has, or after a while.
    pub async fn finish(self, log: &[Logged]) -> Vec<Watched> {
        let completions = log.iter().filter(|event| event.is_completion());
        let wanted: HashSet<_> = completions.map(|event| (event.source.clone(), event.sequence)).collect();
        let all_seen = async {
            loop {
                let has: HashSet<_> =
                    self.seen.lock().unwrap().iter().map(|event| (event.source.clone(), event.sequence)).collect();
                if wanted.is_subset(&has) {
                    return;
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        if tokio::time::timeout(CATCH_UP, all_seen).await.is_err() {
            eprintln!("{} has not seen all that is in the log", self.name);
        }
        self.work.abort();
        let watcher = self.name;
        let seen = self.seen.lock().unwrap().clone();
        let events = seen.into_iter().map(|event| Watched::Saw { watcher: watcher.clone(), event });
        [Watched::Job { watcher: watcher.clone(), job: self.job }].into_iter().chain(events).collect()
    }
}
