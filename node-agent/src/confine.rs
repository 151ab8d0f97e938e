//! Where the process of a task belongs: its user, its limits, its graphics
//! processors. A task that asks for none of these passes through here without a
//! cost.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use kiln_proto::common::v1::{AutoUserScope, ElevationLevel, Resources, UserIdentity};
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::domain::failure::Failure;
use crate::domain::identity::{self, Account, Whom, Wish};
use crate::domain::limits::{Broken, KILLED, Limits};
use crate::process::cgroup::{Cgroup, Cgroups};
use crate::process::launch::Launch;
use crate::process::owner;
use crate::process::shim::{self, Place, User};
use crate::process::supervisor::Running;
use crate::process::users::Users;
use crate::process::watcher::{Watched, watch};
use crate::run_process;

/// Names of variables that tell a program which graphics processors are its.
const GPU_VARIABLES: [&str; 2] = ["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"];

/// What the agent needs to confine processes; most of it is made when the
/// first task asks for it.
#[derive(Debug)]
pub struct Confiner {
    shim: Vec<String>,
    node_dir: PathBuf,
    is_root: bool,
    cgroups: OnceLock<Cgroups>,
    /// Users, or why there are none.
    users: Mutex<Option<Arc<Users>>>,
    free_gpus: Mutex<Vec<u32>>,
}

impl Confiner {
    /// For the node in `node_dir`, with numbers of its graphics processors.
    pub fn new(shim: Vec<String>, node_dir: PathBuf, gpus: Vec<u32>) -> Self {
        Self {
            shim,
            node_dir,
            is_root: nix::unistd::geteuid().is_root(),
            cgroups: OnceLock::new(),
            users: Mutex::default(),
            free_gpus: Mutex::new(gpus),
        }
    }

    /// As whom a process with this wish runs.
    ///
    /// # Errors
    /// When the node cannot give that.
    pub fn whom(&self, agent: &Agent, wish: Option<&UserIdentity>) -> Result<Whom, Failure> {
        let Some(wish) = wish else { return Ok(Whom::Agent) };
        let registration = agent.registration();
        let is_admin = |level: ElevationLevel| level == ElevationLevel::Admin;
        let accounts: Vec<Account<'_>> = registration
            .settings
            .user_accounts
            .iter()
            .map(|account| Account {
                name: &account.name,
                admin: is_admin(account.elevation_level()),
                uid: account.uid,
                gid: account.gid,
            })
            .collect();
        let own = wish.auto_user_scope() == AutoUserScope::Task;
        let wish = if wish.username.is_empty() {
            Wish::Auto { own, admin: is_admin(wish.elevation_level()) }
        } else {
            Wish::Named(&wish.username)
        };
        identity::whom(&wish, &accounts, self.is_root)
    }

    fn cgroups(&self) -> &Cgroups {
        self.cgroups.get_or_init(|| {
            use md5::Digest;
            let digest = md5::Md5::digest(self.node_dir.as_os_str().as_encoded_bytes());
            let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            Cgroups::find(&format!("kiln-{name}"))
        })
    }

    /// Blocks.
    fn user(&self, whom: Whom) -> Result<Option<User>, Failure> {
        if whom == Whom::Agent {
            return Ok(None);
        }
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let users = match &*users {
            Some(users) => users.clone(),
            None => {
                let state = self.node_dir.join(kiln_node::STATE_DIR);
                let made = owner::open_way(&self.node_dir).and_then(|()| Users::claim(&state));
                let made = Arc::new(made.map_err(|error| identity::unavailable(&error.to_string()))?);
                users.insert(made).clone()
            }
        };
        Ok(users.user(whom))
    }

    /// Before anything is written into the directory of a task: nobody but the
    /// agent enters it. Blocks for a moment.
    ///
    /// # Errors
    /// `ResourceDirectoryCreateFailed`.
    pub fn close(&self, dir: &Path) -> Result<(), Failure> {
        if !self.is_root {
            return Ok(());
        }
        owner::take_back(dir).map_err(|error| directory_failed(&error))
    }

    fn take_gpus(&self, count: i32) -> Result<Vec<u32>, Failure> {
        let mut free = self.free_gpus.lock().unwrap_or_else(PoisonError::into_inner);
        let count = usize::try_from(count).unwrap_or(0);
        match free.len().checked_sub(count) {
            Some(rest) => Ok(free.split_off(rest)),
            None => {
                let message = format!("the task asks for {count} graphics processors, and {} are free", free.len());
                Err(Failure::server("GpusUnavailable", message))
            }
        }
    }
}

fn directory_failed(error: &std::io::Error) -> Failure {
    Failure::server("ResourceDirectoryCreateFailed", format!("the task's directory: {error}"))
}

/// What a process asks for.
#[derive(Debug)]
pub struct Asked<'a> {
    /// See [`Confiner::whom`].
    pub whom: Whom,
    /// What the task may use.
    pub resources: Option<&'a Resources>,
    /// Others of the node may look into its directory.
    pub is_open: bool,
    /// Its directory, with everything that its process shall find there.
    pub dir: &'a Path,
}

/// The place of a process tree. Drop it when all of the tree has ended; that blocks
/// for a moment if something was asked for.
#[derive(Debug)]
pub struct Confined {
    confiner: Arc<Confiner>,
    place: Place,
    cgroup: Option<Cgroup>,
    limits: Limits,
    /// Of the limits, what the kernel does not watch.
    watched: Limits,
    /// The directory goes back to the agent: its user ends with the task.
    own_user: bool,
    gpus: Vec<u32>,
    dir: PathBuf,
}

impl Confined {
    /// Makes the place. Blocks for a moment if something is asked for.
    ///
    /// # Errors
    /// When the node cannot give what is asked for.
    pub fn enter(confiner: &Arc<Confiner>, asked: &Asked<'_>) -> Result<Self, Failure> {
        let resources = asked.resources.copied().unwrap_or_default();
        let amount = |value: i64| u64::try_from(value).unwrap_or(0);
        let limits = Limits {
            cpu_millis: amount(resources.cpu_millis),
            memory_bytes: amount(resources.memory_bytes),
            disk_bytes: amount(resources.disk_bytes),
        };
        let user = confiner.user(asked.whom)?;
        if confiner.is_root {
            Self::give_directory(asked, user)?;
        }
        let mut confined = Self {
            confiner: confiner.clone(),
            place: Place { cgroups: Vec::new(), user },
            cgroup: None,
            limits,
            watched: limits,
            own_user: asked.whom == Whom::Task,
            gpus: Vec::new(),
            dir: asked.dir.to_owned(),
        };
        if !limits.is_none() && !confiner.shim.is_empty() {
            let cgroups = confiner.cgroups();
            match cgroups.create(&uuid::Uuid::new_v4().simple().to_string(), &limits) {
                Ok(Some(cgroup)) => {
                    cgroup.join(&mut confined.place);
                    if cgroups.limits_memory() {
                        confined.watched.memory_bytes = 0;
                    }
                    confined.cgroup = Some(cgroup);
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "no control group for a task; its memory is watched instead"),
            }
        }
        if resources.gpus > 0 {
            confined.gpus = confiner.take_gpus(resources.gpus)?;
        }
        Ok(confined)
    }

    fn give_directory(asked: &Asked<'_>, user: Option<User>) -> Result<(), Failure> {
        use std::os::unix::fs::PermissionsExt;
        let mode = if asked.is_open { 0o755 } else { 0o700 };
        let Some(user) = user else {
            let mode = std::fs::Permissions::from_mode(mode);
            return std::fs::set_permissions(asked.dir, mode).map_err(|error| directory_failed(&error));
        };
        // A link that an earlier attempt left would lead the process to where its user may not go.
        let working_dir = asked.dir.join(kiln_node::WORKING_DIR);
        if !std::fs::symlink_metadata(&working_dir).is_ok_and(|found| found.is_dir()) {
            return Err(directory_failed(&std::io::Error::other("the working directory is a link")));
        }
        owner::hand_over(asked.dir, user, mode).map_err(|error| directory_failed(&error))
    }

    /// Adds what the process has to know of its place.
    pub fn add_variables(&self, environment: &mut BTreeMap<String, String>) {
        if self.gpus.is_empty() {
            return;
        }
        let numbers = self.gpus.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        for name in GPU_VARIABLES {
            environment.entry(name.to_owned()).or_insert_with(|| numbers.clone());
        }
    }

    /// Starts a process in the place. Blocks for as long as the system takes.
    ///
    /// # Errors
    /// `CommandProgramNotFound` or `CommandLaunchFailed`.
    pub fn start(&self, agent: &Agent, launch: Launch, marker: &str) -> Result<Running, Failure> {
        if self.place == Place::default() {
            return run_process::start(&agent.supervisor, launch, marker);
        }
        shim::start(&agent.supervisor, &agent.confiner.shim, launch, &self.place, marker)
    }

    /// As [`run_process::wait`]; tells, too, which limit was broken.
    pub async fn wait(
        &self,
        running: Running,
        stop: &CancellationToken,
        limit: Option<Duration>,
        on_limit: impl FnOnce(),
    ) -> (i32, Option<Failure>) {
        if self.limits.is_none() {
            return (run_process::wait(running, stop, limit, on_limit).await, None);
        }
        let kill = stop.child_token();
        let watched = Watched { pid: running.pid(), dir: self.dir.clone(), limits: self.watched };
        let waiting = run_process::wait(running, &kill, limit, on_limit);
        tokio::pin!(waiting);
        let (code, seen) = tokio::select! {
            biased;
            code = &mut waiting => (code, None),
            broken = watch(watched) => {
                kill.cancel();
                (waiting.await, Some(broken))
            }
        };
        let by_kernel = || {
            let peak = self.cgroup.as_ref()?.memory_broken()?;
            Some(Broken::Memory { limit: self.limits.memory_bytes, peak })
        };
        // Who gets over the loss of a child has not failed.
        match seen.or_else(by_kernel).filter(|_| code != 0) {
            Some(broken) => (KILLED, Some(broken.failure())),
            None => (code, None),
        }
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        if let Some(cgroup) = self.cgroup.take() {
            cgroup.remove();
        }
        self.confiner.free_gpus.lock().unwrap_or_else(PoisonError::into_inner).append(&mut self.gpus);
        if self.own_user
            && let Err(error) = owner::take_back(&self.dir)
        {
            tracing::warn!(dir = %self.dir.display(), %error, "a task's directory still belongs to its user");
        }
    }
}
