//! Directories of tasks go: when job-svc says so, or when their time is over.

pub mod kept;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kiln_time::Timestamp;

use crate::agent::Agent;
use crate::domain::ledger::Key;

/// Directories are looked at this often.
const INTERVAL: Duration = Duration::from_secs(600);
/// Where directories wait for their removal; outside of the node root.
const TRASH: &str = "trash";

/// The new place of a directory, if it was there.
type Moved = std::io::Result<Option<PathBuf>>;

/// Removes the directory of a task or a whole job as soon as nothing runs in
/// it. Attempts that begin later keep it.
pub fn remove_when_ended(agent: &Arc<Agent>, job: &str, task: Option<&str>) {
    let relative = match task {
        Some(task) => kiln_node::task_dir(job, task),
        None => kiln_node::job_dir(job),
    };
    let dir = agent.root.join(relative);
    // At once if nothing runs there: an assignment that comes next may be for a
    // new task of this name, and must not lose its directory.
    let (waits_for, moved) = move_if_idle(agent, job, task, &dir);
    let (agent, job, task) = (agent.clone(), job.to_owned(), task.map(str::to_owned));
    kiln_telemetry::spawn(async move {
        if let Some(moved) = moved {
            remove_moved(&agent, &dir, moved).await;
            return;
        }
        loop {
            let ended = agent.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            let (live, moved) = move_if_idle(&agent, &job, task.as_deref(), &dir);
            if live.iter().any(|key| !waits_for.contains(key)) {
                return;
            }
            if let Some(moved) = moved {
                remove_moved(&agent, &dir, moved).await;
                return;
            }
            tokio::select! {
                () = ended => {}
                () = agent.closing.cancelled() => return,
            }
        }
    });
}

/// Moves the directory if nothing runs in it; gives what runs.
fn move_if_idle(agent: &Agent, job: &str, task: Option<&str>, dir: &Path) -> (Vec<Key>, Option<Moved>) {
    agent.with_work(|ledger, _| {
        let live = ledger.live_of(job, task);
        let is_meant =
            |of: &str, id: &str| of.eq_ignore_ascii_case(job) && task.is_none_or(|task| task.eq_ignore_ascii_case(id));
        let idle = live.is_empty() && !agent.jobs.is_running(is_meant);
        let moved = idle.then(|| move_away(&trash(agent), dir));
        (live, moved)
    })
}

/// Puts a directory out of sight; gives its new place, if it was there.
fn move_away(trash: &Path, dir: &Path) -> Moved {
    let away = trash.join(uuid::Uuid::new_v4().simple().to_string());
    let moved = std::fs::rename(dir, &away).or_else(|error| {
        // Either the directory is not there, or the trash is not there yet.
        if error.kind() != std::io::ErrorKind::NotFound || !dir.exists() {
            return Err(error);
        }
        std::fs::create_dir_all(trash)?;
        std::fs::rename(dir, &away)
    });
    match moved {
        Ok(()) => Ok(Some(away)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a directory: first out of sight, then for good.
async fn remove(agent: &Arc<Agent>, dir: &Path) {
    let moved = move_away(&trash(agent), dir);
    remove_moved(agent, dir, moved).await;
}

/// Removes for good what was moved out of sight.
async fn remove_moved(agent: &Arc<Agent>, dir: &Path, moved: Moved) {
    let dir = dir.to_owned();
    let shown = dir.clone();
    let work = move || {
        let Some(away) = moved? else { return Ok(()) };
        remove_tree(&away)?;
        // The job's directory, and the schedule's, if they are empty now.
        let parents = dir.ancestors().skip(1).take_while(|path| !path.ends_with(kiln_node::WORKITEMS_DIR));
        for parent in parents {
            if std::fs::remove_dir(parent).is_err() {
                break;
            }
        }
        Ok::<(), std::io::Error>(())
    };
    match tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other) {
        Ok(Ok(())) => agent.kept.gone(&shown),
        Ok(Err(error)) | Err(error) => {
            tracing::warn!(path = %shown.display(), %error, "a task's directory could not be removed");
        }
    }
}

/// Tasks may leave directories that not even their owner may write to.
fn remove_tree(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            make_writable(dir)?;
            std::fs::remove_dir_all(dir)
        }
        other => other,
    }
}

fn make_writable(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            make_writable(&entry.path())?;
        }
    }
    Ok(())
}

fn trash(agent: &Agent) -> PathBuf {
    agent.config.join.node_dir.join(kiln_node::STATE_DIR).join(TRASH)
}

/// Removes directories whose time is over, until the agent ends.
pub async fn retention_loop(agent: Arc<Agent>) {
    loop {
        let search = agent.clone();
        match tokio::task::spawn_blocking(move || expired(&search)).await {
            Ok(dirs) => {
                for dir in dirs {
                    tracing::debug!(path = %dir.display(), "the retention time of a task is over");
                    remove(&agent, &dir).await;
                }
            }
            Err(error) => tracing::error!(%error, "the search for old directories failed"),
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = agent.closing.cancelled() => return,
        }
    }
}

/// Directories of tasks that may go. Blocks.
fn expired(agent: &Agent) -> Vec<PathBuf> {
    // Left there when the agent was killed while it removed them.
    if let Ok(entries) = std::fs::read_dir(trash(agent)) {
        for entry in entries.flatten() {
            // The next round tries again.
            let _ = remove_tree(&entry.path());
        }
    }
    let now = Timestamp::now();
    let children = |dir: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
    };
    let mut found = Vec::new();
    for item in children(&agent.root.join(kiln_node::WORKITEMS_DIR)) {
        for job in children(&item) {
            for task in children(&job) {
                let relative = task.strip_prefix(&agent.root).unwrap_or(&task).to_string_lossy().into_owned();
                let until = agent
                    .kept
                    .until(&task)
                    .or_else(|| last_use(&task).map(|at| at.plus(agent.config.settings.retention)));
                if until.is_some_and(|until| until <= now) && !agent.is_live_path(&relative) {
                    found.push(task);
                }
            }
        }
    }
    found
}

/// The end of the task is not known any more (the agent was restarted): the
/// last change of its output is near enough.
fn last_use(dir: &Path) -> Option<Timestamp> {
    let changed = |path: PathBuf| std::fs::metadata(path).ok()?.modified().ok();
    let latest = [kiln_node::STDOUT_FILE, kiln_node::STDERR_FILE, kiln_node::WORKING_DIR]
        .iter()
        .filter_map(|name| changed(dir.join(name)))
        .max()
        .or_else(|| changed(dir.to_owned()))?;
    let since = latest.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_micros()).ok().map(Timestamp::from_micros)
}
