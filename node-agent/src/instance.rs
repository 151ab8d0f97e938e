//! One instance of a multi-instance task, from its coordination command to
//! the command of the task.
//!
//! Every instance runs the coordination command and says that it is ready. What that
//! command left in the background stays: the instance holds its place with
//! it. The primary goes on when all are ready; the others end when they are stopped.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_proto::job::v1::Instance;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::confine::Confined;
use crate::domain::attempt::{Attempt, Event};
use crate::domain::environment::InstanceFacts;
use crate::domain::failure::Failure;
use crate::domain::ledger::Key;
use crate::process::launch::{Launch, Output, exit_code};
use crate::process::supervisor::Running;

/// The primaries that may go on.
#[derive(Debug, Default)]
pub struct Proceeds(Mutex<HashMap<Key, CancellationToken>>);

impl Proceeds {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All instances of these attempts are ready. Unknown ones have ended.
    pub fn proceed(&self, keys: &[Key]) {
        let waiting = self.lock();
        for token in keys.iter().filter_map(|key| waiting.get(key)) {
            token.cancel();
        }
    }
}

/// Facts of the instance for its environment.
pub fn facts(instance: &Instance, task_dir: &Path) -> InstanceFacts {
    InstanceFacts {
        addresses: instance.hosts.iter().map(|host| host.ip_address.clone()).collect(),
        is_master: instance.number == 0,
        shared_dir: task_dir.to_string_lossy().into_owned(),
    }
}

/// What a coordination command needs.
#[derive(Debug)]
pub struct Coordination<'a> {
    /// As its author wrote it.
    pub command_line: &'a str,
    /// That of the task.
    pub environment: &'a BTreeMap<String, String>,
    /// That of the task.
    pub working_dir: &'a Path,
    /// That of the task: both write into the same files.
    pub output: &'a Output,
    /// That of the task.
    pub marker: &'a str,
    /// Longest time, as for the command of the task.
    pub limit: Option<Duration>,
    /// That of the task.
    pub confined: &'a Confined,
    /// The instance goes on when it may.
    pub is_primary: bool,
}

/// What the coordination command has left.
#[derive(Debug)]
pub struct Held(Option<Running>);

impl Held {
    /// Kills what still runs of it.
    pub async fn release(self) {
        let Some(mut running) = self.0 else { return };
        running.kill().await;
        if let Err(error) = running.wait().await {
            tracing::error!(%error, "the result of a coordination command is lost");
        }
        running.clean_up().await;
    }
}

/// Runs the coordination command and holds the place of the instance. Completes with
/// what it holds when the instance is the primary and all others are ready;
/// with `None` when the attempt has ended.
///
/// # Errors
/// When the command cannot be started.
pub async fn hold_place(
    agent: &Agent,
    key: &Key,
    coordination: Coordination<'_>,
    stop: &CancellationToken,
) -> Result<Option<Held>, Failure> {
    let proceed = CancellationToken::new();
    // Before anybody can hear that the instance is ready.
    agent.proceeds.lock().insert(key.clone(), proceed.clone());
    let result = coordinate(agent, key, &coordination, stop).await;
    let held = match result {
        Ok(Some(held)) => held,
        other => {
            agent.proceeds.lock().remove(key);
            return other;
        }
    };
    let goes_on = tokio::select! {
        biased;
        () = stop.cancelled() => false,
        () = proceed.cancelled(), if coordination.is_primary => true,
    };
    agent.proceeds.lock().remove(key);
    if goes_on {
        return Ok(Some(held));
    }
    held.release().await;
    agent.apply(key, Event::Interrupted);
    Ok(None)
}

/// Runs the command; `None` if it failed or was stopped, and the attempt with it.
async fn coordinate(
    agent: &Agent,
    key: &Key,
    coordination: &Coordination<'_>,
    stop: &CancellationToken,
) -> Result<Option<Held>, Failure> {
    if coordination.command_line.is_empty() {
        agent.apply(key, Event::Coordinated { code: 0, expired: false });
        return Ok(Some(Held(None)));
    }
    let copy = |file: &std::fs::File| {
        file.try_clone().map_err(|error| Failure::server("CommandLaunchFailed", error.to_string()))
    };
    let launch = Launch {
        command_line: coordination.command_line.to_owned(),
        environment: coordination.environment.clone(),
        working_dir: coordination.working_dir.to_owned(),
        output: Output { stdout: copy(&coordination.output.stdout)?, stderr: copy(&coordination.output.stderr)? },
    };
    let running = coordination.confined.start(agent, launch, coordination.marker)?;
    let timer = async {
        match coordination.limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let (early, expired) = tokio::select! {
        biased;
        ended = running.ended() => (Some(ended), false),
        () = stop.cancelled() => (None, false),
        () = timer => (None, true),
    };
    let ended = match early {
        Some(ended) => ended,
        None => {
            running.kill().await;
            running.ended().await
        }
    };
    let code = ended.map_or_else(
        |error| {
            tracing::error!(%error, "the result of a coordination command is lost");
            -1
        },
        exit_code,
    );
    let held = Held(Some(running));
    if code == 0 && !expired && !stop.is_cancelled() {
        // A stop that comes at this moment ends it here.
        if let Some(Attempt::Ready { .. }) = agent.apply(key, Event::Coordinated { code, expired }) {
            return Ok(Some(held));
        }
        held.release().await;
        return Ok(None);
    }
    held.release().await;
    agent.apply(key, Event::Coordinated { code, expired });
    Ok(None)
}
