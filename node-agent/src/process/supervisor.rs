//! Knows the processes of the agent and kills what they leave behind.
//!
//! After a process has ended its group is killed. If nobody was left in that, and the
//! agent has no child but those it started, nothing is left behind. Else the table of
//! processes is searched for orphans that carry its marker. Under load one search serves
//! all processes that have ended since the last one began.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::groups::{Groups, Place};
use super::orphans::Orphans;
use super::table::{self, Process};
use crate::domain::environment::MARKER;

/// How often a search is repeated until nothing is found any more; the pauses
/// between add up to about five seconds.
const MAX_ROUNDS: u32 = 100;
/// A task that starts processes faster than they are stopped is killed anyway.
const MAX_FREEZE_ROUNDS: u32 = 10;
const MAX_PAUSE: Duration = Duration::from_millis(50);
/// Within this time process ids do not come around: that takes 30,000 starts.
const YOUNG: Duration = Duration::from_secs(1);
/// Orphans that end by themselves stay zombies for at most this long.
const REAP_INTERVAL: Duration = Duration::from_secs(5);

/// The processes that the agent started itself.
#[derive(Debug)]
pub struct Supervisor {
    incarnation: String,
    /// The process has no children but the agent's.
    exclusive: bool,
    /// Id and marker of the agent's own children.
    owned: Mutex<HashMap<i32, Arc<str>>>,
    /// Held for reading while a child is started, for writing while unknown
    /// children are reaped: a child that is not in `owned` yet is not reaped.
    starting: RwLock<()>,
    searches: mpsc::Sender<Search>,
    orphans: Orphans,
    /// For the guard.
    groups: Groups,
}

#[derive(Debug)]
struct Search {
    group: i32,
    started: Instant,
    done: oneshot::Sender<()>,
}

/// A running process of the agent.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pid: i32,
    /// Readable when the process has ended; absent on kernels before 5.3.
    pidfd: Option<OwnedFd>,
    place: Place,
    started: Instant,
    supervisor: Arc<Supervisor>,
}

impl Supervisor {
    /// For the agent's life named `incarnation`; searches end with `shutdown`.
    pub fn start(incarnation: &str, exclusive: bool, shutdown: CancellationToken) -> Arc<Self> {
        if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
            tracing::warn!(%error, "processes that leave their session may outlive their task");
        }
        let (searches, receiver) = mpsc::channel(1024);
        let supervisor = Arc::new(Self {
            incarnation: incarnation.to_owned(),
            exclusive,
            owned: Mutex::default(),
            starting: RwLock::default(),
            searches,
            orphans: Orphans::open(),
            groups: Groups::create(),
        });
        kiln_telemetry::spawn(search_loop(supervisor.clone(), receiver, shutdown));
        supervisor
    }

    /// Where the guard finds the groups of the agent's processes.
    pub fn groups_path(&self) -> Option<String> {
        self.groups.path()
    }

    /// The lease is valid until then: the guard takes over if the agent does not end its tasks.
    pub fn lease_until(&self, end: Duration) {
        self.groups.lease(end);
    }

    /// Starts a process whose environment has `marker` in it. Blocks for as
    /// long as the system takes. Never call it on the main thread: see [`Orphans`].
    ///
    /// # Errors
    /// As the system says.
    pub fn spawn(self: &Arc<Self>, command: &mut Command, marker: &str) -> std::io::Result<Running> {
        let starting = self.starting.read().unwrap_or_else(PoisonError::into_inner);
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).unwrap_or(0);
        self.owned.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, marker.into());
        drop(starting);
        let place = self.groups.began(pid);
        let pidfd = rustix::process::Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        Ok(Running { child, pid, pidfd, place, started: Instant::now(), supervisor: self.clone() })
    }

    fn disown(&self, pid: i32) {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
    }

    /// Completes when nothing that belongs to the ended process `group` runs.
    async fn search(&self, group: i32, started: Instant) {
        let (done, finished) = oneshot::channel();
        if self.searches.send(Search { group, started, done }).await.is_ok() {
            // An error means that the agent ends; the guard takes over.
            let _ = finished.await;
        }
    }

    /// Kills `victims` until none is left. Blocks.
    fn kill_all(&self, mut victims: impl FnMut(&[Process]) -> HashSet<i32>) {
        let own = std::process::id() as i32;
        let mut killed = HashSet::new();
        for round in 0..MAX_ROUNDS {
            let processes = table::scan();
            let found = victims(&processes);
            for pid in &found {
                table::kill_process(*pid);
            }
            killed.extend(found.iter().copied());
            self.reap(&processes, &killed, own);
            if found.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(u64::from(round)).min(MAX_PAUSE));
        }
        tracing::warn!("some processes of a task do not end although they were killed");
    }

    /// Collects the results of orphans that have ended.
    fn reap(&self, processes: &[Process], killed: &HashSet<i32>, own: i32) {
        let mut zombies = processes
            .iter()
            .filter(|process| process.parent == own && process.zombie)
            .filter(|process| self.exclusive || killed.contains(&process.pid))
            .map(|process| process.pid)
            .peekable();
        if zombies.peek().is_none() {
            return;
        }
        let starting = self.starting.write().unwrap_or_else(PoisonError::into_inner);
        let owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        for pid in zombies.filter(|pid| !owned.contains_key(pid)) {
            // An error means that it was collected already.
            let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
        }
        drop(starting);
    }

    /// What is left of ended processes (`groups` are the latest of them).
    fn leftovers(&self, processes: &[Process], groups: &HashSet<i32>) -> HashSet<i32> {
        let found = self.leftovers_now(processes, groups);
        if found.is_empty() {
            return found;
        }
        // A child that is just being started looks like an orphan until it is in
        // `owned`; once this lock was held, every child of the table is.
        drop(self.starting.write().unwrap_or_else(PoisonError::into_inner));
        self.leftovers_now(processes, groups)
    }

    fn leftovers_now(&self, processes: &[Process], groups: &HashSet<i32>) -> HashSet<i32> {
        let own = std::process::id() as i32;
        let owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let live: HashSet<&str> = owned.values().map(|marker| &**marker).filter(|marker| !marker.is_empty()).collect();
        let mut roots: HashSet<i32> = HashSet::new();
        for process in processes.iter().filter(|process| !process.zombie && !owned.contains_key(&process.pid)) {
            let in_group = groups.contains(&process.group) && !owned.contains_key(&process.group);
            if in_group || (process.parent == own && self.is_abandoned(process.pid, &live)) {
                roots.insert(process.pid);
            }
        }
        self.below(processes, &roots, &owned)
    }

    /// Whether an orphan that the agent has adopted belongs to no live process.
    fn is_abandoned(&self, pid: i32, live: &HashSet<&str>) -> bool {
        match table::environment_value(pid, MARKER) {
            Some(marker) if live.contains(marker.as_str()) => false,
            Some(marker) if marker.starts_with(&self.incarnation) => true,
            // It has cleared its environment. Whose it is cannot be told, so it
            // may live for as long as any task does.
            _ => self.exclusive && live.is_empty(),
        }
    }

    /// `roots` with descendants, without the agent's own other children.
    fn below(&self, processes: &[Process], roots: &HashSet<i32>, owned: &HashMap<i32, Arc<str>>) -> HashSet<i32> {
        if roots.is_empty() {
            return HashSet::new();
        }
        let running: HashSet<i32> =
            processes.iter().filter(|process| !process.zombie).map(|process| process.pid).collect();
        let mut found = table::with_descendants(processes, roots);
        found.retain(|pid| running.contains(pid) && (roots.contains(pid) || !owned.contains_key(pid)));
        found
    }
}

impl Running {
    /// Its process id, which is also that of its group.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// How long it has been there.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Blocks until the process has ended, but not longer than `limit`: what ends soon
    /// needs no other thread to be woken for it. `None` if it still runs.
    pub fn wait_briefly(&mut self, limit: Duration) -> Option<std::io::Result<ExitStatus>> {
        let pidfd = self.pidfd.as_ref()?;
        let timeout = Timespec::try_from(limit).ok()?;
        // An error (a signal came) means that somebody else has to wait.
        let ended = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0);
        ended.then(|| self.child.wait())
    }

    /// Waits until the process has ended; gives its result. What it left behind
    /// may still run: see [`Running::clean_up`].
    ///
    /// # Errors
    /// As the system says.
    pub async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        match &self.pidfd {
            Some(pidfd) => {
                // Of all that the runtime can watch, a pipe comes closest: only that it
                // becomes readable counts, nothing is read.
                let ended = pipe::Receiver::from_owned_fd_unchecked(pidfd.try_clone()?)?;
                ended.readable().await?;
            }
            None => {
                let pid = Pid::from_raw(self.pid);
                // Leaves the result where it is.
                let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
                let work = move || while waitid(Id::Pid(pid), flags) == Err(nix::errno::Errno::EINTR) {};
                tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?;
            }
        }
        self.child.wait()
    }

    /// Kills the process and everything below it, at once. [`Running::wait`]
    /// still has to be called.
    pub async fn kill(&self) {
        let (supervisor, pid) = (self.supervisor.clone(), self.pid);
        let tree = move |processes: &[Process]| {
            let owned = supervisor.owned.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut roots: HashSet<i32> =
                processes.iter().filter(|process| process.group == pid).map(|process| process.pid).collect();
            roots.insert(pid);
            supervisor.below(processes, &roots, &owned)
        };
        let supervisor = self.supervisor.clone();
        let work = move || {
            // All are stopped before the first is killed: when a parent dies, nobody
            // can tell any more whose its children were.
            let mut members = HashSet::new();
            for _ in 0..MAX_FREEZE_ROUNDS {
                let found = tree(&table::scan());
                let new: Vec<i32> = found.difference(&members).copied().collect();
                if new.is_empty() {
                    break;
                }
                for pid in new {
                    table::stop_process(pid);
                    members.insert(pid);
                }
            }
            supervisor.kill_all(|processes| {
                let mut found = tree(processes);
                let running = processes.iter().filter(|process| !process.zombie && members.contains(&process.pid));
                found.extend(running.map(|process| process.pid));
                found
            });
        };
        if let Err(error) = tokio::task::spawn_blocking(work).await {
            tracing::error!(%error, "killing a process failed");
        }
    }

    /// After the end: kills what the process left behind. Completes when nothing
    /// of it runs any more.
    pub async fn clean_up(self) {
        self.supervisor.disown(self.pid);
        let group_is_empty = !table::kill_group(self.pid);
        let known = |pid| self.supervisor.owned.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&pid);
        if !(group_is_empty && self.supervisor.orphans.none(known)) {
            self.supervisor.search(self.pid, self.started).await;
        }
        self.supervisor.groups.ended(self.place);
    }

    /// For helpers of the agent that leave nothing behind.
    pub fn release(self) {
        self.supervisor.disown(self.pid);
        self.supervisor.groups.ended(self.place);
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }
}

async fn search_loop(supervisor: Arc<Supervisor>, mut searches: mpsc::Receiver<Search>, shutdown: CancellationToken) {
    let mut requests = Vec::new();
    loop {
        tokio::select! {
            received = searches.recv_many(&mut requests, 1024) => if received == 0 { return },
            () = tokio::time::sleep(REAP_INTERVAL), if supervisor.exclusive => {}
            () = shutdown.cancelled() => return,
        }
        let groups: HashSet<i32> = requests.iter().map(|search| search.group).collect();
        let young = requests.iter().all(|search| search.started.elapsed() < YOUNG);
        let worker = supervisor.clone();
        let work = move || {
            // What a process started has a larger id than itself. For processes
            // that lived shortly only these few are looked at.
            let recent = groups.iter().min().filter(|_| young).and_then(|first| table::scan_since(*first));
            if recent.is_some_and(|processes| worker.leftovers(&processes, &groups).is_empty()) {
                return;
            }
            worker.kill_all(|processes| worker.leftovers(processes, &groups));
        };
        if let Err(error) = tokio::task::spawn_blocking(work).await {
            tracing::error!(%error, "the search for left processes failed");
        }
        for search in requests.drain(..) {
            // Whoever asked may have been cancelled.
            let _ = search.done.send(());
        }
    }
}
