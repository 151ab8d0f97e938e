//! Nodes as child processes of this machine.
//!
//! A node is the directory `<nodes_dir>/<account>/<pool>/<node>` (see
//! `kiln_node` for its layout). Its agent lives if it holds `agent.lock`, which
//! the kernel releases however the agent ends; the file's text is the agent's
//! pid. So a restarted service finds its agents again without having written
//! anything down. Agents run in their own process group and outlive the service.
//!
//! The handles of own children only make two things faster: their end is
//! noticed at once, and one that was just started counts as alive before it has
//! taken its lock. A lock is probed with a shared lock for a moment; an agent
//! that starts in just that moment has to try again.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use kiln_ids::{AccountName, NodeId, PoolId};
use kiln_node::{JOIN_FILE, JoinConfig, LOCK_FILE, LOG_FILE};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::sync::Notify;

use crate::config::LocalProviderConfig;
use crate::domain::{NodeName, PoolName};
use crate::provider::{NodePlan, ObservedNode, Provider, ProviderError};

/// How often the lock of an agent that was told to stop is probed.
const PROBE: Duration = Duration::from_millis(20);
/// How often it is asked for the pid of a lock that is held.
const PID_PROBES: usize = 50;
/// An agent that was killed is gone after this time, or something is odd.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Clone)]
pub struct LocalProvider {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: LocalProviderConfig,
    changed: Arc<Notify>,
    /// Pids of own children that have not been reaped.
    children: Mutex<HashMap<PathBuf, Pid>>,
    /// Directories that are being taken away.
    deleting: Mutex<HashSet<PathBuf>>,
    /// Held while a new node gets its place.
    placing: Mutex<()>,
}

impl LocalProvider {
    /// Nodes below `config.nodes_dir`, which is made if needed.
    ///
    /// # Errors
    /// If the directory cannot be made.
    pub fn new(config: LocalProviderConfig) -> Result<Self, ProviderError> {
        make_dir(&config.nodes_dir)?;
        // Agents get absolute paths: their working directory is the node's.
        let nodes_dir = config.nodes_dir.canonicalize().map_err(failed("finding the directory of all nodes"))?;
        let config = LocalProviderConfig { nodes_dir, ..config };
        let inner = Inner {
            config,
            changed: Arc::default(),
            children: Mutex::default(),
            deleting: Mutex::default(),
            placing: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Directory of a node.
    pub fn node_dir(&self, name: &NodeName) -> PathBuf {
        self.pool_dir(&name.pool_name()).join(name.node.key().as_ref())
    }

    fn pool_dir(&self, name: &PoolName) -> PathBuf {
        self.inner.config.nodes_dir.join(name.account.key().as_ref()).join(name.pool.key().as_ref())
    }
}

#[async_trait]
impl Provider for LocalProvider {
    async fn observe(&self, pool: Option<&PoolName>) -> Result<Vec<ObservedNode>, ProviderError> {
        let provider = self.clone();
        let pool = pool.cloned();
        blocking(move || match pool {
            Some(pool) => provider.inner.observe_pool(&pool, &provider.pool_dir(&pool)),
            None => provider.inner.observe_all(),
        })
        .await
    }

    async fn create(&self, plan: &NodePlan) -> Result<(), ProviderError> {
        let dir = self.node_dir(&plan.name);
        if self.inner.is_deleting(&dir) {
            return Err(ProviderError::Failed {
                what: format!("making node {}", plan.name.node),
                source: io::Error::new(io::ErrorKind::ResourceBusy, "its predecessor is being taken away"),
            });
        }
        let join = JoinConfig { node_dir: dir.clone(), ..plan.join.clone() };
        let inner = self.inner.clone();
        let prepared = blocking(move || inner.prepare(&dir, &join).map(|log| log.map(|log| (dir, log)))).await?;
        match prepared {
            Some((dir, log)) => self.spawn(dir, log),
            None => Ok(()),
        }
    }

    async fn delete(&self, name: &NodeName) -> Result<(), ProviderError> {
        let dir = self.node_dir(name);
        if !self.inner.deleting.lock().unwrap_or_else(PoisonError::into_inner).insert(dir.clone()) {
            return Ok(());
        }
        let inner = self.inner.clone();
        let name = name.clone();
        kiln_telemetry::spawn(async move {
            inner.stop(&dir).await;
            let target = dir.clone();
            if let Err(error) = blocking(move || remove(&target)).await {
                tracing::warn!(account = %name.account, pool.id = %name.pool, node.id = %name.node, %error,
                    "the directory of a node could not be removed; it is tried again");
            }
            inner.deleting.lock().unwrap_or_else(PoisonError::into_inner).remove(&dir);
            inner.changed.notify_one();
        });
        Ok(())
    }

    async fn stop_all(&self) {
        let observed = match self.observe(None).await {
            Ok(observed) => observed,
            Err(error) => {
                tracing::warn!(%error, "the nodes of this machine could not be listed; their agents go on");
                return;
            }
        };
        let stops = observed.into_iter().filter(|node| node.alive).map(|node| {
            let (inner, dir) = (self.inner.clone(), self.node_dir(&node.name));
            async move { inner.stop(&dir).await }
        });
        futures::future::join_all(stops).await;
    }

    fn changed(&self) -> Arc<Notify> {
        self.inner.changed.clone()
    }
}

impl LocalProvider {
    /// Starts the agent of a prepared directory.
    fn spawn(&self, dir: PathBuf, log: File) -> Result<(), ProviderError> {
        let Some((program, arguments)) = self.inner.config.agent_command.split_first() else {
            return Err(ProviderError::Refused("no agent command is configured".to_owned()));
        };
        let errors = log.try_clone().map_err(failed("opening the agent's log"))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg("--join")
            .arg(dir.join(JOIN_FILE))
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // Its own group: signals of this service's terminal are not for it.
            .process_group(0);
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_for_services(name)) {
            command.env_remove(name);
        }
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                ProviderError::Refused(format!("the agent program {program:?} cannot be started: {error}"))
            }
            _ => ProviderError::Failed { what: "starting an agent".to_owned(), source: error },
        })?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        if let Some(pid) = pid {
            self.inner.children.lock().unwrap_or_else(PoisonError::into_inner).insert(dir.clone(), pid);
        }
        let inner = self.inner.clone();
        kiln_telemetry::spawn(async move {
            // Waiting reaps the child.
            let status = child.wait().await;
            let mut children = inner.children.lock().unwrap_or_else(PoisonError::into_inner);
            if children.get(&dir).copied() == pid {
                children.remove(&dir);
            }
            drop(children);
            tracing::debug!(dir = %dir.display(), ?status, "an agent has ended");
            inner.changed.notify_one();
        });
        Ok(())
    }
}

impl Inner {
    fn is_deleting(&self, dir: &Path) -> bool {
        self.deleting.lock().unwrap_or_else(PoisonError::into_inner).contains(dir)
    }

    fn child(&self, dir: &Path) -> Option<Pid> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner).get(dir).copied()
    }

    fn observe_all(&self) -> Result<Vec<ObservedNode>, ProviderError> {
        let mut observed = Vec::new();
        for (account, account_dir) in named_dirs(&self.config.nodes_dir, AccountName::parse)? {
            for (pool, pool_dir) in named_dirs(&account_dir, PoolId::parse)? {
                let name = PoolName { account: account.clone(), pool };
                observed.extend(self.observe_pool(&name, &pool_dir)?);
            }
        }
        Ok(observed)
    }

    fn observe_pool(&self, pool: &PoolName, dir: &Path) -> Result<Vec<ObservedNode>, ProviderError> {
        let mut observed = Vec::new();
        for (node, node_dir) in named_dirs(dir, NodeId::parse)? {
            observed.push(ObservedNode { name: pool.node(&node), alive: self.is_alive(&node_dir)? });
        }
        Ok(observed)
    }

    fn is_alive(&self, dir: &Path) -> Result<bool, ProviderError> {
        if self.child(dir).is_some() {
            return Ok(true);
        }
        Ok(lock_state(dir)? != Lock::Free)
    }

    /// Writes what the agent needs; `None` if an agent lives already.
    fn prepare(&self, dir: &Path, join: &JoinConfig) -> Result<Option<File>, ProviderError> {
        if dir.exists() && self.is_alive(dir)? {
            return Ok(None);
        }
        self.make_place(dir)?;
        let text = serde_json::to_vec_pretty(join).map_err(|error| ProviderError::Refused(error.to_string()))?;
        // Renamed into place: an agent never reads half of it.
        let temporary = dir.join(format!("{JOIN_FILE}.new"));
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&text)?;
            fs::rename(&temporary, dir.join(JOIN_FILE))
        };
        write().map_err(failed("writing a node's join file"))?;
        let log = OpenOptions::new().append(true).create(true).mode(0o600).open(dir.join(LOG_FILE));
        Ok(Some(log.map_err(failed("opening an agent's log"))?))
    }

    /// Makes the directory of a node, if the machine has room for one more.
    fn make_place(&self, dir: &Path) -> Result<(), ProviderError> {
        let _placing = self.placing.lock().unwrap_or_else(PoisonError::into_inner);
        let max = self.config.max_nodes;
        if !dir.exists() && self.count()? >= max {
            return Err(ProviderError::Refused(format!(
                "the machine has {max} nodes, as many as it may; the service's setting local.max_nodes allows more"
            )));
        }
        make_dir(dir)
    }

    fn count(&self) -> Result<usize, ProviderError> {
        let mut count = 0;
        for (_, account_dir) in named_dirs(&self.config.nodes_dir, AccountName::parse)? {
            for (_, pool_dir) in named_dirs(&account_dir, PoolId::parse)? {
                count += named_dirs(&pool_dir, NodeId::parse)?.len();
            }
        }
        Ok(count)
    }

    /// SIGTERM, a bounded wait, then SIGKILL to the whole group.
    async fn stop(&self, dir: &Path) {
        if let Some(pid) = self.living_agent(dir).await {
            signal(kill(pid, Signal::SIGTERM), pid);
            if self.wait_until_gone(dir, self.config.stop_grace).await {
                return;
            }
            tracing::warn!(dir = %dir.display(), %pid, "an agent did not stop in time and is killed");
            signal(killpg(pid, Signal::SIGKILL).or_else(|_| kill(pid, Signal::SIGKILL)), pid);
            self.wait_until_gone(dir, KILL_WAIT).await;
        }
    }

    async fn wait_until_gone(&self, dir: &Path, limit: Duration) -> bool {
        let waiting = async {
            while self.living_agent(dir).await.is_some() {
                tokio::time::sleep(PROBE).await;
            }
        };
        tokio::time::timeout(limit, waiting).await.is_ok()
    }

    /// The agent's pid; waits for the moment in which an agent has its lock and
    /// has not written its pid yet.
    async fn living_agent(&self, dir: &Path) -> Option<Pid> {
        if let Some(pid) = self.child(dir) {
            return Some(pid);
        }
        for _ in 0..PID_PROBES {
            let target = dir.to_owned();
            match blocking(move || lock_state(&target)).await {
                Ok(Lock::Free) => return None,
                Ok(Lock::Held(Some(pid))) => return Some(pid),
                Ok(Lock::Held(None)) => tokio::time::sleep(PROBE).await,
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "an agent's lock could not be probed");
                    return None;
                }
            }
        }
        tracing::warn!(dir = %dir.display(), "a lock is held by somebody who has not written a pid");
        None
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lock {
    /// Nobody holds it, or it does not exist.
    Free,
    /// An agent holds it; its pid, if it has written it.
    Held(Option<Pid>),
}

fn lock_state(dir: &Path) -> Result<Lock, ProviderError> {
    let file = match File::open(dir.join(LOCK_FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Lock::Free),
        Err(error) => return Err(failed("opening an agent's lock")(error)),
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_free) => Ok(Lock::Free),
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut text = Vec::new();
            // A pid is short; a file that holds more was not written by an agent.
            (&mut file).take(64).read_to_end(&mut text).map_err(failed("reading an agent's pid"))?;
            let pid = String::from_utf8_lossy(&text).trim().parse().ok().filter(|pid| *pid > 1);
            Ok(Lock::Held(pid.map(Pid::from_raw)))
        }
        Err((_, errno)) => Err(failed("probing an agent's lock")(errno.into())),
    }
}

fn remove(dir: &Path) -> Result<(), ProviderError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("removing a node's directory")(error));
        }
        _ => {}
    }
    // Directories of pools and accounts go with their last node.
    for parent in dir.ancestors().skip(1).take(2) {
        if fs::remove_dir(parent).is_err() {
            break;
        }
    }
    Ok(())
}

/// What tasks leave on a node is for the owner alone. Others may pass through the
/// directories above, to a node whose agent gives its tasks users of their own.
fn make_dir(dir: &Path) -> Result<(), ProviderError> {
    let make = |dir: &Path, mode| fs::DirBuilder::new().recursive(true).mode(mode).create(dir);
    let parents = dir.parent().map_or(Ok(()), |parent| make(parent, 0o711));
    parents.and_then(|()| make(dir, 0o700)).map_err(failed("making a directory for nodes"))
}

/// Whether a variable of this process is kept from agents. Settings of services
/// and the account's key are among them (`kiln env` gives it several names), and
/// a task can read the environment of its agent, whose user it shares.
fn is_for_services(name: &OsStr) -> bool {
    let name = name.as_bytes();
    // The last one tells an outer agent which processes a task has started.
    let for_agents = name.starts_with(b"KILN_AGENT_") || [&b"KILN_LOG"[..], b"KILN_ATTEMPT_ID"].contains(&name);
    let prefixes = [&b"KILN_"[..], b"AZURE_BATCH_", b"AZURE_STORAGE_"];
    prefixes.iter().any(|prefix| name.starts_with(prefix)) && !for_agents
}

/// Directories below `dir` whose names are ids; others are not ours.
fn named_dirs<T, E>(dir: &Path, parse: impl Fn(&str) -> Result<T, E>) -> Result<Vec<(T, PathBuf)>, ProviderError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("listing nodes")(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("listing nodes"))?;
        let name = entry.file_name();
        if let Some(id) = name.to_str().and_then(|name| parse(name).ok())
            && entry.file_type().is_ok_and(|kind| kind.is_dir())
        {
            found.push((id, entry.path()));
        }
    }
    Ok(found)
}

fn signal(sent: nix::Result<()>, pid: Pid) {
    match sent {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => tracing::warn!(%pid, %error, "an agent could not be signalled"),
    }
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> ProviderError + use<> {
    let what = what.to_owned();
    move |source| ProviderError::Failed { what, source }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ProviderError> + Send + 'static,
) -> Result<T, ProviderError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(ProviderError::Refused(format!("work of the provider failed: {error}"))))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn agents_do_not_get_keys_and_settings_of_services() {
        for name in [
            "KILN_ACCOUNT_KEY",
            "KILN_CLUSTER_KEY",
            "KILN_JOB_BUS_URL",
            "KILN_AGENTS",
            "AZURE_BATCH_ACCESS_KEY",
            "AZURE_STORAGE_KEY",
            "AZURE_STORAGE_CONNECTION_STRING",
        ] {
            assert!(is_for_services(OsStr::new(name)), "{name}");
        }
        for name in ["PATH", "KILN_LOG", "KILN_AGENT_CACHE_BYTES", "KILN_ATTEMPT_ID", "OTEL_SERVICE_NAME", "KILNS"] {
            assert!(!is_for_services(OsStr::new(name)), "{name}");
        }
    }

    fn join(node: &Path) -> JoinConfig {
        JoinConfig {
            control_endpoint: "http://h:1".into(),
            account: "acc".into(),
            pool_id: "p".into(),
            node_id: "p-1".into(),
            join_token: "secret".into(),
            ca_pem: None,
            node_dir: node.to_owned(),
        }
    }

    #[test]
    fn a_pool_that_is_too_large_does_not_bring_the_machine_down() {
        let dir = tempfile::tempdir().unwrap();
        let nodes = dir.path().join("nodes");
        let config = LocalProviderConfig { max_nodes: 3, ..LocalProviderConfig::new(&nodes, Vec::new()) };
        let provider = LocalProvider::new(config).unwrap();
        let prepare = |node: &str| provider.inner.prepare(&nodes.join(node), &join(&nodes.join(node)));
        for node in ["acc/p/p-1", "acc/q/q-1", "other/p/p-1"] {
            prepare(node).unwrap();
        }
        assert!(matches!(prepare("acc/p/p-2"), Err(ProviderError::Refused(_))));
        // One that was there before comes back.
        prepare("acc/p/p-1").unwrap();
        fs::remove_dir_all(nodes.join("acc/q/q-1")).unwrap();
        prepare("acc/p/p-2").unwrap();
    }

    #[test]
    fn only_the_owner_enters_a_node() {
        let dir = tempfile::tempdir().unwrap();
        let provider = LocalProvider::new(LocalProviderConfig::new(dir.path().join("nodes"), Vec::new())).unwrap();
        let node = dir.path().join("nodes/acc/p/p-1");
        provider.inner.prepare(&node, &join(&node)).unwrap().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&node), 0o700);
        assert_eq!(mode(&dir.path().join("nodes/acc")), 0o711);
        for file in [JOIN_FILE, LOG_FILE] {
            assert_eq!(mode(&node.join(file)), 0o600, "{file}");
        }
    }
}
